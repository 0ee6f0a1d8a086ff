"""What is measured at the end of a prompt, and how an average is reported.

Every metric is one number per prompt, higher for more of the behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError, unknown
from interp.schema import Level, checked


class Readout(Protocol):
    """Logits at the last token of each prompt, computed only where they are read."""

    def at(self, tokens: Tensor) -> Tensor:
        """Each row's own tokens: (n, k) ids to (n, k) logits."""
        ...

    def all(self) -> Tensor:
        """The whole vocabulary: (n, d_vocab)."""
        ...


@dataclass(frozen=True)
class Logits:
    """A `Readout` of logits that are already there."""

    values: Tensor

    def at(self, tokens: Tensor) -> Tensor:
        """The logits of each row's own tokens."""
        return self.values.gather(1, tokens)

    def all(self) -> Tensor:
        """All logits."""
        return self.values


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What each prompt is scored on.

    `answers` and `wrong` are (n, k) token ids, short lists padded with -1; a token given twice is
    held once, the repeat replaced by -1. `reference` holds the log-probabilities of the clean run,
    for metrics that compare with it.

    Raises:
        InterpError: a token is an answer and a wrong answer of one prompt.
    """

    answers: Tensor
    wrong: Tensor
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("answers", "wrong"):
            tokens = getattr(self, name)
            again = (tokens[:, :, None] == tokens[:, None, :]).tril(-1).any(-1)
            object.__setattr__(self, name, tokens.masked_fill(again, -1))
        both = (self.answers[:, :, None] == self.wrong[:, None, :]) & (self.answers >= 0)[..., None]
        if bool(both.any()):
            prompt = int(both.flatten(1).any(1).nonzero()[0])
            raise InterpError(
                f"the targets of prompt {prompt}",
                f"answers {self.answers[prompt].tolist()}, wrong {self.wrong[prompt].tolist()}",
                "leave no token on both sides",
            )

    def select(self, prompts: Tensor) -> Targets:
        """The targets of some prompts, in the order given (repeats allowed)."""
        reference = None if self.reference is None else self.reference[prompts]
        return replace(
            self, answers=self.answers[prompts], wrong=self.wrong[prompts], reference=reference
        )


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A named function of the readout: one number per prompt, higher = more of the behaviour."""

    name: str
    unit: str
    function: Callable[[Readout, Targets], Tensor]
    needs_wrong: bool = False
    needs_reference: bool = False

    def __call__(self, readout: Readout, targets: Targets) -> Tensor:
        """The metric of each prompt, as float64 on the CPU.

        Raises:
            InterpError: not one number per prompt, or one that is not finite.
        """
        values = self.function(readout, targets)
        shape, n = tuple(getattr(values, "shape", ())), len(targets.answers)
        if shape != (n,):
            raise InterpError(
                f"the metric {self.name}",
                f"{type(values).__name__} of shape {shape} for {n} prompts",
                "return a tensor with one number per prompt",
            )
        values = values.double().cpu()
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).sum())
            raise InterpError(
                f"the metric {self.name}",
                f"{bad} of {len(values)} values are not finite",
                "check the weights for NaN, and the patched values for overflow",
            )
        return values


def _mean_at(readout: Readout, tokens: Tensor) -> Tensor:
    """Mean logit over each row's tokens, -1 left out."""
    real = tokens >= 0
    values = torch.where(real, widened(readout.at(tokens.clamp(min=0))), 0.0)
    return values.sum(1) / real.sum(1)


def widened(logits: Tensor) -> Tensor:
    """Logits in float32 or wider."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _probability(readout: Readout, tokens: Tensor) -> Tensor:
    """Summed probability of each row's tokens, -1 left out."""
    probabilities = widened(readout.all()).softmax(-1).gather(1, tokens.clamp(min=0))
    return torch.where(tokens >= 0, probabilities, 0.0).sum(1)


def _logit_diff(readout: Readout, targets: Targets) -> Tensor:
    return _mean_at(readout, targets.answers) - _mean_at(readout, targets.wrong)


def _prob_diff(readout: Readout, targets: Targets) -> Tensor:
    return _probability(readout, targets.answers) - _probability(readout, targets.wrong)


def _log_odds(readout: Readout, targets: Targets) -> Tensor:
    wide = widened(readout.all())
    # Padding repeats the first answer, so that no other token is taken out.
    real = targets.answers >= 0
    tokens = torch.where(real, targets.answers, targets.answers[:, :1])
    inside = torch.where(real, wide.gather(1, tokens), -torch.inf).logsumexp(1)
    outside = wide.scatter(1, tokens, -torch.inf).logsumexp(1)
    return inside - outside


def _kl(readout: Readout, targets: Targets) -> Tensor:
    assert targets.reference is not None
    wide = widened(readout.all())
    reference = targets.reference.to(wide)
    return -(reference.exp() * (reference - wide.log_softmax(-1))).sum(-1)


METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="logit_diff", unit="logits", function=_logit_diff, needs_wrong=True),
        Metric(name="prob_diff", unit="probability", function=_prob_diff, needs_wrong=True),
        Metric(name="log_odds", unit="nats", function=_log_odds),
        Metric(name="kl", unit="nats", function=_kl, needs_reference=True),
    )
}
"""The metrics that ship.

logit_diff: mean logit of the answers minus mean logit of the wrong answers.
prob_diff: summed probability of the answers minus that of the wrong answers.
log_odds: log P(answers) - log(1 - P(answers)).
kl: -KL(clean run || this run) at the last token; 0 on the clean run.
"""


def is_shipped(metric: Metric) -> bool:
    """Whether a metric's name says what it computes, so that results can be kept under it."""
    return METRICS.get(metric.name) is metric


def metric_named(name: str) -> Metric:
    """The shipped metric of that name.

    Raises:
        InterpError: no such metric; the nearest name is given.
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


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

    level = checked(Level, level, "the level of an interval")
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
