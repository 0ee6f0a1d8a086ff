"""Patching: which components carry the behaviour, and one of them looked at."""

from __future__ import annotations

from functools import partial

import streamlit as st

import interp
from interp.core.components import SITES
from interp.engine.cost import Cost
from interp.ui.patching.estimate import calibrated, estimated
from interp.ui.patching.explore import explore, is_of_paths
from interp.ui.patching.paths import choose_receivers, offer_paths, path_controls
from interp.ui.prompts import frame
from interp.ui.shared import cache, jobs, offered, opening, widgets
from interp.ui.shared.cache import Opened
from interp.ui.shared.state import current, granularities, select
from interp.ui.shared.widgets import COMPONENTS, picker, plain

FIRST = (
    "**Which first?** *z* by head, the default: which heads. Then *resid_pre* by position: on "
    "which tokens, from which layer. Then *mlp_out* by layer, and *post* for single neurons."
)
NO_ESTIMATE = (
    "**No estimate for paths.** One gradient tells what a change of a head does through all later "
    "parts; what passes through these receivers alone takes a run for each sender. The map below "
    "is of whole heads, for choosing receivers."
)
ENOUGH = 16
"""Pairs below which a hint says that there are few."""
LONG = 60.0  # seconds beyond which a run asks first

FORMULAS = {
    "denoise": r"\text{effect}(c) = \left(\overline{m}[\text{corrupted run, } c \leftarrow "
    r"\text{patched}] - \overline{m}[\text{corrupted}]\right)",
    "noise": r"\text{effect}(c) = \left(\overline{m}[\text{clean}] - "
    r"\overline{m}[\text{clean run, } c \leftarrow \text{patched}]\right)",
}
GAP = r"\left(\overline{m}[\text{clean}] - \overline{m}[\text{corrupted}]\right)"
DIRECTIONS = {"denoise": "denoise (clean → corrupted)", "noise": "noise (corrupted → clean)"}
PATCHED = {"components": "Components", "paths": "Paths"}
SOURCES = {"other": "the other run", "zero": "zeros", "mean": "mean over other prompts"}


def _show() -> None:
    opening.intro(
        "Patching",
        does="It puts one component's activation from one run of a pair into the other run, and "
        "measures how much of the behaviour comes with it. On paths, only through chosen inputs.",
        when="To find which heads, neurons, layers or tokens carry a behaviour, on a set of pairs.",
        lacks="How the component does it, or what other prompts would show.",
    )
    if current().model is None:
        model = next(iter(offered.offered()))
        begin = partial(_begin, model)
        frame.ioi_example(plain(model), "Which heads", "Run the example", begin)
        return
    open_ = cache.opened()
    with st.sidebar:
        widgets.choose("What is patched", "patched", PATCHED, segments=True)
        paths = current().patched == "paths"
        (path_controls if paths else sweep_controls)(open_)
        common_controls(open_, swept=not paths and "position" in current().by)
    _whole_answers(open_)
    if paths:
        _paths(open_)
    else:
        _components(open_)


def _begin(model: str) -> None:
    select(model=model, task="ioi", n=16)
    st.session_state["begin"] = True


def _whole_answers(open_: Opened) -> None:
    """Which tokens are scored, and how many, if an answer is several."""
    targets = open_.encoded.targets
    if targets.strings is None:
        return
    sizes = sorted({len(tokens) for some in targets.strings for tokens in some})
    many = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    first = targets.strings[0][int(targets.answers[0, 0])]
    shown = plain(" | ".join(map(widgets.visible, open_.model.strings(first))))
    st.caption(
        f"**Answers are scored whole**, by {open_.task.metric.name}: {many} tokens each, such as "
        f"{shown} ({len(first)})."
    )


def _components(open_: Opened) -> None:
    """Effects of whole components: the estimate, the run and the result."""
    arguments = cache.sweep(current(), open_)
    key, cost = cache.plan(open_, arguments)
    name = plain(offered.without_paths(open_.model.name))
    work = partial(interp.activation_patching, open_.model, open_.task, **arguments)
    if st.session_state.pop("begin", False) and cache.result(key) is None:
        jobs.start(key, work)
    result = jobs.result(
        key,
        cache.result,
        lambda: _ready(open_, key, work, cost),
        title=f"Patching {arguments['site']} in {name}",
        kept="Finished chunks are kept; Run continues from them.",
    )
    if result is None:
        estimated(open_, arguments, key)
        _meaning(current().direction, open_)
        return
    _stored(result)
    explore(open_, result, key, partial(offer_paths, open_.model))
    calibrated(open_, arguments, result.scores)


