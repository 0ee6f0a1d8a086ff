"""Groups of heads against random ones, paths between them, texts without them, and neurons."""

from __future__ import annotations

import streamlit as st

from interp.plots.lines import head_map
from interp.plots.steering import values_with_range
from interp.studies.formatting import null, place, selected
from interp.studies.steps import Result
from interp.ui.shared import widgets

UNITS = "fraction of the gap"


def groups(found: Result) -> None:
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
            x_title=UNITS,
        ),
        key="groups",
        alt="Necessity and sufficiency of groups of heads",
    )
    widgets.table(
        [
            {
                "heads of": name,
                "heads": " ".join(x["heads"]),
                **{
                    part: text
                    for kind in kinds
                    for part, text in (
                        (kind, widgets.value(x[kind])),
                        (f"random, {kind}", null(x[f"{kind}_null"])),
                    )
                },
            }
            for name, x in sets.items()
        ],
        key="groups-table",
    )
    st.caption(f"{found['n']} test pairs. Grey: as many random heads of the same layers.")


def paths(found: Result) -> None:
    """Paths into the carriers, the cascade, and the greedy group."""
    st.subheader("From triggers to carriers", anchor=False)
    if widgets.left_out(found):
        return
    left, right = st.columns([2, 3], gap="large")
    triggers = found["triggers"]
    with left:
        widgets.figure(
            head_map(
                found["paths"]["values"],
                title=f"path effect, {UNITS}",
                marked=[place(head) for head in triggers],
                width=330,
            ),
            key="paths",
            alt="Path effect of each head into the carriers",
        )
        st.caption(
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
            f"states by {group['curve'][-1]:.3f} radians; random groups {null(group['null'])}."
        )


def flips(found: Result | None) -> None:
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


def neurons(found: Result | None) -> None:
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
