"""Interventions: steering methods on both sides, their doses, and one to try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from interp.plots import steering
from interp.plots.lines import interval_lines
from interp.plots.style import CHOSEN
from interp.studies.formatting import band, bare, change, null
from interp.studies.refusal.report import tables
from interp.studies.refusal.report.claims import methods_of
from interp.studies.refusal.report.report import doses_of
from interp.studies.refusal.steps.frontier import REDUCTION, RETAINED, SENSE
from interp.studies.steps import Result
from interp.studies.study import Study
from interp.ui.refusal import texts
from interp.ui.shared import opening, widgets
from interp.ui.studies.open_study import Section, show_section
from interp.ui.studies.pages import REFUSAL_PAGES

SIDES = (
    "method",
    "dose",
    "removed",
    "retained",
    "retained, if steered",
    "over-refusal",
    "proper refusals",
)
"""The columns of the first table: what a method does to either side."""
NOTHING = dict.fromkeys(("mean", "low", "high"), widgets.UNKNOWN)


def frontier(study: Study[Any]) -> None:
    """Over-refusals removed against proper refusals retained."""
    found = methods_of(study.results)
    if not found:
        st.info("This study has not run a method yet.", icon=":material/hourglass_empty:")
        return
    points = [
        {
            "name": name,
            "null": x["null"],
            "x": x["reduction"] or NOTHING,
            "y": x["retained"] or NOTHING,
        }
        for name, x in found.items()
    ]
    widgets.figure(
        steering.frontier(points, x_target=REDUCTION, y_target=RETAINED),
        key="frontier",
        alt="Share of over-refusals removed against share of proper refusals retained",
    )
    rows = tables.frontier(study.results)
    _some(rows, SIDES, key="methods")
    with st.expander("What each costs in fluency, and on how many texts", expanded=True):
        _some(rows, ["method", *(name for name in rows[0] if name not in SIDES)], key="costs")
    st.caption(
        "Up and right is better. Grey crosses: random versions. Dashed: the published "
        f"reduction ({REDUCTION:.0%}) and {RETAINED:.0%} retained. The compared test rows are "
        "answered and judged again under each method; doses were chosen on select rows. "
        "Selectivity is undefined when the loss of proper refusals is not significant. "
        "Removed, retained: shares of the rows refused before; intervals are at least as wide "
        "as Wilson's. Retained, if steered: the same share among the proper refusals that the "
        "steering acted on; if a gate exempted all of them, retention was not tested. KL: of the "
        "next token on answered rows, in nats. Loss and perplexity: of their plain replies, per "
        "token. Neither: texts that neither answer nor refuse. Answered: among rows that should be "
        "answered. Changed: number of texts. Gated: rows that the gate exempted."
    )
    with st.expander("By task"):
        tasks = list(dict.fromkeys(task for x in found.values() for task in x["tasks"]))
        widgets.table(
            [
                {"method": name}
                | {task: change(x["tasks"][task]) if task in x["tasks"] else "–" for task in tasks}
                for name, x in found.items()
            ],
            key="by-task",
        )
        st.caption("Over-refusal, before → after.")
    _chance(study.results.get("chance", {}))


def _some(rows: widgets.Rows, names: Sequence[str], *, key: str) -> None:
    """Some columns of a table."""
    widgets.table(
        [{name: row[name] for name in names} for row in rows],
        key=key,
        widths={"method": 230, "dose": 60},
        most=len(rows),
    )


def _chance(found: Result) -> None:
    """Chosen directions and heads against random ones, by score."""
    rows = [
        {
            "what": name,
            "refused test rows": f"{side}, n = {x['fall']['n']}",
            "fall of the score": widgets.value(x["fall"]),
            "random, fall": null(x["fall_null"]),
            "scores that change sign": widgets.value(x["released"]),
            "random, sign": null(x["released_null"]),
        }
        for name, sides in found.items()
        if name != "n"
        for side, x in sides.items()
    ]
    if rows:
        with st.expander("Chance, by the score of the next token"):
            widgets.table(rows, key="chance", widths={"what": 190})
            st.caption(
                "Controls: random directions of the same length, subtracted at the same dose, "
                "and random heads of the same layers, set to zero. In nats."
            )


def doses(study: Study[Any]) -> None:
    """Released and lost against the dose, by method."""
    lines = {x["name"]: x for x in doses_of(study.results)}
    if not lines:
        st.info("This study has no dose-response yet.", icon=":material/hourglass_empty:")
        return
    _doses(lines)


@st.fragment
def _doses(found: dict[str, Result]) -> None:
    name = widgets.choose("Method", "method", list(found))
    x = found[name]
    shares = {
        f"over-refusals released (of {x['n'][0]})": bare(x["released"]),
        f"proper refusals lost (of {x['n'][1]})": bare(x["lost"]),
    }
    scores = {
        words: band(x["scores"][side])
        for side, words in (("released", "over-refused rows"), ("lost", "rows to be refused"))
    }
    panels: list[tuple[dict[str, Any], str, tuple[float, float] | None]] = [
        (shares, "share of rows", (-0.03, 1.05)),
        (scores, "refusal score, nats", None),
    ]
    if "kl" in x:
        panels.append(({"answered rows": bare(x["kl"])}, "KL, nats", None))
    for column, (series, title, limits) in zip(st.columns(len(panels)), panels, strict=True):
        drawn = interval_lines(series, x=x["doses"], x_title="dose", y_title=title, limits=limits)
        drawn.add_vline(x=x["dose"], line={"color": CHOSEN, "width": 2, "dash": "dash"})
        widgets.legend_below(drawn, height=380, room=110)
        if title.startswith("KL"):
            drawn.add_hline(y=SENSE, line={"dash": "dot", "width": 1})
        widgets.figure(drawn, key=f"dose-{title}", alt=f"{title} by dose, {name}", into=column)
    if not any(x.get("fits", [x.get("retains", True)])):
        st.warning(
            "No dose keeps both refusals and fluency, so we use the one with the best trade-off.",
            icon=":material/warning:",
        )
    widgets.table(tables.doses_by(x), key="dose-table")
    st.caption(
        f"Orange: the chosen dose, {x['dose']:g}: the largest release that keeps "
        f"{RETAINED:.0%} of proper refusals and a KL of at most {SENSE:g} (dotted). Measured "
        "on select rows by the sign of the next token's refusal score, without generating "
        "text. The dose multiplies the raw direction; for constellations, the mean distance "
        "of the centroids."
    )


SECTIONS = {
    "frontier": Section(
        draw=frontier,
        table="frontier",
        steps="method_*",
        caveat="A text that no longer refuses need not be a good answer: see loss, KL and texts "
        "that are neither. One model, one set of prompts, greedy decoding.",
    ),
    "doses": Section(
        draw=doses,
        table="doses",
        steps="dose_*",
        caveat="Here the first token's score stands in for the text. Texts are judged at the "
        "chosen dose only, on other rows.",
    ),
    "try one": Section(
        draw=texts.side_by_side,
        caveat="One text and one random direction: an illustration, not a measurement.",
    ),
}


def _show() -> None:
    opening.intro(
        "Refusal: interventions",
        does="It compares ways of steering a model away from refusals: how many over-refusals "
        "each removes, how many proper refusals it keeps, and at what cost in fluency.",
        when="To choose a method and its dose, and to try one on a prompt of your own.",
        lacks="Whether a text that no longer refuses is a good answer. The line at the end of "
        "each section says what else it leaves open.",
    )
    show_section(
        REFUSAL_PAGES,
        SECTIONS,
        about="frontier: what each method removes and keeps. doses: how its dose was chosen. try "
        "one: steer the loaded model.",
    )


if __name__ == "__main__":
    _show()
