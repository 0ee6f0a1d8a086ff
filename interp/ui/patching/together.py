"""Two or more components patched together: their joint effect, its interval and random sets."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

import interp
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.core.nulls import FlipTest, Null
from interp.core.records import read_sealed, write_sealed
from interp.core.statistics import Estimate
from interp.models.language_model import LanguageModel
from interp.patching.joint import JOINT_SITES, JointEffect, components_of
from interp.results.keys import result_key
from interp.results.scores import Scores
from interp.ui.patching.onward import to_interventions
from interp.ui.prompts import frame
from interp.ui.shared import cache, export, jobs, widgets
from interp.ui.shared.state import current, ignored, in_words, select

KIND, VERSION = "joint patching", 1
MOST = 3000
"""Components that are listed to choose from; with more, only those in the ranking."""


def patched_together(open_: cache.Opened, result: cache.SweepResult) -> None:
    """Choose two or more cells of the map, and measure them patched together."""
    scores = result.scores
    if not _offered(open_.model, scores):
        return
    st.subheader("Several together", anchor=False)
    st.markdown(
        "Components can back each other up, or pass the same thing on: then their joint effect is "
        "larger, or smaller, than the sum of their effects. Choose two or more."
    )
    chosen = _choose(open_.model, result)
    if len(chosen) < 2:
        return
    to_interventions(open_, scores, chosen)
    first, second, _ = st.columns([1, 1, 3])
    draws, seed = widgets.choose_draws("Random sets", first, second)
    options: dict[str, Any] = {
        "direction": scores.direction, "unit": scores.unit, "draws": draws, "seed": seed,
    }  # fmt: skip
    labels = tuple(sorted(chosen))
    key = str(result_key(KIND, VERSION, open_.model, open_.task, components=labels, **options))
    work = partial(_measure_and_keep, key, open_.model, open_.task, labels, **options)

    def ready() -> None:
        widgets.start_button("Measure together", jobs.start, key, work, "runs")

    found = jobs.result(key, lambda key: cache.kept(key, "joint effect", _stored), ready)
    if found is not None:
        _show(open_, scores, found, options)


def _offered(model: LanguageModel, scores: Scores) -> bool:
    """Whether the map's cells can be patched together: whole components from the other run."""
    joint = model.decoder is not None and scores.site in JOINT_SITES
    return joint and "position" not in scores.axes and current().source == "other"


def _choose(model: LanguageModel, result: cache.SweepResult) -> tuple[str, ...]:
    """The list of those chosen, and the buttons that add the selected cell or the strongest."""
    for label in current().together:
        try:
            components_of(model, [label])
        except InterpError as error:
            ignored().append(in_words("together", label, error.found))
            select(together=tuple(one for one in current().together if one != label))
    chosen = current().together
    ranked = [str(found.component) for found in result.ranked.values()]
    options = list(dict.fromkeys([*chosen, *ranked[:MOST]]))
    widgets.picker(
        st.multiselect,
        "Patched together",
        "together",
        options=options,
        placeholder="type, e.g. L20H0, or use the buttons",
    )
    with st.container(horizontal=True):
        part, k = current(), min(2, len(ranked))
        if part.layer is not None:
            label = str(Component(part.layer, result.scores.site, part.head))
            if label in ranked and label not in chosen:
                st.button(
                    f"Add {label}",
                    icon=":material/add:",
                    on_click=select,
                    kwargs={"together": (*chosen, label)},
                )
        st.button(
            f"The {k} strongest",
            icon=":material/vertical_align_top:",
            on_click=select,
            kwargs={"together": tuple(ranked[:k])},
        )
    return chosen


def _measure_and_keep(
    key: str,
    model: LanguageModel,
    task: interp.Task,
    labels: tuple[str, ...],
    *,
    progress: jobs.Reporter,
    cancelled: Any,
    **options: Any,
) -> None:
    """In the process of a job, which a click on Cancel ends."""

    def counted(done: int, total: int) -> None:
        if not cancelled():
            progress(done, total)

    found = interp.patching.joint_patching(model, task, labels, progress=counted, **options)
    write_sealed(_path(key), KIND, VERSION, asdict(found), key=key)


def _stored(key: str) -> JointEffect | None:
    try:
        kept = read_sealed(_path(key), KIND, VERSION, key=key)[0]
    except InterpError:
        return None
    return _joint(kept)


def _joint(kept: dict[str, Any]) -> JointEffect:
    null = kept["null"]
    return JointEffect(
        components=tuple(kept["components"]),
        effect=Estimate(**kept["effect"]),
        flips=FlipTest(**kept["flips"]),
        null=None if null is None else Null(**null),
        unit=kept["unit"],
    )


def _path(key: str) -> Path:
    return cache_dir() / "joint" / f"{key}.json"


def _show(open_: cache.Opened, scores: Scores, found: JointEffect, options: dict[str, Any]) -> None:
    """The joint effect beside the sum of the single ones, and the random sets."""
    single = [_single(scores, label) for label in found.components]
    alone = None if None in single else sum(x for x in single if x is not None)
    unit = "of the gap" if found.unit == "gap" else scores.unit_words
    facts = {
        f"together, {unit}": widgets.number(found.effect.mean),
        "95 % interval": widgets.interval(found.effect),
        "sum of their effects alone": widgets.maybe(alone),
        "prompts": found.effect.n,
    }
    if found.null is not None:
        facts |= {f"{found.null.draws} random sets": found.null.beside}
    widgets.facts(facts)
    st.caption(
        "At all tokens. A sum inside the interval shows no difference from the joint effect. More "
        f"than noise? {found.flips}; p is valid on pairs on which you did not "
        "choose these: take another seed on Setup, and measure again. Random sets: as many others "
        "of the same kind and layer; of a site without components, other layers. Their rank is no "
        "p-value."
    )
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    export.python(
        f"{frame.load_call(open_.model)}\ntask = {open_.task.source}\n\n"
        f"joint = interp.patching.joint_patching(model, task, {list(found.components)}{given})\n"
        "print(joint)",
        name=f"{open_.task.name}-together",
        words="Python that gives the joint effect again",
    )


def _single(scores: Scores, label: str) -> float | None:
    """The effect of one of them alone; None if it is not on this map."""
    try:
        return float(scores.values[scores.index(label)])
    except InterpError:
        return None
