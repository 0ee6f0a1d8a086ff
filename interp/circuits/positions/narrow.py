"""Circuits token by token: how faithful they are, and at which tokens their edges are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.circuits.circuit import Circuit
from interp.circuits.evaluation.faithfulness import Faithfulness
from interp.circuits.model_graph import graph_of
from interp.circuits.positions.edge_positions import EdgePlaces
from interp.circuits.positions.positioned_circuit import (
    PositionedCircuit,
    allowed,
    places_of,
    tokens_by_place,
)
from interp.circuits.trials.removed_edges import EdgeAblation
from interp.circuits.trials.trials import Trials
from interp.core.arguments import Columns
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine.memory import budget_bytes, says_too_little
from interp.engine.readout import Progress
from interp.models.language_model import LanguageModel
from interp.results.provenance import provenance
from interp.runs.pairs import check_gap

BATCH = 32
THRESHOLDS = (0.002, 0.005, 0.01, 0.02, 0.05)


@dataclass(frozen=True, kw_only=True)
class PositionedEvaluation(Faithfulness):
    """How faithful circuits are whose edges are kept at some tokens only. See `Faithfulness`.

    Attributes:
        circuits: what was run.
    """

    circuits: tuple[PositionedCircuit, ...]

    @property
    def sizes(self) -> np.ndarray:
        """(circuits,) number of edges, each place counted."""
        return np.array([circuit.n_edges for circuit in self.circuits])

    def __str__(self) -> str:
        sizes = [f"{one.name}, {one.n_edges} edges ({one.share:.2%})" for one in self.circuits]
        return self.in_words(sizes, "empty")

    def to_dataframe(self) -> Any:
        """One row per circuit: size, metric, f with interval, range of random circuits."""
        import pandas as pd

        return pd.DataFrame(
            {"circuit": one.name, "edges": one.n_edges, "share": one.share, **self.row(place)}
            for place, one in enumerate(self.circuits)
        )


@dataclass(frozen=True, kw_only=True)
class Narrowed:
    """A circuit cut to the tokens where its edges are needed.

    Attributes:
        circuit: what is left.
        effects: what each edge's removal at each place alone takes from the circuit, and at all.
        threshold: least |effect| of an edge kept at a place, as a share of the gap.
    """

    circuit: PositionedCircuit
    effects: EdgePlaces
    threshold: float

    def __str__(self) -> str:
        every = PositionedCircuit.everywhere(self.circuit.anywhere(), self.circuit.places)
        return (
            f"{self.effects.protocol}\n  {self.circuit.n_edges} edges by place with an effect of "
            f"{self.threshold:g} or more; {len(self.effects.edges)} edges before, "
            f"{every.n_edges} by place where those left were kept everywhere"
        )


@dataclass(frozen=True, kw_only=True)
class NarrowedCurve(Record):
    """A circuit cut to its tokens at several thresholds, each cut judged on other prompts.

    Attributes:
        effects: what each edge's removal at each place takes from the circuit.
        thresholds: ascending; those that leave no path are left out.
        judged: the circuit kept everywhere, then its cut at each threshold.
    """

    effects: EdgePlaces
    thresholds: tuple[float, ...]
    judged: PositionedEvaluation

    def __str__(self) -> str:
        return f"{self.effects.protocol}\n{self.judged}"


def evaluate_positioned(
    model: LanguageModel,
    task: Task,
    circuits: PositionedCircuit | Sequence[PositionedCircuit],
    *,
    ablation: EdgeAblation = "counterfactual",
    reference: Task | None = None,
    random: int = 10,
    bands: int = 3,
    seed: int = 0,
    budget_gb: float = 1.0,
    progress: Progress | None = None,
) -> PositionedEvaluation:
    """Run circuits by place, and random ones like them, as one batch on every prompt.

    An edge outside the circuit at a token carries there what the ablation says. With every edge at
    every place this is `interp.circuits.faithfulness_curve` of the circuit without positions.

    Args:
        model: a model with a fast engine.
        task: prompt pairs that have the circuits' positions; better not those they were found on.
        circuits: circuits with the same places.
        ablation: see `interp.circuits.trials.removed_edges`.
        reference: prompts whose tokens a mean is taken over, none of them evaluated.
        random: random circuits per circuit, alike at every place.
        bands: their depth is matched in so many bands of layers.
        seed: of the random circuits and of resampling.
        budget_gb: memory for runs in flight.
        progress: called with (circuits run, circuits in all), random ones counted.

    Raises:
        InterpError: no circuit, circuits of another graph or with different places, a position
            that a prompt lacks, two names for one token, no gap, or as `Trials`.

    Equals plain loops over readers and tokens (tests/test_edges.py).
    """
    some = [circuits] if isinstance(circuits, PositionedCircuit) else list(circuits)
    if not some or any((one.graph, one.places) != (some[0].graph, some[0].places) for one in some):
        raise InterpError(
            "evaluating circuits by place",
            f"{len(some)} circuits, of one graph and set of places or not",
            "give at least one, all with the same graph and places",
        )
    options = {"ablation": ablation, "reference": reference, "seed": seed, "budget_gb": budget_gb}
    trials = _trials(model, task, some[0], **options)
    rng = np.random.default_rng(seed)
    drawn = [one.random_like(rng, bands=bands) for _ in range(random) for one in some]
    ends = trials.ends()
    check_gap(*ends)
    values = _values(trials, [one.mask for one in [*some, *drawn]], budget_gb, progress)
    return PositionedEvaluation(
        circuits=tuple(some),
        fractions=None,
        values=values[: len(some)],
        full=ends[0],
        empty=ends[1],
        random=values[len(some) :].reshape(random, len(some), len(task)),
        protocol=_protocol(trials, some[0]),
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        provenance=provenance(
            model,
            task,
            "evaluation = evaluate_positioned(model, task, ..., "
            f"ablation={ablation!r}, random={random}, seed={seed})",
        ),
    )


def narrow_circuit(
    model: LanguageModel,
    task: Task,
    circuit: Circuit,
    *,
    positions: Columns = "all",
    threshold: float = 0.01,
    ablation: EdgeAblation = "counterfactual",
    reference: Task | None = None,
    seed: int = 0,
    budget_gb: float = 1.0,
    progress: Progress | None = None,
) -> Narrowed:
    """Keep each edge of a circuit only at the places where the circuit needs it.

        effect(u -> v, p) = mean(m(C) - m(C without u -> v at p)) / mean(m(full) - m(empty))

    Edges with |effect| of the threshold or more stay there; then those on no path from the input to
    the logits go. Each is judged alone, so that an edge that acts at either of two places, each
    enough, is lost at both: judge the result with `evaluate_positioned`, on other prompts. Of the
    whole graph the effects are those of `edge_places`.

    Args:
        model: a model with a fast engine; one run per edge, place and prompt, in batches.
        task: prompt pairs.
        circuit: the circuit; better connected.
        positions: names of positions, or "all" token indices of prompts of one length; "last" is
            added, and "elsewhere" for the other tokens.
        threshold: a share of the gap between the whole graph and the empty one.
        ablation: what removed edges carry; see `interp.circuits.trials.removed_edges`.
        reference: prompts whose tokens a mean is taken over, none of them evaluated.
        seed: of the other prompts in resample ablation.
        budget_gb: memory for runs in flight and for masks.
        progress: called with (circuits run, circuits in all).

    Raises:
        InterpError: an empty circuit or one of another graph, a negative threshold, unknown or
            coinciding positions, prompts of several lengths where every token is asked for, no gap,
            or as `Trials`.
    """
    if not len(circuit) or not threshold >= 0:
        raise InterpError(
            f"narrowing {circuit!r}", f"threshold {threshold}", "give edges, and 0 or more"
        )
    whole = PositionedCircuit.everywhere(circuit, places_of(positions, model, task))
    options = {"ablation": ablation, "reference": reference, "seed": seed, "budget_gb": budget_gb}
    trials = _trials(model, task, whole, **options)
    ends = trials.ends()
    check_gap(*ends)
    edges = np.argwhere(circuit.mask.T)[:, ::-1]
    here = np.argwhere(whole.mask[tuple(edges.T)])
    removed = _Removed(whole.mask, edges, here)
    values = _values(trials, removed, budget_gb, progress)
    lost = np.zeros((len(task), len(edges), len(whole.places)))
    lost[:, *here.T] = (values[0] - values[1 : 1 + len(here)]).T
    effects = EdgePlaces(
        graph=circuit.graph,
        edges=tuple(circuit.edges()),
        positions=whole.places,
        lost=lost,
        lost_whole=(values[0] - values[1 + len(here) :]).T,
        full=ends[0],
        empty=ends[1],
        protocol=f"{_protocol(trials, whole)}; each edge of {circuit.name} removed at one alone",
    )
    found = cut_to_places(effects, threshold, name=circuit.name)
    return Narrowed(circuit=found, effects=effects, threshold=threshold)


def cut_to_places(
    effects: EdgePlaces, threshold: float, *, name: str = "circuit"
) -> PositionedCircuit:
    """The edges where removing them costs |effect| >= threshold, those on no path left out.

    `effects` are those of `narrow`; see there.
    """
    graph, places = effects.graph, effects.positions
    mask = np.zeros((*graph.shape, len(places)), dtype=bool)
    rows = tuple(np.array([graph.edge(edge) for edge in effects.edges]).T)
    mask[rows] = (np.abs(effects.values) >= threshold) & allowed(graph, places)[rows]
    return PositionedCircuit(
        graph=graph, places=places, mask=mask, name=f"{name} by place",
        method=f"edges of {name} where they are worth {threshold:g} of the gap or more",
    ).connected()  # fmt: skip


@says_too_little
def narrow_curve(
    model: LanguageModel,
    find: Task,
    test: Task,
    circuit: Circuit,
    *,
    positions: Columns = "all",
    thresholds: Sequence[float] = THRESHOLDS,
    ablation: EdgeAblation = "counterfactual",
    references: tuple[Task | None, Task | None] = (None, None),
    random: int = 10,
    seed: int = 0,
    budget_gb: float = 1.0,
    progress: Progress | None = None,
) -> NarrowedCurve:
    """`narrow` on some prompts at several thresholds, each cut evaluated on others.

    Args:
        model: a model with a fast engine.
        find: prompt pairs that the effects are measured on.
        test: prompt pairs that the cuts are judged on.
        circuit: see `narrow`.
        positions: see `narrow`.
        thresholds: shares of the gap.
        ablation: what removed edges carry; see `interp.circuits.trials.removed_edges`.
        references: prompts that means are taken over, for `find` and for `test`.
        random: random circuits like each cut.
        seed: of the random circuits and of resampling.
        budget_gb: memory for runs in flight and for masks.
        progress: called with (circuits run, circuits in all), for the effects, then for the cuts.

    Raises:
        InterpError: see `narrow` and `evaluate_positioned`.
    """
    options: dict[str, Any] = {"ablation": ablation, "seed": seed, "budget_gb": budget_gb}
    options["progress"] = progress
    effects = narrow_circuit(
        model, find, circuit, positions=positions, threshold=min(thresholds),
        reference=references[0], **options,
    ).effects  # fmt: skip
    cuts = {t: cut_to_places(effects, t, name=circuit.name) for t in sorted(thresholds)}
    cuts = {threshold: cut for threshold, cut in cuts.items() if len(cut)}
    everywhere = PositionedCircuit.everywhere(circuit, effects.positions)
    judged = evaluate_positioned(
        model, test, [everywhere, *cuts.values()], reference=references[1], random=random,
        **options,
    )  # fmt: skip
    return NarrowedCurve(effects=effects, thresholds=tuple(cuts), judged=judged)


@dataclass(frozen=True)
class _Removed(Sequence[np.ndarray]):
    """A circuit's mask, then without each edge at each place, then without each edge at all."""

    whole: np.ndarray
    edges: np.ndarray
    here: np.ndarray

    def __len__(self) -> int:
        return 1 + len(self.here) + len(self.edges)

    def __getitem__(self, number: Any) -> Any:
        mask, at = self.whole.copy(), number - 1
        if 0 <= at < len(self.here):
            edge, place = self.here[at]
            mask[(*self.edges[edge], place)] = False
        elif at >= 0:
            mask[tuple(self.edges[at - len(self.here)])] = False
        return mask


