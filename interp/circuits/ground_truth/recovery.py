"""Ground truth for edges, and how many true edges each method finds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.acdc import Order, acdc
from interp.circuits.discovery.learned_masks import learn_mask
from interp.circuits.ranking import top_edges
from interp.circuits.scoring.score_edges import FLOW, METHODS, score_edges
from interp.circuits.trials.options import GraphKeywords, TrialKeywords, TrialOptions
from interp.circuits.trials.trials import Trials, mean_gap
from interp.core.arguments import listed, reads_arguments
from interp.core.components import SITES, Component
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine.edges.graph import Graph
from interp.engine.memory import says_too_little
from interp.engine.stopping import Cancelled
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled

if TYPE_CHECKING:
    import pandas as pd

ORDERS: dict[str, Order] = {"ACDC": "reverse", "ACDC-forward": "forward"}
SEARCHES = ("random", *(name for name in METHODS if name != "exact"), *ORDERS, "learned-mask")
"""The methods that `recover_edges` can test."""


@dataclass(frozen=True, kw_only=True)
class EdgeGroundTruth(Record):
    """The edges whose removal, one at a time, changes the metric: ground truth by brute force.

    Edges that are redundant with others (OR gates) are not found; see `redundancy`. The ground
    truth depends on the ablation, which `protocol` names.

    Attributes:
        graph: the graph.
        mask: (writers, readers) bool: edges with an absolute effect above the tolerance.
        signed: (writers, readers) mean effect as a share of the gap, positive for edges that
            support the behaviour.
        absolute: (writers, readers) mean absolute effect over prompts.
        tolerance: see `mask`.
        protocol: what was measured, in words.
    """

    graph: Graph
    mask: np.ndarray
    signed: np.ndarray
    absolute: np.ndarray
    tolerance: float
    protocol: str

    @property
    def circuit(self) -> Circuit:
        """The true edges as a `Circuit`."""
        return Circuit(
            graph=self.graph,
            mask=self.mask,
            scores=self.signed,
            name="ground truth",
            method=f"each edge removed alone, effect above {self.tolerance:g} of the gap",
        )


@dataclass(frozen=True, kw_only=True)
class MethodRecovery:
    """How well one method recovers the ground truth; nan without a result.

    Attributes:
        method: the method.
        edges: number of edges it found.
        precision: share of the found edges that are true.
        recall: share of the true edges that were found.
        auroc: probability that it ranks a true edge above a false one.
        share: what the found circuit reaches, as a share of the gap.
        node_precision: precision of heads and MLPs, against the planted ones.
        node_recall: recall of heads and MLPs.
        note: why the method gave no result, if it did not.
    """

    method: str
    edges: int = 0
    precision: float = math.nan
    recall: float = math.nan
    auroc: float = math.nan
    share: float = math.nan
    node_precision: float = math.nan
    node_recall: float = math.nan
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Recovery(Tabled, Record):
    """All methods compared with one ground truth.

    Attributes:
        name: the task.
        truth: number of true edges.
        of: number of edges of the graph.
        found: the result of every method.
        protocol: what was measured, in words.
    """

    name: str
    truth: int
    of: int
    found: tuple[MethodRecovery, ...]
    protocol: str

    def to_dataframe(self) -> pd.DataFrame:
        """One row per method."""
        import pandas as pd

        return pd.DataFrame([{"task": self.name, **asdict(one)} for one in self.found])

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.truth} of {self.of} edges matter ({self.protocol})",
            f"  {'method':24} {'edges':>5} {'prec.':>6} {'recall':>6} {'AUROC':>6} {'share':>6}",
        ]
        for one in self.found:
            numbers = (one.precision, one.recall, one.auroc, one.share)
            shown = " ".join(f"{x:z6.2f}" for x in numbers)
            lines.append(f"  {one.method:24} {one.edges:5} {shown}  {one.note}".rstrip())
        return "\n".join(lines)

    def of_method(self, method: str) -> MethodRecovery:
        """The result of one method.

        Raises:
            InterpError: it was not tested.
        """
        named = {one.method: one for one in self.found}
        if method not in named:
            raise unknown("method", method, named)
        return named[method]


@says_too_little
@reads_arguments
def edge_ground_truth(
    model: LanguageModel,
    task: Task,
    *,
    tolerance: float = 0.01,
    **run: Unpack[GraphKeywords],
) -> EdgeGroundTruth:
    """Remove each edge of the graph alone, and measure whether the metric changes.

        effect(e) = mean (m(whole) - m(whole without e)) / mean (m(whole) - m(empty))

    Args:
        model: a model with a fast engine; one run per edge and prompt, in batches.
        task: prompt pairs.
        tolerance: mean absolute effect, as a share of the gap, above which an edge is true.
        run: ablation, reference, expand_kv, seed, budget_gb, progress (called with prompts done,
            and in total) and cancelled; see `TrialOptions`.

    Raises:
        InterpError: as `Trials` and `score_edges`, or no gap.

    The effects are those of `score_edges(method="exact")`, divided by another gap.
    """
    trials = Trials(model, task, TrialOptions(**run))
    gap = mean_gap(trials.ends())
    scores = score_edges(model, task, method="exact", **run)
    scale = scores.gap / gap  # in zero and mean ablation the empty graph is not the corrupted run
    absolute = scores.absolute * abs(scale)
    return EdgeGroundTruth(
        graph=scores.graph,
        mask=absolute > tolerance,
        signed=scores.signed * scale,
        absolute=absolute,
        tolerance=tolerance,
        protocol=trials.protocol,
    )


@says_too_little
@reads_arguments
def recover_edges(
    model: LanguageModel,
    task: Task,
    *,
    truth: EdgeGroundTruth | Circuit | None = None,
    planted: Iterable[str] | None = None,
    methods: Sequence[str] = SEARCHES,
    threshold: float = 0.02,
    steps: int = 100,
    **run: Unpack[TrialKeywords],
) -> Recovery:
    """Run methods on a task whose circuit is known, and measure what they find.

    Scoring methods are given the number of true edges: their circuit is that of `top_edges`, so
    precision and recall fall together. ACDC and the learned mask choose their own size. "random"
    is the expected result of a random ranking.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        truth: the ground truth; by default `edge_ground_truth`.
        planted: labels of planted components (L0H1, L1N3, L1.mlp_out; a neuron counts as its MLP),
            for precision and recall of nodes.
        methods: methods, from `SEARCHES`.
        threshold: ACDC's threshold.
        steps: training steps of the learned mask.
        run: ablation, reference, seed, budget_gb (all of them for every method), progress (called
            with methods done, and in total) and cancelled; see `TrialOptions`.

    Raises:
        InterpError: an unknown method, or a ground truth that is empty or of another graph. If a
            method refuses the task, its result has a note with the reason.
    """
    methods = listed(methods)
    for method in methods:
        if method not in SEARCHES:
            raise unknown("method", method, SEARCHES)
    options = TrialOptions(**run)
    each: TrialKeywords = {**run, "progress": None}
    truth = edge_ground_truth(model, task, **each) if truth is None else truth
    trials = Trials(model, task, options)
    graph, key, size = trials.graph, truth.mask, int(truth.mask.sum())
    if truth.graph != graph or not size:
        raise InterpError(
            f"recovery on {task.name}",
            "the ground truth is empty, or of another graph",
            "use a task with a gap, native key/value heads and whole MLPs",
        )
    ends = trials.ends()
    gap = mean_gap(ends)
    nodes = None if planted is None else _nodes(graph, planted)

    def searched(method: str) -> tuple[np.ndarray, np.ndarray]:
        """The method's circuit, and its score of every edge."""
        if method in ORDERS:
            rule = {"threshold": threshold, "order": ORDERS[method], "absolute": True}
            pruned = acdc(model, task, **rule, resume=False, **each)
            return pruned.mask, np.abs(pruned.effects)
        if method == "learned-mask":
            learned = learn_mask(model, task, steps=steps, lr=0.2, **each)
            return learned.mask, learned.signed
        unused = ("ablation", "reference") if method == FLOW else ()
        used: Any = {name: value for name, value in each.items() if name not in unused}
        scores = score_edges(model, task, method=method, **used)
        return top_edges(scores, size), np.abs(scores.signed)

    def judged(method: str) -> MethodRecovery:
        if method == "random":
            share, note = size / graph.n_edges, "expected from a random ranking"
            return MethodRecovery(
                method=method, edges=size, precision=share, recall=share, auroc=0.5, note=note
            )
        try:
            mask, ranking = searched(method)
        except Cancelled:
            raise
        except InterpError as refusal:
            return MethodRecovery(method=method, note=f"{refusal.asked}: {refusal.found}")
        precision, recall = _hits(mask, key)
        on_nodes = (math.nan, math.nan)
        if nodes is not None:
            on_nodes = _hits(Circuit(graph=graph, mask=mask).writers[1:], nodes[1:])
        return MethodRecovery(
            method=method,
            edges=int(mask.sum()),
            precision=precision,
            recall=recall,
            auroc=_auroc(ranking[graph.allowed], key[graph.allowed]),
            share=float((trials.values(mask[None])[0] - ends[1]).mean()) / gap,
            node_precision=on_nodes[0],
            node_recall=on_nodes[1],
        )

    found = []
    for method in methods:
        found.append(judged(method))
        if options.progress is not None:
            options.progress(len(found), len(methods))
    return Recovery(
        name=task.name,
        truth=size,
        of=graph.n_edges,
        found=tuple(found),
        protocol=trials.protocol,
    )


def _hits(found: np.ndarray, key: np.ndarray) -> tuple[float, float]:
    """Precision and recall; precision is nan if nothing was found."""
    both, size = int((found & key).sum()), int(found.sum())
    return both / size if size else math.nan, both / int(key.sum())


def _auroc(ranking: np.ndarray, key: np.ndarray) -> float:
    """Probability that a true edge ranks above a false one; ties count half."""
    from scipy.stats import rankdata

    true, false = int(key.sum()), int((~key).sum())
    if not false:
        return math.nan
    ranks = rankdata(ranking)[key].sum()
    return float((ranks - true * (true + 1) / 2) / (true * false))


def _nodes(graph: Graph, planted: Iterable[str]) -> np.ndarray:
    """(writers,) bool: the planted components."""
    chosen = np.zeros(len(graph.writers), dtype=bool)
    for label in listed(planted):
        part = Component.parse(label)
        whole = Component(part.layer, "mlp_out") if SITES[part.site] == "neuron" else part
        chosen[graph.writer(str(whole))] = True
    return chosen
