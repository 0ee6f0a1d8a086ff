"""Plain runs of many prompts, a block at a time; kept, where many ablations start from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.engine.forward import Baseline, Runner
from interp.engine.restart import baseline
from interp.engine.sweep import cut
from interp.models.language_model import LanguageModel

BLOCK = 8192
"""Tokens run at once."""


@dataclass(frozen=True, kw_only=True)
class KeptRuns:
    """Plain runs from which changes to the last `last` tokens of their prompts start.

    Kept are every token's keys and values, and the residual stream of the last tokens.
    """

    prompts: tuple[tuple[int, ...], ...]
    last: int
    blocks: tuple[tuple[np.ndarray, Baseline], ...]


def keep_runs(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    last: int,
    budget_gb: float = 4.0,
) -> KeptRuns | None:
    """The plain runs of some prompts for `ablate(runs=...)`; None where they exceed the budget.

    Raises:
        InterpError: no fast engine.
    """
    decoder = model.require_decoder("keeping plain runs")
    width = 2 * model.n_kv_heads * model.d_head
    per_token = width * model.n_layers * torch.finfo(model.dtype).bits / 8
    if sum(map(len, prompts)) * per_token > budget_gb * 1e9:
        return None
    with torch.no_grad():
        blocks = tuple(
            (block, run.only_ends(last)) for block, run in plain_runs(Runner(decoder), prompts)
        )
    return KeptRuns(prompts=tuple(map(tuple, prompts)), last=last, blocks=blocks)


def plain_runs(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    *,
    sites: frozenset[str] = frozenset(),
    tokens: int = BLOCK,
) -> Iterator[tuple[np.ndarray, Baseline]]:
    """(prompt numbers, their run) in blocks of about that many tokens, similar lengths together."""
    lengths = np.array([len(prompt) for prompt in prompts])
    order = np.argsort(lengths, kind="stable")
    for block in cut(order, lengths[order], tokens):
        yield block, baseline(runner, [prompts[i] for i in block], sites)
