"""ACDC: edges are tested one after another, each in the circuit that remains so far.

A batch of candidates is evaluated under a guess about each decision. Results after a wrong guess
are discarded, so the decisions equal those of the plain loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Unpack

import numpy as np

from interp.circuits.ranking import Scored
from interp.circuits.trials.options import GraphKeywords, TrialOptions
from interp.circuits.trials.trials import CircuitRunner, Trials, forward_equivalents, mean_gap
from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.core.records import Record
from interp.core.run_options import Progress
from interp.engine.edges.graph import Graph
from interp.engine.memory import says_too_little
from interp.engine.resume import NO_CHUNKS, Chunks
from interp.models.language_model import LanguageModel
from interp.results.keys import result_key
from interp.results.store import chunks_of, drop
from interp.runs.pairs import PatchDirection

VERSION = 2
Order = Literal["reverse", "forward"]
EdgeIndex = tuple[int, int]
LEAST = 16
"""The smallest number of candidates in a batch, if enough are left and `batch` allows it."""


@dataclass(frozen=True, kw_only=True)
class Acdc(Record):
    """The circuit that ACDC keeps, the effect of every edge, and the cost of the search.

    Attributes:
        graph: the graph.
        mask: (writers, readers) bool: the edges kept.
        effects: (writers, readers) metric lost when the edge was tested, as a share of the gap
            between the whole graph and the empty one; 0 for edges removed without a test.
        threshold: the least effect of a kept edge.
        order: the order in which edges were tested.
        absolute: whether edges were also kept for a gain of the metric.
        full: mean metric of the whole graph (when denoising, of the corrupted run).
        empty: mean metric of the empty graph (when denoising, of the clean run).
        circuit: mean metric of the circuit.
        calls: batched runs. The plain loop takes `graph.n_edges`.
        tests: candidates evaluated.
        decided: candidates whose result was used.
        skipped: edges removed without a test because they could not matter.
        forwards: forward passes, see `Trials`. The plain loop takes `graph.n_edges`.
        protocol: what was measured, in words.
    """

    graph: Graph
    mask: np.ndarray
    effects: np.ndarray
    threshold: float
    order: Order
    absolute: bool
    full: float
    empty: float
    circuit: float
    calls: int
    tests: int
    decided: int
    skipped: int
    forwards: float
    protocol: str

    @property
    def signed(self) -> np.ndarray:
        """The effects, from which `top_edges` selects a circuit of another size."""
        return self.effects

    def __str__(self) -> str:
        kept, edges = int(self.mask.sum()), self.graph.n_edges
        share = (self.circuit - self.empty) / (self.full - self.empty)
        rule = "a loss or a gain" if self.absolute else "a loss, as published"
        return (
            f"ACDC keeps {kept} of {edges} edges, which reach {share:z.3f} of the gap (threshold "
            f"{self.threshold:g} of the gap for {rule}; {self.order} order); "
            f"{self.calls} calls for {edges} edges ({edges / self.calls:z.1f} times fewer), "
            f"{self.forwards:z.1f} forward passes ({edges / self.forwards:z.1f} times fewer), "
            f"{self.skipped} edges removed without a test; {self.protocol}"
        )


@says_too_little
@reads_arguments
def acdc(
    model: LanguageModel,
    task: Task,
    *,
    threshold: float,
    direction: PatchDirection = "noise",
    order: Order = "reverse",
    absolute: bool = False,
    batch: int = 64,
    guide: Scored | None = None,
    resume: bool = True,
    workers: int = 0,
    **run: Unpack[GraphKeywords],
) -> Acdc:
    """Prune the graph edge by edge (ACDC).

    Starting from the whole graph, each edge in turn is removed permanently if

        mean over prompts of (m(circuit so far) - m(circuit so far without it)) < threshold * gap

    with gap = mean(m(whole graph) - m(empty graph)). With the metric `kl` this is the paper's rule.

    Direction: "noise", as in the paper, starts from the clean run and finds edges that must carry
    it. "denoise" exchanges the two runs: it starts from the corrupted run, removed edges carry the
    clean run, and edges are kept that would restore the behaviour. For an OR gate, noising keeps
    one input and denoising keeps all; for an AND gate the reverse (arXiv 2404.15255). In both
    directions a positive effect supports the behaviour.

    Order: "reverse" tests readers from the logits back, and for each reader its writers from the
    latest back. "forward" starts from the input. The result depends on the order. Queries, keys
    and values of a layer are separate readers, in the order of `graph.readers`.

    Departs from the paper: the threshold is relative to the gap. Edges that cannot matter are
    removed without a test: those whose reader no longer leads to the logits, and, under
    counterfactual and resample ablation, those whose writer no longer receives the input (it then
    writes exactly what the removed edge would carry).

    Args:
        model: a model with a fast engine.
        task: prompt pairs; each decision uses all of them, not one batch.
        threshold: share of the gap, above 0.
        direction: "noise" or "denoise", see above.
        order: "reverse" or "forward", see above.
        absolute: also keep an edge if its removal raises the metric by the threshold or more.
        batch: the most candidates evaluated together; 1 is the plain loop.
        guide: scores as shares of the gap, e.g. of EAP. Edges with at least the threshold are
            expected to stay. The guide changes the cost, not the result.
        resume: store finished batches in the cache until the end, and resume from them.
        workers: processes that share the prompts of every batch of candidates, as in
            `interp.attribution_patching`; 0 computes in this one. Not for resample ablation.
        run: ablation ("counterfactual" when denoising), reference, expand_kv, seed, budget_gb,
            progress (called with edges decided, and in total) and cancelled; see `TrialOptions`.

    Raises:
        InterpError: a threshold or batch out of range, an unknown order, a guide for another
            graph, no gap, or as `Trials`.

    Source: Conmy et al. 2023, arXiv 2304.14997.
    """
    options = TrialOptions(direction=direction, workers=workers, **run)
    trials = Trials(model, task, options)
    rule = {"threshold": threshold, "order": order, "absolute": absolute, "batch": batch}
    key = result_key(
        "acdc",
        VERSION,
        model,
        task,
        **rule,
        ablation=options.ablation,
        direction=direction,
        guide=None if guide is None else np.asarray(guide.signed),
        reference=options.reference,
        expand_kv=trials.graph.expand_kv,
        seed=options.seed,
    )
    with chunks_of(key if resume else None) as chunks:
        found = prune(trials, **rule, guide=guide, chunks=chunks, progress=options.progress)
        drop(chunks)
    return replace(found, protocol=trials.protocol)


def prune(
    judge: CircuitRunner,
    *,
    threshold: float,
    order: Order = "reverse",
    absolute: bool = False,
    batch: int = 64,
    guide: Scored | None = None,
    chunks: Chunks = NO_CHUNKS,
    progress: Progress | None = None,
) -> Acdc:
    """`acdc` on anything that can run circuits; `chunks` stores finished batches."""
    if threshold <= 0 or batch < 1:
        raise InterpError(
            f"ACDC with threshold {threshold} and batch {batch}",
            "out of range",
            "give a threshold above 0 and a batch of at least 1",
        )
    if order not in ("reverse", "forward"):
        raise unknown("order", order, ("reverse", "forward"))
    graph = judge.graph
    if guide is not None and guide.graph != graph:
        raise InterpError("a guide for ACDC", "scores of another graph", "score the same graph")
    pruning = _Pruning(
        judge=judge,
        edges=visits(graph, order),
        threshold=threshold,
        absolute=absolute,
        batch=batch,
        chunks=chunks,
    )
    if guide is not None:
        pruning.expected |= pruning.keeps(np.asarray(guide.signed, dtype=float))
    while pruning.at < graph.n_edges:
        pruning.round()
        if progress is not None:
            progress(pruning.at, graph.n_edges)
    return Acdc(
        graph=graph,
        mask=pruning.mask,
        effects=pruning.effects,
        threshold=threshold,
        order=order,
        absolute=absolute,
        full=float(pruning.ends[0]),
        empty=float(pruning.ends[1]),
        circuit=pruning.current,
        calls=pruning.calls,
        tests=pruning.tests,
        decided=pruning.decided,
        skipped=graph.n_edges - pruning.decided,
        forwards=pruning.forwards,
        protocol="",
    )


def visits(graph: Graph, order: Order) -> list[EdgeIndex]:
    """Every edge as (writer, reader), in the order in which ACDC tests them."""
    step = -1 if order == "reverse" else 1
    return [
        (int(writer), reader)
        for reader in range(len(graph.readers))[::step]
        for writer in np.flatnonzero(graph.allowed[:, reader])[::step]
    ]


@dataclass(kw_only=True)
class _Pruning:
    """The state of ACDC: the circuit so far, and the expected decisions on later edges."""

    judge: CircuitRunner
    edges: list[EdgeIndex]
    threshold: float
    absolute: bool
    batch: int
    chunks: Chunks
    at: int = 0
    calls: int = 0
    tests: int = 0
    decided: int = 0
    forwards: float = 0.0

    def __post_init__(self) -> None:
        self.mask = self.judge.graph.mask()
        self.expected = np.zeros_like(self.mask)
        self.effects = np.zeros(self.mask.shape)
        self.size = self.batch
        ends = self._values([self.mask, np.zeros_like(self.mask)])
        self.gap = mean_gap(ends)
        self.ends = ends.mean(1)
        self.current = float(self.ends[0])

    def keeps(self, effects: np.ndarray) -> np.ndarray:
        """Whether edges with these effects are kept."""
        return (np.abs(effects) if self.absolute else effects) >= self.threshold

    def round(self) -> None:
        """Evaluate a batch of candidates, and decide edges up to the first wrong guess."""
        plan = self._plan()
        candidates = [candidate for _, candidate in plan if candidate is not None]
        means = iter(self._values(candidates).mean(1).tolist()) if candidates else iter(())
        valid, before, decided = True, self.current, self.decided
        for edge, candidate in plan:
            if candidate is None:
                if valid:
                    self.mask[edge] = False
                    self.at += 1
                continue
            after, guess = next(means), bool(self.expected[edge])
            effect = (before - after) / self.gap
            keep = bool(self.keeps(np.array(effect)))
            if valid:
                self.effects[edge], self.mask[edge] = effect, keep
                self.current = before if keep else after
                self.at, self.decided = self.at + 1, self.decided + 1
                valid = keep == guess
            else:  # measured in a circuit that ACDC never has: no decision, but a better guess
                self.expected[edge] = keep
            before = before if guess else after
        # Results after a wrong guess are lost: shrink the batch, then let it grow again.
        right = self.decided - decided
        self.size = min(self.batch, max(LEAST, 2 * right))

    def _plan(self) -> list[tuple[EdgeIndex, np.ndarray | None]]:
        """The next edges, each with the candidate circuit that decides it if all guesses hold.

        None in place of the circuit if the edge cannot matter.
        """
        mask, plan, count = self.mask.copy(), [], 0
        reader, alive = -1, np.zeros(0, dtype=bool)
        for edge in self.edges[self.at :]:
            if edge[1] != reader:
                reader, alive = edge[1], _alive(self.judge, mask, edge[1])
            candidate = mask.copy()
            candidate[edge] = False
            if not alive[edge[0]]:
                mask = candidate
                plan.append((edge, None))
                continue
            if count == self.size:
                break
            plan.append((edge, candidate))
            count += 1
            if not self.expected[edge]:
                mask = candidate
        return plan

    def _values(self, candidates: list[np.ndarray]) -> np.ndarray:
        """(candidates, prompts) metric, from the cache if this batch was run before."""
        masks = np.stack(candidates)
        number = self.calls
        self.calls, self.tests = self.calls + 1, self.tests + len(masks)
        self.forwards += forward_equivalents(self.judge.graph, masks)
        return self.chunks.once(number, len(masks), lambda: self.judge.values(masks), of=masks)


def _alive(judge: CircuitRunner, mask: np.ndarray, reader: int) -> np.ndarray:
    """(writers,) bool: whether an edge from each writer into a reader can matter in a circuit.

    The reader must have a path to the logits. If a writer without inputs writes what a removed edge
    carries, the writer must also have a path from the input. Neither depends on the reader's edges.
    """
    graph = judge.graph
    if not graph.useful(mask)[reader]:
        return np.zeros(len(graph.writers), dtype=bool)
    return graph.reached(mask) if judge.exact else np.ones(len(graph.writers), dtype=bool)
