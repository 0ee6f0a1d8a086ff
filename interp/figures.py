"""Arrays and labels to Plotly figures. Knows nothing of results, models or Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DIVERGING = "RdBu_r"
RAISES, LOWERS = "#c0392b", "#2f6fb5"
FRAME, CHOSEN, BLANK = "#111111", "#e69f00", "#e4e4e4"
LITERAL = str.maketrans({"&": "&amp;", "<": "&lt;", "$": "&#36;"})


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


def still(opacity: float) -> dict[str, Any]:
    """Properties of drawn points that do not fade when a target is clicked."""
    return dict.fromkeys(("selected", "unselected"), {"marker": {"opacity": opacity}})


def escaped(text: str) -> str:
    """Text that Plotly shows as it is: no markup, no formula, nothing to fill in."""
    return text.translate(LITERAL).replace("%{", "&#37;{")


def hover_text(title: str, value: str = "", *lines: str) -> str:
    """What hovering shows: a title in bold, a value beside it, lines below it; all are escaped."""
    first = f"<b>{escaped(title)}</b>" + (f"  {escaped(value)}" if value else "")
    return "<br>".join([first, *map(escaped, lines)])


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
        places = {"x": [int(x[c]) for c in mine], "y": values[row, mine]}
        name = escaped(f"{y_title} {y[row]}")
        figure.add_scatter(
            **places,
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=rows > 1,
            marker={"size": 6, "opacity": 0.75},
            **still(0.75),
            hoverinfo="skip",
        )
        figure.add_trace(
            click_targets(
                **places,
                data=[[row, c] for c in mine],
                texts=[
                    hover_text(
                        names[row][c] if names else x[c], f"{values[row, c]:.3f} ± {error[c]:.3f}"
                    )
                    for c in mine
                ],
                legendgroup=name,  # hidden with the points
            )
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
        xaxis={"title": escaped(f"{x_title}{drawn}"), "showgrid": False, "zeroline": False},
        yaxis={"title": escaped(colour_title), "fixedrange": True},
        dragmode=False,
        hovermode="closest",
    )
    return figure


def attention_map(pattern: np.ndarray, tokens: Sequence[str], *, title: str = "") -> Any:
    """One head's attention on one prompt: queries down, keys across, 0 to 1."""
    import plotly.graph_objects as go

    labels = [visible(token) for token in tokens]
    hover = [escaped(f"{i} {label}") for i, label in enumerate(labels)]
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
        "ticktext": [escaped(label) for label in labels],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }
    figure.update_layout(
        title={"text": escaped(title), "font": {"size": 14}},
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
    tokens = [escaped(visible(token)) for token, _ in bars]
    heights = list(range(len(bars)))
    figure = go.Figure(
        go.Bar(
            x=[value for _, value in bars],
            y=heights,
            orientation="h",
            marker={"color": [RAISES if value > 0 else LOWERS for _, value in bars]},
            text=[f"{value:+.2f}" for _, value in bars],
            textposition="auto",
            customdata=[[token] for token in tokens],
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
            "ticktext": tokens,
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
    places = {
        "x": effects,
        "y": (prompts * 7) % 11 / 10,  # spread, so that equal effects do not hide each other
    }
    figure = go.Figure(
        go.Scatter(
            **places,
            mode="markers",
            marker={
                "size": [14 if prompt == selected else 10 for prompt in prompts],
                "color": colors,
                "opacity": 0.85,
            },
            **still(0.85),
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        click_targets(
            **places,
            data=prompts[:, None],
            texts=[hover_text(f"prompt {i}", f"{x:.3f}") for i, x in enumerate(effects)],
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
