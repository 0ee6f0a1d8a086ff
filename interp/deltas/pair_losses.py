"""Texts with continuations as training rows, and the loss of the continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.models.language_model import LanguageModel

Pairs = Sequence[tuple[Prompt, Prompt]]
"""A text, and the continuation whose probability is changed or kept; either may be token ids."""

TokenRows = list[tuple[tuple[int, ...], int]]
"""The tokens of a text with its continuation, and where the continuation begins."""


def encoded_pairs(model: LanguageModel, pairs: Pairs, purpose: str) -> TokenRows:
    """The tokens of each text with its continuation, and where the continuation begins.

    Raises:
        InterpError: no texts, or a continuation without tokens.
    """
    found = []
    for text, more in pairs:
        before = model.tokenize(text).tokens
        after = model.token_id(more) if isinstance(more, str) else tuple(more)
        if not after:
            asked = f"a continuation to {purpose}"
            raise InterpError(asked, f"{more!r} has no tokens", "write one")
        found.append(((*before, *after), len(before)))
    if not found:
        raise InterpError(f"texts to {purpose}", "none", "give at least one")
    return found


def row_batches(rows: TokenRows, size: int, seed: int) -> Iterator[TokenRows]:
    """Batches without end; every row comes once before any comes again."""
    rng, waiting = np.random.default_rng(seed), []
    while True:
        while len(waiting) < size:
            waiting += [rows[i] for i in rng.permutation(len(rows))]
        yield waiting[:size]
        waiting = waiting[size:]


def token_losses(run: Callable[..., Any], rows: TokenRows, device: torch.device) -> Tensor:
    """(rows, tokens) the loss of every token, 0 outside the continuations; `run` is a model."""
    length = max(len(tokens) for tokens, _ in rows)
    ids = torch.tensor([[*tokens, *[0] * (length - len(tokens))] for tokens, _ in rows])
    labels = torch.full_like(ids, -100)
    for row, (tokens, start) in enumerate(rows):
        labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
    mask = torch.tensor([[1] * len(t) + [0] * (length - len(t)) for t, _ in rows])
    logits = run(ids.to(device), attention_mask=mask.to(device)).logits[:, :-1].float()
    found = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten().to(device),
                            reduction="none")  # fmt: skip
    return found.view(len(rows), -1)


def pair_losses(run: Callable[..., Any], rows: TokenRows, device: torch.device) -> Tensor:
    """(rows,) the mean loss of the tokens of each continuation."""
    counts = torch.tensor([len(tokens) - start for tokens, start in rows], device=device)
    return token_losses(run, rows, device).sum(1) / counts
