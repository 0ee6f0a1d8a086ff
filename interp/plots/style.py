"""Colours, text, limits, axes and layout that all figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from interp.core.statistics import range_of_draws

DIVERGING = "RdBu_r"
NIGHT = "#1a2029"
ON_DARK = {
    "rgb(5,48,97)": ("#b5dbff", "#5c9fdc", NIGHT, "#d9694f", "#ffc2ad"),
    "rgb(247,251,255)": (NIGHT, "#2f6fb5", "#b5dbff"),
    "rgb(255,245,240)": (NIGHT, "#b5412f", "#ffc2ad"),
}
"""First colour of a scale (RdBu_r, Blues, Reds) -> the scale on a dark page: zero is dark."""
RAISES, LOWERS = "#c0392b", "#2f6fb5"
FRAME, CHOSEN, BLANK, SOFT = "#111111", "#e69f00", "#e4e4e4", "#808a96"
DARK_BLANK = "#2c3541"
MARGIN = {"l": 62, "r": 20, "t": 46, "b": 50, "pad": 0}
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
LITERAL = str.maketrans({"&": "&amp;", "<": "&lt;", "$": "&#36;"})


def symmetric_limit(values: np.ndarray) -> float:
    """The largest finite absolute value, or 1 if it is 0 or there is none."""
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max(initial=0.0))
    return limit if limit > 0 else 1.0


def colour_limits(values: np.ndarray, *, diverging: bool) -> tuple[float, float]:
    """The ends of a colour scale: symmetric around zero, or the smallest and largest value."""
    if diverging:
        limit = symmetric_limit(values)
        return -limit, limit
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def darkened(figure: Any) -> Any:
    """The same figure for a dark page: zero and absent cells are as dark as the page.

    Texts on cells have their colours on a dark page as `meta`.
    """
    for trace in figure.data:
        if trace.meta is not None:
            trace.textfont.color = trace.meta
        scale = getattr(trace, "colorscale", None)
        blanks = 2 if scale and scale[0][1] == BLANK else 0
        if scale and (colours := ON_DARK.get(scale[blanks][1].replace(" ", ""))):
            even = [[i / (len(colours) - 1), one] for i, one in enumerate(colours)]
            trace.colorscale = bytes_scale(colours, DARK_BLANK) if blanks else even
    if figure.layout.plot_bgcolor == BLANK:
        figure.layout.plot_bgcolor = DARK_BLANK
    return figure


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 as 1 to 255, and nan as 0: a quarter of the size that floats have."""
    return np.where(np.isnan(values), 0, 1 + np.rint(254 * np.nan_to_num(values))).astype(np.uint8)


def bytes_scale(colours: Sequence[str], blank: str = BLANK) -> list[tuple[float, str]]:
    """The colour scale of `as_bytes`: `blank` for 0, and evenly spaced colours from 1 to 255."""
    places = np.linspace(1, 255, len(colours)) / 255
    blanks = [(0.0, blank), (0.5 / 255, blank), (0.5 / 255, colours[0])]
    return [*blanks, *zip(places.tolist(), colours, strict=True)]


def unfaded(opacity: float) -> dict[str, Any]:
    """Properties of points that keep their opacity when another point is clicked."""
    return dict.fromkeys(("selected", "unselected"), {"marker": {"opacity": opacity}})


def escaped(text: str) -> str:
    """Text that Plotly shows literally, without markup, formulas or placeholders."""
    return text.translate(LITERAL).replace("%{", "&#37;{")


def hover_text(title: str, value: str = "", *lines: str) -> str:
    """A hover text: a bold title, a value beside it, and lines below it; all are escaped."""
    first = f"<b>{escaped(title)}</b>" + (f"  {escaped(value)}" if value else "")
    return "<br>".join([first, *map(escaped, lines)])


def visible(token: str) -> str:
    """A token as every table, figure and sentence writes it: with visible spaces and line breaks.

    Other characters that cannot be seen are written as in Python.
    """
    shown = token.replace(" ", "␣").replace("\n", "↵")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis with a title, which cannot be zoomed."""
    return {"title": escaped(title), "fixedrange": True, **more}


def named_axis(labels: Sequence[str], title: str = "", *, at: Any = None, **more: Any) -> Any:
    """An axis with a label at each of the places `at`, which are 0, 1, 2 ... by default.

    Every label is drawn: whether one crosses an end of the axis takes a browser long to find out.
    """
    places = range(len(labels)) if at is None else at
    names = {"tickvals": list(places), "ticktext": [escaped(label) for label in labels]}
    names["ticklabeloverflow"] = "allow"
    return axis(title, showgrid=False, zeroline=False, **names) | more


def lay_out(figure: Any, **layout: Any) -> Any:
    """The figure with the margins, legend and mouse modes of the package, and with `layout`."""
    shared = {"margin": MARGIN, "legend": LEGEND, "dragmode": False, "hovermode": "closest"}
    return figure.update_layout(shared | layout)


def error_bars(
    value: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str, **more: Any
) -> dict[str, Any]:
    """Error bars from a value to the ends of its interval; none to an end that is not finite."""
    lengths = np.subtract(high, value), np.subtract(value, low)
    above, below = (np.where(np.isfinite(part), part, 0) for part in lengths)
    return {"array": above, "arrayminus": below, "color": colour, "thickness": 1.6, **more}


def add_band(
    figure: Any, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, **more: Any
) -> None:
    """Fill the area between two curves where both are finite."""
    known = np.isfinite([low, high]).all(0)
    figure.add_scatter(
        x=np.concatenate([x[known], x[known][::-1]]),
        y=np.concatenate([high[known], low[known][::-1]]),
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        mode="lines",
        line={"width": 0, "color": colour},
        hoverinfo="skip",
        **more,
    )


def add_frame(
    figure: Any, row: float, column: float, colour: str, *, width: float, half: float = 0.5
) -> None:
    """A square around a cell of a heat map, `half` a side away from the cell's middle."""
    figure.add_shape(
        type="rect",
        x0=column - half,
        x1=column + half,
        y0=row - half,
        y1=row + half,
        line={"color": colour, "width": width},
    )


def null_band(
    draws: Sequence[Sequence[float] | None],
) -> tuple[list[float], list[float], list[float]]:
    """(mean, low, high) of each list of random draws, with the 95 % range; nan for no draws."""
    rows = [np.array(found if found else [np.nan], dtype=float) for found in draws]
    ends = [range_of_draws(row) for row in rows]
    return (
        [float(row.mean()) for row in rows],
        [low for low, _ in ends],
        [high for _, high in ends],
    )
