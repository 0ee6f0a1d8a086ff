"""Interactive figures of steering: frontiers, gates, scatter plots and effects with nulls.

Controls are grey.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from interp.plots.lines import SERIES, interval_lines, lay_out_rows
from interp.plots.style import (
    CHOSEN,
    LOWERS,
    MARGIN,
    RAISES,
    SOFT,
    axis,
    error_bars,
    escaped,
    lay_out,
)

BELOW = {"orientation": "h", "x": 0, "y": -0.24, "yanchor": "top"}
"""A legend below the figure, so that it does not cover the tool bar above."""

ENTRY, ABREAST, LINE = 250, 3, 19
"""A legend in columns: pixels of one, how many fit beside one another, and pixels of a line."""
LONGEST = 40
"""Characters in a line of such a legend."""


def frontier(points: Sequence[Mapping[str, Any]], *, x_target: float, y_target: float) -> Any:
    """A scatter plot of methods with intervals on two axes, and lines at the targets.

    Each point has `name`, `null` (drawn in grey), and `x` and `y` with mean, low and high. Points
    at the same place are drawn as rings inside one another.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_vline(x=x_target, line={"color": SOFT, "width": 1, "dash": "dash"})
    figure.add_hline(y=y_target, line={"color": SOFT, "width": 1, "dash": "dash"})
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
            error_x=_error_bars([point["x"]], colour, thickness=1, width=3),
            error_y=_error_bars([point["y"]], colour, thickness=1, width=3),
            mode="markers",
            marker={
                "color": colour,
                "size": 11 + 8 * here,
                "symbol": symbol,
                "opacity": 0.9,
                "line": {"width": 2.5 if here else 0},
            },
            name="<br>".join(map(escaped, textwrap.wrap(point["name"], LONGEST))),
            hovertemplate=f"<b>{'<br>'.join(map(escaped, others))}</b>"
            f"<br>{_said(point['x'], 'removed')}"
            f"<br>{_said(point['y'], 'retained')}<extra></extra>",
        )
    ends = [value for p in points for value in (p["x"]["low"], p["x"]["high"]) if value == value]
    shares = {"tickformat": ".0%", "zeroline": False}
    left = max(-1.0, min([-0.06, *ends]))
    room = 80 + LINE * -(-len(points) // ABREAST)
    columns = {"entrywidth": ENTRY, "itemsizing": "constant", "y": -0.14}
    return lay_out(
        figure,
        height=470 + room,
        margin={**MARGIN, "t": 20, "b": room},
        xaxis=axis("share of over-refusals removed", range=[left, 1.06], **shares),
        yaxis=axis("share of proper refusals retained", range=[-0.06, 1.1], **shares),
        legend={**BELOW, **columns},
    )


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
    left, right = float(at[0] - pad), float(at[-1] + pad)
    figure.update_xaxes(range=[left, right])
    for k, (name, value) in enumerate(marks.items()):
        label = "◂ " * (value < left) + f"{name} {value:.4g}" + " ▸" * (value > right)
        where = float(np.clip(value, left, right))
        if where == value:
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
    return lay_out(
        figure,
        height=470,
        margin={**MARGIN, "t": 30, "b": 130},
        legend={**BELOW, "y": -0.12},
        xaxis=axis("first axis", showticklabels=False, zeroline=False),
        yaxis=axis("second axis", showticklabels=False, zeroline=False),
    )


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
    for k, (name, found) in enumerate(series.items()):
        y = np.arange(len(labels)) + (k - (len(series) - 1) / 2) * 0.3
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
                    hovertemplate=f"random {null['mean']:z.3f} [{null['low']:z.3f}, "
                    f"{null['high']:z.3f}], share as strong {null['share']:z.3f}<extra></extra>",
                )
        colour = (RAISES, LOWERS)[k % 2]
        figure.add_scatter(
            x=[x["mean"] for x in found],
            y=y,
            mode="markers",
            marker={"color": colour, "size": 10},
            error_x=_error_bars(found, colour),
            name=escaped(name),
            text=[escaped(label) for label in labels],
            hovertemplate="<b>%{text}</b>  %{x:.3f}<extra>%{fullData.name}</extra>",
        )
    return lay_out_rows(figure, labels, x_title=x_title, height=60 * len(labels) + 110)


def _error_bars(found: Sequence[Mapping[str, float]], colour: str, **more: Any) -> dict[str, Any]:
    mean, low, high = ([x[name] for x in found] for name in ("mean", "low", "high"))
    return error_bars(mean, low, high, colour, **more)


def _said(found: Mapping[str, float], what: str) -> str:
    return f"{what} {found['mean']:z.3f} [{found['low']:z.3f}, {found['high']:z.3f}]"
