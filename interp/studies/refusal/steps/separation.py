"""Where refused and answered prompts separate, layer by layer, in the full dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from interp.probing.probes import ProbeMetrics, evaluation
from interp.probing.separation import CrossValidated, probe_cv, separation
from interp.studies.refusal.settings import LEAST, Context
from interp.studies.steps import Result

FOLDS, SHUFFLES = 4, 5
MOST = 400
"""The most rows of a silhouette, which compares all pairs."""


def class_separation(context: Context) -> Result:
    """Silhouettes and probes at the last token of the prompt, of every layer's residual stream.

    Silhouettes (and distances of rows to their centroid over distances of centroids) of tasks, and
    of refused against answered rows within a task, in all dimensions. Logistic probes, every row
    judged by one that has not seen its base text: for refused against answered; among refused rows
    for over-refused against properly refused, which differ in task too; and for the topic: the
    first probe, asked for the kind of rows that are all answered. If it separates these, it reads
    what a text is about rather than whether it will be refused.
    """
    rows = context.few([*context.rows(refused=True), *context.rows(refused=False)], MOST)
    sets = {"tasks": (rows, [context.cases[i].task for i in rows])}
    for task in context.refused_tasks:
        both = context.few(
            [i for x in (True, False) for i in context.rows(refused=x, tasks=[task])], MOST
        )
        marks = [str(context.became(i)) for i in both]
        sets[f"refused / answered, {task}"] = (both, marks)
    found: Result = {"n": len(rows), "silhouettes": {}, "within / between": {}}
    for name, (some, marks) in sets.items():
        if 1 < len(set(marks)) < len(marks):
            parted = separation(_stacked(context, some), marks)
            found["silhouettes"][name] = parted.silhouette.tolist()
            found["within / between"][name] = parted.ratio.tolist()
    found["probes"] = _probes(context)
    return found


def _probes(context: Context) -> Result:
    refused, answered = (context.rows(refused=x) for x in (True, False))
    asked = {"refused / answered": (refused, answered)}
    wrong = [i for i in refused if context.cases[i].should == "answer"]
    proper = [i for i in refused if context.cases[i].should == "refuse"]
    if min(len(wrong), len(proper)) >= 2 * LEAST:
        asked["over-refused / properly refused"] = (wrong, proper)
    found: Result = {}
    for name, (first, second) in asked.items():
        fitted = _fitted(context, first, second)
        found[name] = _curves(fitted)
        if name == "refused / answered" and (topic := _topic(context, fitted, first, second)):
            found["the same probe on the topic of answered rows"] = topic
    return found


def _fitted(context: Context, first: Sequence[int], second: Sequence[int]) -> CrossValidated:
    rows = [*first, *second]
    return probe_cv(
        _stacked(context, rows),
        [True] * len(first) + [False] * len(second),
        groups=[context.cases[i].unit for i in rows],
        folds=FOLDS,
        shuffles=SHUFFLES,
        seed=context.settings.seed,
    )


def _curves(probes: CrossValidated) -> Result:
    found = _measured(probes.heldout) | {"n": [probes.fitted, len(probes.fold)]}
    return found | {"shuffled": probes.shuffled[:, 2].quantile(0.975, dim=0).tolist()}


def _measured(found: ProbeMetrics) -> Result:
    return {
        "accuracy": found.accuracy.tolist(),
        "auc": found.auc.tolist(),
        "low": found.low[2].tolist(),
        "high": found.high[2].tolist(),
    }


def _topic(
    context: Context, probes: CrossValidated, first: Sequence[int], second: Sequence[int]
) -> Result | None:
    """The probes' AUC for what should be refused, on rows of tasks that are answered.

    Each row is judged by the probe that has not seen its base text.
    """
    kinds = {context.cases[i].kind for i in context.rows(should="refuse")}
    calm = {case.task for case in context.cases} - {context.cases[i].task for i in first}
    every = [*first, *second]
    places = [
        place
        for place, i in enumerate(every)
        if context.cases[i].task in calm and context.became(i) is False
    ]
    rows = [every[place] for place in places]
    about = np.array([context.cases[i].kind in kinds for i in rows], dtype=bool)
    if min(about.sum(), (~about).sum(), len(kinds)) < 1 or "" in kinds:
        return None
    bases = np.array([context.cases[i].unit for i in rows])
    found = evaluation(probes.scores[..., places], about, bases, context.settings.seed)
    return _measured(found) | {"n": [0, len(rows)]}


def _stacked(context: Context, rows: Sequence[int]) -> torch.Tensor:
    """(layers, rows, d_model)."""
    return torch.from_numpy(context.trajectories.states[list(rows)]).transpose(0, 1)
