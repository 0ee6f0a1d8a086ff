"""`Scores`: how much each component matters, with everything needed to judge the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from interp.components import MARKS, Component
from interp.errors import InterpError, unknown
from interp.figures import heat_map
from interp.files import content_key
from interp.metrics import Estimate
from interp.nulls import Null, null_of
from interp.records import Record


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number comes from."""

    model: str
    model_hash: str
    dtype: str
    task: str
    task_hash: str
    seed: int | None
    versions: Mapping[str, str]
    commit: str | None
    call: str


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


@dataclass(frozen=True, kw_only=True)
class Scores(Record):
    """Effects of components on a task, as fractions of the clean-corrupted gap.

    effect = mean over prompts of (metric gained) / mean over prompts of (clean - corrupted),
    where the metric gained is patched - corrupted (denoise) or clean - patched (noise): positive
    supports the behaviour, 1 is the whole gap, in both directions. It is a ratio of means, so that
    a prompt with a small gap cannot blow it up; `stderr` is the delta method's.

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
        return self.effects.mean(0) / self.gap

    @cached_property
    def stderr(self) -> np.ndarray:
        """(*axes) standard error of `values` by the delta method; nan for one prompt."""
        if self.n < 2:
            return np.full(self.values.shape, math.nan)
        gaps = (self.clean - self.corrupted).reshape(-1, *[1] * len(self.axes))
        residual = self.effects - self.values * gaps
        return residual.std(0, ddof=1) / (abs(self.gap) * math.sqrt(self.n))

    def interval(
        self, *, level: float = 0.95, draws: int = 2000, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bootstrap interval over prompts: (low, high), each of shape (*axes).

        Prompts are drawn with replacement; effects and gaps of one draw stay together. One prompt
        says nothing about others: its interval is infinite.
        """
        if self.n < 2:
            return np.full(self.values.shape, -math.inf), np.full(self.values.shape, math.inf)
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(self.n, np.full(self.n, 1 / self.n), size=draws) / self.n
        gaps = weights @ (self.clean - self.corrupted)
        flat = self.effects.reshape(self.n, -1)
        ends = np.empty((2, flat.shape[1]))
        step = max(1, 20_000_000 // draws)
        for begin in range(0, flat.shape[1], step):
            part = slice(begin, begin + step)
            drawn = (weights @ flat[:, part]) / gaps[:, None]
            ends[:, part] = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        low, high = ends.reshape(2, *self.values.shape)
        return low, high

    def index(self, label: str, position: str | None = None) -> tuple[int, ...]:
        """The cell of a component such as L17H11 (and a position, where there is that axis).

        Raises:
            InterpError: the component or position is not in these scores.
        """
        part = Component.parse(label)
        wanted = {"layer": str(part.layer), "position": position}
        wanted[self._unit_axis or ""] = str(part.index)
        try:
            return tuple(self.coordinates[axis].index(wanted[axis] or "") for axis in self.axes)
        except ValueError:
            raise InterpError(
                f"the score of {label} at {position}", f"not in {self!r}", "look at .coordinates"
            ) from None

    def estimate(self, label: str, position: str | None = None) -> Estimate:
        """One component's effect with its bootstrap interval."""
        cell = self.index(label, position)
        low, high = self.interval()
        return Estimate(
            mean=float(self.values[cell]), low=float(low[cell]), high=float(high[cell]), n=self.n
        )

    @property
    def _unit_axis(self) -> str | None:
        return next((axis for axis in self.axes if axis in ("head", "kv_head", "neuron")), None)

    def component(self, cell: Sequence[int]) -> Component:
        """The component of a cell."""
        at = {axis: self.coordinates[axis][i] for axis, i in zip(self.axes, cell, strict=True)}
        unit = self._unit_axis
        index = int(at[unit]) if unit else None
        return Component(int(at["layer"]), self.site, index)

    def label(self, cell: Sequence[int]) -> str:
        """A cell in words: L17H11, or L17H11 @ last."""
        name = str(self.component(cell))
        if "position" in self.axes:
            name += f" @ {self.coordinates['position'][cell[self.axes.index('position')]]}"
        return name

    def top(self, k: int = 10, *, by: str = "value") -> list[Ranked]:
        """The k strongest cells.

        Args:
            k: how many.
            by: see `strength`.

        Raises:
            InterpError: an unknown ranking.
        """
        flat = self.values.ravel()
        order = np.argsort(-self.strength(by).ravel(), kind="stable")[:k]
        ranked = []
        for rank, place in enumerate(order.tolist(), 1):
            cell = np.unravel_index(place, self.values.shape)
            position = None
            if "position" in self.axes:
                position = self.coordinates["position"][int(cell[self.axes.index("position")])]
            ranked.append(
                Ranked(
                    label=self.label([int(i) for i in cell]),
                    component=self.component([int(i) for i in cell]),
                    position=position,
                    value=float(flat[place]),
                    stderr=float(self.stderr.ravel()[place]),
                    rank=rank,
                    of=flat.size,
                )
            )
        return ranked

    def strength(self, by: str = "value") -> np.ndarray:
        """(*axes) what cells are ranked by.

        Args:
            by: "value" or "signed" (the value), "absolute" (its size), or "mean_absolute": the mean
                over prompts of the effect's size, which sees what helps here and hinders there.

        Raises:
            InterpError: an unknown ranking.
        """
        if by in ("value", "signed"):
            return self.values
        if by == "absolute":
            return np.abs(self.values)
        if by == "mean_absolute":
            return np.abs(self.effects).mean(0) / abs(self.gap)
        raise unknown("ranking", by, ("value", "signed", "absolute", "mean_absolute"))

    def null(self, k: int = 10, *, draws: int = 10_000, band: int = 0, seed: int = 0) -> Null:
        """The strongest k cells of one half of the prompts, scored on the other half.

        Each is compared with a random cell that was not selected, of the same kind (and position,
        where there is that axis) and at most `band` layers away. Selecting and scoring on separate
        halves keeps p honest: on noise it is uniform.

        Raises:
            InterpError: fewer than four prompts, k out of range, or nothing left to compare with.
        """
        size = self.values.size
        if self.n < 4 or not 1 <= k < size:
            raise InterpError(
                f"a null for the top {k}",
                f"{self.n} prompts and {size} cells",
                "use at least four prompts and a k between 1 and the number of cells",
            )
        rng = np.random.default_rng(seed)
        order = rng.permutation(self.n)
        find, score = order[: self.n // 2], order[self.n // 2 :]
        cells = np.indices(self.values.shape).reshape(len(self.axes), -1).T
        effects = self.effects.reshape(self.n, -1)
        chosen = np.argsort(-effects[find].mean(0), kind="stable")[:k]
        unseen = effects[score].mean(0) / (self.clean - self.corrupted)[score].mean()
        free = np.ones(size, dtype=bool)
        free[chosen] = False
        layer_axis = self.axes.index("layer")
        total = np.zeros(draws)
        for place in chosen:
            near = free & (np.abs(cells[:, layer_axis] - cells[place, layer_axis]) <= band)
            if "position" in self.axes:
                axis = self.axes.index("position")
                near &= cells[:, axis] == cells[place, axis]
            if not near.any():
                raise InterpError(
                    f"a null for the top {k}",
                    f"nothing else within {band} layers of {self.label(cells[place].tolist())}",
                    "widen band or choose a smaller k",
                )
            total += rng.choice(unseen[near], size=draws)
        return null_of(float(unseen[chosen].mean()), total / k)

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

        left, right = self.values.ravel(), other.values.ravel()
        tops = [set(np.argsort(-np.abs(v), kind="stable")[:k].tolist()) for v in (left, right)]
        return {
            "pearson": float(np.corrcoef(left, right)[0, 1]),
            "spearman": float(np.corrcoef(rankdata(left), rankdata(right))[0, 1]),
            "max_abs_diff": float(np.abs(left - right).max()),
            f"top_{k}_jaccard": len(tops[0] & tops[1]) / len(tops[0] | tops[1]),
        }

    def to_dataframe(self) -> Any:
        """One row per cell: its axes, component, value, stderr and bootstrap interval."""
        import pandas as pd

        low, high = self.interval()
        rows = []
        for cell in np.ndindex(self.values.shape):
            rows.append(
                {
                    "component": str(self.component(cell)),
                    **{a: self.coordinates[a][i] for a, i in zip(self.axes, cell, strict=True)},
                    "value": self.values[cell],
                    "stderr": self.stderr[cell],
                    "low": low[cell],
                    "high": high[cell],
                    "n": self.n,
                }
            )
        return pd.DataFrame(rows)

    def grid(self, position: str | None = None) -> tuple[np.ndarray, np.ndarray, str, str]:
        """Values and standard errors as (rows, columns), and the names of the two axes.

        Layers are rows. With three axes `position` chooses the slice; None takes the position
        with the largest absolute value of each component. Neurons are shown as they are.
        """
        values, errors, axes = self.values, self.stderr, list(self.axes)
        if len(axes) == 3:
            axis = axes.index("position")
            if position is None:
                best = np.abs(values).argmax(axis, keepdims=True)
                values, errors = (
                    np.take_along_axis(v, best, axis).squeeze(axis) for v in (values, errors)
                )
            else:
                place = self.coordinates["position"].index(position)
                values, errors = (v.take(place, axis) for v in (values, errors))
            axes.pop(axis)
        if len(axes) == 1:
            return values[:, None], errors[:, None], axes[0], ""
        return values, errors, axes[0], axes[1]

    def plot(
        self,
        *,
        position: str | None = None,
        selected: tuple[int, int] | None = None,
        limit: float | None = None,
    ) -> Any:
        """A Plotly heat map: layers up, heads (neurons, positions) across, centred on zero."""
        values, errors, rows, columns = self.grid(position)
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


def _short(axis: str, label: str) -> str:
    return f"{MARKS[axis]}{label}" if axis in MARKS else f" @ {label}"


__all__ = ["Null", "Provenance", "Ranked", "Scores"]
