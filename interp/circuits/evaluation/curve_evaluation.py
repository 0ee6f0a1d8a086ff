"""Faithfulness of circuits by size, compared with random circuits."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar, Unpack

import numpy as np

from interp.circuits.circuit import Circuit, CircuitLevel
from interp.circuits.evaluation.curves import FRACTIONS, curve
from interp.circuits.evaluation.faithfulness import CircuitFaithfulness
from interp.circuits.ranking import By, Scored
from interp.circuits.trials.options import SharedTrialKeywords, TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.engine.memory import says_too_little
from interp.models.language_model import LanguageModel
from interp.results.provenance import provenance

_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class FaithfulnessCurves(CircuitFaithfulness):
    """The faithfulness of some circuits, or of those of every size from scores.

    Attributes:
        level: "edge", or "node" for circuits with all edges between their nodes.
    """

    circuits: tuple[Circuit, ...]
    level: CircuitLevel

    def __str__(self) -> str:
        sizes = [f"{circuit.n_edges} edges ({circuit.share:.2%})" for circuit in self.circuits]
        return self.in_words(sizes, "empty")


@says_too_little
@reads_arguments
def faithfulness_curve(
    model: LanguageModel,
    task: Task,
    circuits: Scored | Circuit | Sequence[Circuit],
    *,
    level: CircuitLevel = "edge",
    fractions: Sequence[float] = FRACTIONS,
    by: By = "signed",
    random: int = 10,
    connected: bool = False,
    bands: int = 3,
    **run: Unpack[SharedTrialKeywords],
) -> FaithfulnessCurves:
    """The faithfulness of circuits, or of the circuits of every size from scores.

    f(C) = mean(m(C) - m(empty)) / mean(m(full) - m(empty)); see `Faithfulness`. All circuits, and
    random ones for comparison, run as one batch on every prompt. At level "edge" the edges outside
    the circuit carry the ablated value; at level "node" all edges of nodes outside it do.
    `evaluate` measures both rankings, knock-outs and stability in one run.

    Args:
        model: a model with a fast engine.
        task: prompt pairs. Use pairs that the circuit was not found on (see `Task.split`).
        circuits: edge scores, for a curve; or circuits.
        level: "edge" or "node". A node's score is the sum over its outgoing edges.
        fractions: sizes of the curve's circuits.
        by: the ranking, see `interp.circuits.ranking.By`. MIB ranks by "signed" for CPR and by
            "absolute" for CMD.
        random: random circuits per circuit, see `Circuit.random_like`.
        connected: also run as many random circuits whose edges all lie on paths (level "edge").
        bands: number of layer bands in which their depth is matched.
        run: ablation, reference, seed, budget_gb, workers, progress (called with circuits run, and
            in total; with `workers`, with parts of the prompts) and cancelled; see `TrialOptions`.

    Raises:
        InterpError: no fast engine, training mode, circuits of another graph, fractions out of
            range, an unknown level or ablation, a mean over evaluated prompts, or a gap between
            full and empty below its standard error.
    """
    some, asked = _circuits(circuits, fractions, level, by)
    options = TrialOptions(**run).of_graph(some[0].graph)
    trials = Trials(model, task, options)
    trials.require_graph(some)
    spelled = f"ablation={options.ablation!r}, level={level!r}, by={by!r}, seed={options.seed}"
    plan = evaluation_plan(
        trials,
        some,
        trials.checked_ends(),
        fractions=asked,
        level=level,
        random=random,
        connected=connected,
        bands=bands,
        ranking="" if asked is None else f", ranked by {by} score, pruned",
        call=f"curve = interp.circuits.faithfulness_curve(model, task, ..., {spelled})",
    )
    return run_plans(trials, [plan])[0]


def evaluation_plan(
    trials: Trials,
    some: Sequence[Circuit],
    ends: np.ndarray,
    *,
    fractions: np.ndarray | None = None,
    level: CircuitLevel = "edge",
    random: int,
    connected: bool,
    bands: int = 3,
    ranking: str = "",
    call: str,
) -> CircuitPlan[FaithfulnessCurves]:
    """Request the masks of circuits and of random ones; return the evaluation."""
    model, task = trials.model, trials.task
    rng = np.random.default_rng(trials.options.seed)
    sides = [False, True] if connected and level == "edge" else [False]
    drawn = [
        one.random_like(rng, level=level, bands=bands, connected=side)
        for side in sides
        for _ in range(random)
        for one in some
    ]
    values = yield [one.mask for one in chain(some, drawn)]
    nulls = values[len(some) :].reshape(len(sides), random, len(some), len(task))
    return FaithfulnessCurves(
        circuits=tuple(some),
        fractions=fractions,
        values=values[: len(some)],
        full=ends[0],
        empty=ends[1],
        random=nulls[0],
        random_connected=nulls[1] if len(sides) > 1 else np.zeros((0, len(some), len(task))),
        level=level,
        protocol=f"{trials.protocol}, {level} level{ranking}",
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        provenance=provenance(model, task, call),
    )


Measured = TypeVar("Measured")
CircuitPlan = Generator[list[np.ndarray], np.ndarray, Measured]
"""A measurement that yields masks once, receives their (masks, prompts) metric, and returns."""


def run_plans(trials: Trials, plans: Sequence[CircuitPlan[Any]]) -> list[Any]:
    """Run several measurements together, with all of their masks in one batched run."""
    asked = [next(plan) for plan in plans]
    values = run_masks(trials, [mask for masks in asked for mask in masks])
    found, begin = [], 0
    for plan, masks in zip(plans, asked, strict=True):
        end = begin + len(masks)
        try:
            plan.send(values[begin:end])
        except StopIteration as done:
            found.append(done.value)
        begin = end
    return found


def run_masks(trials: Trials, masks: Sequence[np.ndarray]) -> np.ndarray:
    """(masks, prompts) metric of circuits, in batches."""
    return trials.in_batches(masks, max(1, _BATCH_ROWS // len(trials.task)), len(masks))


def _circuits(
    circuits: Scored | Circuit | Sequence[Circuit],
    fractions: Sequence[float],
    level: CircuitLevel,
    by: By,
) -> tuple[list[Circuit], np.ndarray | None]:
    """The circuits to run, and the fractions if they are a curve."""
    if level not in ("edge", "node"):
        raise unknown("level", level, ("edge", "node"))
    if not isinstance(circuits, Circuit | Sequence):
        found = curve(circuits, fractions, level=level, by=by)
        return found, np.asarray(fractions)
    some = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not some:
        raise InterpError("evaluating circuits", "none were given", "give at least one")
    return [one.whole_nodes() if level == "node" else one for one in some], None
