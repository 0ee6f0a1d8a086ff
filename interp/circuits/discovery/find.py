"""Finding a circuit with any method: one entry point for notebooks, command line and app."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import numpy as np
from pydantic import BeforeValidator, Strict

from interp.circuits.circuit import Circuit, Origin
from interp.circuits.discovery.acdc import prune
from interp.circuits.discovery.learned_masks import learn_mask
from interp.circuits.ranking import CUTS, By, edge_strength, ranked
from interp.circuits.scoring.edge_scores import EdgeScores
from interp.circuits.scoring.score_edges import FLOW, METHODS, RULED, score_edges
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.arguments import listed, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.files import cache_dir, require_writable
from interp.core.prompts import Task
from interp.core.records import Provenance, Record
from interp.core.run_options import RunKeywords
from interp.core.schema import CheckedSettings, Count, NotNegative, Whole
from interp.engine.edges.graph import Graph
from interp.engine.memory import budget_bytes, says_too_little
from interp.engine.resume import Chunks
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.results.keys import result_key
from interp.results.provenance import provenance
from interp.results.store import chunks_of, drop

if TYPE_CHECKING:
    from pandas import DataFrame

VERSION = 3
SEARCHES = ("ACDC", "ACDC-paper", "learned-mask")
FINDERS = (*METHODS, *SEARCHES)
"""Scoring methods, whose circuits have a size or threshold of your choice, and searches, which
choose it themselves. "ACDC" keeps edges whose removal lowers or raises the metric, "ACDC-paper"
only those whose removal lowers it."""

STEPS = {"learned-mask": 100, **dict.fromkeys(RULED, 5)}
"""Default steps of a method: points of the integration path, or training steps."""


@dataclass(frozen=True, kw_only=True)
class Findings(Tabled, Record):
    """One number for every edge, and the circuits that can be selected from them.

    Attributes:
        graph: the graph.
        signed: (writers, readers) the method's number. Scoring methods: the estimated effect as a
            share of the gap, positive for edges that support the behaviour. ACDC: the effect when
            the edge was tested. Learned mask: how open the gate is, 0 to 1. Information-flow
            routes: the share of the reader's input.
        stderr: (writers, readers) its standard error; only for scoring methods.
        absolute: (writers, readers) mean absolute effect over prompts; only for scoring methods.
        chosen: (writers, readers) the circuit that a search decided on; None for scoring methods.
        method: one of `FINDERS`.
        n: number of prompt pairs.
        protocol: what was measured, in words.
        provenance: model, task and call.
        options: the method's options, under the argument names of `score_edges`.
        warning: a reason to doubt the numbers, such as a large completeness gap; else "".
    """

    graph: Graph
    signed: np.ndarray
    stderr: np.ndarray | None
    absolute: np.ndarray | None
    chosen: np.ndarray | None
    method: str
    n: int
    protocol: str
    provenance: Provenance
    options: Mapping[str, Any] = field(default_factory=dict)
    warning: str = ""

    strongest_by = "value"

    def __repr__(self) -> str:
        edges = self.graph.n_edges
        return f"Findings({self.method} of {edges} edges, n={self.n}; cut by .circuit(n))"

    def to_dataframe(self) -> DataFrame:
        """One row per edge, with the method's number."""
        from pandas import DataFrame

        edges = np.argwhere(self.graph.allowed)
        labels = [self.graph.label(int(w), int(r)) for w, r in edges]
        return DataFrame({"edge": labels, "value": self.signed[self.graph.allowed]})

    def circuit(
        self,
        edges: int | None = None,
        *,
        threshold: float = 0.02,
        by: By = "absolute",
        search: str = "best",
        name: str | None = None,
    ) -> Circuit:
        """Select a circuit: of a given size, or what a search chose, or edges above a threshold.

        Args:
            edges: the number of edges; see `top_edges` and `greedy_edges`. If None, the circuit is
                the search's choice or, for scoring methods, given by `threshold`.
            threshold: the least strength of an edge, in the unit of the scores.
            by: the ranking, see `interp.circuits.ranking.By`.
            search: how `edges` are selected: the "best" of all, or "greedy" from the logits back.
            name: the circuit's name.

        Raises:
            InterpError: `edges` out of range, an unknown ranking or search, "greedy" without
                `edges`, or no path from the input to the logits.
        """
        if search not in CUTS:
            raise unknown("search", search, CUTS)
        if search != "best" and edges is None:
            raise InterpError(f"a {search} circuit", "no size is given", "say how many edges")
        strength = edge_strength(self, by=by)
        if edges is not None:
            mask, cut = CUTS[search](self, edges, by=by), f"{search} {edges} edges"
        elif self.chosen is not None:
            mask, cut = self.chosen, "the edges it kept"
        else:
            mask = self.graph.connected(self.graph.allowed & (strength >= threshold))
            cut = f"edges of at least {threshold:g}"
        if not mask.any():
            strongest = float(np.abs(self.signed[self.graph.allowed]).max())
            raise InterpError(
                f"a circuit of {cut} by {self.method}",
                "no path from the input to the logits is left",
                f"lower the threshold (the strongest edge: {strongest:.3g}) or ask for more edges",
            )
        words = {
            "absolute": "",
            "signed": " by signed score",
            "mean_absolute": " by mean absolute effect",
        }
        return Circuit(
            graph=self.graph,
            mask=mask,
            scores=self.signed,
            name=name or f"{self.provenance.task} by {self.method}, {int(mask.sum())} edges",
            method=f"{self.protocol}; {cut}{words[by]}",
            provenance=self.provenance,
            origin=Origin(method=self.method, options=self.options, by=by, search=search),
        )

    def share(self, mask: np.ndarray) -> float:
        """The summed |score| of some edges, as a share of that of all edges."""
        total = float(np.abs(self.signed[self.graph.allowed]).sum())
        return float(np.abs(self.signed[mask]).sum()) / total if total else 0.0

    def edges_for(self, share: float) -> int:
        """Number of connected edges among the strongest that hold a share of the total |score|.

        If these edges complete no path, the number of edges at which the first path is complete.
        """
        order = ranked(self)
        running = np.cumsum(np.abs(self.signed[tuple(order.T)]))
        enough = int(np.searchsorted(running, share * running[-1] * (1 - 1e-12))) + 1

        def connected(length: int) -> int:
            mask = np.zeros(self.graph.shape, dtype=bool)
            mask[tuple(order[:length].T)] = True
            return int(self.graph.connected(mask).sum())

        return connected(bisect_left(range(len(order)), 1, lo=enough, key=connected))


