"""The refusal study's report: report.md.j2 filled with its results, numbers and figures."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.core.nulls import holm
from interp.overview.evidence_card import FAMILIES
from interp.plots import static
from interp.refusal.over_refusal import paired_difference
from interp.refusal.task_steering import PUBLISHED
from interp.studies.formatting import band, bare
from interp.studies.refusal.report.claims import claims, methods_of, step_of
from interp.studies.refusal.report.evidence import card
from interp.studies.refusal.settings import COMPARED, RefusalSettings
from interp.studies.refusal.steps.directions import ALIKE, CHOSEN, COST, place_of
from interp.studies.refusal.steps.frontier import REDUCTION, RETAINED, SENSE
from interp.studies.refusal.steps.heads import SIDES
from interp.studies.refusal.steps.methods import EVERY_TASK
from interp.studies.report.report import Report, study_report
from interp.studies.steps import Result, Results
from interp.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("report.md.j2")

by_layer = partial(static.interval_lines, x_title="layer")

WRITERS = {"attn_out": "attention", "mlp_out": "MLP"}

REPLIES = ("direct_answer", "direct_refusal", "indirect_refusal")
"""The classes of a reply that answers or refuses; all others are neither."""


def doses_of(results: Results) -> list[Result]:
    """Dose-responses of more than two doses."""
    found = (x for name, x in results.items() if name.startswith("dose_"))
    return [x for x in found if len(x["doses"]) > 2]


def strongest(found: Result) -> list[Result]:
    """The first candidates of a selection, by bypass - induce."""
    rows = [row for row in found["rows"] if row["rejected"] not in ("zero", "nan")]
    return sorted(rows, key=lambda row: row["bypass"] - row["induce"])[:8]


def distinct_effects(found: Result) -> dict[str, Any]:
    """Effects by direction; where everything is refused, two directions are one."""
    kinds: dict[str, Any] = {}
    for kind, effects in found.items():
        if kind not in ("n", "plain") and effects not in kinds.values():
            kinds[kind] = effects
    return kinds


def most_draws(found: Result) -> int:
    """The most random directions behind an effect."""
    sides = (x for effects in distinct_effects(found).values() for x in effects.values())
    return max((len(x["random"]) for side in sides for x in side.values()), default=0)


def neither(counts: dict[str, int]) -> str:
    """Replies that neither answer nor refuse, by class."""
    other = [f"{n} {name}" for name, n in counts.items() if n and name not in REPLIES]
    return ", ".join(other) or "0"


def corrected(methods: dict[str, Result], side: str) -> dict[str, float]:
    """The p of every method's change of one side's refusals, corrected for all of them (Holm)."""
    return dict(zip(methods, holm([x[side]["p"] for x in methods.values()]), strict=True))


def leads(methods: dict[str, Result], replied: Result) -> dict[str, str]:
    """The method with the most over-refusals removed, and the one that keeps most proper refusals.

    Only those that differ from every other method, random versions left out: the interval of the
    paired difference on the same rows does not include 0.
    """
    sides, units = (np.array(replied["compared"][key]) for key in ("should", "unit"))
    refused = {
        name: (np.array(list(x["became"])) == "R").astype(float)
        for name, x in methods.items()
        if not x["null"]
    }
    found: dict[str, str] = {}
    for measure, should, sign in (("removed", "answer", -1), ("retained", "refuse", 1)):
        at = sides == should
        best = max(refused, key=lambda name: sign * refused[name][at].mean())
        apart = [
            paired_difference(refused[best][at], x[at], bases=units[at].tolist()).difference
            for name, x in refused.items()
            if name != best
        ]
        if all(one.low > 0 or one.high < 0 for one in apart):
            found[measure] = best
    return found


def by_side(counts: dict[str, int] | int | None) -> str:
    """Rows of either side; – without a count."""
    if not isinstance(counts, dict):
        return "–" if counts is None else str(counts)
    return f"{counts['answer']} to answer, {counts['refuse']} to refuse"


def silhouettes(results: Results) -> Figure:
    """Silhouettes of tasks, and of refused and answered rows within a task."""
    found = results["separation"]["silhouettes"]
    lines = {name: bare(values) for name, values in found.items()}
    return by_layer(lines, y_title="silhouette")


def probes(results: Results) -> Figure:
    """AUC of every probe by layer."""
    found = results["separation"]["probes"]
    control = "shuffled labels, 97.5 %"
    lines = {name: (x["auc"], x["low"], x["high"]) for name, x in found.items()}
    lines[control] = bare(found["refused / answered"]["shuffled"])
    return by_layer(lines, y_title="AUC", baseline=0.5, baseline_label="chance", controls=[control])


def cosines(results: Results) -> Figure:
    """Cosines with the first direction by layer, its ceiling and its floor."""
    found = results["geometry"]
    first, *others = found["names"]
    values = np.array(found["cosines"])
    lines = {f"{name} / {first}": bare(values[i + 1, 0]) for i, name in enumerate(others)}
    lines[f"halves of {first}"] = bare(np.mean(found["ceiling"][first], 0))
    lines["shuffled labels"] = bare(np.mean(found["floor"], 0))
    return by_layer(
        lines,
        y_title="cosine",
        baseline=0.0,
        baseline_label="",
        controls=[f"halves of {first}", "shuffled labels"],
    )


def dose_lines(results: Results, side: int) -> tuple[dict[str, Any], list[float]]:
    """Scores of refused rows (side 0) or answered ones (1) along every group's direction.

    The lines by direction, and the doses, 0 among them.
    """
    found = results["one_effect"]
    at, lines = sorted([*found["doses"], 0.0]), {}
    for name, curve in found["curves"].items():
        seen = dict(zip(found["doses"], (row[side] for row in curve), strict=True))
        seen[0.0] = found["plain"][side]
        lines[name] = band([seen[dose] for dose in at])
    return lines, at


def doses_of_groups(results: Results, side: int) -> Figure:
    """`dose_lines` drawn."""
    lines, at = dose_lines(results, side)
    return static.interval_lines(
        lines, x_title="dose", y_title="refusal score (nats)", controls=["unembedding"], x=at
    )


def carriers(results: Results, side: str) -> Figure:
    """What is left of a steering with the attention or the MLP of one layer frozen."""
    found = results["carriers"]["sides"][side]
    lines = {words: band(found["layers"][site]) for site, words in WRITERS.items()}
    at = found["first"] + np.arange(len(found["layers"]["mlp_out"]))
    return static.interval_lines(
        lines,
        x_title="layer",
        y_title="share left",
        baseline=1.0,
        baseline_label="nothing frozen",
        x=at,
    )


def heads(results: Results, side: str) -> Figure:
    """What each head's exchange takes from the gap."""
    found = results[step_of("heads", side)]["measures"]["triggers (necessity)"]
    return static.head_map(found["values"], title=f"interchange, necessity: {side}")


