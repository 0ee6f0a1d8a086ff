"""What a head's weights do with single tokens: what it writes (OV), and what it looks for (QK)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interp.core.arguments import listed
from interp.core.components import within
from interp.engine.forward import Runner
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Unembedded, unembed
from interp.models.vocabulary import embedded, read_vocabulary


@dataclass(frozen=True, kw_only=True)
class HeadToken:
    """A token as a head's weights see it.

    Attributes:
        token: its id.
        text: its text.
        writes: the tokens whose logits the head raises and lowers most when it attends to it (OV).
        seeks: the tokens that it attends to most and least as a query (QK).
        sink: the score of the head's sink (GPT-OSS), which takes part in the softmax beside those
            of the tokens: with lower scores, less of the attention goes to tokens. None of a head
            without one.
    """

    token: int
    text: str
    writes: Unembedded
    seeks: Unembedded
    sink: float | None = None


@torch.no_grad()
def head_tokens(
    model: LanguageModel,
    layer: int,
    head: int,
    tokens: str | int | Sequence[str | int],
    *,
    k: int = 5,
) -> list[HeadToken]:
    """What the weights of one head do with some tokens, without a prompt.

        OV(t) = W_U (w_final * n(t) W_V W_O),   QK(t, s) = scale * (n(t) W_Q) . (n(s) W_K)

    n(t) is the embedding of t behind the layer's norm: what the head would read if no earlier layer
    wrote anything. Biases and norms of queries and keys are applied. Rotary embedding is that of
    one and the same position, so distance plays no part. A norm behind attention, and the final
    norm, act by their weights alone. OV is in logits up to the final norm's scale, QK is the
    attention score before a soft cap and the softmax.

    Args:
        model: a model with a known architecture.
        layer: the layer.
        head: the head.
        tokens: words of one token each, or token ids.
        k: how many tokens of each sign.

    Raises:
        InterpError: an unknown architecture, no such layer or head, a word of several tokens, or k
            out of range.

    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    decoder = model.require_decoder("the weights of heads")
    (layer,), (head,) = (
        within([number], size, name, model.name)
        for number, size, name in ((layer, model.n_layers, "layer"), (head, model.n_heads, "head"))
    )
    ids = [model.single_token(token) for token in listed(tokens)]
    block, runner = decoder.blocks[layer], Runner(decoder)
    attn, kv = block.attn, head // (model.n_heads // model.n_kv_heads)
    read = embedded(decoder, block.ln1, ids)
    written = runner.project(block, "v", read)[:, kv] @ attn.W_O[head]
    if block.ln1_post is not None:
        written = written * block.ln1_post.weight

    def rotated(which: str, read: torch.Tensor) -> torch.Tensor:
        at = torch.ones(len(read), dtype=torch.long)
        return runner.rotated(attn, which, runner.project(block, which, read), at)

    queries = attn.scale * rotated("q", read)[:, head]
    seen = read_vocabulary(
        model, block.ln1, lambda keys: rotated("k", keys)[:, kv] @ queries.T, k=k
    )
    made = unembed(model, written, k=k, norm=True)
    rows = zip(ids, model.strings(ids), made, seen, strict=True)
    sink = None if attn.sinks is None else float(attn.sinks[head])
    return [HeadToken(token=i, text=t, writes=w, seeks=s, sink=sink) for i, t, w, s in rows]
