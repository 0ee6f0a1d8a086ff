"""Interactive heat maps with cells that can be clicked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.plots.style import (
    BLANK,
    CHOSEN,
    DIVERGING,
    FRAME,
    add_frame,
    as_bytes,
    bytes_scale,
    escaped,
    hover_text,
    lay_out,
    named_axis,
    symmetric_limit,
)


def heat_map(
    values: np.ndarray,
    *,
    x: Sequence[str],
    y: Sequence[str],
    x_title: str,
    y_title: str,
    colour_title: str,
    limit: float | None = None,
    signed: bool = True,
    stderr: np.ndarray | None = None,
    selected: tuple[int, int] | None = None,
    cell: int | None = None,
    names: Sequence[Sequence[str]] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
) -> Any:
    """A heat map with a diverging colour scale centred on zero, whose cells can be clicked.

    The first row is at the bottom; nan cells are blank. Plotly's heat maps report no clicks, so an
    invisible point in the middle of each cell shows the hover text and takes clicks. Its customdata
    is (row, column).

    `values` is (rows, columns). So are `stderr` and `names`, the standard errors and names of cells
    on hover, and `texts`, which are hover texts made by `hover_text` to show instead. `x` and `y`
    label columns and rows. `colour_title` is the quantity shown, with its unit. `limit` is the
    value of the strongest colour, by default the largest absolute value. Values that are not
    `signed` have one colour from 0 on. `selected` is the (row, column) of a cell to frame, and
    `cell` the size of a cell in pixels.
    """
    import plotly.graph_objects as go

    rows, columns = values.shape
    width = cell or int(np.clip(760 // max(columns, 1), 7, 44))
    height = cell or int(np.clip(600 // max(rows, 1), 7, 44))
    limit = limit or symmetric_limit(values)
    at_row, at_column = (index.ravel() for index in np.indices(values.shape))

    def hover(r: int, c: int) -> str:
        if texts is not None:
            return texts[r][c]
        # One prompt has no error.
        error = (
            f" ± {stderr[r, c]:z.3f}" if stderr is not None and np.isfinite(stderr[r, c]) else ""
        )
        name = names[r][c] if names is not None else f"{y[r]} {x[c]}"
        return hover_text(name, f"{values[r, c]:z.3f}{error}")

    figure = go.Figure(
        [
            go.Heatmap(
                z=values,
                colorscale=DIVERGING if signed else "Blues",
                zmin=-limit if signed else 0,
                zmax=limit,
                hoverinfo="skip",
                xgap=1,
                ygap=1,
                colorbar=colour_bar(colour_title),
            ),
            click_targets(
                at_column,
                at_row,
                data=np.stack([at_row, at_column], 1),
                texts=[hover(r, c) for r, c in np.ndindex(values.shape)],
            ),
        ]
    )
    if selected is not None:
        for colour, line in (("white", 5), (FRAME, 2.5)):
            add_frame(figure, *selected, colour, width=line)
    return lay_out(
        figure,
        width=max(columns * width, 200) + 90,
        height=rows * height + 160,
        margin={"l": 64, "r": 26, "t": 92, "b": 68, "pad": 0},
        xaxis=cell_axis(x_title, x, most=24),
        yaxis=cell_axis(y_title, y, most=16),
        plot_bgcolor=BLANK,
        hoverdistance=-1,  # the nearest cell takes the hover, at any distance
    )


def pattern_thumbnails(
    patterns: np.ndarray, *, selected: tuple[int, int] | None = None, most: int = 24
) -> Any:
    """The attention of every head as one image: layers across, heads downwards, a tile for each.

    `patterns` is (layer, head, query, key), from 0 to 1, queries downwards in each tile. Prompts of
    more than `most` tokens are shown in blocks of tokens, with the largest weight of each block.
    The image holds `as_bytes` of the weights. The customdata of a click is (layer, head);
    `selected` frames a tile.
    """
    import plotly.graph_objects as go
    from plotly.colors import sequential

    layers, heads, n, _ = patterns.shape
    step = -(-n // most)
    size = -(-n // step)
    padded = np.full((layers, heads, size * step, size * step), np.nan, dtype=np.float32)
    later = np.triu(np.ones((n, n), dtype=bool), 1)
    padded[:, :, :n, :n] = np.where(later, np.nan, patterns)
    blocks = padded.reshape(layers, heads, size, step, size, step)
    tiles = np.fmax.reduce(np.fmax.reduce(blocks, 5), 3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    image = tiles.transpose(1, 2, 0, 3).reshape(heads * (size + 1), layers * (size + 1))
    cell = 1 / (size + 1)
    place = {"x0": cell / 2 - 0.5, "dx": cell, "y0": cell / 2 - 0.5, "dy": cell}
    at_layer, at_head = (index.ravel() for index in np.indices((layers, heads)))
    figure = go.Figure(
        [
            go.Heatmap(
                z=as_bytes(image),
                **place,
                colorscale=bytes_scale(sequential.Blues),
                zmin=0,
                zmax=255,
                hoverinfo="skip",
                showscale=False,
            ),
            click_targets(
                at_layer,
                at_head,
                data=np.stack([at_layer, at_head], 1),
                texts=[
                    hover_text(f"L{layer}H{head}")
                    for layer, head in zip(at_layer, at_head, strict=True)
                ],
            ),
        ]
    )
    if selected is not None:
        add_frame(figure, selected[1], selected[0], CHOSEN, width=3)
    side = int(np.clip(1180 // layers, 14, 64))
    rows = cell_axis("head", [str(head) for head in range(heads)], most=24)
    return lay_out(
        figure,
        width=layers * side + 90,
        height=heads * side + 90,
        margin={"l": 64, "r": 26, "t": 24, "b": 54, "pad": 0},
        xaxis=cell_axis("layer", [str(layer) for layer in range(layers)], most=32),
        yaxis=rows | {"range": [heads - 0.5, -0.5]},
        plot_bgcolor=BLANK,
        hoverdistance=-1,
    )


def click_targets(x: Any, y: Any, *, data: Any, texts: Sequence[str], **more: Any) -> Any:
    """Invisible points. The one nearest the pointer gets hover and clicks.

    Plotly treats all points within a marker's radius of the pointer (at least 3 pixels) as equally
    near, and chooses the one drawn last. A point with an empty text has a radius of half a pixel.
    So visible marks get no hover, and these points are drawn over them. x and y are (n,), `data`
    holds (n, k) whole numbers that a click reports, and `texts` holds n hover texts.
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


def colour_bar(title: str) -> dict[str, Any]:
    """A horizontal colour bar above the map, as wide as the map."""
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


def cell_axis(title: str, labels: Sequence[str], *, most: int) -> dict[str, Any]:
    """An axis of cells with at most `most` labels, and no margin around the cells."""
    step = -(-len(labels) // most)
    ends = {"range": [-0.5, len(labels) - 0.5], "autorange": False}
    return named_axis(labels[::step], title, at=range(0, len(labels), step), **ends)
