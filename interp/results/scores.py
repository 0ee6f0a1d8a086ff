"""`Scores`: the effect of each component on a task, with standard errors, tests and origin."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from interp.core.arguments import listed, reads_arguments
from interp.core.components import MARKS, Component
from interp.core.errors import InterpError, unknown
from interp.core.files import content_key
from interp.core.nulls import DRAWS, SelectionTest, flip_maxima, oriented, selection_test
from interp.core.records import Provenance, Record
from interp.core.schema import Count, Index, Positive, checked
from interp.core.statistics import Estimate, group_numbers, ratio_estimate, ratio_of_means
from interp.plots.heatmaps import cell_axis, heat_map
from interp.plots.style import visible
from interp.plots.tables import Listing, Tabled
from interp.results.prompt_effects import PromptEffects, require_unit


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A component in a ranking of `of` cells; `rank` counts from 1."""

    label: str
    component: Component
    position: str | None
    value: float
    stderr: float
    rank: int
    of: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores(PromptEffects, Tabled, Record):
    """Effects of components on a task, as fractions of the gap or in the metric's own unit.

        effect = mean over prompts of (metric gained) / mean over prompts of (clean - corrupted)

    The metric gained is patched - corrupted (denoise) or clean - patched (noise). In both
    directions a positive effect supports the behaviour, and 1 is the whole gap. The effect is a
    ratio of means, so one prompt with a small gap cannot dominate. `stderr` and `interval` come
    from `interp.core.statistics.ratio_of_means`. Two `Scores` are equal only if they are the same
    object; `hash` and `agreement` compare contents.

    All numbers are finite, and there is at least one prompt. If the mean gap is 0, fractions of it
    are undefined and refused; `effects` can still be read.

    Attributes:
        effects: (n, *axes) metric gained on each prompt, in the metric's unit.
        clean: (n,) metric of the clean runs.
        corrupted: (n,) metric of the corrupted runs; equal to `clean`, and `extra["paired"]` is
            False, if the prompts have none.
        axes: names of the axes, from layer, head, kv_head, neuron and position.
        coordinates: the labels of each axis.
        site: the site that was patched.
        direction: "denoise" or "noise".
        method: name of the method.
        metric: name of the metric.
        metric_unit: unit of the metric.
        positions: the positions that were patched, in words.
        provenance: origin of the numbers.
        unit: "gap" (`values` are fractions of the gap) or "metric" (`values` are the mean metric
            gained, in `metric_unit`).
        extra: further facts of the method.
    """

    effects: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    axes: tuple[str, ...]
    coordinates: Mapping[str, tuple[str, ...]]
    site: str
    direction: str
    method: str
    metric: str
    metric_unit: str
    positions: str
    provenance: Provenance
    unit: str = "gap"
    extra: Mapping[str, Any] = field(default_factory=dict)

    strongest_by = "value"

    def __post_init__(self) -> None:
        shape = tuple(len(self.coordinates[axis]) for axis in self.axes)
        if self.effects.shape != (len(self.clean), *shape):
            raise InterpError(
                "a Scores",
                f"effects of shape {self.effects.shape}, n={len(self.clean)}, axes of {shape}",
                "give (n, *axes)",
            )
        given = {"effects": self.effects, "clean": self.clean, "corrupted": self.corrupted}
        odd = ", ".join(name for name, one in given.items() if not np.isfinite(one).all())
        if not self.n or odd:
            found = f"{self.n} prompts, not finite: {odd or 'none'}"
            raise InterpError("a Scores", found, "give at least one prompt, and finite numbers")
        require_unit(self.unit)

    def __repr__(self) -> str:
        size = " x ".join(f"{len(self.coordinates[axis])} {axis}s" for axis in self.axes)
        paired = self.extra.get("paired", True)
        other = f", corrupted {self.corrupted.mean():z.3f}" if paired else ""
        unit = "" if self.unit == "gap" else f"; effects in {self.unit_words}"
        return (
            f"Scores({self.method}, {self.site}, {self.direction}, {size}, n={self.n}, "
            f"{self.metric} clean {self.clean.mean():z.3f}{other}{unit})"
        )

    @property
    def stderr(self) -> np.ndarray:
        """(*axes) standard error of `values` by the delta method; nan for one prompt."""
        return self._ratio.stderr

    @reads_arguments
    def interval(
        self, *, level: float = 0.95, groups: Sequence[Hashable] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The confidence interval of `values` over prompts: (low, high), each (*axes).

        `level` is the coverage. `groups` holds one label per prompt; prompts with the same label
        count as one. See `interp.core.statistics.ratio_of_means`.
        """
        labels = None if groups is None else listed(groups)
        found = ratio_of_means(self.effects, self._gaps, level=level, groups=labels)
        return found.low, found.high

    @reads_arguments
    def index(self, label: str, position: str | None = None) -> tuple[int, ...]:
        """The cell of a component such as L17H11, and of a position if there is a position axis.

        Raises:
            InterpError: the component or position is not in these scores, or a position is missing
                or given without a position axis.
        """
        part = Component.parse(label)
        fits = part.site == self.site and (part.index is None) == (self._numbered is None)
        wanted = {"layer": str(part.layer), "position": position}
        wanted[self._numbered or ""] = str(part.index)
        try:
            if not fits or (position is None) == ("position" in self.axes):
                raise ValueError
            return tuple(self.coordinates[axis].index(wanted[axis] or "") for axis in self.axes)
        except ValueError:
            raise InterpError(
                f"the score of {label}" + (f" at {position!r}" if position is not None else ""),
                f"not in {self!r}",
                f"give a label such as {self.label([0] * len(self.axes))}; see .coordinates",
            ) from None

    @reads_arguments
    def estimate(self, label: str, position: str | None = None) -> Estimate:
        """The effect of one component, with its interval."""
        gained = self.effects[:, *self.index(label, position)]
        return ratio_estimate(gained, self._gaps)

    @property
    def _numbered(self) -> str | None:
        return next((axis for axis in self.axes if axis in MARKS), None)

    def component(self, cell: Sequence[int]) -> Component:
        """The component of a cell.

        Raises:
            InterpError: there is not one index per axis, or an index is out of range.
        """
        at, axis = self._at(cell), self._numbered
        return Component(int(at["layer"]), self.site, int(at[axis]) if axis else None)

    def label(self, cell: Sequence[int]) -> str:
        """The label of a cell: L17H11, or L17H11 @ last."""
        name, position = str(self.component(cell)), self._at(cell).get("position")
        return name if position is None else f"{name} @ {position}"

    def _at(self, cell: Sequence[int]) -> dict[str, str]:
        """The label of a cell on each axis."""
        labels = [self.coordinates[axis] for axis in self.axes]
        place = _inside(cell, [len(some) for some in labels])
        return {axis: some[i] for axis, some, i in zip(self.axes, labels, place, strict=True)}

    @reads_arguments
    def top(self, k: int = 10, *, by: str = "value") -> Listing[Ranked]:
        """The k strongest cells, in the ranking `by` (see `strength`).

        Raises:
            InterpError: there is no such ranking.
        """
        k = checked(Count, k, "the strongest cells")
        order = np.argsort(-self.strength(by).ravel(), kind="stable")[:k]
        cells = np.stack(np.unravel_index(order, self.values.shape), -1).tolist()
        ranked = [
            Ranked(
                label=self.label(cell),
                component=self.component(cell),
                position=self._at(cell).get("position"),
                value=float(self.values[*cell]),
                stderr=float(self.stderr[*cell]),
                rank=rank,
                of=self.values.size,
            )
            for rank, cell in enumerate(cells, 1)
        ]
        return Listing(ranked, f"effect ({self.unit_words})")

    @reads_arguments
    def strength(self, by: str = "value") -> np.ndarray:
        """(*axes) the numbers that a ranking sorts cells by.

        Args:
            by: "value" or "signed" (the value), "absolute" (its absolute value), or "mean_absolute"
                (the mean over prompts of the absolute effect, which also finds components that help
                on some prompts and hinder on others).

        Raises:
            InterpError: there is no such ranking.
        """
        if by == "mean_absolute":
            return np.abs(self.effects).mean(0) / abs(self._gaps.mean())
        return oriented(self.values, by)

    @reads_arguments
    def null(
        self,
        k: int = 10,
        *,
        by: str = "value",
        band: int = 0,
        groups: Sequence[Hashable] | None = None,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> SelectionTest:
        """Test whether the k strongest cells are stronger than the strongest of noise.

        The signs of prompts are flipped, all cells of a prompt together, and the k strongest cells
        are selected again for every flip (see `interp.core.nulls.FlipTest`). For strongly skewed
        noise, p is too often small, at any number of prompts; the result warns if the effects of
        the selected cells are skewed. The size of the effect is measured on one half of the
        prompts, for cells selected on the other half, and compared with random cells.

        Args:
            k: number of cells.
            by: the ranking, as in `top`. "mean_absolute" is refused, because sign flips do not
                change it.
            band: random cells are at most this many layers away, of the same kind and position.
            groups: one label per prompt. Prompts with the same label, e.g. those built from one
                text, are flipped together, stay in one half, and count as one in the interval. n
                then counts groups.
            draws: number of sign flips, if there are more possible ones, and of sets of random
                cells.
            seed: seed of the flips, the halves and the random cells.

        Raises:
            InterpError: there are fewer than four prompts or groups, k is out of range, or the
                ranking is unknown or has no signs.
        """
        gaps, size = self._gaps, self.values.size
        k, draws = (checked(Index, one, f"a null for the top {k}") for one in (k, draws))
        effects, numbers = self._testable(f"a null for the top {k}", by, groups)
        if not 1 <= k <= size:
            raise InterpError(
                f"a null for the top {k}", f"{size} cells", "choose a k between 1 and their number"
            )
        cells = np.indices(self.values.shape).reshape(len(self.axes), -1)
        where = dict(zip(self.axes, cells, strict=True))
        return selection_test(
            effects,
            gaps,
            k=k,
            by=by,
            groups=None if groups is None else numbers,
            places=[where.get(name, np.zeros(size)) for name in ("layer", "position")],
            band=band,
            draws=draws,
            seed=seed,
        )

    @reads_arguments
    def p_values(
        self,
        *,
        by: str = "value",
        groups: Sequence[Hashable] | None = None,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> np.ndarray:
        """(*axes) p of each cell by itself, corrected for the number of cells.

        The share of sign flips of whole prompts in which the strongest of all cells is at least as
        strong as this one is in the data (single-step max-T of Westfall and Young 1993). At a level
        of 0.05, 5 % of the tables without any effect name a cell. Noise is assumed to be symmetric
        about 0. by is "value" (one-sided) or "absolute"; the other arguments, and what is refused,
        are those of `null`.
        """
        effects, numbers = self._testable("p of each cell", by, groups)
        shares = effects / self._gaps.mean()
        _, p = flip_maxima(shares, by=by, groups=numbers, draws=draws, seed=seed)
        return p.reshape(self.values.shape)

    def _testable(
        self, asked: str, by: str, groups: Sequence[Hashable] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(prompts, cells) effects and the numbers of the prompts' groups, for sign flips."""
        labels = range(self.n) if groups is None else listed(groups)
        numbers = group_numbers(labels, self.n)
        independent = int(numbers.max()) + 1
        if independent < 4:
            raise InterpError(
                asked, f"{independent} independent prompts", "use at least four prompts"
            )
        if by == "mean_absolute":
            raise InterpError(
                f"{asked} in the ranking 'mean_absolute'",
                "flipping signs does not change this ranking",
                "rank by 'value' or 'absolute'",
            )
        return self.effects.reshape(self.n, -1), numbers

    @reads_arguments
    def agreement(self, other: Scores, *, k: int = 10) -> dict[str, float]:
        """Pearson and Spearman correlation, largest difference, and Jaccard overlap of the top k.

        Raises:
            InterpError: the two do not score the same components, or not in one unit.
        """
        here, there = ((one.axes, dict(one.coordinates), one.unit) for one in (self, other))
        if here != there:
            raise InterpError(
                "agreement of two Scores",
                f"{self!r} and {other!r} have different axes, labels or units",
                "score the same components with both methods, in one unit",
            )
        from scipy.stats import rankdata

        k = checked(Count, k, "the strongest cells")
        left, right = self.values.ravel(), other.values.ravel()
        tops = [set(np.argsort(-np.abs(v), kind="stable")[:k].tolist()) for v in (left, right)]
        return {
            "pearson": float(np.corrcoef(left, right)[0, 1]),
            "spearman": float(np.corrcoef(rankdata(left), rankdata(right))[0, 1]),
            "max_abs_diff": float(np.abs(left - right).max()),
            f"top_{k}_jaccard": len(tops[0] & tops[1]) / len(tops[0] | tops[1]),
        }

    def to_dataframe(self) -> Any:
        """A DataFrame with one row per cell: axes, component, value, stderr and interval."""
        import pandas as pd

        low, high = self.interval()
        numbers = {"value": self.values, "stderr": self.stderr, "low": low, "high": high}
        rows = [
            {"component": str(self.component(cell)), **self._at(cell)}
            | {name: some[cell] for name, some in numbers.items()}
            | {"n": self.n}
            for cell in np.ndindex(self.values.shape)
        ]
        return pd.DataFrame(rows)

    @reads_arguments
    def grid(self, position: str | None = None) -> tuple[np.ndarray, np.ndarray, str, str]:
        """Values and standard errors as (rows, columns), and the names of the two axes.

        Layers are rows. If there are three axes, `position` chooses one position; None takes, for
        each component, the position with the largest absolute value.

        Raises:
            InterpError: there is no such position, or no choice between positions.
        """
        both, axes = [self.values, self.stderr], list(self.axes)
        known = self.coordinates["position"] if len(axes) == 3 else ()
        if position is not None and position not in known:
            raise unknown("position to choose", position, known)
        if len(axes) == 3:
            axis = axes.index("position")
            best = np.abs(self.values).argmax(axis, keepdims=True)
            if position is not None:
                best = np.full_like(best, known.index(position))
            both = [np.take_along_axis(v, best, axis).squeeze(axis) for v in both]
            axes.pop(axis)
        if len(axes) == 1:
            both, axes = [v[:, None] for v in both], [*axes, ""]
        return both[0], both[1], axes[0], axes[1]

    @reads_arguments
    def plot(
        self,
        *,
        position: str | None = None,
        selected: tuple[int, int] | None = None,
        limit: float | None = None,
        errors: bool = True,
    ) -> Any:
        """A Plotly heat map centred on zero: layers upwards; heads, neurons or positions across.

        `position` is as in `grid`, `selected` the (row, column) of a cell to frame, and `limit` the
        value of the strongest colour, above 0; None takes the largest. Hover shows standard errors,
        unless `errors` is False.

        Raises:
            InterpError: the position or cell does not exist, or the limit is not above 0.
        """
        values, stderr, rows, columns = self.grid(position)
        checked(Positive | None, limit, "the limit of a heat map")
        if selected is not None:
            _inside(selected, values.shape)
        layers, across = self.coordinates[rows], self.coordinates.get(columns, (self.site,))
        short = [f"{MARKS[columns]}{one}" if columns in MARKS else f" @ {one}" for one in across]
        texts = self.extra.get("tokens", ()) if columns == "position" else ()
        named = [f"{i} {visible(text)}" for i, text in enumerate(texts)]
        figure = heat_map(
            values,
            x=named or across,
            y=layers,
            x_title=columns.replace("kv_", "key/value ") or self.site,
            y_title=rows,
            colour_title=f"effect ({self.unit_words})",
            stderr=stderr if errors else None,
            selected=selected,
            limit=limit,
            names=[[f"L{layer}{one}" for one in short] for layer in layers] if columns else None,
        )
        if named:
            axis = cell_axis("token, clean/corrupted", named, most=60)
            figure.update_xaxes(axis, tickangle=-40, automargin=True)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """All contents as plain numbers and texts, for JSON."""
        arrays = ("values", "stderr", "effects", "clean", "corrupted")
        facts = {name: value for name, value in asdict(self).items() if name not in arrays}
        return facts | {"n": self.n} | {name: getattr(self, name).tolist() for name in arrays}

    @property
    def hash(self) -> str:
        """Hash of the effects, the summary and the origin."""
        return content_key([repr(self), self.effects.tobytes().hex(), asdict(self.provenance)])


def _inside(cell: Sequence[int], sizes: Sequence[int]) -> list[int]:
    asked = f"the cell {cell!r:.60}"
    given = [checked(Index, i, asked) for i in listed(cell, asked=asked)]
    inside = all(0 <= i < size for i, size in zip(given, sizes, strict=False))
    if len(given) != len(sizes) or not inside:
        raise InterpError(asked, f"axes of sizes {[*sizes]}", "give one index, from 0, for each")
    return given
