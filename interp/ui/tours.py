"""Guided tours: a step opens a page with a selection, and says what to do and what to see."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from interp.ui import VIEWS
from interp.ui.shared import prompts
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, fit, select

FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step opens: a page, a model and prompt, and other fields of the selection."""

    page: str
    model: str
    asked: AskedPrompt
    select: dict[str, Any]
    text: str


@dataclass(frozen=True, kw_only=True)
class Tour:
    """The steps that answer a question."""

    title: str
    steps: tuple[Step, ...]


@cache
def tours() -> dict[str, Tour]:
    """The tours by name, read from `tours.toml`."""
    return {
        tour["name"]: Tour(title=tour["title"], steps=tuple(_steps(tour)))
        for tour in tomllib.loads(FILE.read_text(encoding="utf-8"))["tour"]
    }


def _steps(tour: dict[str, Any]) -> list[Step]:
    prompt = dict(tour["prompt"])
    model = prompt.pop("model")
    return [
        Step(
            page=step["page"],
            model=model,
            asked=AskedPrompt(**step.get("prompt", prompt)),
            select={k: tuple(v) if isinstance(v, list) else v for k, v in step["select"].items()},
            text=step["text"].strip(),
        )
        for step in tour["step"]
    ]


def go_to(name: str, number: int) -> None:
    """Open a step of a tour."""
    step = tours()[name].steps[number]
    prompts.take(step.asked)
    select(model=step.model, asked=step.asked.hash, tour=name, step=number)
    nothing = {"token": None, "target": None, "subject": None, "changes": ()}
    select(**{**nothing, **step.select})
    st.switch_page(VIEWS / f"{step.page}.py")


def panel() -> None:
    """The tour's present step, with the way to the others; without a tour, nothing."""
    fit(tour=list(tours()))
    if (name := current().tour) is None:
        return
    tour = tours()[name]
    fit(step=range(len(tour.steps)))
    number = current().step or 0
    with st.container(border=True, key="tour"):
        st.markdown(f"**Tour: {tour.title}** · step {number + 1} of {len(tour.steps)}")
        st.markdown(tour.steps[number].text)
        with st.container(horizontal=True):
            if st.button("Back", icon=":material/arrow_back:", disabled=number == 0):
                go_to(name, number - 1)
            if st.button("Show this step again", icon=":material/replay:"):
                go_to(name, number)
            last = number == len(tour.steps) - 1
            if st.button("Next", icon=":material/arrow_forward:", type="primary", disabled=last):
                go_to(name, number + 1)
            st.button("End the tour", on_click=select, kwargs={"tour": None, "step": None})


def offer() -> None:
    """The tours, each a click away, for who has not asked anything yet."""
    if current().tour is not None or current().asked is not None:
        return
    st.markdown("**Or take a tour**, ten minutes each:")
    with st.container(horizontal=True):
        for name, tour in tours().items():
            if st.button(tour.title, key=f"tour-{name}", icon=":material/explore:"):
                go_to(name, 0)
