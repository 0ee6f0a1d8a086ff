"""Two kept results side by side, and the difference of two sweeps."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.deltas.weight_trial import WeightTrial
from interp.plots.heatmaps import heat_map
from interp.plots.style import symmetric_limit
from interp.results.comparison import ScoresDifference, compare_scores
from interp.results.scores import Scores
from interp.ui.shared import offered, widgets

SIDES = ("left", "right")
LEAST = 1e-3
MOST_CELLS = 40_000
"""Cells of a map that are sent to the browser; a sweep of more is shown as a table."""


def side_by_side(left: Scores, right: Scores) -> ScoresDifference | None:
    """Both maps in one range of colours, then their difference; None if they have none."""
    limit = None
    if left.unit_words == right.unit_words:
        limit = max(symmetric_limit(one.values) for one in (left, right))
    facts = [(one.metric, one.positions, str(one.extra.get("source", ""))) for one in (left, right)]
    differ = [i for i, (a, b) in enumerate(zip(*facts, strict=True)) if a != b]
    for column, one, name, mine in zip(
        st.columns(2, gap="large"), (left, right), SIDES, facts, strict=True
    ):
        model = offered.without_paths(one.provenance.model)
        words = f"{model}, {one.provenance.task}, n = {one.n}, {one.direction}"
        words += "".join(f", {('metric', 'positions', 'source')[i]} {mine[i]}" for i in differ)
        title = f"{name.capitalize()}: {widgets.plain(words)}"
        sweep_map(one, key=f"map-{name}", title=title, into=column, limit=limit)
    try:
        found = compare_scores(left, right)
    except InterpError as error:
        st.info(widgets.plain(f"No difference: {error.found}."), icon=":material/difference:")
        return None
    _difference(found)
    return found


def sweep_map(scores: Scores, *, key: str, title: str, into: Any, limit: float | None) -> None:
    """A kept sweep as a map."""
    if scores.values.size > MOST_CELLS:
        into.info(f"{scores.values.size} cells: too many for a map. Download the table.")
        return
    widgets.figure(
        scores.plot(limit=limit),
        key=key,
        title=title,
        alt=f"Effect of {scores.site} by {' and '.join(scores.axes)}",
        into=into,
    )


def difference_limit(found: ScoresDifference) -> float:
    """The end of the colour scale: differences below a thousandth of the largest effect stay pale.

    Two sweeps that are equal differ by rounding, which must not be drawn in full colours.
    """
    largest = max(symmetric_limit(one.values) for one in (found.left, found.right))
    return max(symmetric_limit(found.values), largest * LEAST)


def show_trials(trials: list[WeightTrial]) -> None:
    """What changes of weights do, each beside a random change as large."""
    shown: dict[str, dict[str, str]] = {}
    for side, trial in zip(SIDES, trials, strict=False):
        for row in trial.to_dataframe().to_dict("records"):
            if "change" in str(row["when"]):
                cells = shown.setdefault(str(row["measure"]), {})
                cells[f"{side}: {row['when']}"] = widgets.value(row)  # type: ignore[arg-type]
    widgets.table([{"measure": what} | cells for what, cells in shown.items()], key="trials")
    names = (
        f"{side}: {trial.name} on {trial.survival.task}, n = {trial.survival.before.n}"
        for side, trial in zip(SIDES, trials, strict=False)
    )
    st.caption(
        f"{widgets.plain('; '.join(names))}. Changes, with 95 % intervals, paired by prompt with "
        "the model before. Two changes whose intervals meet may still differ."
    )


def _difference(found: ScoresDifference) -> None:
    """The difference of every cell, as a map and in a table."""
    left, right = st.columns([5, 7], gap="large")
    _, _, rows, columns = found.left.grid()
    axes = found.left.axes
    if len(axes) < 3 and found.values.size <= MOST_CELLS:
        flat = found.values.ndim == 1
        across = found.left.coordinates.get(columns, (found.left.site,))
        layers = found.left.coordinates[rows]
        labels = [
            [found.left.label((i,) if flat else (i, j)) for j in range(len(across))]
            for i in range(len(layers))
        ]
        widgets.figure(
            heat_map(
                found.values[:, None] if flat else found.values,
                x=across,
                y=layers,
                x_title=columns or found.left.site,
                y_title=rows,
                colour_title=f"left - right ({found.left.unit_words})",
                stderr=found.stderr[:, None] if flat else found.stderr,
                limit=difference_limit(found),
                names=labels,
            ),
            key="map-difference",
            title="Left minus right",
            alt="The difference of the two sweeps",
            into=left,
        )
    frame = found.to_dataframe()
    with right:
        st.markdown(f"**The largest differences** of {len(frame)}")
        widgets.table(
            [
                {
                    "component": row["component"],
                    "left - right": row["difference"],
                    "95 % interval": widgets.span(row["low"], row["high"]),
                    "left": row["left"],
                    "right": row["right"],
                }
                for row in frame.head(100).to_dict("records")
            ],
            key="differences",
        )
        st.caption(found.in_words())
