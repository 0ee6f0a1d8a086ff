"""Metrics of the logits at the last token of a prompt.

A metric is one number per prompt; a higher value means more of the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from interp.core.errors import InterpError, unknown
from interp.core.statistics import widened


class Readout(Protocol):
    """Logits at the last token of each prompt. Only those that are read are computed."""

    def at(self, tokens: Tensor) -> Tensor:
        """The logits of each row's own tokens: (n, k) ids give (n, k) logits."""
        ...

    def all(self) -> Tensor:
        """(n, d_vocab) the logits of the whole vocabulary."""
        ...


@dataclass(frozen=True)
class Logits:
    """A `Readout` of logits that are already computed: (n, d_vocab)."""

    values: Tensor

    def at(self, tokens: Tensor) -> Tensor:
        """The logits of each row's own tokens."""
        return self.values.gather(1, tokens)

    def all(self) -> Tensor:
        """All logits."""
        return self.values


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The tokens each prompt is scored on.

    `answers` and `wrong` are (n, k) token ids, with short lists padded by -1. If a token occurs
    twice in a row, its second occurrence is replaced by -1. `reference` holds the clean run's
    (n, d_vocab) log-probabilities, for metrics that compare with the clean run.

    Raises:
        InterpError: a token is both an answer and a wrong answer of one prompt.
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
                "remove the token from one of the two lists",
            )

    def select(self, prompts: Tensor) -> Targets:
        """The targets of the given prompts, in that order; a prompt may occur more than once."""
        reference = None if self.reference is None else self.reference[prompts]
        return replace(
            self, answers=self.answers[prompts], wrong=self.wrong[prompts], reference=reference
        )


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A named function of (readout, targets): one number per prompt, higher = more behaviour."""

    name: str
    unit: str
    function: Callable[[Readout, Targets], Tensor]
    needs_wrong: bool = False
    needs_reference: bool = False

    def __call__(self, readout: Readout, targets: Targets) -> Tensor:
        """(n,) the metric of each prompt, float64 on the CPU.

        Raises:
            InterpError: the function does not give one number per prompt, or gives a number that
                is not finite.
        """
        values, asked = self.function(readout, targets), f"the metric {self.name}"
        shape, n = tuple(getattr(values, "shape", ())), len(targets.answers)
        if shape != (n,):
            found = f"{type(values).__name__} of shape {shape} for {n} prompts"
            raise InterpError(asked, found, "return a tensor with one number per prompt")
        values = values.double().cpu()
        if bad := int((~torch.isfinite(values)).sum()):
            do = "check the weights for NaN, and the patched values for overflow"
            raise InterpError(asked, f"{bad} of {n} values are not finite", do)
        return values


def _mean_at(readout: Readout, tokens: Tensor) -> Tensor:
    """Mean logit over each row's tokens, ignoring -1."""
    real = tokens >= 0
    values = torch.where(real, widened(readout.at(tokens.clamp(min=0))), 0.0)
    return values.sum(1) / real.sum(1)


def _probability(readout: Readout, tokens: Tensor) -> Tensor:
    """Summed probability of each row's tokens, ignoring -1."""
    probabilities = widened(readout.all()).softmax(-1).gather(1, tokens.clamp(min=0))
    return torch.where(tokens >= 0, probabilities, 0.0).sum(1)


def _log_odds(readout: Readout, targets: Targets) -> Tensor:
    wide = widened(readout.all())
    # Padding becomes the first answer, so that only answers are excluded from `outside`.
    real = targets.answers >= 0
    tokens = torch.where(real, targets.answers, targets.answers[:, :1])
    inside = torch.where(real, wide.gather(1, tokens), -torch.inf).logsumexp(1)
    outside = wide.scatter(1, tokens, -torch.inf).logsumexp(1)
    return inside - outside


def _log_prob(readout: Readout, targets: Targets) -> Tensor:
    wide, real = widened(readout.all()), targets.answers >= 0
    answers = wide.gather(1, targets.answers.clamp(min=0)).masked_fill(~real, -torch.inf)
    return answers.logsumexp(1) - wide.logsumexp(1)


def _kl(readout: Readout, targets: Targets) -> Tensor:
    assert targets.reference is not None
    wide = widened(readout.all())
    reference = targets.reference.to(wide)
    return -(reference.exp() * (reference - wide.log_softmax(-1))).sum(-1)


def _difference(of: Callable[[Readout, Tensor], Tensor]) -> Callable[[Readout, Targets], Tensor]:
    """A measure of the answers minus the same measure of the wrong answers."""
    return lambda readout, targets: of(readout, targets.answers) - of(readout, targets.wrong)


METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="logit_diff", unit="logits", function=_difference(_mean_at), needs_wrong=True),
        Metric(
            name="prob_diff",
            unit="probability",
            function=_difference(_probability),
            needs_wrong=True,
        ),
        Metric(name="log_odds", unit="nats", function=_log_odds),
        Metric(name="log_prob", unit="nats", function=_log_prob),
        Metric(name="kl", unit="nats", function=_kl, needs_reference=True),
    )
}
"""The metrics of the package, by name.

logit_diff: mean logit of the answers minus mean logit of the wrong answers.
prob_diff: summed probability of the answers minus that of the wrong answers.
log_odds: log P(answers) - log(1 - P(answers)).
log_prob: log of the summed probability of the answers.
kl: -KL(clean run || this run) at the last token; 0 on the clean run.
"""


def is_shipped(metric: Metric) -> bool:
    """Whether this is a metric of the package, so that its name identifies what it computes."""
    return METRICS.get(metric.name) is metric


def metric_named(name: str) -> Metric:
    """The metric of the package with that name.

    Raises:
        InterpError: there is no such metric; the message suggests the nearest name.
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]
