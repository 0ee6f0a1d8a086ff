"""Running a study in the background, and going on with one."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

import interp
from interp.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.organisms import base_of
from interp.studies.verification.context import Settings
from interp.studies.verification.study import Study, study_verification
from interp.ui import jobs, study_model, widgets
from interp.ui.studies import STEPS, change

JOB = "verification-study"
"""One study runs at a time."""


def run_panel(study: Study | None) -> None:
    """A model, n and draws, and the button."""
    model = study_model.loaded()
    left, right, button = st.columns([2, 2, 4], vertical_alignment="bottom")
    usual = study.settings if study else settings_of(None, n=120, draws=20)
    n = left.number_input(
        "n", 40, 4000, usual.n, help="Samples, half of them valid; half to test on."
    )
    draws = right.number_input(
        "Draws", 2, 1000, usual.draws, help="Random sets behind every selection."
    )
    settings = settings_of(study, n=int(n), draws=int(draws))
    again = (
        study is not None
        and model is not None
        and study_model.same(model, study)
        and study.settings == settings
    )
    button.button(
        "Resume" if again else "Run",
        type="primary",
        icon=":material/play_arrow:",
        disabled=model is None or busy(),
        on_click=start,
        args=(model, settings),
    )
    st.caption(
        "Minutes for a small model and n = 120, hours for a large one. Every finished step is "
        "kept, and the same call from Python or the command line (`interp study verification`) "
        "goes on from it. Only one study runs at a time."
    )


def start(model: LanguageModel, settings: Settings) -> None:
    """Run or resume a study in the background; between steps it can be stopped.

    A shipped adapter is compared with the model it was trained from.
    """
    if busy():
        return
    base = base_of(model.name)

    def work(job: jobs.Job) -> Study:
        total = len(STEPS) + 1 + (base is not None)

        def say(line: str) -> None:
            job.line = line
            job.progress(min(job.done + (not line.endswith("...")), total - 1), total)
            if job.cancel.is_set():
                raise InterpError("the study", "stopped between two steps", "run it again")

        origin = None if base is None else interp.load_model(base)
        return study_verification(model, origin, settings=settings, say=say)

    jobs.start(JOB, work)
    change(study=None)


def busy() -> bool:
    """Whether a study is running."""
    job = jobs.find(JOB)
    return job is not None and job.state == "running"


def running() -> None:
    """The panel of a running study; of one that has ended, how."""
    job = jobs.find(JOB)
    if job is None:
        return
    if job.state == "running":
        jobs.watch(job)
    elif job.error is not None and job.state == "failed":
        widgets.show_error(job.error)
    elif job.state == "cancelled":
        st.info("Stopped. Finished steps are kept: Resume goes on there.", icon=":material/pause:")
    else:
        st.success("The study is done.", icon=":material/check:")


def settings_of(study: Study | None, *, n: int, draws: int) -> Settings:
    """The settings of a study with another n and draws; the defaults without one."""
    return replace(study.settings if study else Settings(), n=n, draws=draws)
