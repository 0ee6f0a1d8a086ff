"""One circuit looked at: its graph, its edges, an edge or node of it, and ways to take it away."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.find import Findings
from interp.circuits.drawing import draw_circuit
from interp.circuits.files.mib import to_mib_json
from interp.circuits.files.saved import save_circuit
from interp.core.errors import InterpError
from interp.ui.circuits import search
from interp.ui.circuits.search import Asked
from interp.ui.shared import export, offered, widgets
from interp.ui.shared.state import current, select

NONE: dict[str, Any] = {"edge": None, "node": None}


@st.fragment
def graph(ask: Asked, found: Findings) -> None:
    """The circuit at the chosen size, clickable."""
    if called := st.session_state.pop("circuit-kept", None):
        st.toast(f"Kept as {widgets.plain(called)}", icon=":material/bookmark_added:")
    made = _sized(ask, found)
    if made is None:
        return
    _check_picked(made)
    left, right = st.columns([7, 5], gap="large")
    with left:
        drawing = draw_circuit(
            made.graph, made.mask, found.signed, edge=current().edge, node=current().node
        )
        hidden = f", the strongest; {drawing.hidden} hidden" if drawing.hidden else ""
        outside, every = (
            widgets.thousands(count)
            for count in (found.graph.n_edges - made.n_edges, found.graph.n_edges)
        )
        st.caption(
            f"Drawn: {drawing.drawn} of the circuit's {made.n_edges} edges{hidden}. Not in the "
            f"circuit: {outside} of {every} edges, with "
            f"{1 - found.share(made.mask):.1%} of the total absolute effect. Width: size of the "
            "score. A query enters a head at its left, a value at its right."
        )
        widgets.figure(
            drawing.figure,
            key="circuit-graph",
            alt=f"Graph of {made.n_edges} edges between {len(made.nodes())} nodes",
            filename="circuit",
            picked=lambda data: _pick(made, data),
        )
    with right:
        _by_keyboard(made)
        rows = _rows(found, made)
        shown = _detail(found, made, rows)
        edges = [row["edge"] for row in shown]
        widgets.table(
            [{_unit(found) if x == "score" else x: row[x] for x in row} for row in shown],
            key=f"circuit-rows-{current().edge}-{current().node}",
            decimals=4,
            most=12,
            picked=lambda row: select(edge=edges[row]),
            chosen=edges.index(current().edge) if current().edge in edges else None,
        )
    _take_away(ask, found, made, rows)
    st.caption(
        "**What this does not show.** A score estimates what removing one edge does while all "
        "others stay, so edges that can replace each other all score low. The faithfulness "
        "view measures how much of the behaviour the circuit carries."
    )


def _sized(ask: Asked, found: Findings) -> Circuit | None:
    """The size, by number of edges or by share of the total absolute effect."""
    usual = search.usual_size(ask.key)
    try:
        made = search.shown(ask)
    except InterpError as error:
        widgets.show_error(error)
        st.button("Clear", on_click=select, kwargs={"edges": None})
        return None
    size, share, clear = st.columns([2, 5, 2], vertical_alignment="bottom")
    st.session_state["circuit-size"] = current().edges or usual or made.n_edges
    st.session_state["circuit-share"] = min(100, max(1, round(100 * found.share(made.mask))))

    def resized() -> None:
        select(edges=int(st.session_state["circuit-size"]), **NONE)

    def shared() -> None:
        select(edges=found.edges_for(st.session_state["circuit-share"] / 100), **NONE)

    size.number_input(
        "Edges, at most", 1, found.graph.n_edges, key="circuit-size", on_change=resized,
        help="The strongest edges by absolute score. Those on no path from the input to the "
        "logits do not count.",
    )  # fmt: skip
    share.slider(
        "Share of the total absolute effect", 1, 100, key="circuit-share", on_change=shared,
        format="%d %%", help="The fewest strongest edges with this much of the summed |score|.",
    )  # fmt: skip
    own = "As the method chose" if usual is None else "As at first"
    clear.button(
        own, on_click=select, kwargs={"edges": None, **NONE},
        disabled=current().edges is None, width="stretch",
    )  # fmt: skip
    return made


def _check_picked(made: Circuit) -> None:
    """Clear an edge or node, perhaps of a link, that the circuit does not have."""
    for field, known in (("edge", made.edges()), ("node", made.nodes())):
        name = getattr(current(), field)
        if name is not None and name not in known:
            st.warning(f"{widgets.plain(name)} is not in the circuit.", icon=":material/link_off:")
            select(**{field: None})


def _pick(made: Circuit, data: list[int]) -> None:
    kind, writer, reader = data
    if kind == 0:
        select(edge=made.graph.label(writer, reader))
    else:
        select(**NONE | {"node": made.graph.writers[writer] if writer >= 0 else None})


def _by_keyboard(made: Circuit) -> None:
    """The same as a click, by keyboard."""
    left, right, clear = st.columns([4, 3, 2], vertical_alignment="bottom")
    none = {"index": None, "placeholder": "none"}
    widgets.picker(left.selectbox, "Edge", "edge", options=made.edges(), **none)
    widgets.picker(right.selectbox, "Node", "node", options=made.nodes(), **none)
    clear.button(
        "Clear", key="circuit-clear", on_click=select, kwargs=NONE, width="stretch",
        disabled=current().edge is None and current().node is None,
    )  # fmt: skip


def _rows(found: Findings, made: Circuit) -> list[dict[str, Any]]:
    """The circuit's edges, the strongest first."""
    rows = [
        {
            "edge": made.graph.label(writer, reader),
            "score": float(found.signed[writer, reader]),
            "stderr": None if found.stderr is None else float(found.stderr[writer, reader]),
        }
        for writer, reader in zip(*(part.tolist() for part in made.mask.nonzero()), strict=True)
    ]
    rows.sort(key=lambda row: -abs(row["score"]))
    return [{"rank": place, **row} for place, row in enumerate(rows, 1)]


