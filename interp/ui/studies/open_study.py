"""A study on screen: which one is looked at, what of it, and what all pages share.

Pages read what the study's steps kept; none of them needs the model, but where it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.core.files import cache_dir, json_text
from interp.studies.steps import Result
from interp.studies.study import MANIFEST, Study, kept_studies
from interp.ui.shared import offered, widgets
from interp.ui.shared.state import ignored, in_words, read_link, write_link
from interp.ui.studies.pages import ALL_PAGES, StudyPages, pages_of


@dataclass(frozen=True, kw_only=True)
class View:
    """What of a study is looked at: choices of its pages, by name.

    study, refusal: the folder of the study that is open, one field for each kind of study.
    """

    study: str | None = None
    refusal: str | None = None
    probed: str | None = None
    attended: str | None = None
    shown: str | None = None
    picked: str | None = None
    glu: str | None = None
    neuron: str | None = None
    section: str | None = None
    rule: str | None = None
    ablation: str | None = None
    measure: str | None = None
    candidates: str | None = None
    score: str | None = None
    side: str | None = None
    method: str | None = None


def view() -> View:
    """The view; on the first visit it is read from the link."""
    if "study-view" not in st.session_state:
        names = [field.name for field in fields(View)]
        found, words = read_link({name: st.query_params.get_all(name) for name in names})
        ignored().extend(words)
        st.session_state["study-view"] = View(**found)
        st.session_state["study-link"] = set(found)
    return st.session_state["study-view"]


def change(**changes: str | None) -> None:
    """Change the view and its link. Nothing else writes either of them.

    Another study has other heads and neurons: those looked at are cleared.
    """
    old = view()
    if any(changes.get(x.field, getattr(old, x.field)) != getattr(old, x.field) for x in ALL_PAGES):
        changes = {"picked": None, "neuron": None} | changes
    st.session_state["study-view"] = replace(old, **changes)
    write_view()


def write_view() -> None:
    """Bring the address bar in line with the view: on its change, and on a change of page."""
    for field in fields(View):
        value = getattr(view(), field.name)
        if value is None:
            st.query_params.pop(field.name, None)
        elif st.query_params.get(field.name) != value:
            st.query_params[field.name] = value


def pick(
    widget: Callable[..., Any], label: str, field: str, options: Sequence[str], **more: Any
) -> str:
    """A widget that shows one field of the view and changes it; the first option if it has none."""
    key = f"view-{field}"
    value = getattr(view(), field)
    linked = st.session_state["study-link"]
    if value is not None and value not in options and field in linked:
        ignored().append(in_words(field, str(value), "not offered on this page"))
    linked.discard(field)
    st.session_state[key] = value if value in options else options[0]

    def changed() -> None:
        new = st.session_state[key]
        change(**{field: None if new == widgets.NONE else new})

    return widget(label, options=options, key=key, on_change=changed, **more)


def kept(pages: StudyPages) -> list[Study[Any]]:
    """The studies under the cache, the newest first; read again when a file of theirs changes."""
    files = f"{pages.kind.name}-*/[!.]*.json"  # no half-written ones
    found = (cache_dir() / "studies").glob(files)
    return _kept(pages.field, tuple(sorted((str(p), p.stat().st_mtime_ns) for p in found)))


@st.cache_resource(max_entries=4, show_spinner="Reading the kept studies …")
def _kept(field: str, stamp: tuple[tuple[str, int], ...]) -> list[Study[Any]]:
    (pages,) = (each for each in ALL_PAGES if each.field == field)
    return kept_studies(pages.kind) if stamp else []


def opened(pages: StudyPages, title: str) -> Study[Any] | None:
    """The head of a page about one study: its address, the study's chooser and the title."""
    write_link()
    write_view()
    study = chosen(pages)
    if study is not None:
        st.header(title, anchor=False)
    return study


def chosen(pages: StudyPages, *, link: bool = True) -> Study[Any] | None:
    """The study looked at, with its chooser in the sidebar; without one, what to do.

    `link` adds the way to the page that runs one.
    """
    try:
        studies = {study.directory.name: study for study in kept(pages)}
    except InterpError as error:
        widgets.show_error(error)
        return None
    if not studies:
        st.info("No study is kept yet. Run one first.", icon=":material/science:")
        if link:
            _to_study_page(pages)
        return None
    wanted = getattr(view(), pages.field)
    if wanted is not None and wanted not in studies:
        missing = widgets.plain(wanted)
        st.warning(f"The study {missing} is not kept here.", icon=":material/link_off:")
        change(**{pages.field: None})
    with st.sidebar:
        name = pick(
            st.selectbox,
            "Study",
            pages.field,
            list(studies),
            format_func=lambda name: words(studies[name]),
        )
    if link and getattr(view(), pages.field) is None:
        # The link names the study that is shown, and a newer one does not take its place.
        change(**{pages.field: name, "picked": view().picked, "neuron": view().neuron})
    return studies[name]


def words(study: Study[Any]) -> str:
    """A study in one line."""
    model = offered.without_paths(study.model)
    return f"{model} · n {study.settings.n} · {progress(study)} · {made(study)}"


def made(study: Study[Any]) -> str:
    """When it was last run."""
    seconds = (study.directory / MANIFEST).stat().st_mtime
    return f"{datetime.fromtimestamp(seconds):%d %b %Y %H:%M}"


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
    st.page_link(pages.page, label="Go to Study", icon=":material/arrow_back:")


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
            **({"computed": f"{names} · {took:.0f} s"} if steps else {}),
            **more,
        }
    )


def take_away(
    study: Study[Any], name: str, rows: Sequence[Mapping[str, Any]], result: Result
) -> None:
    """The page's table as CSV, and its steps' whole results as JSON."""
    model = offered.without_paths(study.model)
    file = f"{model}-{study.settings.n}-{name}".replace("/", "-")
    with st.container(horizontal=True, vertical_alignment="center"):
        for kind, make, mime in (
            ("CSV", lambda: widgets.csv_text(rows), "text/csv"),
            ("JSON", lambda: json_text(result, indent=1), "application/json"),
        ):
            st.download_button(
                kind,
                make,
                file_name=f"{file}.{kind.lower()}",
                mime=mime,
                icon=":material/download:",
                on_click="ignore",
                key=f"{name}-{kind}",
            )
        st.caption("PNG: the camera above each figure. Link: the address bar.")
