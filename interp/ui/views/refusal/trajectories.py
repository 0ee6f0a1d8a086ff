"""Trajectories: tasks on their way through the layers, the gate, and its ledger."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.core.statistics import share_estimate
from interp.plots.grids import layer_rows
from interp.plots.lines import interval_lines, share_axis
from interp.plots.steering import gate_curve, scatter_by_group
from interp.refusal.task_steering import PUBLISHED
from interp.studies.steps import Result
from interp.ui.shared import opening, widgets
from interp.ui.studies import open_study
from interp.ui.studies.pages import REFUSAL_PAGES

GATE = {
    "covered": "benign rows, steered by their own task",
    "wrong": "benign rows, by another task",
    "passed": "rows to refuse that pass",
}
ALL = "all"


def _show() -> None:
    opening.intro(
        "Refusal: task trajectories",
        does="It follows prompts layer by layer, nearer to their task's answers or to its "
        "refusals, and shows what a gate that steers them decides for each prompt.",
        when="To see at which layer over-refused prompts leave their task's path, and whom the "
        "gate would steer.",
        lacks="That a path near the refusals is the reason for a refusal. The bank holds find "
        "rows, the gate is set on select rows, and lines and ledger show test rows; no row "
        "is in two of these.",
    )
    study = open_study.opened(REFUSAL_PAGES, "constellations")
    if study is None:
        return
    found = study.results["constellations"]
    bank = sum(map(sum, found["counts"]))
    open_study.provenance(study, "constellations", **{"rows in the bank": bank})
    _ratios(found)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _effectiveness(found)
    with right:
        _picture(found)
    left, right = st.columns(2, gap="large")
    with left:
        _gate(found)
    with right:
        _identified(found)
    ledger = study.results.get("ledger")
    st.subheader("Ledger: what was decided for each prompt", anchor=False)
    if ledger is None:
        st.caption("No ledger: no task has both classes, or the study has not reached this step.")
    else:
        _ledger(ledger)
    open_study.take_away(study, "trajectories", "constellations", "ledger")


def _ratios(found: Result) -> None:
    """Distance to the answered centroid over that to the refused one, a figure a task."""
    st.subheader("Nearer to the task's answers, or to its refusals?", anchor=False)
    tasks = list(dict.fromkeys(row["task"] for row in found["ratios"]))
    if not tasks:
        st.info(
            "No task has enough answered and refused rows for two centroids.",
            icon=":material/info:",
        )
        _notices(found)
        return
    drawings = {task: _ratio_lines(found["ratios"], task) for task in tasks}
    share_axis(drawings.values(), "y")
    columns = [column for _ in tasks[::2] for column in st.columns(2, gap="large")]
    for (task, drawn), column in zip(drawings.items(), columns, strict=False):
        widgets.figure(
            drawn,
            key=f"ratios-{task}",
            alt=f"Distance ratio by layer, {task}",
            title=widgets.plain(task),
            into=column,
        )
    st.caption(
        "Test rows, mean and 95 % interval. Above 1: nearer to the centroid of the task's "
        "refusals. Rows are grouped by what the model did."
    )
    _notices(found)


def _ratio_lines(rows: list[Result], task: str) -> Any:
    mine = {row["class"]: row for row in rows if row["task"] == task}
    order = [name for name in ("answered", "refused") if name in mine]
    drawn = interval_lines(
        {
            f"{row['class']} (n = {row['n']})": (row["mean"], row["low"], row["high"])
            for row in map(mine.__getitem__, order)
        },
        x_title="layer",
        y_title="distance to answered / to refused",
    )
    drawn.add_hline(y=1.0, line={"dash": "dash", "width": 1, "color": "#808a96"})
    if order == ["refused"]:
        drawn.data[0].update(fillcolor="#c0392b")
        drawn.data[1].update(line={"color": "#c0392b"})
    return drawn


def _notices(found: Result) -> None:
    if found["notices"]:
        st.caption(f"Left out: {widgets.plain('; '.join(found['notices']))}.")


def _effectiveness(found: Result) -> None:
    """How far apart a task's centroids are, by layer."""
    st.subheader("Effectiveness of layers", anchor=False)
    values = [
        row if min(counts) > 0 and any(row) else [widgets.UNKNOWN] * len(row)
        for counts, row in zip(found["counts"], found["effectiveness"], strict=True)
    ]
    drawn = layer_rows(values, rows=found["tasks"], title="effectiveness")
    widgets.figure(drawn, key="effectiveness", alt="Effectiveness, task by layer")
    st.caption("Find rows. Blank: a task without both classes.")


