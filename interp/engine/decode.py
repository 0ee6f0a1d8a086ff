"""Decoding of many rows with a key/value cache, and of changed copies of some of them.

A `Stream` holds the keys and values of rows of different lengths, from a given layer on. Rows are
aligned at their first token, so the numbers of a row do not depend on the lengths of other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from interp.core.components import EXPERT_SITES
from interp.engine.architecture import normed
from interp.engine.forward import Runner, attention_pattern
from interp.engine.masks import score_mask, sink_of
from interp.engine.stopping import stop_if_asked

SiteChange = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(site value (rows, tokens, ...), row numbers (rows,), positions (rows, tokens)) -> new value."""

SiteChanges = Mapping[tuple[int, str], SiteChange]

CHANGEABLE = (
    "resid_pre", "z", "attn_out", "resid_mid", "post", "router", "expert_out", "mlp_out",
    "resid_post",
)  # fmt: skip
"""Sites that can be changed during decoding."""


@dataclass(kw_only=True)
class Stream:
    """Keys and values of rows, from layer `first` on: (rows, kv_head, capacity, d_head) each."""

    runner: Runner
    first: int
    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor

    @classmethod
    def empty(cls, runner: Runner, rows: int, capacity: int, *, first: int = 0) -> Stream:
        """A stream without tokens, with memory for `capacity` tokens per row."""
        heads = [(block.attn.n_kv_heads, block.attn.d_head) for block in runner.decoder.blocks]
        keys, values = (
            [runner.decoder.unembed.new_zeros(rows, n, capacity, d) for n, d in heads[first:]]
            for _ in range(2)
        )
        lengths = torch.zeros(rows, dtype=torch.long, device=runner.device)
        return cls(runner=runner, first=first, keys=keys, values=values, lengths=lengths)

    def select(
        self, rows: Tensor, *, first: int, back: int = 0, capacity: int | None = None
    ) -> Stream:
        """A copy of some rows, from layer `first` on and without their last `back` tokens."""
        skip = first - self.first
        return Stream(
            runner=self.runner,
            first=first,
            keys=[side[rows, :, :capacity] for side in self.keys[skip:]],
            values=[side[rows, :, :capacity] for side in self.values[skip:]],
            lengths=self.lengths[rows] - back,
        )

    def extend(
        self,
        x: Tensor,
        counts: Tensor,
        *,
        rows: Tensor | None = None,
        changes: SiteChanges | None = None,
        names: Tensor | None = None,
        seen: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Run new tokens of some rows from layer `first` on, and add them to the cache.

        Args:
            x: (rows, tokens, d_model) resid_pre of layer `first`. Row r has `counts[r]` tokens; the
                rest is padding.
            counts: (rows,) number of new tokens of each row.
            rows: the numbers of these rows in the stream; all rows by default.
            changes: the change at each (layer, site).
            names: the row numbers passed to the changes; `rows` by default.
            seen: its keys are layers; their resid_pre is stored in it.

        Returns:
            (rows, d_model) final residual at each row's last new token, before the final norm.
        """
        at = torch.arange(len(self.lengths), device=x.device) if rows is None else rows
        names, changes = at if names is None else names, changes or {}
        start = self.lengths[at]
        steps = torch.arange(x.shape[1], device=x.device)
        positions = start[:, None] + steps
        real = steps < counts[:, None]
        owner = at[:, None].expand_as(positions)[real]
        x = x.flatten(0, 1)
        for number, block in enumerate(self.runner.decoder.blocks[self.first :]):
            layer = self.first + number
            stop_if_asked()

            def changed(site: str, value: Tensor, layer: int = layer) -> Tensor:
                change = changes.get((layer, site))
                if change is None:
                    return value
                return change(value.unflatten(0, positions.shape), names, positions).flatten(0, 1)

            if seen is not None and layer in seen:
                seen[layer] = x.unflatten(0, positions.shape)
            x = changed("resid_pre", x)
            read = normed(block.ln1, x)
            q, k, v = (self.runner.project(block, which, read) for which in "qkv")
            q = self.runner.rotated(block.attn, "q", q, positions.flatten())
            k = self.runner.rotated(block.attn, "k", k, positions.flatten())
            q, k, v = (part.unflatten(0, positions.shape) for part in (q, k, v))
            self.keys[number][owner, :, positions[real]] = k[real]
            self.values[number][owner, :, positions[real]] = v[real]
            z = self._attend(number, q, at, positions)
            inside = any(at == layer and site in EXPERT_SITES for at, site in changes)
            x = self.runner.after_heads(block, x, z.flatten(0, 1), changed, experts=inside)
        self.lengths[at] = start + counts
        return x.unflatten(0, positions.shape)[torch.arange(len(at), device=x.device), counts - 1]

    def _attend(self, number: int, q: Tensor, at: Tensor, positions: Tensor) -> Tensor:
        """Site z: (rows, tokens, heads, d_head)."""
        attn = self.runner.decoder.blocks[self.first + number].attn
        keys, values = self.keys[number], self.values[number]
        # Padding may exceed the capacity; what it reads does not matter.
        size = min(int(positions.max()) + 1, keys.shape[2])
        per_kv = attn.n_heads // attn.n_kv_heads
        if len(at) == len(keys):  # all rows, in their order: no copy
            keys, values = keys[:, :, :size], values[:, :, :size]
        else:
            keys, values = keys[at, :, :size], values[at, :, :size]
        columns = torch.arange(size, device=q.device)
        allowed = columns <= positions[..., None]
        if attn.window is not None:
            allowed &= columns > positions[..., None] - attn.window
        count = positions.shape[1]
        mask = score_mask(attn, allowed[:, None].repeat(1, 1, per_kv, 1), size, count)
        shaped = rearrange(q, "row pos (kv group) d -> row kv (group pos) d", group=per_kv)
        if attn.plain:
            mixed = F.scaled_dot_product_attention(
                shaped, keys, values, attn_mask=mask, scale=attn.scale
            )
        else:
            pattern = attention_pattern(attn, shaped, keys, mask, sink_of(attn, count))
            mixed = pattern @ values
        return rearrange(mixed, "row kv (group pos) d -> row pos (kv group) d", pos=count)
