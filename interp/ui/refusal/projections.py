"""Prompts token by token, coloured by how far each lies along a direction."""

from __future__ import annotations

from html import escape
from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.plots.style import visible
from interp.steering.projections import Projected, on_one_scale, project_tokens
from interp.studies.study import Study
from interp.ui.refusal.model import (
    choose_direction,
    example_prompts,
    fitted,
    kept_directions,
    prompts_on,
)
from interp.ui.shared import widgets
from interp.ui.shared.cache import HASHES
from interp.ui.studies.model import loaded_model

MOST = 6
"""Prompts shown at once."""

READINGS = {"projection": "projection h · r̂", "cosine": "cosine with r"}


def tokens(study: Study[Any]) -> None:
    """The controls, and the prompts once a model is there."""
    directions = kept_directions(study)
    if not directions:
        return
    model = loaded_model(study)
    left, right = st.columns([3, 2], gap="large")
    with right:
        direction = choose_direction(directions, key="projected-direction")
        reading = st.segmented_control(
            "Colour",
            list(READINGS),
            default="projection",
            required=True,
            format_func=READINGS.__getitem__,
            key="projected-reading",
        )
    with left:
        typed = st.text_area(
            f"Prompts, one per line, at most {MOST}",
            "\n".join(" ".join(text.split()) for text in example_prompts(study)[:3]),
            height=190,
            key=f"projected-{study.directory.name}",
        )
    texts = [line.strip() for line in typed.splitlines() if line.strip()]
    if model is None or not texts:
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
    st.html(strips(found, reading))
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


def strips(found: list[Projected], reading: str) -> str:
    """The prompts as HTML, a chip a token, on one scale."""
    values = [getattr(one, reading) for one in found]
    middle, reach, places = on_one_scale(values)
    lines = []
    for one, row, at in zip(found, values, places, strict=True):
        chips = "".join(
            _chip(token, float(value), float(place), i, reading)
            for i, (token, value, place) in enumerate(zip(one.tokens, row, at, strict=True))
        )
        lines.append(
            f'<div style="display:flex;flex-wrap:wrap;gap:3px;margin-bottom:0.7rem">{chips}</div>'
        )
    return (
        "".join(lines) + f'<div style="{widgets.SMALL}">{READINGS[reading]}: {middle - reach:.3f} '
        '<span style="display:inline-block;width:9rem;height:0.7rem;vertical-align:middle;'
        "background:linear-gradient(90deg,rgba(47,111,181,0.75),rgba(128,138,150,0.08),"
        f'rgba(192,57,43,0.75))"></span> {middle + reach:.3f}</div>'
    )


def _chip(token: str, value: float, place: float, index: int, reading: str) -> str:
    colour = "192,57,43" if place > 0 else "47,111,181"
    shade = f"rgba({colour},{0.05 + 0.7 * abs(place):.2f})"
    return (
        f'<div title="token {index}: {reading} {value:.3f}" style="background:{shade};'
        "border-radius:4px;padding:0 0.3rem;line-height:1.6rem;white-space:pre;"
        f'font-family:monospace;font-size:0.84rem">{escape(visible(token))}</div>'
    )
