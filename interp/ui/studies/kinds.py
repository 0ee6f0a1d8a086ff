"""The kinds of study that have pages: their steps, their page, what their settings say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.studies.refusal.report import claims as refusal
from interp.studies.refusal.report import report as refusal_report
from interp.studies.refusal.settings import REFUSAL
from interp.studies.report.report import Report
from interp.studies.steps import Result
from interp.studies.study import Study, StudyKind
from interp.studies.verification.report import claims as verification
from interp.studies.verification.report import report as verification_report
from interp.studies.verification.settings import VERIFICATION
from interp.tasks.countdown import TEMPLATES
from interp.ui import VIEWS


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of study, as its pages need it.

    steps: those every finished study has, in their order. field:
    of the view, that says which one is looked at. page: where one is run. facts: what its settings
    say, by label. claims: rows of what holds, of a finished study; write_up: its report.
    """

    kind: StudyKind[Any]
    steps: tuple[str, ...]
    field: str
    page: Path
    facts: Callable[[Any], dict[str, object]]
    claims: Callable[[dict[str, Result]], list[dict[str, str]]]
    write_up: Callable[[Study[Any]], Report]


VERIFIED = Family(
    kind=VERIFICATION,
    steps=(
        "behaviour",
        "probes",
        "steering",
        "lens",
        "glu_choice",
        "glu",
        "attention",
        "patching",
        "paths_direct",
        "paths_mlps",
        "paths_glu",
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
        "interventions",
        "interventions_published",
        "side_effects",
        "sufficiency",
        "stability",
    ),
    field="study",
    page=VIEWS / "verification" / "study.py",
    facts=lambda settings: {
        "n": f"{settings.n}, half of them valid, half to test on",
        "template": settings.template if settings.template in TEMPLATES else "one of its own",
    },
    claims=verification.claims,
    write_up=verification_report.write_up,
)
"""Studies of verification; "base" follows where there is a base model."""

REFUSED = Family(
    kind=REFUSAL,
    steps=(
        "behaviour",
        "tokens",
        "separation",
        "selection_harmful-harmless",
        "selection_over-refusal",
        "selection_false-refusal",
        "cosmic",
        "directions",
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
    field="refusal",
    page=VIEWS / "refusal" / "study.py",
    facts=lambda settings: {
        "n": f"{settings.n} of each kind and task",
        **({} if settings.system is None else {"refusal": "in context, by a system prompt"}),
    },
    claims=refusal.claims,
    write_up=refusal_report.write_up,
)
"""Studies of refusals; behind the constellations a dose and an evaluation of every method."""

FAMILIES = (VERIFIED, REFUSED)


def family_of(study: Study[Any]) -> Family:
    """The family of a study, by the class of its settings."""
    return next(one for one in FAMILIES if isinstance(study.settings, one.kind.settings))
