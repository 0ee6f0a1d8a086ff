"""Pruning and rounding of weights, each as a weight delta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from interp.core.arguments import reads_arguments, rows_of
from interp.core.corpus import Corpus, shipped_passages, texts_in
from interp.core.errors import InterpError, unknown
from interp.models.language_model import LanguageModel
from interp.models.loading import plain_view
from interp.models.weight_delta import WeightDelta

Compression = Literal["magnitude", "wanda", "random", "round"]
"""How weights are made smaller; see `compress`."""


@reads_arguments
def compress(
    model: LanguageModel,
    how: Compression,
    *,
    share: float = 0.5,
    bits: int = 8,
    group: int | None = None,
    texts: Corpus | None = None,
    seed: int = 0,
) -> WeightDelta:
    """The change that pruning or rounding makes of the linear maps of all layers.

    In every row W_i of a map (the weights of one output), pruning sets the `share` of the weights
    with the smallest score to 0, and rounding takes each group of weights to a grid:

        magnitude   score |W_ij|
        wanda       score |W_ij| |X_j|, |X_j| the length of input j over all tokens of the texts
                    (Sun et al. 2023, arXiv 2306.11695)
        random      a random score: the control, of the same size in every row
        round       s round(W_ij / s) with s = max_j |W_ij| / (2^(bits - 1) - 1) over each group of
                    weights of a row: round to nearest

    Embeddings, the unembedding, norms and biases stay. The weights keep their type: what changes is
    the values, not the memory.

    Departure: magnitude pruning compares weights within a row, not within a matrix, so that the
    three kinds of pruning differ in the score alone.

    Args:
        model: a model whose layers hold plain linear maps.
        how: see above.
        share: share of the weights of a row that are set to 0.
        bits: 2 to 16, for "round".
        group: weights of a row that share a grid; None for the whole row.
        texts: what inputs are measured on, for "wanda"; the shipped passages by default.
        seed: for "random".

    Raises:
        InterpError: an unknown kind, a share outside 0 to 1, bits outside 2 to 16, a group that
            does not divide the rows, or layers without linear maps.
    """
    if how not in get_args(Compression):
        raise unknown("compression", how, get_args(Compression))
    if not 0 <= share <= 1:
        raise InterpError(f"pruning a share of {share}", "not a share", "give 0 to 1")
    if not 2 <= bits <= 16:
        raise InterpError(f"rounding to {bits} bits", "not possible", "give 2 to 16")
    model.refuse_changed("compressing weights")
    view = plain_view(model)
    maps = _linear_maps(view)
    if not maps:
        do = "it may hold its weights in joint tensors of experts"
        raise InterpError(f"compressing {model.name}", "its layers have no linear maps", do)
    lengths = _input_lengths(model, view, maps, texts) if how == "wanda" else {}
    generator, dense = torch.Generator().manual_seed(seed), {}
    for name, module in maps.items():
        weight = _by_output(module).double()
        if how == "round":
            new = _rounded(weight, bits, group, name)
        else:
            scores = weight.abs()
            if how == "wanda":
                scores = scores * lengths[name].to(scores)
            elif how == "random":
                scores = torch.rand(scores.shape, generator=generator, dtype=scores.dtype)
            new = _pruned(weight, scores, share)
        change = new - weight
        if bool((change != 0).any()):
            turned = change if isinstance(module, nn.Linear) else change.T
            dense[f"{name}.weight"] = turned.to(module.weight.dtype).contiguous()
    told = f"rounded to {bits} bits" if how == "round" else f"{how} pruning of {share:g}"
    return WeightDelta(name=told, base=model.hash, dense=dense)


def _linear_maps(view: Any) -> dict[str, Any]:
    """The linear maps inside layers, by name."""
    from transformers.pytorch_utils import Conv1D

    ends = {id(view.get_output_embeddings())}
    return {
        name: module
        for name, module in view.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in ends
    }


def _by_output(module: Any) -> Tensor:
    """(outputs, inputs) the weight of a linear map."""
    weight = module.weight.detach()
    return weight if isinstance(module, nn.Linear) else weight.T


def _pruned(weight: Tensor, scores: Tensor, share: float) -> Tensor:
    """The weight with the lowest scores of every row at 0."""
    lowest = scores.topk(round(share * scores.shape[1]), dim=1, largest=False).indices
    return weight.scatter(1, lowest, 0.0)


def _rounded(weight: Tensor, bits: int, group: int | None, name: str) -> Tensor:
    size = group or weight.shape[1]
    if weight.shape[1] % size:
        found = f"rows of {weight.shape[1]} weights"
        raise InterpError(f"groups of {size} in {name}", found, "give a divisor, or None")
    parts = weight.unflatten(1, (-1, size))
    step = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((parts / step.clamp(min=1e-300)).round() * step).flatten(1)


@torch.no_grad()
def _input_lengths(
    model: LanguageModel, view: Any, maps: dict[str, Any], texts: Corpus | None
) -> dict[str, Tensor]:
    """(inputs,) the root of the sum of squares of each input of each map, over all tokens."""
    rows = rows_of(model, list(shipped_passages() if texts is None else texts_in(texts)))
    if not rows:
        raise InterpError("the inputs of linear maps", "no texts", "give at least one")
    squares: dict[str, Tensor] = {}

    def measuring(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def measure(module: Any, given: tuple[Any, ...]) -> None:
            found = given[0].detach().double().flatten(0, -2).pow(2).sum(0)
            squares[name] = squares.get(name, 0) + found  # type: ignore[operator]

        return measure

    hooks = [module.register_forward_pre_hook(measuring(name)) for name, module in maps.items()]
    try:
        for row in rows:
            view(torch.tensor([row], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total.sqrt() for name, total in squares.items()}
