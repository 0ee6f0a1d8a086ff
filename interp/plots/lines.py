"""Interactive figures of lines, points, bars and histograms, and the map of heads.

Functions with the same name in `interp.plots.static` draw the same figure for reports. Intervals
are given by their ends; ends that are not finite are not drawn. Controls are grey.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from interp.plots.heatmaps import heat_map
from interp.plots.style import (
    CHOSEN,
    DIVERGING,
    LEGEND,
    LOWERS,
    MARGIN,
    RAISES,
    SOFT,
    add_band,
    add_frame,
    axis,
    colour_limits,
    error_bars,
    escaped,
    lay_out,
    named_axis,
)

SERIES = (LOWERS, RAISES, "#2e8b57", "#b8860b", "#7d4fa8", "#16808a")


def head_map(
    values: ArrayLike,
    *,
    title: str,
    marked: Collection[tuple[int, int]] = (),
    diverging: bool = True,
    limits: tuple[float, float] | None = None,
    selected: tuple[int, int] | None = None,
    width: int = 270,
) -> Any:
    """A clickable `heat_map` of heads, layers upwards and heads across, with frames on `marked`.

    `values` is (n_layers, n_heads); `marked` and `selected` hold (layer, head). With `diverging`,
    values above zero are red and values below are blue; without, one hue runs from the smallest to
    the largest value. `limits` are the two ends of the colour scale. `width` is the approximate
    width of all cells together, in pixels.
    """
    grid = np.asarray(values, dtype=float)
    rows, columns = grid.shape
    low, high = limits or colour_limits(grid, diverging=diverging)
    figure = heat_map(
        grid,
        x=[str(head) for head in range(columns)],
        y=[str(layer) for layer in range(rows)],
        x_title="head",
        y_title="layer",
        colour_title=title,
        cell=int(np.clip(min(width // columns, 600 // rows), 7, 44)),
        names=[[f"L{layer}H{head}" for head in range(columns)] for layer in range(rows)],
        selected=selected,
    )
    figure.data[0].update(colorscale=DIVERGING if diverging else "Blues", zmin=low, zmax=high)
    for layer, head in marked:
        add_frame(figure, layer, head, CHOSEN, width=2, half=0.42)
    return figure


def interval_lines(
    series: Mapping[str, tuple[ArrayLike | None, ArrayLike, ArrayLike]],
    *,
    x_title: str,
    y_title: str,
    x: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    controls: Collection[str] = (),
    dashed: Collection[str] = (),
    limits: tuple[float, float] | None = None,
) -> Any:
    """A line with the band of its interval for each series.

    `series` maps a name to (values, low, high), each (k,); if values is None, only the band is
    drawn. x runs from 0, unless `x` gives its values; `names` are its labels. `controls` are names
    of series to draw in grey, a mark for each, and `dashed` of series to draw dashed, e.g. because
    they may cover another one. `limits` are the ends of the y axis.
    """
    import plotly.graph_objects as go

    figure, colours, marks = go.Figure(), cycle(SERIES), cycle(("circle", "x", "square", "star"))
    for name, (value, *ends) in series.items():
        low, high = np.array(ends, dtype=float)
        at = np.arange(len(low)) if x is None else np.array(x)
        grey = name in controls
        colour = SOFT if grey else next(colours)
        dash = "dash" if name in dashed else "dot" if grey else "solid"
        add_band(figure, at, low, high, colour, name=escaped(name), showlegend=value is None)
        if value is not None:
            figure.add_scatter(
                x=at,
                y=np.array(value, dtype=float),
                mode="lines+markers",
                line={"color": colour, "width": 1.8, "dash": dash},
                marker={"size": 6, "symbol": next(marks) if grey else "circle"},
                name=escaped(name),
                connectgaps=True,
                customdata=np.stack([low, high], 1),
                hovertemplate="%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]",
            )
    across = axis(x_title, showgrid=False) if names is None else named_axis(names, x_title, at=x)
    return lay_out(
        figure,
        height=330,
        xaxis=across | {"zeroline": False},
        yaxis=axis(y_title, range=limits),
        hovermode="x unified",
    )


def values_with_null(
    labels: Sequence[str],
    values: ArrayLike,
    *,
    low: ArrayLike,
    high: ArrayLike,
    null: Sequence[Sequence[float] | None],
    value_title: str,
    value_label: str = "the set, with its 95 % interval",
    null_label: str = "random sets, a point each",
) -> Any:
    """A row for each label, the first on top, with a value, its interval, and random draws.

    `values` and the ends of their intervals are (k,). `null` holds the random draws for each label,
    or None.
    """
    import plotly.graph_objects as go

    rows = np.arange(len(labels))
    sizes = [len(draws or ()) for draws in null]
    spread = [(np.arange(size) * 0.618034 % 1 - 0.5) * 0.24 + 0.2 for size in sizes]
    figure = go.Figure()
    figure.add_scatter(
        x=[draw for draws in null for draw in draws or ()],
        y=np.concatenate([row + part for row, part in zip(rows, spread, strict=True)]),
        mode="markers",
        marker={"color": SOFT, "size": 5, "opacity": 0.55},
        name=escaped(null_label),
        hovertemplate="random %{x:.3f}<extra></extra>",
    )
    figure.add_scatter(
        x=np.array(values, dtype=float),
        y=rows - 0.14,
        mode="markers",
        marker={"color": RAISES, "size": 10},
        error_x=error_bars(values, low, high, RAISES),
        name=escaped(value_label),
        text=[escaped(label) for label in labels],
        hovertemplate="<b>%{text}</b>  %{x:.3f}<extra></extra>",
    )
    return lay_out_rows(figure, labels, x_title=value_title, height=62 * len(labels) + 110)


def share_axis(figures: Collection[Any], axis: Literal["x", "y"]) -> None:
    """Give figures shown side by side the same axis range, so that they can be compared."""
    ends: list[float] = []
    for trace in (trace for figure in figures for trace in figure.data):
        at = np.array(trace[axis], dtype=float)
        error = trace[f"error_{axis}"]
        above, below = (
            np.array(0.0 if part is None else part, dtype=float)
            for part in (error.array, error.arrayminus)
        )
        ends += [*np.ravel(at + above), *np.ravel(at - below)]
    known = np.array(ends)[np.isfinite(ends)]
    if not len(known):
        return
    margin = 0.04 * (np.ptp(known) or 1.0)
    for figure in figures:
        chosen = [known.min() - margin, known.max() + margin]
        figure.update_layout({f"{axis}axis": {"range": chosen}})


def lay_out_rows(figure: Any, labels: Sequence[str], *, x_title: str, height: int) -> Any:
    """The figure with a row for each label, the first on top."""
    return lay_out(
        figure,
        height=height,
        margin={**MARGIN, "l": 20},
        xaxis=axis(x_title, zeroline=True),
        yaxis=named_axis(labels, range=[len(labels) - 0.45, -0.55], automargin=True),
    )


def spread_by_label(values: ArrayLike, labels: Sequence[str], *, x_title: str) -> Any:
    """A histogram for each label, with the share of the label's samples in each bin.

    `values` and `labels` are (n,).
    """
    import plotly.graph_objects as go

    value = np.asarray(values, dtype=float)
    edges = np.histogram_bin_edges(value, bins=24)
    figure = go.Figure()
    for name, colour in zip(dict.fromkeys(labels), SERIES, strict=False):
        mine = value[[label == name for label in labels]]
        counts = np.histogram(mine, edges)[0]
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts / len(mine),
            width=np.diff(edges),
            marker={"color": colour, "opacity": 0.5, "line": {"width": 0}},
            name=escaped(f"{name} (n = {len(mine)})"),
            customdata=np.stack([edges[:-1], edges[1:], counts], 1),
            hovertemplate="%{customdata[0]:.3f} to %{customdata[1]:.3f}: %{customdata[2]} samples"
            "<extra>%{fullData.name}</extra>",
        )
    return lay_out(
        figure,
        height=260,
        barmode="overlay",
        bargap=0,
        xaxis=axis(x_title, showgrid=False),
        yaxis=axis("share of samples"),
    )


def stacked_shares(rows: Mapping[str, Mapping[str, float]], *, x_title: str) -> Any:
    """A horizontal bar for each row, the first on top, divided into its shares (0 to 1)."""
    import plotly.graph_objects as go

    figure = go.Figure()
    kinds = list(dict.fromkeys(kind for shares in rows.values() for kind in shares))
    for kind, colour in zip(kinds, (LOWERS, "#a9cdec", RAISES, SOFT, CHOSEN), strict=False):
        share = [shares.get(kind, 0.0) for shares in rows.values()]
        figure.add_bar(
            x=share,
            y=[escaped(row) for row in rows],
            orientation="h",
            name=escaped(kind),
            marker={"color": colour},
            text=[f"{part:.0%}" if part >= 0.04 else "" for part in share],
            textposition="inside",
            insidetextanchor="middle",
            hovertemplate="%{y}: %{x:.3f}<extra>%{fullData.name}</extra>",
        )
    return lay_out(
        figure,
        height=36 * len(rows) + 110,
        margin={**MARGIN, "l": 20},
        barmode="stack",
        bargap=0.25,
        xaxis=axis(x_title, range=[0, 1], tickformat=".0%"),
        yaxis=axis(autorange="reversed", automargin=True),
        legend={**LEGEND, "traceorder": "normal"},
    )
