"""The figures of the refusal report: each function takes the results and draws one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp.plots import static
from interp.studies.formatting import band, bare
from interp.studies.refusal.report.numbers import methods_of, step_of
from interp.studies.steps import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, Result]


def silhouettes(results: Results) -> Figure:
    """Silhouettes of tasks, and of refused and answered rows within a task."""
    found = results["separation"]["silhouettes"]
    lines = {name: bare(values) for name, values in found.items()}
    return static.interval_lines(lines, x_title="layer", y_title="silhouette")


def probes(results: Results) -> Figure:
    """AUC of every probe by layer."""
    found = results["separation"]["probes"]
    control = "shuffled labels, 97.5 %"
    lines = {name: (x["auc"], x["low"], x["high"]) for name, x in found.items()}
    lines[control] = bare(found["refused / answered"]["shuffled"])
    return static.interval_lines(
        lines,
        x_title="layer",
        y_title="AUC",
        baseline=0.5,
        baseline_label="chance",
        controls=[control],
    )


def cosines(results: Results) -> Figure:
    """Cosines with the first direction by layer, its ceiling and its floor."""
    found = results["geometry"]
    first, *others = found["names"]
    values = np.array(found["cosines"])
    lines = {f"{name} / {first}": bare(values[i + 1, 0]) for i, name in enumerate(others)}
    lines[f"halves of {first}"] = bare(np.mean(found["ceiling"][first], 0))
    lines["shuffled labels"] = bare(np.mean(found["floor"], 0))
    return static.interval_lines(
        lines,
        x_title="layer",
        y_title="cosine",
        baseline=0.0,
        baseline_label="",
        controls=[f"halves of {first}", "shuffled labels"],
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
    return static.interval_lines(
        dict(list(lines.items())[:6]),
        x_title="layer",
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
