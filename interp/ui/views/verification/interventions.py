"""Interventions: what sets of heads and neurons do to the verdict, to texts, and to the rest."""

from __future__ import annotations

import streamlit as st

from interp.ui.shared import widgets
from interp.ui.studies import open_study
from interp.ui.studies.pages import VERIFICATION_PAGES
from interp.ui.verification import outcomes
from interp.ui.verification.generate import side_by_side

SECTIONS = {
    "verdicts": (
        outcomes.verdicts,
        ("effects_zero",),
        "A set that disables the verdict need not compute it: breaking an input of the "
        "verdict disables it too. Zeroed values are out of distribution; compare mean and "
        "resample.",
    ),
    "texts": (
        outcomes.outcomes,
        ("interventions",),
        "Success means that the model no longer accepts a correct sum, not that it has lost "
        "nothing else: see side effects.",
    ),
    "side effects": (
        outcomes.side_effects,
        ("side_effects",),
        "Completing a result by its last digit is one narrow skill, and eight short texts are a "
        "small sample of English. What is not listed was not measured.",
    ),
    "sufficiency": (
        outcomes.sufficiency,
        ("sufficiency",),
        "A set that transfers little may still be needed, and one that transfers everything "
        "may only pass on what others computed.",
    ),
    "generate": (
        side_by_side,
        (),
        "One text and one random set: an illustration, not a measurement. Shares with intervals "
        "are under texts.",
    ),
}


def show() -> None:
    """The page."""
    study = open_study.opened(VERIFICATION_PAGES, "Interventions")
    if study is None:
        return
    section = open_study.pick(
        st.segmented_control,
        "What to look at",
        "section",
        list(SECTIONS),
        required=True,
        help="verdicts: the next token under ablation. texts: what the model then writes. "
        "side effects: arithmetic and English with the set zeroed. sufficiency: the set carried "
        "from one run into the other. generate: try it on the loaded model.",
    )
    draw, steps, caveat = SECTIONS[section]
    if not open_study.ready(study, *steps):
        return
    wanted = outcomes.ABLATIONS if draw is outcomes.verdicts else steps
    kept = {step: study.results[step] for step in wanted if step in study.results}
    open_study.provenance(study, *kept)
    rows = draw(study)
    open_study.take_away(study, section.replace(" ", "-"), rows, kept or {"rows": rows})
    widgets.caveat(caveat)


if __name__ == "__main__":
    show()
