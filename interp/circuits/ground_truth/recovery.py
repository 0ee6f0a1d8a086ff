"""Which edges truly matter, and how many of them each method finds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.acdc import Order, acdc
from interp.circuits.discovery.learned_masks import learn_mask
from interp.circuits.ranking import top_edges
from interp.circuits.scoring.score_edges import METHODS, score_edges
from interp.circuits.trials.removed_edges import EdgeAblation
from interp.circuits.trials.trials import Trials, mean_gap
from interp.core.arguments import listed
from interp.core.components import SITES, Component
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine.edges.graph import Graph
from interp.models.language_model import LanguageModel

if TYPE_CHECKING:
    import pandas as pd

ORDERS: dict[str, Order] = {"ACDC": "reverse", "ACDC-forward": "forward"}
SEARCHES = ("random", *(name for name in METHODS if name != "exact"), *ORDERS, "learnt-mask")
"""What `recover` can put to the test."""


class _Shared(TypedDict):
    """What every run of a comparison has in common."""

    ablation: EdgeAblation
    reference: Task | None
    seed: int
    budget_gb: float


@dataclass(frozen=True, kw_only=True)
class Truth(Record):
    """Edges whose removal, each alone, changes the metric: the answer key by brute force.

    signed, absolute: (writers, readers) mean and mean absolute effect in shares of the gap,
    positive where the edge supports the behaviour. mask: absolute effect above the tolerance.
    Edges that stand in for each other (OR gates) are not in it: see `redundancy`. The key depends
    on the ablation, which is in the protocol.
    """

    graph: Graph
    mask: np.ndarray
    signed: np.ndarray
    absolute: np.ndarray
    tolerance: float
    protocol: str

    @property
    def circuit(self) -> Circuit:
        """The same as a `Circuit`."""
        return Circuit(
            graph=self.graph,
            mask=self.mask,
            scores=self.signed,
            name="truth",
            method=f"every edge removed alone, effect above {self.tolerance:g} of the gap",
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """How one method did.

    edges: number it found; precision: share of these that are true; recall: share of the true
    edges among these. auroc: chance that it ranks a true edge above another one. share: of the gap,
    what the found circuit reaches. node_precision, node_recall: of heads and MLPs against the
    planted ones. note: why it gave nothing.
    """

    method: str
    edges: int
    precision: float
    recall: float
    auroc: float
    share: float
    node_precision: float
    node_recall: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Recovery(Record):
    """Every method against one answer key."""

    name: str
    truth: int
    of: int
    found: tuple[Found, ...]
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
            shown = " ".join(f"{x:6.2f}" for x in numbers)
            lines.append(f"  {one.method:24} {one.edges:5} {shown}  {one.note}".rstrip())
        return "\n".join(lines)

    def of_method(self, method: str) -> Found:
        """One method's row.

        Raises:
            InterpError: it was not among the methods.
        """
        named = {one.method: one for one in self.found}
        if method not in named:
            raise unknown("method", method, named)
        return named[method]


def single_edge_truth(
    model: LanguageModel,
    task: Task,
    *,
    ablation: EdgeAblation = "counterfactual",
    reference: Task | None = None,
    tolerance: float = 0.01,
    expand_kv: bool = False,
    seed: int = 0,
    budget_gb: float = 1.0,
) -> Truth:
    """Remove every edge of the graph alone, and see whether the metric changes on any prompt.

        effect(e) = mean (m(whole) - m(whole without e)) / mean (m(whole) - m(empty))

    Args:
        model: a model with a fast engine; one run per edge and prompt, in batches.
        task: prompt pairs.
        ablation: see `Trials`.
        reference: prompts for mean ablation.
        tolerance: mean absolute effect, as a share of the gap, above which an edge counts.
        expand_kv: key and value readers per query head.
        seed: of the other prompts in resample ablation.
        budget_gb: memory for runs in flight.

    Raises:
        InterpError: as `Trials` and `score_edges`, or no gap.

    `score_edges(method="exact")` in another unit.
    """
    trials = Trials(
        model,
        task,
        ablation=ablation,
        reference=reference,
        expand_kv=expand_kv,
        seed=seed,
        budget_gb=budget_gb,
    )
    unit = mean_gap(trials.ends())
    scores = score_edges(
        model,
        task,
        method="exact",
        ablation=ablation,
        reference=reference,
        expand_kv=expand_kv,
        seed=seed,
        budget_gb=budget_gb,
    )
    scale = scores.gap / unit  # under zero and mean ablation nothing is not the corrupted run
    absolute = scores.absolute * abs(scale)
    return Truth(
        graph=scores.graph,
        mask=absolute > tolerance,
        signed=scores.signed * scale,
        absolute=absolute,
        tolerance=tolerance,
        protocol=trials.protocol,
    )


def recover_edges(
    model: LanguageModel,
    task: Task,
    *,
    truth: Truth | Circuit | None = None,
    planted: Iterable[str] | None = None,
    methods: Sequence[str] = SEARCHES,
    ablation: EdgeAblation = "counterfactual",
    reference: Task | None = None,
    threshold: float = 0.02,
    steps: int = 100,
    seed: int = 0,
    budget_gb: float = 1.0,
) -> Recovery:
    """Run methods on a task whose circuit is known, and count what they find.

    Scoring methods are given the size of the truth: their circuit is the `top_edges` with as many
    edges, connected, ranked by absolute value, so that precision falls where recall does. ACDC and
    the learnt mask choose their size. "random" is what to expect of a random ranking.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        truth: the answer key; by default `single_edge_truth`.
        planted: labels of planted components (L0H1, L1N3, L1.mlp_out; a neuron counts as its MLP),
            for precision and recall of nodes.
        methods: of `SEARCHES`.
        ablation: for all of them; see `Trials`.
        reference: prompts for mean ablation.
        threshold: ACDC's.
        steps: of the learnt mask.
        seed: of the learnt mask, and of the other prompts in resample ablation.
        budget_gb: memory for runs in flight.

    Raises:
        InterpError: an unknown method, an empty answer key, or one of another graph. A method that
            refuses the task has a row that says why.
    """
    methods = listed(methods)
    for method in methods:
        if method not in SEARCHES:
            raise unknown("method", method, SEARCHES)
    shared: _Shared = {
        "ablation": ablation,
        "reference": reference,
        "seed": seed,
        "budget_gb": budget_gb,
    }
    truth = single_edge_truth(model, task, **shared) if truth is None else truth
    trials = Trials(model, task, **shared)
    key = truth.mask
    if truth.graph != trials.graph or not key.any():
        raise InterpError(
            f"recovery on {task.name}",
            "the answer key is empty, or of another graph",
            "use a task with a gap, native key/value heads and whole MLPs",
        )
    ends = trials.ends()
    gap = mean_gap(ends)
    nodes = None if planted is None else _nodes(trials.graph, planted)
    found = []
    for method in methods:
        try:
            mask, ranking = _run(model, task, method, int(key.sum()), threshold, steps, shared)
        except InterpError as refusal:
            found.append(_nothing(method, f"{refusal.asked}: {refusal.found}"))
            continue
        share = math.nan
        if mask is not None:
            share = float((trials.values(mask[None])[0] - ends[1]).mean()) / gap
        found.append(_judged(method, trials.graph, mask, ranking, key, nodes, share))
    return Recovery(
        name=task.name,
        truth=int(key.sum()),
        of=trials.graph.n_edges,
        found=tuple(found),
        protocol=trials.protocol,
    )


def _run(
    model: LanguageModel,
    task: Task,
    method: str,
    size: int,
    threshold: float,
    steps: int,
    shared: _Shared,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A method's circuit, and its ranking of all edges."""
    if method == "random":
        return None, None
    if method in ORDERS:
        pruned = acdc(
            model,
            task,
            threshold=threshold,
            order=ORDERS[method],
            absolute=True,
            resume=False,
            **shared,
        )
        return pruned.mask, np.abs(pruned.effects)
    if method == "learnt-mask":
        learnt = learn_mask(model, task, steps=steps, lr=0.2, **shared)
        return learnt.mask, learnt.signed
    scores = score_edges(model, task, method=method, **shared)
    return top_edges(scores, size), np.abs(scores.signed)


