"""A task's circuit, stage by stage: heads that write to the logits, and heads that direct these."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

import numpy as np

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.statistics import ratio_of_means
from interp.models.language_model import LanguageModel
from interp.patching.path import path_patching
from interp.results.scores import Scores
from interp.studies.formatting import place
from interp.studies.reuse.settings import ReuseContext
from interp.studies.reuse.tasks import ENTRIES, Entry
from interp.studies.steps import Result

Heads = dict[int, float]
"""Heads by number (layer * heads a layer + head) with their mean effects, the strongest first."""

STAGES = {
    "movers": "into the logits, at the last token",
    "inhibition": "into the movers' queries, at the last token",
    "repetition": "into the keys and values those heads read, at every token",
}


def strongest(values: np.ndarray, k: int) -> Heads:
    """The k heads of largest |value|, none of value 0; ties go to the earlier head."""
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    return {int(head): float(values[head]) for head in order if values[head] != 0}


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


def circuit(context: ReuseContext, entry: Entry) -> Result:
    """Path patching backwards from the logits; the strongest heads of a stage are receivers next.

    1. movers: every head into the logits.
    2. inhibition: every head into the queries of the movers that support the answer.
    3. repetition: every head into the keys and values of the heads of stage 2 that support it.

    A stage lists the k heads of largest |mean effect|, k a share of all heads. Those that support
    the answer are the next stage's receivers; heads without any effect are not. Only listed heads
    whose effect is distinguishable from zero are compared between tasks (`clear_heads`). `effects`
    are what patching each head takes from the metric on each prompt (direction "noise"), `values`
    their means as fractions of the clean-corrupted gap.

    Departs from the released code (jmerullo/circuit_reuse) in that effects are ratios of means
    over all prompts, recorded receivers are copies, and in stage 3 keys are receivers as well as
    values, at every token the two prompts can differ at. Source: arXiv 2310.08744, section 3.
    """
    model, task = context.model_of(entry), context.task(entry)
    size = model.n_layers * model.n_heads
    found: Result = {"n": len(task), "k": context.k, "n_heads": model.n_heads, "stages": {}}
    receivers = ["logits"]
    for stage in STAGES:
        scores = _patched(model, task, receivers, "all" if stage == "repetition" else "last")
        effects, values, errors = (np.zeros((*lead, size)) for lead in ((len(task),), (), ()))
        if scores is not None:
            width = scores.effects[0].size
            effects[:, :width] = scores.effects.reshape(len(task), -1)
            values[:width], errors[:width] = scores.values.ravel(), scores.stderr.ravel()
            clean, corrupted = float(scores.clean.mean()), float(scores.corrupted.mean())
            found |= {"clean": clean, "corrupted": corrupted, "gap": scores.gap}
        kept = sorted(strongest(values, context.k), key=lambda head: -values[head])
        found["stages"][stage] = {
            "receivers": receivers,
            "heads": [label(head, model.n_heads) for head in kept],
            "values": _short(values),
            "stderr": _short(errors),
            "effects": [_short(row) for row in effects],
        }
        positive = [label(head, model.n_heads) for head in kept if values[head] > 0]
        receivers = _readers(model, positive, "q" if stage == "movers" else "kv")
    return found


def step_of(entry: Entry) -> str:
    """The name of the step that finds an entry's circuit."""
    return f"circuit {entry.name}".replace(" ", "_").replace(",", "")


def circuits_of(results: dict[str, Result]) -> dict[str, Result]:
    """The circuits a study found, by entry, in the order of `ENTRIES`."""
    found = {entry.name: results.get(step_of(entry)) for entry in ENTRIES}
    return {name: each for name, each in found.items() if each and "skipped" not in each}


def effects_of(found: Result) -> dict[str, np.ndarray]:
    """For each stage of a circuit's result (prompts, heads): how much each head lowers the metric.

    Not divided by the clean-corrupted gap, which would not change a rank within a stage.
    """
    return {name: np.array(found["stages"][name]["effects"]) for name in STAGES}


def value_of(found: Result, stage: str, of: str = "values") -> dict[str, float]:
    """The value (or its "stderr") of each head that a stage kept, the largest value first."""
    rows = found["stages"][stage]
    return {head: rows[of][_number(head, found["n_heads"])] for head in rows["heads"]}


def heads_of(found: Result, stage: str, sign: int = 0) -> list[str]:
    """A stage's heads, the largest value first; with a sign, only those of that sign."""
    return [h for h, value in value_of(found, stage).items() if not sign or value * sign > 0]


def clear_heads(found: Result, stage: str, sign: int = 0) -> list[str]:
    """The heads of `heads_of` whose mean effect is distinguishable from zero."""
    seen = clear(effects_of(found)[stage])
    return [h for h in heads_of(found, stage, sign) if seen[_number(h, found["n_heads"])]]


def label(head: int, n_heads: int) -> str:
    """A head's label from its number."""
    return str(Component(head // n_heads, "z", head % n_heads))


def _number(head: str, n_heads: int) -> int:
    layer, index = place(head)
    return layer * n_heads + index


def pace(context: ReuseContext, entry: Entry) -> Result:
    """Seconds a prompt takes in stages 1 and 2 together, and in stage 3; no scores are kept."""
    model = context.model_of(entry)
    task = context.task(entry).first(2)
    middle = model.n_layers // 2
    took = []
    for receivers, positions in (
        (["logits"], "last"),
        ([f"L{middle}H0.q"], "last"),
        ([f"L{middle}KV0.k", f"L{middle}KV0.v"], "all"),
    ):
        begin = monotonic()
        with suppress(InterpError):  # two prompts may show no gap; the time counts anyway
            path_patching(model, task, receivers=receivers, positions=positions, cache=False)
        took.append((monotonic() - begin) / len(task))
    return {"last": took[0] + took[1], "all": took[2]}


def _patched(
    model: LanguageModel, task: Task, receivers: Sequence[str], positions: str
) -> Scores | None:
    """Path patching from the layers below the receivers; None if there is no such head."""
    parts = [Component.parse(name) for name in receivers if name != "logits"]
    layers = range(max((part.layer for part in parts), default=0)) if parts else None
    if not receivers or (layers is not None and not len(layers)):
        return None
    return path_patching(model, task, receivers=list(receivers), positions=positions, layers=layers)


def _readers(model: LanguageModel, heads: Sequence[str], kind: str) -> list[str]:
    """The queries of heads, or the keys and values they read (shared with grouped queries)."""
    parts = [Component.parse(head) for head in heads]
    if kind == "q":
        return [str(Component(part.layer, "q", part.index)) for part in parts]
    group = model.n_heads // model.n_kv_heads
    places = dict.fromkeys((part.layer, (part.index or 0) // group) for part in parts)
    return [str(Component(layer, site, i)) for layer, i in places for site in "kv"]


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
