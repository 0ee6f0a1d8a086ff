"""Read directions of the residual stream as tokens, with the unembedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.statistics import widened
from interp.engine.architecture import Decoder
from interp.models.language_model import LanguageModel

BLOCK = 2**23
"""Number of logits in memory at once."""

NeuronMetric = Literal["zscore", "cosine", "dot"]


class Token(NamedTuple):
    """A token of the vocabulary, with a probability or a logit."""

    token: int
    text: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Unembedded:
    """The tokens whose logits a direction raises most and lowers most, strongest first."""

    promoted: tuple[Token, ...]
    suppressed: tuple[Token, ...]


@reads_arguments
def unembed(
    model: LanguageModel, vectors: Tensor, *, k: int = 10, norm: bool = False
) -> list[Unembedded]:
    """The tokens whose logits directions of the residual stream raise and lower most.

        logits(v) = W_U v,   or with `norm`   W_U (weight_final * v)

    With `norm`, a LayerNorm also centres v first. The norm's scale and the soft cap are not
    applied: they belong to a whole residual stream, not to a single direction.

    Args:
        model: a model that the fast engine can run.
        vectors: (n, d_model), or (d_model,) for one direction.
        k: number of tokens of each sign.
        norm: apply the weight of the final norm.

    Raises:
        InterpError: the engine cannot run the model, the vectors have another width or are not
            finite, or k is out of range.
    """
    decoder = model.require_decoder("unembedding")
    _check_k(k, decoder)
    vectors = torch.atleast_2d(torch.as_tensor(vectors))
    if vectors.dim() != 2 or vectors.shape[-1] != decoder.d_model:
        raise InterpError(
            f"unembedding shape {tuple(vectors.shape)}",
            f"{model.name} has d_model {decoder.d_model}",
            "give (n, d_model) vectors",
        )
    if not bool(torch.isfinite(vectors).all()):
        raise InterpError("unembedding", "values that are not finite", "check the vectors")
    best: dict[int, list[tuple[Tensor, Tensor]]] = {1: [], -1: []}
    with torch.no_grad():
        for block in vectors.split(max(1, BLOCK // decoder.d_vocab)):
            block = block.to(decoder.unembed)
            if norm:
                if decoder.ln_final.centred:
                    block = block - block.mean(-1, keepdim=True)
                block = (block * decoder.ln_final.weight).to(decoder.unembed)
            logits = widened(block @ decoder.unembed.T)
            for sign, kept in best.items():
                top = (sign * logits).topk(k, dim=-1)
                kept.append((top.indices.cpu(), sign * top.values.cpu()))
    ids = {sign: torch.cat([i for i, _ in kept]) for sign, kept in best.items() if kept}
    if not ids:
        return []
    shown = torch.cat(list(ids.values())).unique().tolist()
    strings = dict(zip(shown, model.strings(shown), strict=True))
    listed: dict[int, list[tuple[Token, ...]]] = {}
    for sign, kept in best.items():
        values = torch.cat([v for _, v in kept]).tolist()
        listed[sign] = [
            tuple(Token(i, strings[i], v) for i, v in zip(row, value, strict=True))
            for row, value in zip(ids[sign].tolist(), values, strict=True)
        ]
    pairs = zip(listed[1], listed[-1], strict=True)
    return [Unembedded(promoted=high, suppressed=low) for high, low in pairs]


def _written(decoder: Decoder, layer: int) -> Tensor:
    """(neuron, d_model) output weights of each neuron, with the weights of the norms applied."""
    block = decoder.blocks[layer]
    values = widened(block.mlp.down.weight)
    for norm in (block.ln2_post, decoder.ln_final):
        if norm is not None:
            values = values - values.mean(-1, keepdim=True) if norm.centred else values
            values = values * widened(norm.weight)
    return values


def _check_k(k: int, decoder: Decoder) -> None:
    if not 1 <= k <= decoder.d_vocab:
        raise InterpError(
            f"the top {k} tokens",
            f"the vocabulary has {decoder.d_vocab} tokens",
            "choose a smaller k, from 1",
        )
