"""Sites read and changed by plain hooks on the modules of a Hugging Face model.

The places come from the description of its family (`interp.models.families`), the numbers from the
model's own forward pass. So this is a reference for a model that TransformerLens cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.families import FAMILIES, part_at


@dataclass(frozen=True, kw_only=True)
class SiteModule:
    """The input or output of a module, or some columns of it if several sites share it."""

    module: nn.Module
    inward: bool
    columns: Tensor | None = None


def layer_module(hf_model: Any, layer: int) -> nn.Module:
    """A layer of the model."""
    family = FAMILIES[type(hf_model).__name__]
    return part_at(part_at(hf_model, family.body), family.layers)[layer]


def site_modules(hf_model: Any, layer: int) -> dict[str, SiteModule]:
    """Where the sites of a layer are; resid_mid, the pattern and sites of experts have no module.

    attn_out and mlp_out are left out if the family multiplies them after their module.
    """
    family, block = FAMILIES[type(hf_model).__name__], layer_module(hf_model, layer)
    attn, mlp = part_at(block, family.attn), part_at(block, family.mlp)
    found = {
        "resid_pre": SiteModule(module=block, inward=True),
        "resid_post": SiteModule(module=block, inward=False),
        "z": SiteModule(module=part_at(attn, family.o), inward=True),
    }

    def joint(module: Any, split: Callable[[Tensor], Sequence[Tensor]], sites: str) -> None:
        width = getattr(module, "out_features", None) or module.nf  # nf: of a Conv1D
        for site, part in zip(sites.split(), split(torch.arange(width)), strict=True):
            found[site] = SiteModule(module=module, inward=False, columns=part)

    def each(module: Any, names: dict[str, str]) -> None:
        for site, name in names.items():
            if name:
                found[site] = SiteModule(module=part_at(module, name), inward=False)

    if family.qkv:
        joint(part_at(attn, family.qkv), partial(family.split, attn), "q k v")
    else:
        each(attn, {"q": family.q, "k": family.k, "v": family.v})
    if not hasattr(mlp, "experts"):
        if family.gate_up:
            joint(part_at(mlp, family.gate_up), lambda x: x.chunk(2), "pre pre_linear")
        else:
            each(mlp, {"pre": family.gate, "pre_linear": family.up})
        found["post"] = SiteModule(module=part_at(mlp, family.down), inward=True)
    if family.times(hf_model.config)[1] == 1:
        for site, norm, module in (
            ("attn_out", family.ln1_post, attn),
            ("mlp_out", family.ln2_post, mlp),
        ):
            behind = part_at(block, norm) if norm else None
            found[site] = SiteModule(module=module if behind is None else behind, inward=False)
    return found


def plain_run(
    hf_model: Any, tokens: Sequence[int], change: tuple[int, str, Tensor] | None = None
) -> tuple[dict[tuple[int, str], Tensor], Tensor]:
    """Every site with a module, and the pattern, on one prompt; and the logits.

    Sites are (1, pos, width) and the pattern is (1, head, query, key), by (layer, site). `change`
    gives a site a new value with as many numbers.
    """
    seen: dict[tuple[int, str], Tensor] = {}
    handles = []
    for layer in range(hf_model.config.num_hidden_layers):
        for site, place in site_modules(hf_model, layer).items():
            new = change[2] if change is not None and change[:2] == (layer, site) else None
            hook = _Hook(seen, (layer, site), place.columns, new)
            if place.inward:
                handles.append(
                    place.module.register_forward_pre_hook(hook.before, with_kwargs=True)
                )
            else:
                handles.append(place.module.register_forward_hook(hook.behind))
    device = next(hf_model.parameters()).device
    try:
        with torch.no_grad():
            ids = torch.tensor([tokens], device=device)
            out = hf_model(ids, output_attentions=True, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for layer, pattern in enumerate(out.attentions or ()):
        seen[layer, "pattern"] = pattern
    return seen, out.logits


@dataclass(frozen=True)
class _Hook:
    """Keeps a site's value, after it is replaced if a new one is given."""

    seen: dict[tuple[int, str], Tensor]
    address: tuple[int, str]
    columns: Tensor | None
    new: Tensor | None

    def before(self, module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (self.through(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self.through(kwargs["hidden_states"])}

    def behind(self, module: Any, args: Any, out: Any) -> Any:
        return (self.through(out[0]), *out[1:]) if isinstance(out, tuple) else self.through(out)

    def through(self, value: Tensor) -> Tensor:
        """The value with which the model continues; a copy, because some models write into it."""
        value = value.clone()
        every = slice(None) if self.columns is None else self.columns
        if self.new is not None:
            part = value[..., every]
            value[..., every] = self.new.to(value).reshape(part.shape)
        self.seen[self.address] = value[..., every].clone()
        return value
