"""Circuits: which edges carry the behaviour, how much of it, and what two circuits share."""

from __future__ import annotations

from functools import partial

import streamlit as st

from interp.ui.circuits import search
from interp.ui.circuits.curves import faithfulness, overlap
from interp.ui.circuits.graph import graph
from interp.ui.circuits.positions import tokens
from interp.ui.circuits.search import METHODS, PRICES, REMOVED, Asked
from interp.ui.prompts import frame
from interp.ui.shared import cache, jobs, offered, opening, widgets
from interp.ui.shared.state import current, fit, select

SECTIONS = {"graph": graph, "tokens": tokens, "faithfulness": faithfulness, "overlap": overlap}
BEGUN = "circuit-example"
FORMULA = (
    r"\text{score}(u \to v) \approx \frac{\overline{m}[\text{clean}] - \overline{m}"
    r"[\text{clean run, } v \text{ reads } u \text{ as removed}]}"
    r"{\overline{m}[\text{clean}] - \overline{m}[\text{corrupted}]}"
)

GAP = "1 is the whole gap between clean and corrupted prompts; positive supports the behaviour."
TURN = f"The change when the edge is removed after the edges dropped before it. {GAP}"
OTHER = {
    "ACDC": TURN,
    "ACDC-paper": TURN,
    "learned-mask": "How open its trained gate is, from 0 to 1: 1 is kept.",
    "information-flow-routes": "The share of what $v$ reads that $u$ wrote; no effect is measured.",
}
"""The meaning of scores that do not estimate an edge's removal from the whole model."""


def _show() -> None:
    opening.intro(
        "Circuits",
        does="It scores every edge between heads and MLPs, keeps the strongest, and judges what "
        "they carry on other prompts, beside random circuits of the same size.",
        when="When single components are known, to see how they are connected.",
        lacks="What an edge carries. A circuit holds for these prompts and this way of removing "
        "edges.",
    )
    begun = st.session_state.pop(BEGUN, False)
    if current().model is None:
        model = next(iter(offered.offered()))
        begin = partial(_begin, model)
        frame.ioi_example(widgets.plain(model), "Which edges", "Run the example", begin)
        return
    open_ = cache.opened()
    with st.sidebar:
        _controls()
    ask = search.asked(open_)
    fit(edges=range(1, ask.graph.n_edges + 1))
    name = widgets.plain(offered.without_paths(open_.model.name))
    if begun and search.findings(ask.key) is None:
        search.start_finding(ask)
    title = f"A circuit for {open_.task.name} in {name}"
    found = jobs.result(ask.key, search.findings, lambda: _ready(ask), title=title)
    if found is None:
        return
    widgets.stored_result(
        f"{found.method} on {found.provenance.task}",
        found.provenance,
        found.n,
        {
            "pairs": f"{len(ask.find)} to find it, {len(ask.test)} others to judge it",
            "edges": widgets.thousands(found.graph.n_edges),
            "a removed edge carries": REMOVED[ask.finder.ablation],
        },
    )
    if found.warning:
        st.warning(f"{found.warning[0].upper()}{found.warning[1:]}.", icon=":material/warning:")
    with st.expander("Protocol"):
        st.markdown(widgets.plain(found.protocol))
    widgets.picker(
        st.segmented_control,
        "What to look at",
        "look",
        options=list(SECTIONS),
        required=True,
        help="graph: the circuit itself. tokens: where along the prompt its edges act. "
        "faithfulness: what it carries on other prompts, by size. "
        "overlap: two kept circuits.",
    )
    SECTIONS[str(current().look)](ask, found)


def _begin(model: str) -> None:
    """Choose the example; the search starts once its model is loaded."""
    select(model=model, task="ioi", n=16)
    st.session_state[BEGUN] = True


def _controls() -> None:
    """How the circuit is found."""
    usual = {"finder": METHODS, "removed": REMOVED, "look": SECTIONS}
    fit(**usual)
    for field, values in usual.items():
        if getattr(current(), field) is None:
            select(**{field: next(iter(values))})
    widgets.picker(st.selectbox, "Method", "finder", options=list(METHODS))
    method = str(current().finder)
    st.caption(f"{METHODS[method][0].upper()}{METHODS[method][1:]}.")
    widgets.picker(st.selectbox, "A removed edge carries", "removed", options=REMOVED)
    fit(price=PRICES.get(method, ()))
    if method in PRICES:
        if current().price is None:
            select(price=PRICES[method][0])
        widgets.picker(
            st.select_slider,
            "Threshold, a share of the gap" if "ACDC" in method else "Price of the whole graph",
            "price",
            options=sorted(PRICES[method], key=float),
            help="Higher: fewer edges.",
        )
    st.caption("Found on one half of the pairs, evaluated on the other.")


def _ready(ask: Asked) -> None:
    """The cost of the search, and the button."""
    widgets.facts(
        {
            "task": f"{ask.open_.task.name}, {len(ask.find)} of {len(ask.open_.task)} pairs",
            "edges": widgets.thousands(ask.graph.n_edges),
            "takes": ask.takes,
        }
    )
    sure = not ask.slow or st.checkbox(
        "This takes a run for each of many edges: hours on a model of this size. Run it anyway.",
        key=f"circuit-sure-{ask.key}",
    )
    widgets.start_button("Find", search.start_finding, ask, disabled=not sure)
    st.caption("The result is kept. `interp circuit find` and `interp.find_circuit` reuse it.")
    st.divider()
    st.markdown("**What will be measured**, for every edge from a writer $u$ to a reader $v$:")
    method = ask.finder.method
    if method in OTHER:
        st.markdown(OTHER[method])
    else:
        st.latex(FORMULA)
    st.caption(
        "Writers: the input, heads, MLPs. Readers: queries, keys and values, MLPs, the logits."
        + ("" if method in OTHER else f" {GAP}")
    )


if __name__ == "__main__":
    _show()
