"""A lens that is right on average: it takes the mean state of a layer to that of the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from interp.core.arguments import reads_arguments, texts_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Whole, checked
from interp.models.language_model import LanguageModel
from interp.probing.lens_maps import LensMaps
from interp.runs.capture import run_with_cache


@reads_arguments
def centre_lens(
    model: LanguageModel,
    maps: LensMaps,
    texts: Task | Prompt | Sequence[Prompt],
    *,
    skip: int = 4,
) -> LensMaps:
    """Give a lens the offset with which it is right on average.

        M h + b,    b = mean h_last - M mean h,    the means over the tokens of the texts

    A Jacobian says how the last layer changes with a state, not where it is. Without an offset the
    lens also maps what all states have in common, and reads that in place of the token's own part.
    This is its gauge: vectors, swaps, steering and what it predicts of later writes do not change.

    Args:
        model: the model on which the lens was fitted.
        maps: the lens; that of `identity_lens` too.
        texts: texts, other than those on which the lens is tested.
        skip: first tokens of a text that are not averaged.

    Raises:
        InterpError: a lens of another model, or no text with more than `skip` tokens.
    """
    maps.require_model(model)
    skip = checked(Whole, skip, "skip")
    rows = [model.tokenize(text).tokens for text in texts_of(texts)]
    rows = [row for row in rows if len(row) > skip]
    if not rows:
        found = f"no text of more than {skip} tokens"
        raise InterpError("centring a lens", found, "give longer texts, or a smaller skip")
    last = model.n_layers - 1
    with torch.no_grad():
        seen = run_with_cache(
            model, rows, sites="resid_post", layers=sorted({*maps.layers, last}), budget_gb=2.0
        )

    def mean(layer: int) -> Tensor:
        taken = seen[layer, "resid_post"]
        parts = [taken[i, skip : len(row)].double() for i, row in enumerate(rows)]
        return torch.cat(parts).mean(0).cpu()

    before, final = torch.stack([mean(layer) for layer in maps.layers]), mean(last)

    def offsets(matrices: Tensor) -> Tensor:
        return (final - torch.einsum("...loi,li->...lo", matrices.double(), before)).float()

    return replace(
        maps,
        offsets=offsets(maps.matrices),
        half_offsets=None if maps.halves is None else offsets(maps.halves),
        note=f"{maps.note}, centred".removeprefix(", "),
    )