def _judged(
    method: str,
    graph: Graph,
    mask: np.ndarray | None,
    ranking: np.ndarray | None,
    key: np.ndarray,
    nodes: np.ndarray | None,
    share: float,
) -> Found:
    if mask is None or ranking is None:
        size = int(key.sum())
        chance, expected = size / graph.n_edges, _nothing(method, "expected of a random ranking")
        return replace(expected, edges=size, precision=chance, recall=chance, auroc=0.5)
    precision, recall = _hits(mask, key)
    node_precision = node_recall = math.nan
    if nodes is not None:
        writers = Circuit(graph=graph, mask=mask).writers[1:]
        node_precision, node_recall = _hits(writers, nodes[1:])
    return Found(
        method=method,
        edges=int(mask.sum()),
        precision=precision,
        recall=recall,
        auroc=_auroc(ranking[graph.allowed], key[graph.allowed]),
        share=share,
        node_precision=node_precision,
        node_recall=node_recall,
    )


def _nothing(method: str, note: str) -> Found:
    numbers = dict.fromkeys(
        ("precision", "recall", "auroc", "share", "node_precision", "node_recall"), math.nan
    )
    return Found(method=method, edges=0, note=note, **numbers)


def _hits(found: np.ndarray, key: np.ndarray) -> tuple[float, float]:
    """Precision and recall; the precision of nothing is nan."""
    both, size = int((found & key).sum()), int(found.sum())
    return both / size if size else math.nan, both / int(key.sum())


def _auroc(ranking: np.ndarray, key: np.ndarray) -> float:
    """Chance that a true edge ranks above a false one, ties counting half."""
    from scipy.stats import rankdata

    true, false = int(key.sum()), int((~key).sum())
    if not false:
        return math.nan
    ranks = rankdata(ranking)[key].sum()
    return float((ranks - true * (true + 1) / 2) / (true * false))


def _nodes(graph: Graph, planted: Iterable[str]) -> np.ndarray:
    """(writers,) bool of planted components."""
    chosen = np.zeros(len(graph.writers), dtype=bool)
    for label in listed(planted):
        part = Component.parse(label)
        whole = Component(part.layer, "mlp_out") if SITES[part.site] == "neuron" else part
        chosen[graph.writer(str(whole))] = True
    return chosen
