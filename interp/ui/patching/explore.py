"""A finished sweep: its map, its ranking, the cell looked at, and the ways to take it away."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.core.files import json_text
from interp.plots.components import component_scatter
from interp.plots.style import symmetric_limit
from interp.results.scores import Scores
from interp.ui.patching import detail
from interp.ui.shared import cache, offered, widgets
from interp.ui.shared.state import CELL, cell, current, select, strangers

CAVEATS = {
    "denoise": "A large effect shows that the clean value here is enough to restore part of the "
    "behaviour in an otherwise corrupted run. It does not show that the component is needed "
    "(others may do the same), or which later component reads it.",
    "noise": "A large effect shows that the behaviour suffers when this value is corrupted. A "
    "small one does not show that the component is idle: others may compensate.",
}


@st.fragment
def explore(open_: cache.Opened, result: cache.Result, key: str) -> None:
    """Map, ranking and detail: a click reruns this part alone."""
    scores = result.scores
    if unknown := strangers(scores, current()):
        parts = " and ".join(f"{name} {getattr(current(), name)}" for name in unknown)
        st.warning(f"These results have no {widgets.plain(parts)}.", icon=":material/link_off:")
        select(**unknown)
    place = cell(scores, current())
    left, right = st.columns([5, 7], gap="large")
    with left:
        _map(scores, place)
        _pick_by_keyboard(scores)
    with right:
        _ranking(result, place)
        if place is None:
            st.info("Click a cell of the map, or a row above.", icon=":material/ads_click:")
        else:
            detail.effect(result, place)
    if place is not None:
        detail.inside(open_, result, place)
    _take_away(result, place, key)
    st.caption(f"**What this does not show.** {CAVEATS[scores.direction]}")


def _map(scores: Scores, place: tuple[int, ...] | None) -> None:
    """The effect of every cell, clickable."""
    if len(scores.axes) == 3:
        widgets.picker(
            st.selectbox,
            "Position shown",
            "position",
            options=scores.coordinates["position"],
            index=None,
            placeholder="largest over positions",
        )
    columns = [axis for axis in scores.axes[1:] if len(scores.axes) == 2 or axis != "position"]

    def picked(data: list[int]) -> None:
        row, column = data
        changes: dict[str, Any] = {"layer": int(scores.coordinates["layer"][row])}
        if columns == ["position"]:
            changes["position"] = scores.coordinates["position"][column]
        elif columns:
            changes["head"] = int(scores.coordinates[columns[0]][column])
        select(**changes)

    selected = None if place is None else (place[0], place[1] if columns else 0)
    shown = current().position if len(scores.axes) == 3 else None
    figure = (
        _neuron_figure(scores, shown, selected)
        if columns == ["neuron"]
        # One scale at every position, so that a weak one looks weak.
        else scores.plot(position=shown, selected=selected, limit=symmetric_limit(scores.values))
    )
    widgets.clickable(
        figure,
        key="map",
        alt=f"Effect of {scores.site} by {' and '.join(scores.axes)}",
        filename=f"{scores.provenance.task}-{scores.site}",
        picked=picked,
    )


def _neuron_figure(scores: Scores, position: str | None, selected: tuple[int, int] | None) -> Any:
    values, errors, _, _ = scores.grid(position)
    layers, neurons = scores.coordinates["layer"], scores.coordinates["neuron"]
    return component_scatter(
        values,
        x=neurons,
        y=layers,
        x_title="neuron",
        y_title="layer",
        colour_title="effect (fraction of the gap)",
        stderr=errors,
        selected=selected,
        names=[[f"L{layer}N{neuron}" for neuron in neurons] for layer in layers],
    )


def _pick_by_keyboard(scores: Scores) -> None:
    """The click's twin: numbers for layer and component, a list for positions, and Clear."""
    unit = next((axis for axis in scores.axes[1:] if axis != "position"), None)
    columns = st.columns([2, 2, 1.4], vertical_alignment="bottom")
    for column, axis, field in ((0, "layer", "layer"), (1, unit, "head")):
        if axis is None:
            continue
        numbers = [int(label) for label in scores.coordinates[axis]]
        name = widgets.UNITS.get(axis, axis)
        with columns[column]:
            widgets.picker(
                st.number_input,
                name[0].upper() + name[1:],
                field,
                min_value=numbers[0],
                max_value=numbers[-1],
                value=None,
                placeholder="none",
            )
    if unit is None and "position" in scores.axes:
        with columns[1]:
            widgets.picker(
                st.selectbox,
                "Position",
                "position",
                options=scores.coordinates["position"],
                index=None,
                placeholder="none",
            )
    columns[2].button(
        "Clear", on_click=select, kwargs=CELL, disabled=current().layer is None, width="stretch"
    )


