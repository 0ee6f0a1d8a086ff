"""Interventions: steering methods on both sides, their doses, and one to try."""

from __future__ import annotations

import streamlit as st

from interp.ui.refusal import methods, texts
from interp.ui.shared import widgets
from interp.ui.studies import open_study
from interp.ui.studies.pages import REFUSAL_PAGES

SECTIONS = {
    "frontier": (
        methods.frontier,
        "method_",
        "A text that no longer refuses need not be a good answer: see loss, KL and texts that "
        "are neither. One model, one set of prompts, greedy decoding.",
    ),
    "doses": (
        methods.doses,
        "dose_",
        "Here the first token's score stands in for the text. Texts are judged at the chosen "
        "dose only, on other rows.",
    ),
    "try one": (
        texts.side_by_side,
        None,
        "One text and one random direction: an illustration, not a measurement.",
    ),
}


def show() -> None:
    """The page."""
    study = open_study.opened(REFUSAL_PAGES, "Interventions")
    if study is None:
        return
    section = open_study.pick(
        st.segmented_control,
        "What to look at",
        "section",
        list(SECTIONS),
        required=True,
        help="frontier: what each method removes and keeps. doses: how its dose was chosen. try "
        "one: steer the loaded model.",
    )
    draw, prefix, caveat = SECTIONS[section]
    kept = {
        name: found
        for name, found in study.results.items()
        if prefix is not None and name.startswith(prefix)
    }
    open_study.provenance(study, *kept)
    rows = draw(study)
    open_study.take_away(
        study, f"refusal-{section.replace(' ', '-')}", rows, kept or {"rows": rows}
    )
    widgets.caveat(caveat)


if __name__ == "__main__":
    show()
