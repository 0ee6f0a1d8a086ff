"""Means, ratios and shares with 95 % intervals, and bootstrap weights."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.schema import Confidence, checked


def widened(logits: Tensor) -> Tensor:
    """Logits in float32 or wider."""
    return logits if logits.dtype == torch.float64 else logits.float()


FEW = 5
"""Fewer prompts than these are said to be few."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean or a share, with its 95 % interval and the number of prompts behind it.

    Of fewer than `FEW` prompts the text says that they are few. Of normal effects the interval then
    still covers 95 %; of skewed ones it covers less, until there are about 16 (exponential) or
    more (log-normal): see `experiments/calibration.py`.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        few = " (few)" if self.n < FEW else ""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}{few}"


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Of the mean over the first axis; nan for a single sample."""
    if len(samples) < 2:
        return np.full(samples.shape[1:], math.nan)
    return samples.std(0, ddof=1) / math.sqrt(len(samples))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole, nan where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return part / whole


def skewness_of(samples: np.ndarray) -> np.ndarray:
    """mean((x - mean)^3) / sd^3 over the first axis; 0 where all are the same."""
    rest = samples - samples.mean(0)
    return np.nan_to_num(ratio((rest**3).mean(0), rest.std(0) ** 3), posinf=0, neginf=0)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """mean(part) / mean(whole) of every cell, with its standard error and interval: (*cells)."""

    values: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray


def ratio_of_means(
    part: np.ndarray,
    whole: np.ndarray | None = None,
    *,
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Ratio:
    """mean(part) / mean(whole) over prompts, and its interval, used for every mean and every ratio.

        stderr = sd(r) / (sqrt(n) |mean(whole)|),   r_i = part_i - value whole_i
        interval = value - stderr T(+-t),           T(x) = 3 (cbrt(1 + k (x - k / 6)) - 1) / k,
        k = skewness(r) / sqrt(n), at most 0.3 either way

    by the delta method, with t of Student's distribution with n - 1 degrees of freedom. T is Hall's
    (1992) correction for skewed effects; without skew it is x. The bound on k keeps a single prompt
    unlike all others from deciding. Coverage is measured by `experiments/calibration.py`. The
    interval of a single prompt is infinite.

    Args:
        part: (n, *cells).
        whole: (n,) what it is a part of; None for the mean of `part`.
        level: how much the interval is to cover.
        groups: one label per prompt; prompts of one label, such as those built on one text, are
            summed and count as one. None: each prompt on its own.
    """
    from scipy import stats

    level = checked(Confidence, level, "the level of an interval")
    part = np.asarray(part, dtype=float)
    whole = np.ones(len(part)) if whole is None else np.asarray(whole, dtype=float)
    if groups is not None:
        part, whole = (summed(rows, groups) for rows in (part, whole))
    n = len(part)
    gap = whole.mean() if n else math.nan
    values = part.mean(0) / gap if n else np.full(part.shape[1:], math.nan)
    if n < 2:
        stderr = np.full(values.shape, math.nan)
        ends = (np.full(values.shape, sign * math.inf) for sign in (-1, 1))
        return Ratio(values=values, stderr=stderr, low=next(ends), high=next(ends))
    rest = part - values * whole.reshape(-1, *[1] * values.ndim)
    spread = rest.std(0, ddof=1)
    stderr = spread / (abs(gap) * math.sqrt(n))
    k = np.clip(skewness_of(rest) * np.sign(gap) / math.sqrt(n), -0.3, 0.3)

    def corrected(x: float) -> np.ndarray:
        bent = np.abs(k) > 1e-6
        safe = np.where(bent, k, 1.0)
        return np.where(bent, 3 * (np.cbrt(1 + safe * (x - safe / 6)) - 1) / safe, x)

    t = float(stats.t.ppf((1 + level) / 2, n - 1))
    return Ratio(
        values=values,
        stderr=stderr,
        low=values - corrected(t) * stderr,
        high=values - corrected(-t) * stderr,
    )


def summed(rows: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """(groups, *cells) sums of the rows of each label, in the order labels first appear.

    Raises:
        InterpError: not one label per row.
    """
    numbers = group_numbers(groups, len(rows))
    total = np.zeros((int(numbers.max()) + 1, *rows.shape[1:]))
    np.add.at(total, numbers, rows)
    return total


def group_numbers(groups: Sequence[Hashable], n: int) -> np.ndarray:
    """(n,) labels numbered from 0 in the order they first appear.

    Raises:
        InterpError: not one label per row, or labels such as lists, which have no hash.
    """
    if len(groups) != n:
        raise InterpError(f"{len(groups)} groups", f"{n} rows", "give one label per row")
    try:
        number = {label: i for i, label in enumerate(dict.fromkeys(groups))}
    except TypeError as error:
        raise InterpError("groups", str(error), "give texts or numbers as labels") from error
    return np.array([number[label] for label in groups])


def bootstrap_weights(
    n: int, draws: int, *, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> np.ndarray:
    """(draws, n) how often each of n rows is drawn, with replacement; rows of a label together."""
    numbers = np.arange(n) if groups is None else group_numbers(groups, n)
    count = int(numbers.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, numbers]


def range_of_draws(draws: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of random draws: the range that holds 95 % of them."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def mean_estimate(values: Tensor | np.ndarray) -> Estimate:
    """Mean with the interval of `ratio_of_means`; it is infinite for a single value."""
    return ratio_estimate(values, np.ones(len(values)))


def ratio_estimate(gained: Tensor | np.ndarray, gaps: Tensor | np.ndarray) -> Estimate:
    """mean(gained) / mean(gaps) over prompts, with the interval of `ratio_of_means`."""
    part, whole = (torch.as_tensor(x).detach().double().cpu().numpy() for x in (gained, gaps))
    found = ratio_of_means(part, whole)
    low, high = float(found.low), float(found.high)
    return Estimate(mean=float(found.values), low=low, high=high, n=len(part))


def share_estimate(hits: int, n: int) -> Estimate:
    """A share with Wilson's score interval; of nothing, it is nan and could be anything."""
    from scipy import stats

    if n == 0:
        return Estimate(mean=math.nan, low=0.0, high=1.0, n=0)
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(mean=hits / n, low=float(interval.low), high=float(interval.high), n=n)