def trajectories(results: Results) -> Figure:
    """Test rows on their way through the layers, between the centroids of their task."""
    lines = {
        f"{row['task']}, {row['class']} (n = {row['n']})": (row["mean"], row["low"], row["high"])
        for row in results["constellations"]["ratios"]
    }
    return by_layer(
        dict(list(lines.items())[:6]),
        y_title="distance to answered / to refused",
        baseline=1.0,
        baseline_label="as far from both",
    )


def frontier(results: Results) -> Figure:
    """Both sides of every method."""
    sides = {"over-refusals removed": "reduction", "proper refusals retained": "retained"}
    found = {n: x for n, x in methods_of(results).items() if x["reduction"] and x["retained"]}
    bands = {words: band([x[key] for x in found.values()]) for words, key in sides.items()}
    return static.paired_rows(list(found), bands, x_title="share")


def write_up(study: Study[RefusalSettings]) -> Report:
    """The report of a finished study."""
    results = study.results
    methods = methods_of(results)
    return study_report(
        TEMPLATE,
        study,
        sys.modules[__name__],
        card=card(study),
        FAMILIES=FAMILIES,
        claims=claims(results),
        selections={kind: results[f"selection_{kind}"] for kind in CHOSEN},
        place_of=place_of,
        cost=COST,
        sides={
            side: {x: results[step_of(x, side)] for x in ("heads", "groups", "paths")}
            for side in SIDES
        },
        methods=methods,
        p={side: corrected(methods, side) for side in ("benign", "harmful")},
        leads=leads(methods, results["behaviour"]),
        alike=ALIKE,
        both_sides=any(x["reduction"] and x["retained"] for x in methods.values()),
        untested=[
            name
            for name, x in methods.items()
            if x["retained"] is not None and x.get("retained_reached", x) is None
        ],
        most_compared=COMPARED,
        most_lost=SENSE,
        least_retained=RETAINED,
        every_task=EVERY_TASK,
        published_threshold=PUBLISHED.threshold,
        published_reduction=REDUCTION,
    )
