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
from interp.ui.studies import model as study_model
from interp.ui.studies.kinds import FAMILIES, REFUSED, VERIFIED, Family
from interp.ui.studies.open_study import change

LIMITS = {VERIFIED.field: (40, 4000, 120, 20), REFUSED.field: (4, 1000, 24, 10)}
"""Least, most and usual n, and usual draws."""

N_HELP = {
    VERIFIED.field: "Samples, half of them valid; half to test on.",
    REFUSED.field: "Prompts of each kind and task; three times as many about the taboo itself.",
}
METHODS = 28
"""About as many steps a study of refusals has beside its named ones: two of each method."""


def run_panel(family: Family, study: Study[Any] | None) -> None:
    """A model, n and draws, and the button."""
    model = study_model.loaded()
    left, right, button = st.columns([2, 2, 4], vertical_alignment="bottom")
    least, most, *usual = LIMITS[family.field]
    n, draws = (study.settings.n, study.settings.draws) if study else usual
    # A study from Python or the command line may lie outside the usual bounds.
    n = left.number_input("n", min(least, n), max(most, n), n, help=N_HELP[family.field])
    draws = right.number_input(
        "Draws",
        min(2, draws),
        max(1000, draws),
        draws,
        help="Random sets behind every selection (a study of refusals: behind neurons, cascades "
        "and greedy groups; groups of heads have 20 at least).",
    )
    changed: dict[str, Any] = {"n": int(n), "draws": int(draws)}
    if family is REFUSED:
        system = st.text_input(
            "System prompt",
            study.settings.system or "" if study else "",
            help="In front of every prompt: refusal in context, as the report says. Empty: none.",
        )
        changed["system"] = system.strip() or None
    settings = replace(study.settings if study else family.kind.settings(), **changed)
    again = (
        study is not None
        and model is not None
        # Not one of other prompts or another judge: those are keyed too.
        and usual_directory(family.kind, model, settings).name == study.directory.name
    )
    base = study.beside.get("base") if study is not None and again else None
    button.button(
        "Resume" if again else "Run",
        type="primary",
        icon=":material/play_arrow:",
        disabled=model is None or busy(),
        on_click=start,
        args=(family, model, settings, base),
    )
    st.caption(
        f"Minutes for a small model and n = {usual[0]}, hours for a large one. Every finished step "
        "is kept, and the same call from Python or the command line "
        f"(`interp study {family.kind.name}`) goes on from it. Only one study runs at a time."
    )


def start(family: Family, model: LanguageModel, settings: Any, base: str | None = None) -> None:
    """Run or resume a study in the background; between steps it can be stopped.

    A verification is compared with `base`, by default the model a shipped adapter was trained from.
    """
    if busy():
        return
    total = len(family.steps) + (METHODS if family is REFUSED else 2)

    def work(job: jobs.Job) -> Study[Any]:
        def say(line: str) -> None:
            job.line = line
            job.progress(min(job.done + (not line.endswith("...")), total - 1), total)
            if job.cancel.is_set():
                raise InterpError("the study", "stopped between two steps", "run it again")

        return _run(family, model, settings, base or base_of(model.name), say)

    jobs.start(_job(family), work)
    change(**{family.field: None})


def _run(
    family: Family,
    model: LanguageModel,
    settings: Any,
    base: str | None,
    say: Callable[[str], None],
) -> Study[Any]:
    if family is REFUSED:
        return study_refusal(model, settings=settings, say=say)
    origin = None if base is None else interp.load_model(base)
    return study_verification(model, origin, settings=settings, say=say)


def _job(family: Family) -> str:
    return f"study of {family.kind.name}"


def busy() -> bool:
    """Whether a study is running; one runs at a time, of whatever kind."""
    found = [jobs.find(_job(family)) for family in FAMILIES]
    return any(job is not None and job.state == "running" for job in found)


def running(family: Family) -> None:
    """The panel of a running study of a kind; of one that has ended, how."""
    job = jobs.find(_job(family))
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
