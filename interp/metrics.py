"""What is measured at the end of a prompt, and how an average is reported.

Every metric is one number per prompt, higher for more of the behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError, unknown


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

    `answers` and `wrong` are (n, k) token ids, short lists padded with -1. `reference` holds the
    log-probabilities of the clean run, for metrics that compare with it.
    """

    answers: Tensor
    wrong: Tensor
    reference: Tensor | None = None

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
            InterpError: a value is not a finite number.
        """
        values = self.function(readout, targets).double().cpu()
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
    values = torch.where(real, _wide(readout.at(tokens.clamp(min=0))), 0.0)
    return values.sum(1) / real.sum(1)


def _wide(logits: Tensor) -> Tensor:
    """Logits in float32 or wider."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _probability(readout: Readout, tokens: Tensor) -> Tensor:
    """Summed probability of each row's tokens, -1 left out."""
    probabilities = _wide(readout.all()).softmax(-1).gather(1, tokens.clamp(min=0))
    return torch.where(tokens >= 0, probabilities, 0.0).sum(1)


def _logit_diff(readout: Readout, targets: Targets) -> Tensor:
    return _mean_at(readout, targets.answers) - _mean_at(readout, targets.wrong)


def _prob_diff(readout: Readout, targets: Targets) -> Tensor:
    return _probability(readout, targets.answers) - _probability(readout, targets.wrong)


def _log_odds(readout: Readout, targets: Targets) -> Tensor:
    wide = _wide(readout.all())
    tokens, real = targets.answers.clamp(min=0), targets.answers >= 0
    inside = torch.where(real, wide.gather(1, tokens), -torch.inf).logsumexp(1)
    outside = wide.scatter(1, tokens, -torch.inf).logsumexp(1)
    return inside - outside


def _kl(readout: Readout, targets: Targets) -> Tensor:
    assert targets.reference is not None
    wide = _wide(readout.all())
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


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean or a share, with its 95 % interval and the number of prompts behind it."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}"


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Of the mean over the first axis; nan for a single sample."""
    if len(samples) < 2:
        return np.full(samples.shape[1:], math.nan)
    return samples.std(0, ddof=1) / math.sqrt(len(samples))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole, nan where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return part / whole


def mean_estimate(values: Tensor) -> Estimate:
    """Mean with Student's t interval; the interval is infinite for a single value."""
    from scipy import stats

    n, mean = len(values), float(values.mean())
    if n < 2:
        return Estimate(mean=mean, low=-math.inf, high=math.inf, n=n)
    half = float(stats.t.ppf(0.975, n - 1) * values.std() / math.sqrt(n))
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=n)


def ratio_estimate(gained: Tensor, gaps: Tensor) -> Estimate:
    """mean(gained) / mean(gaps) over prompts, with the delta method's interval (Student's t)."""
    gap = float(gaps.mean())
    ratio = float(gained.mean()) / gap
    around = mean_estimate(gained - ratio * gaps)
    half = (around.high - around.mean) / abs(gap)
    return Estimate(mean=ratio, low=ratio - half, high=ratio + half, n=len(gained))


def share_estimate(hits: int, n: int) -> Estimate:
    """A share with Wilson's score interval; of nothing, it is nan and could be anything."""
    from scipy import stats

    if n == 0:
        return Estimate(mean=math.nan, low=0.0, high=1.0, n=0)
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(mean=hits / n, low=float(interval.low), high=float(interval.high), n=n)
