"""A circuit's faithfulness by size, and two kept circuits over each other."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.circuits.drawing import draw_overlap
from interp.circuits.finding import Findings
from interp.circuits.shelf import drop_circuit, kept_circuits
from interp.diagrams import faithfulness_curve
from interp.ui import circuit_jobs, jobs, studies, widgets
from interp.ui.circuit_jobs import Asked
from interp.ui.state import current, select

FORMULA = (
    r"f(C) = \frac{\overline{m}[C] - \overline{m}[\text{nothing kept}]}"
    r"{\overline{m}[\text{model}] - \overline{m}[\text{nothing kept}]}"
)
CAVEAT = (
    "Faithfulness says that a circuit is enough under this ablation, not that the model has no "
    "other way: see completeness (`interp circuit evaluate --knockouts 20`). Other ablations give "
    "other numbers; the protocol is part of each."
)


def faithfulness(ask: Asked, found: Findings) -> None:
    """The curve with its random band; run in the background on first request."""
    done = circuit_jobs.evaluation(ask.curve_key)
    if done is None:
        circuit_jobs.panel(ask.curve_key, lambda: _ready(ask, found))
        return
    jobs.forget(ask.curve_key)
    cpr, cmd, null = done.cpr(), done.cmd(), done.null()
    widgets.facts(
        {
            "CPR, area under f": f"{cpr.mean:.3f} [{cpr.low:.3f}, {cpr.high:.3f}]",
            "CMD, area between f and 1": f"{cmd.mean:.3f} [{cmd.low:.3f}, {cmd.high:.3f}]",
            "CPR of random circuits": f"{null.mean:.3f} [{null.low:.3f}, {null.high:.3f}], "
            f"p = {null.p:.3f} ({null.draws} draws)",
            "evaluated on": f"{done.n} pairs it was not found on",
        }
    )
    rows = done.to_dataframe().to_dict("records")
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    size = current().edges or circuit_jobs.usual_size(ask.key)
    made = circuit_jobs.circuit(ask.key, size)
    figure = faithfulness_curve(
        columns["fraction"],
        columns["faithfulness"],
        low=columns["low"],
        high=columns["high"],
        random=(columns["random_mean"], columns["random_low"], columns["random_high"]),
        edges=columns["edges"],
        chosen=made.share,
    )
    studies.figure(figure, key="curve", alt="Faithfulness by share of edges, with random circuits")
    studies.table(
        [
            {
                "edges asked for": f"{row['fraction']:.1%}",
                "edges on paths": row["edges"],
                done.metric: float(row["metric"]),
                "f": float(row["faithfulness"]),
                "95 % interval": widgets.span(row["low"], row["high"]),
                "random circuits": widgets.span(row["random_low"], row["random_high"]),
            }
            for row in rows
        ],
        key="curve-rows",
    )
    st.caption(f"**Protocol.** {widgets.plain(done.protocol)}. Random circuits have as many edges "
               "of each kind and depth.")  # fmt: skip
    st.code(done.provenance.call, language="python", wrap_lines=True)
    studies.caveat(CAVEAT)


def _ready(ask: Asked, found: Findings) -> None:
    runs = len(ask.test) * 10 * (1 + circuit_jobs.RANDOM)
    widgets.facts(
        {
            "evaluated on": f"the other {len(ask.test)} pairs",
            "circuits": f"10 sizes, {circuit_jobs.RANDOM} random ones like each",
            "runs, batched": f"{runs:,}".replace(",", " "),
        }
    )
    st.button(
        "Evaluate",
        type="primary",
        icon=":material/play_arrow:",
        on_click=circuit_jobs.start_curve,
        args=(ask, found),
    )
    st.markdown("**What will be measured**, for circuits $C$ of every size, on unseen pairs:")
    st.latex(FORMULA)


def overlap(ask: Asked, found: Findings) -> None:
    """Two kept circuits of this model's graph."""
    kept = kept_circuits(ask.graph)
    if len(kept) < 2:
        st.info(
            f"{len(kept)} of the circuits kept so far fit this model's graph; two are needed. Keep "
            "one under graph, choose another task or method, and keep that one too.",
            icon=":material/bookmark_add:",
        )
        return
    names = list(kept)
    if current().left not in kept:
        select(left=names[0])
    if current().right not in kept or current().right == current().left:
        select(right=next(name for name in names if name != current().left))
    columns = st.columns([4, 4, 2], vertical_alignment="bottom")
    for column, label, field in ((columns[0], "First", "left"), (columns[1], "Second", "right")):
        with column:
            widgets.picker(
                st.selectbox, label, field, options=names, format_func=lambda n: kept[n].name
            )
    columns[2].button(
        "Forget the second",
        on_click=_forget,
        args=(current().right,),
        width="stretch",
        icon=":material/delete:",
    )
    left, right = kept[str(current().left)], kept[str(current().right)]
    result = circuit_jobs.comparison(left, right)
    rows = [
        {
            "": row.kind,
            "first": row.left,
            "second": row.right,
            "both": row.shared,
            "Jaccard": row.jaccard,
            "random circuits like them": "–"
            if row.expected is None
            else widgets.span(row.expected.low, row.expected.high),
            "p": float("nan") if row.expected is None else row.expected.p,
        }
        for row in result.rows
        if row.left or row.right
    ]
    picture, table = st.columns([7, 6], gap="large")
    with table:
        for label, one in (("First", left), ("Second", right)):
            st.markdown(f"**{label}.** {widgets.plain(one.name)}")
            st.caption(widgets.plain(one.method))
        studies.table(rows, key="overlap-rows")
        st.caption(
            "Jaccard: shared over those in either. Random circuits have as many edges of each kind "
            "and depth; p is the share of random pairs that overlap as much."
        )
    with picture:
        strength = found.signed
        if left.scores is not None and right.scores is not None:
            strength = (abs(left.scores) + abs(right.scores)) / 2
        drawing = draw_overlap(ask.graph, left.mask, right.mask, strength)
        st.caption(
            f"Drawn: {drawing.drawn} edges of either circuit"
            + (f", the strongest; {drawing.hidden} hidden." if drawing.hidden else ".")
            + " Width: mean size of the two scores."
        )
        studies.figure(
            drawing.figure, key="overlap", alt="Edges of both circuits, by which has them"
        )
    studies.caveat(
        "Shared edges need not do the same on both tasks; a circuit found under another ablation "
        "or at another size is another circuit."
    )


def _forget(called: str) -> None:
    drop_circuit(called)
    select(right=None)
