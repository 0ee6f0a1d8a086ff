"""The study's report."""

from __future__ import annotations

from interp.studies.refusal.report import directions as sections
from interp.studies.refusal.report import heads as sections_heads
from interp.studies.refusal.report import steering as sections_steered
from interp.studies.refusal.report.claims import COLUMNS, claims
from interp.studies.refusal.settings import Settings
from interp.studies.report.report import Report, escape
from interp.studies.study import Study, how_it_was_run

SECTIONS = (
    sections.behaviour,
    sections.separation,
    sections.directions,
    sections_heads.heads,
    sections_steered.constellations,
    sections_steered.frontier,
    sections_steered.neurons,
)


def write_up(study: Study[Settings]) -> Report:
    """The report of a finished study."""
    results, system = study.results, study.settings.system
    parts = results["behaviour"]["parts"]
    report = Report(f"What makes {study.model} refuse, and over-refuse")
    report.text(
        f"`{study.model}` (weights `{study.model_hash[:12]}`) on {sum(parts.values())} prompts: "
        + ", ".join(f"{count} to {name}" for name, count in parts.items())
        + " (base texts are in one part only). Directions, centroids and heads are found on the "
        "first part, layers, gates and strengths chosen on the second, everything is measured on "
        "the third; intervals are 95 %. After arXiv 2406.11717 (one direction), 2508.11290 (task "
        "constellations), 2410.13708 and 2604.04385 (heads)."
    )
    if system is not None:
        report.text(
            f"**In-context refusal**: the model was told in the system prompt, "
            f"“{escape(system)}”. This is not trained refusal."
        )
    report.section("What holds")
    report.table(claims(results), columns=list(COLUMNS))
    for section in SECTIONS:
        section(report, results)
    how_it_was_run(report, study)
    return report
