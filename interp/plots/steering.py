"""Interactive figures of steering: frontiers, gates, scatter plots and effects with nulls.

Controls are grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from interp.plots.lines import MARGIN, SERIES, SOFT, interval_lines, labelled_rows
from interp.plots.style import CHOSEN, LOWERS, RAISES, escaped

FLAT = {"fixedrange": True, "zeroline": False}
BELOW = {"orientation": "h", "x": 0, "y": -0.24, "yanchor": "top"}
"""A legend below the figure, so that it does not cover the tool bar above."""


def frontier(points: Sequence[Mapping[str, Any]], *, x_target: float, y_target: float) -> Any:
    """A scatter plot of methods with intervals on two axes, and lines at the targets.

    Each point has `name`, `null` (drawn in grey), and `x` and `y` with mean, low and high. Points
    at the same place are drawn as rings inside one another.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for axis, target in (("v", x_target), ("h", y_target)):
        line = {"color": SOFT, "width": 1, "dash": "dash"}
        if axis == "v":
            figure.add_vline(x=target, line=line)
        else:
            figure.add_hline(y=target, line=line)
    symbols = ("circle", "square", "diamond", "triangle-up", "star", "cross")
    mine = [point for point in points if not point["null"]]
    places = [(round(p["x"]["mean"], 3), round(p["y"]["mean"], 3)) for p in points]
    for k, point in enumerate(points):
        here = places[k + 1 :].count(places[k])
        others = [p["name"] for p, at in zip(points, places, strict=True) if at == places[k]]
        place = 0 if point["null"] else mine.index(point)
        colour = SOFT if point["null"] else SERIES[place % len(SERIES)]
        symbol = "x" if point["null"] else symbols[place // len(SERIES) % len(symbols)]
        symbol += "-open" if here else ""
        figure.add_scatter(
            x=[point["x"]["mean"]],
            y=[point["y"]["mean"]],
            error_x=_error(point["x"], colour),
            error_y=_error(point["y"], colour),
            mode="markers",
            marker={
                "color": colour,
                "size": 11 + 8 * here,
                "symbol": symbol,
                "opacity": 0.9,
                "line": {"width": 2.5 if here else 0},
            },
            name=escaped(point["name"]),
            hovertemplate=f"<b>{'<br>'.join(map(escaped, others))}</b>"
            f"<br>{_said(point['x'], 'removed')}"
            f"<br>{_said(point['y'], 'retained')}<extra></extra>",
        )
    ends = [value for p in points for value in (p["x"]["low"], p["x"]["high"]) if value == value]
    figure.update_layout(
        height=520,
        margin={**MARGIN, "t": 20},
        xaxis={
            "title": "share of over-refusals removed",
            "range": [max(-1.0, min([-0.06, *ends])), 1.06],
            "tickformat": ".0%",
            **FLAT,
        },
        yaxis={
            "title": "share of proper refusals retained",
            "range": [-0.06, 1.1],
            "tickformat": ".0%",
            **FLAT,
        },
        legend={"x": 1.01, "y": 1, "xanchor": "left", "itemsizing": "constant"},
        dragmode=False,
        hovermode="closest",
    )
    return figure


def gate_curve(
    thresholds: ArrayLike,
    series: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    marks: Mapping[str, float],
) -> Any:
    """The share of prompts that pass a gate at each threshold, with marked thresholds.

    `series` maps a name to (mean, low, high), each (thresholds,). Between two thresholds the upper
    one applies. A mark outside the range of thresholds is written at the edge.
    """
    at = np.asarray(thresholds, dtype=float)
    steps = {
        name: tuple(np.repeat(np.asarray(part, dtype=float), 2)[1:] for part in parts)
        for name, parts in series.items()
    }
    figure = interval_lines(
        steps,  # type: ignore[arg-type]
        x=np.repeat(at, 2)[:-1].tolist(),
        x_title="confidence a prompt must have",
        y_title="share of select rows",
        limits=(-0.03, 1.05),
    )
    pad = max((at[-1] - at[0]) * 0.04, 1e-6)
    figure.update_xaxes(range=[at[0] - pad, at[-1] + pad])
    for k, (name, value) in enumerate(marks.items()):
        inside = at[0] - pad <= value <= at[-1] + pad
        label = f"{name} {value:.4g}" if inside else f"◂ {name} {value:.4g}"
        if value > at[-1] + pad:
            label = f"{name} {value:.4g} ▸"
        where = float(np.clip(value, at[0] - pad, at[-1] + pad))
        if inside:
            figure.add_vline(x=where, line={"color": CHOSEN, "width": 2, "dash": "dash"})
        figure.add_annotation(
            x=where,
            y=0.97 - 0.09 * k,
            yref="paper",
            text=escaped(label),
            showarrow=False,
            xanchor="left" if where < at.mean() else "right",
            xshift=4 if where < at.mean() else -4,
            font={"size": 12},
        )
    figure.update_traces(mode="lines", selector={"mode": "lines+markers"})
    figure.update_layout(height=400, legend=BELOW, margin={**MARGIN, "t": 30, "b": 110})
    return figure


def scatter_by_group(
    points: ArrayLike, groups: Sequence[str], refused: Sequence[bool | None], *, notice: str
) -> Any:
    """Rows as points (n, 2): colours are groups, crosses are refused rows. `notice` is on top."""
    import plotly.graph_objects as go

    at = np.asarray(points, dtype=float)
    figure = go.Figure()
    kinds = {True: ("x", "refused"), False: ("circle-open", "answered"), None: ("star", "neither")}
    for k, group in enumerate(dict.fromkeys(groups)):
        for state, (symbol, words) in kinds.items():
            mine = [
                i
                for i, (g, r) in enumerate(zip(groups, refused, strict=True))
                if g == group and r is state
            ]
            if not mine:
                continue
            figure.add_scatter(
                x=at[mine, 0],
                y=at[mine, 1],
                mode="markers",
                marker={"color": SERIES[k % len(SERIES)], "symbol": symbol, "size": 8},
                name=escaped(f"{group}, {words}"),
                hovertemplate=f"{escaped(group)}, {words}<extra></extra>",
            )
    figure.add_annotation(
        text=escaped(notice),
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 30, "color": SOFT},
        opacity=0.28,
    )
    figure.update_layout(
        height=470,
        margin={**MARGIN, "t": 30, "b": 130},
        legend={**BELOW, "y": -0.12},
        xaxis={"title": "first axis", "showticklabels": False, **FLAT},
        yaxis={"title": "second axis", "showticklabels": False, **FLAT},
        dragmode=False,
        hovermode="closest",
    )
    return figure


