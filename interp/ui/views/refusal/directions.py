"""Directions: every candidate and its fate, what the chosen ones do, and how they lie."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import streamlit as st

from interp.plots.grids import candidate_grid, square_map
from interp.plots.lines import MARGIN, interval_lines, share_axis, values_with_null
from interp.plots.steering import BELOW
from interp.plots.style import hover_text
from interp.studies.formatting import bare, spread
from interp.studies.refusal.steps.directions import COST, place_of
from interp.studies.steps import Result
from interp.ui.refusal import projections
from interp.ui.shared import widgets
from interp.ui.studies import open_study
from interp.ui.studies.pages import REFUSAL_PAGES

CHOICES = {
    "selection_harmful-harmless": "harmful - harmless",
    "selection_over-refusal": "over-refusal",
    "selection_false-refusal": "false refusal: over-refusal less its part along the first",
    "cosmic": "harmful - harmless, by cosines (COSMIC)",
}
SCORES = {
    "bypass": "bypass: refusal score with it ablated, rows to refuse (low is good)",
    "induce": "induce: refusal score with it added, rows to answer (high is good)",
    "kl": "KL of ablating it, rows to answer, nats",
}
EDITS = {"ablated": "ablated at every site", "added": "added once at its layer"}


def show() -> None:
    """The page."""
    study = open_study.opened(REFUSAL_PAGES, "Directions")
    if study is None:
        return
    results = study.results
    steps = [name for name in (*CHOICES, "directions", "geometry") if name in results]
    open_study.provenance(study, *steps)
    if open_study.ready(study, "selection_harmful-harmless"):
        _candidates(results)
    st.subheader("What the chosen directions do", anchor=False)
    if open_study.ready(study, "directions", link=False):
        _effects(results["directions"])
    st.subheader("Are they one direction?", anchor=False)
    if open_study.ready(study, "geometry", link=False):
        _geometry(results["geometry"])
    st.subheader("Along a direction, token by token", anchor=False)
    projections.tokens(study)
    rows = [
        {"candidates": CHOICES[name], **row}
        for name in CHOICES
        if name in results and "skipped" not in results[name]
        for row in _rows(results[name])
    ]
    open_study.take_away(study, "directions", rows, {name: results[name] for name in steps})
    widgets.caveat(
        "A direction whose ablation ends refusal need not be the only one. A cosine says "
        "nothing about what a direction does. A token's projection is a readout, not a cause."
    )


@st.fragment
def _candidates(results: dict[str, Result]) -> None:
    """The grid of one selection and its table."""
    left, middle, right = st.columns([3, 5, 2], vertical_alignment="bottom")
    with left:
        name = open_study.pick(
            st.selectbox,
            "Candidates",
            "candidates",
            [choice for choice in CHOICES if choice in results],
            format_func=CHOICES.__getitem__,
        )
    with middle:
        score = open_study.pick(
            st.selectbox, "Score", "score", list(SCORES), format_func=SCORES.__getitem__
        )
    found = results[name]
    coloured = right.toggle(
        "Colour rejected ones too",
        not found.get("best"),
        key=f"rejected-too-{open_study.view().refusal}-{name}",
    )
    if widgets.left_out(found):
        return
    tokens = found.get("tokens") or results["selection_harmful-harmless"].get("tokens", [])
    taken = _taken(name, found)
    _grid(found, score, tokens, taken, coloured=coloured)
    counts = ", ".join(f"{n} by {rule}" for rule, n in found["rejections"].items()) or "none"
    chosen = f"position {taken[0]}, layer {taken[1]}" if taken else "none"
    if not found["best"]:
        chosen = f"**none survives**; taken: {chosen}"
    about = f"Chosen: {chosen}. {len(found['rows'])} candidates, rejected: {counts}. "
    if "n" in found:
        about += (
            f"Differences of {found['classes'][0]} and {found['classes'][1]} find rows, scored on "
            f"{found['n'][0]} and {found['n'][1]} select rows (plain scores "
            f"{widgets.number(found['harmful'])} and {widgets.number(found['harmless'])}). "
        )
    else:
        about += "Bypass and induce are cosines with plain states here. "
    st.caption(about + "Grey or crossed: rejected, hover for the reason.")
    if name == "selection_false-refusal":
        st.caption(
            "The rule of arXiv 2410.03415: the lowest score on over-refused rows with a KL of "
            "at most 0.2, at any layer. Once a criterion rejects a candidate, its other "
            "scores are not measured."
        )
    if taken and not found["best"]:
        st.info(
            "No candidate passes the rule. Among those that both bypass and induce at a KL of "
            f"at most {COST} nats, the one with the largest induce - bypass is used; if all of "
            "these cost more, the one with the lowest KL.",
            icon=":material/info:",
        )
    columns = ("position", "layer", "bypass", "induce", "kl", "reason")
    widgets.table([{key: row[key] for key in columns} for row in _rows(found)], key="candidates")


def _rows(found: Result) -> list[dict[str, Any]]:
    """Every candidate, those kept first, the lowest bypass on top."""
    rows = [{**row, "reason": row["reason"] or "kept"} for row in found["rows"]]
    return sorted(
        rows, key=lambda row: (bool(row["rejected"]), row["bypass"] is None, row["bypass"] or 0.0)
    )


def _taken(name: str, found: Result) -> list[int] | None:
    """The place of the rule's choice, or of the one the study goes on with."""
    measured = all(row["bypass"] is not None for row in found["rows"] if row["kl"] is not None)
    if found["best"] or not name.startswith("selection") or not measured:
        return found["best"]
    return place_of(found)


