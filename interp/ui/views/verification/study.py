"""Study: the kept verification studies, one to run or go on with, and what it found as a whole."""

from __future__ import annotations

import streamlit as st

from interp.studies.steps import Result
from interp.ui.shared import offered, widgets
from interp.ui.shared.state import write_link
from interp.ui.studies import open_study, overview
from interp.ui.studies.pages import VERIFICATION_PAGES
from interp.ui.studies.run import run_panel, running

ABOUT = (
    "A replication of Lee et al. 2025, *The Geometry of Self-Verification in a Task-Specific "
    "Reasoning Model* (arXiv 2504.14379): which parts of a model make it say *(this works)* "
    "or *(not 71)* after an attempt at a CountDown sum, with intervals and random controls "
    "throughout."
)


def show() -> None:
    """The page."""
    write_link()
    open_study.write_view()
    st.title("How does a model check its own answers?", anchor=False)
    st.markdown(ABOUT)
    study = open_study.chosen(VERIFICATION_PAGES, link=False)
    if study is not None:
        overview.kept_table(study)
    with st.expander("Run a study, or go on with one", expanded=study is None):
        run_panel(VERIFICATION_PAGES, study)
    running(VERIFICATION_PAGES)
    if study is None:
        return
    model = offered.without_paths(study.model)
    st.header(widgets.plain(f"{model}, {study.directory.name}"), anchor=False)
    open_study.provenance(
        study, *[step for step in VERIFICATION_PAGES.steps if step in study.results]
    )
    rows = overview.claims(study, "claim")
    if open_study.ready(study, "behaviour", link=False):
        _behaviour(study.results["behaviour"])
    open_study.take_away(study, "claims", rows, study.results.get("behaviour", {}))
    widgets.caveat(
        "A claim that holds here holds for this model, this task and greedy decoding, by the "
        "criterion in the column 'holds if'. Intervals are over problems, not over trainings: one "
        "model was trained once."
    )


def _behaviour(found: Result) -> None:
    """Does the model search, compute and judge honestly?"""
    st.subheader("Behaviour", anchor=False)
    left, right = st.columns(2, gap="large")
    with left:
        widgets.table(
            [
                {
                    "share": row["share"],
                    "value": row["mean"],
                    "95 % interval": widgets.interval(row),
                    "n": row["n"],
                }
                for row in found["rows"]
            ],
            key="behaviour",
        )
        st.caption(
            f"{found['problems']} held-out problems, {found['attempts']:.1f} attempts each. "
            f"Samples: {found['find']} valid (and as many invalid) to find with, {found['test']} "
            "to test on."
        )
    with right:
        st.markdown("**A text of the model**")
        st.code(found["example"], language=None, wrap_lines=True, height=240)


if __name__ == "__main__":
    show()
