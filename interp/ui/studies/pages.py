"""What the pages need to know about each kind of study: its steps, settings and claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interp.models.registry import base_of
from interp.studies.refusal.report.claims import claims as refusal_claims
from interp.studies.refusal.report.report import write_up as refusal_report
from interp.studies.refusal.settings import REFUSAL
from interp.studies.refusal.study import study_refusal
from interp.studies.report.report import Report
from interp.studies.reuse.report.claims import claims as reuse_claims
from interp.studies.reuse.report.report import write_up as reuse_report
from interp.studies.reuse.settings import REUSE
from interp.studies.reuse.steps.circuits import step_of
from interp.studies.reuse.study import study_reuse, trained_from
from interp.studies.reuse.tasks import IOI
from interp.studies.steps import Result
from interp.studies.study import Study, StudyKind
from interp.studies.verification.report.claims import claims as verification_claims
from interp.studies.verification.report.report import write_up as verification_report
from interp.studies.verification.settings import VERIFICATION
from interp.studies.verification.study import study_verification
from interp.tasks.countdown import TEMPLATES


@dataclass(frozen=True, kw_only=True)
class StudyPages:
    """The pages about one kind of study.

    steps: the steps of a finished study, in order; more: about how many steps it has beside them.
    field: the field of the selection that names the open study. bounds: the least, most and usual
    n, and the usual draws; n_words: what n counts. facts: the settings shown, by label. claims: the
    table of claims of a finished study. write_up: its report. run: runs a study on a model, and on
    the other model if the kind has one. other: the name of that model, by the first one's name.
    """

    kind: StudyKind[Any]
    steps: tuple[str, ...]
    more: int
    field: str
    bounds: tuple[int, int, int, int]
    n_words: str
    facts: Callable[[Any], dict[str, object]]
    claims: Callable[[dict[str, Result]], list[dict[str, str]]]
    write_up: Callable[[Study[Any]], Report]
    run: Callable[..., Study[Any]]
    other: Callable[[str], str | None] = lambda model: None


VERIFICATION_PAGES = StudyPages(
    kind=VERIFICATION,
    steps=(
        "behaviour",
        "probes",
        "steering",
        "steering_by_layer",
        "compared",
        "lens",
        "glu_choice",
        "glu",
        "attention",
        "patching",
        "paths_direct",
        "paths_mlps",
        "paths_glu",
        "chain",
        "head_scores",
        "smallest",
        "orders",
        "curves",
        "communication",
        "lens_without",
        "effects_zero",
        "effects_mean",
        "effects_resample",
        "effects_published",
        "interchange",
        "interchange_chain",
        "interventions",
        "interventions_published",
        "side_effects",
        "sufficiency",
        "stability",
    ),
    more=2,
    field="study",
    bounds=(40, 4000, 120, 20),
    n_words="Samples, half of them valid; half to test on.",
    facts=lambda settings: {
        "n": f"{settings.n}, half of them valid, half to test on",
        "template": settings.template if settings.template in TEMPLATES else "one of its own",
    },
    claims=verification_claims,
    write_up=verification_report,
    run=study_verification,
    other=base_of,
)
"""Studies of verification. A study with a base model has the step "base" too."""

REFUSAL_PAGES = StudyPages(
    kind=REFUSAL,
    steps=(
        "behaviour",
        "tokens",
        "separation",
        "selection_harmful-harmless",
        "selection_over-refusal",
        "selection_false-refusal",
        "selection_refused-invented",
        "cosmic",
        "directions",
        "rivals",
        "one_effect",
        "carriers",
        "geometry",
        "heads_proper_refusals",
        "heads_over-refusals",
        "groups_proper_refusals",
        "paths_proper_refusals",
        "groups_over-refusals",
        "paths_over-refusals",
        "flips",
        "constellations",
        "chance",
        "neurons",
    ),
    more=28,  # two of each method
    field="refusal",
    bounds=(4, 1000, 24, 10),
    n_words="Prompts of each kind and task; three times as many about the taboo.",
    facts=lambda settings: {
        "n": f"{settings.n} of each kind and task",
        **({} if settings.system is None else {"refusal": "in context, by a system prompt"}),
    },
    claims=refusal_claims,
    write_up=refusal_report,
    run=study_refusal,
)
"""Studies of refusals. A dose and an evaluation of every method follow the constellations."""

REUSE_PAGES = StudyPages(
    kind=REUSE,
    steps=("behaviour", "pace", step_of(IOI), "labels", "repair", "groups", "overlap", "writes"),
    more=12,  # a circuit for each other task, and what training changed
    field="reuse",
    bounds=(4, 1000, 32, 1000),
    n_words="Prompts patched for each task.",
    facts=lambda settings: {"n": f"{settings.n} patched, {settings.tested} tested on, a task"},
    claims=reuse_claims,
    write_up=reuse_report,
    run=study_reuse,
    other=trained_from,
)
"""Studies of circuit reuse. A task that the model does not do has no circuit."""

ALL_PAGES = (VERIFICATION_PAGES, REFUSAL_PAGES, REUSE_PAGES)


def pages_of(study: Study[Any]) -> StudyPages:
    """The pages of a study, by the class of its settings."""
    return next(each for each in ALL_PAGES if isinstance(study.settings, each.kind.settings))
