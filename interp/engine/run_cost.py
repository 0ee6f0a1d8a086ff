"""The arithmetic of plain runs, restarted runs and generation: matrix products only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.engine.architecture import Decoder
from interp.engine.cost import floor_flops
from interp.engine.sweep import Cells

Lengths = Sequence[int] | np.ndarray
"""Number of tokens of each prompt."""


def read_flops(decoder: Decoder, n: float) -> float:
    """Operations of reading all logits at n tokens."""
    return 2.0 * n * decoder.d_model * decoder.d_vocab


def plain_flops(decoder: Decoder, lengths: Lengths) -> float:
    """Operations of whole runs: every layer at every token, without the logits.

    sum over prompts, layers and tokens t of  kv + qo + mlp + 4 * heads * d_head * (t + 1)
    """
    sizes, attn = np.asarray(lengths, dtype=float), decoder.blocks[0].attn
    mixing = 2.0 * attn.n_heads * attn.d_head * sizes * (sizes + 1)
    return len(decoder.blocks) * float((sizes * sum(decoder.flops.values()) + mixing).sum())


def restart_flops(decoder: Decoder, lengths: Lengths, *, layer: int, last: int | None) -> float:
    """Operations of one changed run of every prompt, from a layer and its last tokens on.

    The floor that `floor_flops` gives for resid_pre: earlier keys and values are those of the plain
    runs. last: how many of the last tokens differ; None for all. Without the logits.
    """
    sizes = np.asarray(lengths)
    start = np.zeros_like(sizes) if last is None else np.maximum(sizes - last, 0)
    one = np.ones_like(sizes)
    cells = Cells(
        prompt=np.arange(len(sizes)),
        cell=0 * one,
        layer=layer * one,
        component=-one,
        count=one,
        positions=start,
    )
    return floor_flops(decoder, cells, sizes, "resid_pre")


def text_flops(decoder: Decoder, lengths: Lengths, new: float) -> float:
    """Operations of texts: every token runs once, and the logits are read before each new one."""
    sizes = np.asarray(lengths, dtype=float)
    return plain_flops(decoder, sizes + new) + read_flops(decoder, len(sizes) * new)
