"""`Scores`: how much each component matters, with everything needed to judge the numbers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from interp.core.arguments import listed, reads_arguments
from interp.core.components import MARKS, Component
from interp.core.errors import InterpError, unknown
from interp.core.files import content_key
from interp.core.nulls import DRAWS, SelectionTest, oriented, selection_test
from interp.core.records import Provenance, Record
from interp.core.schema import Count, Index, Positive, checked
from interp.core.statistics import Estimate, Ratio, ratio_estimate, ratio_of_means
from interp.plots.heatmaps import heat_map


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One component of a ranking."""

    label: str
    component: Component
    position: str | None
    value: float
    stderr: float
    rank: int
    of: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores(Record):
    """Effects of components on a task, as fractions of the clean-corrupted gap.

    effect = mean over prompts of (metric gained) / mean over prompts of (clean - corrupted),
    where the metric gained is patched - corrupted (denoise) or clean - patched (noise): positive
    supports the behaviour, 1 is the whole gap, in both directions. It is a ratio of means, so one
    prompt with a small gap cannot dominate; `stderr` and `interval` are those of
    `interp.core.statistics.ratio_of_means`. Two are equal only where they are one object; `hash`
    and `agreement` compare what they hold.

    Every number is finite, and there is at least one prompt. Where the mean gap is 0, nothing is a
    fraction of it: all that is measured in gaps is refused; `effects` can still be read.

    Attributes:
        effects: (n, *axes) metric gained per prompt, in the metric's unit.
        clean: (n,) metric of the clean runs.
        corrupted: (n,) metric of the corrupted runs.
        axes: names of the axes, among layer, head, kv_head, neuron, position.
        coordinates: for each axis its labels.
        site: what was patched.
        direction: "denoise" or "noise".
        method: the method's name.
        metric: the metric's name.
        metric_unit: its unit.
        positions: which positions were patched, in words.
        provenance: where the number comes from.
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

    def __post_init__(self) -> None:
        shape = tuple(len(self.coordinates[axis]) for axis in self.axes)
        if self.effects.shape != (len(self.clean), *shape):
            raise InterpError(
                "a Scores",
                f"effects of shape {self.effects.shape}, n={len(self.clean)}, axes of {shape}",
                "give (n, *axes)",
            )
        odd = [
            x for x in ("effects", "clean", "corrupted") if not np.isfinite(getattr(self, x)).all()
        ]
        if not self.n or odd:
            found = f"{self.n} prompts, not finite: {', '.join(odd) or 'none'}"
            raise InterpError("a Scores", found, "give one prompt or more, and finite numbers")

    def __repr__(self) -> str:
        size = " x ".join(f"{len(self.coordinates[axis])} {axis}s" for axis in self.axes)
        return (
            f"Scores({self.method}, {self.site}, {self.direction}, {size}, n={self.n}, "
            f"{self.metric} clean {self.clean.mean():.3f}, corrupted {self.corrupted.mean():.3f})"
        )

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.clean)

    @property
    def gap(self) -> float:
        """Mean clean minus mean corrupted metric."""
        return float((self.clean - self.corrupted).mean())

    @cached_property
    def values(self) -> np.ndarray:
        """(*axes) effects as fractions of the gap."""
        return self._ratio().values

    @cached_property
    def stderr(self) -> np.ndarray:
        """(*axes) standard error of `values` by the delta method; nan for one prompt."""
        return self._ratio().stderr

    @reads_arguments
    def interval(
        self, *, level: float = 0.95, groups: Sequence[Hashable] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The interval over prompts: (low, high), each (*axes).

        See `interp.core.statistics.ratio_of_means`.

        Args:
            level: how much it is to cover.
            groups: one label per prompt; prompts of one label count as one.
        """
        found = self._ratio(level=level, groups=None if groups is None else listed(groups))
        return found.low, found.high

    def _ratio(self, **options: Any) -> Ratio:
        return ratio_of_means(self.effects, self._gaps, **options)

    @property
    def _gaps(self) -> np.ndarray:
        """(n,) clean - corrupted.

        Raises:
            InterpError: their mean is 0.
        """
        gaps = self.clean - self.corrupted
        if gaps.mean() == 0:
            raise InterpError(
                f"fractions of the gap of {self!r}",
                "the clean and the corrupted prompts have the same mean metric",
                "use prompts that differ in the metric, or read .effects, in its unit",
            )
        return gaps

    @reads_arguments
    def index(self, label: str, position: str | None = None) -> tuple[int, ...]:
        """The cell of a component such as L17H11, and a position where there is that axis.

        Raises:
            InterpError: the component or position is not in these scores, or a position is missing
                or given without need.
        """
        part = Component.parse(label)
        fits = part.site == self.site and (part.index is None) == (self._unit_axis is None)
        wanted = {"layer": str(part.layer), "position": position}
        wanted[self._unit_axis or ""] = str(part.index)
        try:
            if not fits or (position is None) == ("position" in self.axes):
                raise ValueError
            return tuple(self.coordinates[axis].index(wanted[axis] or "") for axis in self.axes)
        except ValueError:
            raise InterpError(
                f"the score of {label}" + (f" at {position!r}" if position is not None else ""),
                f"not in {self!r}",
                f"ask for one such as {self.label([0] * len(self.axes))}; see .coordinates",
            ) from None

    @reads_arguments
    def estimate(self, label: str, position: str | None = None) -> Estimate:
        """One component's effect with its interval."""
        gained = self.effects[:, *self.index(label, position)]
        return ratio_estimate(gained, self._gaps)

    @property
    def _unit_axis(self) -> str | None:
        return next((axis for axis in self.axes if axis in ("head", "kv_head", "neuron")), None)

    def component(self, cell: Sequence[int]) -> Component:
        """The component of a cell.

        Raises:
            InterpError: not one number for each axis, or a cell outside.
        """
        at, unit = self._at(cell), self._unit_axis
        return Component(int(at["layer"]), self.site, int(at[unit]) if unit else None)

    def label(self, cell: Sequence[int]) -> str:
        """A cell in words: L17H11, or L17H11 @ last."""
        name, position = str(self.component(cell)), self._at(cell).get("position")
        return name if position is None else f"{name} @ {position}"

    def _at(self, cell: Sequence[int]) -> dict[str, str]:
        """A cell's label on each axis."""
        labels = [self.coordinates[axis] for axis in self.axes]
        place = _inside(cell, [len(some) for some in labels])
        return {axis: some[i] for axis, some, i in zip(self.axes, labels, place, strict=True)}

    @reads_arguments
    def top(self, k: int = 10, *, by: str = "value") -> list[Ranked]:
        """The k strongest cells.

        Args:
            k: how many.
            by: see `strength`.

        Raises:
            InterpError: an unknown ranking.
        """
        flat, k = self.values.ravel(), checked(Count, k, "the strongest cells")
        order = np.argsort(-self.strength(by).ravel(), kind="stable")[:k]
        ranked = []
        for rank, place in enumerate(order.tolist(), 1):
            cell = [int(i) for i in np.unravel_index(place, self.values.shape)]
            ranked.append(
                Ranked(
                    label=self.label(cell),
                    component=self.component(cell),
                    position=self._at(cell).get("position"),
                    value=float(flat[place]),
                    stderr=float(self.stderr.ravel()[place]),
                    rank=rank,
                    of=flat.size,
                )
            )
        return ranked

    @reads_arguments
    def strength(self, by: str = "value") -> np.ndarray:
        """(*axes) what cells are ranked by.

        Args:
            by: "value" or "signed" (the value), "absolute" (its size), or "mean_absolute": the mean
                over prompts of the effect's size, which sees what helps here and hinders there.

        Raises:
            InterpError: an unknown ranking.
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
        """Are the k strongest cells more than the strongest of noise? And how strong are they?

        The signs of whole prompts are flipped, all cells of a prompt together, and the k strongest
        are selected again in every flip: p is uniform on noise symmetric about 0, whatever the
        spreads of the cells and however they hang together, and uses all prompts. On strongly
        skewed noise it is too often small at any number of prompts; the result says so where the
        effects of the selected are. The effect of those selected on one half is told from the
        other half, beside random cells.

        Args:
            k: how many.
            by: the ranking, as in `top`, by the same value: a fraction of the gap, signed by it.
                "mean_absolute" is refused, for it is the same whatever the signs.
            band: random cells are at most so many layers away; of the same kind and position.
            groups: one label per prompt. Prompts of one label, such as those built on one text, are
                flipped together, on one side of the halves and one in the interval; n is of groups.
            draws: sign flips, where all of them are more; and sets of random cells.
            seed: of the flips, the halves and the sets.

        Raises:
            InterpError: fewer than four prompts or groups, k out of range, an unknown ranking or
                one without signs.
        """
        cells = np.indices(self.values.shape).reshape(len(self.axes), -1).T
        layer, position = (
            cells[:, [i for i, axis in enumerate(self.axes) if axis == name]]
            for name in ("layer", "position")
        )

        def near(cell: int) -> np.ndarray:
            close = np.abs(layer - layer[cell]) <= band
            return close.all(1) & (position == position[cell]).all(1)

        return selection_test(
            self.effects.reshape(self.n, -1),
            self._gaps,
            k,
            near,
            by=by,
            band=band,
            groups=None if groups is None else listed(groups),
            draws=draws,
            seed=seed,
        )

    @reads_arguments
    def agreement(self, other: Scores, *, k: int = 10) -> dict[str, float]:
        """Pearson and Spearman correlation, largest difference, and overlap of the top k.

        Raises:
            InterpError: the two do not score the same components.
        """
        if self.axes != other.axes or dict(self.coordinates) != dict(other.coordinates):
            raise InterpError(
                "agreement of two Scores",
                f"{self!r} and {other!r} have other axes or labels",
                "score the same components with both methods",
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
        """One row per cell: its axes, component, value, stderr and interval."""
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

        Layers are rows. With three axes `position` chooses the slice; None takes the position
        with the largest absolute value of each component. Neurons are shown as they are.

        Raises:
            InterpError: a position that is not theirs, or one where there is nothing to choose.
        """
        values, errors, axes = self.values, self.stderr, list(self.axes)
        known = self.coordinates["position"] if len(axes) == 3 else ()
        if position is not None and position not in known:
            raise unknown("position to choose", position, known)
        if len(axes) == 3:
            axis = axes.index("position")
            if position is None:
                best = np.abs(values).argmax(axis, keepdims=True)
                values, errors = (
                    np.take_along_axis(v, best, axis).squeeze(axis) for v in (values, errors)
                )
            else:
                values, errors = (v.take(known.index(position), axis) for v in (values, errors))
            axes.pop(axis)
        if len(axes) == 1:
            return values[:, None], errors[:, None], axes[0], ""
        return values, errors, axes[0], axes[1]

    @reads_arguments
    def plot(
        self,
        *,
        position: str | None = None,
        selected: tuple[int, int] | None = None,
        limit: float | None = None,
    ) -> Any:
        """A Plotly heat map: layers up, heads (neurons, positions) across, centred on zero.

        Args:
            position: as in `grid`.
            selected: the row and column of a cell to frame.
            limit: the value of the strongest colour, above 0; the largest by default.

        Raises:
            InterpError: a position, cell or limit that there is not.
        """
        values, errors, rows, columns = self.grid(position)
        checked(Positive | None, limit, "the limit of a heat map")
        if selected is not None:
            _inside(selected, values.shape)
        return heat_map(
            values,
            x=self.coordinates[columns] if columns else [self.site],
            y=self.coordinates[rows],
            x_title=columns.replace("kv_", "key/value ") or self.site,
            y_title=rows,
            colour_title="effect (fraction of the gap)",
            stderr=errors,
            selected=selected,
            limit=limit,
            names=[
                [f"L{layer}{_short(columns, column)}" for column in self.coordinates[columns]]
                for layer in self.coordinates[rows]
            ]
            if columns
            else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and words, for JSON."""
        facts = self._facts()
        arrays = {"values": self.values, "stderr": self.stderr, "effects": self.effects}
        ends = {"clean": self.clean, "corrupted": self.corrupted}
        return facts | {"n": self.n} | {k: v.tolist() for k, v in (arrays | ends).items()}

    # -- files -----------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """What is not an array."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ("effects", "clean", "corrupted")
        }

    @property
    def hash(self) -> str:
        """Fingerprint of the numbers and what they are."""
        return content_key([repr(self), self.effects.tobytes().hex(), asdict(self.provenance)])


def _inside(cell: Sequence[int], sizes: Sequence[int]) -> list[int]:
    asked = f"the cell {cell!r:.60}"
    given = [checked(Index, i, asked) for i in listed(cell, asked=asked)]
    inside = all(0 <= i < size for i, size in zip(given, sizes, strict=False))
    if len(given) != len(sizes) or not inside:
        raise InterpError(asked, f"axes of sizes {[*sizes]}", "give one index, from 0, for each")
    return given


def _short(axis: str, label: str) -> str:
    return f"{MARKS[axis]}{label}" if axis in MARKS else f" @ {label}"
