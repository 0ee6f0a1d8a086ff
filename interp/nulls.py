"""A selection judged against random ones like it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Null:
    """A selection against random components of the same kind, layers and count.

    selected: mean effect of the selection. mean, low, high: the same for random selections
    (95 % range). p: share of random selections at least as strong, counting the selection itself.
    """

    selected: float
    mean: float
    low: float
    high: float
    p: float
    draws: int

    def __str__(self) -> str:
        # Adding zero turns a rounded -0.000 into 0.000.
        mean, low, high = (round(x, 3) + 0.0 for x in (self.mean, self.low, self.high))
        return (
            f"selected {self.selected:.3f}, random {mean:.3f} [{low:.3f}, {high:.3f}], "
            f"p = {self.p:.4f} ({self.draws} draws)"
        )


def null_of(selected: float, random: np.ndarray) -> Null:
    """The null of a selection's effect and of the effects of random selections."""
    low, high = np.quantile(random, [0.025, 0.975])
    return Null(
        selected=selected,
        mean=float(random.mean()),
        low=float(low),
        high=float(high),
        p=float((1 + (random >= selected).sum()) / (1 + len(random))),
        draws=len(random),
    )
