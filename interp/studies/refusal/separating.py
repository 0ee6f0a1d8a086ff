"""Where refused and answered prompts part, layer by layer, in the full dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from interp.probes import Probes, decision, evaluation
from interp.probing import train_probes
from interp.studies.refusal.context import LEAST, Context
from interp.studies.steps import Result

SHUFFLES = 5
MOST = 400
"""Rows behind a silhouette; it compares all pairs."""


def separation(context: Context) -> Result:
    """Silhouettes and probes at the last token of the prompt, of every layer's residual stream.

    Silhouettes of tasks, and of refused against answered rows within a task, in all dimensions.
    Probes (logistic, no base text on both sides) for refused against answered; among refused rows
    for those that should not have been; and for the topic: the first probe, which has seen refusals
    only, asked for the kind of rows that are all answered. Where it tells these apart, it reads
    what a text is about and not what becomes of it.
    """
    states = context.trajectories
    rows = context.few([*context.rows(refused=True), *context.rows(refused=False)], MOST)
    tasks = [context.cases[i].task for i in rows]
    found: Result = {
        "n": len(rows),
        "silhouettes": {"tasks": _silhouettes(states.states[rows], tasks)},
    }
    for task in context.refused_tasks:
        both = context.few(
            [i for x in (True, False) for i in context.rows(refused=x, tasks=[task])], MOST
        )
        marks = [str(context.became(i)) for i in both]
        found["silhouettes"][f"refused / answered, {task}"] = _silhouettes(
            states.states[both], marks
        )
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


def _fitted(context: Context, first: Sequence[int], second: Sequence[int]) -> Probes:
    rows = [*first, *second]
    return train_probes(
        _stacked(context, rows),
        [True] * len(first) + [False] * len(second),
        groups=[context.cases[i].known.base for i in rows],
        shuffles=SHUFFLES,
        seed=context.settings.seed,
    )


def _curves(probes: Probes) -> Result:
    mean, low, high = probes.control("auc")
    del mean, low
    return {
        "accuracy": probes.heldout.accuracy.tolist(),
        "auc": probes.heldout.auc.tolist(),
        "low": probes.heldout.low[2].tolist(),
        "high": probes.heldout.high[2].tolist(),
        "shuffled": high.tolist(),
        "n": [probes.n_train, probes.n_test],
    }


def _topic(
    context: Context, probes: Probes, first: Sequence[int], second: Sequence[int]
) -> Result | None:
    """The probe's AUC for what should be refused, on held-out rows of tasks that are answered."""
    kinds = {context.cases[i].kind for i in context.rows(should="refuse")}
    held = [i for i, out in zip([*first, *second], probes.test.tolist(), strict=True) if out]
    calm = {case.task for case in context.cases} - {context.cases[i].task for i in first}
    rows = [i for i in held if context.cases[i].task in calm and context.became(i) is False]
    about = np.array([context.cases[i].kind in kinds for i in rows])
    if min(about.sum(), (~about).sum(), len(kinds)) < 1 or "" in kinds:
        return None
    bases = np.array([context.cases[i].known.base for i in rows])
    scores = decision(_stacked(context, rows), probes.weights[None], probes.bias[None])[0]
    found = evaluation(scores, about, bases, context.settings.seed)
    return {
        "accuracy": found.accuracy.tolist(),
        "auc": found.auc.tolist(),
        "low": found.low[2].tolist(),
        "high": found.high[2].tolist(),
        "n": [0, len(rows)],
    }


def _stacked(context: Context, rows: Sequence[int]) -> torch.Tensor:
    """(layers, rows, d_model)."""
    return torch.from_numpy(context.trajectories.states[list(rows)]).transpose(0, 1).float()


def _silhouettes(states: np.ndarray, marks: Sequence[str]) -> list[float]:
    """Of every layer: mean silhouette of the rows; nan where one group is all there is."""
    from sklearn.metrics import silhouette_score

    many = len(set(marks))
    if not 1 < many < len(marks):
        return [float("nan")] * states.shape[1]
    return [float(silhouette_score(states[:, layer], marks)) for layer in range(states.shape[1])]
