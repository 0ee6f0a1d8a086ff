"""Figures as files: SVG, or PNG for one that draws many points."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 4000
MIME = {"svg": "image/svg+xml", "png": "image/png"}
DRAWN, LONG = re.compile(rb"<(?:path|use|text) [^>]+>"), re.compile(rb"(\d\.\d\d)\d+")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A rendered figure: file contents, "svg" or "png", and width on the page in CSS pixels."""

    data: bytes
    suffix: str
    width: int


def render(figure: Figure, *, name: str = "figure") -> Picture:
    """A figure as SVG, or as PNG if it draws more than 4000 points; the same bytes every time.

    An SVG's text stays text, its coordinates keep two decimals; `name` salts its identifiers.
    """
    import matplotlib

    suffix = "png" if points(figure) > MOST_POINTS else "svg"
    unwanted = ("Date", "Creator") if suffix == "svg" else ("Software",)
    buffer = BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none"})
        matplotlib.rcParams["font.sans-serif"] = ["DejaVu Sans", "Verdana"]
        if suffix == "svg":  # the reader's fonts draw what ours cannot
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format=suffix, dpi=160, metadata=dict.fromkeys(unwanted))
    data = buffer.getvalue()
    if suffix == "svg":
        lines = re.sub(rb"\n +", b"\n", data)
        data = DRAWN.sub(lambda tag: LONG.sub(rb"\1", tag[0]), lines)
    return Picture(data=data, suffix=suffix, width=round(figure.get_figwidth() * 96))


def points(figure: Figure) -> int:
    """How many points a figure draws: line and marker points, corners of areas; images are 1."""
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D

    total = 0
    for artist in figure.findobj():
        if isinstance(artist, Line2D):
            total += np.size(artist.get_xdata())
        elif isinstance(artist, Collection):
            corners = sum(np.size(path.vertices) // 2 for path in artist.get_paths())
            total += max(corners, np.size(artist.get_offsets()) // 2)
        else:
            total += 1
    return total
