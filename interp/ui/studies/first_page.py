"""The first page about a kind of study: kept ones, running one, claims and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

import interp
from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.studies.study import Study, shipped_reports, usual_directory
from interp.ui.shared import jobs, offered, widgets
from interp.ui.shared.state import HIDDEN, may_read, select
from interp.ui.studies import open_study, shipped
from interp.ui.studies.model import loaded_model
from interp.ui.studies.pages import ALL_PAGES, REFUSAL_PAGES, StudyPages, pages_of

OPEN, REPORT = "Open study", "Report of a run that ships"


def show_first(pages: StudyPages, *steps: str) -> Study[Any] | None:
    """What the first page about a kind of study begins with: kept ones, one to run, the open one.

    `steps` are those whose computing time is named; all that are there by default.
    """
    study, ships = open_study.chosen(pages, link=False), bool(shipped_reports(pages.kind))
    if study is not None:
        _kept_table(study)
    anew = st.session_state.get(f"anew-{pages.kind.name}", {})
    with st.expander("Run a study, or continue one", expanded=bool(anew) or not (study or ships)):
        run_panel(pages, study, anew)
    running(pages)
    if ships and (study is None or _looks_at_report(study)):
        shipped.show(pages, study)
        return None
    if study is not None:
        model = offered.without_paths(study.model)
        st.header(widgets.plain(f"{model}, {study.directory.name}"), anchor=False)
        open_study.provenance(study, *open_study.some(study, *(steps or study.results)))
    return study


def _looks_at_report(study: Study[Any]) -> bool:
    """Whether a report that ships is shown in place of the open study; by default if it ships."""
    options = [OPEN, REPORT]
    options.sort(reverse=open_study.ships(study))
    return widgets.choose("What to look at", "section", options, segments=True) == REPORT


def _kept_table(study: Study[Any]) -> None:
    """All kept studies of this kind; a click on a row opens one."""
    pages = pages_of(study)
    found = open_study.kept(pages)
    names = [each.directory.name for each in found]
    widgets.table(
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
        key=f"kept-{study.directory.name}",
        decimals=1,
        most=8,
        picked=lambda row: select(**{pages.field: names[row]}),
        chosen=names.index(study.directory.name),
    )


WIDTHS = {"claim": 230, "here": 90, "holds if": 290, "evidence": 330}
"""Columns of the claims, in pixels."""

LETTER, LINE = 7, 17
"""Width of a letter and height of a line in a table, in pixels: no cell of the claims is cut."""


def claims(study: Study[Any]) -> list[dict[str, str]]:
    """Which claims hold, and the whole report, once all steps are there."""
    pages = pages_of(study)
    st.subheader("What holds", anchor=False)
    if not open_study.ready(study, *pages.steps, link=False):
        return []
    rows = pages.claims(study.results)
    lines = max(len(row[name]) * LETTER // WIDTHS[name] for row in rows for name in WIDTHS) + 2
    st.dataframe(
        rows,
        key="claims",
        hide_index=True,
        column_config={
            name: st.column_config.TextColumn(width=width) for name, width in WIDTHS.items()
        },
        row_height=max(3, lines) * LINE,
        height="content",
    )
    kept = study.directory / "report.html"
    copy = f" A copy is at {widgets.plain(str(kept))}." if kept.exists() and may_read() else ""
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.downloads(
            {
                "report.html": (lambda: report(study)["html"], "html"),
                "report.md": (lambda: report(study)["md"], "md"),
            },
            name=f"{study.directory.name}-{study.settings.n}-{pages.kind.name}",
            caption="The full report. The HTML page contains the figures; the Markdown only names "
            f"them.{copy}",
        )
    return rows


def report(study: Study[Any]) -> dict[str, str]:
    """The study's report, as it is downloaded: without a system prompt that is not shown."""
    if not may_read() and getattr(study.settings, "system", None):
        study = replace(study, settings=replace(study.settings, system=HIDDEN))
    made = pages_of(study).write_up(study)
    return {"html": made.html(), "md": made.markdown()}


