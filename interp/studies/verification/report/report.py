"""The verification study's report: report.md.j2 filled with its results."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from interp.studies.report.report import Report, study_report
from interp.studies.study import Study
from interp.studies.verification.report import figures, paper_numbers
from interp.studies.verification.report.claims import ACCURATE, claims, first_lasting
from interp.studies.verification.settings import Settings
from interp.studies.verification.steps.finding_heads import RANDOM_SETS

TEMPLATE = Path(__file__).with_name("report.md.j2")


def write_up(study: Study[Settings]) -> Report:
    """The report of a finished study."""
    results = study.results
    sets = (x for x in results["side_effects"].values() if isinstance(x, dict))
    accurate = np.array(results["probes"]["softmax"]["accuracy"]) >= ACCURATE
    return study_report(
        TEMPLATE,
        study,
        figures,
        claims=claims(results),
        paper=paper_numbers,
        random_sets=RANDOM_SETS,
        draws=max(len(x.get("arithmetic_null", ())) for x in sets),
        accurate_from=first_lasting(accurate),
    )
