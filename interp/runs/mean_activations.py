"""Means for mean ablation, over all tokens of reference prompts that are not evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.prompts import Task, Tokenizing
from interp.engine.forward import Runner
from interp.engine.readout import CPU_TILE, cut
from interp.engine.restart import baseline

ReferencePrompts = tuple[tuple[int, ...], ...]


def reference_prompts(
    model: Tokenizing, ablation: str, reference: Task | None, evaluated: Iterable[Sequence[int]]
) -> ReferencePrompts:
    """The clean and corrupted prompts of the reference task of mean ablation; () for other kinds.

    Raises:
        InterpError: mean ablation without a reference, a reference for another kind, or a reference
            that contains an evaluated prompt.
    """
    if reference is not None and ablation != "mean":
        raise InterpError(
            f"reference prompts for {ablation} ablation", "not used", "leave them out"
        )
    if ablation != "mean":
        return ()
    if reference is None:
        raise InterpError(
            "mean ablation",
            "no reference prompts",
            "give reference=, e.g. a split's other half",
        )
    encoded = reference.encode(model, strings=True)
    prompts = (*encoded.clean, *(encoded.corrupted or ()))
    if shared := set(prompts) & set(map(tuple, evaluated)):
        raise InterpError(
            "mean ablation",
            f"{len(shared)} evaluated prompts are among the reference prompts",
            "take the mean over others: task.split(), then one half.without(the other)",
        )
    return prompts


def batches_of(prompts: ReferencePrompts) -> tuple[list[tuple[int, ...]], ...]:
    """Prompts in groups that are run at once."""
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    groups = cut(np.arange(len(prompts)), lengths, CPU_TILE)
    return tuple([prompts[i] for i in group] for group in groups)


def mean_values(
    runner: Runner, batches: Iterable[Sequence[Sequence[int]]], site: str
) -> list[Tensor]:
    """(1, ...) of a site at each layer: its mean over every token of some prompts."""
    layers, count = range(len(runner.decoder.blocks)), 0
    totals: list[Tensor | float] = [0.0 for _ in layers]
    with torch.no_grad():
        for prompts in batches:
            run = baseline(runner, prompts, frozenset({site}) - {"resid_post"})
            for layer in layers:
                totals[layer] += run.site(layer, site).double().sum(0, keepdim=True)
            count += sum(map(len, prompts))
    return [(torch.as_tensor(total) / count).to(runner.dtype) for total in totals]
