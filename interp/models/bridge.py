"""TransformerLens' bridge around a Hugging Face model, and its hooks for our sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interp.core.components import EXPERT_SITES, SITES
from interp.core.errors import InterpError
from interp.engine.architecture import Decoder
from interp.models.batches import Address, Batch, Hook
from interp.models.expert_hooks import HookPoint, expert_points

_ORDER = {site: place for place, site in enumerate(SITES)}


def hook_name(layer: int, site: str) -> str:
    """TransformerLens' name of a site's hook."""
    inside = "mlp." if SITES[site] == "neuron" else "attn." if SITES[site] else ""
    return f"blocks.{layer}.{inside}hook_{site}"


def build_bridge(hf_model: Any) -> Any:
    """TransformerLens' bridge around a Hugging Face model, which it changes in place.

    Raises:
        InterpError: TransformerLens does not support the architecture. The model is then as it was.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    name, before = type(hf_model).__name__, _kept(hf_model)
    for module in hf_model.modules():
        if type(module).__name__ == "GPTNeoXAttention" and module.query_key_value.bias is None:
            # TransformerLens cannot split a projection without a bias, so give it one of zeros.
            joint = module.query_key_value
            zeros = joint.weight.new_zeros(joint.out_features)
            joint.bias = torch.nn.Parameter(zeros, requires_grad=False)
    try:
        bridge = build_bridge_from_module(hf_model, name, hf_config=hf_model.config)
        for module in bridge.modules():  # eval() would visit shared modules many times
            module.training = False
        return bridge
    except Exception as error:
        for module, parts in before.items():
            vars(module).clear()
            vars(module).update(parts)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InterpError(
            f"bridging {name}",
            f"TransformerLens fails on it: {reason}",
            "use a causal language model that TransformerLens supports",
        ) from error


def _kept(model: nn.Module) -> dict[nn.Module, dict[str, Any]]:
    """The attributes of every module, with copies of the dictionaries that hold its parts."""
    return {
        module: {
            name: value.copy() if isinstance(value, dict) else value
            for name, value in vars(module).items()
        }
        for module in model.modules()
    }


def hook_points(
    hooks: Mapping[Address, list[Hook]], batch: Batch, d_head: int, decoder: Decoder | None
) -> list[HookPoint]:
    """TransformerLens' hooks for the hooks of some sites, in causal order.

    So resid_mid is changed after resid_pre and attn_out, its summands. Only sites of experts need
    the decoder.
    """
    routed: dict[int, Tensor] = {}
    return [
        point
        for address in sorted(hooks, key=lambda at: (at[0], _ORDER[at[1]]))
        for point in _points(address, hooks[address], batch, d_head, decoder, routed)
    ]


def _points(
    address: Address,
    hooks: list[Hook],
    batch: Batch,
    d_head: int,
    decoder: Decoder | None,
    routed: dict[int, Tensor],
) -> list[HookPoint]:
    """The TransformerLens hooks for one site.

    The hook of resid_mid is on the input of the second norm, after the skip connection branches
    off, so a change there would reach the MLP only. So attn_out is changed instead, such that
    resid_pre + attn_out is the new value.
    """
    layer, site = address

    def apply(value: Tensor, hook: Any = None) -> Tensor:
        shaped = value
        if site in ("q", "k", "v", "z") and value.dim() == 3:
            shaped = value.unflatten(-1, (-1, d_head))
        for function in hooks:
            shaped = function(shaped, batch)
        return shaped.reshape(value.shape)

    if site in EXPERT_SITES:
        assert decoder is not None
        return expert_points(decoder.blocks[layer].mlp, address, apply, routed)
    if site != "resid_mid":
        return [(hook_name(layer, site), apply)]
    return _through_attn_out(layer, apply)


def _through_attn_out(layer: int, apply: Callable[[Tensor], Tensor]) -> list[HookPoint]:
    seen: dict[str, Tensor] = {}

    def remember(value: Tensor, hook: Any = None) -> None:
        seen["resid_pre"] = value

    def changed(value: Tensor, hook: Any = None) -> Tensor:
        mid = seen["resid_pre"] + value
        new = apply(mid)
        needed = new - seen["resid_pre"]
        if needed.requires_grad:
            return needed
        # Where the value is unchanged, avoid even a rounding error.
        return torch.where(new == mid, value, needed)

    return [(hook_name(layer, "resid_pre"), remember), (hook_name(layer, "attn_out"), changed)]
