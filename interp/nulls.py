"""A selection judged against random ones like it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from interp.components import SITES, Axis, Component
from interp.errors import InterpError


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


def matched_components(
    chosen: Sequence[Component],
    n_layers: int,
    size: Callable[[Axis], int],
    rng: np.random.Generator,
) -> list[Component]:
    """Components like the chosen ones, and none of them: same sites, layers and count.

    Where a layer has none left one of any layer is taken; for a whole site, another layer's.

    Raises:
        InterpError: every component is chosen.
    """
    taken, drawn = set(chosen), []
    for part in chosen:
        axis = SITES[part.site]
        numbers = [None] if axis is None or part.index is None else range(size(axis))
        near = (Component(part.layer, part.site, i) for i in numbers)
        free = [c for c in near if c not in taken]
        if not free:
            anywhere = (Component(at, part.site, i) for at in range(n_layers) for i in numbers)
            free = [c for c in anywhere if c not in taken]
        if not free:
            raise InterpError(
                "a random set like the chosen one", "every component is chosen", "choose fewer"
            )
        drawn.append(free[int(rng.integers(len(free)))])
        taken.add(drawn[-1])
    return drawn
