"""Heads of a study: one of them with every number kept of it, and how few disable the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from interp.plots.lines import interval_lines, values_with_null
from interp.plots.style import null_band
from interp.studies.formatting import place, selected
from interp.studies.steps import Result
from interp.studies.verification.steps.finding_heads import BAND, STRONGEST, strongest
from interp.studies.verification.steps.verdicts import KINDS
from interp.ui.shared import widgets
from interp.ui.studies import open_study


def detail(results: dict[str, Result], head: str | None) -> None:
    """Attention, effects, scores and stability of a head."""
    if head is None:
        st.info("Click a cell of a map, or choose a head.", icon=":material/ads_click:")
        return
    title, clear = st.columns([8, 1], vertical_alignment="bottom")
    title.subheader(f"{head}{_roles(results, head)}", anchor=False)
    clear.button("Clear", on_click=open_study.change, kwargs={"picked": None}, width="stretch")
    left, right = st.columns(2, gap="large")
    with left:
        widgets.table(attention_rows(results["attention"], head), key="head-attention")
        st.caption("Control and interval are kept for the twelve strongest heads of each case.")
    with right:
        if "patching" in results:
            widgets.table(effect_rows(results, head), key="head-effects")
            mlps = results.get("paths_mlps", {}).get("receivers", ())
            st.caption(
                (
                    "Fractions of the gap between the two runs; standard errors are kept for the "
                    "strongest heads only."
                )
                + (f" MLPs: {', '.join(mlps)}." if mlps else "")
            )
        _others(results, head)


def strongest_beside_others(maps: Mapping[str, Result]) -> None:
    """The strongest heads of each map, each beside the other heads of the layers near it."""
    for column, (words, x) in zip(st.columns(3, gap="small"), maps.items(), strict=False):
        rows = [_measured(row) for row in x["top"][:STRONGEST]]
        with column:
            widgets.figure(
                values_with_null(
                    [row["head"] for row in rows],
                    [row["value"] for row in rows],
                    low=[row["low"] for row in rows],
                    high=[row["high"] for row in rows],
                    null=[others_near(x, row["head"]) for row in rows],
                    value_title=words,
                    value_label="the strongest, 95 % interval",
                    null_label="others near",
                ),
                key=f"others-{words}",
                alt=f"{words}: the strongest heads and other heads of nearby layers",
            )
            if null := x.get("null"):
                st.caption(f"The {STRONGEST} strongest: {selected(null)}.")
    st.caption(
        f"Grey: all other heads within {BAND} layers, without the twelve strongest of the map. "
        "In these figures, heads are chosen and measured on the same samples."
    )


def others_near(x: Result, head: str) -> list[float]:
    """A map's values of the heads near one, those listed as strongest left out."""
    named = {place(_measured(row)["head"]) for row in x["top"]}
    layer, _ = place(head)
    return [
        value
        for at, row in enumerate(x["values"])
        for index, value in enumerate(row)
        if abs(at - layer) <= BAND and (at, index) not in named
    ]


def _measured(row: Result) -> dict[str, Any]:
    """A head of a list of the strongest: its value and 95 % interval."""
    if "attention" in row:
        found = row["attention"]
        return {"head": row["head"], "value": found["mean"], **_ends(found)}
    return {"head": row["label"].split(".")[0], "value": row["value"], **_ends(row)}


def _ends(found: Result) -> dict[str, float]:
    return {key: found[key] for key in ("low", "high")}


def _roles(results: dict[str, Result], head: str) -> str:
    roles = []
    if head in results["attention"]["t_ans to earlier"]["heads"]:
        roles.append("A\\_Prev")
    if head in results["attention"]["t_ans to asked"]["heads"]:
        roles.append("A\\_Prev (published)")
    if "curves" in results and head in results["curves"]["chosen"]:
        roles.append("A\\_Verif")
    sets = results.get("effects_zero", {}).get("sets", {})
    if head in sets.get("A_Verif (published)", {}).get("components", ()):
        roles.append("A\\_Verif (published)")
    return f" · {', '.join(roles)}" if roles else ""


def attention_rows(found: Result, head: str) -> list[dict[str, Any]]:
    """Attention of a head in the four cases."""
    layer, index = place(head)
    rows = []
    for case, x in found.items():
        top = next((row for row in x["top"] if row["head"] == head), None)
        rows.append(
            {
                "query to keys": case,
                "attention": x["values"][layer][index],
                "95 % interval": "–" if top is None else widgets.interval(top["attention"]),
                "other tokens": widgets.maybe(top and top["control"]),
                "excess": x["excess"][layer][index],
                "rank": _rank(x["values"], head),
            }
        )
    return rows


