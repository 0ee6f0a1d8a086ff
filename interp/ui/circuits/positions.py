"""One circuit token by token: where along the prompt its edges act, and what is left of it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.find import Findings
from interp.circuits.positions.drawing import draw_positions
from interp.circuits.positions.edge_positions import EdgePositions
from interp.circuits.positions.narrow import NarrowedCurve
from interp.circuits.positions.positioned_circuit import AT, PositionedCircuit
from interp.ui.circuits import search
from interp.ui.circuits.search import Asked
from interp.ui.shared import jobs, widgets
from interp.ui.shared.state import current, fit, select

FORMULA = (
    r"\text{effect}(u \to v, p) = \frac{\overline{m}[C] - \overline{m}[C \text{ without } u \to v"
    r"\text{ at } p]}{\overline{m}[\text{model}] - \overline{m}[\text{nothing kept}]}"
)
NONE: dict[str, Any] = {"edge": None, "place": None}


def tokens(ask: Asked, found: Findings) -> None:
    """The circuit at the size of the graph, cut to the tokens where it needs its edges."""
    made = search.shown(ask)
    done = jobs.result(ask.tokens_key(made), search.cuts, lambda: _ready(ask, made))
    if done is None:
        return
    if not done.thresholds:
        st.warning(
            "No threshold leaves a path from the input to the logits: the edges act at "
            "several tokens, and no single one is needed.",
            icon=":material/link_off:",
        )
        return
    _cut(done)


def _ready(ask: Asked, made: Circuit) -> None:
    places = search.places(ask)
    widgets.facts(
        {
            "circuit": f"{made.n_edges} edges",
            "separate tokens": ", ".join((*places, "elsewhere")),
            "takes": f"{made.n_edges} × {len(places) + 2} runs of {len(ask.find)} pairs, batched",
            "judged on": f"the other {len(ask.test)} pairs",
        }
    )
    widgets.start_button("Measure", search.start_tokens, ask, made)
    st.markdown("**What will be measured**, for every edge and token of the circuit $C$:")
    st.latex(FORMULA)


@st.fragment
def _cut(done: NarrowedCurve) -> None:
    """The cut at the chosen threshold, clickable."""
    known = [f"{threshold:g}" for threshold in done.thresholds]
    fit(worth=known)
    if current().worth is None:
        select(worth="0.01" if "0.01" in known else known[0])
    if len(known) > 1:
        widgets.picker(
            st.select_slider,
            "An edge stays at a token where it is worth this share of the gap",
            "worth",
            options=known,
        )
    number = 1 + known.index(str(current().worth))
    cut, effects = done.judged.circuits[number], done.effects
    marked = f"{current().edge}{AT}{current().place}"
    if marked not in cut.edges():
        marked = None
    _numbers(done, number)
    left, right = st.columns([7, 5], gap="large")
    with left:
        drawing = draw_positions(cut, effects.table(), edge=marked)
        hidden = f", the strongest; {drawing.hidden} hidden" if drawing.hidden else ""
        st.caption(
            f"Drawn: {drawing.drawn} of {cut.n_edges} edges by token{hidden}. An edge into a "
            "key or value ends at the token where its head writes, because attention carries "
            "it there."
        )
        widgets.figure(
            drawing.figure,
            key="circuit-tokens",
            alt=f"Graph of {cut.n_edges} edges by layer and token",
            filename="circuit-by-token",
            picked=lambda data: _pick(cut, data),
        )
    with right:
        _by_keyboard(cut, marked)
        _detail(cut, effects, marked)
    st.caption(f"**Protocol.** {widgets.plain(done.judged.protocol)}.")
    widgets.caveat(
        "Each edge is removed at one token at a time, so an edge that acts at either of two "
        "tokens, each enough, is dropped at both. What remains is judged on other prompts, "
        "above."
    )


def _numbers(done: NarrowedCurve, number: int) -> None:
    """What the cut keeps, beside the circuit kept at all tokens and random cuts."""
    judged = done.judged
    whole, cut, null = judged.estimate(0), judged.estimate(number), judged.null(number)
    sizes = judged.sizes.tolist()
    widgets.facts(
        {
            "edges by token": f"{sizes[number]} of {sizes[0]}",
            "f of the cut": widgets.value(cut),
            "f of its edges at all tokens": widgets.value(whole),
            "f of random cuts like it": widgets.value(null),
            "evaluated on": f"{judged.n} pairs it was not cut on",
        }
    )


def _pick(cut: PositionedCircuit, data: list[int]) -> None:
    kind, writer, reader, place = data
    if kind == 0:
        select(edge=cut.graph.label(writer, reader), place=cut.positions[place])


def _by_keyboard(cut: PositionedCircuit, marked: str | None) -> None:
    """The same as a click, by keyboard."""
    field, clear = st.columns([7, 2], vertical_alignment="bottom")
    st.session_state["token-edge"] = marked

    def changed() -> None:
        edge, _, place = (st.session_state["token-edge"] or "").partition(AT)
        select(edge=edge or None, place=place or None)

    field.selectbox(
        "Edge at a token", cut.edges(), index=None, key="token-edge", on_change=changed,
        placeholder="none",
    )  # fmt: skip
    clear.button(
        "Clear", key="token-clear", on_click=select, kwargs=NONE, width="stretch",
        disabled=marked is None,
    )  # fmt: skip


def _detail(cut: PositionedCircuit, effects: EdgePositions, marked: str | None) -> None:
    """The edge looked at, at every token; or all that is left, the strongest first."""
    if marked is None:
        st.info("Click an edge, or choose one.", icon=":material/ads_click:")
        labels = cut.edges()
    else:
        edge = marked.partition(AT)[0]
        st.subheader(edge, anchor=False)
        whole = float(effects.whole[effects.edges.index(edge)])
        st.markdown(f"Removed at all tokens: **{whole:+z.4f}** of the gap. At one alone:")
        labels = [f"{edge}{AT}{place}" for place in effects.positions]
    rows = []
    for label in labels:
        edge, _, place = label.partition(AT)
        value = effects.estimate(edge, place)
        rows.append(
            {
                "edge": edge,
                "token": place,
                "effect": value.mean,
                "95 % interval": widgets.interval(value),
                "kept": label in cut,
            }
        )
    rows.sort(key=lambda row: -abs(row["effect"]))
    widgets.table(rows, key=f"token-rows-{marked}")
