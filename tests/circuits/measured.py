"""Knock-out measurements run alone."""

from interp.circuits.evaluation.curve_evaluation import run_plans


def measured(plan, trials, circuit, **options):
    """The result of one plan of `interp.circuits.evaluation.knockouts`."""
    return run_plans(trials, [plan(trials, circuit, trials.checked_ends(), **options)])[0]
