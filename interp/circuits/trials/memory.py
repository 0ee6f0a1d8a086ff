"""What a graph takes of a memory budget at the least: known before anything runs, or refused."""

from __future__ import annotations

from interp.core.errors import InterpError
from interp.engine.architecture import Decoder
from interp.engine.edges.graph import Graph
from interp.engine.gradients import TAPE_SHARE, tape_bytes

MATRICES = 8
"""Float64 matrices of writers and readers that scoring one prompt holds: sums, and its own."""


def refuse_beyond(what: str, parts: dict[str, float], budget: int) -> None:
    """Refuse what one prompt alone does not leave room for.

    Args:
        what: what was asked for.
        parts: the budget that each thing asks for, in bytes.
        budget: bytes there are.

    Raises:
        InterpError: a part is larger than the budget.
    """
    name, most = max(parts.items(), key=lambda part: part[1])
    if most > budget:
        raise InterpError(
            f"{what} within {budget / 1e9:.3g} GB",
            f"{name} needs a budget of {most / 1e9:.3g} GB",
            f"give budget_gb={_up(most / 1e9)}, shorter prompts, or native key/value heads",
        )


def scoring_needs(decoder: Decoder, graph: Graph, longest: int, held: int) -> dict[str, float]:
    """The budget in bytes that scoring edges asks for at the least, by what asks for it.

    `held` are the bytes a token of both runs and of one point's gradients takes. A layer's graph is
    the least of a backward pass: the others are rebuilt. Products are made a token at a time.
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
    """About how many bytes one token takes of a run of edges whose gradient is asked for.

    Every reader has an input of its own, kept before and after its norm; under a post-norm, one for
    every layer that was written to before.
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


def _up(gigabytes: float) -> str:
    """A little more, with two digits."""
    return f"{1.05 * gigabytes:.2g}"
