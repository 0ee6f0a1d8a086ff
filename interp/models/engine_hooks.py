"""Runs with hooks in the fast engine, for models that TransformerLens cannot run.

Every prompt runs whole, and its attention patterns are written out. So this is slower than a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from interp.core.components import EXPERT_SITES
from interp.engine.architecture import Decoder, normed
from interp.engine.forward import Runner, prompt_pattern
from interp.models.batches import Address, Batch, Hook

HookedSite = Callable[[str, Tensor], Tensor]
"""(site, its value at all tokens) -> the value with which the run continues."""


def run_hooked(decoder: Decoder, batch: Batch, hooks: Mapping[Address, list[Hook]]) -> Tensor:
    """(rows, columns, d_vocab) logits of a batch, with hooks on some sites; 0 for padding.

    Hooks see what TransformerLens would give them, see `interp.models.batches.Hook`.
    """
    runner, real = Runner(decoder), batch.mask.bool()
    positions = (real.cumsum(1) - 1)[real]
    lengths = batch.lengths.tolist()
    x = decoder.embed(batch.tokens[real], positions)
    for layer in range(len(decoder.blocks)):

        def edited(site: str, value: Tensor, layer: int = layer) -> Tensor:
            functions = hooks.get((layer, site), [])
            if not functions:
                return value
            whole = _padded(value, real)
            for function in functions:
                whole = function(whole, batch)
            return whole.reshape(*real.shape, *value.shape[1:])[real]

        def pattern(rows: list[Tensor], layer: int = layer) -> list[Tensor]:
            return _edited_patterns(rows, hooks.get((layer, "pattern"), []), batch)

        changed = {site for at, site in hooks if at == layer}
        x = _block(runner, layer, x, positions, lengths, edited, pattern, changed)
    return _padded(decoder.logits(decoder.ln_final(x)), real)


def _padded(value: Tensor, real: Tensor) -> Tensor:
    """(rows, columns, ...) from the values of all tokens that are not padding."""
    whole = value.new_zeros(*real.shape, *value.shape[1:])
    return whole.index_put(real.nonzero(as_tuple=True), value)


def _edited_patterns(rows: list[Tensor], functions: Sequence[Hook], batch: Batch) -> list[Tensor]:
    """The patterns of all prompts, (head, query, key) each, after the hooks on them."""
    if not functions:
        return rows
    width = batch.tokens.shape[1]
    spans = [
        slice(first, first + length)
        for first, length in zip(batch.first.tolist(), batch.lengths.tolist(), strict=True)
    ]
    padded = []
    for row, span in zip(rows, spans, strict=True):
        sides = (span.start, width - span.stop)
        padded.append(torch.nn.functional.pad(row, (*sides, *sides)))
    whole = torch.stack(padded)
    for function in functions:
        whole = function(whole, batch)
    return [row[:, span, span] for row, span in zip(whole, spans, strict=True)]


def _block(
    runner: Runner,
    layer: int,
    x: Tensor,
    positions: Tensor,
    lengths: list[int],
    edited: HookedSite,
    pattern: Callable[[list[Tensor]], list[Tensor]],
    changed: set[str],
) -> Tensor:
    """resid_post of all tokens; sites in `changed` have hooks."""
    block = runner.decoder.blocks[layer]
    attn = block.attn
    x = edited("resid_pre", x)
    read = normed(block.ln1, x)
    q, k, v = (edited(name, runner.project(block, name, read)) for name in "qkv")
    turned = (runner.rotated(attn, name, part, positions) for name, part in (("q", q), ("k", k)))
    queries, keys, values = (part.split(lengths) for part in (*turned, v))
    rows = pattern([prompt_pattern(attn, *pair) for pair in zip(queries, keys, strict=True)])
    z = torch.cat([mixed(p[None], v[None])[0] for p, v in zip(rows, values, strict=True)])
    entering: dict[str, Tensor] = {}

    def after(site: str, value: Tensor) -> Tensor:
        if site == "read":
            entering["mlp"] = value
        if site == "post" and not changed.isdisjoint(("pre", "pre_linear")):
            mlp, read = block.neurons, normed(block.ln2, entering["mlp"])
            value = mlp.act(edited("pre", mlp.gate(read)))
            if mlp.up is not None:
                value = value * edited("pre_linear", mlp.up(read))
        return edited(site, value)

    experts = not changed.isdisjoint(EXPERT_SITES)
    return runner.after_heads(block, x, z, after, experts=experts)


def mixed(pattern: Tensor, v: Tensor) -> Tensor:
    """Site z (batch, pos, head, d_head) of patterns and values, which heads may share."""
    v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
    return torch.einsum("bhqk,bkhd->bqhd", pattern.to(v), v)
