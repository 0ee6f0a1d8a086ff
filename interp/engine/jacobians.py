"""The mean Jacobian of the last layer with respect to earlier layers, on one prompt, exactly.

It takes one backward pass for each dimension of the last layer. The passes go through one layer
together before the next one, so only the graph of one layer is in memory, and its weights stay in
the processor's cache. Positions that are not averaged need no backward pass: earlier ones are read
as keys and values, and the last one is not run at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from interp.engine.forward import Baseline, Runner
from interp.engine.layout import Layout
from interp.engine.restart import baseline
from interp.engine.stopping import stop_if_asked

ROWS = 16
"""Dimensions of the last layer whose backward passes are batched."""


def mean_jacobians(
    runner: Runner, tokens: Sequence[int], layers: Sequence[int], *, skip: int, rows: int = ROWS
) -> Tensor:
    """(layers, d_model, d_model) float32 on the CPU, from resid_post of layers to the last one.

        J_l = mean over t in V of the sum over t' in V, t' >= t, of d h_last[t'] / d h_l[t]

    V are the positions from `skip` to the last but one; there must be at least one. The sum over
    t' comes from one backward pass, because no later position is changed by t' < t. `rows` changes
    time and memory only.
    """
    decoder, tokens = runner.decoder, tokens[:-1]
    n_layers, d, span = len(decoder.blocks), decoder.d_model, len(tokens) - skip
    with torch.no_grad():
        base = baseline(runner, [tokens])
    found = torch.zeros(len(layers), d, d)
    # The gradient of output i at the source token t: at first the unit vector i, for every t.
    gradient = torch.eye(d, dtype=runner.dtype, device=runner.device)
    gradient = gradient[:, None].repeat(1, span, 1)
    for layer in reversed(range(min(layers), n_layers)):
        if layer in layers:
            mean = gradient.float().mean(1).cpu()
            for place in np.flatnonzero(np.array(layers) == layer):
                found[place] = mean
        if layer > min(layers):
            _through_block(runner, layer, base, gradient, skip, min(rows, d))
    return found


def _through_block(
    runner: Runner, layer: int, base: Baseline, gradient: Tensor, skip: int, rows: int
) -> None:
    """Turn the gradient (output, token, d_model) at resid_post of a layer into that at resid_pre.

    The rows of the graph are copies of the prompt from position `skip` on, one for each output of
    a batch, because the gradients of a row depend on no other row.
    """
    each = np.zeros(rows, dtype=np.int64)
    layout = Layout(
        ids=np.arange(rows),
        prompt=each,
        start=each + skip,
        length=each + int(base.lengths[0]),
        offset=base.offset,
    )
    x = base.sites[layer, "resid_pre"][skip:].repeat(rows, 1).requires_grad_()
    with torch.enable_grad():
        out = runner.block(layer, x, layout, base=base)
    for some in gradient.split(rows):
        stop_if_asked()
        given = some if len(some) == rows else torch.cat([some, gradient[: rows - len(some)]])
        (read,) = torch.autograd.grad(out, x, given.flatten(0, 1), retain_graph=True)
        some.copy_(read.view_as(given)[: len(some)])
