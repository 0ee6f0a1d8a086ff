"""Find token patterns and numbers in texts."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from interp.core.arguments import listed, texts_of
from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Match:
    """A match of a pattern: the number of the text, its first token, and the pattern's label."""

    text: int
    position: int
    label: str


def find_positions(
    texts: Sequence[Sequence[int]], patterns: Mapping[str, Sequence[int]]
) -> list[Match]:
    """All matches of token patterns in texts, ordered by text and position.

    Positions are token indices in their text, not in a batch.

    Raises:
        InterpError: there is no pattern, a pattern is empty, two labels have the same pattern, or a
            text is not given as token ids.
    """
    wanted = {label: tuple(pattern) for label, pattern in patterns.items()}
    if not wanted or not all(wanted.values()) or len(set(wanted.values())) < len(wanted):
        raise InterpError(
            f"patterns {wanted}",
            "none, an empty pattern, or a repeated one",
            "give different patterns",
        )
    rows = texts_of(texts)
    for text in (*rows, *wanted.values()):
        if any(isinstance(t, str) for t in text):
            do = "tokenise it: model.tokenize(text)"
            raise InterpError(f"patterns in {text!r}", "text, not token ids", do)
    return [
        Match(text=number, position=position, label=label)
        for number, tokens in enumerate(map(tuple, rows))
        for position in range(len(tokens))
        for label, pattern in wanted.items()
        if tokens[position : position + len(pattern)] == pattern
    ]


def number_positions(pieces: Sequence[str], number: int) -> list[int]:
    """The last token of every occurrence of a whole number in a text, given as token strings.

    Occurrences inside a longer number, or directly after a minus sign, are not counted: "171" and
    "-71" do not contain 71, but "84 - 71" does.
    """
    pieces = listed(pieces)
    ends = list(accumulate(map(len, pieces)))
    matches = re.finditer(rf"(?<![-\d.]){number}(?!\.?\d)", "".join(pieces))
    return [bisect_right(ends, match.end() - 1) for match in matches]


def require_single(model: LanguageModel, text: str, pieces: Sequence[str]) -> tuple[int, ...]:
    """The token ids of a text, which must consist of exactly these tokens.

    Raises:
        InterpError: the tokeniser cuts the text into other tokens; the message shows them.
    """
    tokens, pieces = model.token_id(text), listed(pieces)
    if model.strings(tokens) != tuple(pieces):
        raise InterpError(
            f"{text!r} as the tokens {pieces}",
            f"{model.name} cuts it into {list(model.strings(tokens))}",
            "use a model whose tokeniser separates them, or another verdict format",
        )
    return tokens
