"""How rows of different lengths lie in one axis of tokens, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from interp.core.branches import places, sizes_of, tail_of

Indices = np.ndarray


Branches = Sequence[tuple[int, ...]]
"""The sizes of the branches of every prompt; empty if no prompt has any."""


def branches_of(prompts: Sequence[Sequence[int]]) -> Branches:
    """The branches of some rows."""
    found = [sizes_of(prompt) for prompt in prompts]
    return found if any(found) else ()


def tails_of(branches: Branches, prompts: Indices) -> Indices:
    """(prompts,) number of tokens read of each."""
    if not branches:
        return np.ones_like(prompts)
    return np.array([tail_of(one) for one in branches], dtype=np.int64)[prompts]


def ranges(starts: Indices, sizes: Indices) -> Indices:
    """The concatenation of `arange(start, start + size)` over all pairs."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


@dataclass(frozen=True)
class RowGroup:
    """Consecutive rows with the same first position, length and branches.

    `tail` is the number of tokens that are read of each row, and `ends` are those of all its rows
    among the tails of a layout.
    """

    rows: slice
    tokens: slice
    ends: slice
    start: int
    length: int
    branches: tuple[int, ...]

    @property
    def tail(self) -> int:
        """Number of tokens that are read of each row."""
        return tail_of(self.branches)


class Layout:
    """Rows of tokens: row r holds positions `start[r]` to `length[r] - 1` of prompt `prompt[r]`.

    Rows are sorted by (length, start, branches, prompt), so that rows of one shape are adjacent
    and, among these, rows of one prompt. `ids[r]` is the variant in row r. `base` maps every token
    to its index in the baseline's flat tokens. `offset` and `branches` (`interp.core.branches`)
    are those of every prompt; no branches if these are left out.
    """

    def __init__(
        self,
        *,
        ids: Indices,
        prompt: Indices,
        start: Indices,
        length: Indices,
        offset: Indices,
        branches: Branches = (),
    ) -> None:
        kinds = sorted(set(branches))
        kind = np.array([kinds.index(one) for one in branches], dtype=np.int64)
        shape = kind[prompt] if len(kinds) else np.zeros_like(prompt)
        order = np.lexsort((ids, prompt, shape, start, length))
        self.order, self.shape, self.kinds = order, shape[order], kinds or [()]
        self._branches = branches
        self.ids, self.prompt = ids[order], prompt[order]
        self.start, self.length = start[order], length[order]
        self.sizes = self.length - self.start
        self.first_token = np.cumsum(self.sizes) - self.sizes
        self.offset = offset[self.prompt]
        self.row_of_id = dict(zip(self.ids.tolist(), range(len(ids)), strict=True))

    @classmethod
    def of_rows(
        cls,
        length: Indices,
        offset: Indices,
        start: Indices | int = 0,
        branches: Branches = (),
    ) -> Layout:
        """One row for each prompt, from position `start` on."""
        ids = np.arange(len(length))
        start = np.broadcast_to(start, ids.shape)
        return cls(
            ids=ids, prompt=ids, start=start, length=length, offset=offset, branches=branches
        )

    @classmethod
    def of_prompts(cls, prompts: Sequence[Sequence[int]]) -> Layout:
        """One row for each whole prompt."""
        length = np.array([len(prompt) for prompt in prompts])
        branches = branches_of(prompts)
        return cls.of_rows(length, np.cumsum(length) - length, branches=branches)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def base(self) -> Tensor:
        """(tokens,) index of each token in the baseline's flat tokens."""
        return torch.from_numpy(ranges(self.offset + self.start, self.sizes))

    @cached_property
    def positions(self) -> Tensor:
        """(tokens,) position of each token; a branch goes on from the end of its prompt."""
        if not self._branches:
            return torch.from_numpy(ranges(self.start, self.sizes))
        rows = zip(self.start.tolist(), self.length.tolist(), self.shape.tolist(), strict=True)
        found = [places(end, self.kinds[kind])[0][start:] for start, end, kind in rows]
        return torch.from_numpy(np.concatenate(found or [np.zeros(0, dtype=np.int64)]))

    @cached_property
    def tails(self) -> Indices:
        """(rows,) number of tokens read of each row: 1, and those of its branches."""
        return np.array([tail_of(kind) for kind in self.kinds])[self.shape]

    @cached_property
    def ends(self) -> Tensor:
        """(tokens read,) flat indices of the tails of all rows, one row after the other."""
        stop = self.first_token + self.sizes
        return torch.from_numpy(ranges(stop - self.tails, self.tails))

    @cached_property
    def last(self) -> Tensor:
        """(rows,) flat index of each row's last token."""
        return torch.from_numpy(self.first_token + self.sizes - 1)

    def read_in(self, rows: slice, tokens: Indices) -> int:
        """How many of the last columns of `tokens` lie in the tails of some rows of one shape.

        `tokens`, (rows, columns), are flat indices of consecutive tokens of each row.
        """
        row = rows.start
        begin = int(self.first_token[row] + self.sizes[row] - self.tails[row])
        return int((tokens[0] >= begin).sum())

    @cached_property
    def groups(self) -> list[RowGroup]:
        """The groups of rows with equal (start, length, branches)."""
        if not len(self):
            return []
        changed = (np.diff(self.start) != 0) | (np.diff(self.length) != 0)
        changed |= np.diff(self.shape) != 0
        before = np.concatenate([[0], np.cumsum(self.tails)])
        edges = [0, *(np.flatnonzero(changed) + 1).tolist(), len(self)]
        found = []
        for begin, end in zip(edges, edges[1:], strict=False):
            first = int(self.first_token[begin])
            count = (end - begin) * int(self.sizes[begin])
            found.append(
                RowGroup(
                    rows=slice(begin, end),
                    tokens=slice(first, first + count),
                    ends=slice(int(before[begin]), int(before[end])),
                    start=int(self.start[begin]),
                    length=int(self.length[begin]),
                    branches=self.kinds[int(self.shape[begin])],
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
        merged = Layout(**both, offset=offset, branches=other._branches)
        first = np.concatenate([self.first_token, other.first_token + int(self.sizes.sum())])
        return merged, torch.from_numpy(ranges(first[merged.order], merged.sizes))
