"""Which tasks the model does, and how much two circuits share: intervals and chance levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from interp.core.errors import InterpError
from interp.core.folds import joined
from interp.core.nulls import null_of
from interp.core.statistics import ratio
from interp.studies.reuse.settings import ReuseContext, choices
from interp.studies.reuse.steps.circuits import Heads, clear, effects_of, label, strongest
from interp.studies.reuse.tasks import Entry, entry_named
from interp.studies.steps import Result, mean_of, plain, share_of

Stages = Mapping[str, Heads]

MEASURES = ("matched", "inner", "weighted", "pooled", "stagewise", "iou")

DONE = 0.75
"""The share of right answers from which a model does a task."""


def behaviour(context: ReuseContext, entries: Iterable[Entry]) -> Result:
    """For every task whether its model does it, tends to it, or neither.

    right: share of prompts on which the most likely of answers and wrong answers is an answer;
    top: of all tokens. A model does a task if `right` is at least 0.75 and its interval lies above
    chance, and tends to it if only the interval lies above chance.
    """
    found: Result = {}
    for entry in entries:
        model, task = context.model_of(entry), context.task(entry, test=True)
        seen = choices(model, task)
        right = share_of(seen.right[0])
        above = right["low"] > seen.chance
        verdict = "does" if above and right["mean"] >= DONE else "tends" if above else "does not"
        found[entry.name] = {
            "right": right,
            "top": share_of(seen.top[0]),
            "chance": seen.chance,
            "verdict": verdict,
            "model": model.name,
            "group": entry.group,
            "metric": task.metric.name,
            "example": task.pairs[0].clean,
        }
    return found


def pooled(stages: Stages) -> frozenset[int]:
    """The heads of any stage."""
    return frozenset().union(*stages.values())


def matched(left: Stages, right: Stages) -> tuple[dict[str, Heads], dict[str, Heads]]:
    """Two circuits cut to one size: in every stage the strongest of each, as many as both have."""
    size = {stage: min(len(left[stage]), len(right[stage])) for stage in left}
    return tuple(  # pyright: ignore
        {s: dict([*side[s].items()][: size[s]]) for s in size} for side in (left, right)
    )


def below(stages: Stages, last: int) -> dict[str, Heads]:
    """A circuit without the heads numbered `last` or more: those of the last layer."""
    return {s: {h: x for h, x in heads.items() if h < last} for s, heads in stages.items()}


def weighted(left: Stages, right: Stages) -> float:
    """How much of the effect of two circuits is that of the same heads, with the same sign.

        mean over stages s of sum over heads h of min(|a_s(h)|, |b_s(h)|), where a_s(h) b_s(h) > 0

    a_s(h), b_s(h) are the mean effects of a head in the two circuits, 0 outside of them, divided by
    the sum of |effects| of the circuit's stage. Stages that both circuits lack are left out. 1 if
    both spread their effect alike, 0 if no head has the same sign in both.
    """
    found = []
    for one, other in ((left[s], right[s]) for s in left if left[s] or right[s]):
        ours, theirs = (sum(map(abs, side.values())) or 1.0 for side in (one, other))
        same = (head for head in one if one[head] * other.get(head, 0.0) > 0)
        found.append(sum(min(abs(one[h]) / ours, abs(other[h]) / theirs) for h in same))
    return sum(found) / len(found) if found else 0.0


def overlap(left: Stages, right: Stages, last: int) -> dict[str, float]:
    """What two circuits share, stage by stage and as a whole.

        stagewise = sum over stages |A_s & B_s| / sum over stages (|A_s| + |B_s|) / 2
        pooled = |A & B| / ((|A| + |B|) / 2)        A, B the heads of any stage
        iou = |A & B| / |A | B|
        matched = pooled, of the circuits cut to one size in every stage (`matched`)
        inner = matched, without the heads of the last layer, which are numbered from `last` on
        weighted = `weighted`, of the whole circuits

    All are 1 for the same circuit and 0 for circuits with nothing in common. `matched` is the
    published share, heads in common out of heads in a circuit; it is 0 if no stage has heads in
    both circuits, and so is `inner`.

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
        "inner": share(*matched(below(left, last), below(right, last))),
        "weighted": weighted(left, right),
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
    neither raised nor lowered. A head drawn takes the effect of the one whose place it takes.
    """
    drawn = {}
    for name, heads in stages.items():
        drawn[name] = {}
        for layer in sorted({head // n_heads for head in heads}):
            mine = [effect for head, effect in heads.items() if head // n_heads == layer]
            picked = layer * n_heads + rng.choice(n_heads, len(mine), replace=False)
            drawn[name] |= dict(zip(picked.tolist(), mine, strict=True))
    return drawn


def clear_circuit(
    effects: Mapping[str, np.ndarray], k: int, rows: np.ndarray | None = None
) -> dict[str, Heads]:
    """The k strongest heads of every stage, if they are `clear`, on all prompts or on `rows`.

    A head that is not clear is not replaced by a weaker one.
    """
    found = {}
    for name, every in effects.items():
        mine = every if rows is None else every[rows]
        seen = clear(mine)
        found[name] = {h: x for h, x in strongest(mine.mean(0), k).items() if seen[h]}
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
        sides = np.split(rng.permutation(np.unique(group))[: whole // 2 * 2], 2)
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


def subsampled(
    left: Sequence[Stages], right: Sequence[Stages], last: int
) -> dict[str, list[float]]:
    """Each measure between the circuits of two tasks on the same halves of their prompts.

    A draw in which a circuit has no head counts as no overlap.
    """
    none = dict.fromkeys(MEASURES, 0.0)
    rows = [
        overlap(one, other, last) if pooled(one) and pooled(other) else none
        for one, other in zip(left, right, strict=True)
    ]
    return {name: [row[name] for row in rows] for name in MEASURES}


def chance(
    left: Stages, right: Stages, n_heads: int, last: int, draws: int, seed: int
) -> dict[str, list[float]]:
    """Each measure between the first circuit and random ones with the layers of the second."""
    rng = np.random.default_rng(seed)
    cut = {
        "matched": matched(left, right),
        "inner": matched(below(left, last), below(right, last)),
    }
    rows = []
    for _ in range(draws):
        row = overlap(left, random_circuit(right, n_heads, rng), last)
        for name, (ours, theirs) in cut.items():
            row[name] = share(ours, random_circuit(theirs, n_heads, rng))
        rows.append(row)
    return {name: [row[name] for row in rows] for name in MEASURES}


@dataclass(frozen=True, kw_only=True)
class Side:
    """A task's circuit on all its prompts, and on halves of them.

    halves: for every draw the circuits of a half and of the other half. ranks: (1 + draws, heads)
    ranks of the first stage's mean effects on all prompts, and on the first of these halves.
    """

    circuit: dict[str, Heads]
    halves: list[tuple[dict[str, Heads], dict[str, Heads]]]
    ranks: np.ndarray


def side_of(
    effects: Mapping[str, np.ndarray],
    k: int,
    draws: int,
    seed: int,
    groups: Sequence[int] | None = None,
) -> Side:
    """A task's circuit on all prompts and on random halves, which are the same in every task.

    Prompts of one group are in the same half.
    """
    from scipy.stats import rankdata

    movers = next(iter(effects.values()))
    parts = half_samples(len(movers), draws, seed, groups)
    circuit = partial(clear_circuit, effects, k)
    return Side(
        circuit=circuit(),
        halves=[(circuit(one), circuit(other)) for one, other in parts],
        ranks=np.stack([rankdata(x.mean(0)) for x in (movers, *(movers[one] for one, _ in parts))]),
    )


def compared(
    context: ReuseContext, circuits: Mapping[str, Result], pairs: Sequence[tuple[str, str]]
) -> Result:
    """The overlap of pairs of circuits, with intervals, chance levels and ceilings.

    A circuit is the k strongest heads of every stage that are distinguishable from zero, so
    circuits differ in size; a task without such heads is left out and named in `empty`. For each
    measure of `interp.studies.reuse.steps.overlap.overlap`: its value; the interval `around` it
    from halves of the prompts (the same halves in all tasks; prompts that are equal in any task
    are in the same half); the null of random heads with the layers of the second circuit; the
    ceiling: half a task's prompts against the other half, the lower of the two tasks; and
    `controls`, see `beyond_controls`. spearman: rank correlation of all heads' effects in the first
    stage, with its interval.
    """
    settings = context.settings
    tasks = [context.task(entry) for entry in context.entries if entry.name in circuits]
    equal = [[pair.clean for pair in task.pairs] for task in tasks]
    groups = joined(*equal).tolist() if equal else None
    sides = {
        name: side_of(effects_of(found), context.k, settings.resamples, settings.seed, groups)
        for name, found in circuits.items()
    }
    n_heads = context.model.n_heads
    last = (context.model.n_layers - 1) * n_heads
    empty = [name for name, side in sides.items() if not pooled(side.circuit)]
    within = {
        name: subsampled(*zip(*side.halves, strict=True), last=last)
        for name, side in sides.items()
        if name not in empty
    }
    shared = {
        frozenset((one, other)): _shared(sides[one], sides[other], last)
        for one, other in pairs
        if not {one, other} & {*empty}
    }
    rows = []
    for one, other in pairs:
        if one in empty or other in empty:
            continue
        left, right = sides[one], sides[other]
        row = _described(left.circuit, right.circuit, n_heads)
        random = chance(left.circuit, right.circuit, n_heads, last, settings.draws, settings.seed)
        for name, (value, *drawn) in shared[frozenset((one, other))].items():
            low, high = around(value, drawn)
            row[name] = {
                "value": value,
                "low": low,
                "high": high,
                "halves_mean": float(np.mean(drawn)),
                "null": plain(null_of(value, np.array(random[name]))),
                "ceiling": min(float(np.mean(within[task][name])) for task in (one, other)),
                "controls": beyond_controls(shared, name, one, other),
            }
        rows.append({"pair": [one, other], "spearman": correlation(left, right)} | row)
    return {
        "pairs": rows,
        "empty": empty,
        "halves": {
            name: {measure: mean_of(torch.tensor(values)) for measure, values in found.items()}
            for name, found in within.items()
        },
        "circuits": {
            name: {
                stage: [label(head, n_heads) for head in heads]
                for stage, heads in side.circuit.items()
            }
            for name, side in sides.items()
        },
    }


Shared = dict[str, list[float]]
"""By measure: its value between two circuits, and its values on the same halves of the prompts."""


def _shared(left: Side, right: Side, last: int) -> Shared:
    drawn = subsampled([a for a, _ in left.halves], [a for a, _ in right.halves], last)
    value = overlap(left.circuit, right.circuit, last)
    return {name: [value[name], *drawn[name]] for name in MEASURES}


def beyond_controls(
    shared: Mapping[frozenset[str], Shared], measure: str, one: str, other: str
) -> list[Result]:
    """How much more two circuits share than either of them shares with a control task's circuit.

        value = measure(one, other) - measure(circuit, control),   circuit one of the two

    The interval is `around` the value, from the same difference on the same halves of the prompts
    of all three tasks. Pairs in which a task is itself a control have none.
    """
    groups = {name: entry_named(name).group for pair in shared for name in pair}
    if "control" in (groups[one], groups[other]):
        return []
    found = []
    for circuit in (one, other):
        for control in (name for name, group in groups.items() if group == "control"):
            against = shared.get(frozenset((circuit, control)))
            if against is not None:
                both = zip(shared[frozenset((one, other))][measure], against[measure], strict=True)
                value, *drawn = [x - y for x, y in both]
                low, high = around(value, drawn, least=-1.0)
                row = {"circuit": circuit, "control": control, "shares": against[measure][0]}
                found.append(row | {"value": value, "low": low, "high": high})
    return found


def _described(left: Mapping[str, Heads], right: Mapping[str, Heads], n_heads: int) -> Result:
    """Which heads two circuits share, and their sizes, as found and cut to one size."""
    ours, theirs = matched(left, right)
    common = sorted(pooled(left) & pooled(right))
    return {
        "common": [label(head, n_heads) for head in common],
        "sizes": [len(pooled(left)), len(pooled(right))],
        "matched_common": len(pooled(ours) & pooled(theirs)),
        "matched_sizes": [len(pooled(ours)), len(pooled(theirs))],
        "stages": {
            stage: [label(head, n_heads) for head in sorted({*left[stage]} & {*right[stage]})]
            for stage in left
        },
    }


def correlation(left: Side, right: Side) -> Result:
    """Spearman's rank correlation of all heads' mean effects, with the interval `around` it.

    If all effects are equal they have no order: the correlation is nan and its interval -1 to 1.
    Halves without an order count as 0.
    """
    one, other = (side.ranks - side.ranks.mean(1, keepdims=True) for side in (left, right))
    lengths = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    value, *drawn = ratio((one * other).sum(1), lengths).tolist()
    if np.isnan(value):
        return {"value": value, "low": -1.0, "high": 1.0}
    low, high = around(value, np.nan_to_num(drawn, nan=0.0).tolist(), least=-1.0)
    return {"value": value, "low": low, "high": high}