def _detail(found: Findings, made: Circuit, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The edge or node looked at; returns the rows that concern it."""
    edge, node = current().edge, current().node
    total = sum(abs(row["score"]) for row in rows) or 1.0
    if edge is not None:
        row = next(row for row in rows if row["edge"] == edge)
        error = "" if row["stderr"] is None else f" ± {row['stderr']:z.4f} (standard error)"
        st.subheader(edge, anchor=False)
        st.markdown(
            f"{_unit(found)}: **{row['score']:+z.4f}**{error} · rank **{row['rank']} of "
            f"{len(rows)}** in the circuit · {abs(row['score']) / total:.1%} of the circuit's "
            "absolute effect"
        )
        return rows
    if node is None:
        st.info("Click an edge, a node, or a row below.", icon=":material/ads_click:")
        return rows
    place = made.graph.writer(node)
    out = [row for row in rows if row["edge"].startswith(f"{node}->")]
    into = {made.graph.readers[r] for r in made.graph.feeds[:, place].nonzero()[0].tolist()}
    inward = [row for row in rows if row["edge"].partition("->")[2] in into]
    st.subheader(node, anchor=False)
    st.markdown(
        f"**{len(out)}** edges out, {_unit(found)}, in sum "
        f"**{sum(row['score'] for row in out):+z.4f}** · **{len(inward)}** edges in"
    )
    return inward + out


def _unit(found: Findings) -> str:
    """What a score is, with its unit."""
    turn = "effect at its turn (of the gap)"
    return {
        "learned-mask": "openness (0 to 1)",
        "ACDC": turn,
        "ACDC-paper": turn,
        "information-flow-routes": "share (of what is read)",
        "exact": "effect (of the gap)",
    }.get(found.method, "estimated effect (of the gap)")


def _take_away(ask: Asked, found: Findings, made: Circuit, rows: list[dict[str, Any]]) -> None:
    """Keep it for comparisons, files, and the Python that gives it again."""
    name = f"{found.provenance.task}-{found.method}-{made.n_edges}"
    st.subheader("Export", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Keep to compare", icon=":material/bookmark_add:", on_click=_keep, args=(made,))
        widgets.downloads(
            {
                "CSV": (lambda: widgets.csv_text(rows), "csv"),
                "MIB JSON": (lambda: _mib(made, ask), "mib.json"),
            },
            name=name,
        )
    asked = current().edges or search.usual_size(ask.key)
    if asked is None:
        last = "mask = found.mask"
    else:
        score = "scores" if found.chosen is None else "found"
        last = f"mask = interp.circuits.top_edges({score}, {asked})"
    call = offered.shown(found.provenance.call, found.provenance)
    export.python(f"{call}\n\n{last}", name=name)


def _keep(made: Circuit) -> None:
    called = save_circuit(made)
    st.session_state["circuit-kept"] = called
    select(left=current().left or called)


def _mib(made: Circuit, ask: Asked) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = to_mib_json(made, Path(folder) / "circuit.json", d_model=ask.open_.model.d_model)
        return path.read_text(encoding="utf-8")
