"""The model trained on Colored Objects compared with its base: heads reused, heads changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from interp.core.components import Component
from interp.core.nulls import null_of
from interp.core.statistics import share_estimate
from interp.models.language_model import LanguageModel
from interp.probing.model_diff import compare_weights
from interp.runs.kinds import make_ablation, random_like
from interp.runs.stored_runs import site_values
from interp.studies.reuse.settings import Context, choices
from interp.studies.reuse.steps.circuits import STAGES, heads_of, label
from interp.studies.reuse.tasks import OBJECTS_TRAINED, Entry
from interp.studies.steps import Result, plain

ACTING = ("movers", "inhibition")
"""The stages whose heads act at the last token."""


def head_sets(circuits: Mapping[str, Result], stages: Sequence[str] = ACTING) -> dict[str, list]:
    """The heads listed for each circuit, distinguishable from zero or not; empty ones left out."""
    found = {
        name: list(dict.fromkeys(h for stage in stages for h in heads_of(circuit, stage)))
        for name, circuit in circuits.items()
    }
    return {name: heads for name, heads in found.items() if heads}


def weights(context: Context, circuits: Mapping[str, Result], most: int = 10) -> Result:
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
    return {
        "change": change.round(6).tolist(),
        "top": [
            {"head": label(int(i), model.n_heads), "change": float(change.flat[i])} for i in order
        ],
        "sets": {
            name: {part: plain(null) for part, null in compared.null(heads, draws=1000).items()}
            for name, heads in sets.items()
        },
    }


def effects(before: Result, after: Result, most: int = 10) -> Result:
    """How each head's effects in a stage differ between two models on one task's prompts.

    Mean over prompts of (after - before), paired, with its standard error, in the metric's unit
    (training changes the gap, so fractions of it would mislead). In later stages the receivers
    differ too.
    """
    found: Result = {"n": after["n"], "stages": {}}
    for stage in STAGES:
        one, two = (np.array(x["stages"][stage]["effects"]) for x in (before, after))
        difference = two - one
        error = difference.std(0, ddof=1) / np.sqrt(len(difference))
        mean = difference.mean(0)
        order = np.argsort(-np.abs(mean), kind="stable")[:most]
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
    context: Context, entries: Sequence[Entry], sets: Mapping[str, Sequence[str]]
) -> Result:
    """Accuracy on tasks with sets of heads mean-ablated at the last token, against random sets.

    The mean is over the task's own prompts. right: the most likely of answers and wrong answers
    is an answer. share: the share of random sets of the same layers that lower it as much.
    """
    found: Result = {}
    for entry in entries:
        model, task = context.model_of(entry), context.task(entry, test=True)
        drawn = {
            name: random_like(model, heads, context.settings.sets, seed=context.settings.seed)
            for name, heads in sets.items()
        }
        listed = [one for name in sets for one in (list(sets[name]), *drawn[name])]
        seen = choices(model, task, _at_mean(model, task.encode(model).clean, listed))
        right, begin = seen.right, 1
        rows: Result = {}
        for name in sets:
            end = begin + 1 + len(drawn[name])
            mine, random = right[begin], right[begin + 1 : end].mean(1)
            rows[name] = {
                **plain(share_estimate(int(mine.sum()), len(mine))),
                "null": random.tolist(),
                "share": null_of(-float(mine.mean()), -random).share,
            }
            begin = end
        none = plain(share_estimate(int(right[0].sum()), len(task)))
        found[entry.name] = {"none": none, "chance": seen.chance, "sets": rows}
    return found


def _at_mean(
    model: LanguageModel, prompts: Sequence[Sequence[int]], sets: Sequence[Sequence[str]]
) -> list:
    layers = sorted({Component.parse(head).layer for heads in sets for head in heads})
    whole = site_values(model, prompts, [(layer, "z") for layer in layers])
    values = {at: value.mean(0, keepdim=True) for at, value in whole.items()}
    return [make_ablation(model, heads, "mean", values=values) for heads in sets]


def reused(context: Context, circuits: Mapping[str, Result]) -> Result:
    """Do the base model's IOI heads carry the trained skill? See `knocked_out`."""
    return knocked_out(context, [OBJECTS_TRAINED], head_sets(circuits))


def grouped(context: Context, left: Entry, right: Entry, circuits: Mapping[str, Result]) -> Result:
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
