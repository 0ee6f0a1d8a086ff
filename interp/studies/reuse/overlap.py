"""How much two circuits share: the arithmetic, its intervals and its chance level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from interp.errors import InterpError

Heads = frozenset[int]
"""Heads by number: layer * heads a layer + head."""

MEASURES = ("stagewise", "pooled", "iou")


def strongest(values: np.ndarray, k: int) -> Heads:
    """The k heads of largest |value|, none of value 0; ties go to the earlier head."""
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    return frozenset(int(head) for head in order if values[head] != 0)


def pooled(stages: Mapping[str, Heads]) -> Heads:
    """The heads of any stage."""
    return frozenset().union(*stages.values())


def overlap(left: Mapping[str, Heads], right: Mapping[str, Heads]) -> dict[str, float]:
    """What two circuits share, stage by stage and as a whole.

        stagewise = sum over stages |A_s & B_s| / sum over stages (|A_s| + |B_s|) / 2
        pooled = |A & B| / ((|A| + |B|) / 2)        A, B the heads of any stage
        iou = |A & B| / |A | B|

    All are 1 for the same circuit and 0 for circuits with nothing in common. `pooled` is the
    published share (heads in common out of heads in a circuit) when both are of one size.

    Raises:
        InterpError: other stages, or an empty circuit.
    """
    if set(left) != set(right) or not pooled(left) or not pooled(right):
        raise InterpError(
            "the overlap of two circuits",
            f"stages {sorted(left)} with {len(pooled(left))} heads and {sorted(right)} with "
            f"{len(pooled(right))}",
            "give circuits of the same stages that are not empty",
        )
    sizes = sum(len(left[s]) + len(right[s]) for s in left) / 2
    ours, theirs = pooled(left), pooled(right)
    common = len(ours & theirs)
    return {
        "stagewise": sum(len(left[s] & right[s]) for s in left) / sizes,
        "pooled": common / ((len(ours) + len(theirs)) / 2),
        "iou": common / len(ours | theirs),
    }


def random_circuit(
    stages: Mapping[str, Heads], n_heads: int, rng: np.random.Generator
) -> dict[str, Heads]:
    """Random heads, in every stage as many of each layer as the circuit has there.

    The circuit's own heads take part: a permutation within layers, so that chance is neither
    raised nor lowered.
    """
    drawn = {}
    for name, heads in stages.items():
        layers, counts = np.unique([head // n_heads for head in heads], return_counts=True)
        picked: list[int] = []
        for layer, count in zip(layers.astype(int), counts, strict=True):
            picked += (layer * n_heads + rng.choice(n_heads, count, replace=False)).tolist()
        drawn[name] = frozenset(picked)
    return drawn


@dataclass(frozen=True, kw_only=True)
class Effects:
    """A task's effects: for each stage (prompts, heads), the metric each head takes away.

    Not divided by the clean-corrupted gap, which changes no rank within a stage.
    """

    stages: Mapping[str, np.ndarray]

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(next(iter(self.stages.values())))

    def circuit(self, k: int, weights: np.ndarray | None = None) -> dict[str, Heads]:
        """The k strongest heads of every stage; `weights` say how often each prompt counts."""
        weights = np.ones(self.n) if weights is None else weights
        return {name: strongest(weights @ rows, k) for name, rows in self.stages.items()}


def resampled(left: Effects, right: Effects, k: int, draws: int, seed: int) -> dict[str, list]:
    """Each measure over draws of prompts with replacement, in both tasks.

    Receivers stay those found on all prompts. Drawing prompts adds noise to both rankings, so
    that the values lie lower than the measure itself on average.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list] = {name: [] for name in MEASURES}
    for _ in range(draws):
        sides = (
            e.circuit(k, rng.multinomial(e.n, np.full(e.n, 1 / e.n)).astype(float))
            for e in (left, right)
        )
        _collect(found, overlap(*sides))
    return found


def halves(effects: Effects, k: int, draws: int, seed: int) -> dict[str, list]:
    """Each measure between the circuits of two random halves of one task's prompts.

    A ceiling: two tasks with one circuit would share no more than this (with half the prompts).

    Raises:
        InterpError: fewer than two prompts.
    """
    if effects.n < 2:
        raise InterpError("halves of a task", f"{effects.n} prompts", "use more")
    rng = np.random.default_rng(seed)
    found: dict[str, list] = {name: [] for name in MEASURES}
    for _ in range(draws):
        side = np.zeros(effects.n)
        side[rng.permutation(effects.n)[: effects.n // 2]] = 1
        _collect(found, overlap(effects.circuit(k, side), effects.circuit(k, 1 - side)))
    return found


def chance(
    left: Mapping[str, Heads], right: Mapping[str, Heads], n_heads: int, draws: int, seed: int
) -> dict[str, list]:
    """Each measure between the first circuit and random ones like the second, layers matched."""
    rng = np.random.default_rng(seed)
    found: dict[str, list] = {name: [] for name in MEASURES}
    for _ in range(draws):
        _collect(found, overlap(left, random_circuit(right, n_heads, rng)))
    return found


def _collect(found: dict[str, list], row: Mapping[str, float]) -> None:
    for name, value in row.items():
        found[name].append(value)
