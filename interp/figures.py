"""Arrays and labels to Plotly figures. Knows nothing of results, models or Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DIVERGING = "RdBu_r"
RAISES, LOWERS = "#c0392b", "#2f6fb5"
FRAME, CHOSEN, BLANK, INVISIBLE = "#111111", "#e69f00", "#e4e4e4", "rgba(0,0,0,0)"


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
    width = cell or int(np.clip(760 // max(columns, 1), 7, 44))
    height = cell or int(np.clip(600 // max(rows, 1), 7, 44))
    limit = limit or symmetric_limit(values)
    at_row, at_column = (index.ravel() for index in np.indices(values.shape))
    texts = []
    for r, c in zip(at_row.tolist(), at_column.tolist(), strict=True):
        error = "" if stderr is None else f" ± {stderr[r, c]:.3f}"
        name = names[r][c] if names is not None else f"{y[r]} {x[c]}"
        texts.append(f"<b>{name}</b>  {values[r, c]:.3f}{error}")
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
            go.Scatter(
                x=at_column,
                y=at_row,
                mode="markers",
                showlegend=False,
                # As large as the longer side: the nearest centre, and so the right cell, wins.
                marker={"symbol": "square", "size": max(width, height), "color": INVISIBLE},
                selected={"marker": {"opacity": 0}},
                unselected={"marker": {"opacity": 0}},
                customdata=np.stack([at_row, at_column], 1),
                text=texts,
                hovertemplate="%{text}<extra></extra>",
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
    )
    return figure


def component_scatter(
    values: np.ndarray,
    *,
    x: Sequence[str],
    y: Sequence[str],
    x_title: str,
    y_title: str,
    colour_title: str,
    stderr: np.ndarray | None = None,
    selected: tuple[int, int] | None = None,
    names: Sequence[Sequence[str]] | None = None,
    most: int = 2000,
) -> Any:
    """Effects of many components, a point each: what a heat map of 1500 columns cannot show.

    Takes what `heat_map` takes. One colour a row. Only the `most` largest absolute values are
    drawn, and the axis title says so; each point's customdata is (row, column).
    """
    import plotly.graph_objects as go

    rows, columns = values.shape
    order = np.sort(np.argsort(-np.abs(values.ravel()), kind="stable")[:most])
    at_row, at_column = np.unravel_index(order, values.shape)
    figure = go.Figure()
    for row in range(rows):
        mine: list[int] = at_column[at_row == row].tolist()
        error = np.zeros(columns) if stderr is None else stderr[row]
        figure.add_scatter(
            x=[int(x[c]) for c in mine],
            y=values[row, mine],
            mode="markers",
            name=f"{y_title} {y[row]}",
            showlegend=rows > 1,
            marker={"size": 6, "opacity": 0.75},
            customdata=[[row, c] for c in mine],
            text=[
                f"<b>{names[row][c] if names else x[c]}</b>  {values[row, c]:.3f} ± {error[c]:.3f}"
                for c in mine
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    if selected is not None:
        figure.add_scatter(
            x=[int(x[selected[1]])],
            y=[values[selected]],
            mode="markers",
            marker={"size": 15, "symbol": "circle-open", "color": CHOSEN, "line": {"width": 3}},
            hoverinfo="skip",
            showlegend=False,
        )
    drawn = "" if values.size <= most else f", the {most} largest of {values.size}"
    figure.update_layout(
        height=460,
        margin={"l": 70, "r": 20, "t": 36, "b": 54, "pad": 0},
        xaxis={"title": f"{x_title}{drawn}", "showgrid": False, "zeroline": False},
        yaxis={"title": colour_title, "fixedrange": True},
        dragmode=False,
        hovermode="closest",
    )
    return figure


def attention_map(pattern: np.ndarray, tokens: Sequence[str], *, title: str = "") -> Any:
    """One head's attention on one prompt: queries down, keys across, 0 to 1."""
    import plotly.graph_objects as go

    labels = [visible(token) for token in tokens]
    hover = [f"{i} {label}" for i, label in enumerate(labels)]
    figure = go.Figure(
        go.Heatmap(
            z=np.where(np.tril(np.ones_like(pattern)) > 0, pattern, np.nan),
            colorscale="Blues",
            zmin=0,
            zmax=1,
            xgap=1,
            ygap=1,
            customdata=[[[query, key] for key in hover] for query in hover],
            hoverongaps=False,
            hovertemplate="from <b>%{customdata[0]}</b><br>to <b>%{customdata[1]}</b>"
            "<br>attention %{z:.3f}<extra></extra>",
            colorbar=_colour_bar("attention"),
        )
    )
    size = int(np.clip(420 // len(tokens), 9, 26))
    space = 20 + 7 * min(12, max(len(label) for label in labels))
    axis = {
        "tickvals": list(range(len(labels))),
        "ticktext": labels,
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }
    figure.update_layout(
        title={"text": title, "font": {"size": 14}},
        width=max(len(tokens) * size, 200) + space + 46,
        height=len(tokens) * size + space + 126,
        margin={"l": space + 20, "r": 26, "t": 96, "b": space + 30, "pad": 0},
        xaxis={**axis, "tickangle": -60, "title": {"text": "to (key)", "standoff": 8}},
        yaxis={**axis, "autorange": "reversed", "title": {"text": "from (query)", "standoff": 8}},
        plot_bgcolor="rgba(0,0,0,0)",
        dragmode=False,
    )
    return figure


def token_bars(
    promoted: Sequence[tuple[str, float]], suppressed: Sequence[tuple[str, float]]
) -> Any:
    """Tokens a component's output raises (red) and lowers (blue), the strongest of each on top."""
    import plotly.graph_objects as go

    bars = [*promoted, *reversed(suppressed)]
    heights = list(range(len(bars)))
    figure = go.Figure(
        go.Bar(
            x=[value for _, value in bars],
            y=heights,
            orientation="h",
            marker={"color": [RAISES if value > 0 else LOWERS for _, value in bars]},
            text=[f"{value:+.2f}" for _, value in bars],
            textposition="auto",
            customdata=[[visible(token)] for token, _ in bars],
            hovertemplate="<b>%{customdata[0]}</b>  %{x:+.3f} logits<extra></extra>",
        )
    )
    figure.update_layout(
        height=21 * len(bars) + 90,
        margin={"l": 110, "r": 20, "t": 36, "b": 54, "pad": 0},
        bargap=0.25,
        xaxis={"title": "added to the logit", "zeroline": True, "fixedrange": True},
        yaxis={
            "tickvals": heights,
            "ticktext": [visible(token) for token, _ in bars],
            "autorange": "reversed",
            "showgrid": False,
            "fixedrange": True,
        },
        dragmode=False,
    )
    return figure


def effect_strip(
    gained: np.ndarray,
    gap: float,
    *,
    low: float,
    high: float,
    selected: int | None = None,
) -> Any:
    """One component's effect on each prompt, its mean and the mean's interval.

    Each point's customdata is the prompt's number.

    Args:
        gained: (n,) metric gained on each prompt.
        gap: mean clean-corrupted gap, the unit of the axis.
        low: lower end of the mean's interval.
        high: its upper end.
        selected: a prompt to mark.
    """
    import plotly.graph_objects as go

    effects = gained / gap
    prompts = np.arange(len(effects))
    colors = [CHOSEN if prompt == selected else RAISES for prompt in prompts]
    figure = go.Figure(
        go.Scatter(
            x=effects,
            y=(prompts * 7) % 11 / 10,  # spread, so that equal effects do not hide each other
            mode="markers",
            marker={
                "size": [14 if prompt == selected else 10 for prompt in prompts],
                "color": colors,
                "opacity": 0.85,
            },
            selected={"marker": {"opacity": 0.85}},
            unselected={"marker": {"opacity": 0.85}},
            customdata=prompts[:, None],
            hovertemplate="prompt %{customdata[0]}  <b>%{x:.3f}</b><extra></extra>",
        )
    )
    figure.add_vrect(x0=low, x1=high, fillcolor=RAISES, opacity=0.15, line_width=0)
    figure.add_vline(x=float(effects.mean()), line={"color": RAISES, "width": 2})
    figure.update_layout(
        height=190,
        margin={"l": 20, "r": 20, "t": 36, "b": 50, "pad": 0},
        xaxis={
            "title": "effect on each prompt (fraction of the mean gap)",
            "zeroline": True,
            "fixedrange": True,
        },
        yaxis={"visible": False, "range": [-0.3, 1.3], "fixedrange": True},
        dragmode=False,
        hovermode="closest",
        showlegend=False,
    )
    return figure


def _colour_bar(title: str) -> dict[str, Any]:
    """A scale above the map, as wide as it."""
    return {
        "title": {"text": title, "side": "top"},
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
        "title": title,
        "tickvals": list(shown),
        "ticktext": [labels[i] for i in shown],
        "range": [-0.5, len(labels) - 0.5],
        "autorange": False,
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
    }


def visible(token: str) -> str:
    """A token with its spaces and line breaks to be seen."""
    return token.replace(" ", "␣").replace("\n", "↵")


def null_band(
    draws: Sequence[Sequence[float] | None],
) -> tuple[list[float], list[float], list[float]]:
    """(mean, low, high), the 95 % range of random draws at each place; nan where there are none."""
    rows = [np.array(found if found else [np.nan], dtype=float) for found in draws]
    ends = [np.quantile(row, [0.025, 0.975]) for row in rows]
    return (
        [float(row.mean()) for row in rows],
        [float(low) for low, _ in ends],
        [float(high) for _, high in ends],
    )
