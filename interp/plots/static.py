"""Static matplotlib figures for reports.

Functions with the same name in `interp.plots.lines` draw the same figure for the app. Every
function returns a new `matplotlib.figure.Figure` 7 inches wide, and changes neither pyplot nor
global settings. Intervals are given by their ends, not by half-widths. Ends that are not finite and
values that are nan are not drawn. Labels are drawn literally, on one line. Titles name the quantity
and its unit. All functions raise InterpError if arrays differ in length or a value is outside its
interval.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from interp.core.errors import InterpError, unknown
from interp.plots.style import CHOSEN, DIVERGING, FRAME, LOWERS, RAISES, colour_limits, null_band

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Interval = tuple[ArrayLike, ArrayLike, ArrayLike]

WIDTH, SMALL, MEDIUM = 7.0, 9, 10
INK, SOFT, GRID, ABSENT = "#222222", "#6b6b6b", "#e3e3e3", "#c9c9c9"
SERIES = (LOWERS, RAISES, CHOSEN, FRAME, "#3cbf94", "#7327d9")
OUTCOMES = (LOWERS, "#a9cdec", RAISES, "#8f8f8f", CHOSEN, FRAME)
STRIP = 200


def interval_lines(
    series: Mapping[str, Interval],
    *,
    x_title: str,
    y_title: str,
    baseline: float | None = None,
    baseline_label: str = "baseline",
    controls: Collection[str] = (),
    x: ArrayLike | None = None,
) -> Figure:
    """A line with the band of its interval for each series, over the layers, or over `x`.

    Each line is named at its end. `series` maps a name to (values, low, high), each (n_layers,) or
    as long as `x`. `baseline` draws a horizontal line, e.g. at chance level. `controls` are names
    of series to draw in grey, e.g. a probe on shuffled labels.

    Raises:
        InterpError: there is no series, or no series has the name of a control.
    """
    for name in controls:
        if name not in series:
            raise unknown("control", name, series)
    colours = _colours(series, SERIES, controls)
    count = np.asarray(next(iter(series.values()))[0]).size
    layers = np.arange(count) if x is None else _vector(x, "x", count)
    axes = _axes(3.4, x_title, y_title)
    lines: list[tuple[ArrayLike, str, str]] = []
    for name, triple in series.items():
        value, low, high = _interval(triple, name, len(layers))
        axes.fill_between(layers, low, high, color=colours[name], alpha=0.18, linewidth=0)
        style = "o--" if name in controls else "o-"
        axes.plot(layers, value, style, color=colours[name], ms=3, lw=1.5, label=_plain(name))
        lines.append((value, name, colours[name]))
    if baseline is not None:
        axes.axhline(baseline, color=SOFT, linewidth=1, linestyle=":")
        lines.append(([baseline], baseline_label, SOFT))
    if x is None:
        axes.locator_params(axis="x", integer=True)
        axes.set_xlim(-0.5, len(layers) - 0.5)
    _name_ends(axes, lines)
    return axes.figure


def head_map(
    values: ArrayLike,
    *,
    title: str,
    marked: Collection[tuple[int, int]] = (),
    diverging: bool = True,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A heat map of heads, layers across and heads upwards, with frames on `marked`.

    The arguments are those of `interp.plots.lines.head_map`. Cells that are nan are grey.

    Raises:
        InterpError: `values` is not a matrix, or a marked head is not in it.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    grid = np.asarray(values, dtype=float)
    if grid.ndim != 2 or not grid.size:
        raise InterpError("a map of heads", f"values of shape {grid.shape}", "pass (layers, heads)")
    for layer, head in marked:
        if not (0 <= layer < grid.shape[0] and 0 <= head < grid.shape[1]):
            found = f"{grid.shape[0]} layers of {grid.shape[1]} heads"
            raise InterpError(f"marking L{layer}H{head}", found, "mark a head of the map")
    if limits is None:
        limits = colour_limits(grid, diverging=diverging)
    cell = min((WIDTH - 1) / grid.shape[0], 0.32)
    axes = _axes(cell * grid.shape[1] + 1.25, "layer", "head", grid=False)
    axes.figure.set_layout_engine("compressed", w_pad=0.08, h_pad=0.08)
    colours = colormaps[DIVERGING if diverging else "Blues"].with_extremes(bad=ABSENT)
    image = axes.imshow(grid.T, origin="lower", cmap=colours, interpolation="none", clim=limits)
    axes.set_xticks(np.arange(-0.5, grid.shape[0]), minor=True)
    axes.set_yticks(np.arange(-0.5, grid.shape[1]), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.locator_params(integer=True)
    for corner in ((layer - 0.5, head - 0.5) for layer, head in marked):
        for colour, width in (("white", 3.4), (FRAME, 1.7)):
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=colour, lw=width, clip_on=False))
    bar = axes.figure.colorbar(image, ax=axes, location="top", aspect=cell * len(grid) / 0.1)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, colors=INK, length=2)
    bar.set_label(_plain(title), size=MEDIUM, color=INK)
    return axes.figure


def square_map(
    values: ArrayLike, *, names: Sequence[str], title: str, limits: tuple[float, float] = (0, 1)
) -> Figure:
    """A heat map of (names, names) values, which are written in the cells; nan cells are empty.

    Raises:
        InterpError: `values` is not a square matrix with a row for each name.
    """
    from matplotlib import colormaps

    grid = np.asarray(values, dtype=float)
    if grid.shape != (len(names), len(names)) or not len(names):
        found = f"values of shape {grid.shape}, {len(names)} names"
        raise InterpError("a square map", found, "give a row and a column for each name")
    axes = _axes(0.42 * len(names) + 1.9, "", "", grid=False)
    image = axes.imshow(grid, cmap=colormaps["Blues"], interpolation="none", clim=limits)
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            ink = "white" if value > (limits[0] + 2 * limits[1]) / 3 else INK
            style = {"ha": "center", "va": "center", "size": SMALL, "color": ink}
            axes.text(column, row, f"{value:z.2f}", **style)
    axes.spines[:].set_visible(False)
    _name_places(axes, names)
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, colors=INK, length=2)
    bar.set_label(_plain(title), size=MEDIUM, color=INK)
    return axes.figure


def curve_with_null(
    x: ArrayLike,
    value: ArrayLike,
    *,
    low: ArrayLike,
    high: ArrayLike,
    null: Sequence[Sequence[float] | None],
    x_title: str,
    y_title: str,
    labels: Sequence[str] | None = None,
    value_label: str = "selected",
    null_label: str = "random sets",
) -> Figure:
    """A measure as components are added one by one, with random sets of equal size in grey.

    All arguments have length k: `x` is the number of components, `value` the measure with its
    interval, and `null` holds the values of random sets, or None if none were drawn; their mean and
    95 % range are shown. `labels` are the components added at each step.
    """
    at = _vector(x, "x")
    value, low, high = _interval((value, low, high), "value", len(at))
    _same_length("null", len(null), len(at))
    middle, lower, upper = np.array(null_band(null))
    drawn = np.isfinite(middle)
    axes = _axes(3.6, x_title, y_title)
    band = at[drawn], lower[drawn], upper[drawn]
    axes.fill_between(*band, color=SOFT, alpha=0.25, linewidth=0)
    axes.plot(at[drawn], middle[drawn], "o-", color=SOFT, ms=3.5, lw=1.2)
    axes.fill_between(at, low, high, color=RAISES, alpha=0.18, linewidth=0)
    axes.plot(at, value, "o-", color=RAISES, ms=3.5, lw=1.6, label=_plain(value_label))
    if labels is None:
        axes.locator_params(axis="x", integer=True)
    else:
        _same_length("labels", len(labels), len(at))
        size = SMALL if len(at) <= 36 else 7
        axes.set_xticks(at, [_plain(label) for label in labels], rotation=90, fontsize=size)
    _name_ends(axes, [(value, value_label, RAISES), (middle, null_label, SOFT)])
    return axes.figure


def values_with_null(
    labels: Sequence[str],
    values: ArrayLike,
    *,
    low: ArrayLike,
    high: ArrayLike,
    value_title: str,
    null: Sequence[ArrayLike | None] | None = None,
    null_label: str = "random",
) -> Figure:
    """A bar with its interval for each label, red above zero and blue below, and random draws.

    `values` and the ends of their intervals are (k,). `null` holds the random draws for each label,
    or None. They are grey points, or a violin plot if there are more than 200.
    """
    triple = _interval((values, low, high), "values", len(labels))
    nulls = [None] * len(labels) if null is None else list(null)
    _same_length("null", len(nulls), len(labels))
    axes = _axes(3.4, "", value_title)
    at = np.arange(len(labels)) - (0 if null is None else 0.16)
    axes.bar(at, triple[0], 0.5, color=np.where(triple[0] > 0, RAISES, LOWERS), zorder=2)
    _whiskers(axes, at, *triple, written=len(labels) <= 14)
    for place, draws in enumerate(nulls):
        if draws is not None:
            _null(axes, place + 0.3, _vector(draws, f"null of {labels[place]!r}"))
    if any(draws is not None for draws in nulls):
        _legend(axes, axes.plot([], [], "o", color=SOFT, ms=4, label=_plain(null_label)))
    _name_places(axes, labels)
    return axes.figure


def paired_rows(labels: Sequence[str], groups: Mapping[str, Interval], *, x_title: str) -> Figure:
    """A row for each label, the first on top, with a point and its interval for each group.

    `groups` maps a name, such as "before" or "after", to (value, low, high), each (k,).
    """
    axes = _axes(0.3 * len(labels) + 1, x_title, "", grid=False)
    colours, drawn = _colours(groups, SERIES), []
    for i, (name, colour) in enumerate(colours.items()):
        value, low, high = _interval(groups[name], name, len(labels))
        at = np.arange(len(labels)) + 0.24 * (i - (len(groups) - 1) / 2)
        ends = np.maximum([value - low, high - value], 0)
        drawn.append(
            axes.errorbar(value, at, xerr=ends, fmt="o", color=colour, ms=4, label=_plain(name))
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.7)
    _name_rows(axes, labels)
    _legend(axes, drawn)
    return axes.figure


def stacked_shares(
    rows: Mapping[str, Mapping[str, float]], *, x_title: str = "share of samples (%)"
) -> Figure:
    """A horizontal bar for each row, the first on top, divided into its shares (0 to 1), in %.

    The shares of a row are drawn in the order in which their names first occur; a missing share is
    0. Shares under 4 % are not written.

    Raises:
        InterpError: there are no rows, a share is negative or nan, or shares do not add up to 1.
    """
    for label, shares in rows.items():
        if not abs(sum(shares.values()) - 1) < 1e-3 or min(shares.values()) < 0:
            found = str(dict(shares))
            raise InterpError(f"the shares of {label!r}", found, "give shares that add up to 1")
    from matplotlib.colors import to_rgb

    names = list(dict.fromkeys(outcome for shares in rows.values() for outcome in shares))
    axes = _axes(0.36 * len(rows) + 1, x_title, "", grid=False)
    at, left, bars = np.arange(len(rows)), np.zeros(len(rows)), []
    for name, colour in _colours(names, OUTCOMES).items():
        share = np.array([100 * shares.get(name, 0.0) for shares in rows.values()])
        bar = axes.barh(at, share, 0.72, left, color=colour, ec="white", label=_plain(name))
        written = [f"{part:z.0f}" if part >= 4 else "" for part in share]
        luminance = np.dot([0.2126, 0.7152, 0.0722], np.power(to_rgb(colour), 2.2))
        ink = INK if luminance > 0.2 else "white"  # whichever is easier to read
        axes.bar_label(bar, written, label_type="center", fontsize=SMALL, color=ink)
        bars.append(bar)
        left = left + share
    axes.set_xlim(0, 100)
    _name_rows(axes, list(rows))
    _legend(axes, bars)
    return axes.figure


def stages(columns: Sequence[Sequence[tuple[str, str]]]) -> Figure:
    """Boxes in columns from left to right, every box joined to those of the next column.

    A box is (name, words); the words are written below the name. Columns without a box are left
    out.

    Raises:
        InterpError: there is no box at all.
    """
    columns = [column for column in columns if column]
    if not columns:
        raise InterpError("a figure of stages", "no box", "give at least one")
    tallest = max(map(len, columns))
    axes = _axes(0.95 * tallest + 0.4, "", "", grid=False)
    axes.set_axis_off()
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, tallest - 0.5)
    places = [
        [(x, tallest - 1 - (y + (tallest - len(column)) / 2)) for y in range(len(column))]
        for x, column in enumerate(columns)
    ]
    for before, after in pairwise(places):
        for (x0, y0), (x1, y1) in product(before, after):
            axes.plot([x0, x1], [y0, y1], color=SOFT, lw=0.8, zorder=1)
    for column, spots in zip(columns, places, strict=True):
        for (name, words), (x, y) in zip(column, spots, strict=True):
            box = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": FRAME}
            text = f"{_plain(name)}\n{words}"
            axes.text(
                x, y, text, ha="center", va="center", fontsize=SMALL - 1.5, bbox=box, zorder=2
            )
    return axes.figure


def _axes(height: float, x_title: str, y_title: str, *, grid: bool = True) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # pyright: ignore
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(SOFT)
    axes.tick_params(labelsize=SMALL, colors=INK, length=3)
    axes.set_xlabel(_plain(x_title), fontsize=MEDIUM, color=INK)
    axes.set_ylabel(_plain(y_title), fontsize=MEDIUM, color=INK)
    axes.set_axisbelow(True)
    axes.grid(visible=grid, axis="y", **({"color": GRID, "linewidth": 0.7} if grid else {}))
    return axes


def _plain(text: str) -> str:
    return text.replace("\n", "↵").replace("$", r"\$")


def _vector(values: ArrayLike, what: str, length: int | None = None) -> np.ndarray:
    vector = np.asarray(values, dtype=float)
    if vector.ndim != 1:
        raise InterpError(what, f"shape {vector.shape}", "pass an array with one axis")
    _same_length(what, len(vector), len(vector) if length is None else length)
    return vector


def _same_length(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise InterpError(what, f"{found} values, but {wanted} are drawn", "pass equal lengths")


def _interval(triple: Interval, what: str, length: int) -> tuple[np.ndarray, ...]:
    value, low, high = (_vector(part, f"interval of {what}", length) for part in triple)
    slack = 1e-6 * (1 + np.abs(value))
    outside = np.flatnonzero((low > value + slack) | (high < value - slack))
    if len(outside):
        i = outside[0]
        found = f"{value[i]:.4g} outside [{low[i]:.4g}, {high[i]:.4g}] at {i}"
        raise InterpError(f"interval of {what}", found, "pass its ends, not half-widths")
    return value, *(np.where(np.isfinite(end), end, np.nan) for end in (low, high))


def _colours(
    names: Iterable[str], palette: Sequence[str], controls: Collection[str] = ()
) -> dict[str, str]:
    coloured = [name for name in names if name not in controls]
    if len(coloured) > len(palette) or not (coloured or controls):
        found = f"{len(coloured)} series, but {len(palette)} distinguishable colours"
        raise InterpError("series", found, f"draw 1 to {len(palette)} in one figure")
    return dict(zip(coloured, palette, strict=False)) | dict.fromkeys(controls, SOFT)


def _legend(axes: Any, handles: Sequence[Any]) -> None:
    style = {"frameon": False, "fontsize": SMALL, "labelcolor": INK, "handlelength": 1.1}
    place = {"loc": "outside upper left", "ncols": min(len(handles), 4), "columnspacing": 1.4}
    axes.figure.legend(handles=handles, **place, **style)


def _whiskers(axes: Any, at: np.ndarray, *triple: np.ndarray, written: bool) -> None:
    """Draw intervals of bars and the zero line, and write the heights beyond the intervals."""
    value, low, high = triple
    errors = np.maximum([value - low, high - value], 0)
    axes.errorbar(at, value, errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5, zorder=3)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.spines["bottom"].set_visible(False)
    axes.margins(y=0.1)
    for i in np.flatnonzero(np.isfinite(value)) if written else ():
        up = bool(value[i] >= 0)
        end = (at[i], np.fmax(value[i], high[i]) if up else np.fmin(value[i], low[i]))
        style = {"xytext": (0, 3 if up else -3), "va": "bottom" if up else "top", "ha": "center"}
        height = f"{value[i]:z.2f}".replace("-", "−")
        axes.annotate(height, end, textcoords="offset points", fontsize=SMALL, color=INK, **style)


def _name_places(axes: Any, labels: Sequence[str]) -> None:
    """Write labels below bars, slanted if they do not fit side by side."""
    axes.set_xticks(range(len(labels)), [_plain(label) for label in labels])
    axes.tick_params(axis="x", length=0)
    longest = max(len(a) + len(b) for a, b in zip(labels, [*labels[1:], ""], strict=True))
    if longest / 2 * SMALL * 0.6 + 6 > WIDTH * 72 * 0.85 / len(labels):
        for text in axes.get_xticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")


def _name_rows(axes: Any, labels: Sequence[str]) -> None:
    """Write labels at the left, the first on top."""
    axes.set_yticks(range(len(labels)), [_plain(label) for label in labels])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def _null(axes: Any, place: float, draws: np.ndarray) -> None:
    """Draw random draws beside a bar, as points in a fixed sideways pattern or as a violin plot."""
    draws = draws[np.isfinite(draws)]
    if len(draws) > STRIP and draws.std() > 0:
        for body in axes.violinplot([draws], [place], widths=0.3, showextrema=False)["bodies"]:
            body.set(facecolor=SOFT, alpha=0.45, linewidth=0)
    else:
        sideways = (np.arange(len(draws)) * 0.618034 % 1 - 0.5) * 0.2
        axes.plot(place + sideways, draws, "o", color=SOFT, alpha=0.5, ms=2.5, mew=0)


def _name_ends(axes: Any, lines: Sequence[tuple[ArrayLike, str, str]]) -> None:
    """Write the name of each line at its right end, and shift names that would overlap.

    `lines` holds (values, name, colour). A line ends at its last finite value.
    """
    from matplotlib.colors import to_rgb
    from scipy.optimize import isotonic_regression

    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    finite = [(np.extract(np.isfinite(values), values), *rest) for values, *rest in lines]
    ends = sorted((line[-1], *rest) for line, *rest in finite if len(line))
    step = (top - bottom) * 1.35 * SMALL / (axes.figure.get_figheight() * 72 * 0.8)
    spacing = step * np.arange(len(ends))
    levels = [level for level, _, _ in ends] - spacing
    heights = isotonic_regression(levels).x + spacing if ends else []
    beside = axes.get_yaxis_transform()
    for height, (_, name, colour) in zip(heights, ends, strict=True):
        dark = tuple(0.75 * part for part in to_rgb(colour))
        axes.text(1.01, height, _plain(name), size=SMALL, color=dark, va="center", transform=beside)
