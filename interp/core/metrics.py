"""Metrics of the logits at the last token of a prompt, and of answers of several tokens behind it.

A metric is one number per prompt; a higher value means more of the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from interp.core.branches import Branched, StringReadout, Strings
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

    If answers have several tokens, `strings` holds those of each prompt, right and wrong ones, and
    `answers` and `wrong` are their numbers there.

    Raises:
        InterpError: a token is both an answer and a wrong answer of one prompt.
    """

    answers: Tensor
    wrong: Tensor
    reference: Tensor | None = None
    strings: tuple[Strings, ...] | None = None

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
        strings = self.strings
        return replace(
            self,
            answers=self.answers[prompts],
            wrong=self.wrong[prompts],
            reference=reference,
            strings=None if strings is None else tuple(strings[i] for i in prompts.tolist()),
        )

    def rows(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The tokens that are run: each prompt, with its answers behind it if they are several."""
        if self.strings is None:
            return list(prompts)
        return [Branched.of(*pair) for pair in zip(prompts, self.strings, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A named function of (readout, targets): one number per prompt, higher = more behaviour.

    With `strings`, answers may have several tokens: the readout is then a `StringReadout`.
    """

    name: str
    unit: str
    function: Callable[[Readout, Targets], Tensor]
    needs_wrong: bool = False
    needs_reference: bool = False
    strings: bool = False

    def __call__(self, readout: Readout, targets: Targets) -> Tensor:
        """(n,) the metric of each prompt, float64 on the CPU.

        If the answers have several tokens, `readout` gives the logits at every token of the rows'
        tails (`interp.core.branches`), one row after the other.

        Raises:
            InterpError: the function does not give one number per prompt, or gives a number that
                is not finite.
        """
        asked = f"the metric {self.name}"
        if targets.strings is not None:
            log_probs = getattr(readout, "log_probs", None)  # without all logits at once
            if log_probs is None:
                readout = StringReadout.of(readout.all(), targets.strings)
            else:
                readout = StringReadout.summed(log_probs, targets.strings)
        values = self.function(readout, targets)
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


def _mean_per_token(readout: Readout, tokens: Tensor) -> Tensor:
    """Mean over each row's strings of their log-probability per token, ignoring -1."""
    if isinstance(readout, StringReadout):
        each = readout.values / readout.lengths.to(readout.values)
        readout = StringReadout(values=each, lengths=readout.lengths)
    return _mean_at(readout, tokens)


def _probability(readout: Readout, tokens: Tensor) -> Tensor:
    """Summed probability of each row's tokens, ignoring -1."""
    if isinstance(readout, StringReadout):
        each = readout.at(tokens.clamp(min=0)).exp()
        return torch.where(tokens >= 0, each, 0.0).sum(1)
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
    if isinstance(readout, StringReadout):
        each = readout.at(targets.answers.clamp(min=0))
        return each.masked_fill(targets.answers < 0, -torch.inf).logsumexp(1)
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
            strings=True,
        ),
        Metric(name="log_odds", unit="nats", function=_log_odds),
        Metric(name="log_prob", unit="nats", function=_log_prob, strings=True),
        Metric(
            name="log_prob_diff",
            unit="nats",
            function=_difference(_mean_at),
            needs_wrong=True,
            strings=True,
        ),
        Metric(
            name="log_prob_diff_per_token",
            unit="nats per token",
            function=_difference(_mean_per_token),
            needs_wrong=True,
            strings=True,
        ),
        Metric(name="kl", unit="nats", function=_kl, needs_reference=True),
    )
}
"""The metrics of the package, by name.

logit_diff: mean logit of the answers minus mean logit of the wrong answers.
prob_diff: summed probability of the answers minus that of the wrong answers.
log_odds: log P(answers) - log(1 - P(answers)).
log_prob: log of the summed probability of the answers.
log_prob_diff: mean log P(answer) minus mean log P(wrong answer), where log P sums over the tokens
    of the answer, each after the prompt and the tokens before it. A longer answer has more tokens
    to pay for. For answers of one token it is logit_diff.
log_prob_diff_per_token: the same, with log P divided by the number of tokens of each answer.
kl: -KL(clean run || this run) at the last token; 0 on the clean run.

prob_diff, log_prob, log_prob_diff and log_prob_diff_per_token take answers of several tokens.
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
