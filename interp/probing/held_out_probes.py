"""`HeldOutProbes`: what probes predict on held-out rows, beside their null and beside others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from interp.core.errors import InterpError
from interp.core.nulls import DRAWS, sign_flips
from interp.core.records import Record
from interp.core.schema import Brief
from interp.core.statistics import (
    group_numbers,
    range_of_draws,
    ratio_of_means,
    share_estimate,
    summed,
)
from interp.plots.tables import Tabled

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class ProbeDifference(Brief):
    """How much better one probe predicts the same held-out rows than another.

    Attributes:
        values: (*leading) measure of the first minus measure of the second.
        low, high: (*leading) ends of the 95 % intervals over held-out rows, or groups of them. The
            probes are fixed: noise of the rows that they were fitted to is not in the interval.
        p: (*leading) two-sided p of sign flips of groups, not corrected for the cells tried.
        p_any: p that any cell differs: in every flip the largest standardised cell is taken.
        n, n_groups: number of held-out rows, and of groups of them.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_any: float
    n: int
    n_groups: int

    @property
    def better(self) -> np.ndarray:
        """(*leading) bool: the interval lies above 0, and `p_any` is at most .05."""
        return (self.low > 0) & (self.p_any <= 0.05)


@dataclass(frozen=True, kw_only=True)
class HeldOutProbes(Tabled, Record):
    """Predictions of one probe per leading index, on rows that it was not fitted to.

    Attributes:
        kind: "linear" or "mlp".
        measure: "accuracy" of classes, or "R2" of numbers: 1 - squared error / squared distance
            from the mean of the fitted rows.
        classes: names of the classes, sorted; empty for numbers.
        test: (N,) bool: held-out rows. `truth` and `groups` are (n,) of these rows.
        truth: class numbers, or numbers.
        predicted: (*leading, n).
        values: (*leading) the measure.
        low, high: (*leading) ends of its 95 % intervals. Accuracy: Wilson's, if every row is a
            group, and where all or no rows are right (n is then the number of groups); else, and
            for R2, the interval of `interp.core.statistics.ratio_of_means` over groups.
        baseline: the measure of a constant: the most frequent class of the fitted rows, or their
            mean (R2 = 0).
        centre: the mean of the fitted numbers; 0 for classes.
        shuffled: (shuffles, *leading) the control: the measure of probes fitted to permuted labels,
            on permuted held-out labels. All leading indices share each permutation.
        n_train: number of fitted rows.
        coordinates: the labels of every leading axis, in order.
        settings: options of the fit, including the seed.
        source: what was probed, such as model, model_hash and site.
    """

    FORM: ClassVar[int] = 1

    kind: str
    measure: str
    classes: tuple[str, ...]
    test: np.ndarray
    groups: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    baseline: float
    centre: float
    shuffled: np.ndarray
    n_train: int
    coordinates: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, Any]
    source: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        size = " x ".join(f"{len(v)} {k}s" for k, v in self.coordinates.items()) or "one probe"
        kinds = f"{len(self.classes)} classes" if self.classes else "numbers"
        return (
            f"HeldOutProbes({self.kind}, {kinds}, {size}, n_train={self.n_train}, n_test="
            f"{self.n_test}, best {self.measure} {float(self.values.max()):z.3f}, constant "
            f"{self.baseline:z.3f}, shuffled labels {float(self.shuffled.mean()):z.3f}, "
            f"p = {self.p_any:z.3f})"
        )

    @property
    def n_test(self) -> int:
        return len(self.truth)

    @property
    def p(self) -> np.ndarray:
        """(*leading) share of the permutations, counting none, at least as good as the probe.

        At least 1 / (1 + shuffles). It is not corrected for the cells tried; `p_any` is.
        """
        return (1 + (self.shuffled >= self.values - 1e-12).sum(0)) / (1 + len(self.shuffled))

    @property
    def p_any(self) -> float:
        """The share for the best cell, against the best cell of every permutation."""
        best = self.shuffled.reshape(len(self.shuffled), -1).max(1)
        return float((1 + (best >= self.values.max() - 1e-12).sum()) / (1 + len(best)))

    @property
    def balanced(self) -> np.ndarray:
        """(*leading) the mean of the classes' accuracies.

        Raises:
            InterpError: the probes predict numbers.
        """
        if not self.classes:
            raise InterpError("balanced accuracy", "probes of numbers", "read values, their R2")
        right = self.predicted == self.truth
        each = [right[..., self.truth == k].mean(-1) for k in np.unique(self.truth)]
        return np.mean(each, axis=0)

    def minus(self, other: HeldOutProbes, *, seed: int = 0) -> ProbeDifference:
        """The difference from other probes of the same held-out rows, paired by row.

        The other has the same leading axes, or is one probe, which is compared with every cell.

        Raises:
            InterpError: other rows are held out, or other truths, measures or axes.
        """
        same = self.measure == other.measure and np.array_equal(self.test, other.test)
        if not same or not np.array_equal(self.truth, other.truth):
            found = f"{self.n_test} rows ({self.measure}) and {other.n_test} ({other.measure})"
            do = "fit both to the same labels, and give the second the first one's test"
            raise InterpError("a paired difference of probes", found, do)
        if other.values.shape not in ((), self.values.shape):
            found = f"shapes {self.values.shape} and {other.values.shape}"
            do = "give probes of the same layers, or one probe"
            raise InterpError("a paired difference of probes", found, do)
        groups = self.groups.tolist()
        apart = np.moveaxis(self._gained - other._gained, -1, 0)
        found = ratio_of_means(apart, self._whole, groups=groups)
        sums = summed(apart, groups).reshape(len(np.unique(self.groups)), -1)
        flipped = np.abs(sign_flips(len(sums), DRAWS, seed=seed) @ sums)
        size = np.sqrt((sums**2).sum(0))
        scaled = np.divide(flipped, size, out=np.zeros_like(flipped), where=size > 0)
        best = scaled.max(1)
        return ProbeDifference(
            values=found.values,
            low=found.low,
            high=found.high,
            p=(scaled >= scaled[0] - 1e-9).mean(0).reshape(found.values.shape),
            p_any=float((best >= best[0] - 1e-9).mean()),
            n=self.n_test,
            n_groups=len(sums),
        )

    def to_dataframe(self) -> DataFrame:
        """One row per probe: coordinates, the measure with its interval, and the controls."""
        import pandas as pd

        cells = np.ndindex(*(len(labels) for labels in self.coordinates.values()))
        named = [*self.coordinates.items()]
        table = pd.DataFrame(
            [{name: labels[i] for (name, labels), i in zip(named, at, strict=True)} for at in cells]
        )
        flat = self.shuffled.reshape(len(self.shuffled), -1)
        ranges = np.array([range_of_draws(cell) for cell in flat.T])
        columns = {
            self.measure: self.values.ravel(),
            f"{self.measure}_low": self.low.ravel(),
            f"{self.measure}_high": self.high.ravel(),
            "shuffled": flat.mean(0),
            "shuffled_low": ranges[:, 0],
            "shuffled_high": ranges[:, 1],
            "p": self.p.ravel(),
        }
        for name, column in columns.items():
            table[name] = column
        return table.assign(
            constant=self.baseline,
            n_train=self.n_train,
            n_test=self.n_test,
            n_groups=len(np.unique(self.groups)),
        )

    @property
    def _gained(self) -> np.ndarray:
        """(*leading, n) what each row adds to the measure, times its share in `_whole`."""
        return gained(self.predicted, self.truth, bool(self.classes), self.centre)

    @property
    def _whole(self) -> np.ndarray:
        return whole(self.truth, bool(self.classes), self.centre)


