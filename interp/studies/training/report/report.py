"""The report: report.md.j2 filled with the results."""

from __future__ import annotations

import sys
from pathlib import Path

from interp.overview.evidence_card import FAMILIES
from interp.studies.report.report import Report, study_report
from interp.studies.steps import Results
from interp.studies.study import Study
from interp.studies.training.report.evidence import card
from interp.studies.training.settings import TrainingSettings

TEMPLATE = Path(__file__).with_name("report.md.j2")


def compressions(results: Results) -> Results:
    """What each compression left, by its name."""
    start = "compressed "
    return {name.removeprefix(start): x for name, x in results.items() if name.startswith(start)}


def largest_cosine(results: Results) -> float:
    """The largest absolute cosine of two adapters."""
    cosines = next(iter(results["merged"].values()))["cosines"]
    return max(abs(cosines[i][j]) for i in range(len(cosines)) for j in range(i))


def write_up(study: Study[TrainingSettings]) -> Report:
    """The report of a finished study."""
    return study_report(TEMPLATE, study, sys.modules[__name__], card=card(study), FAMILIES=FAMILIES)
