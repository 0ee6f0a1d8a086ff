"""The model trained on Colored Objects compared with its base: heads reused, heads changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from interp.core.components import Component
from interp.core.nulls import null_of
from interp.probing.model_diff import compare_weights
from interp.runs.kinds import make_ablation, random_like
from interp.runs.stored_runs import site_values
from interp.studies.reuse.settings import ReuseContext, choices
from interp.studies.reuse.steps.circuits import STAGES, effects_of, heads_of, label
from interp.studies.reuse.tasks import Entry
from interp.studies.steps import Result, plain, share_of

ACTING = ("movers", "inhibition")
"""The stages whose heads act at the last token."""


def head_sets(circuits: Mapping[str, Result], stages: Sequence[str] = ACTING) -> dict[str, list]:
    """The heads listed for each circuit, distinguishable from zero or not; empty ones left out."""
    found = {
        name: list(dict.fromkeys(h for stage in stages for h in heads_of(circuit, stage)))
        for name, circuit in circuits.items()
    }
    return {name: heads for name, heads in found.items() if heads}


def weights(context: ReuseContext, circuits: Mapping[str, Result], most: int = 10) -> Result:
    """How much training changed the weights of each circuit's heads, against others of the layers.

    The relative change |after - before| / |before| of W_Q, W_K, W_V, W_O; nulls are permutations
    within layers.
    """
    assert context.trained is not None
    compared = compare_weights(context.model, context.trained, neurons=[])
    model = context.model
    change = np.zeros((model.n_layers, model.n_heads))
    np.add.at(change, (compared.layer, compared.index), compared.change / 4)
    order = np.argsort(-change, axis=None, kind="stable")[:most]
    sets = head_sets(circuits, tuple(STAGES))
    nulls = {name: compared.null(heads, draws=1000) for name, heads in sets.items()}
    top = [{"head": label(int(i), model.n_heads), "change": change.flat[i]} for i in order]
    return plain({"change": change.round(6), "top": top, "sets": nulls})


def effects(before: Result, after: Result, most: int = 10) -> Result:
    """How each head's effects in a stage differ between two models on one task's prompts.

    Mean over prompts of (after - before), paired, with its standard error, in the metric's unit
    (training changes the gap, so fractions of it would mislead). In later stages the receivers
    differ too.
    """
    found: Result = {"n": after["n"], "stages": {}}
    for stage in STAGES:
        one, two = (effects_of(x)[stage] for x in (before, after))
        error = (two - one).std(0, ddof=1) / np.sqrt(len(one))
        order = np.argsort(-np.abs((two - one).mean(0)), kind="stable")[:most]
        found["stages"][stage] = [
            {
                "head": label(int(i), after["n_heads"]),
                "before": float(one.mean(0)[i]),
                "after": float(two.mean(0)[i]),
                "stderr": float(error[i]),
            }
            for i in order
        ]
    return found


def knocked_out(
    context: ReuseContext, entries: Sequence[Entry], sets: Mapping[str, Sequence[str]]
) -> Result:
    """Accuracy on tasks with sets of heads mean-ablated at the last token, against random sets.

    The mean is over the task's own prompts. right: the most likely of answers and wrong answers
    is an answer. share: the share of random sets of the same layers that lower it as much.
    """
    found: Result = {}
    for entry in entries:
        model, task = context.model_of(entry), context.task(entry, test=True)
        draws, seed = context.settings.sets, context.settings.seed
        drawn = {
            name: [list(heads), *random_like(model, heads, draws, seed=seed)]
            for name, heads in sets.items()
        }
        listed = [one for mine in drawn.values() for one in mine]
        layers = sorted({Component.parse(head).layer for heads in listed for head in heads})
        whole = site_values(model, task.encode(model).clean, [(layer, "z") for layer in layers])
        values = {at: value.mean(0, keepdim=True) for at, value in whole.items()}
        made = [make_ablation(model, heads, "mean", values=values) for heads in listed]
        seen = choices(model, task, made)
        none, *right = seen.right
        rows: Result = {}
        for name, some in drawn.items():
            mine, random = right[0], np.array([x.mean() for x in right[1 : len(some)]])
            right = right[len(some) :]
            rows[name] = {
                **share_of(mine),
                "null": random.tolist(),
                "share": null_of(-float(mine.mean()), -random).share,
            }
        found[entry.name] = {"none": share_of(none), "chance": seen.chance, "sets": rows}
    return found


def grouped(
    context: ReuseContext, left: Entry, right: Entry, circuits: Mapping[str, Result]
) -> Result:
    """Heads of two tasks as forget, retain and shared, and what ablating each group costs.

    Forget: in the first task's circuit alone; retain: in the second's alone; shared: in both
    (stages that act at the last token). If the grouping is clean, ablating the forget heads harms
    the first task and not the second.
    """
    ours, theirs = (head_sets(circuits)[entry.name] for entry in (left, right))
    groups = {
        "forget": [head for head in ours if head not in theirs],
        "retain": [head for head in theirs if head not in ours],
        "shared": [head for head in ours if head in theirs],
    }
    sets = {name: heads for name, heads in groups.items() if heads}
    return {
        "forget": left.name,
        "retain": right.name,
        "groups": groups,
        "accuracy": knocked_out(context, [left, right], sets),
    }
