"""How much two circuits share: the arithmetic, its intervals and its chance level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interp.core.errors import InterpError
from interp.core.statistics import ratio_of_means

Heads = tuple[int, ...]
"""Heads by number (layer * heads a layer + head), the strongest first."""
Stages = Mapping[str, Heads]

MEASURES = ("matched", "pooled", "stagewise", "iou")


def strongest(values: np.ndarray, k: int) -> Heads:
    """The k heads of largest |value|, none of value 0; ties go to the earlier head."""
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    return tuple(int(head) for head in order if values[head] != 0)


def clear(effects: np.ndarray) -> np.ndarray:
    """(heads,) whether the mean of (prompts, heads) effects is distinguishable from zero.

    Zero is outside the 95 % interval of `ratio_of_means`, head by head: one in twenty heads without
    any effect passes, also with few prompts.

    Raises:
        InterpError: fewer than two prompts.
    """
    if len(effects) < 2:
        raise InterpError("heads distinguishable from zero", f"{len(effects)} prompts", "use more")
    found = ratio_of_means(effects)
    return (found.low > 0) | (found.high < 0)


def pooled(stages: Stages) -> frozenset[int]:
    """The heads of any stage."""
    return frozenset().union(*stages.values())


def matched(left: Stages, right: Stages) -> tuple[dict[str, Heads], dict[str, Heads]]:
    """Two circuits cut to one size: in every stage the strongest of each, as many as both have."""
    size = {stage: min(len(left[stage]), len(right[stage])) for stage in left}
    return tuple({s: side[s][: size[s]] for s in size} for side in (left, right))  # pyright: ignore


def overlap(left: Stages, right: Stages) -> dict[str, float]:
    """What two circuits share, stage by stage and as a whole.

        stagewise = sum over stages |A_s & B_s| / sum over stages (|A_s| + |B_s|) / 2
        pooled = |A & B| / ((|A| + |B|) / 2)        A, B the heads of any stage
        iou = |A & B| / |A | B|
        matched = pooled, of the circuits cut to one size in every stage (`matched`)

    All are 1 for the same circuit and 0 for circuits with nothing in common. `matched` is the
    published share, heads in common out of heads in a circuit; it is 0 if no stage has heads in
    both circuits.

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
    return {
        "matched": share(*matched(left, right)),
        "pooled": share(left, right),
        "stagewise": sum(len({*left[s]} & {*right[s]}) for s in left) / sizes,
        "iou": len(ours & theirs) / len(ours | theirs),
    }


def share(left: Stages, right: Stages) -> float:
    """Heads in common out of heads in a circuit; 0 if neither has any."""
    ours, theirs = pooled(left), pooled(right)
    size = (len(ours) + len(theirs)) / 2
    return len(ours & theirs) / size if size else 0.0


def random_circuit(stages: Stages, n_heads: int, rng: np.random.Generator) -> dict[str, Heads]:
    """Random heads, in every stage as many of each layer as the circuit has there.

    The circuit's own heads can be drawn too (a permutation within layers), so that chance is
    neither raised nor lowered.
    """
    drawn = {}
    for name, heads in stages.items():
        layers, counts = np.unique([head // n_heads for head in heads], return_counts=True)
        picked: list[int] = []
        for layer, count in zip(layers.astype(int), counts, strict=True):
            picked += (layer * n_heads + rng.choice(n_heads, count, replace=False)).tolist()
        drawn[name] = tuple(picked)
    return drawn


@dataclass(frozen=True, kw_only=True)
class Effects:
    """A task's effects: for each stage (prompts, heads), how much each head lowers the metric.

    Not divided by the clean-corrupted gap, which would not change a rank within a stage.
    """

    stages: Mapping[str, np.ndarray]

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(next(iter(self.stages.values())))

    def circuit(self, k: int, rows: Sequence[int] | np.ndarray | None = None) -> dict[str, Heads]:
        """The k strongest heads of every stage, if they are `clear`, on all prompts or on `rows`.

        A head that is not clear is not replaced by a weaker one.
        """
        found = {}
        for name, every in self.stages.items():
            mine = every if rows is None else every[rows]
            seen = clear(mine)
            found[name] = tuple(head for head in strongest(mine.mean(0), k) if seen[head])
        return found


def half_samples(
    n: int, draws: int, seed: int, groups: Sequence[int] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random halves of n prompts, and the other halves; the same for every task of n prompts.

    Prompts of one group, such as equal prompts, are in the same half; halves may differ in size.

    Raises:
        InterpError: fewer than four groups.
    """
    group = np.arange(n) if groups is None else np.asarray(groups)
    whole = len(np.unique(group))
    if whole < 4:
        raise InterpError("halves of a task", f"{whole} different prompts", "use at least 4")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        order = rng.permutation(np.unique(group))
        sides = (order[: whole // 2], order[whole // 2 : 2 * (whole // 2)])
        one, other = (
            np.concatenate([np.flatnonzero(group == number) for number in side]) for side in sides
        )
        found.append((one, other))
    return found


def around(value: float, drawn: Sequence[float], *, least: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of an estimate from the same estimate on halves of the prompts.

        value -+ q,    q the 95 % quantile of |half-sample value - value|

    Symmetric subsampling (Politis and Romano 1994). Half of the prompts are drawn without
    replacement, so no factor is needed: the spread of a half about the whole equals that of the
    whole about the truth, and so does its bias if that falls as 1/n. The interval always contains
    the estimate and is cut to the range of the measure, `least` to 1. Percentiles of resampled
    prompts need not contain it, because resampling adds noise, which lowers overlaps and
    correlations.
    """
    reach = float(np.quantile(np.abs(np.asarray(drawn) - value), 0.95))
    return max(least, value - reach), min(1.0, value + reach)


def subsampled(left: Sequence[Stages], right: Sequence[Stages]) -> dict[str, list[float]]:
    """Each measure between the circuits of two tasks on the same halves of their prompts.

    A draw in which a circuit has no head counts as no overlap.
    """
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for one, other in zip(left, right, strict=True):
        _collect(found, one, other)
    return found


def chance(
    left: Stages, right: Stages, n_heads: int, draws: int, seed: int
) -> dict[str, list[float]]:
    """Each measure between the first circuit and random ones with the layers of the second."""
    rng = np.random.default_rng(seed)
    ours, theirs = matched(left, right)
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(draws):
        row = overlap(left, random_circuit(right, n_heads, rng))
        row["matched"] = share(ours, random_circuit(theirs, n_heads, rng))
        for name, value in row.items():
            found[name].append(value)
    return found


def _collect(found: dict[str, list[float]], left: Stages, right: Stages) -> None:
    row = overlap(left, right) if pooled(left) and pooled(right) else dict.fromkeys(MEASURES, 0.0)
    for name, value in row.items():
        found[name].append(value)
