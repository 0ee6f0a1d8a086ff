"""Finding and evaluating circuits in the background; what is found is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import streamlit as st

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.find import (
    STEPS,
    Finder,
    Findings,
    find_circuit,
    findings_path,
    kept_findings,
)
from interp.circuits.evaluation.evaluate import CircuitEvaluation, evaluate
from interp.circuits.evaluation.overlap import CircuitComparison, compare_circuits
from interp.circuits.model_graph import graph_of
from interp.circuits.positions.narrow import NarrowedCurve, narrow_curve
from interp.circuits.positions.positioned_circuit import marked_positions
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.engine.edges.graph import Graph
from interp.engine.stopping import StopCheck, stoppable
from interp.results.keys import result_key
from interp.ui.shared import cache, jobs, widgets
from interp.ui.shared.state import current

METHODS = {
    "EAP-IG-inputs": "gradients along the path between both prompts: the usual choice",
    "EAP": "one gradient at the clean prompt: fastest, blind where attention saturates",
    "clean-corrupted": "mean of the gradients at both prompts",
    "EAP-IG-activations": "gradients along each writer's own path: slower, sums are exact",
    "exact": "every edge patched alone: the number the others estimate; one run per edge",
    "ACDC": "edges removed one after another, kept where the metric changes either way",
    "ACDC-paper": "the same by the published rule: kept where the metric falls",
    "learned-mask": "a trained gate per edge: the strongest baseline",
    "information-flow-routes": "shares of what is read; not causal, a baseline",
}
REMOVED = {
    "counterfactual": "its corrupted value",
    "resample": "another prompt's value",
    "zero": "nothing",
    "mean": "the mean over the other half",
}
PRICES = {
    "ACDC": ("0.02", "0.005", "0.01", "0.05", "0.1"),
    "ACDC-paper": ("0.02", "0.005", "0.01", "0.05", "0.1"),
    "learned-mask": ("1", "0.1", "0.3", "3", "10"),
}
"""ACDC's thresholds and the mask's weights on offer, the usual one first."""

RUN_PER_EDGE = ("exact", "ACDC", "ACDC-paper", "EAP-IG-activations")
MANY = 3000
RANDOM, KNOCKOUTS = 10, 10
R = TypeVar("R", CircuitEvaluation, NarrowedCurve)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A search for a circuit on one half of the pairs; the other half evaluates it."""

    open_: cache.Opened
    find: Task
    test: Task
    finder: Finder
    graph: Graph

    @property
    def reference(self) -> Task | None:
        """The other half's prompts, over which means are taken while searching."""
        return self.test.without(self.find) if self.finder.ablation == "mean" else None

    @property
    def judging_reference(self) -> Task | None:
        """The find half's prompts, over which means are taken while evaluating."""
        return self.find.without(self.test) if self.finder.ablation == "mean" else None

    @cached_property
    def key(self) -> str:
        """The key of the findings."""
        return str(self.finder.key(self.open_.model, self.find, self.reference))

    def curve_key(self, made: Circuit) -> str:
        """The key of a circuit's evaluation."""
        return self._judged("evaluation", made, knockouts=KNOCKOUTS)

    def tokens_key(self, made: Circuit) -> str:
        """The key of a circuit cut to its tokens."""
        return self._judged("tokens", made, places=places(self))

    def _judged(self, what: str, made: Circuit, **options: Any) -> str:
        found = [self.key, made.hash, self.finder.ablation, RANDOM]
        return str(result_key(what, 2, self.open_.model, self.test, found=found, **options))

    @property
    def slow(self) -> bool:
        """Whether the search needs one run for each of many edges."""
        return self.finder.method in RUN_PER_EDGE and self.graph.n_edges > MANY

    @property
    def counted(self) -> str:
        """What its progress counts."""
        if "ACDC" in self.finder.method:
            return "edges"
        return "training steps" if self.finder.method == "learned-mask" else "prompts"

    @property
    def takes(self) -> str:
        """The cost of the search, in words."""
        method, n = self.finder.method, len(self.find)
        if method in ("exact", "ACDC", "ACDC-paper"):
            return f"up to {widgets.thousands(self.graph.n_edges)} × {n} runs, batched"
        steps = self.finder.steps or STEPS.get(method, 1)
        return {
            "EAP": "2 forward, 1 backward pass",
            "clean-corrupted": "2 forward, 2 backward passes",
            "EAP-IG-inputs": f"{2 + steps} forward, {steps} backward passes",
            "EAP-IG-activations": f"4 + {steps + 1} × {len(self.graph.writers)} forward, "
            f"{steps} × {len(self.graph.writers)} backward passes, from each writer's layer on",
            "learned-mask": f"{steps} training steps, 4 draws each",
            "information-flow-routes": "1 forward pass",
        }[method]


