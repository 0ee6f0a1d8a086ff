"""How much each head's weights read what each earlier head writes: Q-, K- and V-composition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.heads.matrices import HeadMatrices, head_matrices
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled

Kind = Literal["q", "k", "v"]
KINDS: tuple[Kind, ...] = ("q", "k", "v")


@dataclass(frozen=True, kw_only=True, eq=False)
class Composition(Tabled):
    """How much each head's weights read what each earlier head writes.

    Attributes:
        values: (kind, layer, head, layer, head) the scores from 0 to 1, sender before receiver, by
            queries (q), keys (k) and values (v); nan unless the sender is in an earlier layer.
        z: the same shape: how far the squared score is above that of random heads, in standard
            deviations of theirs.
        chance: root mean square score of random heads.
    """

    values: np.ndarray
    z: np.ndarray
    chance: float

    strongest_by = "score"

    def __repr__(self) -> str:
        _, layers, heads, *_ = self.values.shape
        kind, *at = np.unravel_index(int(np.nanargmax(self.values)), self.values.shape)
        sender, receiver = _label(*at[:2]), _label(*at[2:])
        return (
            f"Composition({layers} layers x {heads} heads; most: {sender} into "
            f"{receiver}.{KINDS[int(kind)]} {np.nanmax(self.values):z.3f}, "
            f"random heads {self.chance:z.3f})"
        )

    def to_dataframe(self) -> Any:
        """One row per pair of heads and kind."""
        from pandas import DataFrame

        places = np.argwhere(~np.isnan(self.values))
        return DataFrame(
            {
                "sender": [_label(*at[1:3]) for at in places],
                "receiver": [_label(*at[3:]) for at in places],
                "kind": [KINDS[at[0]] for at in places],
                "score": self.values[tuple(places.T)],
                "z": self.z[tuple(places.T)],
                "chance": self.chance,
            }
        )

    def plot(self, kind: Kind = "k") -> Any:
        """A Plotly heat map: senders across, receivers upwards."""
        from interp.plots.heatmaps import heat_map

        if kind not in KINDS:
            raise InterpError(f"composition by {kind!r}", "no such kind", "write q, k or v")
        _, layers, heads, *_ = self.values.shape
        names = [_label(*at) for at in np.ndindex(layers, heads)]
        size = layers * heads
        return heat_map(
            self.values[KINDS.index(kind)].reshape(size, size).T,
            x=names,
            y=names,
            x_title="sender",
            y_title="receiver",
            colour_title=f"{kind.upper()}-composition (chance {self.chance:z.3f})",
            signed=False,
            names=[[f"{sender} into {receiver}.{kind}" for sender in names] for receiver in names],
        )


@torch.no_grad()
def head_composition(model: LanguageModel, *, distance: int = 0) -> Composition:
    """Q-, K- and V-composition of every head with every head of earlier layers.

        V:  |OV_a OV_b| / (|OV_a| |OV_b|)
        Q:  |OV_a QK_b| / (|OV_a| |QK_b|)        K:  |OV_a QK_b^T| / (|OV_a| |QK_b|)

    with Frobenius norms and the matrices of `HeadMatrices`, which hold the weights of the norms, of
    sender a and receiver b. 0: b reads nothing of what a can write. The score knows no activations:
    directions that the stream never has count as much as others.

    Random heads have the same singular values and are turned at random against each other. Their
    squared score is 1 / d_model on average, whatever the singular values s_a, s_b, with variance

        2 (sum p_a^2 - 1/d) (sum p_b^2 - 1/d) / ((d - 1) (d + 2)),   p = s^2 / sum s^2,  d = d_model

    so both are exact. All heads of a trained model share the directions that its stream uses, so
    most pairs are above chance: compare pairs with one another.

    Args:
        model: a model with a known architecture.
        distance: how many tokens the receiver's key is before its query; matters to Q and K with
            rotary embedding.

    Raises:
        InterpError: an unknown architecture, a single layer, or a distance out of range.

    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits". There the
    baseline is Gaussian matrices, whose singular values differ from those of the heads.
    """
    d = model.require_decoder("composition").d_model
    if model.n_layers < 2:
        raise InterpError("composition", f"{model.name} has 1 layer", "use a deeper model")
    shape = (len(KINDS), model.n_layers, model.n_heads, model.n_layers, model.n_heads)
    squares, spread = np.full((2, *shape), np.nan)
    senders: list[tuple[Tensor, np.ndarray]] = []
    for layer in range(model.n_layers):
        made = head_matrices(model, layer, distance=distance)
        if layer:
            for at, kind in enumerate(KINDS):
                reads = _reads(made, kind)
                unequal = _unequal(reads.mT)
                for before, (writes, theirs) in enumerate(senders):
                    product = torch.einsum("ard,bds->abrs", writes, reads)
                    found = product.square().sum((2, 3)).double().cpu().numpy()
                    squares[at, before, :, layer] = found
                    spread[at, before, :, layer] = np.outer(theirs, unequal)
        writes = _writes(made)
        senders.append((writes, _unequal(writes)))
    z = (squares - 1 / d) / np.sqrt(2 * spread / ((d - 1) * (d + 2)))
    return Composition(values=np.sqrt(squares), z=z, chance=1 / math.sqrt(d))


def _writes(made: HeadMatrices) -> Tensor:
    """(head, d_head, d_model) the writing part of each OV, norm 1: |OV X| = |OV| |this X|."""
    return _unit(torch.linalg.qr(made.v).R @ made.o)


def _reads(made: HeadMatrices, kind: Kind) -> Tensor:
    """(head, d_model, d_head) the reading part of each matrix M, norm 1: |X M| = |M| |X this|."""
    left, right = made.factors("OV" if kind == "v" else "QK")
    if kind == "k":
        left, right = right.mT, left.mT
    return _unit(left @ torch.linalg.qr(right.mT).R.mT)


def _unit(matrices: Tensor) -> Tensor:
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    return matrices / norms.clamp_min(torch.finfo(matrices.dtype).tiny)


def _unequal(matrices: Tensor) -> np.ndarray:
    """(head,) sum p^2 - 1 / d_model, with p the squared singular values of norm-1 matrices."""
    squared = (matrices @ matrices.mT).double().square().sum((1, 2))
    return (squared - 1 / matrices.shape[-1]).clamp_min(0).cpu().numpy()


def _label(layer: Any, head: Any) -> str:
    return str(Component(int(layer), "z", int(head)))
