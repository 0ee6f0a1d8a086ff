"""The kept sections of the interventions page: all methods on one frontier, and their doses."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.plots import steering
from interp.plots.lines import MARGIN, interval_lines
from interp.plots.steering import BELOW
from interp.plots.style import CHOSEN
from interp.studies.formatting import band, bare, change, null, retained
from interp.studies.refusal.report.numbers import methods_of
from interp.studies.refusal.steps.frontier import REDUCTION, RETAINED, SENSE
from interp.studies.steps import Result
from interp.studies.study import Study
from interp.ui.shared import widgets
from interp.ui.studies import open_study

Rows = list[dict[str, Any]]
UNKNOWN = float("nan")
NOTHING = {"mean": UNKNOWN, "low": UNKNOWN, "high": UNKNOWN}


def frontier(study: Study[Any]) -> Rows:
    """Over-refusals removed against proper refusals retained; the rows of the table."""
    found = methods_of(study.results)
    if not found:
        st.info("This study has not come to a method yet.", icon=":material/hourglass_empty:")
        return []
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
    rows = [_row(name, x) for name, x in found.items()]
    widgets.table(rows, key="methods", narrow=["method"])
    st.caption(
        "Up and right is better. Grey crosses: random versions. Dashed: the published reduction "
        f"({REDUCTION:.0%}) and {RETAINED:.0%} retained. Every text of the test rows is generated "
        "and judged anew; doses were chosen on select rows. Selectivity has no value where what is "
        "lost cannot be told from 0. Removed, retained: of the rows refused before; intervals no "
        "narrower than Wilson's. In force for: of the proper refusals, those the steering was in "
        "force for; where a gate left all of them alone, retaining them was not tested. KL: of the "
        "next token of answered rows, nats; loss and perplexity: of their plain replies, nats a "
        "token. Neither: texts that are no answer and no refusal. Answered: of rows that should "
        "be. Changed: texts. Gated: rows left alone."
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
    return rows


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
            widgets.table(rows, key="chance", narrow=["what"])
            st.caption(
                "Random directions of the same length subtracted at the same dose, and random "
                "heads of the same layers at zero; nats."
            )


def _row(name: str, x: Result) -> dict[str, Any]:
    gated = x["gated"]
    return {
        "method": name,
        "dose": x["dose"],
        "removed": _maybe(x["reduction"]),
        "retained": _maybe(x["retained"]),
        "in force for": retained(x),
        "over-refusal": change(x["benign"]),
        "proper refusals": change(x["harmful"]),
        "KL": _maybe(x.get("kl")),
        "loss": _maybe(x.get("loss")),
        "perplexity": _perplexity(x),
        "neither": _neither(x["counts"]),
        "answered": change(x["answered"]),
        "changed": _changed(x["changed"]),
        "selectivity": _maybe(x["selectivity"]),
        "gated": widgets.NONE if gated is None else str(sum(gated.values())),
        "n": f"{x['benign']['before']['n']}, {x['harmful']['before']['n']}",
        "random": x["null"],
    }


def _perplexity(x: Result) -> str:
    found = x.get("perplexity")
    return "{before:.2f} → {after:.2f}".format(**found) if isinstance(found, dict) else widgets.NONE


def _changed(changed: Result | int) -> int:
    return changed if isinstance(changed, int) else sum(changed.values())


def _maybe(found: Result | None) -> str:
    return widgets.NONE if found is None else widgets.value(found)


def _neither(counts: Result) -> int:
    """Texts that are neither an answer nor a refusal."""
    verdicts = ("direct_answer", "direct_refusal", "indirect_refusal")
    return sum(n for side in counts.values() for name, n in side.items() if name not in verdicts)


def doses(study: Study[Any]) -> Rows:
    """Released and lost against the dose, by method; the rows of all of them."""
    found = {x["name"]: x for name, x in study.results.items() if name.startswith("dose_")}
    lines = {name: x for name, x in found.items() if len(x["doses"]) > 2}
    if not lines:
        st.info("This study has no dose-response yet.", icon=":material/hourglass_empty:")
        return []
    _doses(lines)
    return [{"method": name, **row} for name, x in lines.items() for row in _dose_rows(x)]


def _dose_rows(x: Result) -> Rows:
    return [
        {
            "dose": dose,
            "released": x["released"][i],
            "lost": x["lost"][i],
            "score, over-refused": widgets.value(x["scores"]["released"][i]),
            "score, to be refused": widgets.value(x["scores"]["lost"][i]),
            "KL, answered": x["kl"][i] if "kl" in x else None,
            "chosen": "chosen" if dose == x["dose"] else "",
        }
        for i, dose in enumerate(x["doses"])
    ]


@st.fragment
def _doses(found: dict[str, Result]) -> None:
    name = open_study.pick(st.selectbox, "Method", "method", list(found))
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
        drawn.update_layout(height=380, legend=BELOW, margin={**MARGIN, "t": 30, "b": 110})
        if title.startswith("KL"):
            drawn.add_hline(y=SENSE, line={"dash": "dot", "width": 1})
        with column:
            widgets.figure(drawn, key=f"dose-{title}", alt=f"{title} by dose, {name}")
    if not any(x.get("fits", [x.get("retains", True)])):
        st.warning(
            "No dose keeps refusals and sense: the one that releases most more than it loses was "
            "taken.",
            icon=":material/warning:",
        )
    widgets.table(_dose_rows(x), key="dose-table")
    st.caption(
        f"Orange: the chosen dose, {x['dose']:g}: the largest release that keeps {RETAINED:.0%} of "
        f"proper refusals and a KL of at most {SENSE:g} (dotted). Select rows, by the sign of the "
        "next token's refusal score; no texts. Dose: times the raw direction; of constellations, "
        "times the mean distance of the centroids."
    )
