"""The arithmetic of path patching."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.core.components import Component
from interp.core.prompts import Task
from interp.engine.architecture import Decoder
from interp.engine.cost import Cost, forecast
from interp.engine.run_cost import plain_flops, restart_flops
from interp.models.language_model import LanguageModel
from interp.patching.path_spec import PathSpec, PathSweep, lay_out_paths


def path_patching_cost(model: LanguageModel, task: Task, spec: PathSpec) -> Cost:
    """Estimate the cost of `path_patching` of these paths; a run is one sender of one pair.

    Raises:
        InterpError: as `path_patching`, as far as it can be told without a run.
    """
    sweep = lay_out_paths(model, task, spec)
    number = len(sweep.layers) * (model.n_heads if sweep.heads else 1) * sum(map(bool, sweep.where))
    flops = path_operations(model, sweep)
    return forecast("paths", model.hash, model.device, model.dtype, number, flops)


def path_operations(model: LanguageModel, sweep: PathSweep) -> float:
    """`path_flops` of the paths of a task."""
    return path_flops(
        model.require_decoder("path patching"),
        [len(row) for row in sweep.runs.base],
        sweep.where,
        sweep.receivers,
        sweep.layers,
        heads=sweep.heads,
        freeze_mlps=sweep.spec.freeze_mlps,
    )


def path_flops(
    decoder: Decoder,
    lengths: Sequence[int],
    where: Sequence[Sequence[int]],
    receivers: Sequence[Component],
    layers: Sequence[int],
    *,
    heads: bool = True,
    freeze_mlps: bool = False,
) -> float:
    """Operations of `path_patching` of every head or MLP of some layers, on pairs of equal prompts.

    As `path_patching` does it: both runs; the MLPs between sender and receiver at the sender's
    positions; the receivers' inputs; then a run of each sender from its first receiver on. Without
    receivers, the logits: the last token alone, to the last layer. Matrix products only.

    Args:
        decoder: the model; its values are not read.
        lengths: tokens of each prompt.
        where: the positions of the senders in each prompt.
        receivers: heads' inputs or MLPs; none for the logits.
        layers: the senders' layers.
        heads: whether the senders are heads, or else MLPs.
        freeze_mlps: whether the MLPs in between keep their values.
    """
    n_layers, parallel = len(decoder.blocks), decoder.blocks[0].parallel
    attn, flops = decoder.blocks[0].attn, decoder.flops
    senders, last = np.array(layers), max((x.layer for x in receivers), default=n_layers)
    inside = {x.layer for x in receivers if x.site in ("post", "mlp_out")}
    number, head = (attn.n_heads, 2.0 * attn.d_head * decoder.d_model) if heads else (1, 0.0)
    own = heads and not parallel  # a head's own MLP follows it
    sites = {(x.layer, x.site) for x in receivers if x.site not in ("post", "mlp_out")}
    each = 0.0  # of one position of the senders, all of a layer as one
    for layer in range(int(senders.min()), min(last + 1, n_layers)):
        above = (senders < layer).sum()
        for site in (site for at, site in sites if at == layer):
            each += above * flops["qo" if site == "q" else "kv"] / 2
        if receivers and layer == last and layer not in inside:
            break
        each += (senders == layer).sum() * head
        if layer in inside or not freeze_mlps:
            each += ((senders <= layer).sum() if own else above) * flops["mlp"]
    total = 2 * plain_flops(decoder, lengths)
    for length, places in zip(lengths, where, strict=True):
        if not receivers:
            places = [at for at in places if at == length - 1]
        if not places:
            continue
        total += number * each * len(places)
        for layer in senders.tolist():
            # A head's own MLP may receive it; inputs of its own attention cannot.
            reached = [x.layer for x in receivers if x.layer > layer - (own and x.layer in inside)]
            if reached:
                changed = length - places[0]
                total += number * restart_flops(decoder, [length], layer=min(reached), last=changed)
    return total
