"""How much of a behaviour a circuit carries: faithfulness by size, against random circuits."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np

from interp.circuits.circuit import Circuit, Level
from interp.circuits.evaluation.curves import FRACTIONS, curve
from interp.circuits.evaluation.faithfulness import Faithfulness
from interp.circuits.ranking import By, Scored
from interp.circuits.trials.removed_edges import EdgeAblation
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.engine.memory import says_too_little
from interp.engine.readout import Progress
from interp.models.language_model import LanguageModel
from interp.results.provenance import provenance

_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class FaithfulnessCurves(Faithfulness):
    """How faithful some circuits are, with no edge kept as the empty one. See `Faithfulness`.

    Attributes:
        circuits: what was run.
        level: "edge", or "node": every edge between the chosen nodes.
    """

    circuits: tuple[Circuit, ...]
    level: Level

    @property
    def sizes(self) -> np.ndarray:
        """(circuits,) number of edges."""
        return np.array([circuit.n_edges for circuit in self.circuits])

    def __str__(self) -> str:
        sizes = [f"{circuit.n_edges} edges ({circuit.share:.2%})" for circuit in self.circuits]
        return self.in_words(sizes, "empty")

    def to_dataframe(self) -> Any:
        """One row per circuit: size, metric, f with interval, range of random circuits."""
        import pandas as pd

        return pd.DataFrame(
            {"circuit": one.name, "edges": one.n_edges, "share": one.share, **self.row(place)}
            for place, one in enumerate(self.circuits)
        )


@says_too_little
def faithfulness_curve(
    model: LanguageModel,
    task: Task,
    circuits: Scored | Circuit | Sequence[Circuit],
    *,
    ablation: EdgeAblation = "counterfactual",
    reference: Task | None = None,
    level: Level = "edge",
    fractions: Sequence[float] = FRACTIONS,
    absolute: bool = False,
    by: By | None = None,
    random: int = 10,
    connected: bool = False,
    bands: int = 3,
    seed: int = 0,
    budget_gb: float = 1.0,
    progress: Progress | None = None,
) -> FaithfulnessCurves:
    """Run circuits, or the circuits that scores give at every size, and random ones like them.

    All circuits run as one batch on every prompt. At level "edge" an edge outside the circuit
    carries what the ablation says; at level "node" all edges of a node outside it do.
    `evaluate` measures both rankings, knock-outs and stability in one run.

    Args:
        model: a model with a fast engine.
        task: prompt pairs; better not those the circuit was found on (see `Task.split`).
        circuits: edge scores, for a curve; or circuits, run as they are.
        ablation: "counterfactual", "resample", "zero" or "mean"; see `Trials`.
        reference: prompts whose tokens the mean is taken over, none of them evaluated.
        level: "edge" or "node"; a node's score is the sum over its outgoing edges.
        fractions: sizes of a curve's circuits.
        absolute: rank by |score|, as MIB does for CMD; signed, as for CPR, by default.
        by: the ranking by name, see `search.By`; overrides `absolute`.
        random: random circuits per circuit; see `Circuit.random_like`.
        connected: as many random ones besides whose every edge lies on a path (level "edge").
        bands: their depth is matched in so many bands of layers.
        seed: of the random circuits and of resampling.
        budget_gb: memory for runs in flight.
        progress: called with (circuits run, circuits in all), random ones counted.

    Raises:
        InterpError: no fast engine, training mode, circuits of another graph, a fraction out of
            range, an unknown level or ablation, a mean over evaluated prompts, or no gap between
            full and empty beyond its standard error.
    """
    some, asked = _circuits(circuits, fractions, level, absolute, by)
    graph = some[0].graph
    trials = Trials(
        model, task, ablation=ablation, reference=reference, expand_kv=graph.expand_kv,
        neurons=graph.neurons, budget_gb=budget_gb, seed=seed,
    )  # fmt: skip
    same_graph(trials, some)
    ranking = by or ("absolute" if absolute else "signed")
    options = f"ablation={ablation!r}, level={level!r}, by={ranking!r}, seed={seed}"
    plan = evaluation_plan(
        trials,
        some,
        trials.checked_ends(),
        fractions=asked,
        level=level,
        random=random,
        connected=connected,
        bands=bands,
        seed=seed,
        ranking="" if asked is None else f", ranked by {ranking} score, pruned",
        call=f"evaluation = evaluate(model, task, ..., {options})",
    )
    return run_plan(trials, plan, progress=progress)


def evaluation_plan(
    trials: Trials,
    some: Sequence[Circuit],
    ends: np.ndarray,
    *,
    fractions: np.ndarray | None = None,
    level: Level = "edge",
    random: int,
    connected: bool,
    bands: int = 3,
    seed: int,
    ranking: str = "",
    call: str,
) -> Plan[FaithfulnessCurves]:
    """The masks of circuits and of random ones like them; with their values, the evaluation."""
    model, task = trials.model, trials.task
    rng = np.random.default_rng(seed)
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


def same_graph(trials: Trials, circuits: Sequence[Circuit]) -> None:
    """Refuse circuits of another graph than the trials'.

    Raises:
        InterpError: there is one.
    """
    for one in circuits:
        if one.graph != trials.graph:
            raise InterpError(
                f"circuits on {trials.model.name}",
                f"their graph is {one.graph}",
                "use circuits of this model",
            )


Result = TypeVar("Result")
Plan = Generator[list[np.ndarray], np.ndarray, Result]
"""A measurement that asks once for the (masks, prompts) metric of some masks, and returns."""


def run_plan(trials: Trials, plan: Plan[Result], *, progress: Progress | None = None) -> Result:
    """Carry out one measurement."""
    return run_plans(trials, [plan], progress=progress)[0]


def run_plans(
    trials: Trials, plans: Sequence[Plan[Any]], *, progress: Progress | None = None
) -> list[Any]:
    """Carry out measurements together: the masks of all are one batched run."""
    asked = [next(plan) for plan in plans]
    values = run_masks(trials, [mask for masks in asked for mask in masks], progress=progress)
    found, begin = [], 0
    for plan, masks in zip(plans, asked, strict=True):
        end = begin + len(masks)
        try:
            plan.send(values[begin:end])
        except StopIteration as done:
            found.append(done.value)
        begin = end
    return found


def run_masks(
    trials: Trials, masks: Iterable[np.ndarray], *, progress: Progress | None = None
) -> np.ndarray:
    """(masks, prompts) metric of circuits, a batch at a time; `progress` needs a sequence."""
    size = max(1, _BATCH_ROWS // len(trials.task))
    total, found = len(masks) if isinstance(masks, Sequence) else 0, []
    for batch in _batched(iter(masks), size):
        found.append(trials.values(np.stack(batch)))
        if progress is not None:
            progress(sum(map(len, found)), total)
    return np.concatenate(found) if found else np.zeros((0, len(trials.task)))


def _batched(masks: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(masks, size)):
        yield batch


def _circuits(
    circuits: Scored | Circuit | Sequence[Circuit],
    fractions: Sequence[float],
    level: Level,
    absolute: bool,
    by: By | None,
) -> tuple[list[Circuit], np.ndarray | None]:
    """What to run, and the fractions asked for where it is a curve."""
    if level not in ("edge", "node"):
        raise unknown("level", level, ("edge", "node"))
    if not isinstance(circuits, Circuit | Sequence):
        found = curve(circuits, fractions, level=level, absolute=absolute, by=by)
        return found, np.asarray(fractions)
    some = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not some:
        raise InterpError("evaluating circuits", "none were given", "give at least one")
    return [one.whole_nodes() if level == "node" else one for one in some], None
