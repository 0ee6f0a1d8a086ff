"""Whether a change of a model can be taken back: what the model computes after the reset."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.core.arguments import reads_arguments, rows_of
from interp.core.errors import InterpError, unknown
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Brief
from interp.core.statistics import Estimate, mean_estimate
from interp.deltas.compression import compress
from interp.models.language_model import LanguageModel
from interp.models.modules import tensors_of
from interp.models.weight_delta import WeightDelta


@dataclass(frozen=True, kw_only=True)
class Recoverability(Brief):
    """What is left of a change after it was taken back.

    Attributes:
        name: the change.
        factor: the recoverability factor, 1 if nothing is left; nan if the change did nothing.
        changed: KL(changed || plain) in nats, a mean over the tokens of each prompt, then over
            prompts.
        left: the same after the reset.
        largest: the largest |difference| of a logit after the reset.
        logits_apart: number of logits whose bits differ after the reset.
        weights_apart: number of weights whose bits differ after the reset.
    """

    name: str
    factor: float
    changed: Estimate
    left: Estimate
    largest: float
    logits_apart: int
    weights_apart: int

    def __str__(self) -> str:
        return (
            f"{self.name}: recoverability {self.factor:z.6f}; KL changed {self.changed}, after the "
            f"reset {self.left}; {self.logits_apart} logits and {self.weights_apart} weights have "
            f"other bits, largest difference of a logit {self.largest:z.2g}"
        )


@reads_arguments
@torch.no_grad()
def recoverability(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    change: AbstractContextManager[Any],
    *,
    reset: WeightDelta | None = None,
    name: str = "",
) -> Recoverability:
    """Put a change on, take it off, and compare with the model as it was.

        factor = 1 - KL(after the reset || plain) / KL(changed || plain)

    KL is over the next-token distributions at every token of the prompts. A change that comes off
    exactly has factor 1, and no logit and no weight with other bits.

    Args:
        model: any model.
        prompts: what is run.
        change: a block that changes the model, such as `delta.applied(model)`,
            `intervene(model, zero("L5H1"))` or `steer(...)`.
        reset: for a way back that does not restore the weights: what it leaves behind, as a delta
            (see `taken_back`). None measures what the block itself leaves.
        name: how to call the change.

    Raises:
        InterpError: no prompts.

    Source: after arXiv 2603.02934, which names a normalised measure of recoverability. We read its
    abstract and introduction only: this formula is our reading.
    """
    rows = rows_of(model, prompts)
    if not rows:
        raise InterpError("measuring recoverability", "no prompts", "give at least one")
    plain, weights = _logits(model, rows), _weights(model)
    with change:
        changed = _logits(model, rows)
    with nullcontext() if reset is None else reset.applied(model):
        after, left = _logits(model, rows), _weights(model)
    first, last = _divergence(changed, plain), _divergence(after, plain)
    return Recoverability(
        name=name or (type(change).__name__ if reset is None else reset.name),
        factor=1 - last.mean / first.mean if first.mean > 0 else float("nan"),
        changed=first,
        left=last,
        largest=max(float((a - b).abs().max()) for a, b in zip(after, plain, strict=True)),
        logits_apart=sum(_apart(a, b) for a, b in zip(after, plain, strict=True)),
        weights_apart=sum(_apart(left[key], weights[key]) for key in weights),
    )


def taken_back(model: LanguageModel, delta: WeightDelta, how: str = "bfloat16") -> WeightDelta:
    """What is left when a delta is added to the weights and then subtracted, without a copy.

    `how` is the type in which both are done ("bfloat16", "float16" or "float32"), or "8 bits" or
    "4 bits": the changed weights are rounded to this grid (`compress`) before the subtraction.

    Raises:
        InterpError: an unknown way, or a delta of another base.
    """
    ways = ("bfloat16", "float16", "float32", "8 bits", "4 bits")
    if how not in ways:
        raise unknown("way back", how, ways)
    with delta.applied(model):
        rounding = compress(model, "round", bits=int(how[0])) if how.endswith("bits") else None
    held, dense = tensors_of(model.hf_model), {}
    for name in sorted({*delta.names, *(rounding.names if rounding else ())}):
        old = held[name].detach()
        added = delta.difference(name) if name in delta.names else torch.zeros_like(old).double()
        if rounding is None:
            kind = getattr(torch, how)
            back = (old.to(kind) + added.to(kind)) - added.to(kind)
        else:
            grid = rounding.difference(name) if name in rounding.names else 0
            back = old.double() + added + grid - added
        if bool((change := back.double() - old.double()).any()):
            dense[name] = change.to(torch.float64)
    return WeightDelta(name=f"{delta.name} and back in {how}", base=model.hash, dense=dense)


def _logits(model: LanguageModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """(tokens, d_vocab) the logits at every token of each prompt."""
    found: dict[int, Tensor] = {}
    for batch, logits in model.run(rows):
        for row, prompt in enumerate(batch.prompts.tolist()):
            begin, length = int(batch.first[row]), int(batch.lengths[row])
            found[prompt] = logits[row, begin : begin + length].clone()
    return [found[prompt] for prompt in range(len(rows))]


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors_of(model.hf_model).items()}


def _apart(left: Tensor, right: Tensor) -> int:
    """The number of elements whose bits differ."""
    one, other = (
        x.contiguous().flatten().view(torch.uint8).view(x.numel(), -1) for x in (left, right)
    )
    return int((one != other).any(-1).sum())


def _divergence(left: Sequence[Tensor], right: Sequence[Tensor]) -> Estimate:
    """KL(left || right) of next-token distributions, a mean over tokens, then over prompts."""
    found = []
    for one, other in zip(left, right, strict=True):
        p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return mean_estimate(torch.tensor(found, dtype=torch.float64))
