"""Heads: who carries a refusal, who is needed, who triggers it, and what passes between them."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.plots.grids import square_map
from interp.plots.lines import head_map
from interp.studies.formatting import place
from interp.studies.refusal.steps.heads import SIDES
from interp.studies.steps import Result
from interp.ui.refusal import groups
from interp.ui.refusal.groups import UNITS
from interp.ui.shared import widgets
from interp.ui.studies import open_study
from interp.ui.studies.pages import REFUSAL_PAGES

SHIPS = "any change (Ships)"


def show() -> None:
    """The page."""
    study = open_study.opened(REFUSAL_PAGES, "Heads")
    if study is None:
        return
    results = study.results
    side = open_study.pick(st.segmented_control, "Refusals", "side", list(SIDES), required=True)
    step = _step("heads", side)
    if not open_study.ready(study, step):
        return
    names = [
        name for name in (step, _step("groups", side), _step("paths", side)) if name in results
    ]
    found = results[step]
    open_study.provenance(study, *names, **({"pairs": found["n"]} if "n" in found else {}))
    rows: list[dict[str, Any]] = []
    if not widgets.left_out(found):
        _measures(found)
        rows = _rows(found)
    if _step("groups", side) in results:
        groups.groups(results[_step("groups", side)])
    if _step("paths", side) in results:
        groups.paths(results[_step("paths", side)])
    groups.flips(results.get("flips"))
    groups.neurons(results.get("neurons"))
    kept = [*names, *(name for name in ("flips", "neurons") if name in results)]
    open_study.take_away(study, "refusal-heads", rows, {name: results[name] for name in kept})
    widgets.caveat(
        "Heads are tested one at a time, so heads that back each other up look small. "
        "Interchange with another prompt shows what a head contributes that the other prompt "
        "lacks, not how the head computes it."
    )


def _step(name: str, side: str) -> str:
    return f"{name}_{side}".replace(" ", "_")


@st.fragment
def _measures(found: Result) -> None:
    """The map of one measure, its first heads, and how far measures agree."""
    measures = found["measures"] | {SHIPS: _ships(found["ships"])}
    name = open_study.pick(st.selectbox, "Measure", "measure", list(measures))
    x = measures[name]
    picked = open_study.view().picked
    heads = [f"L{k}H{h}" for k, row in enumerate(x["values"]) for h in range(len(row))]
    at = place(picked) if picked in heads and picked is not None else None
    left, middle, right = st.columns([4, 3, 4], gap="medium")
    with left:
        widgets.clickable(
            head_map(
                x["values"],
                title="radians" if name == SHIPS else UNITS,
                marked=[place(row["label"]) for row in x["top"]],
                diverging=name != SHIPS,
                limits=(0, max(map(max, x["values"])) or 1.0) if name == SHIPS else None,
                selected=at,
                width=330,
            ),
            key="refusal-heads",
            alt=f"{name}, layer by head",
            filename="refusal-heads",
            picked=lambda data: open_study.change(picked=f"L{data[0]}H{data[1]}"),
        )
    with middle:
        widgets.table(
            [
                {
                    "head": row["label"],
                    "value": row["value"],
                    "± stderr": widgets.maybe(row["stderr"]),
                }
                for row in x["top"]
            ],
            key="top-heads",
        )
        lines = []
        if "limit" in x:
            lines.append(
                f"Beyond permuted labels: {x['beyond']} (|value| > {widgets.number(x['limit'])}, "
                "corrected for the number of heads)."
            )
        if x.get("stability") is not None:
            lines.append(f"Same ten in resampled pairs: {widgets.number(x['stability'])}.")
        st.caption(" ".join(lines) or "No null was drawn for this measure.")
    with right:
        open_study.pick(st.selectbox, "Head looked at", "picked", [widgets.NONE, *heads])
        if at is not None:
            widgets.table(_of_head(measures, at), key="head-measures")
        else:
            st.info("Click a cell of the map, or choose a head.", icon=":material/ads_click:")
    st.caption(
        f"{found['n']} find pairs of a refused and an answered prompt of one task and length; the "
        f"gap of direct attribution is {found['gap']:.2f} logits. Framed: the first ten of the "
        "measure. Along a direction only heads before its layer are scored."
    )
    _jaccard(found["jaccard"])


def _ships(found: Result) -> Result:
    values = found["values"]
    top = [
        {"label": head, "value": values[place(head)[0]][place(head)[1]], "stderr": None}
        for head in found["top"]
    ]
    return {"values": values, "top": top}


def _of_head(measures: dict[str, Result], at: tuple[int, int]) -> list[dict[str, Any]]:
    """Every measure of one head, with its rank by absolute value."""
    rows = []
    for name, x in measures.items():
        values = [abs(value) for row in x["values"] for value in row]
        if at[0] >= len(x["values"]):  # behind the direction's layer
            rows.append({"measure": name, "value": None, "rank": f"not one of {len(values)}"})
            continue
        mine = x["values"][at[0]][at[1]]
        rank = sum(value > abs(mine) for value in values) + 1
        rows.append({"measure": name, "value": mine, "rank": f"{rank} of {len(values)}"})
    return rows


def _jaccard(rows: list[Result]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["pair"]))
    if not names:
        return
    values = [[float(a == b) for b in names] for a in names]
    for row in rows:
        i, j = (names.index(name) for name in row["pair"])
        values[i][j] = values[j][i] = row["jaccard"]
    with st.expander("Do the measures name the same heads? (Jaccard of their first ten)"):
        widgets.figure(
            square_map(values, names=names, title="Jaccard of the first ten", limits=(0, 1)),
            key="jaccard",
            alt="Jaccard of the first ten heads of each pair of measures",
        )


def _rows(found: Result) -> list[dict[str, Any]]:
    """Every head by every measure."""
    return [
        {"measure": name, "head": f"L{layer}H{head}", "value": value}
        for name, x in found["measures"].items()
        for layer, row in enumerate(x["values"])
        for head, value in enumerate(row)
    ]


if __name__ == "__main__":
    show()
