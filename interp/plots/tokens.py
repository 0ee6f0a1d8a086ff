"""Interactive figures of the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.plots.heatmaps import cell_axis, click_targets, colour_bar
from interp.plots.style import BLANK, CHOSEN, add_frame, escaped, hover_text, visible


def token_table(
    values: np.ndarray,
    *,
    texts: Sequence[Sequence[str]],
    x: Sequence[str],
    y: Sequence[str],
    x_title: str = "token",
    y_title: str = "layer",
    colour_title: str = "probability",
    selected: tuple[int, int] | None = None,
) -> Any:
    """A table of tokens, coloured by a number from 0 to 1; the first row is at the bottom.

    The customdata of a click is (row, column).

    `values` is (rows, columns), numbers from 0 to 1, and `texts` the token in each cell. `x` and
    `y` label columns and rows. `selected` is the (row, column) of a cell to frame.
    """
    import plotly.graph_objects as go

    rows, columns = values.shape
    shown = [[_short(text) for text in row] for row in texts]
    at_row, at_column = (index.ravel() for index in np.indices(values.shape))
    figure = go.Figure(
        [
            go.Heatmap(
                z=values,
                colorscale="Blues",
                zmin=0,
                zmax=1,
                hoverinfo="skip",
                xgap=1,
                ygap=1,
                colorbar=colour_bar(colour_title),
            ),
            go.Scatter(
                x=at_column,
                y=at_row,
                mode="text",
                text=[escaped(text) for row in shown for text in row],
                textfont={"size": 11, "color": _inks(values, 0.65, "#1c2430", "#ffffff")},
                hoverinfo="skip",
                showlegend=False,
                meta=_inks(values, 0.55, "#ffffff", "#000000"),
            ),
            click_targets(
                at_column,
                at_row,
                data=np.stack([at_row, at_column], 1),
                texts=[
                    hover_text(f"{y_title} {y[r]}, {x[c]}", f"{visible(text)}  {values[r, c]:z.3f}")
                    for r, row in enumerate(texts)
                    for c, text in enumerate(row)
                ],
            ),
        ]
    )
    if selected is not None:
        add_frame(figure, *selected, CHOSEN, width=3)
    axis = cell_axis(x_title, x, most=60)
    figure.update_layout(
        width=max(columns * 74, 240) + 90,
        height=rows * 21 + 190,
        margin={"l": 64, "r": 26, "t": 92, "b": 96, "pad": 0},
        xaxis={**axis, "tickangle": -40},
        yaxis=cell_axis(y_title, y, most=40),
        plot_bgcolor=BLANK,
        dragmode=False,
        hovermode="closest",
        hoverdistance=-1,
    )
    return figure


def _inks(values: np.ndarray, switch: float, low: str, high: str) -> list[str]:
    """The colour of each cell's text: one that can be read on its shade."""
    return np.where(values.ravel() > switch, high, low).tolist()


def _short(text: str, most: int = 9) -> str:
    """A token with visible spaces, cut to fit a cell."""
    shown = visible(text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"
