"""The study's report: every table of the paper beside ours, with the controls it lacks."""

from __future__ import annotations

from interp.studies.report.report import Report
from interp.studies.study import Study, how_it_was_run
from interp.studies.verification.report import base_model as sections_base
from interp.studies.verification.report import interventions as sections_changed
from interp.studies.verification.report import paper_numbers as published
from interp.studies.verification.report import readouts as sections_read
from interp.studies.verification.report.claims import claims
from interp.studies.verification.settings import Settings

SECTIONS = (
    sections_read.behaviour,
    sections_read.probes,
    sections_read.steering,
    sections_read.lens,
    sections_read.glu,
    sections_read.attention,
    sections_changed.patching,
    sections_changed.curve,
    sections_changed.communication,
    sections_changed.effects,
    sections_changed.interventions,
    sections_changed.side_effects,
    sections_changed.sufficiency,
    sections_changed.stability,
)


def write_up(study: Study[Settings]) -> Report:
    """The report of a finished study."""
    results, settings = study.results, study.settings
    report = Report(f"How {study.model} checks its own answers")
    report.text(
        f"A redo of Lee et al. 2025, *The Geometry of Self-Verification in a Task-Specific "
        f"Reasoning Model* (arXiv 2504.14379), on `{study.model}` (weights "
        f"`{study.model_hash[:12]}`), with intervals (95 %), random components matched in kind, "
        f"layer and count ({settings.draws} draws where as many exist; each table says how many, "
        "and on how many samples), and a split by problem: "
        f"{results['behaviour']['find']} valid samples (and as many invalid) to find with, "
        f"{results['behaviour']['test']} to test on. Valid and invalid samples are matched by "
        "attempt number, number of operands and digits of the result. t_ans is the last digit of "
        f'an attempt\'s result, t_paren the " (" behind it, where "this" or "not" is predicted. '
        f"Ablations change the last {settings.window} tokens of heads and neurons alike (2: t_ans "
        "and t_paren) "
        "unless another protocol is named."
    )
    report.section("What holds")
    report.table(claims(results), columns=["claim of the paper", "here", "holds if", "evidence"])
    for section in SECTIONS:
        section(report, results)
    if "base" in results:
        sections_base.base(report, results)
    published.numbers(report, results)
    how_it_was_run(report, study)
    return report
