"""Generators of the tasks greater_than, induction and capitals."""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from interp.core.arguments import Tokenizing
from interp.core.continuations import follows
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair
from interp.tasks.words import CAPITALS, EVENTS, NOUNS, single_token, word_size

CAPITAL_TEMPLATES = (
    "The capital of {country} is",
    "The capital city of {country} is called",
    "I went to {country} to see its capital,",
)


def greater_than(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """Greater-than (Hanna et al. 2023, arXiv 2305.00586): "from the year 1749 to the year 17".

    Answers are the continuations that make the end year later than the start year; all others are
    wrong answers. If two digits are one token (GPT-2), the continuation is this token, and the
    corrupted prompt's start year ends in 01. If every digit is a token, the continuation is the
    tens digit. The start year then ends in 9, so that the tens digit alone decides, and that of the
    corrupted prompt ends in 09. Position: year (the token of the start year that decides).

    Raises:
        InterpError: too few words or years have the required tokens.
    """
    rng = random.Random(seed)
    by_digit = model is None or len(follows(model, "the year 17", "49") or ()) != 1
    events = single_token(EVENTS, model, 4)
    years = [] if model is None or by_digit else _years(model)
    pairs = []
    for _ in range(n):
        if by_digit:
            century, start = rng.choice((15, 16, 17, 18)), rng.randrange(2, 9)
        else:
            century, start = rng.choice(years)
        text = "The {event} lasted from the year {century}{start} to the year {century}"
        event = rng.choice(events)
        begun = [f"{start}9", "09"] if by_digit else [f"{start}", "01"]
        clean, corrupted = (text.format(event=event, century=century, start=year) for year in begun)
        choices = range(10) if by_digit else range(100)
        spelled = [str(c) if by_digit else f"{c:02d}" for c in choices]
        pairs.append(
            PromptPair(
                clean=clean,
                corrupted=corrupted,
                answers=tuple(spelled[c] for c in choices if c > start),
                wrong=tuple(spelled[c] for c in choices if c <= start),
                positions={"year": f"{century}{start}"},
            )
        )
    return tuple(pairs)


def _years(model: Tokenizing) -> list[tuple[int, int]]:
    """Pairs of a century and the last two digits of a year that are two separate tokens."""

    def apart(century: int, year: str) -> bool:
        return follows(model, f"the year {century}", year) is not None and (
            word_size(f"{century}{year}", model) == 2
        )

    found = [
        (century, start)
        for century in (15, 16, 17, 18)
        if apart(century, "01")
        for start in range(11, 90)
        if apart(century, f"{start}")
    ]
    if not found:
        raise InterpError(
            f"years of two tokens in {model.name}", "none", "write the prompts yourself"
        )
    return found


def induction(
    n: int, seed: int, model: Tokenizing | None = None, *, length: Annotated[int, Field(ge=2)] = 8
) -> tuple[PromptPair, ...]:
    """Repeated random words: "c" follows "a b c ... a b" (Olsson et al. 2022).

    In the corrupted prompt another word follows the first occurrence of the last word; this word is
    the wrong answer. Positions: cue (the first occurrence of the last word), after (the token after
    it).

    Raises:
        InterpError: too few words are single tokens.
    """
    rng, words = random.Random(seed), single_token(NOUNS, model, length + 1)
    pairs = []
    for _ in range(n):
        *chosen, other = rng.sample(words, length + 1)
        cut = rng.randrange(1, length)
        changed = [*chosen[:cut], other, *chosen[cut + 1 :]]
        clean, corrupted = (
            " " + " ".join([*sequence, *chosen[:cut]]) for sequence in (chosen, changed)
        )
        pairs.append(
            PromptPair(
                clean=clean,
                corrupted=corrupted,
                answers=(f" {chosen[cut]}",),
                wrong=(f" {other}",),
                positions={"cue": f" {chosen[cut - 1]}", "after": f" {chosen[cut]}"},
            )
        )
    return tuple(pairs)


def capitals(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """World Capitals (Merullo et al. 2024, arXiv 2310.08744): "The capital of France is" -> Paris.

    The corrupted prompt names another country with the same number of tokens, whose capital is the
    wrong answer. With a model, only capitals that are single tokens are used. Combinations of
    country and template repeat when all have been used. Position: country.

    Raises:
        InterpError: too few capitals are single tokens.
    """
    rng = random.Random(seed)
    kept = set(single_token(list(CAPITALS.values()), model, 8))
    known = {country: city for country, city in CAPITALS.items() if city in kept}
    size = {c: 1 if model is None else word_size(c, model) for c in known}
    alike = {c: [o for o in known if o != c and size[o] == size[c]] for c in known}
    cells = [(c, text) for c in known if alike[c] for text in CAPITAL_TEMPLATES]
    pairs = []
    for i in range(n):
        if i % len(cells) == 0:
            rng.shuffle(cells)
        country, text = cells[i % len(cells)]
        other = rng.choice(alike[country])
        pairs.append(
            PromptPair(
                clean=text.format(country=country),
                corrupted=text.format(country=other),
                answers=(f" {known[country]}",),
                wrong=(f" {known[other]}",),
                positions={"country": country},
            )
        )
    return tuple(pairs)