@dataclass(frozen=True, kw_only=True)
class Finder(CheckedSettings):
    """A method for finding a circuit, and its options. Each method ignores options it lacks.

    Attributes:
        method: one of `FINDERS`.
        ablation: what a removed edge carries.
        direction: "noise" or "denoise", for scoring methods and ACDC.
        steps: steps of the two EAP-IG methods and the learned mask; None for `STEPS`.
        threshold: ACDC's threshold, a share of the gap.
        weight: the learned mask's price of the whole graph, in squared gaps.
        expand_kv: separate key and value readers for every query head.
        neurons: neurons that are nodes of their own; only for methods of `score_edges`.
        seed: seed of the learned mask's draws, and of the other prompts in resample ablation.
    """

    method: str = "EAP-IG-inputs"
    ablation: str = "counterfactual"
    direction: str = "noise"
    steps: Count | None = None
    threshold: NotNegative = 0.02
    weight: NotNegative = 1.0
    expand_kv: bool = False
    neurons: Annotated[tuple[str, ...], Strict(False), BeforeValidator(listed)] = ()
    seed: Whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in FINDERS:
            raise unknown("method", self.method, FINDERS)
        if self.neurons and self.method not in METHODS:
            raise InterpError(
                f"{self.method} with neurons as nodes",
                "it takes whole MLPs",
                "use a method of score_edges, such as EAP-IG-inputs",
            )
        if self.direction != "noise" and self.method == "learned-mask":
            raise InterpError(
                f"a learned mask, {self.direction}",
                "it always starts from the clean run",
                "use ACDC, or direction='noise'",
            )

    @property
    def options(self) -> dict[str, object]:
        """The options that its result depends on."""
        ablated = self.method != FLOW
        names = ["method", *["ablation"] * ablated, "expand_kv"]
        if self.method.startswith("ACDC"):
            names.append("threshold")
        elif self.method == "learned-mask":
            names += ["weight", "seed"]
        if self.direction != "noise":
            names.append("direction")
        if ablated and self.method != "learned-mask" and self.ablation == "resample":
            names.append("seed")
        names += ["neurons"] if self.neurons else []
        found = {name: getattr(self, name) for name in names}
        if self.method in STEPS:
            found["steps"] = self.steps or STEPS[self.method]
        return found

    def key(self, model: LanguageModel, task: Task, reference: Task | None = None) -> str | None:
        """The cache key of its result; None if it is not stored, see `result_key`."""
        return result_key("circuit", VERSION, model, task, reference=reference, **self.options)


