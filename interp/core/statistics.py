"""Means, ratios and shares with 95 % intervals, and the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.schema import Confidence, Whole, checked


def widened(logits: Tensor) -> Tensor:
    """Logits in float32 or wider."""
    return logits if logits.dtype == torch.float64 else logits.float()


FEW = 5
"""Estimates of fewer prompts than this are printed with "(few)"."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean or a share with its 95 % interval, from `n` prompts.

    With fewer than `FEW` prompts, `str` adds "(few)". The interval covers 95 % for normal effects
    at any n. For skewed effects it covers less until n is about 16 (exponential) or more
    (log-normal); `experiments/calibration.py` measures this.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        few = " (few)" if self.n < FEW else ""
        return f"{self.mean:z.3f} [{self.low:z.3f}, {self.high:z.3f}], n={self.n}{few}"


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis; nan for a single sample."""
    if len(samples) < 2:
        return np.full(samples.shape[1:], math.nan)
    return samples.std(0, ddof=1) / math.sqrt(len(samples))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The quotient part / whole; a division by zero gives nan or infinity without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return part / whole


def skewness_of(samples: np.ndarray) -> np.ndarray:
    """mean((x - mean)^3) / sd^3 over the first axis; 0 if all samples are equal."""
    rest = samples - samples.mean(0)
    return np.nan_to_num(ratio((rest**3).mean(0), rest.std(0) ** 3), posinf=0, neginf=0)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """mean(part) / mean(whole), its standard error and its interval, each (*cells)."""

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
    """mean(part) / mean(whole) over prompts, with its interval.

    All means and ratios of the package use it.

        stderr = sd(r) / (sqrt(n) |mean(whole)|),   r_i = part_i - value whole_i
        interval = value - stderr T(+-t),           T(x) = 3 (cbrt(1 + k (x - k / 6)) - 1) / k,
        k = skewness(r) / sqrt(n), at most 0.3 either way

    by the delta method, with t from Student's distribution with n - 1 degrees of freedom. T is
    Hall's (1992) correction for skewed effects; without skew, T(x) = x. The bound on k limits the
    influence of a single outlier. `experiments/calibration.py` measures the coverage. The interval
    of a single prompt is infinite.

    Args:
        part: (n, *cells) the numerator of each prompt.
        whole: (n,) the denominator of each prompt; None gives the mean of `part`.
        level: coverage of the interval.
        groups: one label per prompt. Prompts with the same label, e.g. those built from one text,
            are summed and count as one. None treats all prompts as independent.

    Raises:
        InterpError: `level` is not between 0 and 1, or there is not one denominator or label per
            prompt.
    """
    level = checked(Confidence, level, "the level of an interval")
    part = np.asarray(part, dtype=float)
    whole = np.ones(len(part)) if whole is None else np.asarray(whole, dtype=float)
    if part.ndim < 1 or whole.shape != part.shape[:1]:
        found = f"numerators of shape {part.shape}, denominators of shape {whole.shape}"
        raise InterpError("a ratio of means", found, "give one of both for each prompt")
    if groups is not None:
        part, whole = (summed(rows, groups) for rows in (part, whole))
    n = len(part)
    gap = whole.mean() if n else math.nan
    values = part.mean(0) / gap if n else np.full(part.shape[1:], math.nan)
    if n < 2:
        stderr, high = np.full(values.shape, math.nan), np.full(values.shape, math.inf)
        return Ratio(values=values, stderr=stderr, low=-high, high=high)
    from scipy import stats  # half a second, which a single prompt need not wait for

    rest = part - values * whole.reshape(-1, *[1] * values.ndim)
    spread = rest.std(0, ddof=1)
    stderr = spread / (abs(gap) * math.sqrt(n))
    k = np.clip(skewness_of(rest) * np.sign(gap) / math.sqrt(n), -0.3, 0.3)

    def corrected(x: float) -> np.ndarray:
        bent = np.abs(k) > 1e-6
        safe = np.where(bent, k, 1.0)
        return np.where(bent, 3 * (np.cbrt(1 + safe * (x - safe / 6)) - 1) / safe, x)

    t = float(stats.t.ppf((1 + level) / 2, n - 1))
    low, high = (values - corrected(x) * stderr for x in (t, -t))
    return Ratio(values=values, stderr=stderr, low=low, high=high)


def summed(rows: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """(groups, *cells) the sum of each label's rows, in the order in which labels first appear.

    Raises:
        InterpError: there is not one label per row.
    """
    numbers = group_numbers(groups, len(rows))
    total = np.zeros((int(numbers.max()) + 1, *rows.shape[1:]))
    np.add.at(total, numbers, rows)
    return total


def group_numbers(groups: Sequence[Hashable], n: int) -> np.ndarray:
    """(n,) the number of each row's label, from 0 in the order in which labels first appear.

    Raises:
        InterpError: there is not one label per row, or a label cannot be hashed, such as a list.
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
    """(draws, n) how often each row occurs in a bootstrap sample; rows of a group go together."""
    numbers = np.arange(n) if groups is None else group_numbers(groups, n)
    count = int(numbers.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, numbers]


