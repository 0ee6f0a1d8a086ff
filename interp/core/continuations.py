"""The tokens that write an answer after a prompt.

How a tokeniser cuts a text depends on what comes before it. Many tokenisers add a space in front of
a text that is tokenised alone ("Paris" becomes the token of " Paris"). So the token of a word can
only be found by tokenising the word after a prompt.
"""

from __future__ import annotations

from typing import Any

from interp.core.arguments import Tokenizing
from interp.core.errors import InterpError
from interp.core.positions import Prompt

CARRIERS = ("\n", "a", "1", ".")
"""Texts put before a piece of text, to find its tokens inside a text."""

ENDS = ",.:;?!)]}…%”’\"'"
"""Punctuation at the end of a prompt after which the next word may or may not need a space."""

GivenAnswer = str | int | tuple[int, ...]
"""An answer: a text, the id of a token, or the ids of several tokens."""

BEFORE_WORDS = "It is"
"""The prompt after which words are tokenised while a task has no prompts yet."""


def piece_tokens(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens that a piece of text has inside a longer text, without special tokens.

    They differ from the tokens of the piece alone only if the tokeniser adds a space in front of a
    text that is tokenised alone.
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
    model: Tokenizing, prompt: Prompt, text: str, before: tuple[int, ...] | None = None
) -> tuple[int, ...] | None:
    """The tokens that write exactly `text` after a prompt, or None if no tokens do.

    Prompt and text are tokenised together, and the tokens after those of the prompt are returned.
    There are two exceptions: the tokeniser may merge the end of the prompt with the text ("18" and
    "50" into "1850"), and the prompt may be given as token ids. Then the tokens of the text alone
    are returned, if decoding them after the prompt's tokens adds exactly the text. They are not
    returned after a text that ends with a space, which the tokeniser would merge into the next
    word.

    `before` gives the prompt's tokens, so that they are not computed again.
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


def answer_token(model: Tokenizing, prompt: Prompt, answer: GivenAnswer, asked: str) -> int:
    """The id of the single token that writes an answer after a prompt; see `answer_tokens`.

    Raises:
        InterpError: as `answer_tokens`, or the answer is several tokens.
    """
    tokens = answer_tokens(model, prompt, answer, asked)
    if len(tokens) == 1:
        return tokens[0]
    raise InterpError(
        asked,
        f"{len(tokens)} tokens in {model.name}: {model.tokenize(tokens).shown()}",
        "use answers of one token (many need a leading space), or a metric of whole answers: "
        "with_metric('log_prob_diff')",
    )


def answer_tokens(
    model: Tokenizing, prompt: Prompt, answer: GivenAnswer, asked: str
) -> tuple[int, ...]:
    """The ids of the tokens that write an answer after a prompt.

    An answer given as ids is checked and returned. A text is read as written: " Paris" begins a
    word, and "49" continues the number before it. The leading space of a word may be left out if
    only one of the two spellings is a single token.

    Raises:
        InterpError: the answer has no tokens, it is several tokens of a word that follows another
            without a space, both spellings of a word are single tokens, or an id is outside the
            vocabulary. The message shows the tokens.
    """
    if not isinstance(answer, str):
        ids = answer if isinstance(answer, tuple) else (answer,)
        if not ids:
            raise InterpError(asked, "no tokens", "give at least one")
        if any(isinstance(one, bool) or not 0 <= one < model.d_vocab for one in ids):
            found = f"{model.name} has tokens 0 to {model.d_vocab - 1}"
            raise InterpError(asked, found, "give a token id of its vocabulary")
        return ids
    before = model.cut(prompt)[0] if isinstance(prompt, str) else tuple(prompt)
    end = (prompt if isinstance(prompt, str) else _written(model, before))[-1:]
    begins = bool(end and answer) and not end.isspace() and not answer[0].isspace()
    word = begins and (end.isalpha() or end in ENDS) and answer[0].isalnum()
    attached = follows(model, prompt, answer, before)
    alone = attached[0] if attached is not None and len(attached) == 1 else None
    if alone is not None and not word:
        return (alone,)
    spaced = follows(model, prompt, f" {answer}", before) if begins else None
    after_space = spaced[0] if spaced is not None and len(spaced) == 1 else None
    if alone is not None and after_space is not None and alone != after_space:
        raise InterpError(
            asked,
            f"{model.name} has a token with a leading space ({after_space}) and "
            f"one without ({alone})",
            f"write {' ' + answer!r} for a new word; the token without a space can only be given "
            f"in Python, by its id {alone}",
        )
    if alone is not None:
        return (alone,)
    if after_space is not None and (word or attached is None):
        return (after_space,)
    if attached is None and spaced is None and answer:
        shown = model.tokenize(prompt + answer).shown() if isinstance(prompt, str) else "none"
        raise InterpError(
            asked,
            f"no tokens of {model.name} write it after the prompt: {shown}",
            "end the prompt after a word, without a space, and begin the answer with the space",
        )
    if not attached or (word and end.isalpha()):
        tokens = attached or spaced or ()
        shown = model.tokenize(tokens).shown() if tokens else "nothing"
        raise InterpError(
            asked,
            f"{len(tokens)} tokens in {model.name}: {shown}",
            "use answers of one token (many need a leading space), or begin an answer of several "
            "tokens with its space",
        )
    return attached


def _written(model: Tokenizing, tokens: tuple[int, ...]) -> str:
    return model.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
