"""The study's report."""

from __future__ import annotations

from interp.report import Report
from interp.studies.reuse import sections
from interp.studies.reuse.claims import COLUMNS, claims
from interp.studies.reuse.study import Study

SECTIONS = (
    sections.behaviour,
    sections.circuits,
    sections.overlap,
    sections.trained,
    sections.repair,
    sections.groups,
    sections.skipped,
)


def write_up(study: Study) -> Report:
    """The report of a finished study."""
    settings, circuits = study.settings, study.results["circuits"]
    k = next(iter(circuits.values()))["k"]
    report = Report(f"Do tasks share circuits in {study.model}?")
    trained = f" and `{study.trained}`" if study.trained else ""
    report.text(
        f"A redo of Merullo et al. 2024, *Circuit Component Reuse Across Tasks in Transformer "
        f"Language Models* (arXiv 2310.08744), on `{study.model}` (weights "
        f"`{study.model_hash[:12]}`){trained}, with intervals (95 %), random heads matched by "
        f"layer, and controls. Circuits are found on {settings.n} prompts a task, {k} heads a "
        f"stage ({settings.share:.0%} of all); behaviour and interventions are measured on "
        f"{settings.tested} others."
    )
    report.section("What holds")
    report.table(claims(study.results), columns=list(COLUMNS))
    for section in SECTIONS:
        section(report, study.results)
    report.section("How it was run")
    report.text(
        "Settings: "
        + ", ".join(f"{name} {value}" for name, value in settings.to_dict().items())
        + f". {sum(study.seconds.values()) / 60:.1f} minutes of computing. The same command goes "
        "on from finished steps."
    )
    return report
