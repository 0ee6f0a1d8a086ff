"""The OV and QK matrices of heads, with the weights of the norms inside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from interp.core.components import within
from interp.core.errors import InterpError, unknown
from interp.core.schema import Count, checked
from interp.core.statistics import widened
from interp.engine.architecture import Attention, Norm
from interp.engine.forward import Runner
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Unembedded, unembed
from interp.models.vocabulary import read_vocabulary
from interp.plots.tables import Listing

Matrix = Literal["OV", "QK"]


@dataclass(frozen=True, kw_only=True)
class HeadMatrices:
    """The factors of every head of a layer, without biases.

        x OV = x V O   what a head writes of what it reads,   x QK y = x Q K^T y   a score

    x and y are residual streams after the division by their size, and nothing else of the norm:
    its weight, and for a LayerNorm the subtraction of the mean, are inside V, Q and K. So are the
    weights of norms of queries and keys, and of a norm behind attention inside O. Their scales are
    left out, because they belong to a whole run. Query heads that share keys and values each have a
    copy. QK is multiplied by the scale of scores. With rotary embedding, QK is that of a key
    `distance` tokens before the query.

    Attributes:
        q, k, v: (head, d_model, d_head).
        o: (head, d_head, d_model).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor

    def factors(self, matrix: Matrix) -> tuple[Tensor, Tensor]:
        """Two factors, (head, d_model, d_head) and (head, d_head, d_model)."""
        return (self.v, self.o) if matrix == "OV" else (self.q, self.k.mT)


@torch.no_grad()
def head_matrices(model: LanguageModel, layer: int, *, distance: int = 0) -> HeadMatrices:
    """The OV and QK matrices of every head of a layer, in float32 or wider.

    Raises:
        InterpError: an unknown architecture, no such layer, or a negative distance.
    """
    decoder = model.require_decoder("the matrices of heads")
    (layer,) = within([layer], model.n_layers, "layer", model.name)
    (distance,) = within([distance], decoder.max_positions, "distance", model.name)
    block, runner = decoder.blocks[layer], Runner(decoder)
    attn = block.attn

    def heads(which: Literal["q", "k", "v"]) -> Tensor:
        """(d_model, heads, d_head) with the norm inside."""
        weight = widened(getattr(attn, which).weight)
        if block.ln1 is not None:
            weight = weight * widened(block.ln1.weight)[:, None]
            weight = weight - weight.mean(0) if block.ln1.centred else weight
        return weight.unflatten(1, (-1, attn.d_head))

    def turned(which: Literal["q", "k"], position: int) -> Tensor:
        weight = _head_normed(attn, heads(which), attn.q_norm if which == "q" else attn.k_norm)
        at = torch.full((len(weight),), position)
        return runner.turned(attn, weight, at)

    group = attn.n_heads // attn.n_kv_heads
    o = widened(attn.W_O)
    if block.ln1_post is not None:
        o = o - o.mean(-1, keepdim=True) if block.ln1_post.centred else o
        o = o * widened(block.ln1_post.weight).to(o.device)
    return HeadMatrices(
        q=(attn.scale * turned("q", distance)).transpose(0, 1),
        k=turned("k", 0).repeat_interleave(group, 1).transpose(0, 1),
        v=heads("v").repeat_interleave(group, 1).transpose(0, 1),
        o=o,
    )


def _head_normed(attn: Attention, weight: Tensor, norm: Norm | None) -> Tensor:
    """The weight of a query or key norm, inside (d_model, heads, d_head)."""
    if norm is None:
        return weight
    flat = weight.flatten(1) if attn.norm_over_heads else weight
    flat = flat - flat.mean(-1, keepdim=True) if norm.centred else flat
    return (flat * widened(norm.weight)).view_as(weight)


def sized(norm: Norm | None) -> Norm | None:
    """The norm's division by the size alone (for a LayerNorm, after the subtraction of the mean).

    It is what comes before the factors of `HeadMatrices`.
    """
    return norm and replace(norm, weight=torch.ones_like(norm.weight), bias=None)


@dataclass(frozen=True, kw_only=True)
class HeadDirection:
    """One singular direction of a head's OV or QK matrix.

    Attributes:
        label: the matrix and the number of the direction, from 0.
        value: its singular value.
        share: its share of the sum of squared singular values.
        reads: of OV what is read, of QK the query: the tokens whose embeddings have the largest and
            the smallest product with the left singular vector.
        other: of OV the tokens whose logits the right singular vector raises and lowers most; of QK
            the tokens whose embeddings have the largest and smallest product with it, as keys.
    """

    label: str
    value: float
    share: float
    reads: Unembedded
    other: Unembedded


@torch.no_grad()
def head_directions(
    model: LanguageModel,
    layer: int,
    head: int,
    matrix: Matrix = "OV",
    *,
    n: int = 3,
    k: int = 5,
    distance: int = 0,
) -> Listing[HeadDirection]:
    """The strongest singular directions of a head's OV or QK matrix, read as tokens.

        OV = sum over i of  s_i u_i w_i^T:   a stream along u_i is written as s_i w_i

    The matrices are those of `HeadMatrices`. u_i is read by the embedding of every token alone,
    behind the layer's norm without its weight, which is inside the matrix: what the head would read
    if no earlier layer wrote anything. The same for w_i of QK; w_i of OV is read by the
    unembedding. u_i and w_i may both change sign, so tokens with a large positive product on one
    side belong to those with a large positive product on the other, and negative to negative.

    Args:
        model: a model with a known architecture.
        layer: the layer.
        head: the head.
        matrix: "OV" or "QK".
        n: how many directions, at most d_head.
        k: how many tokens of each sign.
        distance: how many tokens the key is before the query; matters to QK with rotary embedding.

    Raises:
        InterpError: an unknown architecture or matrix, no such layer or head, or n, k or a distance
            out of range.

    Source: Elhage et al. 2021; Millidge and Black 2022, "The singular value decompositions of
    transformer weight matrices are highly interpretable".
    """
    decoder = model.require_decoder("the directions of heads")
    if matrix not in get_args(Matrix):
        raise unknown("matrix", matrix, get_args(Matrix))
    (head,) = within([head], model.n_heads, "head", model.name)
    if checked(Count, n, "the strongest directions") > model.d_head:
        found = f"a head of {model.name} has {model.d_head}"
        raise InterpError(f"the {n} strongest directions", found, "choose a smaller n")
    made = head_matrices(model, layer, distance=distance)
    left, right = (factor[head].double() for factor in made.factors(matrix))
    u, values, w = low_rank_svd(left, right)
    total = values.square().sum()
    u, w = u[:, :n], w[:n]
    norm = sized(decoder.blocks[layer].ln1)

    def by_embedding(vectors: Tensor) -> list[Unembedded]:
        """(d_model, n) read by every token."""
        turned = vectors.to(decoder.unembed)
        return read_vocabulary(model, norm, lambda read: read @ turned, k=k)

    reads = by_embedding(u)
    other = unembed(model, w, k=k, norm=True) if matrix == "OV" else by_embedding(w.T)
    rows = enumerate(zip(values[:n].tolist(), reads, other, strict=True))
    return Listing(
        [
            HeadDirection(
                label=f"{matrix} {i}",
                value=value,
                share=float(value**2 / total),
                reads=seen,
                other=made_of,
            )
            for i, (value, seen, made_of) in rows
        ],
        "singular value",
    )


def low_rank_svd(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of left @ right, (d_model, r) and (r, d_model), by one of size r."""
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, values, w = torch.linalg.svd(r_left @ r_right.T)
    return q_left @ u, values, w @ q_right.T
