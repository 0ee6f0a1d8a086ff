"""Heads: who carries a refusal, who is needed, who triggers it, and what passes between them."""

from __future__ import annotations

import streamlit as st

from interp.plots.grids import square_map
from interp.plots.lines import head_map
from interp.plots.steering import values_with_range
from interp.studies.formatting import null, place, selected
from interp.studies.refusal.report.claims import step_of
from interp.studies.refusal.steps.heads import SIDES
from interp.studies.steps import Result
from interp.ui.shared import opening, widgets
from interp.ui.studies import head_maps, open_study
from interp.ui.studies.pages import REFUSAL_PAGES

SHIPS = "any change (Ships)"
GAP = "fraction of the gap"


def _show() -> None:
    opening.intro(
        "Refusal: heads",
        does="It shows which heads write a refusal, which are needed for one, which trigger it, "
        "and along which paths the triggers reach the heads that write.",
        when="To find the heads behind refusals, and to compare those of proper refusals with "
        "those of over-refusals.",
        lacks="How a head computes what it contributes. Heads are tested one at a time, so heads "
        "that back each other up look small.",
    )
    study = open_study.opened(REFUSAL_PAGES)
    if study is None:
        return
    results = study.results
    side = widgets.choose("Refusals", "side", list(SIDES), segments=True)
    step, groups_step, paths_step = (step_of(name, side) for name in ("heads", "groups", "paths"))
    if not open_study.ready(study, step):
        return
    steps = (step, groups_step, paths_step)
    names = open_study.some(study, *steps)
    found = results[step]
    open_study.provenance(study, *names, **({"pairs": found["n"]} if "n" in found else {}))
    if not widgets.left_out(found):
        _measures(found)
    if groups_step in results:
        _groups(results[groups_step])
    if paths_step in results:
        _paths(results[paths_step])
    _flips(results.get("flips"))
    _neurons(results.get("neurons"))
    open_study.take_away(study, f"heads, {side}", *steps, "flips", "neurons")


