"""Heads: which attend to the target, which carry the verdict, and how few disable it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from interp.plots.lines import head_map
from interp.studies.formatting import place
from interp.studies.steps import Result
from interp.studies.verification.steps.finding_heads import strongest
from interp.ui.shared import widgets
from interp.ui.studies import open_study
from interp.ui.studies.pages import VERIFICATION_PAGES
from interp.ui.verification.heads_detail import curve, detail, searched, strongest_beside_others

MEASURES = {"mean": "mean attention", "excess": "excess over other tokens"}
EFFECTS = {
    "noise": "Patching, noise: is it needed?",
    "denoise": "Patching, denoise: does it suffice?",
}


def show() -> None:
    """The page."""
    study = open_study.opened(VERIFICATION_PAGES, "Heads")
    if study is None:
        return
    if not open_study.ready(study, "attention"):
        return
    results = study.results
    pairs = results["patching"]["n"] if "patching" in results else "–"
    open_study.provenance(
        study, "attention", "patching", "smallest", "curves", **{"patched pairs": pairs}
    )
    st.info(
        "The paper's *previous-token heads* (A\\_Prev) attend from the answer to **earlier "
        "occurrences of the same number**, not to the position t - 1.",
        icon=":material/info:",
    )
    _maps(results)
    st.header("How few heads disable verification?", anchor=False)
    if open_study.ready(study, "curves"):
        curve(results["curves"])
    if "smallest" in results:
        searched(results["smallest"])
    names = ("attention", "patching", "smallest", "curves", "stability")
    open_study.take_away(
        study, "heads", _rows(results["attention"]), {n: results[n] for n in names if n in results}
    )
    widgets.caveat(
        "Attention to the target does not show that the head writes the verdict, and a "
        "patching effect does not show the path. Heads that back each other up have small "
        "effects one at a time; the curve ablates them together."
    )


@st.fragment
def _maps(results: dict[str, Result]) -> None:
    """Attention and patching effects of every head, clickable, and the head looked at."""
    found = results["attention"]
    left, middle, right = st.columns([3, 3, 4])
    with left:
        case = open_study.pick(
            st.selectbox, "From the query to the target's occurrences", "attended", list(found)
        )
    with middle:
        shown = open_study.pick(
            st.segmented_control,
            "Measure",
            "shown",
            list(MEASURES),
            format_func=MEASURES.__getitem__,
            required=True,
        )
    x = found[case]
    name = "values" if shown == "mean" else "excess"
    values, most = x[name], _largest([y[name] for y in found.values()])
    heads = [f"L{layer}H{head}" for layer, row in enumerate(values) for head in range(len(row))]
    picked = open_study.view().picked
    at = place(picked) if picked in heads and picked is not None else None
    with right:
        open_study.pick(st.selectbox, "Head looked at", "picked", [widgets.NONE, *heads])
    maps = [
        (
            "attended",
            f"Attention, {case}",
            head_map(
                values,
                title=MEASURES[shown],
                marked=[place(head) for head in x["heads"]],
                diverging=shown != "mean",
                limits=(0 if shown == "mean" else -most, most),
                selected=at,
            ),
        )
    ]
    if "patching" in results:
        chosen = results["curves"]["chosen"] if "curves" in results else []
        strongest = _largest([results["patching"][each]["values"] for each in EFFECTS])
        maps += [
            (
                f"patched-{side}",
                words,
                head_map(
                    results["patching"][side]["values"],
                    title="effect, fraction of the gap",
                    limits=(-strongest, strongest),
                    marked=[place(head) for head in chosen],
                    selected=at,
                ),
            )
            for side, words in EFFECTS.items()
        ]
    for column, (key, words, drawn) in zip(st.columns(3, gap="small"), maps, strict=False):
        column.markdown(f"**{widgets.plain(words)}**")
        with column:
            widgets.clickable(
                drawn,
                key=key,
                alt=f"{words}, layer by head",
                filename=key,
                picked=lambda data: open_study.change(picked=f"L{data[0]}H{data[1]}"),
            )
    st.caption(
        f"Framed in orange, left: A\\_Prev, the {len(x['heads'])} heads above the threshold in "
        f"this case ({x['n']} samples); in the patching maps: the chosen set A\\_Verif. noise: "
        "the other target's value into the valid run; denoise: the reverse. The two maps "
        "share one colour scale, and so do the four cases of attention. Click a cell, or "
        "choose a head above."
    )
    beside = {f"attention, {case}": x}
    if "patching" in results:
        beside |= {f"patching, {side}": results["patching"][side] for side in EFFECTS}
    strongest_beside_others(beside)
    if "patching" not in results:
        st.caption("No patching yet: this study has not reached that step.")
    detail(results, picked if at is not None else None)


def _largest(tables: Sequence[Sequence[Sequence[float]]]) -> float:
    return max(abs(x) for table in tables for row in table for x in row if x == x) or 1.0


def _rows(found: Result) -> list[dict[str, Any]]:
    """Attention of every head in every case, the strongest first."""
    return [
        {
            "query and keys": name,
            "head": head,
            "mean": x["values"][layer][index],
            "excess": x["excess"][layer][index],
        }
        for name, x in found.items()
        for head in strongest(x["values"], sum(map(len, x["values"])))
        for layer, index in [place(head)]
    ]


if __name__ == "__main__":
    show()
