"""Random circuits of single heads: carriers of a fact, decoys that hold it, and distractors."""

from __future__ import annotations

import random

from interp.core.errors import InterpError
from interp.core.schema import Count, Whole, checked
from interp.models.toys.build import BOS, GROUPS, HEADS, STILL, Blueprint, Toy

LAYERS = 3
WORDS = 24
REST, STATUS, WORD = STILL[:3]
"""Slots through which a head attends to <bos>, to the status, and to the word before it."""


def planted_heads(
    *, carriers: int, decoys: int, distractors: int, pairs: int = 64, seed: int = 0
) -> Toy:
    """A toy whose answer is carried by some heads, in random places of 3 layers of 4 heads.

    A prompt is "<bos> WORD lamp STATUS ; answer:"; the clean status is on, the corrupted one is
    off, and each has a word of its own. The logit difference of yes and no is linear in what the
    heads write:

        10 * (sum of w_h * [status is on] over carriers + sum of u_h * v(WORD) over distractors) - 5

    carriers: the w_h are positive and add up to 1; none below 1/2 of an equal share.
    decoys: attend to the status and hold it as carriers do, and write it where nothing reads it.
    distractors: u_h and the values v of the words are normal (standard deviations 0.3 and 1), so
        that patching one has an effect in each pair, and none in the mean over words.

    All other heads and all neurons are random and write where nothing is read. Without carriers
    nothing in the model tells on from off, and the mean effect of every head is 0.

    Raises:
        InterpError: more heads than the model has.
    """
    names = {"carriers": carriers, "decoys": decoys, "distractors": distractors}
    for name, value in names.items():
        checked(Whole, value, name)
    pairs = checked(Count, pairs, "pairs")
    if sum(names.values()) > LAYERS * HEADS:
        raise InterpError(
            f"{sum(names.values())} planted heads",
            f"{LAYERS * HEADS} heads",
            "ask for fewer",
        )
    rng = random.Random(f"planted {seed}")
    words = {f"word{i}": rng.gauss(0, 1) for i in range(WORDS)}
    plan = Blueprint(
        layers=LAYERS,
        directions=("bos", "status", "on", "word", "value", "verdict", "unused"),
        embed={
            BOS: {"bos": 1},
            "on": {"status": 1, "on": 1},
            "off": {"status": 1},
            **{name: {"word": 1, "value": value} for name, value in words.items()},
        },
        unembed={"yes": {"verdict": 5}, "no": {"verdict": -5, "const": 5}},
        fillers=("lamp", ";", "answer:"),
        seed=seed,
    )
    for layer in range(LAYERS):
        for group in range(GROUPS):
            plan.group(
                layer,
                group,
                key={REST: {"bos": 1}, STATUS: {"status": 1}, WORD: {"word": 1}},
                value={0: {"on": 1}, 1: {"value": 1}},
            )
    places = rng.sample(
        [(at, head) for at in range(LAYERS) for head in range(HEADS)], LAYERS * HEADS
    )
    drawn = [rng.uniform(1, 2) for _ in range(carriers)]
    shares = [one / sum(drawn) for one in drawn]
    outputs = [
        *(("carrier", STATUS, {0: {"verdict": share}}) for share in shares),
        *(("decoy", STATUS, {0: {"unused": 1.0}}) for _ in range(decoys)),
        *(("distractor", WORD, {1: {"verdict": rng.gauss(0, 0.3)}}) for _ in range(distractors)),
    ]
    for (layer, head), (role, slot, output) in zip(places, outputs, strict=False):
        query = {REST: {"const": 20}, slot: {"const": 40}}
        plan.head(layer, head, role, query=query, output=output)

    def prompt(status: str) -> str:
        return " ".join([BOS, rng.choice([*words]), "lamp", status, ";", "answer:"])

    return Toy(
        name=f"planted-{seed}",
        model=plan.model(),
        vocabulary=plan.vocabulary,
        circuit=frozenset(label for label, role in plan.roles.items() if role == "carrier"),
        roles=plan.roles,
        pairs=tuple((prompt("on"), prompt("off"), "yes", "no") for _ in range(pairs)),
        description="Continued with yes if the status is on; each prompt has a word of its own.",
    )
