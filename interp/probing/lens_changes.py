"""Changes of a run along the coordinates of a lens: swap two words, steer to one, ablate some.

The lens vector of a word is the direction of a layer along which the lens reads that word.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from interp.core.arguments import Positions, listed, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.schema import Real, checked
from interp.core.statistics import widened
from interp.models.language_model import LanguageModel
from interp.probing.lens_maps import LensMaps
from interp.runs.change import Change, Edit, Tokens

Gauge = Literal["centred", "raw"]
"""Which lens vectors. "raw": v = M^T u, with u the word's row of the unembedding, as published.
"centred": v = M^T (w * (u - mean of all rows)), with w the weight of the final norm, as the lens
reads it: what is added to all logits alike changes no probability, and is left out."""

LEAST = 1e-4
"""The smallest ratio of singular values of two unit vectors that can be told apart."""


def lens_vectors(
    model: LanguageModel,
    maps: LensMaps,
    words: str | int | Sequence[str | int],
    layer: int,
    *,
    gauge: Gauge = "centred",
) -> Tensor:
    """(word, d_model) float64 the lens vectors of words at a layer, see `Gauge`.

    Raises:
        InterpError: a lens of another model, a layer that it was not fitted at, an unknown gauge,
            or a word of several tokens.
    """
    maps.require_model(model)
    place = maps.place(layer)
    rows = word_rows(model, words, gauge)
    return rows @ maps.matrices[place].to(rows)


def word_rows(model: LanguageModel, words: str | int | Sequence[str | int], gauge: Gauge) -> Tensor:
    """(word, d_model) float64 the lens vectors of words at the last layer, see `Gauge`.

    Raises:
        InterpError: an unknown gauge, or a word of several tokens.
    """
    decoder = model.require_decoder("lens vectors")
    if gauge not in get_args(Gauge):
        raise unknown("gauge", str(gauge), get_args(Gauge))
    rows = decoder.unembed[[model.single_token(word) for word in listed(words)]].double()
    if gauge == "centred":
        mean = widened(decoder.unembed).mean(0).double()
        rows = (rows - mean) * decoder.ln_final.weight.double()
    return rows


@reads_arguments
def swap_words(
    model: LanguageModel,
    maps: LensMaps,
    source: str | int,
    target: str | int,
    *,
    layers: int | Sequence[int] | None = None,
    strength: float = 1.0,
    gauge: Gauge = "centred",
    positions: Positions = "all",
) -> Change:
    """Exchange the coordinates of two words in the stream.

        h <- h + strength * V (s(c) - c),    c = V^+ h,   V = [v_source, v_target]

    s exchanges the two coordinates. What is orthogonal to both vectors stays. At strength 1 a
    second swap undoes the first, so swaps at several layers may undo one another.

    Args:
        model: the model on which the lens was fitted.
        maps: the lens; `identity_lens` gives swaps in the unembedding's own directions.
        source: a word, a text of one token or a token id.
        target: the other word.
        layers: layers of the lens; all by default.
        strength: 1 exchanges, 2 overshoots by as much.
        gauge: which lens vectors, see `Gauge`.
        positions: the tokens at which they are swapped.

    Raises:
        InterpError: the same word twice, two words whose vectors are parallel, or what
            `lens_vectors` refuses.

    Source: Gurnee et al. 2026; equal to `JacobianLens.swap_hooks` of TransformerLens in the raw
        gauge.
    """
    pair = _pair(model, source, target)
    strength = checked(Real, strength, "strength of a swap")
    edits = []
    for layer in _layers(maps, layers):
        vectors = lens_vectors(model, maps, pair, layer, gauge=gauge)
        name = f"swap {source!r} and {target!r}"
        edits.append(swap_edit(name, layer, vectors, strength, positions))
    return Change(name=f"swap {source!r} and {target!r} ({maps.kind})", edits=tuple(edits))


@reads_arguments
def steer_to_word(
    model: LanguageModel,
    maps: LensMaps,
    word: str | int,
    *,
    layers: int | Sequence[int] | None = None,
    strength: float = 1.0,
    gauge: Gauge = "centred",
    positions: Positions = "all",
) -> Change:
    """Add the unit lens vector of a word, times the length of the token's own state.

        h <- h + strength * |h| * v / |v|

    Departs from TransformerLens, which takes the median length over the tokens of the run: here
    each token depends on itself alone, so that generation can cache.

    Args:
        model: the model on which the lens was fitted.
        maps: the lens.
        word: a text of one token, or a token id.
        layers: layers of the lens; all by default.
        strength: of order 1 adds as much as is there; negative steers away.
        gauge: which lens vectors, see `Gauge`.
        positions: the tokens that are steered.

    Raises:
        InterpError: see `lens_vectors`.
    """
    strength = checked(Real, strength, "strength of steering")
    edits = []
    for layer in _layers(maps, layers):
        vector = lens_vectors(model, maps, word, layer, gauge=gauge)[0]
        move = partial(_steered, unit=_unit(vector, word, layer), by=strength)
        edits.append(_edit(f"steer to {word!r}", layer, move, positions))
    return Change(name=f"steer to {word!r} ({maps.kind})", edits=tuple(edits))


@reads_arguments
def ablate_words(
    model: LanguageModel,
    maps: LensMaps,
    words: str | int | Sequence[str | int],
    *,
    layers: int | Sequence[int] | None = None,
    gauge: Gauge = "centred",
    positions: Positions = "all",
) -> Change:
    """Remove the span of words' lens vectors: h <- h - Q Q^T h, Q an orthonormal basis of it.

    Args:
        model: the model on which the lens was fitted.
        maps: the lens.
        words: texts of one token each, or token ids.
        layers: layers of the lens; all by default.
        gauge: which lens vectors, see `Gauge`.
        positions: the tokens at which it is removed.

    Raises:
        InterpError: no words, or what `lens_vectors` refuses.

    Source: equal to `JacobianLens.ablation_hooks` of TransformerLens in the raw gauge.
    """
    words = listed(words)
    if not words:
        raise InterpError("ablating words", "no words", "give at least one")
    edits = []
    for layer in _layers(maps, layers):
        vectors = lens_vectors(model, maps, words, layer, gauge=gauge)
        units = torch.stack([_unit(v, w, layer) for v, w in zip(vectors, words, strict=True)])
        _, sizes, rows = torch.linalg.svd(units, full_matrices=False)
        basis = rows[sizes > LEAST * sizes[0]]
        edits.append(_edit(f"ablate {words}", layer, partial(_without, basis=basis), positions))
    return Change(name=f"ablate {', '.join(map(repr, words))} ({maps.kind})", edits=tuple(edits))


def swap_edit(
    name: str, layer: int, vectors: Tensor, strength: float, positions: Positions
) -> Edit:
    """The swap of the coordinates of two vectors (2, d_model) at a layer, see `swap_words`.

    Raises:
        InterpError: the vectors are zero or parallel.
    """
    units = vectors / vectors.norm(dim=1, keepdim=True)
    sizes = torch.linalg.svdvals(units.nan_to_num())
    if float(sizes[-1]) <= LEAST * float(sizes[0]) or not bool(units.isfinite().all()):
        asked = f"{name} at layer {layer}"
        raise InterpError(asked, "their vectors are parallel", "give other words or layers")
    back = torch.linalg.pinv(vectors.T)
    return _edit(name, layer, partial(_swapped, basis=vectors.T, back=back, by=strength), positions)


def _swapped(old: Tensor, tokens: Tokens, *, basis: Tensor, back: Tensor, by: float) -> Tensor:
    c = old @ back.to(old).T
    return old + by * (c.flip(-1) - c) @ basis.to(old).T


def _steered(old: Tensor, tokens: Tokens, *, unit: Tensor, by: float) -> Tensor:
    return old + by * old.norm(dim=-1, keepdim=True) * unit.to(old)


def _without(old: Tensor, tokens: Tokens, *, basis: Tensor) -> Tensor:
    rows = basis.to(old)
    return old - (old @ rows.T) @ rows


def _edit(name: str, layer: int, value: partial[Tensor], positions: Positions) -> Edit:
    return Edit(name=name, layer=layer, site="resid_post", value=value, positions=positions)


def _layers(maps: LensMaps, layers: int | Sequence[int] | None) -> list[int]:
    chosen = list(maps.layers) if layers is None else sorted({*listed(layers)})
    if not chosen:
        raise InterpError("a change along a lens", "no layers", "give at least one")
    return chosen


def _pair(model: LanguageModel, source: str | int, target: str | int) -> list[int]:
    pair = [model.single_token(word) for word in (source, target)]
    if pair[0] == pair[1]:
        raise InterpError(f"swapping {source!r} and {target!r}", "one token", "give two words")
    return pair


def _unit(vector: Tensor, word: str | int, layer: int) -> Tensor:
    """The vector at length 1.

    Raises:
        InterpError: it is zero.
    """
    if not (length := float(vector.norm())):
        found = "a vector of length 0"
        raise InterpError(f"the lens vector of {word!r} at layer {layer}", found, "leave it out")
    return vector / length
