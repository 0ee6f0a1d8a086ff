"""A sweep before it is finished: the estimate by one gradient, and exact values as they come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.results.scores import Scores
from interp.runs.pairs import check_gap
from interp.ui.patching.explore import component_map
from interp.ui.shared import cache, jobs, widgets
from interp.ui.shared.state import cell, current, select

EVERY = 1.5
"""Seconds between two looks at what a running sweep has kept."""


def estimated(open_: cache.Opened, arguments: dict[str, Any], key: str) -> None:
    """The map of a sweep that is not finished; it says which values are measured."""
    try:
        guess = first_guess(open_, arguments)
        so_far = cache.unfinished(open_, arguments)
    except InterpError as error:
        st.caption(f"No estimate before the run: {widgets.plain(error.found)}.")
        return
    if guess is None or not _in_unit(guess):
        return
    guess = replace(guess, unit=current().unit)
    job = jobs.find(key)
    running = job is not None and job.state == "running"

    @st.fragment(run_every=EVERY if running else None)
    def panel() -> None:
        scores, counts = so_far.into(guess)
        _shown(scores, counts, n=len(open_.task), pairs=guess.n)

    panel()


def first_guess(open_: cache.Opened, arguments: dict[str, Any]) -> Scores | None:
    """The estimate; None while it is computed.

    Raises:
        InterpError: the model has no fast engine, or the sweep has no gradient.
    """
    found = cache.estimate(open_, arguments)
    guess = jobs.later(found, "Estimating by one gradient …")
    if found.done():
        jobs.prepare()  # not earlier: its imports would hold up the estimate
    return guess


def _in_unit(guess: Scores) -> bool:
    """Whether the effects can be shown in the unit that is chosen; if not, the other is offered."""
    if current().unit == "metric":
        return True
    try:
        check_gap(guess.clean, guess.corrupted)
    except InterpError as error:
        unit = guess.metric_unit or guess.metric
        st.warning(
            f"**The gap is small.** On the first {guess.n} pairs: {widgets.plain(error.found)}. "
            f"Fractions of it would be noise. Effects in {unit} need no gap.",
            icon=":material/straighten:",
        )
        st.button(f"Measure in {unit}", on_click=select, kwargs={"unit": "metric"})
        return False
    widgets.negative_gap(guess)
    return True


def _shown(scores: Scores, counts: Any, *, n: int, pairs: int) -> None:
    """Map and ranking, with the number of prompts on which each cell is measured."""
    share = counts.mean() / n
    if share:
        words = (
            f"**{share:.0%} measured.** A cell has the exact effect of the prompts that were run, "
            f"and for the others the estimate by one gradient, from the first {pairs} pairs."
        )
    else:
        words = (
            f"**An estimate, not measured**: one gradient on the first {pairs} pairs "
            "(attribution patching). Run replaces it by exact values as they come."
        )
    st.markdown(f":orange-badge[:material/pending: estimate] {words}")
    left, right = st.columns([5, 7], gap="large")
    place = cell(scores, current())
    with left:
        component_map(scores, place, errors=False)
    strong = scores.top(min(10, scores.values.size), by="absolute")
    with right:
        st.markdown(f"**The {len(strong)} largest** of {scores.values.size}, either way")
        widgets.table(
            [
                {
                    "component": found.label,
                    f"effect ({scores.unit_words})": found.value,
                    f"measured, of {n} prompts": int(
                        counts[scores.index(str(found.component), found.position)]
                    ),
                }
                for found in strong
            ],
            key="estimate-top",
            most=10,
        )


def calibrated(open_: cache.Opened, arguments: dict[str, Any], scores: Scores) -> None:
    """What the estimate was worth, now that the effects are measured."""
    if not st.toggle("Compare with the estimate by one gradient", key="calibrate"):
        return
    try:
        found = cache.calibration(open_, arguments, scores)
    except InterpError as error:
        st.caption(f"No estimate: {widgets.plain(error.found)}.")
        return
    missed = ", ".join(found.missed) or "none"
    st.markdown(
        f"On the first {found.n} pairs, over {widgets.thousands(found.cells)} cells: correlation "
        f"with the exact effects **{found.correlation:z.3f}** "
        f"(95 % interval over many such pairs: {widgets.span(*found.correlation_interval)}), slope "
        f"**{found.slope:z.3f}** ({widgets.span(*found.slope_interval)}; below 1: estimated too "
        "small). Noise of few pairs lowers the correlation. Of the exact top "
        f"{found.k} by size, the gradient missed: **{widgets.plain(missed)}**."
    )
