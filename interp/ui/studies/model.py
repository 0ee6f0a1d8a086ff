"""The model behind a study, where a page needs one."""

from __future__ import annotations

from typing import Any

import streamlit as st

import interp
from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.toys.circuits import TOYS
from interp.studies.study import Study
from interp.ui.shared import cache, offered, widgets
from interp.ui.shared.state import Selection, current, select


def loaded_model(study: Study[Any] | None = None) -> LanguageModel | None:
    """The model in memory, with its chooser; None without one, or where it cannot be loaded.

    A warning is shown where its weights are not those of the study.
    """
    model = None
    if current().model is not None:
        try:
            model = cache.load_model(str(current().model), current().dtype)
        except InterpError as error:
            widgets.show_error(error)
    _chooser(study, model)
    if model is not None and study is not None and not same_weights(model, study):
        mine, its = (widgets.plain(offered.without_paths(x)) for x in (model.name, study.model))
        st.warning(
            f"The loaded model is {mine} ({model.hash[:12]}), but the study used {its} "
            f"({study.model_hash[:12]}): its findings may not hold for the loaded model.",
            icon=":material/difference:",
        )
    return model


def same_weights(model: LanguageModel, study: Study[Any]) -> bool:
    """Whether a study was made on these weights."""
    return model.hash == study.model_hash


def _chooser(study: Study[Any] | None, model: LanguageModel | None) -> None:
    """Which model is loaded, and a form to load another."""
    names = [*([study.model] if study else []), *offered.offered(), current().model]
    shown = "" if model is None else widgets.plain(offered.without_paths(model.name))
    left, right, state = st.columns([3, 1, 4], vertical_alignment="bottom")
    name = widgets.choose_model(
        list(filter(None, dict.fromkeys(names))),
        None if model is None else model.name,
        into=left,
        key=f"study-model-{study.directory.name if study else ''}-{shown}",
    )
    if name in TOYS:
        task = {"task": name}
    else:  # a toy's task fits no other model
        task = {} if current().task in interp.tasks.TASKS else {"task": Selection().task}
    right.button(
        "Load",
        key="study-load",
        icon=":material/memory:",
        width="stretch",
        on_click=select,
        kwargs={"model": name, **task},
    )
    state.markdown(
        "No model is loaded."
        if model is None
        else f"Loaded: **{shown}** · `{model.hash[:12]}` · {model.dtype}"
    )