def _grid(
    found: Result, score: str, tokens: list[str], taken: list[int] | None, *, coloured: bool
) -> None:
    rows = found["rows"]
    positions = sorted({row["position"] for row in rows})
    layers = sorted({row["layer"] for row in rows})
    at = {(row["position"], row["layer"]): row for row in rows}
    cells = [[at.get((position, layer)) for layer in layers] for position in positions]
    values = [
        [float("nan") if x is None or x[score] is None else x[score] for x in line]
        for line in cells
    ]
    rejected = [[x is not None and bool(x["rejected"]) for x in line] for line in cells]
    texts = [["" if x is None else _hover(x) for x in line] for line in cells]
    names = dict(zip(positions[-len(tokens) :], tokens, strict=True)) if tokens else {}
    widgets.figure(
        candidate_grid(
            values,
            x=[str(layer) for layer in layers],
            y=[f"{p} {widgets.visible(names.get(p, ''))} " for p in positions],
            rejected=rejected,
            texts=texts,
            colour_title=SCORES[score].split(" (")[0],
            best=(positions.index(taken[0]), layers.index(taken[1])) if taken else None,
            coloured=coloured,
            signed=score != "kl",
        ),
        key="candidate-grid",
        alt=f"{SCORES[score]}, position by layer",
    )


def _hover(row: Result) -> str:
    lines = []
    for score in SCORES:
        if row[score] is not None:
            error = row.get(f"{score}_stderr")
            lines.append(f"{score} {row[score]:.3f}" + ("" if error is None else f" ± {error:.3f}"))
    lines.append(f"rejected: {row['reason']}" if row["rejected"] else "kept")
    return hover_text(f"position {row['position']}, layer {row['layer']}", "", *lines)


