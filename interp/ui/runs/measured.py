"""Kept measures of heads: a map of one, and two of the same prompts with their difference."""

from __future__ import annotations

from itertools import product
from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.overview.prompt_set import DIRECT, HeadSamples
from interp.plots.heatmaps import heat_map
from interp.plots.style import symmetric_limit
from interp.ui.shared import widgets

Measures = dict[str, HeadSamples]
"""What `interp.overview.head_samples` returned, by the name of the measure."""

LISTED = 20


def show_measures(one: Measures, other: Measures | None) -> widgets.Rows:
    """A measure that is chosen, as maps and a table; the rows of the table."""
    both = [name for name in one if other is None or name in other]
    if not both:
        st.info("No difference: the two have no measure in common.", icon=":material/difference:")
        return []
    name = st.selectbox("Measure", both, key="kept-measure")
    if other is None:
        left, right = st.columns([5, 7], gap="large")
        _map(one[name], name, key="measure", title=name, into=left)
        return _strongest(one[name], name, right)
    sides = (one[name], other[name])
    limit = max(symmetric_limit(side.values) for side in sides)
    columns = st.columns(3, gap="medium")
    for column, side, words in zip(columns, sides, ("Left", "Right"), strict=False):
        n = f"{words}: {name}, n = {len(side.kept)}"
        _map(side, name, key=f"measure-{words}", title=n, into=column, limit=limit)
    try:
        found = sides[0].minus(sides[1])
    except InterpError as error:
        st.info(widgets.plain(f"No difference: {error.found}."), icon=":material/difference:")
        return []
    title = f"Left minus right, n = {len(found.kept)}"
    _map(found, DIRECT, key="measure-difference", title=title, into=columns[2])
    rows = _strongest(found, f"{name}, left - right", st)
    st.caption("Intervals are over prompts, each with itself in the other run.")
    return rows


def _map(
    found: HeadSamples, name: str, *, key: str, title: str, into: Any, limit: float | None = None
) -> None:
    layers, heads = found.values.shape
    drawn = heat_map(
        found.values,
        x=[str(head) for head in range(heads)],
        y=[str(layer) for layer in range(layers)],
        x_title="head",
        y_title="layer",
        colour_title=name if name != DIRECT else "logits",
        limit=symmetric_limit(found.values) if limit is None else limit,
        names=[[f"L{layer}H{head}" for head in range(heads)] for layer in range(layers)],
    )
    widgets.figure(drawn, key=key, title=widgets.plain(title), alt=title, into=into)


def _strongest(found: HeadSamples, name: str, into: Any) -> widgets.Rows:
    """The heads of largest absolute value."""
    low, high = found.interval()
    cells = product(*map(range, found.values.shape))
    values = found.values
    rows: widgets.Rows = []
    for at in sorted(cells, key=lambda cell: -abs(values[cell]))[:LISTED]:
        rows.append(
            {
                "head": "L{}H{}".format(*at),
                name: float(values[at]),
                "95 % interval": widgets.span(float(low[at]), float(high[at])),
            }
        )
    into.markdown(f"**The {len(rows)} strongest of {found.values.size}**, n = {len(found.kept)}")
    widgets.table(rows, key="measured-heads", into=into)
    return rows
