"""The refusal study's report: report.md.j2 filled with its results."""

from __future__ import annotations

from pathlib import Path

from interp.refusal.task_steering import PUBLISHED
from interp.studies.refusal.report import figures, numbers
from interp.studies.refusal.report.claims import claims
from interp.studies.refusal.settings import Settings
from interp.studies.refusal.steps.directions import COST, SELECTED, place_of
from interp.studies.refusal.steps.frontier import REDUCTION, RETAINED, SENSE
from interp.studies.refusal.steps.heads import SIDES
from interp.studies.refusal.steps.methods import EVERY_TASK
from interp.studies.report.report import Report, study_report
from interp.studies.study import Study

TEMPLATE = Path(__file__).with_name("report.md.j2")


def write_up(study: Study[Settings]) -> Report:
    """The report of a finished study."""
    results = study.results
    methods, effects = numbers.methods_of(results), results["directions"]
    return study_report(
        TEMPLATE,
        study,
        figures,
        claims=claims(results),
        selections={kind: results[f"selection_{kind}"] for kind in SELECTED},
        place_of=place_of,
        strongest=numbers.strongest,
        cost=COST,
        distinct_effects=numbers.distinct_effects(effects),
        effect_draws=numbers.most_draws(effects),
        sides={
            side: {x: results[numbers.step_of(x, side)] for x in ("heads", "groups", "paths")}
            for side in SIDES
        },
        methods=methods,
        both_sides=any(x["reduction"] and x["retained"] for x in methods.values()),
        untested=[
            name
            for name, x in methods.items()
            if x["retained"] is not None and x.get("retained_reached", x) is None
        ],
        doses=numbers.doses_of(results),
        neither=numbers.neither,
        by_side=numbers.by_side,
        most_lost=SENSE,
        least_retained=RETAINED,
        every_task=EVERY_TASK,
        published_threshold=PUBLISHED.threshold,
        published_reduction=REDUCTION,
    )
