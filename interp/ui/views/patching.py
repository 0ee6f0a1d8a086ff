"""Patching: which components carry the behaviour, and one of them looked at."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

import interp
from interp.core.components import SITES
from interp.patching.sweep import Cost
from interp.ui.patching.explore import explore
from interp.ui.shared import cache, jobs, offered, widgets
from interp.ui.shared.cache import Opened
from interp.ui.shared.state import current, granularities, select
from interp.ui.shared.widgets import UNITS, picker, plain

LONG = 60.0  # seconds beyond which a run asks first

FORMULAS = {
    "denoise": r"\text{effect}(c) = \frac{\overline{m}[\text{corrupted run, } c \leftarrow "
    r"\text{patched}] - \overline{m}[\text{corrupted}]}"
    r"{\overline{m}[\text{clean}] - \overline{m}[\text{corrupted}]}",
    "noise": r"\text{effect}(c) = \frac{\overline{m}[\text{clean}] - "
    r"\overline{m}[\text{clean run, } c \leftarrow \text{patched}]}"
    r"{\overline{m}[\text{clean}] - \overline{m}[\text{corrupted}]}",
}
DIRECTIONS = {"denoise": "denoise (clean → corrupted)", "noise": "noise (corrupted → clean)"}
SOURCES = {"other": "the other run", "zero": "zeros", "mean": "mean over other prompts"}


def _show() -> None:
    if current().model is None:
        widgets.to_setup("Patching")
        return
    open_ = cache.opened()
    with st.sidebar:
        sweep_controls(open_)
    arguments = cache.sweep(current(), open_)
    key, cost = cache.plan(open_, arguments)
    name = widgets.plain(offered.without_paths(open_.model.name))
    result = jobs.result(
        key,
        cache.result,
        lambda: _ready(open_, arguments, key, cost),
        title=f"Patching {arguments['site']} in {name}",
        kept="Finished chunks are kept; Run continues from them.",
    )
    if result is None:
        _meaning(arguments["direction"])
        return
    scores = result.scores
    metrics = f"{scores.clean.mean():.3f} → {scores.corrupted.mean():.3f} {scores.metric_unit}"
    widgets.stored_result(
        f"{scores.method.capitalize()} of {scores.site}",
        scores.provenance,
        scores.n,
        {
            f"{scores.metric}, clean → corrupted": metrics,
            "direction": scores.direction,
            "positions": scores.positions,
            "engine": scores.extra.get("engine", "–"),
        },
    )
    explore(open_, result, key)


def _ready(open_: cache.Opened, arguments: dict[str, Any], key: str, cost: Cost) -> None:
    """What will be measured, what it will take, and the button."""
    widgets.facts(
        {
            "task": f"{open_.task.name}, {len(open_.task)} pairs",
            "patched runs": widgets.thousands(cost.runs),
            "estimated time": cost.words,
        }
    )
    sure = cost.seconds <= LONG or st.checkbox(
        f"This will take {cost.words} on this machine. Run it anyway.",
        key=f"sure-{key}",
    )

    work = partial(interp.activation_patching, open_.model, open_.task, **arguments)
    jobs.prepare()
    widgets.start_button("Run", jobs.start, key, work, disabled=not sure)
    st.caption("The result is kept. The same call from Python or the command line reuses it.")


def _meaning(direction: str) -> None:
    """What an effect is."""
    st.divider()
    st.markdown("**What will be measured**, for every component $c$, with a 95 % interval:")
    st.latex(FORMULAS[direction])
    st.caption(
        "1 is the whole gap between the clean and the corrupted prompts; positive supports "
        "the behaviour. It is a ratio of means over prompts, so one prompt with a small gap "
        "cannot dominate."
    )


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
        options={name: names[name] for name in granularities(current().site)},
        help="Everything in a cell is patched together.",
    )
    if axis == "neuron" and "component" in current().by:
        _neurons(open_)
    picker(
        st.radio,
        "Direction",
        "direction",
        options=DIRECTIONS,
        help="denoise: clean values into the corrupted run (is the component sufficient?). "
        "noise: corrupted values into the clean run (is it necessary?).",
    )
    _positions(open_)
    picker(
        st.selectbox,
        "Values come from",
        "source",
        options=SOURCES,
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


if __name__ == "__main__":
    _show()