@st.fragment
def _effects(found: Result) -> None:
    """Scores of test rows under each direction, against random ones."""
    edit = st.segmented_control(
        "Edit",
        list(EDITS),
        default="ablated",
        required=True,
        format_func=EDITS.__getitem__,
        key="direction-edit",
    )
    kinds = [name for name in found if name not in ("n", "plain")]
    drawings = {}
    for side in found["n"]:
        seen = [found[kind][edit][side] for kind in kinds]
        mean, low, high = ([x["value"][key] for x in seen] for key in ("mean", "low", "high"))
        drawings[side] = drawn = values_with_null(
            kinds,
            mean,
            low=low,
            high=high,
            null=[x["random"] for x in seen],
            value_title="refusal score, nats",
            value_label="the direction",
            null_label="random",
        )
        drawn.add_vline(x=found["plain"][side]["mean"], line={"dash": "dash", "width": 1.5})
    share_axis(drawings.values(), "x")
    for (side, drawn), column in zip(
        drawings.items(), st.columns(len(drawings) or 1), strict=False
    ):
        column.markdown(f"**{side.capitalize()}** (n = {found['n'][side]})")
        with column:
            widgets.figure(drawn, key=f"effects-{side}", alt=f"Refusal score, {side}, {edit}")
    st.caption(
        "Mean over test rows with its 95 % interval; dashed: the plain model. Random "
        "directions have the same length and place; each is run on a few of the rows."
    )


@st.fragment
def _geometry(found: Result) -> None:
    """Cosines at a layer, and by layer with ceiling and floor."""
    names = found["names"]
    if "cosines" in found:
        cosines = found["cosines"]
        left, right = st.columns(2, gap="large")
        with left:
            most = len(cosines[0][0]) - 1
            key = f"cosine-layer-{open_study.view().refusal}"
            layer = st.slider("Layer", 0, most, min(int(found["layer"]), most), key=key)
            widgets.figure(
                square_map(
                    [[pair[layer] for pair in row] for row in cosines],
                    names=names,
                    title="cosine",
                    limits=(-1, 1),
                ),
                key="cosines",
                alt=f"Cosines of the directions at layer {layer}",
            )
        ceiling, floor = f"halves of {names[0]}", "shuffled labels"
        lines = {f"with {name}": bare(cosines[i][0]) for i, name in enumerate(names) if i} | {
            ceiling: _range(found["ceiling"][names[0]]),
            floor: _range(found["floor"]),
        }
        drawn = interval_lines(
            lines,
            x_title="layer",
            y_title=f"cosine with {names[0]}",
            controls=[ceiling, floor],
            dashed=[floor],
            limits=(-1.04, 1.04),
        )
        drawn.add_vline(x=layer, line={"width": 1, "dash": "dot"})
        drawn.update_layout(height=470, legend=BELOW, margin={**MARGIN, "t": 30, "b": 150})
        with right:
            widgets.figure(drawn, key="cosine-lines", alt="Cosines by layer, ceiling and floor")
        st.caption(
            (
                f"At position {found['position']}; chosen layer {found['layer']}. Grey: the "
                "ceiling (two halves of the first direction's own rows) and the floor "
                "(over-refusal directions from shuffled labels), mean and range of the draws."
            )
            + _interval(found)
        )
    else:
        st.caption(f"Only one direction could be found: {', '.join(names) or 'none'}.")
    between = [
        f"{name}: {widgets.value(x)}"
        for name, x in found.get("independence", {}).items()
        if name != "n"
    ]
    if between:
        st.markdown(
            "**Representational independence** (mean squared change of the cosine; 0 is "
            f"independent): {'; '.join(between)}."
        )
    cone = found.get("cone", {})
    if "ablated" in cone:
        st.markdown(
            f"**Cone**: {len(cone['ablated'])} random vectors between the two, ablated on "
            f"{cone['n']} refused rows: mean score {widgets.number(cone['plain'])} becomes "
            f"{spread(cone['ablated'])}."
        )


def _interval(found: Result) -> str:
    """The cosine that the claim is about."""
    if "cosine" not in found:
        return ""
    said = widgets.value(found["cosine"])
    return (
        f" Refusal with over-refusal at the chosen place: {said}, by a bootstrap over base texts."
    )


def _range(splits: list[list[float]]) -> tuple[Any, Any, Any]:
    columns = list(zip(*splits, strict=True))
    return tuple([of(column) for column in columns] for of in (fmean, min, max))  # type: ignore[return-value]


if __name__ == "__main__":
    show()
