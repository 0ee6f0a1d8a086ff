"""Maps of heads that share the head looked at: a click on one or the list chooses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from interp.plots.lines import head_map
from interp.studies.formatting import place
from interp.ui.shared import widgets
from interp.ui.shared.state import current, select

MapValues = Sequence[Sequence[float]]
"""(layers, heads) values."""


def labels(values: MapValues) -> list[str]:
    """The label of every head."""
    return [f"L{layer}H{head}" for layer, row in enumerate(values) for head in range(len(row))]


def looked_at(values: MapValues) -> tuple[int, int] | None:
    """(layer, head) of the head looked at, if the map has it."""
    picked = current().picked
    return place(picked) if picked is not None and picked in labels(values) else None


def choose_head(label: str, values: MapValues, *, into: Any = st) -> None:
    """The same as a click: a list of all heads."""
    widgets.choose(label, "picked", [widgets.NONE, *labels(values)], into=into)


def show_map(
    values: MapValues, *, key: str, alt: str, heading: str = "", into: Any = st, **drawing: Any
) -> None:
    """A clickable `interp.plots.lines.head_map` with the arguments `drawing`."""
    widgets.figure(
        head_map(values, selected=looked_at(values), **drawing),
        key=key,
        alt=alt,
        title=heading,
        into=into,
        picked=lambda data: select(picked=f"L{data[0]}H{data[1]}"),
    )
