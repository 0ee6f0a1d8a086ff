"""Logits of final hidden states for a metric, and the cutting of work into parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from interp.engine.architecture import Decoder
from interp.engine.layout import Indices

CPU_TILE = 3072
"""Tokens computed at once on a CPU; with more, a layer's activations do not fit in its cache."""


@dataclass(kw_only=True)
class LogitsOf:
    """A `Readout` that computes only the logits that the metric reads."""

    decoder: Decoder
    hidden: torch.Tensor

    def at(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of each row's own tokens."""
        return self.decoder.logits(self.hidden, tokens.to(self.hidden.device)).cpu()

    def all(self) -> torch.Tensor:
        """Logits of the whole vocabulary."""
        return self.decoder.logits(self.hidden).cpu()


def cut(order: Indices, size: Indices, limit: int) -> Iterator[Indices]:
    """Cut into parts of consecutive entries whose sizes sum to at most `limit`, or one entry."""
    begin, total = 0, np.cumsum(size)
    while begin < len(order):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + limit, side="right")))
        yield order[begin:end]
        begin = end
