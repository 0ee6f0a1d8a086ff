"""Directions: every candidate and its fate, what the chosen ones do, and how they lie."""

from __future__ import annotations

from itertools import cycle
from statistics import fmean
from typing import Any

import pandas as pd
import streamlit as st

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.plots.grids import candidate_grid, square_map
from interp.plots.lines import interval_lines, share_axis
from interp.plots.style import hover_text
from interp.steering.projections import Projected, project_tokens
from interp.studies.formatting import bare, spread
from interp.studies.refusal.report.tables import CANDIDATES, candidates
from interp.studies.refusal.steps.directions import COST, place_of
from interp.studies.steps import Result
from interp.studies.study import Study
from interp.ui.prompts.strip import projection_strips
from interp.ui.refusal import steering
from interp.ui.refusal.model import (
    choose_direction,
    example_prompts,
    fitted,
    kept_directions,
    prompts_on,
)
from interp.ui.shared import opening, widgets
from interp.ui.shared.cache import HASHES
from interp.ui.shared.state import HIDDEN, current, may_read
from interp.ui.studies import open_study
from interp.ui.studies.model import loaded_model
from interp.ui.studies.pages import REFUSAL_PAGES

SCORES = {
    "bypass": "bypass: refusal score with it ablated, rows to refuse (low is good)",
    "induce": "induce: refusal score with it added, rows to answer (high is good)",
    "kl": "KL of ablating it, rows to answer, nats",
}
EDITS = {"ablated": "ablated at every site", "added": "added once at its layer"}
MOST = 6
"""Prompts shown at once."""

READINGS = {"projection": "projection h · r̂", "cosine": "cosine with r"}


def _show() -> None:
    opening.intro(
        "Refusal: directions",
        does="It shows every direction that was tried as the cause of a refusal, why it was kept "
        "or rejected, and what removing or adding the chosen ones does.",
        when="To judge whether one direction carries refusals, and whether over-refusals have "
        "another one.",
        lacks="That there is no other direction: one whose removal ends refusal need not be the "
        "only one. A cosine says nothing about what a direction does, and a token's "
        "projection is a readout, not a cause.",
    )
    study = open_study.opened(REFUSAL_PAGES)
    if study is None:
        return
    results = study.results
    steps = (*CANDIDATES, "directions", "rivals", "one_effect", "carriers", "geometry")
    kept = open_study.some(study, *steps)
    open_study.provenance(study, *kept)
    if open_study.ready(study, "selection_harmful-harmless"):
        _candidates(results)
    st.subheader("What the chosen directions do", anchor=False)
    if open_study.ready(study, "directions", link=False):
        _effects(results["directions"])
    st.subheader("Is it more than its rivals?", anchor=False)
    if open_study.ready(study, "rivals", link=False):
        steering.rivals(results["rivals"])
    st.subheader("Do kinds of refusal have one effect?", anchor=False)
    if open_study.ready(study, "one_effect", link=False):
        steering.one_effect(results)
    st.subheader("What carries the steering?", anchor=False)
    if open_study.ready(study, "carriers", link=False):
        steering.carriers(results["carriers"])
    st.subheader("Are they one direction?", anchor=False)
    if open_study.ready(study, "geometry", link=False):
        _geometry(results["geometry"])
    st.subheader("Along a direction, token by token", anchor=False)
    _tokens(study)
    open_study.take_away(study, "directions", *steps)