def values_with_range(
    labels: Sequence[str],
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    nulls: Mapping[str, Sequence[Mapping[str, Any] | None]],
    *,
    x_title: str,
) -> Any:
    """A row for each label, the first on top, with each series' estimate and null.

    An estimate has mean, low and high; a null also has share. Grey bars are the 95 % ranges of
    random draws, with a tick at the mean.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    rows = np.arange(len(labels))
    gap = 0.3
    for k, (name, found) in enumerate(series.items()):
        y = rows + (k - (len(series) - 1) / 2) * gap
        for row, null in zip(y, nulls[name], strict=True):
            if null is not None:
                figure.add_scatter(
                    x=[null["low"], null["mean"], null["high"]],
                    y=[row] * 3,
                    mode="lines+markers",
                    line={"color": SOFT, "width": 9},
                    marker={"symbol": "line-ns", "size": [0, 12, 0], "line": {"width": 2}},
                    opacity=0.45,
                    showlegend=False,
                    hovertemplate=f"random {null['mean']:.3f} [{null['low']:.3f}, "
                    f"{null['high']:.3f}], share as strong {null['share']:.3f}<extra></extra>",
                )
        colour = (RAISES, LOWERS)[k % 2]
        mean = [x["mean"] for x in found]
        figure.add_scatter(
            x=mean,
            y=y,
            mode="markers",
            marker={"color": colour, "size": 10},
            error_x={
                "array": [x["high"] - x["mean"] for x in found],
                "arrayminus": [x["mean"] - x["low"] for x in found],
                "color": colour,
                "thickness": 1.6,
            },
            name=escaped(name),
            text=[escaped(label) for label in labels],
            hovertemplate="<b>%{text}</b>  %{x:.3f}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(labelled_rows(labels, x_title=x_title, height=60 * len(labels) + 110))
    return figure


def _error(found: Mapping[str, float], colour: str) -> dict[str, Any]:
    return {
        "array": [found["high"] - found["mean"]],
        "arrayminus": [found["mean"] - found["low"]],
        "color": colour,
        "thickness": 1,
        "width": 3,
    }


def _said(found: Mapping[str, float], what: str) -> str:
    return f"{what} {found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
