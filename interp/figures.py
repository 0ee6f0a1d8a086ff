"""Arrays and labels to Plotly figures. Knows nothing of results, models or Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DIVERGING = "RdBu_r"


def symmetric_limit(values: np.ndarray) -> float:
    """The largest finite absolute value, for a scale centred on zero; 1 if there is none."""
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max(initial=0.0))
    return limit if limit > 0 else 1.0


def heat_map(
    values: np.ndarray,
    *,
    x: Sequence[str],
    y: Sequence[str],
    x_title: str,
    y_title: str,
    colour_title: str,
    limit: float | None = None,
    stderr: np.ndarray | None = None,
    selected: tuple[int, int] | None = None,
    cell: int | None = None,
    names: Sequence[Sequence[str]] | None = None,
) -> Any:
    """A signed heat map, diverging and centred on zero, that can be clicked cell by cell.

    Rows are `y`, the first one at the bottom; nan cells stay blank. Invisible square markers over
    the cells carry the hover text and take clicks (a bare heat map sends none); each marker's
    customdata is (row, column).

    Args:
        values: (rows, columns).
        x: column labels.
        y: row labels.
        x_title: axis title.
        y_title: axis title.
        colour_title: what the colours measure, with its unit.
        limit: half the colour range; the largest absolute value if None.
        stderr: standard errors shown on hover.
        selected: (row, column) to frame.
        cell: cell size in pixels; chosen from the number of columns if None.
        names: (rows, columns) names of the cells for the hover text.
    """
    import plotly.graph_objects as go

    rows, columns = values.shape
    size = cell or int(np.clip(760 // max(columns, 1), 7, 34))
    height = size if rows * size <= 620 else max(7, 620 // rows)
    limit = limit or symmetric_limit(values)
    at_row, at_column = (index.ravel() for index in np.indices(values.shape))
    texts = []
    for r, c in zip(at_row, at_column, strict=True):
        error = "" if stderr is None else f" ± {stderr[r, c]:.3f}"
        name = names[r][c] if names is not None else f"{y[r]} {x[c]}"
        texts.append(f"{name}: {values[r, c]:.3f}{error}")
    figure = go.Figure(
        [
            go.Heatmap(
                z=values,
                colorscale=DIVERGING,
                zmin=-limit,
                zmax=limit,
                hoverinfo="skip",
                xgap=1,
                ygap=1,
                colorbar={"title": {"text": colour_title, "side": "right"}, "thickness": 12},
            ),
            go.Scatter(
                x=at_column,
                y=at_row,
                mode="markers",
                showlegend=False,
                marker={"symbol": "square", "size": min(size, height), "color": "rgba(0,0,0,0)"},
                customdata=np.stack([at_row, at_column], 1),
                text=texts,
                hovertemplate="%{text}<extra></extra>",
            ),
        ]
    )
    if selected is not None:
        r, c = selected
        figure.add_shape(
            type="rect",
            x0=c - 0.5,
            x1=c + 0.5,
            y0=r - 0.5,
            y1=r + 0.5,
            line={"color": "black", "width": 2.5},
        )
    step = max(1, columns // 24)
    figure.update_layout(
        width=columns * size + 190,
        height=rows * height + 80,
        margin={"l": 70, "r": 100, "t": 20, "b": 60},
        xaxis={
            "title": x_title,
            "tickvals": list(range(0, columns, step)),
            "ticktext": [x[i] for i in range(0, columns, step)],
            "range": [-0.5, columns - 0.5],
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={
            "title": y_title,
            "tickvals": list(range(0, rows, max(1, rows // 15))),
            "ticktext": [y[i] for i in range(0, rows, max(1, rows // 15))],
            "range": [-0.5, rows - 0.5],
            "showgrid": False,
            "zeroline": False,
        },
        plot_bgcolor="#e8e8e8",
        dragmode=False,
    )
    return figure


def attention_map(pattern: np.ndarray, tokens: Sequence[str], *, title: str) -> Any:
    """One head's attention on one prompt: queries down, keys across, 0 to 1."""
    import plotly.graph_objects as go

    labels = [f"{i} {visible(token)}" for i, token in enumerate(tokens)]
    shown = np.where(np.tril(np.ones_like(pattern)) > 0, pattern, np.nan)
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            x=labels,
            y=labels,
            colorscale="Blues",
            zmin=0,
            zmax=1,
            hovertemplate="from %{y}<br>to %{x}<br>attention %{z:.3f}<extra></extra>",
            colorbar={"title": {"text": "attention", "side": "right"}, "thickness": 12},
        )
    )
    size = int(np.clip(520 // len(tokens), 9, 26))
    figure.update_layout(
        title={"text": title, "font": {"size": 14}},
        width=len(tokens) * size + 220,
        height=len(tokens) * size + 170,
        margin={"l": 100, "r": 60, "t": 40, "b": 110},
        xaxis={"tickangle": -60, "title": "attended to", "showgrid": False},
        yaxis={"autorange": "reversed", "title": "attending from", "showgrid": False},
    )
    return figure


def visible(token: str) -> str:
    """A token with its spaces and line breaks to be seen."""
    return token.replace(" ", "␣").replace("\n", "↵")