def effect_rows(results: dict[str, Result], head: str) -> list[dict[str, Any]]:
    """Effects of a head by patching, and of its paths; those of steps that are there."""
    layer, index = place(head)
    patching = results["patching"]
    named = {
        "noise (needed?)": patching["noise"],
        "denoise (sufficient?)": patching["denoise"],
        "paths into the MLPs": results.get("paths_mlps"),
        "paths into GLU_Valid": results.get("paths_glu"),
        "path into the logits": results.get("paths_direct"),
    }
    rows = []
    for words, x in named.items():
        if x is None:
            continue
        top = next((row for row in x["top"] if row["label"].split(".")[0] == head), None)
        rows.append(
            {
                "effect": words,
                "value": x["values"][layer][index],
                "± stderr": widgets.maybe(top and top["stderr"]),
                "rank": _rank(x["values"], head),
            }
        )
    return rows


def _rank(values: Sequence[Sequence[float]], head: str) -> str:
    order = strongest(values, sum(map(len, values)))
    return f"{order.index(head) + 1} of {len(order)}"


def _others(results: dict[str, Result], head: str) -> None:
    """Head-to-GLU scores, and how often the head is chosen again."""
    lines = []
    if (found := results.get("stability")) and head in found["counts"]:
        lines.append(
            (
                f"Chosen in **{found['counts'][head]} of {found['draws']}** resamples of the find "
                "samples"
            )
            + (", and on the test samples." if head in found["on_test"] else ".")
        )
    for mode, x in results.get("head_scores", {}).items():
        if head in x["heads"]:
            value = x["values"][x["heads"].index(head)]
            rank = f"{x['order'].index(head) + 1} of {len(x['order'])}"
            lines.append(f"Head-to-GLU score, {mode}: {widgets.number(value)}, rank {rank}.")
    st.markdown("  \n".join(lines))


def curve(found: Result) -> None:
    """The verdict as heads are zeroed one after the other, on samples none was chosen on."""
    points = found["test"]
    sizes = [point["size"] for point in points]
    mean, low, high = ([p["disabled"][key] for p in points] for key in ("mean", "low", "high"))
    random = null_band([point.get("null") for point in points])
    left, right = st.columns(2, gap="large")
    with left:
        widgets.figure(
            interval_lines(
                {"these heads": (mean, low, high), "random heads, same layers": random},
                x=sizes,
                names=[f"{p['size']}: +{p['added']}" for p in points],
                x_title="heads zeroed together",
                y_title='valid attempts judged "not"',
                controls=["random heads, same layers"],
                limits=(-0.02, 1.04),
            ),
            key="curve",
            alt="Share of valid attempts judged not, by number of heads zeroed",
        )
    with right:
        noun = "head" if len(found["chosen"]) == 1 else "heads"
        reached = "95 % is reached" if found["reached"] else "the best set stays below 95 %"
        st.markdown(
            f"With **{len(found['chosen'])} {noun}** zeroed, {reached} on the find samples: "
            f"{', '.join(found['chosen'])} (order {found['order']})."
        )
        widgets.table(
            [
                {
                    "order": name,
                    "size at 95 %": "not reached" if y["size"] is None else str(y["size"]),
                    "heads, in order": " ".join(point["added"] for point in y["curve"]),
                }
                for name, y in found["find"].items()
            ],
            key="orders",
        )
    st.caption(
        "Curve: test samples, which share no problem with those used to choose the heads. "
        "Grey: mean and 95 % range of random sets matched in layers and count, at the sizes "
        "that were drawn. Table: all orders, on the find samples."
    )


def searched(found: Result) -> None:
    """All sets of the least size that disable, and heads that do alone, on test samples."""
    st.markdown(
        f"All {found['tried']} sets of at most {found['most']} of the {found['candidates']} "
        f"heads strongest by patching were zeroed: **{found['found']}** reach 95 % on the find "
        f"samples. Of all {found['heads']} heads, **{len(found['alone'])}** reach it alone "
        "(such a head without a patching effect would break the run rather than carry the "
        "verdict)."
    )
    rows = [
        {"heads": " ".join(row["heads"]), "found among": among}
        | {f'{kind}: judged "not"': widgets.value(row[kind]) for kind in KINDS}
        for name, among in (("sets", "the strongest by patching"), ("alone", "all heads, alone"))
        for row in found[name]
    ]
    if rows:
        widgets.table(rows, key="searched")
