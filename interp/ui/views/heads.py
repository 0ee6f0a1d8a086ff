"""Heads: which attend where, which write the answer, and one of them looked at."""

from __future__ import annotations

import streamlit as st

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.overview.one_prompt import Look
from interp.overview.planned_changes import PlannedChange
from interp.overview.prompt_set import DIRECT
from interp.plots.heatmaps import heat_map, pattern_thumbnails
from interp.ui import VIEWS
from interp.ui.prompts import frame, head_maps, head_panel
from interp.ui.prompts.head_maps import CHOSEN, MEASURES, HeadMap
from interp.ui.shared import cache, opening, prompts, widgets
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, select

TOP = 10


def _show() -> None:
    opening.intro(
        "Heads",
        does="It measures every attention head on any prompt, or on the prompts loaded in Setup: "
        "where it attends, and what it adds to the answer.",
        when="To find the heads that could carry a behaviour, and to see what one of them does.",
        lacks="A head that attends somewhere need not use it, and one that writes nothing here may "
        "act through later layers. Patching measures effects.",
    )
    if (opened := prompts.opened("Look", ":material/visibility:")) is None:
        return
    _page(*opened)


@st.fragment
def _page(model: LanguageModel, asked: AskedPrompt) -> None:
    """The map, the head looked at, all patterns and the files: a click reruns this part alone."""
    try:
        _heads(model, asked)
    except InterpError as error:
        widgets.show_error(error)


def _heads(model: LanguageModel, asked: AskedPrompt) -> None:
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    subjects = {"prompt": "this prompt", "set": "the prompts loaded in Setup"}
    of_set = widgets.choose("Measured on", "subject", subjects, into=left, segments=True) == "set"
    open_ = cache.opened() if of_set else None
    measures = MEASURES if open_ is None else head_maps.set_measures(open_)
    measure = widgets.choose("Measure", "measured", measures, into=right)
    if open_ is None:
        asked = prompts.by_sums(model, asked)
        seen = frame.read(model, asked)
        place = frame.read_after(seen)
        target = _target(seen, asked, place) if measure == CHOSEN else current().target
        parts = frame.parts(model, asked, place)
        frame.facts(seen, parts)
        call = frame.look_call(model, asked)
        drawn = head_maps.of_prompt(seen, parts, measure, target or 0, call)
    else:
        found = head_maps.of_set(open_, measure)
        if found is None:
            return
        drawn, target = found, current().target
        seen = _prompt(open_)
        parts = seen.attribution()
        frame.facts(seen, parts, prompts=f"{open_.task.name} · {len(open_.task)}")
    left, right = st.columns([2, 3], gap="large")
    with left:
        _map(drawn, signed=measure in (DIRECT, head_maps.PATCH))
    with right:
        head_panel.show(seen, parts, drawn, target)
        _to_interventions(asked, "L{}H{}".format(*drawn.cell()))
    _table(drawn)
    _thumbnails(seen, drawn)

    def everything() -> dict[str, object]:
        return {"measure": drawn.name, "n": len(drawn.kept) or 1, "heads": drawn.rows()}

    frame.take_away("heads", drawn.rows, everything, drawn.python)


def _to_interventions(asked: AskedPrompt, label: str) -> None:
    """The way to the typed prompt with this head changed: patched from the foil, or at zero."""
    how, words = ("zero", "at zero") if asked.foil is None else ("patch", "patched from the foil")
    if st.button(f"Try {label} {words}", icon=":material/content_cut:"):
        select(changes=(str(PlannedChange.parse(f"{label}, {how}")),), dose=None)
        st.switch_page(VIEWS / "interventions.py")


def _target(seen: Look, asked: AskedPrompt, place: int) -> int:
    """The key whose attention is measured.

    By default it is the first token in which prompt and foil differ, or else the token before the
    one that is read to which any head attends most.
    """
    strongest = seen.patterns[:, :, place].max((0, 1))
    strongest[[0, place]] = -1  # many heads attend to the first token and to the query by default
    default = int(strongest.argmax())
    if (given := asked.given_foil(seen.run.model)) is not None:
        foil = cache.look(seen.run.model, given, None, None)
        both = [look.run.prompt.tokens for look in (seen, foil)]
        differ = [i for i, (a, b) in enumerate(zip(*both, strict=False)) if a != b]
        default = differ[0] if differ and len(both[0]) == len(both[1]) else default
    return frame.choose_token(seen, "Attention to this token", "target", default)


def _prompt(open_: cache.Opened) -> Look:
    """The prompt of the set that is looked at."""
    most = len(open_.task) - 1
    number, text = st.columns([1, 5], vertical_alignment="bottom")
    at = widgets.picker(
        number.number_input, f"Prompt, 0 to {most}", "prompt", min_value=0, max_value=most
    )
    pair = open_.task.pairs[at]
    text.markdown(widgets.plain(str(pair.clean)))
    right, wrong = (some[0] if some else None for some in (pair.answers, pair.wrong))
    return cache.look(open_.model, pair.clean, right, wrong)


def _key(name: str, drawn: HeadMap) -> str:
    """A figure's key, which changes with the head.

    Two figures choose the head: one that is drawn anew under its old key may report the head that
    was clicked in it before.
    """
    return "{}-L{}H{}".format(name, *drawn.cell())


def _map(drawn: HeadMap, *, signed: bool) -> None:
    layers, heads = drawn.values.shape
    figure = heat_map(
        drawn.values,
        x=[str(head) for head in range(heads)],
        y=[str(layer) for layer in range(layers)],
        x_title="head",
        y_title="layer",
        colour_title=drawn.name,
        signed=signed,
        selected=drawn.cell(),
        names=[[f"L{layer}H{head}" for head in range(heads)] for layer in range(layers)],
    )
    widgets.figure(
        figure,
        key=_key("map", drawn),
        title="Every head",
        alt=f"Layers by heads: {drawn.name}",
        picked=lambda data: select(layer=data[0], head=data[1]),
    )


def _table(drawn: HeadMap) -> None:
    """The strongest heads, each beside others."""
    rows = drawn.rows(TOP)
    cells = [tuple(map(int, row["head"][1:].split("H"))) for row in rows]
    many = f" Means over n = {len(drawn.kept)} prompts." if drawn.kept else " n = 1: no interval."
    st.markdown(f"**The {len(rows)} strongest of {drawn.values.size}** by absolute value.{many}")
    widgets.table(
        rows,
        key=f"strongest-{drawn.cell()}",
        most=TOP,
        picked=lambda row: select(layer=cells[row][0], head=cells[row][1]),
        chosen=cells.index(drawn.cell()) if drawn.cell() in cells else None,
    )
    st.caption(
        f"Others near: mean and 95 % range over all other heads within {head_maps.NEAR} layers, "
        "and the rank among them. It is no p-value: the heads were chosen on the same prompts."
    )


def _thumbnails(seen: Look, drawn: HeadMap) -> None:
    """The attention of all heads on the prompt that is looked at."""
    try:
        figure = pattern_thumbnails(seen.patterns, selected=drawn.cell())
    except InterpError as error:
        widgets.show_error(error)
        return
    widgets.figure(
        figure,
        key=_key("thumbnails", drawn),
        title="Attention of every head (queries downwards, keys across)",
        alt="Attention patterns of all heads, layers across, heads downwards",
        picked=lambda data: select(layer=data[0], head=data[1]),
    )


if __name__ == "__main__":
    _show()
