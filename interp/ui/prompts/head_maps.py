"""Measures of every head, on a typed prompt or as means over the loaded prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.core.nulls import Null, null_of
from interp.overview.logit_parts import LogitParts
from interp.overview.one_prompt import Look
from interp.overview.prompt_set import (
    DIRECT,
    HeadSamples,
    head_samples,
    samples_key,
    stored_samples,
)
from interp.results.scores import Scores
from interp.ui import VIEWS
from interp.ui.prompts import frame
from interp.ui.shared import cache, jobs, widgets
from interp.ui.shared.state import current

CHOSEN, PATCH = "to chosen token", "patch"
MEASURES = {
    DIRECT: "direct attribution (logits)",
    CHOSEN: "attention to the chosen token",
    "to previous token": "attention to the previous token",
    "to token after same token": "induction: attention to what followed earlier copies",
    "to same token": "duplicate token: attention to earlier copies",
    "to first token": "attention to the first token",
    "to current token": "attention to the token itself",
    "entropy": "entropy of attention (nats)",
}
NEAR = 2
"""Layers above and below whose heads a head is compared with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadMap:
    """One measure of every head.

    Attributes:
        name: what is measured, with its unit.
        values: (layer, head), means if there are several prompts.
        python: the Python that gives the values again.
        low, high: (layer, head) the 95 % interval; None for one prompt.
        samples: (n, layer, head) the values of each prompt; None for one prompt.
        kept: the numbers of those prompts.
    """

    name: str
    values: Any
    python: str
    low: Any | None = None
    high: Any | None = None
    samples: Any | None = None
    kept: tuple[int, ...] = ()

    def cell(self) -> tuple[int, int]:
        """The head looked at; what the selection leaves open is the strongest there."""
        layer, head = current().layer, current().head
        values = abs(self.values)
        if head is not None and head >= values.shape[1]:
            head = None
        if layer is None and head is None:
            layer, head = divmod(int(values.argmax()), values.shape[1])
        layer = int(values[:, head].argmax()) if layer is None else layer
        head = int(values[layer].argmax()) if head is None else head
        return layer, head

    def rank(self, layer: int, head: int) -> int:
        """Its rank by absolute value; 1 is the strongest."""
        return 1 + int((abs(self.values) > abs(self.values[layer, head])).sum())

    def null(self, layer: int, head: int) -> Null | None:
        """Its absolute value beside that of the other heads of its layer and those near."""
        layers = range(max(0, layer - NEAR), min(layer + NEAR + 1, len(self.values)))
        heads = [(at, i) for at in layers for i in range(self.values.shape[1])]
        others = [abs(float(self.values[at])) for at in heads if at != (layer, head)]
        return null_of(abs(float(self.values[layer, head])), others) if others else None

    def interval(self, layer: int, head: int) -> str:
        """The 95 % interval in words, of several prompts."""
        assert self.low is not None
        assert self.high is not None
        return widgets.span(float(self.low[layer, head]), float(self.high[layer, head]))

    def rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """The strongest heads, each beside others; all by default."""
        order = (-abs(self.values)).argsort(axis=None, kind="stable")[:most]
        rows = []
        for layer, head in (divmod(int(at), self.values.shape[1]) for at in order):
            null = self.null(layer, head)
            rows.append(
                {
                    "rank": self.rank(layer, head),
                    "head": f"L{layer}H{head}",
                    "value": float(self.values[layer, head]),
                    **({} if self.low is None else {"95 % interval": self.interval(layer, head)}),
                    "others near, absolute": widgets.NONE if null is None else null.beside,
                }
            )
        return rows


def of_prompt(seen: Look, parts: LogitParts, metric: str, target: int, call: str) -> HeadMap:
    """A measure on one prompt, read after the token of `parts`; `call` gives `seen`."""
    at = f"position={parts.position}"
    if metric == DIRECT:
        name = f"added to {parts.words} (logits)"
        python = f"{call}\nseen.attribution({at}).heads"
        return HeadMap(name=name, values=parts.heads, python=python)
    values = seen.head_attention(metric, token=target, position=parts.position)
    more = f", token={target}, {at}" if metric == CHOSEN else ""
    python = f"{call}\nseen.head_attention({metric!r}{more})"
    return HeadMap(name=MEASURES[metric], values=values.astype(float), python=python)


def set_measures(open_: cache.Opened) -> dict[str, str]:
    """The measures of a set of prompts, with their words."""
    names = {f"to {name}": f"attention to {name}" for name in open_.task.position_names}
    patch = {PATCH: "patch effect"}
    return {k: v for k, v in (MEASURES | patch | names).items() if k != CHOSEN}


def of_set(open_: cache.Opened, metric: str) -> HeadMap | None:
    """A measure of the loaded prompts. None: it has to be run first, and what starts it is drawn.

    Raises:
        InterpError: no prompt of the set has this measure.
    """
    if metric == PATCH:
        return _patched(open_)
    key = str(samples_key(open_.model, open_.task))

    def load(key: str) -> dict[str, HeadSamples] | None:
        return cache.kept(key, "heads", stored_samples)

    found = jobs.result(key, load, lambda: _ready(open_, key))
    if found is None:
        return None
    if (samples := found.get(metric)) is None:
        raise InterpError(
            MEASURES.get(metric, metric),
            "no prompt of the set has such a token",
            "choose another measure, or prompts in which a word occurs twice",
        )
    low, high = samples.interval()
    call = f"{frame.load_call(open_.model)}\ntask = {open_.task.source}"
    return HeadMap(
        name=set_measures(open_)[metric],
        values=samples.values,
        low=low,
        high=high,
        samples=samples.samples,
        kept=samples.kept,
        python=f"{call}\ninterp.overview.head_samples(model, task)[{metric!r}].values",
    )


def _of_scores(scores: Scores, python: str) -> HeadMap:
    low, high = scores.interval()
    return HeadMap(
        name=f"{scores.method} ({scores.unit_words})",
        values=scores.values,
        low=low,
        high=high,
        samples=scores.effects / (scores.gap if scores.unit == "gap" else 1),
        kept=tuple(range(scores.n)),
        python=python,
    )


def _patched(open_: cache.Opened) -> HeadMap | None:
    """The kept sweep of all heads, or the way to run it."""
    chosen = replace(current(), site="z", by="component", positions=())
    key, _ = cache.plan(open_, cache.sweep(chosen, open_))
    result = cache.result(key)
    if result is None:
        st.info("No kept sweep of all heads of these prompts.", icon=":material/grid_on:")
        st.page_link(VIEWS / "patching.py", label="Run it on Patching", icon=":material/east:")
        return None
    return _of_scores(result.scores, result.scores.provenance.call)


def _ready(open_: cache.Opened, key: str) -> None:
    """The button that measures all heads on the loaded prompts, in a job."""
    work = partial(head_samples, open_.model, open_.task)
    jobs.prepare()
    label = f"Measure {len(open_.task)} prompts"
    widgets.start_button(label, jobs.start, key, work, "prompts")
    st.caption("Every measure of every head is taken in one go, and kept.")
