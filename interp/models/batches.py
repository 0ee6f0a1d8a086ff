"""Prompts in padded passes: which go together, and where each one's tokens are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BATCH_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts of one padded forward pass.

    `first[r]` is the column of row r's first real token: 0 with right padding. `prompts` are the
    rows' numbers among all prompts of the run, `total` of them.
    """

    tokens: Tensor
    mask: Tensor
    first: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray
    total: int

    def column(self, row: int, position: int) -> int:
        """The column of a prompt position."""
        return int(self.first[row]) + position


def batches(
    lengths: Sequence[int], switch: int | None = None, ragged: bool = True
) -> Iterator[list[int]]:
    """Prompt numbers in groups of similar length, at most BATCH_TOKENS padded tokens each."""

    def side(i: int) -> tuple[bool, int]:
        """Prompts that may share a pass have this in common."""
        return switch is not None and lengths[i] > switch, 0 if ragged else lengths[i]

    chosen: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        full = (len(chosen) + 1) * lengths[i] > BATCH_TOKENS
        if chosen and (full or side(i) != side(chosen[0])):
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen


def padded(
    prompts: Sequence[Sequence[int]],
    numbers: list[int],
    side: str,
    device: torch.device,
    total: int,
) -> Batch:
    """One pass of these prompts; `numbers` say which of all `total` prompts they are."""
    lengths = np.array([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    first = width - lengths if side == "left" else np.zeros_like(lengths)
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        inside = slice(int(first[row]), int(first[row]) + len(prompt))
        tokens[row, inside] = torch.tensor(list(prompt))
        mask[row, inside] = 1
    return Batch(
        tokens=tokens.to(device),
        mask=mask.to(device),
        first=first,
        lengths=lengths,
        prompts=np.array(numbers),
        total=total,
    )
