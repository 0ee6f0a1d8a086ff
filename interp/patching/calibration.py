"""How well an estimate of a sweep's effects agrees with the exact effects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.schema import Count, checked
from interp.results.scores import Scores

NEAR_ONE = 1 - 1e-9
"""The largest correlation whose arctanh is taken."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """An estimate against the exact effects of the same cells on the same prompts.

    Attributes:
        correlation: Pearson correlation over cells.
        correlation_interval: 95 % interval of the correlation over many such prompts, by a
            jackknife of its arctanh. Noise lowers the correlation of few prompts. The interval
            corrects for this, so it can lie above `correlation`. From -1 to 1 for one prompt.
        slope: least-squares slope of the estimate on the exact effect, with an intercept. Below 1
            the estimate is too small.
        slope_interval: its 95 % interval, by the same jackknife; infinite for one
            prompt.
        missed: labels of the cells among the exact top k, by absolute value, that are not among
            the estimate's top k.
        k: the k of `missed`.
        n: number of prompts.
        cells: number of cells.
    """

    correlation: float
    correlation_interval: tuple[float, float]
    slope: float
    slope_interval: tuple[float, float]
    missed: tuple[str, ...]
    k: int
    n: int
    cells: int


@reads_arguments
def calibrate(estimate: Scores, exact: Scores, *, k: int = 10) -> Calibration:
    """Compare `attribution_patching` with `activation_patching` of the same cells.

        slope = cov(estimate, exact) / var(exact)     over cells

    Args:
        estimate: the estimated effects.
        exact: the exact effects. If it has more prompts than the estimate, the first are used.
        k: how many of the strongest cells are compared.

    Raises:
        InterpError: they do not score the same cells in one unit, the estimate has other prompts,
            or the exact effects do not vary over cells.
    """
    k, n = checked(Count, k, "the strongest cells"), estimate.n
    if n > exact.n or not np.allclose(exact.clean[:n], estimate.clean, rtol=1e-3, atol=1e-3):
        found = f"{n} and {exact.n} prompts, with other metrics"
        raise InterpError("comparing an estimate", found, "give both the same prompts, in order")
    exact.agreement(estimate, k=k)  # refuses other cells and units
    left, right = (one.effects[:n].reshape(n, -1) for one in (exact, estimate))
    weights = np.concatenate([np.ones((1, n)) / n, (1 - np.eye(n)) / max(n - 1, 1)])
    means = [weights @ part for part in (left, right)]
    x, y = (part - part.mean(1, keepdims=True) for part in means)
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = (x * y).sum(1) / (x * x).sum(1)
        correlations = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    if not np.isfinite([slopes[0], correlations[0]]).all():
        raise InterpError("comparing an estimate", "effects that do not vary", "use other cells")
    tops = [np.argsort(-np.abs(part[0]), kind="stable")[:k] for part in means]
    cells = [np.unravel_index(cell, exact.values.shape) for cell in tops[0] if cell not in tops[1]]
    ends = _jackknife(np.arctanh(correlations.clip(-NEAR_ONE, NEAR_ONE)))
    ends = (float(np.tanh(ends[0])), float(np.tanh(ends[1])))
    return Calibration(
        correlation=float(correlations[0]),
        correlation_interval=ends,
        slope=float(slopes[0]),
        slope_interval=_jackknife(slopes),
        missed=tuple(exact.label([int(i) for i in cell]) for cell in cells),
        k=k,
        n=n,
        cells=left.shape[1],
    )


def _jackknife(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a statistic: (1 + n,) of all n prompts, then without each of them.

    With m the mean of those without one, it is n v - (n - 1) m, which corrects the bias of order
    1 / n, +- t sqrt((n - 1) / n sum (v_i - m)^2), with Student's t of n - 1 degrees of freedom.
    """
    from scipy import stats

    value, without = values[0], values[1:]
    n, mean = len(without), without.mean()
    if n < 2 or not np.isfinite(values).all():
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((without - mean) ** 2).sum())
    centre = n * value - (n - 1) * mean
    return float(centre - half), float(centre + half)