def gained(predicted: np.ndarray, truth: np.ndarray, classes: bool, centre: float) -> np.ndarray:
    """(*leading, n) summands whose sum over that of `whole` is the measure."""
    if classes:
        return (predicted == truth).astype(float)
    return (truth - centre) ** 2 - (truth - predicted) ** 2


def whole(truth: np.ndarray, classes: bool, centre: float) -> np.ndarray:
    """(n,) the summands of the measure's denominator."""
    return np.ones(len(truth)) if classes else (truth - centre) ** 2


def interval(
    parts: np.ndarray, of: np.ndarray, groups: np.ndarray, classes: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ends (*leading) of the intervals of sum(parts) / sum(of); see `HeldOutProbes`."""
    numbers = group_numbers(groups.tolist(), len(groups))
    n_groups = int(numbers.max()) + 1
    found = ratio_of_means(np.moveaxis(parts, -1, 0), of, groups=groups.tolist())
    low, high = np.array(found.low, dtype=float), np.array(found.high, dtype=float)
    if classes:
        for at in np.ndindex(low.shape):
            share = float(parts[at].mean())
            if n_groups == len(parts[at]) or share in (0.0, 1.0):
                wilson = share_estimate(round(share * n_groups), n_groups)
                low[at], high[at] = wilson.low, wilson.high
        low, high = np.asarray(low.clip(0, 1)), np.asarray(high.clip(0, 1))
    return low, high