def _picture(found: Result) -> None:
    """Two principal axes, marked as what they are."""
    st.subheader("A picture, for display only", anchor=False)
    shown = found["picture"]
    if shown is None:
        st.caption("No task has both classes.")
        return
    widgets.figure(
        scatter_by_group(
            shown["points"], shown["tasks"], shown["refused"], notice="for display only"
        ),
        key="picture",
        alt="Two principal axes, for display only",
    )
    st.caption(
        f"Two principal axes of {len(shown['points'])} test rows at layer {shown['layer']}. "
        "Separation in this plane says nothing about the full space: see the ratios above and "
        "the probes on the first page."
    )


def _gate(found: Result) -> None:
    """What the gate lets through at every threshold."""
    st.subheader("The gate", anchor=False)
    gate = found["gate"]
    chosen: float | None = found["threshold"]
    sizes = {"covered": gate["n_benign"], "wrong": gate["n_benign"], "passed": gate["n_harmful"]}
    series = {}
    for name, label in GATE.items():
        seen = [share_estimate(int(count), sizes[name]) for count in gate[name]]
        series[f"{label} (of {sizes[name]})"] = tuple(
            [getattr(one, end) for one in seen] for end in ("mean", "low", "high")
        )
    marks = {"published": PUBLISHED.threshold}
    if chosen is not None:
        marks["chosen"] = chosen
    widgets.figure(
        gate_curve(gate["thresholds"], series, marks=marks),
        key="gate",
        alt="Shares of select rows the gate lets through, by threshold",
    )
    rows = [("published", PUBLISHED.threshold, found["at published"])]
    if chosen is not None:
        rows.append(("chosen", chosen, found["at chosen"]))
    widgets.table(
        [
            {
                "threshold": f"{name}, {value:z.4f}",
                "own task": widgets.value(at["covered"]),
                "another task": widgets.value(at["wrong"]),
                "rows to refuse that pass": widgets.value(at["passed"]),
            }
            for name, value, at in rows
        ],
        key="gate-table",
    )
    if chosen is None:
        st.warning(
            "No threshold keeps both wrong tasks and passing refusals within 5 %, so the "
            "published one is used.",
            icon=":material/warning:",
        )


def _identified(found: Result) -> None:
    """How often the task of a prompt is identified correctly."""
    st.subheader("Which task is it?", anchor=False)
    counts = dict(zip(found["tasks"], found["counts"], strict=True))
    widgets.table(
        [
            {
                "task": task,
                "answered in bank": counts.get(task, [0, 0])[0],
                "refused in bank": counts.get(task, [0, 0])[1],
                "identified correctly": share["mean"],
                "95 % interval": widgets.interval(share),
                "n": share["n"],
            }
            for task, share in found["told"].items()
        ],
        key="told",
    )
    st.caption("Test rows; the nearest constellation of the bank.")
    if "ways" in found:
        widgets.table(
            [
                {
                    "layers": "all" if x["identify"]["stored"] is None else "5 most effective",
                    "over layers": x["identify"]["over_layers"],
                    "centroid": x["identify"]["centre"],
                    "identified correctly": x["right"]["mean"],
                    "": "taken" if x["identify"] == found["identify"] else "",
                }
                for x in found["ways"]
            ],
            key="ways",
        )
        st.caption("Ways to identify a task by cosines, compared on select rows; the best is used.")


@st.fragment
def _ledger(found: Result) -> None:
    """The decision on each prompt: all, or those with one reason."""
    st.markdown(widgets.plain(found["text"]))
    rows = found["rows"]
    reasons = list(dict.fromkeys(_fate(row) for row in rows))
    wanted = st.segmented_control(
        "Show", [ALL, *reasons], default=ALL, required=True, key="ledger-filter"
    )
    shown = [row for row in rows if wanted in (ALL, _fate(row))]
    widgets.table(
        [
            {
                **{key: value for key, value in row.items() if key != "steered"},
                "skipped": row["skipped"] or "–",
            }
            for row in shown
        ],
        key="ledger",
    )
    st.caption(
        f"{len(rows)} of {found['n']} test rows are kept; {found['steered']} steered, "
        f"{found['wrong']} of them with another task's constellation."
    )


def _fate(row: Result) -> str:
    """Why a prompt is not steered, without the numbers of the case; or that it is steered."""
    return row["skipped"].split(":")[0] or "steered"


if __name__ == "__main__":
    _show()
