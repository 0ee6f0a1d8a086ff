"""ACDC: edges are removed one after another, each judged in the circuit that is left so far.

Batches of candidates are evaluated on the guess that each will go the way that is expected of it;
what follows a wrong guess is thrown away, so the decisions are those of the plain loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from interp.circuits.ranking import Scored
from interp.circuits.trials.removed_edges import EdgeAblation
from interp.circuits.trials.trials import CircuitRunner, Trials, forward_equivalents, mean_gap
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine.edges.graph import Graph
from interp.engine.memory import says_too_little
from interp.engine.readout import Progress
from interp.engine.resume import NO_CHUNKS, Chunks
from interp.models.language_model import LanguageModel
from interp.results.keys import result_key
from interp.results.store import chunks_of, drop
from interp.runs.pairs import PatchDirection

VERSION = 2
Order = Literal["reverse", "forward"]
Edge = tuple[int, int]
LEAST = 16
"""Candidates evaluated together at least, if so many are left and `batch` allows."""


@dataclass(frozen=True, kw_only=True)
class Acdc(Record):
    """The circuit ACDC leaves, how each edge was decided, and what that took.

    effects: (writers, readers), what removing the edge cost when its turn came, as a share of the
    gap between the whole graph and the empty one; 0 where it was removed unmeasured because it
    could not matter. absolute: whether changes either way kept an edge. full, empty, circuit: mean
    metric (of a denoising search the whole graph is the corrupted run, the empty one the clean).
    tests: candidates evaluated; decided: those whose outcome counted; skipped: edges removed
    unmeasured; calls: batched runs; forwards: see `Trials`. The plain loop takes `graph.n_edges`
    calls and as many forwards.
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
        """The effects, so that a circuit of another size can be read off by `top_edges`."""
        return self.effects

    def __str__(self) -> str:
        kept, edges = int(self.mask.sum()), self.graph.n_edges
        share = (self.circuit - self.empty) / (self.full - self.empty)
        rule = "kept for a change either way" if self.absolute else "kept for a loss, as published"
        return (
            f"ACDC keeps {kept} of {edges} edges, {share:.3f} of the gap (threshold "
            f"{self.threshold:g} of it, {rule}, {self.order} order); "
            f"{self.calls} calls for {edges} edges ({edges / self.calls:.1f} times fewer), "
            f"{self.forwards:.1f} forwards ({edges / self.forwards:.1f} times fewer), "
            f"{self.skipped} skipped; {self.protocol}"
        )


@says_too_little
def acdc(
    model: LanguageModel,
    task: Task,
    *,
    threshold: float,
    ablation: EdgeAblation = "counterfactual",
    direction: PatchDirection = "noise",
    order: Order = "reverse",
    absolute: bool = False,
    batch: int = 64,
    guide: Scored | None = None,
    reference: Task | None = None,
    expand_kv: bool = False,
    seed: int = 0,
    budget_gb: float = 1.0,
    resume: bool = True,
    progress: Progress | None = None,
) -> Acdc:
    """Prune the graph edge by edge.

    Starting from the whole graph, each edge in turn is removed for good if

        mean over prompts of (m(circuit so far) - m(circuit so far without it)) < threshold * gap

    with gap = mean(m(whole graph) - m(empty graph)). With the metric `kl` this is the paper's rule.

    Direction: "noise", the paper's, starts from the clean run and asks which edges must carry it.
    "denoise" is the same loop with the two runs exchanged: it starts from the corrupted run, an
    edge that is removed carries the clean run's value from then on, and those stay that would
    repair the behaviour. Of an OR gate noising keeps one input and denoising all; of an AND gate
    noising keeps all and denoising one (arXiv 2404.15255). An effect is positive where the edge
    supports the behaviour, either way.

    Order: "reverse" visits readers from the logits back and the writers of each from the latest
    back; "forward" goes from the input up. Results depend on it. Queries, keys and values of a
    layer are readers of their own, in the order of `graph.readers`.

    Departures: an edge that cannot matter, because its reader no longer leads to the logits or its
    writer no longer hears of the input (counterfactual and resample ablation: it then writes what
    the removed edge would carry), is removed unmeasured; the threshold is relative to the gap.

    Args:
        model: a model with a fast engine.
        task: prompt pairs; all of them, not one batch, decide each edge.
        threshold: share of the gap, above 0.
        ablation: see `Trials`; "counterfactual" where denoising.
        direction: "noise" or "denoise", see above.
        order: see above.
        absolute: keep an edge whose removal changes the metric by the threshold either way.
        batch: candidates evaluated together at most; 1 is the plain loop.
        guide: scores in shares of the gap, e.g. of EAP: edges of at least the threshold are
            expected to stay. They change the cost, not the result.
        reference: prompts for mean ablation.
        expand_kv: key and value readers per query head.
        seed: of the other prompts in resample ablation.
        budget_gb: memory for runs in flight.
        resume: keep finished batches in the cache until the end, and start from them.
        progress: called with (edges decided, edges in all).

    Raises:
        InterpError: a threshold or batch out of range, an unknown order, a guide for another
            graph, no gap, or as `Trials`.
    """
    trials = Trials(
        model,
        task,
        ablation=ablation,
        direction=direction,
        reference=reference,
        expand_kv=expand_kv,
        budget_gb=budget_gb,
        seed=seed,
    )
    options = {"threshold": threshold, "order": order, "absolute": absolute, "batch": batch}
    key = result_key(
        "acdc",
        VERSION,
        model,
        task,
        **options,
        ablation=ablation,
        direction=direction,
        guide=None if guide is None else np.asarray(guide.signed),
        reference=reference,
        expand_kv=trials.graph.expand_kv,
        seed=seed,
    )
    with chunks_of(key if resume else None) as chunks:
        found = prune(
            trials,
            **options,
            guide=guide,
            protocol=trials.protocol,
            chunks=chunks,
            progress=progress,
        )
        drop(chunks)
    return found


