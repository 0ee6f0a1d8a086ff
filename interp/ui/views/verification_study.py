"""Study: the kept verification studies, one to run or go on with, and what it found as a whole."""

from __future__ import annotations

import streamlit as st

from interp.studies.steps import Result
from interp.studies.verification.claims import claims
from interp.studies.verification.study import Study
from interp.studies.verification.write_up import write_up
from interp.ui import studies, widgets
from interp.ui.state import write_link
from interp.ui.study_run import run_panel, running

ABOUT = (
    "A redo of Lee et al. 2025, *The Geometry of Self-Verification in a Task-Specific Reasoning "
    "Model* (arXiv 2504.14379): which parts of a model make it say *(this works)* or *(not 71)* "
    "after an attempt at a CountDown sum, with intervals and random controls throughout."
)


def show() -> None:
    """The page."""
    write_link()
    studies.write_view()
    st.title("How does a model check its own answers?", anchor=False)
    st.markdown(ABOUT)
    study = studies.chosen(link=False)
    if study is not None:
        _kept(study)
    with st.expander("Run a study, or go on with one", expanded=study is None):
        run_panel(study)
    running()
    if study is None:
        return
    st.header(widgets.plain(f"{study.model}, {study.directory.name}"), anchor=False)
    studies.provenance(study, *[step for step in studies.STEPS if step in study.results])
    rows = _claims(study)
    if studies.ready(study, "behaviour", link=False):
        _behaviour(study.results["behaviour"])
    studies.take_away(study, "claims", rows, study.results.get("behaviour", {}))
    studies.caveat(
        "A claim that holds here holds for this model, this task and greedy decoding, by the "
        "criterion written in the evidence. Intervals are over problems, not over trainings: one "
        "model was trained once."
    )


def _kept(study: Study) -> None:
    """All kept studies; a row's click chooses it."""
    found = studies.kept()
    names = [each.directory.name for each in found]
    key = f"kept-{study.directory.name}"

    def picked() -> None:
        if rows := st.session_state[key].selection.rows:
            studies.change(study=names[rows[0]])

    st.dataframe(
        [
            {
                "model": each.model,
                "weights": each.model_hash[:12],
                "n": each.settings.n,
                "draws": each.settings.draws,
                "seed": each.settings.seed,
                "last run": studies.made(each),
                "steps": studies.progress(each),
                "still to do": ", ".join(s for s in studies.STEPS if s not in each.results) or "–",
                "minutes": sum(each.seconds.values()) / 60,
                "study": each.directory.name,
            }
            for each in found
        ],
        key=key,
        hide_index=True,
        row_height=30,
        height=min(8, len(found)) * 30 + 34,
        on_select=picked,
        selection_mode="single-row",
        selection_default={"selection": {"rows": [names.index(study.directory.name)]}},
        column_config={"minutes": st.column_config.NumberColumn(format="%.1f")},
    )


def _claims(study: Study) -> list[dict[str, str]]:
    """Which of the paper's claims hold, and the whole report, once all steps are there."""
    st.subheader("What holds", anchor=False)
    if not studies.ready(study, *studies.STEPS, link=False):
        return []
    rows = claims(study.results)
    st.dataframe(
        rows,
        key="claims",
        hide_index=True,
        column_config={
            "claim of the paper": st.column_config.TextColumn(width=330),
            "here": st.column_config.TextColumn(width=110),
            "evidence": st.column_config.TextColumn(width="large"),
        },
        row_height=76,
        height="content",
    )
    left, right, where = st.columns([1, 1, 3], vertical_alignment="center")
    name = f"{study.model}-{study.settings.n}-verification".replace("/", "-")
    for column, kind, mime in ((left, "html", "text/html"), (right, "md", "text/markdown")):
        column.download_button(
            f"report.{kind}",
            lambda kind=kind: _report(study)[kind],
            file_name=f"{name}.{kind}",
            mime=mime,
            icon=":material/description:",
            on_click="ignore",
            width="stretch",
        )
    kept = study.directory / "report.html"
    where.caption(
        "The whole write-up: the page holds its figures, the Markdown names them only."
        + (f" A copy lies at {widgets.plain(str(kept))}." if kept.exists() else "")
    )
    return rows


def _report(study: Study) -> dict[str, str]:
    report = write_up(study)
    return {"html": report.html(), "md": report.markdown()}


def _behaviour(found: Result) -> None:
    """Does the model search, compute and judge honestly?"""
    st.subheader("Behaviour", anchor=False)
    left, right = st.columns(2, gap="large")
    with left:
        studies.table(
            [
                {
                    "share": row["share"],
                    "value": row["mean"],
                    "95 % interval": studies.interval(row),
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
