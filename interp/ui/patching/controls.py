"""The sweep's controls: every one of them changes the `Selection` and nothing else."""

from __future__ import annotations

import streamlit as st

from interp.core.components import SITES
from interp.ui.shared.cache import Opened
from interp.ui.shared.state import CHOICES, current, granularities, select
from interp.ui.shared.widgets import UNITS, picker, plain

DIRECTIONS = {"denoise": "denoise (clean → corrupted)", "noise": "noise (corrupted → clean)"}
SOURCES = {"other": "the other run", "zero": "zeros", "mean": "mean over other prompts"}


def sweep_controls(open_: Opened) -> None:
    """Site, granularity, direction, positions and source; for neurons also which ones."""
    model = open_.model
    offered = [site for site, reason in model.sites.items() if reason is None]
    picker(
        st.selectbox,
        "Site",
        "site",
        options=offered,
        help="Which activation is patched. The Setup page explains each one.",
    )
    for site, reason in model.sites.items():
        if reason is not None:
            st.caption(f"{site} is not offered: {plain(reason)}")
    axis = SITES[current().site]
    unit = UNITS[axis] if axis else "component"
    names = {
        "component": f"layer × {unit}",
        "position": "layer × position",
        "component-position": f"layer × {unit} × position",
        "layer": "layer",
    }
    picker(
        st.selectbox,
        "One cell for each",
        "by",
        options=granularities(current().site),
        format_func=names.__getitem__,
        help="Everything in a cell is patched together.",
    )
    if axis == "neuron" and "component" in current().by:
        _neurons(open_)
    picker(
        st.radio,
        "Direction",
        "direction",
        options=CHOICES["direction"],
        format_func=DIRECTIONS.__getitem__,
        help="denoise: clean values into the corrupted run (is the component sufficient?). "
        "noise: corrupted values into the clean run (is it necessary?).",
    )
    _positions(open_)
    picker(
        st.selectbox,
        "Values come from",
        "source",
        options=CHOICES["source"],
        format_func=SOURCES.__getitem__,
        help="Zeros and means are ablations: they ignore the other run. A mean is over every "
        "token of other prompts of the task, drawn with the next seed.",
    )


def _positions(open_: Opened) -> None:
    swept = "position" in current().by
    every = "all tokens"
    if swept:
        every = "each token" if open_.one_length else "each named position"
    options = list(dict.fromkeys([*open_.names, *current().positions]))
    picker(
        st.multiselect,
        "Positions",
        "positions",
        options=options,
        placeholder=every,
        help=f"Empty means {every}."
        + (
            ""
            if open_.one_length or not swept
            else " Prompts differ in length, so tokens cannot be compared one by one."
        ),
    )


def _neurons(open_: Opened) -> None:
    """Layers and a range: all neurons of all layers would be tens of thousands of cells."""
    model = open_.model
    layers = [layer for layer in current().layers if layer < model.n_layers]
    last = model.d_mlp - 1
    bounds = current().neurons
    if not layers or len(bounds) != 2 or not bounds[0] <= bounds[1] <= last:
        select(layers=tuple(layers) or (model.n_layers // 2,), neurons=(0, last))
    picker(st.multiselect, "Layers", "layers", options=list(range(model.n_layers)))
    picker(st.slider, "Neurons", "neurons", min_value=0, max_value=last)
