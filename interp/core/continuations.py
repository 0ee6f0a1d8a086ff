"""Answers in context: the token that follows a prompt when an answer is written after it.

Tokenisers cut a text by what stands before it. Many put a space token in front of a text that
stands alone ("Paris" is the token of " Paris"), so that a word's token can only be read behind a
prompt.
"""

from __future__ import annotations

from typing import Any, Protocol

from interp.core.arguments import Tokenizes
from interp.core.errors import InterpError
from interp.core.positions import Prompt

CARRIERS = ("\n", "a", "1", ".")
"""Texts that a piece of text is put behind, to see its tokens inside a text."""

ENDS = ",.:;?!)]}…%”’\"'"
"""What a word may end with where it is not clear that the next one has its space."""

BEFORE_WORDS = "It is"
"""A prompt behind which words are looked up for prompts that are yet to be written."""


class TokenizesWords(Tokenizes, Protocol):
    """A model, as far as reading answers goes: its name, tokeniser and vocabulary."""

    name: str
    d_vocab: int
    tokenizer: Any

    def cut(self, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...] | None]: ...
    def token_id(self, text: str) -> tuple[int, ...]: ...


def piece_tokens(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of a piece of text as they are inside a text, without special tokens.

    The same as alone, but where the tokeniser puts a space in front of what stands alone.
    """

    def tokens(whole: str) -> tuple[int, ...]:
        return tuple(tokenizer(whole, add_special_tokens=False)["input_ids"])

    alone = tokens(text)
    if tokens("a b") == tokens("a") + tokens(" b"):
        return alone
    for carrier in CARRIERS:
        before, whole = tokens(carrier), tokens(carrier + text)
        if whole[: len(before)] == before:
            return whole[len(before) :]
    return alone


def follows(
    model: TokenizesWords,
    prompt: Prompt,
    text: str,
    before: tuple[int, ...] | None = None,
) -> tuple[int, ...] | None:
    """The tokens that write `text` exactly as it is after a prompt; None if none do.

    Those after the prompt's when both are tokenised together. Where the tokeniser joins the
    prompt's end with the text ("18" and "50" to "1850"), or the prompt is written as ids, the one
    token that, decoded behind the prompt's tokens, adds the text; no such token counts behind a
    space, which the tokeniser would join to the next word.
    `before` spares cutting the prompt again.
    """
    if before is None:
        before = model.cut(prompt)[0] if isinstance(prompt, str) else tuple(prompt)
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    found: tuple[int, ...] | None = None
    if isinstance(prompt, str):
        whole = model.cut(prompt + text)[0]
        if whole[: len(before)] == before:
            found = whole[len(before) :]
        elif prompt[-1:].isspace():
            return None
    if found is None:
        found = model.token_id(text)
        written = [_written(model, tokens) for tokens in (before, before + found)]
        if written[0] + text != written[1]:
            return None
    if unknown in found and _written(model, found).strip() != text.strip():
        return None
    return found


def answer_token(model: TokenizesWords, prompt: Prompt, answer: str | int, asked: str) -> int:
    """The id of the one token that writes an answer after a prompt; an id is checked and returned.

    The answer is taken as written: " Paris" begins a word, "49" goes on with the number before it.
    A word may be written without its space where only one reading is a token.

    Raises:
        InterpError: several tokens or none, a word of which it is not clear whether a space stands
            before it, or an id beyond the vocabulary; the tokens are printed.
    """
    if not isinstance(answer, str):
        if isinstance(answer, bool) or not 0 <= answer < model.d_vocab:
            found = f"{model.name} has tokens 0 to {model.d_vocab - 1}"
            raise InterpError(asked, found, "give an id of its vocabulary")
        return answer
    before = model.cut(prompt)[0] if isinstance(prompt, str) else tuple(prompt)
    end = (prompt if isinstance(prompt, str) else _written(model, before))[-1:]
    begins = bool(end and answer) and not end.isspace() and not answer[0].isspace()
    word = begins and (end.isalpha() or end in ENDS) and answer[0].isalnum()
    attached = follows(model, prompt, answer, before)
    if attached is not None and len(attached) == 1 and not word:
        return attached[0]
    spaced = follows(model, prompt, f" {answer}", before) if begins else None
    single = [found is not None and len(found) == 1 for found in (attached, spaced)]
    if all(single) and attached != spaced:
        raise InterpError(
            asked,
            f"{model.name} has a token for it with a space before it ({spaced[0]}) and "  # type: ignore[index]
            f"one without ({attached[0]})",  # type: ignore[index]
            f"write {' ' + answer!r} for the word that follows, or give the id of the other",
        )
    if single[0]:
        return attached[0]  # type: ignore[index]
    if single[1] and (word or attached is None):
        return spaced[0]  # type: ignore[index]
    tokens = attached or spaced or ()
    if attached is None and spaced is None and answer:
        shown = model.tokenize(prompt + answer).shown() if isinstance(prompt, str) else "none"
        raise InterpError(
            asked,
            f"no tokens of {model.name} write it after the prompt: {shown}",
            "end the prompt where a word ends, before its space, and begin the answer with it",
        )
    shown = model.tokenize(tokens).shown() if tokens else "nothing"
    raise InterpError(
        asked,
        f"{len(tokens)} tokens in {model.name}: {shown}",
        "use answers of one token (many need their leading space)",
    )


def _written(model: TokenizesWords, tokens: tuple[int, ...]) -> str:
    return model.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
