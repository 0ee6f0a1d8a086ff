"""A selection judged against random ones like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.components import SITES, Axis, Component
from interp.errors import InterpError

if TYPE_CHECKING:
    from torch import Tensor


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
    """The null of a selection's effect and of the effects of random selections.

    Raises:
        InterpError: no random selection.
    """
    if not len(random):
        raise InterpError("a null", "0 draws", "draw at least one random selection")
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
    """Random components like the chosen ones: same sites, layers and count, none twice.

    None of the chosen ones, unless a layer has too few others: then all of that layer take part,
    the chosen ones too, which can only make a null stronger. For a whole site, such as mlp_out,
    another layer's is taken.

    Raises:
        InterpError: a whole site of every layer is chosen.
    """
    wanted: dict[tuple[int, str], list[Component]] = {}
    for part in chosen:
        wanted.setdefault((part.layer, part.site), []).append(part)
    drawn: list[Component] = []
    for (layer, site), parts in wanted.items():
        axis = SITES[site]
        if axis is None or parts[0].index is None:
            used = {part.layer for part in [*chosen, *drawn] if part.site == site}
            left = [i for i in range(n_layers) if i not in used]
            if not left:
                raise InterpError(f"a random {site}", "every layer's is chosen", "choose fewer")
            drawn.append(Component(left[int(rng.integers(len(left)))], site, None))
            continue
        mine = {part.index for part in parts}
        free = [i for i in range(size(axis)) if i not in mine]
        pool = free if len(free) >= len(mine) else list(range(size(axis)))
        drawn += [
            Component(layer, site, int(i)) for i in rng.choice(pool, len(mine), replace=False)
        ]
    return drawn


def turned_directions(vectors: Tensor, draws: int, *, seed: int = 0) -> Iterator[Tensor]:
    """Some directions, (n, width), all turned together at random: lengths and angles are kept.

    What a selection along directions is judged against: one along random directions gains as much
    by taking the best of many.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = torch.linalg.qr(vectors.double().cpu().T).R
    for _ in range(draws):
        drawn = torch.randn(vectors.shape[1], len(shape), generator=generator)
        q, r = torch.linalg.qr(drawn.double())
        yield (q * r.diagonal().sign() @ shape).T.to(vectors)
