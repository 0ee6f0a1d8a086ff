"""The study's report."""

from __future__ import annotations

from interp.studies.report.report import Report
from interp.studies.reuse.report import circuits as sections
from interp.studies.reuse.report import uses as sections_used
from interp.studies.reuse.report.claims import COLUMNS, claims
from interp.studies.reuse.settings import Settings
from interp.studies.reuse.steps.circuits import circuits_of
from interp.studies.study import Study, how_it_was_run

SECTIONS = (
    sections.behaviour,
    sections.circuits,
    sections.overlap,
    sections_used.trained,
    sections_used.repair,
    sections_used.groups,
    sections.skipped,
)


def write_up(study: Study[Settings]) -> Report:
    """The report of a finished study."""
    settings = study.settings
    k = next(iter(circuits_of(study.results).values()))["k"]
    report = Report(f"Do tasks share circuits in {study.model}?")
    trained = f" and `{name}`" if (name := study.beside["trained"]) else ""
    report.text(
        f"A redo of Merullo et al. 2024, *Circuit Component Reuse Across Tasks in Transformer "
        f"Language Models* (arXiv 2310.08744), on `{study.model}` (weights "
        f"`{study.model_hash[:12]}`){trained}, with intervals (95 %), random heads matched by "
        f"layer, and controls. Circuits are found on {settings.n} prompts a task, at most {k} "
        f"heads a stage ({settings.share:.0%} of all); behaviour and interventions are measured on "
        f"{settings.tested} others."
    )
    report.section("What holds")
    report.table(claims(study.results), columns=list(COLUMNS))
    for section in SECTIONS:
        section(report, study.results)
    how_it_was_run(report, study)
    return report