def findings_path(key: str) -> Path:
    """The path of the findings of a key, without suffix."""
    return cache_dir() / "circuits" / key


def kept_findings(key: str | None) -> Findings | None:
    """The stored findings of a key; None if there are none, or if the file is damaged."""
    if key is None:
        return None
    try:
        return Findings.load(findings_path(key), key=key)
    except InterpError:
        return None


@says_too_little
@reads_arguments
def find_circuit(
    model: LanguageModel,
    task: Task,
    finder: Finder | None = None,
    *,
    reference: Task | None = None,
    workers: int = 0,
    **run: Unpack[RunKeywords],
) -> Findings:
    """Find a circuit by scoring all edges or by a search. The result is stored in the cache.

    Args:
        model: a model with a fast engine.
        task: prompt pairs. Evaluate the circuit on others.
        finder: the method and its options; "EAP-IG-inputs" by default.
        reference: the prompts of a mean, for mean ablation.
        workers: processes that share the prompts, as in `score_edges` and `acdc`; 0 computes in
            this one. Not for a learned mask, which is trained step by step.
        run: budget_gb; progress, called with (done, total): prompts, edges or training steps;
            cancelled, asked between batches.

    Raises:
        InterpError: as `score_edges`, `acdc` and `learn_mask`.
    """
    finder = finder or Finder()
    model.require_decoder("finding a circuit")
    budget_bytes(run.get("budget_gb", 1.0))
    if workers and finder.method == "learned-mask":
        raise InterpError(
            f"a learned mask with workers={workers}",
            "each training step needs the one before",
            "use workers=0, or another method",
        )
    key = finder.key(model, task, reference)
    if (found := kept_findings(key)) is not None:
        return found
    try:
        require_writable(findings_path(key or ""))
    except InterpError as error:
        warnings.warn(f"the circuit is not stored: {error}", stacklevel=4)
        key = None
    given: dict[str, Any] = finder.options
    if reference is not None and (finder.method, finder.ablation) != (FLOW, "mean"):
        given["reference"] = reference
    with chunks_of(key if finder.method in SEARCHES else None) as chunks:
        if finder.method in SEARCHES:
            found = _searched(model, task, given, run, workers, chunks)
        else:
            scores = score_edges(model, task, workers=workers, **given, **run)
            found = of_scores(scores, seed=finder.seed)
        if key is None:
            return found
        try:
            found.save(findings_path(key), key=key)
            drop(chunks)  # not before: a search that is killed here has its batches
        except InterpError as error:
            warnings.warn(f"the circuit is not stored: {error}", stacklevel=4)
    return found


def of_scores(scores: EdgeScores, *, seed: int = 0) -> Findings:
    """Findings from edge scores; `seed` is the seed of resample ablation."""
    names = ["direction"] + ["ablation"] * (scores.ablation != "none")
    names += ["steps", "rule"] if scores.rule else []
    options = {name: getattr(scores, name) for name in names}
    return Findings(
        graph=scores.graph,
        signed=scores.signed,
        stderr=scores.stderr,
        absolute=scores.absolute,
        chosen=None,
        method=scores.method,
        n=scores.n,
        protocol=scores.protocol,
        provenance=scores.provenance,
        options=options | ({"seed": seed} if scores.ablation == "resample" else {}),
        warning=scores.warning,
    )


def _searched(
    model: LanguageModel,
    task: Task,
    given: dict[str, Any],
    run: RunKeywords,
    workers: int,
    chunks: Chunks,
) -> Findings:
    """Findings from ACDC, which stores finished batches in `chunks`, or a learned mask."""
    method = given.pop("method")
    if method == "ACDC":
        given["absolute"] = True
    spelled = "".join(
        f", {name}={'...' if name == 'reference' else repr(value)}" for name, value in given.items()
    )
    if method == "learned-mask":
        name, found = "learn_mask", learn_mask(model, task, **given, **run)
    else:
        rule = {"threshold": given.pop("threshold"), "absolute": given.pop("absolute", False)}
        trials = Trials(model, task, TrialOptions(workers=workers, **given, **run))
        pruned = prune(trials, **rule, chunks=chunks, progress=trials.options.progress)
        name, found = "acdc", replace(pruned, protocol=trials.protocol)
    return Findings(
        graph=found.graph,
        signed=found.signed,
        stderr=None,
        absolute=None,
        chosen=found.mask,
        method=method,
        n=len(task),
        protocol=str(found),
        provenance=provenance(model, task, f"found = interp.circuits.{name}(model, task{spelled})"),
    )
