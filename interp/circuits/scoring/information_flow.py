"""Information-flow routes: each writer's share of every reader's input. Not causal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from interp.circuits.scoring.gradient_estimates import WRITTEN, Chunk, EdgeEffects, EstimateState
from interp.engine.edges.products import Products, WriterOutputs
from interp.engine.gradients import Run, rows_of


def flow_shares(work: EstimateState, chunk: Chunk) -> EdgeEffects:
    """Each writer's share of every reader's input, averaged over a prompt's tokens.

        share(u, v) = d(u) / sum over u' of d(u'),  d(u) = max(0, |in_v| - |in_v - a_u|),

    with 1-norms, at each token; for the logits, at the tokens that are read: the last one, and
    those of answers of several tokens. a_u is the output of u and
    in_v the input of v. Queries, keys and values of a layer read the same input and have equal
    shares. Under a post-norm a head's output is its part of the norm's output, at the norm's scale.

    Source: arXiv 2403.00824.
    """
    layout, x = rows_of(work.runner, chunk.base)
    run = work.run(x, layout, chunk, kept=WRITTEN | {"attn_raw", "resid_mid"})
    written = WriterOutputs.of(run, work.graph)
    tiles = Products(
        runner=work.runner,
        graph=work.graph,
        change=written,
        layout=layout,
        starts=np.zeros_like(chunk.differ),
        budget=work.budget // 4,
        writers=slice(0, len(work.graph.writers)),
    )
    found = torch.zeros(len(layout), *work.graph.shape, dtype=torch.float64)
    for rows, tokens in tiles.tiles():
        at = torch.from_numpy(tokens.ravel()).to(work.runner.device)
        writes = _writes(work, run, written, at)
        for columns, upto, read in _reads(work, run, at):
            shares = _shares(writes[:upto], read).view(upto, *tokens.shape)
            found[rows, :upto, columns] += shares.sum(-1).T[..., None]
        if n := layout.read_in(rows, tokens):
            final = run.site(work.graph.n_layers, "resid_pre")[at].view(*tokens.shape, -1)[:, -n:]
            ends = writes.view(len(writes), *tokens.shape, -1)[:, :, -n:].flatten(1, 2)
            shares = _shares(ends, final.flatten(0, 1)).view(len(writes), -1, n).sum(-1).T
            share = torch.from_numpy(layout.length[rows] / layout.tails[rows])
            found[rows, :, -1] += shares * share[:, None]
    found /= torch.from_numpy(layout.length)[:, None, None]
    nothing = torch.full((len(layout),), torch.nan, dtype=torch.float64)
    return EdgeEffects(gained=found, base=work.value(run, chunk), other=nothing)


def _shares(writes: Tensor, read: Tensor) -> Tensor:
    """(writers, tokens) shares of the input, float64 on the CPU."""
    close = read.abs().sum(-1) - (read - writes).abs().sum(-1)
    close = close.clamp(min=0).double().cpu()
    total = close.sum(0, keepdim=True)
    return torch.where(total > 0, close / total, 0.0)


def _writes(work: EstimateState, run: Run, written: WriterOutputs, at: Tensor) -> Tensor:
    """(writers, tokens, d_model): what each writer adds to the residual stream."""
    found = [written.embed[at][None]]
    for layer, block in enumerate(work.runner.decoder.blocks):
        heads = block.attn.head_outputs(written.z[layer][at])
        if block.ln1_post is not None:
            heads = block.ln1_post.share(heads, run.site(layer, "attn_raw")[at])
        found.append(heads)
        found.append(written.mlp_out[layer][at][None])
    return torch.cat(found)


def _reads(work: EstimateState, run: Run, at: Tensor) -> list[tuple[slice, int, Tensor]]:
    """(readers, number of writers before them, their input) for every layer."""
    graph, found = work.graph, []
    for layer, block in enumerate(work.runner.decoder.blocks):
        groups = graph.groups(layer)
        before = run.site(layer, "resid_pre")[at]
        attention = slice(groups["q"].start, groups["v"].stop)
        found.append((attention, graph.before(layer).stop, before))
        earlier, read = graph.before(layer).stop, before
        if not block.parallel:
            earlier, read = graph.heads(layer).stop, run.site(layer, "resid_mid")[at]
        found.append((groups["mlp_out"], earlier, read))
    return found
