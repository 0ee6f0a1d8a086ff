"""Named token positions: from words in a prompt to token indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from interp.core.errors import InterpError

Prompt = str | Sequence[int]
"""A prompt: a text, or token ids."""

Mark = str | int | tuple[str, int]
"""Where a named position is: a token index (negative from the end), a substring (its first
occurrence) or (substring, occurrence), negative from the last one. A substring stands for the last
token that covers it, and is found inside words too: "an" is in "and", " an " is not."""


@dataclass(frozen=True, kw_only=True)
class TokenizedPrompt:
    """A prompt with what positions are resolved against.

    `spans` holds each token's character range in `text`; None where the tokeniser gives none or
    the prompt was written as token ids.
    """

    text: str | None
    tokens: tuple[int, ...]
    strings: tuple[str, ...]
    spans: tuple[tuple[int, int], ...] | None
    end_of_turn: str | None = None

    def shown(self) -> str:
        """The tokens with visible borders."""
        return "|".join(string.replace("\n", "\\n") for string in self.strings)


def _last_digit(prompt: TokenizedPrompt) -> int | None:
    found = [i for i, text in enumerate(prompt.strings) if text.strip()[-1:].isdigit()]
    return found[-1] if found else None


def _paren(prompt: TokenizedPrompt) -> int | None:
    found = [i for i, text in enumerate(prompt.strings) if text == " ("]
    return found[-1] if found else None


def _end_of_instruction(prompt: TokenizedPrompt) -> int | None:
    found = [i for i, text in enumerate(prompt.strings) if text == prompt.end_of_turn]
    return found[-1] - 1 if found and found[-1] > 0 else None


NAMED: dict[str, Callable[[TokenizedPrompt], int | None]] = {
    "last": lambda prompt: len(prompt.tokens) - 1,
    "first": lambda prompt: 0,
    "last_digit": _last_digit,
    "paren": _paren,
    "end_of_instruction": _end_of_instruction,
}
"""Positions every prompt may have: its last and first token, the last token that ends in a
digit, the last " (" token, and the token before the last end-of-turn token of a chat prompt."""

RESERVED = (*NAMED, "all")
"""Names that no prompt can give to a position of its own."""


def require_own(names: Iterable[str], asked: str) -> None:
    """Refuse reserved names for positions of a prompt's own.

    Raises:
        InterpError: one of them is reserved.
    """
    if taken := sorted({*names} & {*RESERVED}):
        raise InterpError(
            asked,
            f"the name {taken[0]!r} is reserved",
            f"choose another; reserved are: {', '.join(RESERVED)}",
        )


def occurrences(part: str, text: str) -> list[int]:
    """Where a part begins in a text, overlapping ones too."""
    return [i for i in range(len(text)) if text.startswith(part, i)] if part else []


def resolve(name: str, prompt: TokenizedPrompt, marks: dict[str, Mark], label: str) -> int:
    """The token index of a named position in one prompt.

    Raises:
        InterpError: the position does not exist there; the tokens are printed.
    """
    if name in marks:
        index = _resolve_mark(marks[name], prompt)
    elif name in NAMED:
        index = NAMED[name](prompt)
    else:
        raise InterpError(
            f"position {name!r} of {label}",
            "no such position",
            f"known here: {', '.join([*marks, *NAMED])}",
        )
    if index is None or not 0 <= index < len(prompt.tokens):
        raise InterpError(
            f"position {name!r} of {label}",
            f"not in the prompt: {prompt.shown()}",
            "choose a position every prompt has, or change the mark",
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


def first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    """The first position at which two equally long prompts differ; their length if none."""
    pairs = enumerate(zip(left, right, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(left))
