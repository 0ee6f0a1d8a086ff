"""The report of a study that ships: it opens at once, read-only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import streamlit as st

from interp.studies.report.report import HERE, Report
from interp.studies.study import MANIFEST, Study, shipped_reports
from interp.ui.shared import export, widgets
from interp.ui.shared.state import select
from interp.ui.studies import open_study
from interp.ui.studies.pages import StudyPages

RUN = re.compile(
    r"Settings: (?P<settings>.*?)\.\s(?P<computing>\d+ minutes) .*Last run on (?P<date>[\d-]+)\.",
    re.DOTALL,
)
"""What a report says of its run in its last section."""
NUMBER = re.compile(r"\b(n|draws) (\d+)")
STYLE = """
.report { --ink: inherit; --soft: color-mix(in srgb, currentColor 70%, transparent);
  --line: rgba(128,138,150,.35); --band: rgba(128,138,150,.09); --link: #3f8fd9;
  display: grid; grid-template-columns: 16rem minmax(0, 1fr); column-gap: 1rem; }
.report nav { max-width: 16rem; margin: 0; padding: 3.75rem 0 0; }
.report main { max-width: none; width: 100%; margin: 0; padding: 0; }
.report :is(p, figure, figcaption, pre, .caption) { max-width: 47rem; }
.report h1 { font-size: 1.9rem; }
.report h2 { font-size: 1.5rem; }
.report h3 { font-size: 1.2rem; }
.report main > :is(h2, h3, h4) { scroll-margin-top: 4rem; }
.report .scroll { width: auto; max-width: 100%; }
.report pre code { background: none; padding: 0; }
.report td[style*="right"] { text-align: right; }
"""
"""How the report's own style, which is nested before it, becomes that of a part of a page."""


def show(pages: StudyPages, study: Study[Any] | None = None) -> None:
    """The report, where it comes from, a list of its sections and a button to run it anew.

    That of the open study if it ships; else one is chosen.
    """
    folders = {path.name: path for path in shipped_reports(pages.kind)}
    name = next(iter(folders))
    if study is not None and study.directory.name in folders:
        name = study.directory.name
    elif len(folders) > 1:
        name = st.selectbox("Shipped report", list(folders))
    model, found = name.removeprefix(f"{pages.kind.name}-"), RUN.search(_text(folders[name]))
    run = {"settings": "as in the report"} if found is None else found.groupdict()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            "**A run that ships.** Read-only: text, numbers and figures are those of its report."
        )
        st.button(
            "Run it anew",
            icon=":material/replay:",
            on_click=_anew,
            args=(pages, model, {n: int(v) for n, v in NUMBER.findall(run["settings"])}),
        )
        widgets.downloads(
            {
                "report.html": (lambda: Report.load(folders[name]).html(), "html"),
                "report.md": (lambda: _text(folders[name]), "md"),
            },
            name=name,
            caption="",
        )
    widgets.facts({"model": model, **run})
    if (folders[name] / MANIFEST).exists():
        with st.expander("Python that prints its claims"):
            export.python(open_study.python_of(name, "claims"), name=name)
    st.html(_page(folders[name]))


def _anew(pages: StudyPages, model: str, asked: dict[str, int]) -> None:
    """Load the report's model, and open the form with the report's numbers."""
    select(model=model)
    st.session_state[f"anew-{pages.kind.name}"] = asked


def _text(folder: Path) -> str:
    return Report.load(folder).text


@st.cache_data(max_entries=4, show_spinner="Reading the report …")
def _page(folder: Path) -> str:
    """The report as a part of a page: its list of sections, and its text with the figures."""
    page = Report.load(folder).html()
    inside = page[page.index("<nav") : page.index("</main>")]
    style = (HERE / "page.css").read_text()
    return f'<style>.report {{ {style} }} {STYLE}</style><div class="report">{inside}</main></div>'