@st.fragment
def _measures(found: Result) -> None:
    """The map of one measure, its first heads, and how far measures agree."""
    measures = found["measures"] | {SHIPS: _ships(found["ships"])}
    name = widgets.choose("Measure", "measure", list(measures))
    x = measures[name]
    left, middle, right = st.columns([4, 3, 4], gap="medium")
    head_maps.show_map(
        x["values"],
        key="refusal-heads",
        alt=f"{name}, layer by head",
        into=left,
        title="radians" if name == SHIPS else GAP,
        marked=[place(row["label"]) for row in x["top"]],
        diverging=name != SHIPS,
        limits=(0, max(map(max, x["values"])) or 1.0) if name == SHIPS else None,
        width=330,
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
        head_maps.choose_head("Head looked at", x["values"])
        if at := head_maps.looked_at(x["values"]):
            widgets.table(_of_head(measures, at), key="head-measures")
        else:
            st.info("Click a cell of the map, or choose a head.", icon=":material/ads_click:")
    st.caption(
        f"{found['n']} pairs of a refused and an answered prompt of one task and length, of "
        f"{' and '.join(found.get('parts', ['find']))} rows; the "
        f"gap of direct attribution is {found['gap']:z.2f} logits. Framed: the first ten of the "
        "measure. Along a direction only heads before its layer are scored."
    )
    _jaccard(found["jaccard"])


def _ships(found: Result) -> Result:
    places = {head: place(head) for head in found["top"]}
    top = [
        {"label": head, "value": found["values"][layer][index], "stderr": None}
        for head, (layer, index) in places.items()
    ]
    return {"values": found["values"], "top": top}


def _of_head(measures: dict[str, Result], at: tuple[int, int]) -> widgets.Rows:
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


def _groups(found: Result) -> None:
    """The first four of each measure, exchanged together."""
    st.subheader("Four heads exchanged together, against random ones", anchor=False)
    if widgets.left_out(found):
        return
    sets = found["sets"]
    kinds = ("necessity", "sufficiency")
    widgets.figure(
        values_with_range(
            list(sets),
            {kind: [x[kind] for x in sets.values()] for kind in kinds},
            {kind: [x[f"{kind}_null"] for x in sets.values()] for kind in kinds},
            x_title=GAP,
        ),
        key="groups",
        alt="Necessity and sufficiency of groups of heads",
    )
    widgets.table(
        [
            {
                "heads of": name,
                "heads": " ".join(x["heads"]),
                "measured": kind,
                "fraction of the gap": widgets.value(x[kind]),
                "random heads": null(x[f"{kind}_null"]),
            }
            for name, x in sets.items()
            for kind in kinds
        ],
        key="groups-table",
    )
    st.caption(f"{found['n']} test pairs. Grey: as many random heads of the same layers.")


def _paths(found: Result) -> None:
    """Paths into the carriers, the cascade, and the greedy group."""
    st.subheader("From triggers to carriers", anchor=False)
    if widgets.left_out(found):
        return
    left, right = st.columns([2, 3], gap="large")
    triggers = found["triggers"]
    widgets.figure(
        head_map(
            found["paths"]["values"],
            title=f"path effect, {GAP}",
            marked=[place(head) for head in triggers],
            width=330,
        ),
        key="paths",
        alt="Path effect of each head into the carriers",
        into=left,
    )
    left.caption(
        f"Paths into the queries, keys and values of {' '.join(found['carriers'])}; "
        f"{found['n']} test pairs. Framed: the triggers. First four together "
        f"{selected(found['path_null'])}."
    )
    with right:
        widgets.table(
            [
                {"head": head, "role": "trigger", "path effect": value}
                for head, value in zip(triggers, found["of triggers"], strict=True)
            ]
            + [
                {"head": row["label"], "role": "first by path", "path effect": row["value"]}
                for row in found["paths"]["top"][:6]
            ],
            key="path-table",
        )
        cascade = found.get("cascade")
        if isinstance(cascade, list):
            st.markdown(f"**Cascade**: {triggers[0]} switched off")
            widgets.table(
                [
                    {
                        "carrier": row["head"],
                        "change of what it writes, %": row["change"],
                        "random gate, %": null(row["null"]),
                    }
                    for row in cascade
                ],
                key="cascade",
            )
        elif cascade is not None:
            widgets.left_out(cascade)
        group = found["greedy_head_group"]
        st.markdown(
            f"**Greedy group** (generalised Ships): {' '.join(group['heads'])} move the last "
            f"states by {group['curve'][-1]:z.3f} radians; random groups {null(group['null'])}."
        )


def _flips(found: Result | None) -> None:
    """Texts with the triggers switched off."""
    if not found:
        return
    st.subheader("Texts with the triggers at zero", anchor=False)
    widgets.table(
        [
            {
                "test rows": name,
                "heads zeroed": " ".join(x["heads"]),
                "texts that flip": widgets.value(x["rate"]),
                "random heads": null(x["null"]),
                "after": ", ".join(f"{n} {label}" for label, n in x["after"].items() if n),
            }
            for name, x in found.items()
        ],
        key="flips",
    )


def _neurons(found: Result | None) -> None:
    """GLU neurons along refusal, as the verification study finds them."""
    if found is None:
        return
    with st.expander("GLU neurons along refused - answered"):
        if widgets.left_out(found):
            return
        widgets.table(
            [
                {
                    "refused test rows": side,
                    "drop of the score": widgets.value(x["drop"]),
                    "random neurons, drop": null(x["drop_null"]),
                    "scores that change sign": widgets.value(x["flipped"]),
                    "random neurons": null(x["null"]),
                }
                for side, x in found["test"].items()
            ],
            key="neurons",
        )
        st.caption(f"{found['chosen']['n']} neurons zeroed at the last token of the prompt.")
        widgets.table(
            [
                {**row, "writes": " ".join(map(widgets.visible, row["writes"]))}
                for row in found["neurons"]
            ],
            key="first-neurons",
        )


if __name__ == "__main__":
    _show()
