"""How much removing an edge changes a reader's input, and the sums over removed edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.engine.architecture import Norm, Scale


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The changes of some writers, (rows, writers, positions, d_model).

    Under a post-norm, heads are summed before the norm. Then `values` are changes of `raw`, the
    layer's sum (rows, positions, d_model), and the norm acts on the changed sum.
    """

    values: Tensor
    raw: Tensor | None = None
    norm: Norm | Scale | None = None

    def sum(self, weights: Tensor, rows: Tensor | None) -> Tensor:
        """(rows, readers, positions, d_model) of weights (rows, readers, writers[, positions])."""
        stored, writers, *shape = self.values.shape
        if weights.dim() == 4:
            values = self.values if rows is None or stored == 1 else self.values[rows]
            by_token = weights.permute(0, 3, 1, 2) @ values.transpose(1, 2)
            change = by_token.transpose(1, 2)
        elif stored == 1:  # all rows share one stored row: a single product
            change = weights.flatten(0, 1) @ self.values[0].reshape(writers, -1)
            change = change.view(*weights.shape[:2], *shape)
        else:
            values = self.values if rows is None else self.values[rows]
            change = torch.bmm(weights, values.flatten(2)).unflatten(2, shape)
        if self.raw is None or self.norm is None:
            return change
        raw = (self.raw if rows is None else self.raw[rows])[:, None]
        return self.norm(raw + change) - self.norm(raw)

    def taken(self, of: Callable[[Tensor], Tensor]) -> _Part:
        """The same changes at some rows or positions, which `of` takes from each tensor."""
        raw = None if self.raw is None else of(self.raw)
        return _Part(values=of(self.values), raw=raw, norm=self.norm)


@dataclass(kw_only=True)
class Deltas:
    """For each writer so far, in causal order, its value if removed minus its value in this run.

    If removed edges carry nothing, it holds the value in this run instead. With `merged`, all
    writers are in one buffer for `capacity` writers, so that the sum for a reader is one matrix
    product. Otherwise every `add` has its own tensor, as gradients and post-norms require. `count`
    is the number of writers.
    """

    merged: bool
    capacity: int
    count: int = 0
    _parts: list[_Part] = field(default_factory=list)
    _buffer: Tensor | None = None
    _rows: Tensor | None = None

    def add(
        self, values: Tensor, *, raw: Tensor | None = None, norm: Norm | Scale | None = None
    ) -> None:
        """Add writers, (rows, writers, positions, d_model)."""
        self._settle()
        begin, self.count = self.count, self.count + values.shape[1]
        if not self.merged:
            self._parts.append(_Part(values=values, raw=raw, norm=norm))
            return
        if self._buffer is None:
            self._buffer = values.new_empty(len(values), self.capacity, *values.shape[2:])
        self._buffer[:, begin : self.count] = values
        self._parts = [_Part(values=self._buffer[:, : self.count])]

    def split(self, parents: Tensor) -> None:
        """Make row i a copy of row `parents[i]`. The copy is made when the next writer is added."""
        self._rows = parents if self._rows is None else self._rows[parents]

    def end(self, n: int) -> None:
        """Keep only the last n positions."""
        self._parts = [part.taken(lambda x: x[..., -n:, :]) for part in self._parts]
        self._buffer = None if self._buffer is None else self._buffer[:, :, -n:]

    def sum(self, weights: Tensor) -> Tensor:
        """Weighted sums over the writers so far: (rows, readers, positions, d_model).

        `weights` is (rows, readers, writers), or (rows, readers, writers, positions) if they differ
        between tokens. An edge with weight 0 is not included.
        """
        total, begin = None, 0
        for part in self._parts:
            end = begin + part.values.shape[1]
            term = part.sum(weights[:, :, begin:end], self._rows)
            total, begin = (term if total is None else total + term), end
        assert total is not None
        return total

    def _settle(self) -> None:
        """Copy the rows as `split` asked."""
        rows, self._rows = self._rows, None
        if rows is None:
            return
        if self._buffer is None:
            self._parts = [part.taken(lambda x: x[rows]) for part in self._parts]
            return
        old = self._buffer[:, : self.count]
        self._buffer = old.new_empty(len(rows), self.capacity, *old.shape[2:])
        self._buffer[:, : self.count] = old[rows]
