"""The output of a layer after a site is replaced, at the replaced tokens only.

For sites that change only their own token in the layer (z, attn_out, resid_mid, the MLP's sites and
resid_post, and also q and pattern, which change z at their own position), the new resid_post is
computed from the stored run without running attention again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from interp.core.branches import places
from interp.core.components import EXPERT_SITES
from interp.engine.architecture import Block, Experts, normed
from interp.engine.forward import Baseline, Runner, prompt_pattern
from interp.engine.layout import Indices

EDITED = ("resid_pre", "k", "v")
"""Sites that change other tokens of their layer too, and are replaced before the block runs."""


def needed(runner: Runner, site: str) -> tuple[frozenset[str], frozenset[str]]:
    """The sites to store of the baseline and of the other run, in order to patch `site`."""
    block = runner.decoder.blocks[0]
    base = {"resid_pre", *(() if block.parallel else ("resid_mid",))}
    if block.ln1_post is not None or block.parallel:
        base |= {"attn_raw", "attn_out"}
    if block.ln2_post is not None:
        base |= {"mlp_raw"}
    other = {site}
    if site in ("q", "pattern"):
        base |= {"z"}
    elif site in ("pre", "pre_linear"):
        base |= {"pre", "pre_linear", "post"}
    elif site not in EDITED:
        base |= {site}
    return frozenset(base), frozenset(other)


def replaced_z(runner: Runner, base: Baseline, values: Tensor, layer: int, site: str) -> Tensor:
    """Site z of every baseline token if `site` (q or pattern) has other values."""
    attn = runner.decoder.blocks[layer].attn
    per_kv = attn.n_heads // attn.n_kv_heads
    z, branches = [], base.branches or [()] * len(base.lengths)
    rows = zip(base.offset.tolist(), base.lengths.tolist(), branches, strict=True)
    for start, length, sizes in rows:
        span = slice(start, start + length)
        v = base.sites[layer, "v"][span].transpose(0, 1).repeat_interleave(per_kv, 0)
        if site == "pattern":
            pattern = values[span, :, :length].transpose(0, 1)
        else:
            at = torch.from_numpy(places(length, sizes)[0])
            q = runner.rotated(attn, "q", values[span], at)
            pattern = prompt_pattern(attn, q, base.sites[layer, "k_rot"][span], sizes)
        z.append((pattern.to(v.dtype) @ v).transpose(0, 1))
    return torch.cat(z)


def resid_post(
    runner: Runner,
    base: Baseline,
    layer: int,
    site: str,
    tokens: Tensor,
    components: Indices | None,
    new: Tensor,
) -> Tensor:
    """resid_post at some tokens if `site` has the values `new` there.

    `tokens` are flat indices of the baseline. With `components`, only the head or neuron
    `components[j]` of token j is replaced, and `new[j]` is its value.
    """
    block = runner.decoder.blocks[layer]
    if site == "resid_post":
        return new
    if site in ("resid_mid", "attn_out"):
        mid = new if site == "resid_mid" else base.at(layer, "resid_pre", tokens) + new
        if not block.parallel:
            return mid + runner.mlp_out(block, mid)
        change = new - base.at(layer, "attn_out", tokens)
        return base.at(layer + 1, "resid_pre", tokens) + change
    if site == "z":
        return _after_heads(runner, base, layer, tokens, components, new)
    before = "resid_pre" if block.parallel else "resid_mid"
    read = base.at(layer, before, tokens)
    if block.parallel:
        read = read + base.at(layer, "attn_out", tokens)
    if site == "mlp_out":
        return read + new
    after = _after_experts if site in EXPERT_SITES else _after_neurons
    return after(base, block, layer, site, tokens, components, new, read)


def _after_heads(
    runner: Runner,
    base: Baseline,
    layer: int,
    tokens: Tensor,
    components: Indices | None,
    new: Tensor,
) -> Tensor:
    block = runner.decoder.blocks[layer]
    attn = block.attn
    old = base.at(layer, "z", tokens)
    if components is None:
        change = (new - old).flatten(1) @ attn.o.weight
    else:
        heads = torch.from_numpy(components).to(new.device)
        difference = new - old[torch.arange(len(tokens), device=new.device), heads]
        change = difference.new_empty(len(tokens), runner.decoder.d_model)
        for head in np.unique(components).tolist():
            rows = heads == head
            change[rows] = difference[rows] @ attn.W_O[head]
    if block.ln1_post is not None:
        out = block.ln1_post(base.at(layer, "attn_raw", tokens) + change)
        change = out - base.at(layer, "attn_out", tokens)
    if block.parallel:
        return base.at(layer + 1, "resid_pre", tokens) + change
    mid = base.at(layer, "resid_mid", tokens) + change
    return mid + runner.mlp_out(block, mid)


def _after_neurons(
    base: Baseline,
    block: Block,
    layer: int,
    site: str,
    tokens: Tensor,
    components: Indices | None,
    new: Tensor,
    read: Tensor,
) -> Tensor:
    columns = None if components is None else torch.from_numpy(components).to(new.device)
    rows = torch.arange(len(tokens), device=new.device)

    def stored(name: str) -> Tensor:
        values = base.at(layer, name, tokens)
        return values if columns is None else values[rows, columns]

    if site in ("pre", "pre_linear"):
        gate = new if site == "pre" else stored("pre")
        post = block.neurons.act(gate)
        if block.neurons.up is not None:
            post = post * (new if site == "pre_linear" else stored("pre_linear"))
    else:
        post = new
    difference = post - stored("post")
    down = block.neurons.down.weight
    change = difference @ down if columns is None else difference[:, None] * down[columns]
    return _after_mlp(base, block, layer, tokens, change, read)


def _after_experts(
    base: Baseline,
    block: Block,
    layer: int,
    site: str,
    tokens: Tensor,
    components: Indices | None,
    new: Tensor,
    read: Tensor,
) -> Tensor:
    experts = block.mlp
    assert isinstance(experts, Experts)
    rows = torch.arange(len(tokens), device=new.device)
    columns = None if components is None else torch.from_numpy(components).to(new.device)
    if site == "expert_out":
        old = base.sites[layer, site][tokens, slice(None) if columns is None else columns]
        change = new - old
        change = change.sum(1) if columns is None else change
        return _after_mlp(base, block, layer, tokens, change, read)
    logits = new
    if columns is not None:
        logits = base.at(layer, site, tokens).clone()
        logits[rows, columns] = new
    entering = base.at(layer, "resid_pre" if block.parallel else "resid_mid", tokens)
    written = experts.each(normed(block.ln2, entering), experts.weights(logits)).sum(1)
    return read + normed(block.ln2_post, written)


def _after_mlp(
    base: Baseline, block: Block, layer: int, tokens: Tensor, change: Tensor, read: Tensor
) -> Tensor:
    """resid_post if the MLP's output before its post-norm changes by `change`."""
    if block.ln2_post is None:
        return base.at(layer + 1, "resid_pre", tokens) + change
    return read + block.ln2_post(base.at(layer, "mlp_raw", tokens) + change)
