"""Finding and evaluating circuits in the background; what is found is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
from interp.engine.edges.graph import Graph
from interp.engine.stopping import stoppable
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
    "counterfactual": "its value on the corrupted prompt",
    "resample": "its value on another clean prompt",
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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is looked for: on one half of the pairs, to be evaluated on the other."""

    open_: cache.Opened
    find: Task
    test: Task
    finder: Finder
    graph: Graph

    @property
    def by_mean(self) -> bool:
        """Whether removed edges carry means: over the half not in use, shared prompts left out."""
        return self.finder.ablation == "mean"

    @property
    def reference(self) -> Task | None:
        """What means are taken over while looking."""
        return self.test.without(self.find) if self.by_mean else None

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
        """Whether it takes a run for each of many edges."""
        return self.finder.method in RUN_PER_EDGE and self.graph.n_edges > MANY

    @property
    def unit(self) -> str:
        """What its progress counts."""
        method = self.finder.method
        return (
            "edges"
            if "ACDC" in method
            else {"learned-mask": "training steps"}.get(method, "prompts")
        )

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        method, n = self.finder.method, len(self.find)
        if method in ("exact", "ACDC", "ACDC-paper"):
            return f"up to {self.graph.n_edges:,} × {n} runs, batched".replace(",", " ")
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
    """What the selection asks for.

    Raises:
        InterpError: a model without a fast engine, or too few pairs to halve.
    """
    model, chosen = open_.model, current()
    if model.decoder is None:
        raise InterpError(
            f"circuits of {model.name}", str(model.engine_reason), "use a known architecture"
        )
    find, test = open_.task.split(0.5, seed=chosen.seed)
    method, price = chosen.finder or "EAP-IG-inputs", chosen.price
    names = {"ACDC": "threshold", "ACDC-paper": "threshold", "learned-mask": "weight"}
    prices = {} if price is None else names
    options: dict[str, Any] = {prices[method]: float(str(price))} if method in prices else {}
    return Asked(
        open_=open_,
        find=find,
        test=test,
        finder=Finder(method=method, ablation=chosen.removed or "counterfactual", **options),
        graph=graph_of(model),
    )


def start_finding(ask: Asked) -> None:
    """Find in the background."""

    def work(job: jobs.Job) -> Findings:
        return find_circuit(
            ask.open_.model,
            ask.find,
            ask.finder,
            reference=ask.reference,
            progress=job.progress,
            cancelled=job.cancel.is_set,
        )

    jobs.start(ask.key, work, ask.unit)


def start_curve(ask: Asked, made: Circuit) -> None:
    """Evaluate a circuit, and those of its scores at all sizes, in the background."""

    def work(job: jobs.Job) -> Path:
        with stoppable(job.cancel.is_set):
            found = evaluate(
                made,
                ask.open_.model,
                ask.test,
                ablation=ask.finder.ablation,  # type: ignore[arg-type]
                reference=ask.find.without(ask.test) if ask.by_mean else None,
                random=RANDOM,
                knockouts=KNOCKOUTS,
                progress=job.progress,
            )
        key = ask.curve_key(made)
        return found.save(findings_path(key), key=key)

    jobs.start(ask.curve_key(made), work, "circuits")


def places(ask: Asked) -> tuple[str, ...]:
    """The tokens that edges are told apart by, beside all others."""
    return marked_positions(ask.open_.model, ask.open_.task)


def start_tokens(ask: Asked, made: Circuit) -> None:
    """Cut a circuit to its tokens on one half and judge it on the other, in the background."""

    def work(job: jobs.Job) -> Path:
        with stoppable(job.cancel.is_set):
            found = narrow_curve(
                ask.open_.model,
                ask.find,
                ask.test,
                made,
                positions=places(ask),
                ablation=ask.finder.ablation,  # type: ignore[arg-type]
                references=(ask.reference, ask.find.without(ask.test) if ask.by_mean else None),
                random=RANDOM,
                progress=job.progress,
            )
        key = ask.tokens_key(made)
        return found.save(findings_path(key), key=key)

    jobs.start(ask.tokens_key(made), work, "circuits")


def panel(key: str, ready: Callable[[], None]) -> None:
    """A job's progress or how it ended; `ready` draws what starts it."""
    job = jobs.find(key)
    if job is not None and job.state == "running":
        jobs.watch(job)
        return
    if job is not None and job.state == "failed" and job.error is not None:
        widgets.show_error(job.error)
    if job is not None and job.state == "done":
        jobs.not_kept()
    if job is not None and job.state == "cancelled":
        st.info(
            f"Stopped after {job.done} of {job.total or '…'} {job.unit}.", icon=":material/pause:"
        )
    ready()


def findings(key: str) -> Findings | None:
    """The kept findings of a key."""
    try:
        return _findings(key)
    except LookupError:
        return None


def evaluation(key: str) -> CircuitEvaluation | None:
    """The kept evaluation of a key."""
    try:
        return _evaluation(key)
    except InterpError:
        return None


def tokens(key: str) -> NarrowedCurve | None:
    """The kept cuts of a key."""
    try:
        return _tokens(key)
    except InterpError:
        return None


@st.cache_resource(max_entries=4, show_spinner=False)
def _tokens(key: str) -> NarrowedCurve:
    return NarrowedCurve.load(findings_path(key), key=key)


@st.cache_resource(max_entries=4, show_spinner=False)
def _findings(key: str) -> Findings:
    found = kept_findings(key)
    if found is None:
        raise LookupError(key)  # absence is not cached
    return found


@st.cache_resource(max_entries=4, show_spinner=False)
def _evaluation(key: str) -> CircuitEvaluation:
    return CircuitEvaluation.load(findings_path(key), key=key)


@st.cache_resource(max_entries=32, show_spinner=False)
def circuit(key: str, edges: int | None) -> Circuit:
    """A circuit of some findings, of a size or as the method chose."""
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
    """The circuit at the size looked at: as asked for, or the usual one.

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
