"""The reuse study's report: report.md.j2 filled with its results."""

from __future__ import annotations

from pathlib import Path

from interp.studies.report.report import Report, study_report
from interp.studies.reuse.report import figures, numbers
from interp.studies.reuse.report.claims import claims
from interp.studies.reuse.settings import Settings
from interp.studies.reuse.steps.attention_labels import RULES
from interp.studies.reuse.steps.circuits import STAGES, circuits_of
from interp.studies.reuse.steps.repair import over_all
from interp.studies.reuse.tasks import OBJECTS, PUBLISHED
from interp.studies.study import Study

TEMPLATE = Path(__file__).with_name("report.md.j2")


def write_up(study: Study[Settings]) -> Report:
    """The report of a finished study."""
    sets = study.results["repair"]["sets"]
    return study_report(
        TEMPLATE,
        study,
        figures,
        claims=claims(study.results),
        numbers=numbers,
        circuits=circuits_of(study.results),
        stages=STAGES,
        rules=RULES,
        objects=OBJECTS.name,
        published=PUBLISHED,
        corrected=over_all(sets),
        repair_order=sorted(sets, key=lambda name: name != "both, full"),
        left_out=numbers.left_out(study.results),
    )
