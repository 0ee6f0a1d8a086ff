"""Directions of the residual stream read as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.statistics import widened
from interp.engine.architecture import Decoder
from interp.models.language_model import LanguageModel

if TYPE_CHECKING:
    pass


BLOCK = 2**23
"""Logits held at once."""


NeuronMetric = Literal["zscore", "cosine", "dot"]


class Token(NamedTuple):
    """A token of the vocabulary with a probability or a logit."""

    token: int
    text: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Unembedded:
    """The tokens a direction adds most to, largest first, and takes most from, lowest first."""

    promoted: tuple[Token, ...]
    suppressed: tuple[Token, ...]


@reads_arguments
def unembed(
    model: LanguageModel, vectors: Tensor, *, k: int = 10, norm: bool = False
) -> list[Unembedded]:
    """Directions of the residual stream read as tokens, both signs.

        logits(v) = W_U v,   or with `norm`   W_U (weight_final * v)

    With `norm`, a LayerNorm also centres v first. The norm's scale, the unembedding's bias and
    any soft cap are left out: they belong to a state, and a direction is none.

    Args:
        model: a model whose parts are known.
        vectors: (n, d_model), or one (d_model,).
        k: tokens of each sign.
        norm: apply the final norm's weight.

    Raises:
        InterpError: unknown parts, a wrong width, values that are not finite, or k out of range.
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
    """(neuron, d_model) what each neuron writes, as the unembedding reads it."""
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
            f"the top {k} tokens", f"the vocabulary has {decoder.d_vocab}", "choose k within it"
        )
