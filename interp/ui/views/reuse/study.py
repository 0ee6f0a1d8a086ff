"""Study: the kept studies of circuit reuse, how to run one, and which tasks the model does."""

from __future__ import annotations

import streamlit as st

from interp.studies.reuse.report import tables
from interp.studies.steps import Results
from interp.ui.shared import opening, widgets
from interp.ui.studies import first_page, open_study
from interp.ui.studies.pages import REUSE_PAGES


def _show() -> None:
    opening.intro(
        "Do tasks share circuits?",
        does="It finds the heads behind several tasks and asks whether different tasks use the "
        "same ones, and whether an intervention on shared heads repairs mistakes. A "
        "replication of Merullo et al. 2024 (arXiv 2310.08744), with intervals, random heads"
        " and control tasks.",
        when="To read what came out, claim by claim, and to run the study on another model.",
        lacks="More than one model. Two circuits can share heads that do different things in "
        "each, and the repairing intervention is told which colours are wrong.",
    )
    study = first_page.show_first(REUSE_PAGES)
    if study is None:
        return
    first_page.claims(study)
    if open_study.ready(study, "behaviour", link=False):
        _behaviour(study.results)
    open_study.take_away(study, "behaviour", "behaviour")


def _behaviour(results: Results) -> None:
    """Which tasks the models do."""
    st.subheader("What the models do", anchor=False)
    widgets.table(tables.behaviour(results), key="behaviour")
    st.caption(
        "right: among the answers and the wrong answers, an answer is the most likely. A model "
        "*does* a task if at least 0.75 are right and the interval is above chance, and *tends* to "
        "it if the interval is above chance. Other tasks are left out."
    )


if __name__ == "__main__":
    _show()
