"""Running a study in the background, and going on with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import streamlit as st

import interp
from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.organisms import base_of
from interp.studies.refusal.study import study_refusal
from interp.studies.study import Study, usual_directory
from interp.studies.verification.study import study_verification
from interp.ui.shared import jobs, widgets
from interp.ui.studies.model import loaded_model
from interp.ui.studies.open_study import change
from interp.ui.studies.pages import ALL_PAGES, REFUSAL_PAGES, VERIFICATION_PAGES, StudyPages

LIMITS = {VERIFICATION_PAGES.field: (40, 4000, 120, 20), REFUSAL_PAGES.field: (4, 1000, 24, 10)}
"""Least, most and usual n, and usual draws."""

N_HELP = {
    VERIFICATION_PAGES.field: "Samples, half of them valid; half to test on.",
    REFUSAL_PAGES.field: "Prompts of each kind and task; three times as many about the taboo.",
}
METHODS = 28
"""About as many steps a study of refusals has beside its named ones: two of each method."""


def run_panel(pages: StudyPages, study: Study[Any] | None) -> None:
    """A model, n and draws, and the button."""
    model = loaded_model()
    left, right, button = st.columns([2, 2, 4], vertical_alignment="bottom")
    least, most, *usual = LIMITS[pages.field]
    n, draws = (study.settings.n, study.settings.draws) if study else usual
    # A study from Python or the command line may lie outside the usual bounds.
    n = left.number_input("n", min(least, n), max(most, n), n, help=N_HELP[pages.field])
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
            study.settings.system or "" if study else "",
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
    base = study.beside.get("base") if study is not None and again else None
    button.button(
        "Resume" if again else "Run",
        type="primary",
        icon=":material/play_arrow:",
        disabled=model is None or busy(),
        on_click=start,
        args=(pages, model, settings, base),
    )
    st.caption(
        f"Minutes for a small model and n = {usual[0]}, hours for a large one. Every finished "
        "step is kept, and the same call from Python or the command line (`interp study "
        f"{pages.kind.name}`) continues from there. Only one study runs at a time."
    )


def start(pages: StudyPages, model: LanguageModel, settings: Any, base: str | None = None) -> None:
    """Run or resume a study in the background; between steps it can be stopped.

    A verification is compared with `base`, by default the model a shipped adapter was trained from.
    """
    if busy():
        return
    total = len(pages.steps) + (METHODS if pages is REFUSAL_PAGES else 2)

    def work(job: jobs.Job) -> Study[Any]:
        def say(line: str) -> None:
            job.line = line
            job.progress(min(job.done + (not line.endswith("...")), total - 1), total)
            if job.cancel.is_set():
                raise InterpError("the study", "stopped between two steps", "run it again")

        return _run(pages, model, settings, base or base_of(model.name), say)

    jobs.start(_job(pages), work)
    change(**{pages.field: None})


def _run(
    pages: StudyPages,
    model: LanguageModel,
    settings: Any,
    base: str | None,
    say: Callable[[str], None],
) -> Study[Any]:
    if pages is REFUSAL_PAGES:
        return study_refusal(model, settings=settings, say=say)
    origin = None if base is None else interp.load_model(base)
    return study_verification(model, origin, settings=settings, say=say)


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