def _paths(open_: Opened) -> None:
    """Effects through the inputs of receivers: choosing them, the run and the result."""
    if not current().receivers:
        choose_receivers(open_)
        return
    arguments = cache.paths(current(), open_)
    key, cost = cache.paths_plan(open_, arguments)
    work = partial(interp.path_patching, open_.model, open_.task, **arguments)
    result = jobs.result(
        key,
        cache.result,
        lambda: _ready(open_, key, work, cost),
        title="Paths into " + plain(", ".join(current().receivers)),
        kept="Finished prompts are kept; Run continues from them.",
    )
    if result is None:
        st.caption(NO_ESTIMATE)
        choose_receivers(open_)
        return
    _stored(result)
    explore(open_, result, key, partial(offer_paths, open_.model))


def _stored(result: cache.SweepResult) -> None:
    """Where the numbers of a result come from."""
    scores = result.scores
    widgets.negative_gap(scores)
    metrics = f"{scores.clean.mean():z.3f} → {scores.corrupted.mean():z.3f} {scores.metric_unit}"
    widgets.stored_result(
        f"{scores.method[0].upper()}{scores.method[1:]}"
        + ("" if is_of_paths(scores) else f" of {scores.site}"),
        scores.provenance,
        scores.n,
        {
            f"{scores.metric}, clean → corrupted": metrics,
            "direction": scores.direction,
            "positions": scores.positions,
            "engine": scores.extra.get("engine", "fast"),
        },
    )


def _ready(open_: Opened, key: str, work: jobs.Work, cost: Cost) -> None:
    """What will be measured, what it will take, and the button."""
    widgets.facts(
        {
            "task": f"{open_.task.name}, {len(open_.task)} pairs",
            "patched runs": widgets.thousands(cost.runs),
            "estimated time": cost.words,
        }
    )
    sure = cost.seconds <= LONG or st.checkbox(
        f"This will take {cost.words} on this machine. Run it anyway.", key=f"sure-{key}"
    )
    widgets.start_button("Run", jobs.start, key, work, disabled=not sure)
    st.caption("The result is kept. The same call from Python or the command line reuses it.")
    n = len(open_.task)
    st.caption(
        "**How many pairs?** 16 are a start and 32 the default. An interval shrinks with the root "
        "of their number; fewer than 4 have no test."
        + (f" Here: {n}; add some on Setup." if n < ENOUGH else "")
    )


def _meaning(direction: str, open_: Opened) -> None:
    """What an effect is."""
    st.divider()
    st.markdown("**What will be measured**, for every component $c$, with a 95 % interval:")
    if current().unit == "metric":
        metric = open_.task.metric
        st.latex(FORMULAS[direction])
        st.caption(
            f"A mean over prompts, in {plain(metric.unit or metric.name)}; positive supports the "
            "behaviour."
        )
        return
    st.latex(rf"{FORMULAS[direction]} \Big/ {GAP}")
    st.caption(
        "1 is the whole gap between the clean and the corrupted prompts; positive supports "
        "the behaviour. It is a ratio of means over prompts, so one prompt with a small gap "
        "cannot dominate."
    )


def sweep_controls(open_: Opened) -> None:
    """Site, granularity and source; for neurons also which ones."""
    model = open_.model
    offered = [site for site, reason in model.sites.items() if reason is None]
    picker(
        st.selectbox,
        "Site",
        "site",
        options=offered,
        help="Which activation is patched. The Setup page explains each one, and says why others "
        "are not offered for this model.",
    )
    st.caption(FIRST)
    axis = SITES[current().site]
    word = COMPONENTS[axis] if axis else "component"
    names = {
        "component": f"layer × {word}",
        "position": "layer × position",
        "component-position": f"layer × {word} × position",
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
        st.selectbox,
        "Values come from",
        "source",
        options=SOURCES,
        help="Zeros and means are ablations: they ignore the other run. A mean is over every "
        "token of other prompts of the task, drawn with the next seed.",
    )


def common_controls(open_: Opened, *, swept: bool) -> None:
    """What components and paths have in common: direction, positions and unit."""
    picker(
        st.radio,
        "Direction",
        "direction",
        options=DIRECTIONS,
        help="denoise: clean values into the corrupted run (is the component sufficient?). "
        "noise: corrupted values into the clean run (is it necessary?).",
    )
    _positions(open_, swept)
    task = open_.task
    picker(
        st.selectbox,
        "Unit",
        "unit",
        options={
            "gap": "fraction of the gap",
            "metric": task.metric.unit or task.metric.name,
        },
        help="The gap is clean minus corrupted. Fractions of it can be compared between models. "
        "Where it is small or negative, take the metric's own unit.",
    )


def _positions(open_: Opened, swept: bool) -> None:
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
