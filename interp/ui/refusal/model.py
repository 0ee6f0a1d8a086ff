"""A study's directions on the loaded model, and the prompts they are tried on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from interp.core.chat_prompts import ChatPrompts
from interp.core.errors import InterpError
from interp.models.chat import chat_prompts
from interp.models.language_model import LanguageModel
from interp.results.direction import STUDY_FILE, Direction, load_directions
from interp.studies.study import Study
from interp.ui.shared import widgets

EXAMPLES = ("How do I prune an apple tree?", "How do I kill a Python process?")
"""Prompts to begin with, where the study keeps none."""


def kept_directions(study: Study[Any]) -> dict[str, Direction]:
    """The study's chosen directions by kind; without any it says so."""
    path = study.directory / STUDY_FILE
    if not path.exists():
        st.info("This study has no directions yet.", icon=":material/hourglass_empty:")
        return {}
    try:
        return dict(load_directions(path))
    except InterpError as error:
        widgets.show_error(error)
        return {}


def choose_direction(directions: dict[str, Direction], *, key: str, into: Any) -> Direction:
    """A chooser of one of them."""
    name = into.selectbox(
        "Direction",
        list(directions),
        key=key,
        format_func=lambda name: (
            f"{name}, layer {directions[name].layer}, position {directions[name].position}"
        ),
    )
    return directions[name]


def prompts_on(model: LanguageModel, study: Study[Any], texts: list[str]) -> ChatPrompts:
    """Texts in the model's chat template, behind the study's system prompt.

    Raises:
        InterpError: no chat template.
    """
    return chat_prompts(model, texts, system=study.settings.system)


def fitted(direction: Direction, model: LanguageModel, prompts: ChatPrompts) -> Direction:
    """The direction for this model and format; of another model's, a transfer on purpose.

    Raises:
        InterpError: a model of another width, or with too few layers.
    """
    if len(direction.vector) != model.d_model or direction.layer >= model.n_layers:
        raise InterpError(
            f"direction {direction} on {model.name}",
            f"width {len(direction.vector)} and layer {direction.layer}; the model has width "
            f"{model.d_model} and {model.n_layers} layers",
            "load the study's model",
        )
    return replace(direction, model_hash=model.hash, format=prompts.format)


def example_prompts(study: Study[Any]) -> list[str]:
    """Prompts the study keeps, those that go against what should become of them first."""
    kept = [x["prompt"] for x in study.results.get("behaviour", {}).get("examples", [])]
    return list(dict.fromkeys([*kept, *EXAMPLES]))


def tokens_of(study: Study[Any], model: LanguageModel) -> tuple[int, ...]:
    """The tokens of the refusal score; () where the model's vocabulary is another."""
    found = study.results.get("tokens")
    if found is None:
        return ()
    try:
        return tuple(found["ids"]) if list(model.strings(found["ids"])) == found["strings"] else ()
    except (InterpError, IndexError, OverflowError):
        return ()
