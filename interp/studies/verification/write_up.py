"""The study's report: every table of the paper beside ours, with the controls it lacks."""

from __future__ import annotations

import numpy as np

from interp.report import Report
from interp.studies.frame import how_it_was_run
from interp.studies.steps import Result
from interp.studies.verification import sections_base, sections_changed, sections_read
from interp.studies.verification.claims import claims
from interp.studies.verification.study import Study

SECTIONS = (
    sections_read.behaviour,
    sections_read.probes,
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


def write_up(study: Study) -> Report:
    """The report of a finished study."""
    results, settings = study.results, study.settings
    report = Report(f"How {study.model} checks its own answers")
    report.text(
        f"A redo of Lee et al. 2025, *The Geometry of Self-Verification in a Task-Specific "
        f"Reasoning Model* (arXiv 2504.14379), on `{study.model}` (weights "
        f"`{study.model_hash[:12]}`), with intervals (95 %), random components matched in kind, "
        f"layer and count ({settings.draws} draws), and a split by problem: "
        f"{results['behaviour']['find']} valid samples (and as many invalid) to find with, "
        f"{results['behaviour']['test']} to test on. Valid and invalid samples are matched by "
        "attempt number, number of operands and digits of the result. t_ans is the last digit of "
        f'an attempt\'s result, t_paren the " (" behind it, where "this" or "not" is predicted. '
        f"Ablations change the last {settings.window} tokens of heads and neurons alike (2: t_ans "
        "and t_paren) "
        "unless another protocol is named."
    )
    report.section("What holds")
    report.table(claims(results), columns=["claim of the paper", "here", "evidence"])
    for section in SECTIONS:
        section(report, results)
    if "base" in results:
        sections_base.base(report, results)
    published(report, results)
    how_it_was_run(report, study)
    return report


def published(report: Report, results: dict[str, Result]) -> None:
    """The paper's numbers on its 3B model beside ours, where both exist."""
    curve = results["curves"]["find"]
    softmax, heads = results["probes"]["softmax"], results["attention"]["t_ans to earlier"]
    total = np.size(heads["values"])
    rows = [
        ("cosine of the softmax probe's two columns", "-0.98 to -0.995 (as released)",
         f"{min(softmax['pair']):.2f} to {max(softmax['pair']):.2f}"),
        ("accuracy of the probe", "near 1 from layer 4 of 36", _ranges(softmax["accuracy"])),
        ("A_Prev: heads above 0.1", "33 of 576", f"{len(heads['heads'])} of {total}"),
        ("largest attention to the target", "0.93 (L17H14)", "{:.2f} ({})".format(
            heads["top"][0]["attention"]["mean"], heads["top"][0]["head"])),
        ("GLU vectors zeroed, both sets", "1,800 neurons: 45 % disabled",
         f"{len(results['effects_zero']['sets']['GLU_Valid and GLU_Invalid']['components'])}: "
         f"{results['effects_zero']['sets']['GLU_Valid and GLU_Invalid']['disabled']['mean']:.0%}"),
    ]  # fmt: skip
    names = {"attention": "by attention", "head-GLU, diag": "by the released head-GLU score"}
    paper = {
        "attention": "0, .78, .82, .93, .90, .92, 1.0",
        "head-GLU, diag": "0, .08, 1.0",
    }
    rows += [
        (
            f'share "not" with the first 1, 2, ... heads {words}',
            paper[name],
            ", ".join(f"{point['disabled']['mean']:.2f}" for point in curve[name]["curve"]),
        )
        for name, words in names.items()
        if name in curve
    ]
    report.section("15. The paper's numbers beside ours")
    columns = ("quantity", "paper, Qwen2.5-3B", "here")
    report.table(
        [dict(zip(columns, row, strict=True)) for row in rows],
        caption="Where both exist; the interventions table of section 10 has its own column. The "
        "paper's incremental curves are over 60 samples, as their notebooks show them.",
    )


def _ranges(accuracy: list[float]) -> str:
    """From which layer on a probe is at least 0.95 right."""
    good = np.array(accuracy) >= 0.95
    first = len(good) - int(np.argmin(good[::-1])) if not good.all() else 0
    return f"at least 0.95 from layer {first} of {len(good)}"