@st.fragment
def _candidates(results: dict[str, Result]) -> None:
    """The grid of one selection and its table."""
    left, middle, right = st.columns([3, 5, 2], vertical_alignment="bottom")
    known = {name: words for name, words in CANDIDATES.items() if name in results}
    name = widgets.choose("Candidates", "candidates", known, into=left)
    score = widgets.choose("Score", "score", SCORES, into=middle)
    found = results[name]
    coloured = right.toggle(
        "Colour rejected ones too",
        not found.get("best"),
        key=f"rejected-too-{current().refusal}-{name}",
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
    widgets.table(
        [{key: row[key] for key in columns} for row in candidates(found)], key="candidates"
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
    rows = pd.DataFrame(found["rows"]).assign(text=[_hover(row) for row in found["rows"]])
    values, rejected, texts = (
        rows.pivot(index="position", columns="layer", values=name)
        for name in (score, "rejected", "text")
    )
    positions, layers = list(values.index), list(values.columns)
    names = dict(zip(positions[-len(tokens) :], tokens, strict=True)) if tokens else {}
    widgets.figure(
        candidate_grid(
            values.astype(float),
            x=[str(layer) for layer in layers],
            y=[f"{p} {widgets.visible(names.get(p, ''))} " for p in positions],
            rejected=rejected.fillna("").astype(bool),
            texts=texts.fillna("").to_numpy().tolist(),
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
            lines.append(
                f"{score} {row[score]:z.3f}" + ("" if error is None else f" ± {error:z.3f}")
            )
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
        seen = {kind: found[kind][edit][side] for kind in kinds}
        drawings[side] = drawn = widgets.estimates_with_null(
            {kind: x["value"] for kind, x in seen.items()},
            [x["random"] for x in seen.values()],
            value_title="refusal score, nats",
            value_label="the direction",
            null_label="random",
        )
        drawn.add_vline(x=found["plain"][side]["mean"], line={"dash": "dash", "width": 1.5})
    share_axis(drawings.values(), "x")
    columns = st.columns(2)  # four in a row leave no room for the numbers below them
    for (side, drawn), column in zip(drawings.items(), cycle(columns), strict=False):
        column.markdown(f"**{side.capitalize()}** (n = {found['n'][side]})")
        alt = f"Refusal score, {side}, {edit}"
        widgets.figure(drawn, key=f"effects-{side}", alt=alt, into=column)
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
        most = len(cosines[0][0]) - 1
        key = f"cosine-layer-{current().refusal}"
        layer = left.slider("Layer", 0, most, min(int(found["layer"]), most), key=key)
        widgets.figure(
            square_map(
                [[pair[layer] for pair in row] for row in cosines],
                names=names,
                title="cosine",
                limits=(-1, 1),
            ),
            key="cosines",
            alt=f"Cosines of the directions at layer {layer}",
            into=left,
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
        widgets.legend_below(drawn, height=470, room=150)
        alt = "Cosines by layer, ceiling and floor"
        widgets.figure(drawn, key="cosine-lines", alt=alt, into=right)
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


def _tokens(study: Study[Any]) -> None:
    """The controls, and the prompts once a model is there."""
    directions = kept_directions(study)
    if not directions:
        return
    model = loaded_model(study)
    left, right = st.columns([3, 2], gap="large")
    direction = choose_direction(directions, key="projected-direction", into=right)
    reading = right.segmented_control(
        "Colour",
        list(READINGS),
        default="projection",
        required=True,
        format_func=READINGS.__getitem__,
        key="projected-reading",
    )
    typed = left.text_area(
        f"Prompts, one per line, at most {MOST}",
        "\n".join(" ".join(text.split()) for text in example_prompts(study)[:3]),
        height=190,
        key=f"projected-{study.directory.name}",
    )
    texts = [line.strip() for line in typed.splitlines() if line.strip()]
    if model is None or not texts:
        return
    if study.settings.system and not may_read():
        st.info(
            f"The study's system prompt is before every prompt, and is {HIDDEN}. So the tokens are "
            "not shown either.",
            icon=":material/visibility_off:",
        )
        return
    if len(texts) > MOST:
        st.warning(f"{len(texts)} prompts: shorten to {MOST}.", icon=":material/warning:")
        return
    try:
        prompts = prompts_on(model, study, texts)
        chosen = fitted(direction, model, prompts)
        found = project(model, prompts.rows, chosen.layer, chosen.site, tuple(chosen.unit.tolist()))
    except InterpError as error:
        widgets.show_error(error)
        return
    st.html(projection_strips(found, reading, READINGS[reading]))
    st.caption(
        f"{widgets.plain(str(direction))}, towards refusal, at every token, the template's "
        "tokens included. Red is above and blue below the median of the tokens shown. All "
        "prompts share one scale, which ends at the 95 % quantile. Hover for values."
    )


@st.cache_resource(max_entries=32, show_spinner="Reading the tokens …", hash_funcs=HASHES)
def project(
    model: LanguageModel,
    rows: tuple[tuple[int, ...], ...],
    layer: int,
    site: str,
    unit: tuple[float, ...],
) -> list[Projected]:
    """Each prompt along a unit vector at a layer's site.

    Raises:
        InterpError: a site the model does not have, or inside `intervene`.
    """
    return project_tokens(model, rows, layer=layer, site=site, unit=unit)


if __name__ == "__main__":
    _show()
