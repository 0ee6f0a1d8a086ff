"""Batches of padded prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

BATCH_TOKENS = 1024
"""Most tokens of a batch, padding included, unless a single prompt is longer."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The prompts of one padded forward pass.

    `first[r]` is the column of the first real token of row r; it is 0 with right padding.
    `prompts[r]` is the number of row r among the `total` prompts of the run.
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

    def tail_columns(self, counts: Sequence[int]) -> list[int]:
        """The columns that hold the last `counts[r]` tokens of some row r, in order."""
        ends = (self.first + self.lengths).tolist()
        found = zip(ends, counts, strict=True)
        return sorted({column for end, count in found for column in range(end - count, end)})


Address = tuple[int, str]
"""A layer and a site."""

Hook = Callable[[Tensor, Batch], Tensor]
"""(value of a site, the batch) -> its new value. Head sites are (batch, pos, head, d_head),
patterns are (batch, head, query_pos, key_pos), and other sites are (batch, pos, width)."""


def batches(
    lengths: Sequence[int], switch: int | None = None, ragged: bool = True
) -> Iterator[list[int]]:
    """Prompt numbers in groups of similar length, each of at most BATCH_TOKENS padded tokens.

    A group never mixes prompts longer than `switch` with others, nor, unless `ragged`, prompts of
    different lengths.
    """

    def side(i: int) -> tuple[bool, int]:
        """Prompts may share a pass only if this is equal."""
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
    """The batch of these prompts; `numbers` are their numbers among all `total` prompts."""
    lengths = np.array([len(prompt) for prompt in prompts])
    rows = [torch.tensor(list(prompt)) for prompt in prompts]
    tokens, mask = (
        pad_sequence(part, batch_first=True, padding_side=side).to(device)
        for part in (rows, [torch.ones_like(row) for row in rows])
    )
    return Batch(
        tokens=tokens,
        mask=mask,
        first=lengths.max() - lengths if side == "left" else np.zeros_like(lengths),
        lengths=lengths,
        prompts=np.array(numbers),
        total=total,
    )
