"""Named token positions: how a name becomes a token index in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from interp.core.errors import InterpError

Prompt = str | Sequence[int]
"""A prompt: a text, or token ids."""

Mark = str | int | tuple[str, int]
"""Where a named position is. Either a token index (negative counts from the end), a substring, or
(substring, occurrence). A substring means its first occurrence; occurrences are numbered from 0, or
from the last one if negative. The position is the last token that covers the substring.
Substrings are also found inside words: "an" is found in "and", but " an " is not."""


@dataclass(frozen=True, kw_only=True)
class TokenizedPrompt:
    """A prompt's text and tokens, in which positions are looked up.

    `strings` holds the text of each token. `spans` holds each token's character range in `text`;
    it is None if the tokeniser gives no ranges or the prompt was given as token ids. `end_of_turn`
    is the text of the model's end-of-turn token, if it has one.
    """

    text: str | None
    tokens: tuple[int, ...]
    strings: tuple[str, ...]
    spans: tuple[tuple[int, int], ...] | None
    end_of_turn: str | None = None

    def shown(self) -> str:
        """The tokens in one line, separated by |."""
        return "|".join(string.replace("\n", "\\n") for string in self.strings)


def _last(prompt: TokenizedPrompt, fits: Callable[[str], bool]) -> int:
    """The index of the last token whose text fits, or -1."""
    return max((i for i, text in enumerate(prompt.strings) if fits(text)), default=-1)


NAMED: dict[str, Callable[[TokenizedPrompt], int]] = {
    "last": lambda prompt: len(prompt.tokens) - 1,
    "first": lambda prompt: 0,
    "last_digit": lambda prompt: _last(prompt, lambda text: text.strip()[-1:].isdigit()),
    "paren": lambda prompt: _last(prompt, lambda text: text == " ("),
    "end_of_instruction": lambda prompt: _last(prompt, lambda text: text == prompt.end_of_turn) - 1,
}
"""Positions that need no marks: the last and the first token, the last token that ends in a digit,
the last " (" token, and the token before the last end-of-turn token of a chat prompt."""

RESERVED = (*NAMED, "all")
"""Names that a task cannot use for its own positions."""


def require_own(names: Iterable[str], asked: str) -> None:
    """Refuse reserved names.

    Raises:
        InterpError: one of the names is reserved.
    """
    if taken := sorted({*names} & {*RESERVED}):
        raise InterpError(
            asked,
            f"the name {taken[0]!r} is reserved",
            f"choose another name; the reserved ones are {', '.join(RESERVED)}",
        )


def occurrences(part: str, text: str) -> list[int]:
    """The character indices at which `part` begins in `text`; occurrences may overlap."""
    return [i for i in range(len(text)) if text.startswith(part, i)] if part else []


def resolve(name: str, prompt: TokenizedPrompt, marks: dict[str, Mark], label: str) -> int:
    """The token index of a named position in one prompt.

    Raises:
        InterpError: the prompt has no such position; the message shows its tokens.
    """
    if name in marks:
        index = _resolve_mark(marks[name], prompt)
    elif name in NAMED:
        index = NAMED[name](prompt)
    else:
        raise InterpError(
            f"position {name!r} of {label}",
            "no such position",
            f"this prompt has {', '.join([*marks, *NAMED])}",
        )
    if index is None or not 0 <= index < len(prompt.tokens):
        raise InterpError(
            f"position {name!r} of {label}",
            f"not in the prompt: {prompt.shown()}",
            "choose a position that every prompt has, or change the mark",
        )
    return index


def _resolve_mark(mark: Mark, prompt: TokenizedPrompt) -> int | None:
    if isinstance(mark, int):
        return mark if mark >= 0 else len(prompt.tokens) + mark
    text, occurrence = (mark, 0) if isinstance(mark, str) else mark
    if prompt.text is None or prompt.spans is None:
        return None
    begins = occurrences(text, prompt.text)
    if not -len(begins) <= occurrence < len(begins):
        return None
    last_character = begins[occurrence] + len(text) - 1
    covering = [i for i, (a, b) in enumerate(prompt.spans) if a <= last_character < b]
    return covering[-1] if covering else None


def mark_of(prompt: TokenizedPrompt, index: int) -> Mark:
    """The mark of a token: its text and occurrence, which also fit other tokenisers.

    It is the token's index where the text does not lead back to the token.
    """
    if prompt.text is not None and prompt.spans is not None:
        begin, end = prompt.spans[index]
        part = prompt.text[begin:end]
        begins = occurrences(part, prompt.text)
        mark = (part, begins.index(begin)) if begin in begins else index
        return mark if _resolve_mark(mark, prompt) == index else index
    return index


def first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    """The first position at which two prompts of equal length differ; their length if none does."""
    pairs = enumerate(zip(left, right, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(left))
