"""How circuits are run: what removed edges carry, the nodes of the graph, memory and progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.core.run_options import RunKeywords, RunOptions
from interp.core.schema import Seed, Whole, checked
from interp.engine.edges.graph import Graph

EdgeAblation = Literal["counterfactual", "resample", "zero", "mean"]
"""A removed edge carries its writer's output on the pair's corrupted prompt ("counterfactual"); on
another clean prompt of the same length ("resample"); zero; or the mean of the writer's output over
the tokens of the reference prompts ("mean")."""


class TrialKeywords(RunKeywords, total=False):
    """Keywords of functions that run circuits of a given graph; see `TrialOptions`."""

    ablation: EdgeAblation
    reference: Task | None
    seed: int


class SharedTrialKeywords(TrialKeywords, total=False):
    """Keywords of functions whose prompts several processes can share; see `TrialOptions`."""

    workers: int


class GraphKeywords(TrialKeywords, total=False):
    """Keywords of functions that choose the graph themselves; see `TrialOptions`."""

    expand_kv: bool


@dataclass(frozen=True, kw_only=True)
class TrialOptions(RunOptions):
    """How circuits are run, beside `RunOptions`.

    Attributes:
        ablation: what removed edges carry, see `EdgeAblation`.
        reference: the prompts, clean and corrupted, over whose tokens a mean is taken; mean
            ablation only. None of them may be evaluated.
        seed: seed of everything that is drawn: the other prompts in resample ablation, random
            circuits, subsets of parts, resampled prompts and gates.
        direction: "noise": kept edges carry the clean run, removed ones the ablated value.
            "denoise": kept edges carry the corrupted run, removed ones the clean run.
        expand_kv: separate key and value readers for every query head.
        neurons: neurons that are nodes of their own, see `interp.circuits.model_graph.graph_of`.
        workers: processes that share the prompts, as in `interp.attribution_patching`; 0 computes
            in this one. Not for resample ablation, which draws among all prompts.

    Raises:
        InterpError: an unknown ablation or direction, a seed or `workers` that is no whole number
            from 0 on, or processes that share prompts for resample ablation.
    """

    ablation: EdgeAblation = "counterfactual"
    reference: Task | None = None
    seed: int = 0
    direction: str = "noise"
    expand_kv: bool = False
    neurons: Sequence[str | tuple[int, int]] = ()
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checked(Seed, self.seed, "the seed of a trial")
        if self.direction not in ("noise", "denoise"):
            raise unknown("direction", self.direction, ("noise", "denoise"))
        if self.ablation not in get_args(EdgeAblation):
            raise unknown("ablation", self.ablation, get_args(EdgeAblation))
        if checked(Whole, self.workers, "workers") and self.ablation == "resample":
            raise InterpError(
                f"resample ablation with workers={self.workers}",
                "each process has a few of the prompts, and the other one is drawn among all",
                "use workers=0, or another ablation",
            )

    @property
    def removed(self) -> str:
        """What removed edges carry, in words."""
        over = "" if self.reference is None else f" over the tokens of {self.reference.name}"
        return f"{self.ablation} ablation{over}"

    @property
    def quiet(self) -> TrialOptions:
        """These options for another process, which works alone."""
        return replace(super().quiet, workers=0)

    def of_graph(self, graph: Graph) -> TrialOptions:
        """These options for circuits of a given graph."""
        return replace(self, expand_kv=graph.expand_kv, neurons=graph.neurons)
