"""How uncertain an adapter is about a prompt: the next token with rank components dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Flags, flags_of, reads_arguments, rows_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Count, checked
from interp.core.statistics import Estimate, auc_estimate, widened
from interp.models.language_model import LanguageModel
from interp.models.weight_delta import LowRank, WeightDelta
from interp.plots.tables import Tabled


@dataclass(frozen=True, kw_only=True)
class AdapterUncertainty(Tabled):
    """The spread of the next-token distribution of n prompts over draws of an adapter.

    Attributes:
        name: the adapter.
        rate: share of the rank components that a draw drops.
        draws: number of draws.
        entropy: (n,) entropy in nats of the mean distribution.
        information: (n,) that entropy minus the mean entropy of a draw: what a draw tells about
            the next token. 0 if all draws agree.
        variance: (n,) the sum over tokens of the variance of their probability over draws.
    """

    name: str
    rate: float
    draws: int
    entropy: np.ndarray = field(repr=False)
    information: np.ndarray = field(repr=False)
    variance: np.ndarray = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"AdapterUncertainty({self.name}, {self.draws} draws without {self.rate:g} of the rank "
            f"components, {len(self.entropy)} prompts: mean information "
            f"{self.information.mean():z.4f} nats, mean entropy {self.entropy.mean():z.3f})"
        )

    def auc(self, labels: Flags, measure: str = "information") -> Estimate:
        """How well a measure tells prompts labelled True from others: above 1/2 if it is higher.

        Raises:
            InterpError: an unknown measure, not one label per prompt, or only one class.
        """
        if measure not in ("entropy", "information", "variance"):
            do = "choose entropy, information or variance"
            raise InterpError(f"the uncertainty {measure!r}", "no such measure", do)
        return auc_estimate(getattr(self, measure), flags_of(labels, len(self.entropy)))

    def to_dataframe(self) -> Any:
        """One row per prompt."""
        from pandas import DataFrame

        return DataFrame(
            {name: getattr(self, name) for name in ("entropy", "information", "variance")}
        )


@reads_arguments
@torch.no_grad()
def adapter_uncertainty(
    model: LanguageModel,
    delta: WeightDelta,
    prompts: Task | Prompt | Sequence[Prompt],
    *,
    rate: float = 0.2,
    draws: int = 16,
    seed: int = 0,
) -> AdapterUncertainty:
    """Draw adapters without some rank components, and measure how far the next token varies.

        W' = W + s / (1 - rate) B diag(m) A,   m_i = 1 with probability 1 - rate, else 0

    for every tensor on its own. The mean of W' is the whole adapter. An adapter writes to few
    directions: where it was trained, they should agree, elsewhere less. Whether that is so is a
    question for `auc`, beside the same for `random_adapter`, for `output_signature` (which needs
    no draws) and for a probe.

    Args:
        model: the base.
        delta: an adapter: a change of low rank only.
        prompts: the next token after each is read.
        rate: the share that is dropped, between 0 and 1.
        draws: two or more.
        seed: of the draws.

    Raises:
        InterpError: a delta with dense summands, a rate outside 0 to 1, one draw, no prompts, or
            another base.

    Source: Doyle 2025, arXiv 2506.22809, of which we read the abstracts (dropout of an adapter as
    uncertainty; later versions learn a rate for every rank component). Departure: the shipped
    adapters were trained without dropout, and the rate is one number.
    """
    _require_low_rank(delta)
    if not 0 < rate < 1:
        raise InterpError(f"dropping a share of {rate}", "not inside 0 to 1", "give 0.2 or so")
    if checked(Count, draws, "draws") < 2:
        raise InterpError("a spread over draws", "one draw", "give two or more")
    if not (rows := rows_of(model, prompts)):
        raise InterpError("the uncertainty of an adapter", "no prompts", "give at least one")
    generator = torch.Generator().manual_seed(seed)
    total = squares = entropies = torch.zeros(())
    for _ in range(draws):
        with thinned(delta, rate, generator).applied(model):
            logits = widened(model.last_logits(rows)).cpu().double()
        p = logits.softmax(-1)
        total, squares = total + p, squares + p.square()
        entropies = entropies + _entropy(p)
    mean, entropy = total / draws, _entropy(total / draws)
    return AdapterUncertainty(
        name=delta.name,
        rate=rate,
        draws=draws,
        entropy=entropy.numpy(),
        information=(entropy - entropies / draws).clamp(min=0).numpy(),
        variance=((squares - draws * mean.square()) / (draws - 1)).clamp(min=0).sum(-1).numpy(),
    )


def thinned(delta: WeightDelta, rate: float, generator: torch.Generator) -> WeightDelta:
    """One draw: each rank component is dropped with probability `rate`, the others scaled up."""
    low = {}
    for name in sorted(delta.low_rank):
        parts = []
        for part in delta.low_rank[name]:
            kept = torch.rand(len(part.right), generator=generator) >= rate
            right = part.right[kept.to(part.right.device)]
            left = part.left[:, kept.to(part.left.device)]
            parts.append(LowRank(left=left, right=right, scale=part.scale / (1 - rate)))
        low[name] = tuple(parts)
    return replace(delta, low_rank=low, name=f"{delta.name}, thinned")


def random_adapter(delta: WeightDelta, *, seed: int = 0) -> WeightDelta:
    """An adapter of random factors with the ranks and Frobenius norms of another one: a control.

    Raises:
        InterpError: the delta has dense summands.
    """
    _require_low_rank(delta)
    generator, low = torch.Generator().manual_seed(seed), {}
    for name in sorted(delta.low_rank):
        parts = []
        for part in delta.low_rank[name]:
            left, right = (
                torch.randn(x.shape, generator=generator).to(x) for x in (part.left, part.right)
            )
            scale = _norm(part) / _norm(LowRank(left=left, right=right))
            parts.append(LowRank(left=left, right=right, scale=scale))
        low[name] = tuple(parts)
    return WeightDelta(name=f"random, as large as {delta.name}", base=delta.base, low_rank=low)


def _norm(part: LowRank) -> float:
    """The Frobenius norm of a product, from its factors."""
    left, right = part.left.double(), part.right.double()
    return abs(part.scale) * float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0)) ** 0.5


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def _require_low_rank(delta: WeightDelta) -> None:
    if delta.dense or not delta.low_rank:
        found = f"{len(delta.dense)} dense changes, {len(delta.low_rank)} of low rank"
        raise InterpError(f"rank components of {delta.name}", found, "give a LoRA adapter")
