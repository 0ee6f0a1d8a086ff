"""Arrays and labels to Plotly figures. Knows nothing of results, models or Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.plots.style import BLANK, DIVERGING, FRAME, escaped, hover_text, symmetric_limit


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
    texts: Sequence[Sequence[str]] | None = None,
) -> Any:
    """A signed heat map, diverging and centred on zero, that can be clicked cell by cell.

    Rows are `y`, the first one at the bottom; nan cells stay blank. Invisible points in the middle
    of the cells carry the hover text and take clicks (a bare heat map sends none); each point's
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
        texts: (rows, columns) whole hover texts, made by `hover_text`, in place of name and value.
    """
    import plotly.graph_objects as go

    rows, columns = values.shape
    width = cell or int(np.clip(760 // max(columns, 1), 7, 44))
    height = cell or int(np.clip(600 // max(rows, 1), 7, 44))
    limit = limit or symmetric_limit(values)
    at_row, at_column = (index.ravel() for index in np.indices(values.shape))

    def said(r: int, c: int) -> str:
        if texts is not None:
            return texts[r][c]
        error = "" if stderr is None else f" ± {stderr[r, c]:.3f}"
        name = names[r][c] if names is not None else f"{y[r]} {x[c]}"
        return hover_text(name, f"{values[r, c]:.3f}{error}")

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
                colorbar=_colour_bar(colour_title),
            ),
            click_targets(
                at_column,
                at_row,
                data=np.stack([at_row, at_column], 1),
                texts=[said(r, c) for r, c in np.ndindex(values.shape)],
            ),
        ]
    )
    if selected is not None:
        r, c = selected
        for color, line in (("white", 5), (FRAME, 2.5)):
            figure.add_shape(
                type="rect",
                x0=c - 0.5,
                x1=c + 0.5,
                y0=r - 0.5,
                y1=r + 0.5,
                line={"color": color, "width": line},
            )
    figure.update_layout(
        width=max(columns * width, 200) + 90,
        height=rows * height + 160,
        margin={"l": 64, "r": 26, "t": 92, "b": 68, "pad": 0},
        xaxis=_cell_axis(x_title, x, most=24),
        yaxis=_cell_axis(y_title, y, most=16),
        plot_bgcolor=BLANK,
        dragmode=False,
        hovermode="closest",
        hoverdistance=-1,  # every place of the map belongs to its nearest centre, however far
    )
    return figure


def click_targets(x: Any, y: Any, *, data: Any, texts: Sequence[str], **more: Any) -> Any:
    """Points that are not drawn and take hover and clicks: the nearest one to the pointer does.

    Plotly takes all points within a marker's radius of the pointer, 3 pixels at least, as equally
    near, and of these the one drawn last wins. A point of an empty text has a radius of half a
    pixel. So marks that are drawn stay without hover, and their targets are laid over them.

    Args:
        x: (n,) places.
        y: (n,) places.
        data: (n, k) whole numbers that a click reports.
        texts: n texts shown on hover, made by `hover_text`.
        more: further properties of the trace.
    """
    import plotly.graph_objects as go

    return go.Scatter(
        x=x,
        y=y,
        mode="text",
        text="",
        customdata=data,
        hovertext=texts,
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
        **more,
    )


def _colour_bar(title: str) -> dict[str, Any]:
    """A scale above the map, as wide as it."""
    return {
        "title": {"text": escaped(title), "side": "top"},
        "orientation": "h",
        "thickness": 9,
        "len": 1,
        "y": 1,
        "yanchor": "bottom",
        "ypad": 14,
        "outlinewidth": 0,
        "nticks": 5,
    }


def _cell_axis(title: str, labels: Sequence[str], *, most: int) -> dict[str, Any]:
    """An axis of cells: at most `most` of the labels, and no margin around the cells."""
    shown = range(0, len(labels), -(-len(labels) // most))
    return {
        "title": escaped(title),
        "tickvals": list(shown),
        "ticktext": [escaped(labels[i]) for i in shown],
        "range": [-0.5, len(labels) - 0.5],
        "autorange": False,
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
    }
