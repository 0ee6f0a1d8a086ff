"""The least memory that a graph needs. Checked before anything runs."""

from __future__ import annotations

from interp.core.errors import InterpError
from interp.engine.architecture import Decoder
from interp.engine.edges.graph import Graph
from interp.engine.gradients import TAPE_SHARE, tape_bytes

MATRICES = 8
"""Number of float64 (writers, readers) matrices held while one prompt is scored."""


def refuse_beyond(what: str, parts: dict[str, float], budget: int) -> None:
    """Refuse a measurement if one prompt alone exceeds the budget.

    Args:
        what: the measurement.
        parts: the budget that each part of it needs, in bytes.
        budget: the budget, in bytes.

    Raises:
        InterpError: a part needs more than the budget.
    """
    name, most = max(parts.items(), key=lambda part: part[1])
    if most > budget:
        enough = f"{1.05 * most / 1e9:.2g}"
        raise InterpError(
            f"{what} within {budget / 1e9:.3g} GB",
            f"{name} needs a budget of {most / 1e9:.3g} GB",
            f"give budget_gb={enough}, shorter prompts, or native key/value heads",
        )


def scoring_needs(decoder: Decoder, graph: Graph, longest: int, held: int) -> dict[str, float]:
    """The least budget in bytes that scoring edges needs, by the part that needs it.

    `held` is the memory per token of both runs' outputs and one point's gradients. A backward pass
    needs the autograd graph of at least one layer; those of other layers can be recomputed.
    Products are computed one token at a time.
    """
    width = len(graph.writers) + 4 * max(group.stop for group in graph.groups(0).values())
    item = max(4, decoder.unembed.element_size())
    layer = tape_bytes(decoder, longest) / len(decoder.blocks)
    return {
        f"one prompt's scores of {graph.n_edges} edges": 8.0 * MATRICES * graph.allowed.size,
        f"one prompt of {longest} tokens": longest * (layer + held) / TAPE_SHARE,
        "one token's writes and gradients": width * decoder.d_model * item / (1 - TAPE_SHARE),
    }


def edge_tape(decoder: Decoder, graph: Graph) -> int:
    """Approximate bytes per token of a run over edges whose gradients are taken.

    Every reader has its own input, stored before and after its norm. Under a post-norm it has one
    input for every earlier layer.
    """
    d, blocks = decoder.d_model, decoder.blocks
    readers = graph.n_heads + 2 * graph.n_kv_readers + 1
    post = blocks[0].ln1_post is not None
    width = 2 * len(graph.writers) * d
    for layer, block in enumerate(blocks):
        parts = 1 + (3 * (layer + 1) if post else 0)
        width += (5 + parts) * readers * d + 6 * d + 6 * decoder.d_mlp
        width += 8 * block.attn.n_heads * block.attn.d_head
    return width * decoder.unembed.element_size()
