"""The arithmetic of path patching."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.core.components import Component
from interp.engine.architecture import Decoder
from interp.engine.run_cost import plain_flops, restart_flops


def path_flops(
    decoder: Decoder,
    lengths: Sequence[int],
    where: Sequence[Sequence[int]],
    receivers: Sequence[Component],
    layers: Sequence[int],
) -> float:
    """Operations of `path_patching` of every head of some layers, on pairs of equal prompts.

    As `path_patching` does it: both runs; the MLPs between sender and receiver at the sender's
    positions; the receivers' inputs; then a run of each sender from its first receiver on. Without
    receivers, the logits: the last token alone, to the last layer. Matrix products only.

    Args:
        decoder: the model; its values are not read.
        lengths: tokens of each prompt.
        where: the positions of the senders in each prompt.
        receivers: heads' inputs or MLPs; none for the logits.
        layers: the senders' layers.
    """
    n_layers, parallel = len(decoder.blocks), decoder.blocks[0].parallel
    attn, flops = decoder.blocks[0].attn, decoder.flops
    senders, last = np.array(layers), max((x.layer for x in receivers), default=n_layers)
    inside = {x.layer for x in receivers if x.site in ("post", "mlp_out")}
    head = 2.0 * attn.d_head * decoder.d_model
    sites = {(x.layer, x.site) for x in receivers if x.site not in ("post", "mlp_out")}
    each = 0.0  # of one position of the senders, all heads of a layer as one
    for layer in range(int(senders.min()), min(last + 1, n_layers)):
        above = (senders < layer).sum()
        for site in (site for at, site in sites if at == layer):
            each += above * flops["qo" if site == "q" else "kv"] / 2
        if receivers and layer == last and layer not in inside:
            break
        each += (senders == layer).sum() * head
        each += (above if parallel else (senders <= layer).sum()) * flops["mlp"]
    total = 2 * plain_flops(decoder, lengths)
    for length, places in zip(lengths, where, strict=True):
        if not receivers:
            places = [at for at in places if at == length - 1]
        if not places:
            continue
        total += attn.n_heads * each * len(places)
        for layer in senders.tolist():
            # A head's own MLP may receive it; inputs of its own attention cannot.
            reached = [x.layer for x in receivers if x.layer > layer - (x.layer in inside)]
            if reached:
                changed = length - places[0]
                total += attn.n_heads * restart_flops(
                    decoder, [length], layer=min(reached), last=changed
                )
    return total
