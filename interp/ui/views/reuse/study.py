"""Study: the kept studies of circuit reuse, how to run one, and which tasks the model does."""

from __future__ import annotations

import streamlit as st

from interp.studies.steps import Result
from interp.ui.shared import widgets
from interp.ui.studies import first_page, open_study
from interp.ui.studies.pages import REUSE_PAGES

ABOUT = (
    "A replication of Merullo et al. 2024, *Circuit Component Reuse Across Tasks in Transformer "
    "Language Models* (arXiv 2310.08744): do two different tasks use the same attention heads, and "
    "does an intervention on them repair mistakes? With intervals, random heads and control tasks."
)


def _show() -> None:
    study = first_page.show_first(REUSE_PAGES, "Do tasks share circuits?", ABOUT)
    if study is None:
        return
    rows: widgets.Rows = list(first_page.claims(study))
    if open_study.ready(study, "behaviour", link=False):
        rows = _behaviour(study.results["behaviour"])
    open_study.take_away(study, "behaviour", rows, study.results.get("behaviour", {}))
    widgets.caveat(
        "This is one model. Two circuits can share heads that do different things in each, and the "
        "repairing intervention is told which colours are wrong."
    )


def _behaviour(found: Result) -> widgets.Rows:
    """Which tasks the models do; the rows of the table."""
    st.subheader("What the models do", anchor=False)
    rows = [
        {
            "task": name,
            "model": x["model"],
            "right": x["right"]["mean"],
            "95 % interval": widgets.interval(x["right"]),
            "chance": x["chance"],
            "most likely of all": x["top"]["mean"],
            "n": x["right"]["n"],
            "verdict": x["verdict"],
            "a prompt": str(x["example"]),
        }
        for name, x in found.items()
    ]
    widgets.table(rows, key="behaviour")
    st.caption(
        "right: among the answers and the wrong answers, an answer is the most likely. A model "
        "*does* a task if at least 0.75 are right and the interval is above chance, and *tends* to "
        "it if the interval is above chance. Other tasks are left out."
    )
    return rows


if __name__ == "__main__":
    _show()