def run_panel(pages: StudyPages, study: Study[Any] | None, asked: Mapping[str, int]) -> None:
    """A model, n and draws, and the button; `asked` are the numbers of a run to do anew."""
    model = loaded_model()
    left, right, button = st.columns([2, 2, 4], vertical_alignment="bottom")
    least, most, *usual = pages.bounds
    n, draws = (study.settings.n, study.settings.draws) if study else usual
    n, draws = asked.get("n", n), asked.get("draws", draws)
    # A study from Python or the command line may lie outside the usual bounds.
    n = left.number_input("n", min(least, n), max(most, n), n, help=pages.n_words)
    draws = right.number_input(
        "Draws",
        min(2, draws),
        max(1000, draws),
        draws,
        help="Random sets that every selection is compared with (in a study of refusals: "
        "neurons, cascades and greedy groups; groups of heads have at least 20).",
    )
    changed: dict[str, Any] = {"n": int(n), "draws": int(draws)}
    if pages is REFUSAL_PAGES:
        system = st.text_input(
            "System prompt",
            study.settings.system or "" if study and may_read() else "",
            help="Put before every prompt, to ask for refusals in context. Leave empty for none.",
        )
        changed["system"] = system.strip() or None
    settings = replace(study.settings if study else pages.kind.settings(), **changed)
    again = (
        study is not None
        and model is not None
        # Not one of other prompts or another judge: those are keyed too.
        and usual_directory(pages.kind, model, settings).name == study.directory.name
    )
    other = next(iter(study.beside.values()), None) if study is not None and again else None
    jobs.prepare()
    widgets.start_button(
        "Resume" if again else "Run", start, pages, model, settings, other,
        into=button, disabled=model is None or busy(),
    )  # fmt: skip
    st.caption(
        f"Minutes for a small model and n = {usual[0]}, hours for a large one. Every finished "
        "step is kept, and the same call from Python or the command line (`interp study "
        f"{pages.kind.name}`) continues from there. Only one study runs at a time."
    )


def start(pages: StudyPages, model: LanguageModel, settings: Any, other: str | None = None) -> None:
    """Run or resume a study in the background; between steps it can be stopped.

    It is compared with the model named `other`, by default the one that its pages say.
    """
    if busy():
        return
    other = other or pages.other(model.name)
    st.session_state.pop(f"anew-{pages.kind.name}", None)
    jobs.start(_job(pages), partial(run_study, pages.kind.name, model, other, settings))
    select(**{pages.field: None})


def run_study(
    kind: str,
    model: LanguageModel,
    other: str | None,
    settings: Any,
    *,
    progress: jobs.Reporter,
    cancelled: Callable[[], bool],
) -> None:
    """Run a study of a kind, and report its steps; between two of them it can be stopped.

    Raises:
        InterpError: the study refuses the model or settings, or it was stopped.
    """
    pages = next(each for each in ALL_PAGES if each.kind.name == kind)
    done, total = 0, len(pages.steps) + pages.more

    def say(line: str) -> None:
        nonlocal done
        done = min(done + (not line.endswith("...")), total - 1)
        progress.say(line)
        progress(done, total)
        if cancelled():
            raise InterpError("the study", "stopped between two steps", "run it again")

    others = [None if other is None else interp.load_model(other)] if pages.kind.beside else []
    pages.run(model, *others, settings=settings, say=say)


def _job(pages: StudyPages) -> str:
    return f"study of {pages.kind.name}"


def busy() -> bool:
    """Whether a study is running; one runs at a time, of whatever kind."""
    found = [jobs.find(_job(pages)) for pages in ALL_PAGES]
    return any(job is not None and job.state == "running" for job in found)


def running(pages: StudyPages) -> None:
    """The panel of a running study of a kind; of one that has ended, how."""
    job = jobs.find(_job(pages))
    if job is None:
        return
    if job.state == "running":
        jobs.watch(job)
    elif job.error is not None and job.state == "failed":
        widgets.show_error(job.error)
    elif job.state == "cancelled":
        st.info(
            "Stopped. Finished steps are kept; Resume continues from them.", icon=":material/pause:"
        )
    else:
        st.success("The study is done.", icon=":material/check:")
