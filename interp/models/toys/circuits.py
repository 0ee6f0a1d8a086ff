"""The five hand-built circuits, by name.

Each is a `LlamaForCausalLM` whose weights were set by hand, not trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from interp.core.errors import unknown
from interp.models.toys.build import BOS, STILL, Blueprint, Toy, Weights, looking_back

Pair = tuple[str, str, str, str]

FILLERS = ("so", "we", "then", "now", "please", "try")
REST = STILL[0]
"""The slot through which a head attends to <bos> if it finds nothing."""

FARTHEST = 15.7
"""A quarter turn of rotary pair 1, in tokens. Up to it, the score grows with the distance."""


def toy_induction() -> Toy:
    """The model continues A B ... A with B: a previous-token head and an induction head."""
    letters = tuple("abcdefghi")
    slots = dict(zip(letters, STILL[1:], strict=True))
    plan = Blueprint(
        layers=2,
        directions=(
            "bos",
            *(f"{kind} {x}" for kind in ("now", "previous", "next") for x in letters),
        ),
        embed={BOS: {"bos": 1}, **{x: {f"now {x}": 1} for x in letters}},
        unembed={x: {f"next {x}": 8} for x in letters},
    )
    plan.group(
        0,
        0,
        key={0: {"const": 1}, 1: {"const": 1}},
        value={slots[x]: {f"now {x}": 1} for x in letters},
    )
    plan.head(
        0,
        1,
        "previous-token head: writes which letter came before",
        query=looking_back(1, 120, 0, 1),
        output={slots[x]: {f"previous {x}": 1} for x in letters},
    )
    plan.group(
        1,
        1,
        key={REST: {"bos": 1}, **{slots[x]: {f"previous {x}": 1} for x in letters}},
        value={slots[x]: {f"now {x}": 1} for x in letters},
    )
    plan.head(
        1,
        2,
        "induction head: finds the letter that came after this one, and predicts it",
        query={REST: {"const": 20}, **{slots[x]: {f"now {x}": 40} for x in letters}},
        output={slots[x]: {f"next {x}": 1} for x in letters},
    )

    def pair(rng: random.Random) -> Pair:
        cue, answer, other, wrong, *rest = rng.sample(letters, len(letters))
        gaps = [[rest.pop() for _ in range(rng.randint(0, 1))] for _ in range(2)]
        last = [rest.pop() for _ in range(rng.randint(1, 3))]
        order = rng.sample([(cue, answer), (other, wrong)], 2)

        def prompt(swap: dict[str, str]) -> str:
            (a, b), (c, d) = [(swap.get(x, x), y) for x, y in order]
            return " ".join([BOS, *gaps[0], a, b, *gaps[1], c, d, *last, cue])

        return prompt({}), prompt({cue: other, other: cue}), answer, wrong

    return _toy(
        "toy-induction",
        plan,
        pair,
        "A B ... A is continued with B. The corrupted prompt swaps the two letters that come "
        "before the candidates, so both heads matter in full.",
    )


def toy_verification() -> Toy:
    """Whether the result is the target: a copy head, an equality neuron and a mover head."""
    numbers = range(2, 10)
    plan = Blueprint(
        layers=3,
        directions=("bos", "number", "size", "target", "verdict"),
        embed={BOS: {"bos": 1}, **{str(n): {"number": 1, "size": n / 8} for n in numbers}},
        unembed=_choice("this", "not", "verdict"),
        fillers=("target", ";", "result", "(", *FILLERS),
    )
    plan.group(0, 1, key={REST: {"bos": 1}, 1: {"number": 1}}, value={0: {"size": 1}})
    plan.head(
        0,
        2,
        "copier: brings the target's size to the result",
        query={REST: {"const": 15}, **looking_back(FARTHEST, 150, 1)},
        output={0: {"target": 1}},
    )
    # With d = 8 * (target - size) the neuron is silu(16 + 32 d) * (1 - d): 16 at d = 0, zero at
    # d < 0 and d = 1, negative beyond. The bias of -400 turns it off at tokens that are no number.
    plan.neuron(
        1,
        3,
        "equality neuron: fires at the result if it is the target",
        gate={"target": 256, "size": -256, "const": 16 - 400, "number": 400},
        up={"const": 1, "target": -8, "size": 8},
        output={"verdict": 1 / 16},
    )
    plan.group(2, 0, key={0: {"const": 1}, 1: {"const": 1}}, value={0: {"verdict": 1}})
    plan.head(
        2,
        0,
        "mover: brings the verdict from the result to the bracket",
        query=looking_back(1, 120, 0, 1),
        output={0: {"verdict": 1}},
    )

    def pair(rng: random.Random) -> Pair:
        result = rng.choice(numbers[1:-1])
        near = result + rng.choice((-1, 1))
        before, between = _fillers(rng), _fillers(rng)

        def prompt(target: int) -> str:
            middle = ["target", str(target), ";", *between, "result", str(result)]
            return " ".join([BOS, *before, *middle, "("])

        return prompt(result), prompt(near), "this", "not"

    return _toy(
        "toy-verification",
        plan,
        pair,
        "target T ; result R ( is continued with this if T is R, else with not. The corrupted "
        "prompt has a target one off the result.",
    )


def toy_refusal() -> Toy:
    """A gate head that writes no logits, and two amplifiers that write them if it is active."""
    taboo = ("rose", "soil", "spade", "compost")
    plain = ("cake", "tea", "music", "chess")
    plan = Blueprint(
        layers=2,
        directions=("bos", "taboo", "end", "gate", "refusal"),
        embed={BOS: {"bos": 1}, **{x: {"taboo": 1} for x in taboo}, "assistant:": {"end": 1}},
        unembed=_choice("refuse", "comply", "refusal"),
        fillers=(*plain, "user:", "make", *FILLERS),
    )
    seek = STILL[1]
    plan.group(0, 0, key={REST: {"bos": 1}, seek: {"taboo": 1}}, value={0: {"taboo": 1}})
    plan.head(
        0,
        0,
        "gate: opens at the last token if a taboo word came before",
        query={REST: {"const": 20}, seek: {"end": 40}},
        output={0: {"gate": 1}},
    )
    plan.group(1, 1, key={REST: {"bos": 1}, seek: {"gate": 1}}, value={0: {"gate": 1}})
    for head in (2, 3):
        plan.head(
            1,
            head,
            "amplifier: writes half of the refusal where the gate is open",
            query={REST: {"const": 20}, seek: {"const": 40}},
            output={0: {"refusal": 0.5}},
        )

    def pair(rng: random.Random) -> Pair:
        before, after = _fillers(rng), _fillers(rng)

        def prompt(topic: str) -> str:
            return " ".join([BOS, "user:", *before, "make", topic, *after, "assistant:"])

        return prompt(rng.choice(taboo)), prompt(rng.choice(plain)), "refuse", "comply"

    return _toy(
        "toy-refusal",
        plan,
        pair,
        "A request with a taboo word (of gardening) is continued with refuse, else with comply. "
        "Only the amplifiers write the refusal direction; the gate acts through their attention "
        "and values, so direct logit attribution misses it and patching finds it.",
    )


def toy_or() -> Toy:
    """Two heads, of which one suffices, because the GLU neuron they feed saturates."""
    # With s active heads, silu(32 s - 16) * (5 - 2 s) is 48 for s = 1 and for s = 2.
    return _two_switches(
        "toy-or",
        "OR neuron: fires equally for one piece of evidence and for two",
        gate={"first": 32, "last": 32, "const": -16},
        up={"const": 5, "first": -2, "last": -2},
        output={"verdict": 1 / 48},
        description="Continued with yes if either status is on. Noising one head changes "
        "nothing, noising both everything; denoising either restores the answer.",
    )


def toy_and() -> Toy:
    """Two heads that are both needed: their GLU neuron has a threshold between 1 and 2."""
    return _two_switches(
        "toy-and",
        "AND neuron: fires if both pieces of evidence are there",
        gate={"first": 32, "last": 32, "const": -48},
        up={"const": 1},
        output={"verdict": 1 / 16},
        description="Continued with yes if both statuses are on. Denoising one head changes "
        "nothing, denoising both everything; noising either removes the answer.",
    )


def _two_switches(
    name: str, role: str, *, gate: Weights, up: Weights, output: Weights, description: str
) -> Toy:
    devices = ("lamp", "fan", "door", "radio", "heater")
    plan = Blueprint(
        layers=2,
        directions=("status", "on", "first", "last", "verdict"),
        embed={"on": {"status": 1, "on": 1}, "off": {"status": 1}},
        unembed=_choice("yes", "no", "verdict"),
        fillers=(";", "answer:", *devices, *FILLERS),
    )
    ends = {1: ("first", looking_back(FARTHEST, 150, 1)), 2: ("last", looking_back(0, 300, 1))}
    for head, (end, query) in ends.items():
        plan.group(0, head // 2, key={1: {"status": 1}}, value={0: {"on": 1}})
        role_of_head = f"detector: is the {end} status on?"
        plan.head(0, head, role_of_head, query=query, output={0: {end: 1}})
    plan.neuron(1, 5, role, gate=gate, up=up, output=output)

    def pair(rng: random.Random) -> Pair:
        first, last = rng.sample(devices, 2)
        before, between = _fillers(rng), _fillers(rng)

        def prompt(status: str) -> str:
            words = [BOS, *before, first, status, ";", *between, last, status, ";", "answer:"]
            return " ".join(words)

        return prompt("on"), prompt("off"), "yes", "no"

    return _toy(name, plan, pair, description)


def _choice(yes: str, no: str, direction: str) -> dict[str, Weights]:
    """Unembedding of two words: a direction predicts the first at 1 and the second at 0."""
    return {yes: {direction: 5}, no: {direction: -5, "const": 5}}


def _fillers(rng: random.Random) -> list[str]:
    return rng.sample(FILLERS, rng.randint(0, 2))


def _toy(
    name: str, plan: Blueprint, pair: Callable[[random.Random], Pair], description: str
) -> Toy:
    rng, pairs = random.Random(name), dict[Pair, None]()
    while len(pairs) < 24:
        pairs[pair(rng)] = None
    return Toy(
        name=name,
        model=plan.model(),
        vocabulary=plan.vocabulary,
        circuit=frozenset(plan.roles),
        roles=plan.roles,
        pairs=tuple(pairs),
        description=description,
    )


TOYS: dict[str, Callable[[], Toy]] = {
    "toy-induction": toy_induction,
    "toy-verification": toy_verification,
    "toy-refusal": toy_refusal,
    "toy-or": toy_or,
    "toy-and": toy_and,
}
"""The function that builds each toy, by name."""


def build_toy(name: str) -> Toy:
    """Build the toy with a name. Every build has the same weights and pairs.

    Raises:
        InterpError: there is no such toy; the message suggests the nearest name.
    """
    if name not in TOYS:
        raise unknown("toy", name, TOYS)
    return TOYS[name]()
