"""From final hidden states to a metric: logits in slices, and what every sweep reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from interp.engine.architecture import Decoder
from interp.engine.layout import Indices

CPU_TILE = 3072
"""Tokens in flight at once on a CPU: beyond this a layer's activations fall out of the cache."""


@dataclass(kw_only=True)
class LogitsOf:
    """A `Readout` that unembeds only what the metric reads."""

    decoder: Decoder
    hidden: torch.Tensor

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of each row's own tokens."""
        return self.decoder.logits(self.hidden, tokens.to(self.hidden.device)).cpu()

    def all(self) -> torch.Tensor:
        """Logits of the whole vocabulary."""
        return self.decoder.logits(self.hidden).cpu()


Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


def cut(order: Indices, size: Indices, room: int) -> Iterator[Indices]:
    """Consecutive entries, as many as fit in `room`, and at least one."""
    begin, total = 0, np.cumsum(size)
    while begin < len(order):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + room, side="right")))
        yield order[begin:end]
        begin = end
