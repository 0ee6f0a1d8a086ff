"""Which tasks the model does, and what their circuits share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interp.core.folds import joined
from interp.core.nulls import null_of
from interp.core.statistics import mean_estimate, ratio, share_estimate
from interp.studies.reuse.settings import Context, choices
from interp.studies.reuse.steps.circuits import effects_of, label
from interp.studies.reuse.steps.overlap import (
    MEASURES,
    Effects,
    Heads,
    around,
    chance,
    half_samples,
    matched,
    overlap,
    pooled,
    subsampled,
)
from interp.studies.reuse.tasks import Entry
from interp.studies.steps import Result, plain

DONE = 0.75
"""The share of right answers from which a model does a task."""


def behaviour(context: Context, entries: Iterable[Entry]) -> Result:
    """For every task whether its model does it, tends to it, or neither.

    right: share of prompts on which the most likely of answers and wrong answers is an answer;
    top: of all tokens. A model does a task if `right` is at least 0.75 and its interval lies above
    chance, and tends to it if only the interval lies above chance.
    """
    found: Result = {}
    for entry in entries:
        model, task = context.model_of(entry), context.task(entry, test=True)
        seen = choices(model, task)
        right, top = (share_estimate(int(x[0].sum()), len(task)) for x in (seen.right, seen.top))
        above = right.low > seen.chance
        verdict = "does" if above and right.mean >= DONE else "tends" if above else "does not"
        found[entry.name] = {
            "right": plain(right),
            "top": plain(top),
            "chance": seen.chance,
            "verdict": verdict,
            "model": model.name,
            "group": entry.group,
            "metric": task.metric.name,
            "example": task.pairs[0].clean,
        }
    return found


RULE = "interval off zero, matched size, half-sample intervals, equal prompts in one half, ranks"
"""What `compared` does, in words; part of its step's key."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A task's circuit on all its prompts, and on halves of them.

    halves: for every draw the circuits of a half and of the other half. ranks: (draws, heads)
    ranks of the first stage's mean effects on the first of these halves.
    """

    circuit: dict[str, Heads]
    halves: list[tuple[dict[str, Heads], dict[str, Heads]]]
    means: np.ndarray
    ranks: np.ndarray


def side_of(
    effects: Effects, k: int, draws: int, seed: int, groups: Sequence[int] | None = None
) -> Side:
    """A task's circuit on all prompts and on random halves, which are the same in every task.

    Prompts of one group are in the same half.
    """
    from scipy.stats import rankdata

    parts = half_samples(effects.n, draws, seed, groups)
    movers = next(iter(effects.stages.values()))
    return Side(
        circuit=effects.circuit(k),
        halves=[(effects.circuit(k, one), effects.circuit(k, other)) for one, other in parts],
        means=movers.mean(0),
        ranks=np.stack([rankdata(movers[one].mean(0)) for one, _ in parts]),
    )


def compared(
    context: Context, circuits: Mapping[str, Result], pairs: Iterable[tuple[str, str]]
) -> Result:
    """The overlap of pairs of circuits, with intervals, chance levels and ceilings.

    A circuit is the k strongest heads of every stage that are distinguishable from zero, so
    circuits differ in size; a task without such heads is left out and named in `empty`. For each
    measure of `interp.studies.reuse.steps.overlap.overlap`: its value; the interval `around` it
    from halves of the prompts (the same halves in both tasks; prompts that are equal in any task
    are in the same half); the null of random heads with the layers of the second circuit; and the
    ceiling: half a task's prompts against the other half, the lower of the two tasks. spearman:
    rank correlation of all heads' effects in the first stage, with its interval.
    """
    settings = context.settings
    tasks = [context.task(entry) for entry in context.entries if entry.name in circuits]
    equal = [[pair.clean for pair in task.pairs] for task in tasks]
    groups = joined(*equal).tolist() if equal else None
    sides = {
        name: side_of(effects_of(found), context.k, settings.resamples, settings.seed, groups)
        for name, found in circuits.items()
    }
    empty = [name for name, side in sides.items() if not pooled(side.circuit)]
    within = {
        name: subsampled(*zip(*side.halves, strict=True))
        for name, side in sides.items()
        if name not in empty
    }
    rows = []
    for one, other in pairs:
        if one in empty or other in empty:
            continue
        n_heads = circuits[one]["n_heads"]
        left, right = sides[one], sides[other]
        row = _described(left.circuit, right.circuit, n_heads)
        value = overlap(left.circuit, right.circuit)
        drawn = subsampled([a for a, _ in left.halves], [a for a, _ in right.halves])
        random = chance(left.circuit, right.circuit, n_heads, settings.draws, settings.seed)
        for name in MEASURES:
            low, high = around(value[name], drawn[name])
            row[name] = {
                "value": value[name],
                "low": low,
                "high": high,
                "halves_mean": float(np.mean(drawn[name])),
                "null": plain(null_of(value[name], np.array(random[name]))),
                "ceiling": min(float(np.mean(within[task][name])) for task in (one, other)),
            }
        rows.append({"pair": [one, other], "spearman": correlation(left, right)} | row)
    return {
        "pairs": rows,
        "empty": empty,
        "halves": {name: _summary(found) for name, found in within.items()},
        "circuits": {
            name: {
                stage: [label(head, circuits[name]["n_heads"]) for head in heads]
                for stage, heads in side.circuit.items()
            }
            for name, side in sides.items()
        },
    }


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
    from scipy.stats import rankdata

    value = float(_correlations(*(rankdata(side.means)[None] for side in (left, right)))[0])
    if np.isnan(value):
        return {"value": value, "low": -1.0, "high": 1.0}
    drawn = np.nan_to_num(_correlations(left.ranks, right.ranks), nan=0.0)
    low, high = around(value, drawn.tolist(), least=-1.0)
    return {"value": value, "low": low, "high": high}


def _correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(draws,) Pearson correlation of the rows of two (draws, heads); nan for a constant row."""
    one, other = (rows - rows.mean(1, keepdims=True) for rows in (left, right))
    return ratio((one * other).sum(1), np.sqrt((one**2).sum(1) * (other**2).sum(1)))


def _summary(found: Mapping[str, list[float]]) -> Result:
    import torch

    return {name: plain(mean_estimate(torch.tensor(values))) for name, values in found.items()}
