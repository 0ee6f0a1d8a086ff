"""Study: the kept verification studies, how to run or continue one, and what it found."""

from __future__ import annotations

import streamlit as st

from interp.studies.steps import Results
from interp.studies.verification.report import tables
from interp.ui.shared import opening, widgets
from interp.ui.studies import first_page, open_study
from interp.ui.studies.pages import VERIFICATION_PAGES


def _show() -> None:
    opening.intro(
        "How does a model check its own answers?",
        does="It finds the parts of a model that make it say *(this works)* or *(not 71)* after "
        "an attempt at a CountDown sum, with intervals and random controls throughout. A "
        "replication of Lee et al. 2025 (arXiv 2504.14379).",
        when="To read what came out, claim by claim, and to run the study on another model.",
        lacks="More than this model, this task and greedy decoding. Intervals are over problems, "
        "not over trainings: one model was trained once.",
    )
    study = first_page.show_first(VERIFICATION_PAGES, *VERIFICATION_PAGES.steps)
    if study is None:
        return
    first_page.claims(study)
    if open_study.ready(study, "behaviour", link=False):
        _behaviour(study.results)
    open_study.take_away(study, "claims", "behaviour")


def _behaviour(results: Results) -> None:
    """Does the model search, compute and judge honestly?"""
    found = results["behaviour"]
    st.subheader("Behaviour", anchor=False)
    left, right = st.columns([3, 2], gap="large")
    with left:
        widgets.table(
            tables.behaviour(results),
            key="behaviour",
        )
        st.caption(
            f"{found['problems']} held-out problems, {found['attempts']:z.1f} attempts each. "
            f"Samples: {found['find']} valid (and as many invalid) to find with, {found['test']} "
            "to test on."
        )
    with right:
        st.markdown("**A text of the model**")
        st.code(found["example"], language=None, wrap_lines=True, height=240)


if __name__ == "__main__":
    _show()
