"""A finished sweep: its map, its ranking, the cell looked at, and the ways to take it away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.core.files import json_text
from interp.plots.components import attention_map, component_scatter, effect_strip, token_bars
from interp.plots.style import symmetric_limit
from interp.results.scores import Scores
from interp.ui.patching.onward import to_interventions
from interp.ui.patching.together import patched_together
from interp.ui.shared import cache, export, offered, widgets
from interp.ui.shared.state import CELL, cell, current, select, strangers

CAVEATS = {
    "denoise": "A large effect shows that the clean value here is enough to restore part of the "
    "behaviour in an otherwise corrupted run. It does not show that the component is needed "
    "(others may do the same), or which later component reads it.",
    "noise": "A large effect shows that the behaviour suffers when this value is corrupted. A "
    "small one does not show that the component is idle: others may compensate.",
    "paths": "What reaches the receivers through other heads: only direct paths and those through "
    "MLPs count. A sender with a small effect here may act through other receivers.",
}
NEXT = (
    "**What next?** Click the strongest: does it act on every prompt? For a head, patch the paths "
    "into it (buttons below its effect). Then measure it on other pairs (another seed on Setup), "
    "and ask on Circuits how the strong ones are connected."
)
HEAD_SITES = ("q", "k", "v", "pattern", "z")
NOTHING = 1e-3  # logits
MOST = 100
"""Cells that are listed."""
FEWEST = 4
"""Prompts that the test of the strongest cells needs."""
SMALL = 0.02
"""Where no effect is larger, five decimals are shown."""


@st.fragment
def explore(
    open_: cache.Opened,
    result: cache.SweepResult,
    key: str,
    more: Callable[[Scores, tuple[int, ...]], None] | None = None,
) -> None:
    """Map, ranking and detail: a click reruns this part alone. `more` adds to the detail."""
    scores = result.scores
    if unknown := strangers(scores, current()):
        parts = " and ".join(f"{name} {getattr(current(), name)}" for name in unknown)
        st.warning(f"These results have no {widgets.plain(parts)}.", icon=":material/link_off:")
        select(**unknown)
    place = cell(scores, current())
    left, right = st.columns([5, 7], gap="large")
    with left:
        component_map(scores, place)
        _pick_by_keyboard(scores)
        st.caption(_colours(scores))
    with right:
        _ranking(result, place)
        if place is None:
            st.info("Click a cell of the map, or a row above.", icon=":material/ads_click:")
            st.caption(NEXT)
        else:
            _effect(result, place)
            if not is_of_paths(scores):
                found = result.ranked[scores.label(place)]
                to_interventions(open_, scores, [str(found.component)], found.position)
            if more is not None:
                more(scores, place)
    if place is not None:
        _inside(open_, result, place)
    if not is_of_paths(scores):
        patched_together(open_, result)
    _take_away(result, place, key)
    widgets.caveat(CAVEATS["paths" if is_of_paths(scores) else scores.direction])


def is_of_paths(scores: Scores) -> bool:
    """Whether the effects are those of `interp.path_patching`."""
    return scores.method.startswith("path patching")


def component_map(
    scores: Scores,
    place: tuple[int, ...] | None,
    picked: Callable[[list[int]], None] | None = None,
    *,
    errors: bool = True,
) -> None:
    """The effect of every cell; a click selects the cell, or calls `picked` with its place.

    `errors`: whether hover shows standard errors, which a half-measured sweep does not have.
    """
    if len(scores.axes) == 3:
        widgets.picker(
            st.selectbox,
            "Position shown",
            "position",
            options=scores.coordinates["position"],
            index=None,
            placeholder="largest over positions",
        )
    columns = [axis for axis in scores.axes[1:] if len(scores.axes) == 2 or axis != "position"]

    def chosen(data: list[int]) -> None:
        row, column = data
        changes: dict[str, Any] = {"layer": int(scores.coordinates["layer"][row])}
        if columns == ["position"]:
            changes["position"] = scores.coordinates["position"][column]
        elif columns:
            changes["head"] = int(scores.coordinates[columns[0]][column])
        select(**changes)

    selected = None if place is None else (place[0], place[1] if columns else 0)
    shown = current().position if len(scores.axes) == 3 else None
    if columns == ["neuron"]:
        values, stderr, _, _ = scores.grid(shown)
        layers, neurons = scores.coordinates["layer"], scores.coordinates["neuron"]
        figure = component_scatter(
            values,
            x=neurons,
            y=layers,
            x_title="neuron",
            y_title="layer",
            colour_title=f"effect ({scores.unit_words})",
            stderr=stderr if errors else None,
            selected=selected,
            names=[[f"L{layer}N{neuron}" for neuron in neurons] for layer in layers],
        )
    else:  # one scale at every position, so that a weak one looks weak
        limit = symmetric_limit(scores.values)
        figure = scores.plot(position=shown, selected=selected, limit=limit, errors=errors)
    widgets.figure(
        figure,
        key="map",
        alt=f"Effect of {scores.site} by {' and '.join(scores.axes)}",
        filename=f"{scores.provenance.task}-{scores.site}",
        picked=picked or chosen,
    )


def _colours(scores: Scores) -> str:
    """What a colour and the number 1 mean."""
    one = (
        "**1** is the whole gap: this cell alone turns the corrupted metric into the clean one"
        if scores.direction == "denoise"
        else "**1** is the whole gap: without this cell the clean metric is the corrupted one"
    )
    if scores.unit != "gap":
        one = f"**1** is one of {widgets.plain(scores.unit_words)}, a mean over prompts"
    return (
        "Red supports the behaviour, blue works against it, the page's colour is near 0. Grey: no "
        f"value, for the model has no such component or the run left it out. {one}."
    )


def _pick_by_keyboard(scores: Scores) -> None:
    """The same as a click, by keyboard: layer, component or position, and Clear."""
    numbered = next((axis for axis in scores.axes[1:] if axis != "position"), None)
    columns = st.columns([2, 2, 1.4], vertical_alignment="bottom")
    none: dict[str, Any] = {"placeholder": "none"}
    for column, axis, field in ((columns[0], "layer", "layer"), (columns[1], numbered, "head")):
        if axis is not None:
            ends = [int(scores.coordinates[axis][end]) for end in (0, -1)]
            name = widgets.COMPONENTS.get(axis, axis)
            label = name[0].upper() + name[1:]
            widgets.picker(
                column.number_input, label, field, min_value=ends[0], max_value=ends[1],
                value=None, **none,
            )  # fmt: skip
    if numbered is None and "position" in scores.axes:
        options = scores.coordinates["position"]
        widgets.picker(
            columns[1].selectbox, "Position", "position", options=options, index=None, **none
        )
    columns[2].button(
        "Clear", on_click=select, kwargs=CELL, disabled=current().layer is None, width="stretch"
    )


def _ranking(result: cache.SweepResult, place: tuple[int, ...] | None) -> None:
    """The strongest cells, and the same number of random ones."""
    scores = result.scores
    k = _how_many(scores)
    title, number = st.columns([4, 1], vertical_alignment="bottom")
    limits = {"min_value": 1, "max_value": min(MOST, scores.values.size)}
    widgets.picker(number.number_input, "How many", "top", shown=k, **limits)
    words = "fractions of the gap" if scores.unit == "gap" else scores.unit_words
    title.markdown(f"**Top {k}** of {scores.values.size} cells by effect, in {words}")
    low, high = result.interval
    decimals = 3 if abs(scores.values).max() >= SMALL else 5
    top = list(result.ranked.values())[:k]
    cells = [scores.index(str(found.component), found.position) for found in top]

    def picked(row: int) -> None:
        found = top[row]
        select(layer=found.component.layer, head=found.component.index, position=found.position)

    widgets.table(
        [
            {
                "rank": found.rank,
                "component": found.label,
                "effect": found.value,
                "stderr": found.stderr,
                "95 % interval": widgets.span(low[at], high[at], decimals),
            }
            for found, at in zip(top, cells, strict=True)
        ],
        key=f"top-{place}",
        decimals=decimals,
        most=10,
        picked=picked,
        chosen=cells.index(place) if place in cells else None,
    )
    band = _band(scores)
    where = "any layer" if band else "same layers"
    try:
        test = result.test(k, band)
    except InterpError as error:
        st.caption(f"No test of the top {k}: {widgets.plain(error.found)}.")
    else:
        random = widgets.value(test)
        st.caption(
            f"**More than noise?** The top {k} by effect, the most positive first, compared "
            f"with the top {k} after flipping the signs of prompts: "
            f"{test.flips}{test.warning}. **How strong?** Selected on one half of the prompts, "
            f"they have on the other half a mean effect of {test.unseen}; random ones "
            f"({where}) {random}."
        )


def _how_many(scores: Scores) -> int:
    """How many of the strongest cells are listed and tested."""
    usual = min(10, max(1, scores.values.size // 4))
    return min(current().top or usual, MOST, scores.values.size)


def _band(scores: Scores) -> int:
    """How far random cells may be: any layer, where a layer has one component only."""
    alone = not set(scores.axes) - {"layer", "position"}
    return len(scores.coordinates["layer"]) if alone else 0


def _take_away(result: cache.SweepResult, place: tuple[int, ...] | None, key: str) -> None:
    """Files, and the Python that gives the number again."""
    scores = result.scores
    st.subheader("Export", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.downloads(
            {
                "CSV": (lambda: scores.to_dataframe().to_csv(index=False), "csv"),
                "JSON": (
                    lambda: offered.shown(json_text(scores.to_dict(), indent=1), scores.provenance),
                    "json",
                ),
            },
            name=f"{scores.provenance.task}-{scores.site}-{key[:8]}",
        )
    k, band = _how_many(scores), _band(scores)
    last = f"scores.plot()\nprint(scores.top({k}))"
    if scores.n >= FEWEST:
        last += f"\nprint(scores.null({k}, band={band}))"
    if place is not None:
        found = result.ranked[scores.label(place)]
        at = "" if found.position is None else f", {found.position!r}"
        last = f"print(scores.estimate({str(found.component)!r}{at}))"
    export.python(
        offered.shown(f"{scores.provenance.call}\n\n{last}", scores.provenance),
        name=f"{scores.provenance.task}-{scores.site}-{key[:8]}",
        words="Python that reproduces " + ("this map" if place is None else "this number"),
    )


def _effect(result: cache.SweepResult, cell: tuple[int, ...]) -> None:
    """The effect with its interval and rank, and its spread over prompts."""
    scores = result.scores
    ranked = result.ranked[scores.label(cell)]
    low, high = (float(end[cell]) for end in result.interval)
    st.subheader(ranked.label, anchor=False)
    gap = scores.unit == "gap"
    unit = "of the gap" if gap else scores.unit_words
    st.markdown(
        f"effect **{widgets.number(ranked.value)}** {unit} · 95 % interval "
        f"{widgets.span(low, high)} · rank **{ranked.rank} of {ranked.of}**"
    )
    widgets.figure(
        effect_strip(
            scores.effects[(slice(None), *cell)],
            scores.gap if gap else 1.0,
            low=low,
            high=high,
            selected=current().prompt,
            title=f"effect on each prompt ({'fraction of the mean gap' if gap else unit})",
        ),
        key="strip",
        alt=f"Effect of {ranked.label} on each of {scores.n} prompts",
        filename=f"{ranked.label}-prompts",
        picked=lambda data: select(prompt=data[0]),
    )


def _inside(open_: cache.Opened, result: cache.SweepResult, cell: tuple[int, ...]) -> None:
    """For attention sites: the head's pattern and output on one prompt."""
    part = result.scores.component(cell)
    if part.site not in HEAD_SITES or part.index is None:
        return
    model, head = open_.model, part.index
    if SITES[part.site] == "kv_head":
        head *= model.n_heads // model.n_kv_heads
    label = f"L{part.layer}H{head}"
    st.subheader(f"Inside {label}", anchor=False)
    if SITES[part.site] == "kv_head" and model.n_heads > model.n_kv_heads:
        group = model.n_heads // model.n_kv_heads
        st.caption(
            f"Key/value head {part.index} serves query heads {head} to {head + group - 1}; "
            f"this is the first of them."
        )
    most = len(open_.task) - 1
    picker, text = st.columns([1, 5], vertical_alignment="bottom")
    prompt = widgets.picker(
        picker.number_input, f"Prompt, 0 to {most}", "prompt", min_value=0, max_value=most
    )
    text.markdown(widgets.plain(str(open_.task.pairs[prompt].clean)))
    try:
        view = cache.head_view(open_, part.layer, head, prompt)
    except InterpError as error:
        widgets.show_error(error)
        return
    left, right = st.columns([1, 1], gap="large")
    widgets.figure(
        attention_map(view.pattern.numpy(), view.tokens),
        key="attention",
        title=f"Where {label} attends",
        filename=f"{label}-attention-{prompt}",
        alt=f"Attention pattern of {label} on prompt {prompt}",
        into=left,
    )
    with right:
        st.markdown(f"**What {label} writes** at the last token, read through the unembedding")
        written = [*view.promoted, *view.suppressed]
        if not written:
            st.info("Not available: a norm after attention lies between this head and the logits.")
            return
        if all(abs(value) < NOTHING for _, value in written):
            st.info("It adds nothing to any logit directly: its effect goes through later layers.")
            return
        if open_.encoded.targets.strings is not None:
            st.caption(
                "No direct logit attribution: an answer of several tokens is more than this last "
                "token. Type the prompt on Heads, which sums over the answer's tokens."
            )
        elif view.direct is not None:
            st.caption(
                f"Direct logit attribution: {view.direct:+z.3f} logits for the answer over the "
                "wrong ones, on this prompt."
            )
        widgets.figure(
            token_bars(view.promoted, view.suppressed),
            key="tokens",
            filename=f"{label}-tokens-{prompt}",
            alt=f"Tokens {label} promotes and suppresses on prompt {prompt}",
        )
