"""What a direction of refusal does beside its rivals, other directions, and parts of the run."""

from __future__ import annotations

import streamlit as st

from interp.plots.grids import square_map
from interp.plots.lines import interval_lines
from interp.studies.formatting import band, listed
from interp.studies.refusal.report.report import WRITERS, dose_lines
from interp.studies.steps import Result
from interp.ui.shared import widgets

ROWS = ("refused", "answered")


def rivals(found: Result) -> None:
    """The direction of the study and harder comparisons than random ones, on the same rows."""
    rows: widgets.Rows = []
    for what, sided in found["own"].items():
        own = {"direction": found["kind"], "edit": what, "cosine": "1.00"}
        for side, score in sided.items():
            own |= {side: widgets.value(score), f"{side}: apart": "–"}
        rows.append(own)
        for x in found["rivals"]:
            row = {"direction": f"{x['name']} ({x['n']})", "edit": what}
            row["cosine"] = listed(x["cosines"])
            for side in sided:
                row[side] = widgets.value(x[what][side]["score"])
                row[f"{side}: apart"] = widgets.value(x[what][side]["apart"])
            rows.append(row)
    widgets.table(rows, key="rivals-table")
    if found["equal"]:
        st.warning(
            f"The {found['kind']} direction is the unembedding direction: it says which words "
            "refusals begin with, and shows no more about refusal than that.",
            icon=":material/warning:",
        )
    st.caption(
        "Mean refusal score of test rows, nats. Every rival has the same length and place: the "
        "unembedding direction writes the first tokens of refusals and is learnt from no prompt; "
        "labels are shuffled inside each task and kind; another fact is the difference between "
        "tasks or kinds of answered prompts. Apart: the direction's score minus the rivals' mean, "
        "paired by row; where its interval includes 0 they cannot be told apart."
    )


def one_effect(results: dict[str, Result]) -> None:
    """Directions of several kinds of refusal: their angles, and what each does to all of them."""
    found = results["one_effect"]
    if widgets.left_out(found):
        return
    left, *others = st.columns(3, gap="large")
    drawn = square_map(found["cosines"], names=found["groups"], title="cosine", limits=(-1, 1))
    widgets.figure(drawn, key="kinds-cosines", alt="Cosines of directions by group", into=left)
    for side, (words, column) in enumerate(zip(ROWS, others, strict=True)):
        lines, at = dose_lines(results, side)
        drawn = interval_lines(
            lines, x=at, x_title="dose", y_title="refusal score, nats", controls=["unembedding"]
        )
        widgets.legend_below(drawn, height=430, room=130)
        title = f"{words.capitalize()} test rows by dose"
        widgets.figure(drawn, key=f"kinds-{words}", alt=title, title=title, into=column)
    rows = [
        {
            "direction": name,
            "find rows": " and ".join(map(str, found["n"][name])),
            "drop of other groups' rows": widgets.value(x["drop"]),
            "by their own directions": widgets.value(x["own"]),
            "share": f"{x['share']:z.2f}",
        }
        for name, x in found["others"].items()
    ]
    widgets.table(rows, key="kinds-table")
    st.caption(
        "A direction for each kind of request that is refused, and each task with over-refusals: "
        "refused minus answered find rows, all of one length, at the study's place. Dose 1 adds "
        "it once, -1 subtracts it. Drop: how far the subtraction lowers the refusal score of the "
        f"other groups' refused test rows, nats (random directions: {listed(found['random'])})."
    )


def carriers(results: Result) -> None:
    """What is left of the steering when parts of the run keep their plain value."""
    found = results["sides"]
    for side, why in results["left_out"].items():
        st.caption(f"Left out, {side}: {why}.")
    if not found:
        return
    rows = [
        {
            "frozen": part,
            **{
                f"{side}{words}": widgets.value(shares[part]) if shares else "–"
                for side, x in found.items()
                for words, shares in (("", x["frozen"]), (", unembedding", x["rival"]))
            },
        }
        for part in next(iter(found.values()))["frozen"]
    ]
    widgets.table(rows, key="carriers-table")
    for (side, x), column in zip(found.items(), st.columns(2, gap="large"), strict=False):
        lines = {words: band(x["layers"][site]) for site, words in WRITERS.items()}
        at = [x["first"] + place for place in range(len(x["layers"]["mlp_out"]))]
        drawn = interval_lines(lines, x=at, x_title="layer frozen", y_title="share left")
        title = f"{side.capitalize()} (n = {x['n']}): one layer frozen"
        widgets.figure(drawn, key=f"carriers-{side}", alt=title, title=title, into=column)
    sparse = [
        {
            "entries kept": f"{row['share']:.0%} ({row['kept']})",
            **{
                f"{side}, {words}": text
                for side, x in found.items()
                for words, text in (
                    ("largest", widgets.value(x["sparse"][i]["largest"])),
                    ("random", listed(one["mean"] for one in x["sparse"][i]["random"])),
                )
            },
        }
        for i, row in enumerate(next(iter(found.values()))["sparse"])
    ]
    widgets.table(sparse, key="carriers-sparse")
    st.caption(
        "The direction is added once to answered rows, and subtracted from refused ones. What is "
        "left of the change of the refusal score goes past what is frozen at its plain value; the "
        "unembedding direction needs nothing in between. Second table: only a share of the "
        "direction's entries, at the same length."
    )
