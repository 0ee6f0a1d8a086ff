"""The shipped tasks: prompt pairs made from templates and a seed."""

from __future__ import annotations

import random
from typing import Literal

from interp.errors import InterpError, unknown
from interp.prompts import PromptPair, Tokenizing
from interp.tasks.words import COLOURS, EVENTS, NAMES, NOUNS, OBJECTS, PLACES, THINGS, single_token

IOI_TEMPLATES = (
    "Then, {A} and {B} went to the {place}. {C} gave a {thing} to",
    "When {A} and {B} went to the {place}, {C} gave a {thing} to",
    "After {A} and {B} went to the {place}, {C} gave a {thing} to",
    "Then, {A} and {B} had a long argument. Afterwards {C} said to",
    "While {A} and {B} were working at the {place}, {C} gave a {thing} to",
    "Friends {A} and {B} found a {thing} at the {place}. {C} gave it to",
)


def ioi(
    n: int,
    seed: int,
    model: Tokenizing | None = None,
    *,
    corruption: Literal["swap", "random", "abc"] = "swap",
    templates: int = len(IOI_TEMPLATES),
) -> tuple[PromptPair, ...]:
    """Indirect object identification (Wang et al. 2022, arXiv 2211.00593), ABBA and BABA mixed.

    The answer is the indirect object IO, the wrong answer the repeated subject S. Corruptions:
    `swap` turns S2 into IO (the answer flips), `random` turns S2 into a third name, `abc` turns
    all three names into three others. Positions: IO, S1, S1+1, S2, last.
    """
    if corruption not in ("swap", "random", "abc"):
        raise unknown("corruption", corruption, ("swap", "random", "abc"))
    if not 1 <= templates <= len(IOI_TEMPLATES):
        raise InterpError(
            f"{templates} templates of ioi", f"there are {len(IOI_TEMPLATES)}", "choose fewer"
        )
    rng, names = random.Random(seed), single_token(NAMES, model, 5)
    pairs = []
    for i in range(n):
        subject, indirect, *others = rng.sample(names, 5)
        template = IOI_TEMPLATES[rng.randrange(templates)]
        filling = {"place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
        abba = i % 2 == 0
        first, second = (indirect, subject) if abba else (subject, indirect)
        clean = template.format(A=first, B=second, C=subject, **filling)
        third = {"swap": indirect, "random": others[0]}.get(corruption, others[2])
        if corruption == "abc":
            first, second = others[:2]
        after_b = template.split("{B}")[1].split()[0].strip(",.")
        pairs.append(
            PromptPair(
                clean=clean,
                corrupted=template.format(A=first, B=second, C=third, **filling),
                answers=(f" {indirect}",),
                wrong=(f" {subject}",),
                positions={
                    "IO": indirect,
                    "S1": subject,
                    "S1+1": f" {after_b}" if abba else " and",
                    "S2": (subject, 1),
                },
            )
        )
    return tuple(pairs)


def greater_than(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """Greater-than (Hanna et al. 2023, arXiv 2305.00586): "from the year 1749 to the year 17".

    Answers are the continuations that make the second year later, wrong answers the others; the
    corrupted prompt begins in the year 01 (09). Where two digits are one token (GPT-2) they are
    the continuation. Where every digit is a token the first one is: the start year then ends in 9,
    so that the tens digit alone decides. Position: year (the start year's decisive token).
    """
    rng = random.Random(seed)
    by_digit = model is None or len(model.token_id("49")) > 1
    events = single_token(EVENTS, model, 4)
    pairs = []
    for _ in range(n):
        century = rng.choice((15, 16, 17, 18))
        start = rng.randrange(2, 9) if by_digit else rng.randrange(11, 90)
        text = "The {event} lasted from the year {century}{start} to the year {century}"
        event = rng.choice(events)
        years = [f"{start}9", "09"] if by_digit else [f"{start}", "01"]
        clean, corrupted = (text.format(event=event, century=century, start=year) for year in years)
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


def induction(
    n: int, seed: int, model: Tokenizing | None = None, *, length: int = 8
) -> tuple[PromptPair, ...]:
    """Repeated random words: "a b c ... a b" is followed by "c" (Olsson et al. 2022).

    The corrupted prompt has another word after the first occurrence of the last word; that word
    is the wrong answer. Positions: first (the cue's first occurrence), after (the token after it).
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


def colored_objects(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """Colored Objects, one example first (Merullo et al. 2024, arXiv 2310.08744).

    The answer is the asked object's colour, the wrong answers those of the two others; the
    corrupted prompt asks about another object. Position: object (the one asked about).
    """
    rng = random.Random(seed)
    objects = single_token(OBJECTS, model, 6)
    colours = single_token(COLOURS, model, 6)
    pairs = []
    for _ in range(n):
        things, hues = rng.sample(objects, 6), rng.sample(colours, 6)
        example, question = (_table(things[i : i + 3], hues[i : i + 3]) for i in (0, 3))
        shown, asked = rng.randrange(3), rng.randrange(3)
        other = rng.choice([i for i in range(3) if i != asked])
        head = f"{example} What color is the {things[shown]}?\nA: {hues[shown]}\n{question}"
        texts = [f"{head} What color is the {things[3 + i]}?\nA:" for i in (asked, other)]
        pairs.append(
            PromptPair(
                clean=texts[0],
                corrupted=texts[1],
                answers=(f" {hues[3 + asked]}",),
                wrong=tuple(f" {hues[3 + i]}" for i in range(3) if i != asked),
                positions={"object": (f" the {things[3 + asked]}", -1)},
            )
        )
    return tuple(pairs)


def _table(things: list[str], hues: list[str]) -> str:
    seen = [
        f"{'an' if hue[0] in 'aeiou' else 'a'} {hue} {thing}"
        for hue, thing in zip(hues, things, strict=True)
    ]
    return f"Q: On the table, there is {seen[0]}, {seen[1]}, and {seen[2]}."
