"""Indirect object identification (IOI) and its variants."""

from __future__ import annotations

import random
from typing import Literal

from interp.core.arguments import Tokenizing
from interp.core.errors import InterpError
from interp.core.positions import Mark
from interp.core.prompts import PromptPair
from interp.tasks.words import NAMES, PLACES, THINGS, single_token

Corruption = Literal["swap", "random", "abc"]
Variant = Literal["plain", "other", "three", "roles"]
IOI_TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": (
        "Then, {A} and {B} went to the {place}. {C} gave a {thing} to",
        "When {A} and {B} went to the {place}, {C} gave a {thing} to",
        "After {A} and {B} went to the {place}, {C} gave a {thing} to",
        "Then, {A} and {B} had a long argument. Afterwards {C} said to",
        "While {A} and {B} were working at the {place}, {C} gave a {thing} to",
        "Friends {A} and {B} found a {thing} at the {place}. {C} gave it to",
    ),
    "other": (
        "Yesterday {A} and {B} met near the {place}, where {C} handed a {thing} to",
        "Once {A} and {B} had left the {place}, {C} sold a {thing} to",
        "At the {place}, {A} and {B} sat down together. Soon {C} offered a {thing} to",
        "Because {A} and {B} were late for the {place}, {C} wrote a letter to",
    ),
    "three": (
        "Then, {A}, {B} and {E} went to the {place}. {C} and {D} gave a {thing} to",
        "When {A}, {B} and {E} went to the {place}, {C} and {D} gave a {thing} to",
        "Friends {A}, {B} and {E} found a {thing} at the {place}. {C} and {D} gave it to",
    ),
    "roles": (
        "Then, {A} and {B} went to the {place}. {C} got a {thing} from",
        "When {A} and {B} went to the {place}, {C} received a {thing} from",
        "After {A} and {B} had met at the {place}, {C} bought a {thing} from",
        "While {A} and {B} were working at the {place}, {C} took a {thing} from",
    ),
}


def ioi(
    n: int,
    seed: int,
    model: Tokenizing | None = None,
    *,
    corruption: Corruption = "swap",
    variant: Variant = "plain",
    templates: int | None = None,
    template: int | None = None,
) -> tuple[PromptPair, ...]:
    """Indirect object identification (Wang et al. 2022, arXiv 2211.00593), ABBA and BABA mixed.

    The answer is the indirect object IO, and the wrong answer is the repeated subject S. The
    corruption `swap` replaces S2 by IO, which swaps the answers; `random` replaces S2 by a third
    name; `abc` replaces all names by other names. Positions: IO, S1, S2, last, and S1+1 if there
    are two names.

    Args:
        n: number of pairs.
        seed: seed of the random choices.
        model: if given, only names that are single tokens are used.
        corruption: "swap", "random" or "abc".
        variant: "plain"; "other" for other wordings; "three" for three names, of which two give and
            the third receives (S is the first giver, and both givers are wrong answers); or "roles"
            for swapped roles, in which the repeated name receives and the answer gives.
        templates: use only this many of the variant's templates, from the first; all by default.
        template: use only the template with this number.

    Raises:
        InterpError: there are no such templates, or too few names are single tokens.
    """
    wordings = _wordings(variant, templates, template)
    three = variant == "three"
    rng, names = random.Random(seed), single_token(NAMES, model, 8 if three else 5)
    pairs = []
    for i in range(n):
        subject, indirect, *spare = rng.sample(names, 8 if three else 5)
        wording = wordings[rng.randrange(len(wordings))]
        filling = {"place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
        abba = i % 2 == 0
        present = [indirect, subject] if abba else [subject, indirect]
        acting = [subject]
        if three:
            acting.append(spare.pop())
            present.insert(rng.randrange(3), acting[1])
        changed = {
            "swap": (present, [indirect, *acting[1:]]),
            "random": (present, [spare[0], *acting[1:]]),
            "abc": (spare[: len(present)], spare[len(present) :]),
        }
        positions: dict[str, Mark] = {"IO": indirect, "S1": subject, "S2": (subject, 1)}
        if not three:
            after = wording.split("{B}")[1].split()[0].strip(",.")
            positions["S1+1"] = f" {after}" if abba else " and"
        pairs.append(
            PromptPair(
                clean=_written(wording, present, acting, filling),
                corrupted=_written(wording, *changed[corruption], filling),
                answers=(f" {indirect}",),
                wrong=tuple(f" {name}" for name in acting),
                positions=positions,
            )
        )
    return tuple(pairs)


def _written(wording: str, present: list[str], acting: list[str], filling: dict[str, str]) -> str:
    people = {**dict(zip("ABE", present, strict=False)), **dict(zip("CD", acting, strict=False))}
    return wording.format(**people, **filling)


def _wordings(variant: Variant, templates: int | None, template: int | None) -> tuple[str, ...]:
    known = IOI_TEMPLATES[variant]
    if template is not None and not 0 <= template < len(known):
        found = f"there are 0 to {len(known) - 1}"
        raise InterpError(f"template {template} of ioi", found, "choose one of these")
    if templates is not None and not 1 <= templates <= len(known):
        found = f"there are {len(known)}"
        raise InterpError(f"{templates} templates of ioi", found, "choose fewer")
    return known[:templates] if template is None else (known[template],)
