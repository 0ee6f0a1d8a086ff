"""How rows of different lengths lie in one axis of tokens, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Indices = np.ndarray


def ranges(starts: Indices, sizes: Indices) -> Indices:
    """The concatenation of `arange(start, start + size)` over all pairs."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


@dataclass(frozen=True)
class RowGroup:
    """Consecutive rows with the same first position and the same length."""

    rows: slice
    tokens: slice
    start: int
    length: int


class Layout:
    """Rows of tokens: row r holds positions `start[r]` to `length[r] - 1` of prompt `prompt[r]`.

    Rows are sorted by (length, start, prompt), so that rows of one shape are adjacent and, among
    these, rows of one prompt. `ids[r]` is the variant in row r. `base` maps every token to its
    index in the baseline's flat tokens.
    """

    def __init__(
        self, *, ids: Indices, prompt: Indices, start: Indices, length: Indices, offset: Indices
    ) -> None:
        order = np.lexsort((ids, prompt, start, length))
        self.order = order
        self.ids, self.prompt = ids[order], prompt[order]
        self.start, self.length = start[order], length[order]
        self.sizes = self.length - self.start
        self.first_token = np.cumsum(self.sizes) - self.sizes
        self.offset = offset[self.prompt]
        self.row_of_id = dict(zip(self.ids.tolist(), range(len(ids)), strict=True))

    @classmethod
    def of_rows(cls, length: Indices, offset: Indices, start: Indices | int = 0) -> Layout:
        """One row for each prompt, from position `start` on."""
        ids = np.arange(len(length))
        start = np.broadcast_to(start, ids.shape)
        return cls(ids=ids, prompt=ids, start=start, length=length, offset=offset)

    @classmethod
    def of_prompts(cls, prompts: Sequence[Sequence[int]]) -> Layout:
        """One row for each whole prompt."""
        length = np.array([len(prompt) for prompt in prompts])
        return cls.of_rows(length, np.cumsum(length) - length)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def base(self) -> Tensor:
        """(tokens,) index of each token in the baseline's flat tokens."""
        return torch.from_numpy(ranges(self.offset + self.start, self.sizes))

    @cached_property
    def positions(self) -> Tensor:
        """(tokens,) position of each token in its prompt."""
        return torch.from_numpy(ranges(self.start, self.sizes))

    @cached_property
    def last(self) -> Tensor:
        """(rows,) flat index of each row's last token."""
        return torch.from_numpy(self.first_token + self.sizes - 1)

    @cached_property
    def groups(self) -> list[RowGroup]:
        """The groups of rows with equal (start, length)."""
        if not len(self):
            return []
        changed = (np.diff(self.start) != 0) | (np.diff(self.length) != 0)
        edges = [0, *(np.flatnonzero(changed) + 1).tolist(), len(self)]
        found = []
        for begin, end in zip(edges, edges[1:], strict=False):
            first = int(self.first_token[begin])
            count = (end - begin) * int(self.sizes[begin])
            found.append(
                RowGroup(
                    rows=slice(begin, end),
                    tokens=slice(first, first + count),
                    start=int(self.start[begin]),
                    length=int(self.length[begin]),
                )
            )
        return found

    def prompts(self, group: RowGroup) -> list[tuple[slice, int]]:
        """For each prompt, its rows within the group and its first token in the baseline."""
        offset = self.offset[group.rows]
        edges = [0, *(np.flatnonzero(np.diff(offset)) + 1).tolist(), len(offset)]
        return [(slice(a, b), int(offset[a])) for a, b in zip(edges, edges[1:], strict=False)]

    def flat(self, ids: Indices, positions: Indices) -> Tensor:
        """Flat token indices of (variant, position) pairs in this layout."""
        rows = np.fromiter((self.row_of_id[i] for i in ids.tolist()), np.int64, len(ids))
        return torch.from_numpy(self.first_token[rows] + positions - self.start[rows])

    def joined(self, other: Layout, offset: Indices) -> tuple[Layout, Tensor]:
        """Both layouts merged, and the order that takes the tokens of both to the new layout."""
        both = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("ids", "prompt", "start", "length")
        }
        merged = Layout(**both, offset=offset)
        first = np.concatenate([self.first_token, other.first_token + int(self.sizes.sum())])
        return merged, torch.from_numpy(ranges(first[merged.order], merged.sizes))