def range_of_draws(draws: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of random draws: the range that holds 95 % of them."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_estimate(
    values: Tensor | np.ndarray | Sequence[float], *, draws: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of the values with the 95 % range of its bootstrap draws over them.

    Equal values give an interval of no width: for a share use `share_estimate`.

    Raises:
        InterpError: there are no values.
    """
    rows = np.asarray(values, dtype=float)
    if not len(rows):
        raise InterpError("a bootstrap", "no values", "give at least one")
    weights = bootstrap_weights(len(rows), draws, seed=seed)
    low, high = range_of_draws(weights @ rows / len(rows))
    return Estimate(mean=float(rows.mean()), low=low, high=high, n=len(rows))


def mean_estimate(values: Tensor | np.ndarray) -> Estimate:
    """The mean with the interval of `ratio_of_means`, which is infinite for a single value."""
    return ratio_estimate(values, np.ones(len(values)))


def ratio_estimate(gained: Tensor | np.ndarray, gaps: Tensor | np.ndarray) -> Estimate:
    """mean(gained) / mean(gaps) over prompts, with the interval of `ratio_of_means`.

    Raises:
        InterpError: there is not one gap for each prompt.
    """
    part, whole = (torch.as_tensor(x).detach().double().cpu().numpy() for x in (gained, gaps))
    found = ratio_of_means(part, whole)
    low, high = float(found.low), float(found.high)
    return Estimate(mean=float(found.values), low=low, high=high, n=len(part))


def share_estimate(hits: int, n: int) -> Estimate:
    """The share hits / n with Wilson's score interval; if n is 0, nan with 0 to 1.

    Raises:
        InterpError: they are not whole numbers with hits between 0 and n.
    """
    from scipy import stats

    hits, n = checked(Whole, hits, "the hits of a share"), checked(Whole, n, "the n of a share")
    if hits > n:
        raise InterpError(f"a share of {hits} hits", f"n={n}", "give at most n hits")
    if n == 0:
        return Estimate(mean=math.nan, low=0.0, high=1.0, n=0)
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(mean=hits / n, low=float(interval.low), high=float(interval.high), n=n)


def auc_of(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The AUC of every row of scores, (..., n) to (...); see `auc_estimate`."""
    from scipy import stats

    scores, positive = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    m, n = int(positive.sum()), int((~positive).sum())
    if not (m and n) or scores.shape[-1:] != positive.shape or not np.isfinite(scores).all():
        found = f"scores of shape {scores.shape}, {m} positives and {n} negatives"
        raise InterpError("an AUC", found, "give a finite score for each of both classes")
    ranks = stats.rankdata(scores, axis=-1)
    return (ranks[..., positive].sum(-1) - m * (m + 1) / 2) / (m * n)


def auc_estimate(scores: np.ndarray, labels: np.ndarray) -> Estimate:
    """The area under the ROC curve, with Newcombe's (2006, method 5) interval.

        AUC = P(score of a positive > score of a negative), ties counted half

    It says how well a score tells two classes apart, wherever the threshold lies: 1 perfectly, 1/2
    not at all, 0 the wrong way round. The interval solves |theta - AUC| = z se(theta) with Hanley
    and McNeil's standard error at theta, so that it has a width at AUC = 1 too.

    Args:
        scores: (n,) finite numbers.
        labels: (n,) true for positives.

    Raises:
        InterpError: only one class, or scores that are not finite.
    """
    from scipy import optimize, stats

    positive = np.asarray(labels, dtype=bool)
    auc, z = float(auc_of(scores, positive)), float(stats.norm.ppf(0.975))
    m, n = int(positive.sum()), int((~positive).sum())

    def beyond(theta: float) -> float:
        extra = ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - auc) ** 2 - z**2 * theta * (1 - theta) * (1 + extra) / (m * n)

    def end(start: float, stop: float) -> float:
        found = optimize.root_scalar(beyond, bracket=(start, stop))
        return float(found.root)

    low = 0.0 if auc == 0 else end(0.0, auc * (1 - 1e-12))
    high = 1.0 if auc == 1 else end(auc + (1 - auc) * 1e-12, 1.0)
    return Estimate(mean=auc, low=low, high=high, n=m + n)
