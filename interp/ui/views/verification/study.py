"""Study: the kept verification studies, how to run or continue one, and what it found."""

from __future__ import annotations

import streamlit as st

from interp.studies.steps import Result
from interp.ui.shared import widgets
from interp.ui.studies import first_page, open_study
from interp.ui.studies.pages import VERIFICATION_PAGES

ABOUT = (
    "A replication of Lee et al. 2025, *The Geometry of Self-Verification in a Task-Specific "
    "Reasoning Model* (arXiv 2504.14379): which parts of a model make it say *(this works)* "
    "or *(not 71)* after an attempt at a CountDown sum, with intervals and random controls "
    "throughout."
)


def _show() -> None:
    title = "How does a model check its own answers?"
    study = first_page.show_first(VERIFICATION_PAGES, title, ABOUT, *VERIFICATION_PAGES.steps)
    if study is None:
        return
    rows = first_page.claims(study)
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
            f"{found['problems']} held-out problems, {found['attempts']:z.1f} attempts each. "
            f"Samples: {found['find']} valid (and as many invalid) to find with, {found['test']} "
            "to test on."
        )
    with right:
        st.markdown("**A text of the model**")
        st.code(found["example"], language=None, wrap_lines=True, height=240)


if __name__ == "__main__":
    _show()
