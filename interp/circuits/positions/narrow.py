"""Circuits with token positions: where their edges are needed, and how faithful they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np

from interp.circuits.circuit import Circuit
from interp.circuits.evaluation.faithfulness import CircuitFaithfulness
from interp.circuits.positions.edge_positions import EdgePositions
from interp.circuits.positions.positioned_circuit import (
    PositionedCircuit,
    allowed,
    position_numbers,
    positions_of,
)
from interp.circuits.trials.options import EdgeAblation, TrialKeywords, TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.arguments import Columns, reads_arguments
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.records import Record
from interp.core.run_options import RunKeywords
from interp.engine.memory import budget_bytes, says_too_little
from interp.models.language_model import LanguageModel
from interp.results.provenance import provenance

BATCH = 32
THRESHOLDS = (0.002, 0.005, 0.01, 0.02, 0.05)


@dataclass(frozen=True, kw_only=True)
class PositionedEvaluation(CircuitFaithfulness):
    """The faithfulness of circuits whose edges are kept at some positions."""

    circuits: tuple[PositionedCircuit, ...]

    def __str__(self) -> str:
        sizes = [f"{one.name}, {one.n_edges} edges ({one.share:.2%})" for one in self.circuits]
        return self.in_words(sizes, "empty")


@dataclass(frozen=True, kw_only=True)
class NarrowedCircuit:
    """A circuit whose edges are kept only at the positions that need them.

    Attributes:
        circuit: the narrowed circuit.
        effects: the effect of removing each edge at each position, and at all tokens.
        threshold: the least |effect| of an edge kept at a position, as a share of the gap.
    """

    circuit: PositionedCircuit
    effects: EdgePositions
    threshold: float

    def __str__(self) -> str:
        every = PositionedCircuit.everywhere(self.circuit.anywhere(), self.circuit.positions)
        return (
            f"{self.effects.protocol}\n  {self.circuit.n_edges} positioned edges with an effect "
            f"of {self.threshold:g} or more; {every.n_edges} if the remaining edges were kept at "
            f"every position; {len(self.effects.edges)} edges before"
        )


@dataclass(frozen=True, kw_only=True)
class NarrowedCurve(Record):
    """A circuit narrowed at several thresholds, each result evaluated on other prompts.

    Attributes:
        effects: the effect of removing each edge at each position.
        thresholds: the thresholds, ascending; those that leave no path are omitted.
        judged: the circuit kept at every position, then the narrowed circuit of each threshold.
    """

    effects: EdgePositions
    thresholds: tuple[float, ...]
    judged: PositionedEvaluation

    def __str__(self) -> str:
        return f"{self.effects.protocol}\n{self.judged}"


@says_too_little
@reads_arguments
def evaluate_positioned(
    model: LanguageModel,
    task: Task,
    circuits: PositionedCircuit | Sequence[PositionedCircuit],
    *,
    random: int = 10,
    bands: int = 3,
    **run: Unpack[TrialKeywords],
) -> PositionedEvaluation:
    """The faithfulness of positioned circuits and of random ones, all run as one batch.

    At a token at which an edge is not kept, the edge carries the ablated value. If every edge is
    kept at every position, this equals `interp.circuits.faithfulness_curve` of the circuit.

    Args:
        model: a model with a fast engine.
        task: prompt pairs that have the circuits' positions. Use pairs that the circuits were not
            found on.
        circuits: circuits with the same graph and positions.
        random: random circuits per circuit, matched at every position.
        bands: number of layer bands in which their depth is matched.
        run: ablation, reference, seed, budget_gb, progress (called with circuits run, and in total)
            and cancelled; see `TrialOptions`.

    Raises:
        InterpError: no circuit, circuits of another graph or with different positions, a prompt
            that lacks a position, two names for one token, no gap, or as `Trials`.

    Equals plain loops over readers and tokens (tests/engine/test_edges.py).
    """
    some = [circuits] if isinstance(circuits, PositionedCircuit) else list(circuits)
    if not some or any(
        (one.graph, one.positions) != (some[0].graph, some[0].positions) for one in some
    ):
        raise InterpError(
            "evaluating positioned circuits",
            f"{len(some)} circuits" + (" with different graphs or positions" if some else ""),
            "give at least one, all with the same graph and positions",
        )
    options = TrialOptions(**run)
    trials = _trials(model, task, some[0], options)
    rng = np.random.default_rng(options.seed)
    drawn = [one.random_like(rng, bands=bands) for _ in range(random) for one in some]
    ends = trials.checked_ends()
    masks = [one.mask for one in [*some, *drawn]]
    values = _values(trials, masks, len(masks), masks[0].size)
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
            "evaluation = interp.circuits.evaluate_positioned(model, task, ..., "
            f"ablation={options.ablation!r}, random={random}, seed={options.seed})",
        ),
    )


@says_too_little
@reads_arguments
def narrow_circuit(
    model: LanguageModel,
    task: Task,
    circuit: Circuit,
    *,
    positions: Columns = "all",
    threshold: float = 0.01,
    **run: Unpack[TrialKeywords],
) -> NarrowedCircuit:
    """Keep each edge of a circuit only at the positions at which the circuit needs it.

        effect(u -> v, p) = mean(m(C) - m(C without u -> v at p)) / mean(m(full) - m(empty))

    An edge stays at p if |effect| is at least the threshold. Edges that then lie on no path from
    the input to the logits are dropped. Each removal is measured alone: an edge that is sufficient
    at either of two positions is dropped at both. So evaluate the result on other prompts, with
    `evaluate_positioned`. For the whole graph the effects are those of `edge_positions`.

    Args:
        model: a model with a fast engine; one run per edge, position and prompt, in batches.
        task: prompt pairs.
        circuit: the circuit, preferably connected.
        positions: names of positions, or "all" token indices of prompts of equal length. "last"
            is added, and with names "elsewhere" for all other tokens.
        threshold: a share of the gap between the whole graph and the empty one.
        run: as in `evaluate_positioned`.

    Raises:
        InterpError: an empty circuit or one of another graph, a negative threshold, unknown or
            coinciding positions, "all" positions for prompts of different lengths, no gap, or as
            `Trials`.
    """
    if not len(circuit) or not threshold >= 0:
        raise InterpError(
            f"narrowing {circuit!r}",
            f"threshold {threshold}",
            "give edges, and a threshold of 0 or more",
        )
    whole = PositionedCircuit.everywhere(circuit, positions_of(positions, model, task))
    trials = _trials(model, task, whole, TrialOptions(**run))
    ends = trials.checked_ends()
    edges = np.argwhere(circuit.mask.T)[:, ::-1]
    here = np.argwhere(whole.mask[tuple(edges.T)])
    masks = _removals(whole.mask, edges, here)
    values = _values(trials, masks, 1 + len(here) + len(edges), whole.mask.size)
    lost = np.zeros((len(task), len(edges), len(whole.positions)))
    lost[:, *here.T] = (values[0] - values[1 : 1 + len(here)]).T
    effects = EdgePositions(
        graph=circuit.graph,
        edges=tuple(circuit.edges()),
        positions=whole.positions,
        lost=lost,
        lost_whole=(values[0] - values[1 + len(here) :]).T,
        full=ends[0],
        empty=ends[1],
        protocol=f"{_protocol(trials, whole)}; each edge of {circuit.name} removed at one position",
    )
    found = cut_to_positions(effects, threshold, name=circuit.name)
    return NarrowedCircuit(circuit=found, effects=effects, threshold=threshold)


def cut_to_positions(
    effects: EdgePositions, threshold: float, *, name: str = "circuit"
) -> PositionedCircuit:
    """Keep the edges at the positions with |effect| >= threshold, and drop those on no path.

    `effects` are those of `narrow_circuit`.
    """
    graph, positions = effects.graph, effects.positions
    mask = np.zeros((*graph.shape, len(positions)), dtype=bool)
    rows = tuple(np.array([graph.edge(edge) for edge in effects.edges]).T)
    mask[rows] = (np.abs(effects.values) >= threshold) & allowed(graph, positions)[rows]
    return PositionedCircuit(
        graph=graph, positions=positions, mask=mask, name=f"{name} by position",
        method=f"edges of {name} where their effect is at least {threshold:g} of the gap",
    ).connected()  # fmt: skip


@says_too_little
@reads_arguments
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
    **run: Unpack[RunKeywords],
) -> NarrowedCurve:
    """`narrow_circuit` at several thresholds on some prompts, each result evaluated on others.

    Args:
        model: a model with a fast engine.
        find: prompt pairs on which the effects are measured.
        test: prompt pairs on which the narrowed circuits are evaluated.
        circuit: see `narrow_circuit`.
        positions: see `narrow_circuit`.
        thresholds: shares of the gap.
        ablation: what removed edges carry, see `TrialOptions`.
        references: prompts that means are taken over, for `find` and for `test`.
        random: random circuits per narrowed circuit.
        seed: seed of the random circuits and of resampling.
        run: budget_gb; progress, called with (circuits run, circuits in total), first for the
            effects, then for the evaluation; cancelled.

    Raises:
        InterpError: see `narrow_circuit` and `evaluate_positioned`.
    """
    trials: TrialKeywords = {"ablation": ablation, "seed": seed, **run}
    effects = narrow_circuit(
        model, find, circuit, positions=positions, threshold=min(thresholds),
        **{**trials, "reference": references[0]},
    ).effects  # fmt: skip
    cuts = {t: cut_to_positions(effects, t, name=circuit.name) for t in sorted(thresholds)}
    cuts = {threshold: cut for threshold, cut in cuts.items() if len(cut)}
    everywhere = PositionedCircuit.everywhere(circuit, effects.positions)
    judged = evaluate_positioned(
        model, test, [everywhere, *cuts.values()], random=random,
        **{**trials, "reference": references[1]},
    )  # fmt: skip
    if circuit.provenance is not None:  # how the circuit was found, too
        code = (
            f"{circuit.provenance.call}\nfind = task\ntask = {test.source or 'own_task'}\n"
            f"curve = interp.circuits.narrow_curve(model, find, task, ...,  # {circuit.name}\n"
            f"    positions={positions!r}, ablation={ablation!r}, random={random}, seed={seed})"
        )
        judged = replace(judged, provenance=replace(judged.provenance, call=code))
    return NarrowedCurve(effects=effects, thresholds=tuple(cuts), judged=judged)


def _removals(whole: np.ndarray, edges: np.ndarray, here: np.ndarray) -> Iterator[np.ndarray]:
    """A circuit's mask; then one without each edge at each position; then one without each edge."""
    yield whole
    for at in (*((*edges[edge], position) for edge, position in here), *map(tuple, edges)):
        mask = whole.copy()
        mask[at] = False
        yield mask


def _trials(
    model: LanguageModel, task: Task, circuit: PositionedCircuit, options: TrialOptions
) -> Trials:
    trials = Trials(model, task, options.of_graph(circuit.graph))
    trials.require_graph([circuit])
    return trials.with_positions(position_numbers(circuit.positions, model, task))


def _protocol(trials: Trials, circuit: PositionedCircuit) -> str:
    return trials.protocol.replace("at all tokens", f"by position ({', '.join(circuit.positions)})")


def _values(trials: Trials, masks: Iterable[np.ndarray], total: int, mask_bytes: int) -> np.ndarray:
    """(masks, prompts) metric, in batches of masks that fit a sixteenth of the budget."""
    if trials.options.progress is not None:
        trials.options.progress(0, total)
    fitting = budget_bytes(trials.options.budget_gb) // 16 // mask_bytes
    return trials.in_batches(masks, int(np.clip(fitting, 1, BATCH)), total)
