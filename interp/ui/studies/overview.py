"""What the first page about a kind of study shows: kept studies, claims and the report."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.studies.study import Study
from interp.ui.shared import offered, widgets
from interp.ui.studies import open_study
from interp.ui.studies.pages import pages_of


def kept_table(study: Study[Any]) -> None:
    """All kept studies of this kind; a click on a row opens one."""
    pages = pages_of(study)
    found = open_study.kept(pages)
    names = [each.directory.name for each in found]
    key = f"kept-{study.directory.name}"

    def picked() -> None:
        if rows := st.session_state[key].selection.rows:
            open_study.change(**{pages.field: names[rows[0]]})

    st.dataframe(
        [
            {
                "model": offered.without_paths(each.model),
                "weights": each.model_hash[:12],
                "n": each.settings.n,
                "draws": each.settings.draws,
                "seed": each.settings.seed,
                "last run": open_study.made(each),
                "steps": open_study.progress(each),
                "still to do": ", ".join(s for s in pages.steps if s not in each.results) or "–",
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


def claims(study: Study[Any], claim: str) -> list[dict[str, str]]:
    """Which claims hold, and the whole report, once all steps are there; `claim` is a column."""
    pages = pages_of(study)
    st.subheader("What holds", anchor=False)
    if not open_study.ready(study, *pages.steps, link=False):
        return []
    rows = pages.claims(study.results)
    st.dataframe(
        rows,
        key="claims",
        hide_index=True,
        column_config={
            claim: st.column_config.TextColumn(width=330),
            "here": st.column_config.TextColumn(width=110),
            "evidence": st.column_config.TextColumn(width="large"),
        },
        row_height=76,
        height="content",
    )
    left, right, where = st.columns([1, 1, 3], vertical_alignment="center")
    name = f"{study.directory.name}-{study.settings.n}-{pages.kind.name}"
    for column, kind, mime in ((left, "html", "text/html"), (right, "md", "text/markdown")):
        column.download_button(
            f"report.{kind}",
            lambda kind=kind: report(study)[kind],
            file_name=f"{name}.{kind}",
            mime=mime,
            icon=":material/description:",
            on_click="ignore",
            width="stretch",
        )
    kept = study.directory / "report.html"
    where.caption(
        "The full report. The HTML page contains the figures; the Markdown only names them."
        + (f" A copy is at {widgets.plain(str(kept))}." if kept.exists() else "")
    )
    return rows


def report(study: Study[Any]) -> dict[str, str]:
    """The study's report, as it is downloaded."""
    made = pages_of(study).write_up(study)
    return {"html": made.html(), "md": made.markdown()}
