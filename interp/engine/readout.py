"""Logits of final hidden states for a metric, and the cutting of work into parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from interp.core.branches import require_read
from interp.core.statistics import widened
from interp.engine.architecture import Decoder
from interp.engine.layout import Indices

ROWS = 128
"""Rows whose logits are held at once to sum the probabilities of a vocabulary."""

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

    def log_probs(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(n,) log-probability of token `tokens[i]` at row `rows[i]`, float32 or wider.

        The logits of a few rows are held at once; for a gradient they are computed again.
        """
        require_read(len(self.hidden), rows)
        device = self.hidden.device
        rows, taped = rows.to(device), torch.is_grad_enabled() and self.hidden.requires_grad
        totals = [
            checkpoint(self._total, part, use_reentrant=False) if taped else self._total(part)
            for part in self.hidden.split(ROWS)
        ]
        picked = self.decoder.logits(self.hidden[rows], tokens.to(device)[:, None])[:, 0]
        return widened(picked) - torch.cat(totals)[rows]

    def _total(self, hidden: torch.Tensor) -> torch.Tensor:
        return widened(self.decoder.logits(hidden)).logsumexp(-1)


def cut(order: Indices, size: Indices, limit: int) -> Iterator[Indices]:
    """Cut into parts of consecutive entries whose sizes sum to at most `limit`, or one entry."""
    begin, total = 0, np.cumsum(size)
    while begin < len(order):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + limit, side="right")))
        yield order[begin:end]
        begin = end