def _trials(model: LanguageModel, task: Task, circuit: PositionedCircuit, **options: Any) -> Trials:
    nodes = {"expand_kv": circuit.graph.expand_kv, "neurons": circuit.graph.neurons}
    if graph_of(model, **nodes) != circuit.graph:
        raise InterpError(
            f"circuits on {model.name}",
            f"their graph is {circuit.graph}",
            "use circuits of this model",
        )
    trials = Trials(model, task, **nodes, **options)
    return trials.with_places(tokens_by_place(circuit.places, model, task))


def _protocol(trials: Trials, circuit: PositionedCircuit) -> str:
    return trials.protocol.replace("at all tokens", f"by place ({', '.join(circuit.places)})")


def _values(
    trials: Trials, masks: Sequence[np.ndarray], budget_gb: float, progress: Progress | None
) -> np.ndarray:
    """(masks, prompts) metric, a batch at a time."""
    found, said = [], progress or (lambda done, total: None)
    said(0, len(masks))
    for batch in _batches(masks, budget_gb):
        found.append(trials.values(np.stack(batch)))
        said(sum(map(len, found)), len(masks))
    return np.concatenate(found)


def _batches(masks: Sequence[np.ndarray], budget_gb: float) -> Iterator[list[np.ndarray]]:
    """As many masks as a sixteenth of the budget holds."""
    size = int(np.clip(budget_bytes(budget_gb) // 16 // masks[0].size, 1, BATCH))
    for begin in range(0, len(masks), size):
        yield [masks[i] for i in range(begin, min(begin + size, len(masks)))]