def asked(open_: cache.Opened) -> Asked:
    """The search that the selection asks for.

    Raises:
        InterpError: a model without a fast engine, or too few pairs to halve.
    """
    model, chosen = open_.model, current()
    if model.decoder is None:
        raise InterpError(
            f"circuits of {model.name}", str(model.engine_reason), "use a known architecture"
        )
    find, test = open_.task.split(0.5, seed=chosen.seed)
    method = chosen.finder or "EAP-IG-inputs"
    options: dict[str, Any] = {}
    if method in PRICES and chosen.price is not None:
        options["weight" if method == "learned-mask" else "threshold"] = float(chosen.price)
    return Asked(
        open_=open_,
        find=find,
        test=test,
        finder=Finder(method=method, ablation=chosen.removed or "counterfactual", **options),
        graph=graph_of(model),
    )


def start_finding(ask: Asked) -> None:
    """Find in the background."""
    work = partial(find_circuit, ask.open_.model, ask.find, ask.finder, reference=ask.reference)
    jobs.start(ask.key, work, ask.counted)


def start_curve(ask: Asked, made: Circuit) -> None:
    """Evaluate a circuit, and those of its scores at all sizes, in the background."""
    measure = partial(
        evaluate,
        made,
        ask.open_.model,
        ask.test,
        ablation=ask.finder.ablation,  # type: ignore[arg-type]
        reference=ask.judging_reference,
        random=RANDOM,
        knockouts=KNOCKOUTS,
    )
    _start(ask.curve_key(made), measure)


def places(ask: Asked) -> tuple[str, ...]:
    """Tokens at which edges are measured separately; the rest are pooled."""
    return marked_positions(ask.open_.model, ask.open_.task)


def start_tokens(ask: Asked, made: Circuit) -> None:
    """Cut a circuit to its tokens on one half and judge it on the other, in the background."""
    measure = partial(
        narrow_curve,
        ask.open_.model,
        ask.find,
        ask.test,
        made,
        positions=places(ask),
        ablation=ask.finder.ablation,  # type: ignore[arg-type]
        references=(ask.reference, ask.judging_reference),
        random=RANDOM,
    )
    _start(ask.tokens_key(made), measure)


def _start(key: str, measure: Callable[..., CircuitEvaluation | NarrowedCurve]) -> None:
    """Measure in the background, and keep the result."""
    jobs.start(key, partial(_measure_and_keep, key, measure), "circuits")


def _measure_and_keep(
    key: str,
    measure: Callable[..., CircuitEvaluation | NarrowedCurve],
    *,
    progress: Progress,
    cancelled: StopCheck,
) -> None:
    with stoppable(cancelled):
        found = measure(progress=progress)
    found.save(findings_path(key), key=key)


def findings(key: str) -> Findings | None:
    """The kept findings of a key."""
    return cache.kept(key, "findings", kept_findings)


def _kept(kind: type[R], key: str) -> R | None:
    return cache.kept(key, kind.__name__, lambda key: kind.load(findings_path(key), key=key))


evaluation = partial(_kept, CircuitEvaluation)
"""The kept evaluation of a key."""
cuts = partial(_kept, NarrowedCurve)
"""The kept cuts of a key."""


@st.cache_resource(max_entries=32, show_spinner=False)
def circuit(key: str, edges: int | None) -> Circuit:
    """The circuit of some findings: of a given size, or as the method chose."""
    found = findings(key)
    assert found is not None
    return found.circuit(edges)


@st.cache_resource(max_entries=8, show_spinner=False)
def usual_size(key: str) -> int | None:
    """Edges shown at first: None for what the method chose, else those worth 0.02, 5 to 60."""
    found = findings(key)
    assert found is not None
    if found.chosen is not None:
        return None
    try:
        return min(max(found.circuit().n_edges, min(5, found.graph.n_edges)), 60)
    except InterpError:
        return min(40, found.graph.n_edges)


def shown(ask: Asked) -> Circuit:
    """The circuit at the chosen size, or at the usual one.

    Raises:
        InterpError: no edge lies on a path at that size.
    """
    return circuit(ask.key, current().edges or usual_size(ask.key))


@st.cache_resource(
    max_entries=8,
    show_spinner="Drawing random circuits …",
    hash_funcs={Circuit: lambda made: f"{made.hash} {made.name}"},
)
def comparison(left: Circuit, right: Circuit) -> CircuitComparison:
    """Two circuits side by side."""
    return compare_circuits(left, right)
