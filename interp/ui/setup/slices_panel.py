"""Slices of the loaded prompts: groups with like states and scores, refined and kept as a task."""

from __future__ import annotations

import streamlit as st

import interp
from interp.core.errors import InterpError
from interp.probing.slices import Slices
from interp.ui.prompts.frame import load_call, take_away
from interp.ui.setup.own_prompts import keep_pairs
from interp.ui.shared import cache, widgets
from interp.ui.shared.state import current, fit, select

DRAWS = 200
CUTS = tuple(f"{x / 100:g}" for x in range(5, 55, 5))
WEIGHTS = ("0", "0.25", "0.5", "0.75", "1")
CUT, WEIGHT = "0.25", "0.5"
"""What is shown before one is chosen."""


def slices_panel(open_: cache.Opened) -> None:
    """The slices, once they are asked for: what they are, how they are cut, one of them, its task.

    A link names the slice that is looked at; without one nothing is computed.
    """
    st.subheader("Slices", anchor=False)
    st.markdown(
        "Which of these prompts are alike to the model **and** score alike? A slice is a group "
        "with like states at the last token and like values of the metric. A slice can be kept as "
        "a task of its own, and measured like any other."
    )
    if current().slice is None:
        widgets.start_button("Find slices", lambda: select(slice=0))
        return
    try:
        _slices(open_)
    except InterpError as error:
        widgets.show_error(error)


def _slices(open_: cache.Opened) -> None:
    model = open_.model
    fit(layer=range(model.n_layers), cut=CUTS, weigh=WEIGHTS)
    chosen = current()
    layer = model.n_layers // 2 if chosen.layer is None else chosen.layer
    place, share, reach = st.columns(3)
    widgets.picker(
        place.number_input, "States behind layer", "layer", shown=layer,
        min_value=0, max_value=model.n_layers - 1,
    )  # fmt: skip
    widgets.picker(
        share.select_slider, "Weight of the states, beside the score", "weigh",
        shown=chosen.weigh or WEIGHT, options=WEIGHTS,
    )  # fmt: skip
    widgets.picker(
        reach.select_slider, "Largest mean distance in a slice", "cut",
        shown=chosen.cut or CUT, options=CUTS, help="Smaller: more and smaller slices.",
    )  # fmt: skip
    options = {"layer": layer, "weight": float(chosen.weigh or WEIGHT)}
    options |= {"cut": float(chosen.cut or CUT), "draws": DRAWS}
    found = _found(open_, **options)
    fit(slice=range(len(found.p)))
    number = current().slice or 0
    rows: widgets.Rows = found.to_dataframe().to_dict("records")  # type: ignore[assignment]
    left, right = st.columns([3, 2], gap="large")
    with left:
        metric = open_.task.metric.name
        shown: widgets.Rows = [
            {
                "slice": row["slice"],
                "n": row["n"],
                metric: row["score"],
                "95 % interval": widgets.span(row["low"], row["high"]),
                "p": row["p"],
                "by state alone": row["alone"],
            }
            for row in rows
        ]
        widgets.table(
            shown, key="slices", picked=lambda row: select(slice=row), chosen=number, most=10
        )
        st.caption(
            f"p: of {DRAWS} draws with scores dealt at random among prompts of like states, the "
            "share with a slice as strong (its excess of score times how close its states are), "
            "corrected for the slices. By state alone: overlap with a group that ignores the "
            "score; at 1 the scores add nothing."
        )
    widgets.figure(found.plot(), key="slice-scores", alt="Mean score of every slice", into=right)
    _one(open_, found, number)
    call = (
        f"{load_call(model)}\ntask = {open_.task.source}\n"
        "found = interp.probing.slice_prompts(\n    model, task, "
        f"{', '.join(f'{name}={value!r}' for name, value in options.items())}\n)\n"
        f"print(found.to_dataframe().to_string())\nprint(found.members({number}))"
    )
    told = {"rows": rows, "slice of each prompt": found.of.tolist(), "options": options}
    take_away("slices", lambda: rows, lambda: told, call)


@st.cache_resource(max_entries=8, show_spinner="Slicing …", hash_funcs=cache.HASHES)
def _found(open_: cache.Opened, **options: float) -> Slices:
    return interp.probing.slice_prompts(open_.model, open_.task, **options)  # type: ignore[arg-type]


def _one(open_: cache.Opened, found: Slices, number: int) -> None:
    """The prompts of a slice; some can be left out, and the rest is kept as a task."""
    members = found.members(number)
    st.markdown(f"**Slice {number}: {len(members)} of {len(found.of)} prompts**")
    pairs = open_.task.pairs
    widgets.table(
        [
            {
                "pair": i,
                open_.task.metric.name: float(found.scores[i]),
                "clean": widgets.visible(str(pairs[i].clean)),
            }
            for i in members
        ],
        key="slice-members",
        widths={"pair": 60, "clean": 760},
        most=8,
    )
    without, name, button = st.columns([3, 2, 1], vertical_alignment="bottom")
    left_out = without.multiselect(
        "Leave out", members, key=f"left-out-{open_.key}-{members}", placeholder="no pair",
        help="Pairs that you do not count to the slice.",
    )  # fmt: skip
    kept = [pairs[i] for i in members if i not in left_out]
    title = name.text_input("Name of the task", f"slice-{number}", key=f"slice-name-{number}")
    if button.button("Keep as a task", disabled=not kept or not title, width="stretch"):
        keep_pairs(kept, title)
    st.caption(
        "A slice is a hypothesis: it was found on these prompts, with their scores. Test what you "
        "see in it on others."
    )
