"""Where token patterns and numbers stand in texts, as absolute positions of each text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interp.core.arguments import listed, texts_of
from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Match:
    """A pattern found: in which text, at which token it begins, under which label."""

    text: int
    position: int
    label: str


def find_positions(
    texts: Sequence[Sequence[int]], patterns: Mapping[str, Sequence[int]]
) -> list[Match]:
    """Every place at which a text holds exactly these token ids, in order of text and position.

    Positions are absolute within their own text, never within a batch.

    Raises:
        InterpError: an empty pattern, or two labels with the same one.
    """
    wanted = {label: tuple(pattern) for label, pattern in patterns.items()}
    if not wanted or not all(wanted.values()) or len(set(wanted.values())) < len(wanted):
        raise InterpError(f"patterns {wanted}", "an empty one, or one twice", "give each once")
    found = []
    rows = texts_of(texts)
    if words := [
        text for text in (*rows, *wanted.values()) if any(isinstance(t, str) for t in text)
    ]:
        raise InterpError(
            f"patterns in {words[0]!r}", "text, not token ids", "tokenise it: model.tokenize(text)"
        )
    for number, tokens in enumerate(map(tuple, rows)):
        for position in range(len(tokens)):
            for label, pattern in wanted.items():
                if tokens[position : position + len(pattern)] == pattern:
                    found.append(Match(text=number, position=position, label=label))
    return found


def number_positions(pieces: Sequence[str], number: int) -> list[int]:
    """The last token of every occurrence of a whole number in a text, given token by token.

    Never inside a longer number, and never one with a minus sign that touches it: "171" and
    "-71" are not 71, "84 - 71" holds it.
    """
    ends, total, pieces = [], 0, listed(pieces)
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    text = "".join(pieces)
    found = []
    for match in re.finditer(rf"(?<![-\d.]){number}(?!\.?\d)", text):
        last = match.end() - 1
        found.append(next(i for i, end in enumerate(ends) if last < end))
    return found


def require_single(model: LanguageModel, text: str, pieces: Sequence[str]) -> tuple[int, ...]:
    """The token ids of a text that must be cut into exactly these pieces.

    Raises:
        InterpError: the tokeniser cuts it otherwise; its pieces are printed.
    """
    tokens, pieces = model.token_id(text), listed(pieces)
    if model.strings(tokens) != tuple(pieces):
        raise InterpError(
            f"{text!r} as the tokens {pieces}",
            f"{model.name} cuts it into {list(model.strings(tokens))}",
            "use a model whose tokeniser keeps them apart, or another verdict format",
        )
    return tokens
