"""Heads: which attend to the target, which carry the verdict, and how few disable it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from interp.plots.lines import interval_lines
from interp.plots.style import null_band
from interp.studies.formatting import band, place, selected
from interp.studies.steps import Result
from interp.studies.verification.steps.finding_heads import BAND, STRONGEST, strongest
from interp.studies.verification.steps.verdicts import KINDS
from interp.ui.shared import opening, widgets
from interp.ui.shared.state import current, select
from interp.ui.studies import head_maps, open_study
from interp.ui.studies.pages import VERIFICATION_PAGES

MEASURES = {"mean": "mean attention", "excess": "excess over other tokens"}
EFFECTS = {
    "noise": "Patching, noise: is it needed?",
    "denoise": "Patching, denoise: does it suffice?",
}
RANDOM = "random heads, same layers"


def _show() -> None:
    opening.intro(
        "Verification: heads",
        does="It shows which heads attend to the target number, which carry the verdict by "
        "patching, and how few of them disable it when set to zero.",
        when="To find the heads behind the verdict, and to see what is known of one of them.",
        lacks="That a head which attends writes the verdict, or which path an effect takes. Heads"
        " that back each other up look small one at a time; the curve zeroes them together.",
    )
    study = open_study.opened(VERIFICATION_PAGES, "attention")
    if study is None:
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
    open_study.take_away(study, "heads", "attention", "patching", "smallest", "curves", "stability")


@st.fragment
def _maps(results: dict[str, Result]) -> None:
    """Attention and patching effects of every head, clickable, and the head looked at."""
    found = results["attention"]
    left, middle, right = st.columns([3, 3, 4])
    label = "From the query to the target's occurrences"
    case = widgets.choose(label, "attended", list(found), into=left)
    shown = widgets.choose("Measure", "shown", MEASURES, into=middle, segments=True)
    x = found[case]
    name = "values" if shown == "mean" else "excess"
    most = _largest([y[name] for y in found.values()])
    head_maps.choose_head("Head looked at", x[name], into=right)
    columns = iter(st.columns(3, gap="small"))
    head_maps.show_map(
        x[name],
        key="attended",
        alt=f"Attention, {case}, layer by head",
        heading=widgets.plain(f"Attention, {case}"),
        into=next(columns),
        title=MEASURES[shown],
        marked=[place(head) for head in x["heads"]],
        diverging=shown != "mean",
        limits=(0 if shown == "mean" else -most, most),
    )
    beside = {f"attention, {case}": x}
    if "patching" in results:
        chosen = results["curves"]["chosen"] if "curves" in results else []
        most = _largest([results["patching"][side]["values"] for side in EFFECTS])
        for side, words in EFFECTS.items():
            beside[f"patching, {side}"] = results["patching"][side]
            head_maps.show_map(
                results["patching"][side]["values"],
                key=f"patched-{side}",
                alt=f"{words}, layer by head",
                heading=widgets.plain(words),
                into=next(columns),
                title="effect, fraction of the gap",
                limits=(-most, most),
                marked=[place(head) for head in chosen],
            )
    st.caption(
        f"Framed in orange, left: A\\_Prev, the {len(x['heads'])} heads above the threshold in "
        f"this case ({x['n']} samples); in the patching maps: the chosen set A\\_Verif. noise: "
        "the other target's value into the valid run; denoise: the reverse. The two maps "
        "share one colour scale, and so do the four cases of attention. Click a cell, or "
        "choose a head above."
    )
    strongest_beside_others(beside)
    if "patching" not in results:
        st.caption("No patching yet: this study has not reached that step.")
    detail(results, current().picked if head_maps.looked_at(x[name]) else None)


def _largest(tables: Sequence[Sequence[Sequence[float]]]) -> float:
    return max(abs(x) for table in tables for row in table for x in row if x == x) or 1.0


def detail(results: dict[str, Result], head: str | None) -> None:
    """Attention, effects, scores and stability of a head."""
    if head is None:
        st.info("Click a cell of a map, or choose a head.", icon=":material/ads_click:")
        return
    title, clear = st.columns([8, 1], vertical_alignment="bottom")
    title.subheader(f"{head}{_roles(results, head)}", anchor=False)
    clear.button("Clear", on_click=select, kwargs={"picked": None}, width="stretch")
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
        widgets.figure(
            widgets.estimates_with_null(
                {row["head"]: row for row in rows},
                [others_near(x, row["head"]) for row in rows],
                value_title=words,
                value_label="the strongest, 95 % interval",
                null_label="others near",
            ),
            key=f"others-{words}",
            alt=f"{words}: the strongest heads and other heads of nearby layers",
            into=column,
        )
        if null := x.get("null"):
            column.caption(f"The {STRONGEST} strongest: {selected(null)}.")
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
    """A head of a list of the strongest: its mean and 95 % interval."""
    if "attention" in row:
        return {"head": row["head"], **row["attention"]}
    return {"head": row["label"].split(".")[0], "mean": row["value"], **row}


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
    random = null_band([point.get("null") for point in points])
    left, right = st.columns(2, gap="large")
    widgets.figure(
        interval_lines(
            {"these heads": band([point["disabled"] for point in points]), RANDOM: random},
            x=[point["size"] for point in points],
            names=[f"{p['size']}: +{p['added']}" for p in points],
            x_title="heads zeroed together",
            y_title='valid attempts judged "not"',
            controls=[RANDOM],
            limits=(-0.02, 1.04),
        ),
        key="curve",
        alt="Share of valid attempts judged not, by number of heads zeroed",
        into=left,
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


if __name__ == "__main__":
    _show()