def _ranking(result: cache.Result, place: tuple[int, ...] | None) -> None:
    """The strongest cells, and the same number of random ones."""
    scores = result.scores
    usual = min(10, max(1, scores.values.size // 4))
    title, number = st.columns([4, 1], vertical_alignment="bottom")
    k = number.number_input("How many", 1, min(100, scores.values.size), usual, key="top-k")
    title.markdown(f"**Top {k}** of {scores.values.size} cells by effect, as fractions of the gap")
    low, high = result.interval
    top = list(result.ranked.values())[:k]
    cells = [scores.index(str(found.component), found.position) for found in top]
    chosen = next((row for row, at in enumerate(cells) if at == place), None)
    key = f"top-{place}"

    def picked() -> None:
        if rows := st.session_state[key].selection.rows:
            found = top[rows[0]]
            select(layer=found.component.layer, head=found.component.index, position=found.position)

    st.dataframe(
        [
            {
                "rank": found.rank,
                "component": found.label,
                "effect": found.value,
                "stderr": found.stderr,
                "95 % interval": widgets.span(low[at], high[at]),
            }
            for found, at in zip(top, cells, strict=True)
        ],
        key=key,
        hide_index=True,
        height=min(10, k) * 30 + 32,
        row_height=30,
        on_select=picked,
        selection_mode="single-row",
        selection_default={"selection": {"rows": [] if chosen is None else [chosen]}},
        column_config={
            "rank": st.column_config.NumberColumn(width="small"),
            "effect": st.column_config.NumberColumn(format="%.3f"),
            "stderr": st.column_config.NumberColumn(format="%.3f"),
        },
    )
    # Where a layer has one component only, the control is the same site in other layers.
    alone = not set(scores.axes) - {"layer", "position"}
    where, band = ("any layer", len(scores.coordinates["layer"])) if alone else ("same layers", 0)
    try:
        test = result.test(k, band)
    except InterpError as error:
        st.caption(f"No test of the top {k}: {widgets.plain(error.found)}.")
    else:
        random = widgets.estimate(test.mean, test.low, test.high)
        st.caption(
            f"**More than noise?** The top {k} by effect, the most positive first, compared "
            f"with the top {k} after flipping the signs of prompts: "
            f"{test.flips}{test.warning}. **How strong?** Selected on one half of the prompts, "
            f"they have on the other half a mean effect of {test.unseen}; random ones "
            f"({where}) {random}."
        )


def _take_away(result: cache.Result, place: tuple[int, ...] | None, key: str) -> None:
    """Files, and the Python that gives the number again."""
    scores = result.scores
    name = f"{scores.provenance.task}-{scores.site}-{key[:8]}"
    st.subheader("Export", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "CSV",
            lambda: scores.to_dataframe().to_csv(index=False),
            file_name=f"{name}.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )
        st.download_button(
            "JSON",
            lambda: offered.shown(json_text(scores.to_dict(), indent=1), scores.provenance),
            file_name=f"{name}.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
        )
        st.caption("PNG: the camera above each figure. Link: the address bar.")
    call = scores.provenance.call
    if place is not None:
        found = result.ranked[scores.label(place)]
        at = "" if found.position is None else f", {found.position!r}"
        call += f"\nprint(scores.estimate({str(found.component)!r}{at}))"
    st.markdown("Python that reproduces " + ("this map" if place is None else "this number"))
    st.code(offered.shown(call, scores.provenance), language="python", wrap_lines=True)
