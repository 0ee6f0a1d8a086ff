"""Which tasks the model does, and what their circuits share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from interp.components import Component
from interp.metrics import mean_estimate, share_estimate
from interp.nulls import null_of
from interp.studies.reuse.context import Context, choices
from interp.studies.reuse.overlap import (
    MEASURES,
    Heads,
    chance,
    halves,
    overlap,
    pooled,
    resampled,
)
from interp.studies.reuse.staging import effects_of, label
from interp.studies.reuse.suite import Entry
from interp.studies.steps import Result, plain

DONE = 0.75
"""From this share of right answers on a model is said to do a task."""


def behaviour(context: Context, entries: Iterable[Entry]) -> Result:
    """For every task whether its model does it, tends to it, or neither.

    right: share of prompts on which the most likely of answers and wrong answers is an answer;
    top: of all tokens. A model does a task if `right` is at least 0.75 and its interval lies above
    chance, and tends to it if the interval lies above chance.
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


def heads_by_stage(found: Result) -> dict[str, Heads]:
    """A circuit as head numbers."""
    stages = {}
    for name, stage in found["stages"].items():
        parts = [Component.parse(head) for head in stage["heads"]]
        stages[name] = frozenset(p.layer * found["n_heads"] + (p.index or 0) for p in parts)
    return stages


def compared(
    context: Context, circuits: Mapping[str, Result], pairs: Iterable[tuple[str, str]]
) -> Result:
    """The overlap of pairs of circuits, with intervals, chance levels and ceilings.

    For each measure of `interp.studies.reuse.overlap.overlap`: its value, the 95 % range over
    prompts resampled in both tasks, the null of random heads with the layers of the second
    circuit, and the ceiling: half a task's prompts against the other half, the lower of the two
    tasks. spearman: rank correlation of all heads' effects in the first stage, with the range
    over resampled prompts.
    """
    settings = context.settings
    within = {
        name: halves(effects_of(found), context.k, settings.resamples // 5, settings.seed)
        for name, found in circuits.items()
    }
    rows = []
    for one, other in pairs:
        left, right = circuits[one], circuits[other]
        ours, theirs = heads_by_stage(left), heads_by_stage(right)
        value = overlap(ours, theirs)
        first, second = effects_of(left), effects_of(right)
        drawn = resampled(first, second, context.k, settings.resamples, settings.seed)
        random = chance(ours, theirs, left["n_heads"], settings.draws, settings.seed)
        common = sorted(pooled(ours) & pooled(theirs))
        row: dict[str, Any] = {
            "pair": [one, other],
            "common": [label(head, left["n_heads"]) for head in common],
            "sizes": [len(pooled(ours)), len(pooled(theirs))],
            "stages": {
                stage: [
                    label(head, left["n_heads"]) for head in sorted(ours[stage] & theirs[stage])
                ]
                for stage in ours
            },
            "spearman": _correlation(
                first.stages["movers"], second.stages["movers"], settings.seed
            ),
        }
        for name in MEASURES:
            low, high = np.quantile(drawn[name], [0.025, 0.975])
            row[name] = {
                "value": value[name],
                "low": float(low),
                "high": float(high),
                "resampled_mean": float(np.mean(drawn[name])),
                "null": plain(null_of(value[name], np.array(random[name]))),
                "ceiling": min(float(np.mean(within[task][name])) for task in (one, other)),
            }
        rows.append(row)
    return {"pairs": rows, "halves": {n: _summary(found) for n, found in within.items()}}


def _correlation(one: np.ndarray, other: np.ndarray, seed: int, draws: int = 200) -> Result:
    from scipy import stats

    def of(left: np.ndarray, right: np.ndarray) -> float:
        return float(stats.spearmanr(left.mean(0), right.mean(0))[0])  # pyright: ignore

    rng = np.random.default_rng(seed)
    drawn = [
        of(*(rows[rng.integers(len(rows), size=len(rows))] for rows in (one, other)))
        for _ in range(draws)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"value": of(one, other), "low": float(low), "high": float(high)}


def _summary(found: Mapping[str, list]) -> Result:
    import torch

    return {name: plain(mean_estimate(torch.tensor(values))) for name, values in found.items()}
