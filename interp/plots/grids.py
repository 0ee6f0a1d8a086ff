"""Interactive heat maps of candidates, shares, pairs and layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from interp.plots.heatmaps import heat_map


def candidate_grid(
    values: ArrayLike,
    *,
    x: Sequence[str],
    y: Sequence[str],
    rejected: ArrayLike,
    texts: Sequence[Sequence[str]],
    colour_title: str,
    best: tuple[int, int] | None = None,
    coloured: bool = False,
    signed: bool = True,
) -> Any:
    """Scores of candidates, with positions downwards, layers across, and a frame on the best.

    Rejected cells are grey. With `coloured`, they show their score with a cross on it. The colour
    scale of `signed` scores is centred on zero. All arrays are (positions, layers), and so are the
    hover `texts`.
    """
    values, rejected = np.asarray(values, dtype=float), np.asarray(rejected, dtype=bool)
    width = int(np.clip(1180 // max(len(x), 1), 12, 40))
    figure = heat_map(
        values if coloured else np.where(rejected, np.nan, values),
        x=x,
        y=y,
        x_title="layer",
        y_title="position",
        colour_title=colour_title,
        signed=signed,
        cell=width,
        selected=best,
        texts=texts,
    )
    if coloured:
        rows, columns = np.nonzero(rejected)
        figure.add_scatter(
            x=columns,
            y=rows,
            mode="markers",
            marker={"symbol": "x-thin", "size": 7, "line": {"color": "#5b6470", "width": 1.2}},
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_layout(
        plot_bgcolor="#b4bac2",
        margin={"l": 20, "r": 26, "t": 92, "b": 58, "pad": 0},
        height=len(y) * width + 150,
        width=len(x) * width + 200,
    )
    return figure.update_yaxes(automargin=True)


def share_grid(
    values: ArrayLike,
    *,
    x: Sequence[str],
    y: Sequence[str],
    texts: Sequence[Sequence[str]],
    title: str,
) -> Any:
    """A heat map of shares from 0 to 1, which are written in the cells; nan cells are blank."""
    values = np.asarray(values, dtype=float)
    figure = heat_map(
        values, x=x, y=y, x_title="", y_title="", colour_title=title, cell=56, texts=texts
    )
    _write_values(figure, values, ".0%", colorscale="Reds", zmin=0, zmax=1)
    margin = {"l": 20, "r": 20, "t": 80, "b": 36, "pad": 0}
    return _rows_down(figure, width=len(x) * 84 + 190, height=len(y) * 34 + 130, margin=margin)


def square_map(
    values: ArrayLike, *, names: Sequence[str], title: str, limits: tuple[float, float]
) -> Any:
    """A symmetric heat map of (names, names) values, which are written in the cells."""
    values = np.asarray(values, dtype=float)
    figure = heat_map(
        values,
        x=names,
        y=names,
        x_title="",
        y_title="",
        colour_title=title,
        cell=54,
        names=[[f"{a} / {b}" for b in names] for a in names],
    )
    scale = {"colorscale": "Blues"} if limits[0] == 0 else {}
    _write_values(figure, values, ".2f", zmin=limits[0], zmax=limits[1], **scale)
    figure.update_xaxes(automargin=True, tickangle=-30)
    margin = {"l": 20, "r": 20, "t": 84, "b": 20, "pad": 0}
    return _rows_down(figure, width=None, height=len(names) * 44 + 190, margin=margin)


def layer_rows(values: ArrayLike, *, rows: Sequence[str], title: str) -> Any:
    """A heat map of (rows, layers) values from 0 up; nan cells are blank."""
    values = np.asarray(values, dtype=float)
    layers = values.shape[1]
    cell = int(np.clip(640 // max(layers, 1), 9, 34))
    figure = heat_map(
        values,
        x=[str(layer) for layer in range(layers)],
        y=[f"{row} " for row in rows],
        x_title="layer",
        y_title="",
        colour_title=title,
        limit=float(np.nanmax(values, initial=0.0)) or 1,
        signed=False,
        cell=cell,
        names=[[f"{row}, layer {k}" for k in range(layers)] for row in rows],
    )
    height, margin = max(len(rows), 3) * 30 + 150, {"l": 20, "r": 20, "t": 84, "b": 62, "pad": 0}
    return _rows_down(figure, width=layers * cell + 150, height=height, margin=margin)


def _write_values(figure: Any, values: np.ndarray, form: str, **colours: Any) -> None:
    """Write each number in its cell, and set the colours of the map."""
    written = [["" if np.isnan(v) else f"{v:{form}}" for v in row] for row in values]
    figure.data[0].update(text=written, texttemplate="%{text}", **colours)


def _rows_down(figure: Any, **layout: Any) -> Any:
    """The map with its first row on top and enough space for the names of rows."""
    rows = len(figure.data[0].z)
    return figure.update_layout(layout).update_yaxes(automargin=True, range=[rows - 0.5, -0.5])
