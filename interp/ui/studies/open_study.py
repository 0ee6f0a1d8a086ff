"""A study on screen: which one is open, and what all pages about one share.

Pages read what the study's steps kept. A page says so if it needs the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import filter as matching
from functools import partial
from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.core.files import json_text
from interp.studies.by_name import study_table
from interp.studies.steps import Result
from interp.studies.study import Study, kept_studies, shipped_reports, study_roots
from interp.ui import VIEWS
from interp.ui.shared import export, offered, widgets
from interp.ui.shared.state import current, select
from interp.ui.studies.pages import StudyPages, pages_of


def kept(pages: StudyPages) -> list[Study[Any]]:
    """The studies under the cache, the newest first, then those that ship.

    They are read again when a file of theirs changes.
    """
    files = f"{pages.kind.name}-*/[!.]*.json"  # no half-written ones
    found = (path for root in study_roots() for path in root.glob(files))
    return _kept(pages, files, tuple(sorted((str(p), p.stat().st_mtime_ns) for p in found)))


@st.cache_resource(max_entries=4, show_spinner="Reading the kept studies …")
def _kept(_pages: StudyPages, files: str, stamp: tuple[tuple[str, int], ...]) -> list[Study[Any]]:
    return kept_studies(_pages.kind) if stamp else []


def opened(pages: StudyPages, *steps: str) -> Study[Any] | None:
    """The study that a page is about, with its chooser; None without one, or without the steps."""
    study = chosen(pages)
    return study if study is not None and ready(study, *steps) else None


def chosen(pages: StudyPages, *, link: bool = True) -> Study[Any] | None:
    """The study looked at, with its chooser; without one, what to do.

    `link` adds the way to the page that runs one.
    """
    studies = {study.directory.name: study for study in kept(pages)}
    if not studies:
        ships = shipped_reports(pages.kind)
        if link or not ships:
            more = " The page Study shows the report of a run that ships." if ships else ""
            st.info(f"No study is kept yet. Run one first.{more}", icon=":material/science:")
        if link:
            _to_study_page(pages)
        return None
    wanted = getattr(current(), pages.field)
    if wanted is not None and wanted not in studies:
        missing = widgets.plain(wanted)
        st.warning(f"The study {missing} is not kept here.", icon=":material/link_off:")
        select(**{pages.field: None})
    shown = {name: words(study) for name, study in studies.items()}
    name = widgets.choose("Study", pages.field, shown)
    if link and getattr(current(), pages.field) is None:
        # The link names the study that is shown, and a newer one does not take its place.
        select(**{pages.field: name}, picked=current().picked, neuron=current().neuron)
    return studies[name]


def words(study: Study[Any]) -> str:
    """A study in one line."""
    model = offered.without_paths(study.model)
    return f"{model} · n {study.settings.n} · {progress(study)} · {made(study)}"


def made(study: Study[Any]) -> str:
    """When it was last run, and whether it ships."""
    return f"{study.made}, ships" if ships(study) else study.made


def ships(study: Study[Any]) -> bool:
    """Whether a study ships with the package: it is read-only."""
    return study.directory.parent == study_roots()[1]


def progress(study: Study[Any]) -> str:
    """How many of its steps are done."""
    steps = pages_of(study).steps
    done = sum(step in study.results for step in steps)
    return "complete" if done == len(steps) else f"{done} of {len(steps)} steps"


def ready(study: Study[Any], *steps: str, link: bool = True) -> bool:
    """Whether the steps of a page are all there; if not, it says which and what to do."""
    missing = [step for step in steps if step not in study.results]
    if missing:
        st.info(
            f"This study has no {widgets.plain(', '.join(missing))} yet ({progress(study)} "
            "done). Continue the run: finished steps are kept.",
            icon=":material/hourglass_empty:",
        )
        if link:
            _to_study_page(pages_of(study))
    return not missing


def _to_study_page(pages: StudyPages) -> None:
    page = VIEWS / pages.kind.name / "study.py"
    st.page_link(page, label="Go to Study", icon=":material/arrow_back:")


def provenance(study: Study[Any], *steps: str, **more: object) -> None:
    """Where every number on the page comes from."""
    settings = study.settings
    names = ", ".join(steps) if len(steps) < 6 else f"{len(steps)} steps"
    took = sum(study.seconds.get(step, 0.0) for step in steps)
    widgets.facts(
        {
            "model": f"{offered.without_paths(study.model)} · {study.model_hash[:12]}",
            "study": study.directory.name,
            **pages_of(study).facts(settings),
            "seed": settings.seed,
            "random draws": settings.draws,
            "made": made(study),
            **({"computed": f"{names} · {took:z.0f} s"} if steps else {}),
            **more,
        }
    )


def some(study: Study[Any], *names: str) -> dict[str, Result]:
    """The results of these steps, as far as they are there."""
    return {name: study.results[name] for name in names if name in study.results}


def take_away(study: Study[Any], table: str, *steps: str) -> None:
    """A table of `study_table` as CSV, Python and a notebook, and whole steps as JSON.

    Without a step of the table, the JSON alone.
    """
    try:
        rows = study_table(study, table)
    except InterpError:
        rows = None
    files(
        study,
        table,
        None if rows is None else lambda: rows.to_csv(index=False),
        some(study, *steps),
        "" if rows is None else python_of(study.directory.name, table),
    )


def python_of(name: str, table: str) -> str:
    """The Python that opens a study by its name and prints one of its tables."""
    return (
        f"import interp\n\nstudy = interp.studies.kept_study({name!r})\n"
        f"table = interp.studies.study_table(study, {table!r})\n"
        "print(table.to_string(index=False))"
    )


def files(
    study: Study[Any], name: str, csv: Callable[[], str] | None, found: Any, python: str
) -> None:
    """The row of files of a page about a study, and the Python of its numbers if it has one."""
    model = offered.without_paths(study.model)
    name = f"{model}-{study.settings.n}-{pages_of(study).kind.name}-{name.replace(' ', '-')}"
    kinds = {} if csv is None else {"CSV": (csv, "csv")}
    st.subheader("Export", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.downloads(
            {**kinds, "JSON": (lambda: json_text(found, indent=1), "json")}, name=name
        )
    if python:
        export.python(python, name=name, words="Python that gives these numbers again")


@dataclass(frozen=True, kw_only=True)
class MadeNow:
    """What a section made just now with the loaded model, and the Python that makes it again."""

    rows: widgets.Rows
    python: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a page.

    draw: draws it; returns what it made just now, if anything. table: the table of the study that
    it shows, if it shows one. steps: the steps it shows, as a pattern of
    `fnmatch`. needed: steps without which it is not drawn. caveat: what it does not show.
    """

    draw: Callable[[Study[Any]], MadeNow | None]
    table: str = ""
    steps: str = ""
    needed: tuple[str, ...] = ()
    caveat: str


def show_section(pages: StudyPages, sections: Mapping[str, Section], *, about: str) -> None:
    """The section of a page that is chosen; `about` says what each is."""
    study = opened(pages)
    if study is None:
        return
    options = list(sections)
    chosen = widgets.choose("What to look at", "section", options, segments=True, help=about)
    section = sections[chosen]
    if not ready(study, *section.needed):
        return
    kept = matching(study.results, section.steps)
    provenance(study, *kept)
    made = section.draw(study)
    if section.table:
        take_away(study, section.table, *kept)
    elif made is not None:
        csv = partial(widgets.csv_text, made.rows)
        files(study, chosen, csv, {"rows": made.rows}, made.python)
    widgets.caveat(section.caveat)
