"""Where every head attends on whole prompts: one layer's patterns in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.engine.memory import budget_bytes
from interp.engine.stopping import stop_if_asked
from interp.heads.attention import AttentionTo, windows
from interp.heads.attention_keys import ENTROPY, ROLES, control_keys, wanted_keys
from interp.models.batches import Batch
from interp.models.language_model import Hook, LanguageModel

TokenIds = tuple[int, ...]


def attention_scores(
    model: LanguageModel, prompts: Sequence[TokenIds], *, band: float = 2.0, budget_gb: float = 0.5
) -> dict[str, AttentionTo]:
    """Every measure of `ROLES`, and the entropy, for every head: one sample for each prompt.

        score[l, h] = mean over queries q that have a key of  sum over keys k of  A[l, h][q, k]
        entropy[l, h] = mean over queries q of  - sum over k of  A[l, h][q, k] ln A[l, h][q, k]

    With a sink (GPT-OSS) the entropy counts it as a key.

    Keys and their control are those of `attention_keys`. Chance is uniform attention over the
    visible keys: the share of keys, and ln of their number for the entropy, which has no control.
    Prompts without a key of a measure are not among its samples. Measures that no prompt has are
    left out.

    Args:
        model: a model that offers patterns.
        prompts: token ids.
        band: see `control_keys`.
        budget_gb: memory for the keys of some prompts. It changes no result.

    Raises:
        InterpError: no prompts, a model without patterns, or a budget that is no positive number.
    """
    model.require_site("pattern")
    if not prompts:
        raise InterpError("scores of attention", "no prompts", "give at least one")
    size, budget = model.n_layers * model.n_heads, budget_bytes(budget_gb)
    found = np.zeros((len(prompts), 2 * len(ROLES) + 1, size))
    n_keys = np.zeros((len(prompts), len(ROLES) + 1), dtype=np.int64)
    uniform = np.zeros((len(prompts), len(ROLES) + 1, model.n_layers))
    for some in _portions([len(prompt) for prompt in prompts], budget):
        weights = []
        for i in some:
            wanted = np.stack([wanted_keys(prompts[i], measure) for measure in ROLES])
            n_keys[i, :-1], n_keys[i, -1] = wanted.sum((1, 2)), len(prompts[i])
            uniform[i] = _uniform(model, wanted)
            both = np.concatenate([wanted, [control_keys(one, band=band) for one in wanted]])
            queries = np.tile(wanted.any(2).sum(1), 2)[:, None, None]
            weights.append(torch.from_numpy(both / np.maximum(queries, 1)))
        found[some] = _measured(model, [prompts[i] for i in some], weights)
    samples = found.reshape(*found.shape[:2], model.n_layers, model.n_heads)
    scores = {}
    for at, measure in enumerate((*ROLES, ENTROPY)):
        kept = np.flatnonzero(n_keys[:, at])
        values = samples[kept, at if measure != ENTROPY else -1]
        control = np.full_like(values, np.nan)
        if len(kept):
            scores[measure] = AttentionTo(
                samples=values,
                control=control if measure == ENTROPY else samples[kept, at + len(ROLES)],
                uniform=uniform[kept, at],
                n_keys=n_keys[kept, at],
                kept=kept,
                dropped=len(prompts) - len(kept),
                widened=0,
                reduce="sum",
            )
    return scores


def _portions(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Prompt numbers in groups whose keys fit the budget, of at least one prompt."""
    some: list[int] = []
    used = 0
    for i, length in enumerate(lengths):
        size = 4 * len(ROLES) * 8 * length**2  # wanted and control keys, and copies of both
        if some and used + size > budget:
            yield some
            some, used = [], 0
        some.append(i)
        used += size
    yield some


def _measured(
    model: LanguageModel, prompts: Sequence[TokenIds], weights: Sequence[Tensor]
) -> np.ndarray:
    """(prompt, weights + 1, layer * head) attention times weights, and the entropy."""
    found = torch.zeros(
        len(prompts), len(weights[0]) + 1, model.n_layers, model.n_heads, dtype=torch.float64
    )

    blocks = () if model.decoder is None else model.decoder.blocks
    sunk = any(block.attn.sinks is not None for block in blocks)

    def reader(layer: int) -> Hook:
        def hook(value: Tensor, batch: Batch) -> Tensor:
            stop_if_asked()
            for row, prompt in enumerate(batch.prompts.tolist()):
                n, first = int(batch.lengths[row]), int(batch.first[row])
                span = slice(first, first + n)
                pattern = value[row, :, span, span].detach().cpu().double()
                found[prompt, :-1, layer] = torch.einsum("mqk,hqk->mh", weights[prompt], pattern)
                entropy = torch.special.entr(pattern).sum(-1)
                if sunk:
                    entropy += torch.special.entr((1 - pattern.sum(-1)).clamp(min=0))
                found[prompt, -1, layer] = entropy.mean(-1)
            return value

        return hook

    hooks = {(layer, "pattern"): [reader(layer)] for layer in range(model.n_layers)}
    with torch.no_grad():
        for _ in model.run(prompts, hooks=hooks):
            pass
    return found.flatten(2).numpy()


def _uniform(model: LanguageModel, wanted: np.ndarray) -> np.ndarray:
    """(measure, layer) the scores of uniform attention, from (measure, query, key) wanted keys."""
    n = wanted.shape[1]
    age = np.arange(n)[:, None] - np.arange(n)
    queries = np.maximum(wanted.any(2).sum(1), 1)
    by_window = {}
    for window in set(windows(model)):
        visible = (age >= 0) & (age < (window or n))
        seen = visible.sum(1)
        shares = ((wanted & visible) / seen[:, None]).sum((1, 2)) / queries
        by_window[window] = np.append(shares, np.log(seen).mean())
    return np.stack([by_window[window] for window in windows(model)], 1)
