"""Colours, text and limits that all figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.core.statistics import range_of_draws

DIVERGING = "RdBu_r"


RAISES, LOWERS = "#c0392b", "#2f6fb5"


FRAME, CHOSEN, BLANK = "#111111", "#e69f00", "#e4e4e4"


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
    """A token with visible spaces and line breaks."""
    return token.replace(" ", "␣").replace("\n", "↵")


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
