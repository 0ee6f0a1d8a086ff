"""Task constellations on this model: trajectories, effective layers, and a calibrated gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from interp.core.statistics import ratio_of_means
from interp.refusal.constellations import Bank, effectiveness, identify, potential
from interp.refusal.task_steering import PUBLISHED, TaskSteering, calibrate_gate
from interp.studies.refusal.settings import RefusalContext
from interp.studies.steps import Result, plain, share_of

POINTS = 120
"""The most points kept of a gate curve and of a picture."""


def benign_tasks(context: RefusalContext) -> tuple[str, ...]:
    """Tasks without rows that should be refused; only these may be steered."""
    every = dict.fromkeys(case.task for case in context.cases)
    return tuple(task for task in every if task not in context.proper_tasks)


def options_of(context: RefusalContext, gate: Result, dose: float = 1.0) -> TaskSteering:
    """The published method with a gate; a dose of 1 is the mean distance of the centroids.

    The source gives no strength. Here a state moves by dose * mean |v| * (1 - alignment) *
    confidence, the mean over tasks with both classes and their most effective layers. `gate` holds
    the options of `identify` and the threshold (None: the published one).
    """
    bank, length = context.bank, 0.0
    if bank.whole.any():
        distances, scores = np.linalg.norm(bank.vectors, axis=-1), effectiveness(bank)
        best = {t: np.argsort(-scores[t])[: PUBLISHED.stored] for t in np.flatnonzero(bank.whole)}
        length = float(np.mean([distances[t, places] for t, places in best.items()]))
    threshold = gate.get("threshold")
    return replace(
        PUBLISHED,
        strength=dose * length,
        threshold=PUBLISHED.threshold if threshold is None else threshold,
        tasks=benign_tasks(context),
        identify=gate["identify"],
    )


def identification(context: RefusalContext) -> list[Result]:
    """Ways of identifying a task, with the share of select rows each identifies correctly.

    The source does not say which centroid of a task is meant. It takes the maximum over layers;
    its notebooks take the mean.
    """
    rows = context.rows("select")
    states = context.trajectories[rows].states
    true = np.array([context.cases[i].task for i in rows])
    found = []
    for stored, over, centre in product((5, None), ("max", "mean"), ("task", "nearest")):
        options = {"stored": stored, "over_layers": over, "centre": centre}
        told = identify(states, context.bank, **options).names
        found.append({"identify": options, "right": share_of(true == np.array(told))})
    return found


def constellations(context: RefusalContext) -> Result:
    """The bank of find rows, the gate calibrated on select rows, tasks identified on test rows."""
    bank, test = context.bank, context.rows("test")
    ways = identification(context)
    way = max(ways, key=lambda row: row["right"]["mean"])["identify"]
    told = np.array(identify(context.trajectories[test].states, bank, **way).names)
    true = np.array([context.cases[i].task for i in test])
    select = context.rows("select")
    curve = calibrate_gate(
        bank,
        context.trajectories[select],
        harmful=[context.cases[i].should == "refuse" for i in select],
        options=options_of(context, {"identify": way}),
    )
    chosen = curve.choose()
    keep = np.unique(np.linspace(0, len(curve.thresholds) - 1, POINTS).astype(int))
    gate = {
        name: np.asarray(getattr(curve, name))[keep]
        for name in ("thresholds", "covered", "wrong", "passed")
    }
    return plain(
        {
            "tasks": bank.tasks,
            "counts": bank.counts,
            "notices": bank.notices,
            "effectiveness": np.nan_to_num(effectiveness(bank)),
            "told": {
                task: share_of(told[true == task] == task) for task in dict.fromkeys(true.tolist())
            },
            "gate": gate | {"n_benign": curve.n_benign, "n_harmful": curve.n_harmful},
            "ways": ways,
            "identify": way,
            "threshold": chosen,
            "at published": curve.at(PUBLISHED.threshold),
            "at chosen": None if chosen is None else curve.at(chosen),
            "ratios": _ratios(context, bank),
            "picture": _picture(context, bank, test),
        }
    )


def _ratios(context: RefusalContext, bank: Bank) -> list[Result]:
    """Distance to the answered centroid over that to the refused one: means by task and class."""
    found = []
    for t in np.flatnonzero(bank.whole):
        for refused in (True, False):
            chosen = context.rows("test", refused=refused, tasks=[bank.tasks[t]])
            if len(chosen) < 2:
                continue
            pot = potential(context.trajectories[chosen].states, bank, np.full(len(chosen), t))
            interval = ratio_of_means(pot)
            about = {"task": bank.tasks[t], "class": "refused" if refused else "answered"}
            about |= {"n": len(chosen), "mean": pot.mean(0)}
            found.append(about | {"low": interval.low, "high": interval.high})
    return found


def _picture(context: RefusalContext, bank: Bank, rows: Sequence[int]) -> Result | None:
    """Two principal axes at the most effective layer: only a picture, not evidence."""
    from sklearn.decomposition import PCA

    if not bank.whole.any():
        return None
    layer = int(np.nanargmax(np.nanmean(effectiveness(bank)[bank.whole], axis=0)))
    few = context.few(rows, 2 * POINTS)
    points = PCA(2, random_state=0).fit_transform(context.trajectories.states[few, layer])
    return {
        "layer": layer,
        "points": points.round(3).tolist(),
        "tasks": [context.cases[i].task for i in few],
        "refused": [context.became(i) for i in few],
    }
