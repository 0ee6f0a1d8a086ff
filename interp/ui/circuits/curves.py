"""A circuit's faithfulness by size, and a comparison of two kept circuits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

import streamlit as st

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.find import Findings
from interp.circuits.drawing import draw_overlap
from interp.circuits.evaluation.evaluate import CircuitEvaluation
from interp.circuits.files.saved import delete_circuit, saved_circuits
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.plots.graphs import faithfulness_figure
from interp.results.kept import kept_results
from interp.studies.formatting import null
from interp.ui.circuits import search
from interp.ui.circuits.search import Asked
from interp.ui.shared import export, jobs, offered, widgets
from interp.ui.shared.state import current, fit, may_see, select

FORMULA = (
    r"f(C) = \frac{\overline{m}[C] - \overline{m}[\text{nothing kept}]}"
    r"{\overline{m}[\text{model}] - \overline{m}[\text{nothing kept}]}"
)
CAVEAT = (
    "Faithfulness shows that a circuit is enough under this ablation, not that the model has "
    "no other way: completeness measures that. Other ablations give other numbers, so every "
    "number needs its protocol."
)


def faithfulness(ask: Asked, found: Findings) -> None:
    """The circuit at the size of the graph, and its curve with the random band.

    Run in the background on first request.
    """
    made = search.shown(ask)
    done = jobs.result(ask.curve_key(made), search.evaluation, lambda: _ready(ask, made))
    if done is None:
        return
    _numbers(done)
    assert done.signed is not None
    points = done.signed.to_dataframe()
    figure = faithfulness_figure(
        points["fraction"],
        points["faithfulness"],
        low=points["low"],
        high=points["high"],
        random=tuple(points[f"on_paths_{end}"] for end in ("mean", "low", "high")),
        edges=points["edges"],
        chosen=done.circuit.share,
    )
    widgets.figure(figure, key="curve", alt="Faithfulness by share of edges, with random circuits")
    _table(done, points.to_dict("records"))
    st.caption(
        f"**Protocol.** {widgets.plain(done.signed.protocol)}. Random circuits have as many "
        "edges of each kind and depth; those in the grey band lie on paths from the input to "
        "the logits."
    )
    origin = done.signed.provenance
    export.python(offered.shown(origin.call, origin), name=f"{origin.task}-curve")
    widgets.caveat(CAVEAT)


def _numbers(done: CircuitEvaluation) -> None:
    """The circuit's own figures, each with its interval or null."""
    itself = done.itself
    assert done.signed is not None
    edges, nodes, share = done.size
    facts = {
        "circuit": f"{edges} edges ({share:.2%}), {nodes} nodes",
        "f of its edges": widgets.value(itself.estimate(0)),
        "f with all edges between its nodes": widgets.value(itself.estimate(1)),
        "CPR, area under f by signed score": widgets.value(done.cpr()),
        "CMD, area between f and 1 by absolute score": widgets.value(done.cmd()),
        "CPR of random circuits": null(asdict(done.signed.null())),
        "CPR of random circuits on paths": null(asdict(done.signed.null(connected=True))),
        "evaluated on": f"{itself.n} pairs it was not found on",
    }
    if done.completeness is not None:
        facts["incompleteness, worst of knock-outs"] = widgets.value(done.completeness.worst)
    if done.minimality is not None:
        least = done.minimality.values
        middle = sorted(least.tolist())[len(least) // 2]
        facts["minimality, least and median node"] = f"{least.min():z.3f}, {middle:z.3f}"
    if done.stability is not None:
        drawn = done.stability.jaccard
        facts[f"stability of {done.stable_by}, Jaccard over resampled pairs"] = (
            f"{drawn.mean():z.3f} [{drawn.min():z.3f}, {drawn.max():z.3f}], "
            f"by chance {done.stability.chance:z.3f}"
        )
    if done.unstable:
        facts["stability"] = f"none: {done.unstable}"
    widgets.facts(facts)


def _where_from(one: Circuit) -> str:
    """The method, model and task of a kept circuit."""
    if (origin := one.provenance) is None:
        return one.method
    return f"{one.method} · {offered.without_paths(origin.model)} · {origin.task}"


def _faithful(one: Circuit) -> str:
    """How faithful a kept circuit is, if that was measured; beside random circuits like it."""
    if (done := _evaluations(_stamps()).get(_identity(one))) is None:
        return "Faithfulness: not measured yet. Show it under graph, and press Evaluate."
    itself = done.itself
    random = itself.to_dataframe().iloc[0]
    words = f"Faithfulness: {widgets.value(itself.estimate(0))}, n = {itself.n}"
    if "random_low" not in random:
        return f"{words}; no random circuits were drawn"
    spread = widgets.span(random["random_low"], random["random_high"])
    return f"{words}; random circuits like it {spread}"


def _identity(one: Circuit) -> tuple[str, str]:
    """The edges of a circuit, and the weights it was found on: two models can have equal edges."""
    return one.hash, "" if one.provenance is None else one.provenance.model_hash


def _stamps() -> tuple[tuple[str, float], ...]:
    """The kept evaluations, and when each was written."""
    return tuple((one.name, one.made) for one in kept_results() if one.kind == "circuit evaluation")


@st.cache_resource(max_entries=4, show_spinner="Reading the kept evaluations …")
def _evaluations(stamps: tuple[tuple[str, float], ...]) -> dict[Any, CircuitEvaluation]:
    """The kept evaluations by their circuits, the newest of each."""
    found = {}
    for name, _ in reversed(stamps):
        with suppress(InterpError):  # deleted or damaged
            one = CircuitEvaluation.load(cache_dir() / name)
            found[_identity(one.circuit)] = one
    return found


def _table(done: CircuitEvaluation, rows: list[dict[str, Any]]) -> None:
    """Both rankings by size, beside random circuits."""
    assert done.signed is not None
    assert done.absolute is not None
    other = done.absolute.faithfulness.tolist()
    widgets.table(
        [
            {
                "edges asked for": f"{row['fraction']:.1%}",
                "edges on paths": row["edges"],
                done.signed.metric: float(row["metric"]),
                "f": float(row["faithfulness"]),
                "95 % interval": widgets.span(row["low"], row["high"]),
                "f by absolute score": float(absolute),
                "random circuits": widgets.span(row["random_low"], row["random_high"]),
                "random on paths": widgets.span(row["on_paths_low"], row["on_paths_high"]),
            }
            for row, absolute in zip(rows, other, strict=True)
        ],
        key="curve-rows",
    )


def _ready(ask: Asked, made: Circuit) -> None:
    widgets.facts(
        {
            "evaluated on": f"the other {len(ask.test)} pairs",
            "circuit": f"{made.n_edges} edges",
            "curves": f"10 sizes by signed and by absolute score, {search.RANDOM} random "
            f"circuits like each and {search.RANDOM} on paths",
            "knock-outs": f"{search.KNOCKOUTS} random sets of nodes",
        }
    )
    widgets.start_button("Evaluate", search.start_curve, ask, made)
    st.markdown("**What will be measured**, for circuits $C$ of every size, on unseen pairs:")
    st.latex(FORMULA)


def overlap(ask: Asked, found: Findings) -> None:
    """Two kept circuits of this model's graph, of this model or of another one of its shape."""
    kept = {name: one for name, one in saved_circuits(ask.graph).items() if _may_see(one)}
    if len(kept) < 2:
        st.info(
            "Keep two circuits of this model to compare them: one here, under graph, and one for "
            f"another task or method. Kept so far: {len(kept)}.",
            icon=":material/bookmark_add:",
        )
        return
    names = list(kept)
    fit(left=kept, right=kept)
    if current().left is None:
        select(left=names[0])
    if current().right in (None, current().left):
        select(right=next(name for name in names if name != current().left))
    columns = st.columns([4, 4, 2], vertical_alignment="bottom")
    for column, label, field in zip(columns, ("First", "Second"), ("left", "right"), strict=False):
        widgets.picker(
            column.selectbox,
            label,
            field,
            options={name: f"{one.name} · {one.hash[:8]}" for name, one in kept.items()},
        )
    if not offered.is_shared():
        columns[2].button(
            "Forget the second",
            on_click=_forget,
            args=(current().right,),
            width="stretch",
            icon=":material/delete:",
        )
    left, right = kept[str(current().left)], kept[str(current().right)]
    result = search.comparison(left, right)
    rows = [
        {
            "": row.kind,
            "first": row.left,
            "second": row.right,
            "both": row.shared,
            "Jaccard": row.jaccard,
            "random": "–"
            if row.expected is None
            else widgets.span(row.expected.low, row.expected.high),
            "as strong": float("nan") if row.expected is None else row.expected.share,
        }
        for row in result.rows
        if row.left or row.right
    ]
    picture, words = st.columns([7, 6], gap="large")
    with words:
        for label, one in (("First", left), ("Second", right)):
            st.markdown(f"**{label}.** {widgets.plain(one.name)}")
            st.caption(f"{widgets.plain(_where_from(one))}  \n{widgets.plain(_faithful(one))}")
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
        widgets.figure(
            drawing.figure, key="overlap", alt="Edges of both circuits, by which has them"
        )
    widgets.table(rows, key="overlap-rows")
    st.caption(
        "Jaccard: shared parts over parts in either. Random: that of circuits with as many edges "
        "of each kind and depth. As strong: the share of random pairs that overlap as much."
    )
    widgets.caveat(
        "Shared edges need not do the same on both tasks. Another ablation or another size "
        "gives another circuit."
    )


def _may_see(one: Circuit) -> bool:
    """Whether a circuit is listed: those from prompts of others stay with them."""
    return one.provenance is None or may_see(one.provenance.task)


def _forget(called: str) -> None:
    delete_circuit(called)
    select(right=None)
