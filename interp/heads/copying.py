"""Which heads copy: whether a head's OV matrix raises the logits of the tokens it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.components import Component
from interp.core.schema import Count, Seed, checked
from interp.core.statistics import range_of_draws, widened
from interp.engine.architecture import Decoder, Norm
from interp.heads.matrices import head_matrices, sized
from interp.models.language_model import LanguageModel
from interp.models.unembedding import BLOCK
from interp.models.vocabulary import embedded
from interp.plots.tables import Tabled


@dataclass(frozen=True, kw_only=True, eq=False)
class Copying(Tabled):
    """The copying score of every head, beside random heads.

    Attributes:
        values: (layer, head) the scores, from -1 to 1.
        low, high: (layer,) 95 % range of the scores of random heads of the layer.
        draws: number of random heads for each head.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    draws: int

    strongest_by = "copying"

    def __repr__(self) -> str:
        layer, head = divmod(int(self.values.argmax()), self.values.shape[1])
        return (
            f"Copying({self.values.shape[0]} layers x {self.values.shape[1]} heads; most: "
            f"{Component(layer, 'z', head)} {self.values[layer, head]:z.3f}, random heads of its "
            f"layer {self.low[layer]:z.3f} to {self.high[layer]:z.3f})"
        )

    def to_dataframe(self) -> Any:
        """One row per head, with the range of random heads of its layer."""
        from pandas import DataFrame

        layers, heads = (index.ravel() for index in np.indices(self.values.shape))
        return DataFrame(
            {
                "component": [f"L{i}H{h}" for i, h in np.ndindex(self.values.shape)],
                "layer": layers,
                "head": heads,
                "copying": self.values.ravel(),
                "random_low": self.low[layers],
                "random_high": self.high[layers],
            }
        )


@torch.no_grad()
def copying_scores(model: LanguageModel, *, draws: int = 20, seed: int = 0) -> Copying:
    """How far each head's OV circuit copies: does reading a token raise the logit of that token?

        C = E V O U^T,   score = sum of the eigenvalues of C / sum of their absolute values

    C is (d_vocab, d_vocab): E the embedding of each token alone, divided by its size as by the
    layer's norm, V O the OV matrix with the weights of the norms inside (`HeadMatrices`), U the
    unembedding times the weight of the final norm. At 1 every eigenvalue is positive (a token
    raises itself and tokens like it), at -1 negative. The eigenvalues of C that are not 0 are those
    of O (U^T E) V, (d_head, d_head), so they are exact.

    A random head reads and writes the same subspaces with the same strengths, connected at random:
    V Q O with a random rotation Q. Its score is 0 on average.

    Args:
        model: a model with a known architecture.
        draws: random heads for each head; those of a layer are taken together.
        seed: their seed.

    Raises:
        InterpError: an unknown architecture, or draws below 1.

    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits". The norms are
    inside here; in the paper the model has none.
    """
    decoder = model.require_decoder("copying scores")
    draws, seed = checked(Count, draws, "draws"), checked(Seed, seed, "seed")
    random = torch.Generator().manual_seed(seed)
    products: dict[tuple[float, bool] | None, Tensor] = {}
    values, ranges = [], []
    for layer, block in enumerate(decoder.blocks):
        kind = block.ln1 and (block.ln1.eps, block.ln1.centred)
        if kind not in products:
            products[kind] = _unembedding_by_embedding(decoder, sized(block.ln1))
        made = head_matrices(model, layer)
        small = (made.o @ products[kind] @ made.v).double().cpu()
        values.append(_score(small))
        turned = small.repeat(draws, 1, 1) @ _rotations(draws * len(small), small.shape[-1], random)
        ranges.append(range_of_draws(_score(turned)))
    low, high = np.array(ranges).T
    return Copying(values=np.stack(values), low=low, high=high, draws=draws)


def _unembedding_by_embedding(decoder: Decoder, norm: Norm | None) -> Tensor:
    """(d_model, d_model) U^T E, summed over the vocabulary in blocks."""
    final, total = decoder.ln_final, 0
    for ids in torch.arange(decoder.d_vocab).split(max(1, BLOCK // decoder.d_model)):
        rows = widened(decoder.unembed[ids])
        rows = rows * widened(final.weight)
        rows = rows - rows.mean(-1, keepdim=True) if final.centred else rows
        total = total + rows.T @ widened(embedded(decoder, norm, ids))
    return torch.as_tensor(total)


def _score(matrices: Tensor) -> np.ndarray:
    """Sum of eigenvalues over sum of their absolute values; 0 for a matrix of zeros."""
    sizes = torch.linalg.eigvals(matrices).abs().sum(-1)
    traces = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.where(sizes > 0, traces / sizes.clamp_min(1e-300), 0.0).numpy()


def _rotations(n: int, size: int, random: torch.Generator) -> Tensor:
    """(n, size, size) random orthogonal matrices, uniformly distributed."""
    q, r = torch.linalg.qr(torch.randn(n, size, size, generator=random, dtype=torch.float64))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
