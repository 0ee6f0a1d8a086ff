"""What weights read from the embedding of every token of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from interp.engine.architecture import Decoder, Norm, normed
from interp.models.language_model import LanguageModel
from interp.models.unembedding import BLOCK, Unembedded, strongest_tokens


def embedded(decoder: Decoder, norm: Norm | None, tokens: Sequence[int] | Tensor) -> Tensor:
    """(token, d_model) the embedding of each token alone, at position 1, behind a layer's norm.

    It is what the layer would read if no earlier layer wrote anything. Position 0 is not used:
    models with learned positions treat it in a way of its own.
    """
    ids = torch.as_tensor(tokens, device=decoder.unembed.device)
    return normed(norm, decoder.embed(ids, torch.ones_like(ids)))


@torch.no_grad()
def read_vocabulary(
    model: LanguageModel, norm: Norm | None, read: Callable[[Tensor], Tensor], *, k: int
) -> list[Unembedded]:
    """For each of some readings, the k tokens on which it is largest and smallest.

    `read` maps (token, d_model), see `embedded`, to (token, readings).

    Raises:
        InterpError: the engine cannot run the model, or k is out of range.
    """
    decoder = model.require_decoder("reading the vocabulary")
    blocks = torch.arange(decoder.d_vocab).split(max(1, BLOCK // decoder.d_model))
    values = torch.cat([read(embedded(decoder, norm, ids)) for ids in blocks])
    return strongest_tokens(model, values.T, k)