def prune(
    judge: CircuitRunner,
    *,
    threshold: float,
    order: Order = "reverse",
    absolute: bool = False,
    batch: int = 64,
    guide: Scored | None = None,
    protocol: str = "",
    chunks: Chunks = NO_CHUNKS,
    progress: Progress | None = None,
) -> Acdc:
    """`acdc` on anything that can judge circuits; `chunks` is where batches are kept."""
    if threshold <= 0 or batch < 1:
        raise InterpError(
            f"ACDC with threshold {threshold} and batch {batch}",
            "a threshold keeps an edge that costs more; batches hold edges",
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
        protocol=protocol,
    )


def visits(graph: Graph, order: Order) -> list[Edge]:
    """Every edge as (writer, reader), in the order in which ACDC judges them."""
    step = -1 if order == "reverse" else 1
    return [
        (int(writer), reader)
        for reader in range(len(graph.readers))[::step]
        for writer in np.flatnonzero(graph.allowed[:, reader])[::step]
    ]


@dataclass(kw_only=True)
class _Pruning:
    """ACDC under way: the circuit so far, and what is expected of the edges to come."""

    judge: CircuitRunner
    edges: list[Edge]
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
        """Whether edges of these effects stay."""
        return (np.abs(effects) if self.absolute else effects) >= self.threshold

    def round(self) -> None:
        """Evaluate a batch of candidates, and decide as far as the guesses were right."""
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
            else:  # measured in a circuit that never was: no decision, but a better guess
                self.expected[edge] = keep
            before = before if guess else after
        # After a wrong guess the rest was in vain: ask for less, then for more again.
        right = self.decided - decided
        self.size = min(self.batch, max(LEAST, 2 * right))

    def _plan(self) -> list[tuple[Edge, np.ndarray | None]]:
        """The next edges, each with the circuit that decides it if all guesses before are right.

        None for an edge that cannot matter then.
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
        """(candidates, prompts) metric values, from the cache if this batch was done before."""
        masks = np.stack(candidates)
        number = self.calls
        self.calls, self.tests = self.calls + 1, self.tests + len(masks)
        self.forwards += forward_equivalents(self.judge.graph, masks)
        return self.chunks.once(number, len(masks), lambda: self.judge.values(masks), of=masks)


def _alive(judge: CircuitRunner, mask: np.ndarray, reader: int) -> np.ndarray:
    """(writers,) whether an edge into a reader can matter in a circuit.

    The reader must lead to the logits. Where a writer without inputs writes what a removed edge
    carries, the input must lead to the writer. Neither depends on the reader's own edges.
    """
    graph = judge.graph
    if not graph.useful(mask)[reader]:
        return np.zeros(len(graph.writers), dtype=bool)
    return graph.reached(mask) if judge.exact else np.ones(len(graph.writers), dtype=bool)
