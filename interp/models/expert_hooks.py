"""Hooks for the sites of experts, which TransformerLens does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interp.engine.architecture import Experts, Mlp

HookPoint = tuple[str, Callable[..., Tensor | None]]
"""A hook's name in TransformerLens, and its function."""


def expert_points(
    experts: Experts | Mlp,
    address: tuple[int, str],
    apply: Callable[[Tensor], Tensor],
    routed: dict[int, Tensor],
) -> list[HookPoint]:
    """Read and change router or expert_out of a layer, (batch, pos, expert, ...), by `apply`.

    What the layer writes is computed again from what it reads, as the sum over experts, for the
    tokens whose site is changed. `routed` holds, by layer, the logits of routers that are changed
    in this run, for a change of expert_out behind it.
    """
    assert isinstance(experts, Experts)
    layer, site = address
    seen: dict[str, Tensor] = {}

    def remember(value: Tensor, hook: Any = None) -> None:
        seen["read"] = value

    def rewritten(value: Tensor, hook: Any = None) -> Tensor:
        read, shape = seen["read"].flatten(0, 1), value.shape[:2]
        logits = routed[layer] if layer in routed else experts.router(read)
        old = logits if site == "router" else experts.each(read, experts.weights(logits))
        new = apply(old.unflatten(0, shape)).flatten(0, 1)
        if site == "router":
            routed[layer] = new
        written = experts.each(read, experts.weights(new)) if site == "router" else new
        found = written.sum(1).view_as(value)
        # Where the value is unchanged, avoid even a rounding error.
        same = (new == old).flatten(1).all(1).view(*shape, 1)
        return found if found.requires_grad else torch.where(same, value, found)

    inside = f"blocks.{layer}.mlp"
    return [(f"{inside}.hook_in", remember), (f"{inside}.hook_out", rewritten)]
