"""Heads forced to attend to given positions at the last token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.core.components import Component
from interp.models.batches import Batch
from interp.models.language_model import Address, Hook, LanguageModel
from interp.runs.change import Change
from interp.runs.kinds import make_ablation

Pattern = Sequence[Mapping[int, float]]
"""For each prompt the attention of its last token: position -> weight, adding up to 1."""
Written = Mapping[Address, Tensor]
"""Site z of every layer, (prompts, 1, heads, d_head)."""


def written(
    model: LanguageModel, prompts: Sequence[Sequence[int]], patterns: Mapping[str, Pattern]
) -> dict[str, Written]:
    """What every head would write if its last token attended by each pattern.

        z[h] = sum over positions j of pattern[j] * v[j, key/value head of h]

    If the weight is on earlier tokens only, setting z to this imposes the pattern exactly, whatever
    else is changed at the last token, because earlier tokens do not see the last one.
    """
    group = model.n_heads // model.n_kv_heads
    shape = (len(prompts), 1, model.n_heads, model.d_head)
    addresses = [(layer, "z") for layer in range(model.n_layers)]
    found = {n: {at: torch.zeros(shape, dtype=model.dtype) for at in addresses} for n in patterns}

    def reader(layer: int) -> Hook:
        def hook(value: Tensor, batch: Batch) -> Tensor:
            for row, prompt in enumerate(batch.prompts.tolist()):
                for name, pattern in patterns.items():
                    mixed = torch.zeros_like(value[row, 0])
                    for position, weight in pattern[prompt].items():
                        mixed = mixed + weight * value[row, batch.column(row, position)]
                    heads = mixed.repeat_interleave(group, 0)
                    found[name][layer, "z"][prompt, 0] = heads.detach().cpu()
            return value

        return hook

    hooks = {(layer, "v"): [reader(layer)] for layer in range(model.n_layers)}
    with torch.no_grad():
        for _ in model.run([tuple(prompt) for prompt in prompts], hooks=hooks):
            pass
    return {name: dict(values) for name, values in found.items()}


def evenly(places: Sequence[Sequence[int]]) -> Pattern:
    """Equal attention to each place, none elsewhere."""
    return [dict.fromkeys(mine, 1 / len(mine)) for mine in places]


def blend(one: Written, other: Written, share: float) -> Written:
    """What heads write if `share` of their attention follows one pattern and the rest another."""
    return {at: share * one[at] + (1 - share) * other[at] for at in one}


def impose(model: LanguageModel, wanted: Sequence[tuple[str, Written]], name: str = "") -> Change:
    """An ablation that sets each head, at the last token, to what its own pattern writes."""
    values: dict[Address, Tensor] = {}
    for head, mixed in wanted:
        part = Component.parse(head)
        address = (part.layer, "z")
        merged = values.setdefault(address, mixed[address].clone())
        merged[:, :, part.index] = mixed[address][:, :, part.index]
    return make_ablation(model, [head for head, _ in wanted], "patch", values=values, name=name)


def matched_heads(
    model: LanguageModel, heads: Sequence[str], rng: np.random.Generator
) -> dict[str, str]:
    """For every head another one of its layer; none twice, and none of the heads themselves.

    If a layer has too few others, any of its heads are drawn, which makes the test conservative.
    """
    parts = {head: Component.parse(head) for head in heads}
    drawn: dict[str, str] = {}
    for layer in sorted({part.layer for part in parts.values()}):
        mine = [head for head, part in parts.items() if part.layer == layer]
        taken = {parts[head].index for head in mine}
        free = [i for i in range(model.n_heads) if i not in taken]
        pool = free if len(free) >= len(mine) else list(range(model.n_heads))
        picked = rng.choice(pool, len(mine), replace=False).tolist()
        drawn |= {h: str(Component(layer, "z", i)) for h, i in zip(mine, picked, strict=True)}
    return drawn
