"""Several weight deltas of one base merged into one, and how much they overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.schema import checked
from interp.models.weight_delta import WeightDelta
from interp.plots.tables import Tabled

MergeRule = Literal["sum", "mean", "ties", "dare", "ram", "ram+"]
"""How the numbers of several deltas become one; see `merge`."""


@dataclass(frozen=True, kw_only=True)
class Merge(Tabled):
    """Merged deltas and their overlap, tensor by tensor.

    A number of a tensor is active in a delta if its absolute value is above the threshold; shared
    if it is active in two deltas or more; unique to a delta if it is active in this one alone.

    Attributes:
        delta: the merged change.
        sources: names of the deltas.
        rule: how they were merged.
        threshold: above which a change counts as active.
        sizes: numbers in each tensor, by its name.
        active: by tensor, (deltas,) numbers that are active in each.
        unique: by tensor, (deltas,) numbers that are active in this delta alone.
        cosines: (deltas, deltas) cosines of the whole deltas.
    """

    delta: WeightDelta
    sources: tuple[str, ...]
    rule: str
    threshold: float
    sizes: Mapping[str, int]
    active: Mapping[str, np.ndarray] = field(repr=False)
    unique: Mapping[str, np.ndarray] = field(repr=False)
    cosines: np.ndarray

    def shares(self) -> dict[str, dict[str, float]]:
        """Of each delta: the share of numbers that are active, and of these shared and unique."""
        total = sum(self.sizes.values())
        active, unique = (np.sum([*x.values()], axis=0) for x in (self.active, self.unique))
        return {
            name: {
                "active": float(active[i] / total),
                "shared": float(1 - unique[i] / active[i]) if active[i] else float("nan"),
                "unique": float(unique[i] / active[i]) if active[i] else float("nan"),
            }
            for i, name in enumerate(self.sources)
        }

    def __repr__(self) -> str:
        told = [
            f"{name}: active {share['active']:z.3f}, of these unique {share['unique']:z.3f}"
            for name, share in self.shares().items()
        ]
        return f"Merge({self.rule}, {'; '.join(told)})"

    def to_dataframe(self) -> Any:
        """One row per tensor and delta, with its active and unique shares."""
        from pandas import DataFrame

        rows = [
            {
                "tensor": name,
                "delta": source,
                "numbers": self.sizes[name],
                "active": self.active[name][i] / self.sizes[name],
                "unique": self.unique[name][i] / self.sizes[name],
            }
            for name in self.sizes
            for i, source in enumerate(self.sources)
        ]
        return DataFrame(rows)


@reads_arguments
def merge(
    deltas: Sequence[WeightDelta],
    rule: MergeRule = "mean",
    *,
    threshold: float = 1e-5,
    density: float = 0.2,
    drop: float = 0.9,
    scale: float = 1.0,
    seed: int = 0,
) -> Merge:
    """Merge weight deltas of one base, number by number; `scale` multiplies the result.

    With d_t the change by delta t, T the number of deltas, and a_t = 1 where |d_t| > threshold:

        sum    sum_t d_t                          (arXiv 2212.04089)
        mean   sum_t d_t / T
        ties   the mean of those d_t, trimmed to their largest `density` share in each tensor,
               that have the sign of the trimmed sum                       (arXiv 2306.01708)
        dare   sum_t d_t m_t / (1 - drop), m_t = 0 with probability `drop` (arXiv 2311.03099)
        ram    sum_t a_t d_t / max(1, sum_s a_s)                           (arXiv 2601.13572)
        ram+   as ram, but d_t is multiplied by 1 + 0.1 min(shared_t / unique_t, 0.2) where it is
               the only active one; shared_t and unique_t count the numbers in this tensor

    What a merge does to a behaviour is not in the numbers: measure it with `survival`.

    Departures: TIES sums the elected values of its paper's mean and multiplies by `scale`, as its
    paper does; DARE is set on a sum of deltas. RAM+ counts shared and unique numbers in each
    tensor, as the implementation in mergekit does.

    Args:
        deltas: two or more, of one base.
        rule: see above.
        threshold: changes of at most this size count as none in the overlap, and in ram.
        density: share of numbers that TIES keeps.
        drop: share of numbers that DARE drops.
        scale: what the merged delta is multiplied by.
        seed: of the numbers that DARE drops.

    Raises:
        InterpError: fewer than two deltas, several bases, tensors of other shapes, an unknown rule,
            or a share outside 0 to 1.
    """
    if rule not in get_args(MergeRule):
        raise unknown("merging rule", rule, get_args(MergeRule))
    if not 0 <= density <= 1 or not 0 <= drop < 1:
        asked = f"merging with density={density} and drop={drop}"
        raise InterpError(asked, "not a share", "give 0 to 1, and less than 1 for drop")
    threshold = checked(float, threshold, "the threshold of a merge")
    if len(deltas) < 2:
        raise InterpError(f"merging {len(deltas)} weight deltas", "too few", "give two or more")
    for other in deltas[1:]:
        deltas[0].require_base(other.base, other.name)
    names = sorted({name for delta in deltas for name in delta.names})
    generator, merged = torch.Generator().manual_seed(seed), {}
    sizes: dict[str, int] = {}
    active, unique = {}, {}
    products = np.zeros((len(deltas), len(deltas)))
    for name in names:
        found = [delta.difference(name) if name in delta.names else None for delta in deltas]
        shapes = {tuple(one.shape) for one in found if one is not None}
        if len(shapes) > 1:
            raise InterpError(f"merging {name}", f"shapes {sorted(shapes)}", "use one base")
        like = next(one for one in found if one is not None)
        stack = torch.stack([torch.zeros_like(like) if one is None else one for one in found])
        mask = stack.abs() > threshold
        alone = mask & (mask.sum(0) == 1)
        sizes[name] = like.numel()
        active[name], unique[name] = (x.flatten(1).sum(1).numpy() for x in (mask, alone))
        flat = stack.flatten(1)
        products += (flat @ flat.T).numpy()
        values = _RULES[rule](stack, mask, alone, density, drop, generator)
        merged[name] = (scale * values).float()
    lengths = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = products / np.outer(lengths, lengths)
    sources = tuple(delta.name for delta in deltas)
    delta = WeightDelta(name=f"{rule} of {', '.join(sources)}", base=deltas[0].base, dense=merged)
    return Merge(
        delta=delta, sources=sources, rule=rule, threshold=threshold, sizes=sizes, active=active,
        unique=unique, cosines=cosines,
    )  # fmt: skip


NumberRule = Callable[[Tensor, Tensor, Tensor, float, float, torch.Generator], Tensor]


def _sum(stack: Tensor, *rest: Any) -> Tensor:
    return stack.sum(0)


def _mean(stack: Tensor, *rest: Any) -> Tensor:
    return stack.mean(0)


def _ties(stack: Tensor, mask: Tensor, alone: Tensor, density: float, *rest: Any) -> Tensor:
    flat = stack.flatten(1)
    kept = round(density * flat.shape[1])
    largest = flat.abs().topk(kept, dim=1).indices
    trimmed = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest))
    elected = trimmed * (trimmed.sign() == trimmed.sum(0).sign())
    return (elected.sum(0) / (elected != 0).sum(0).clamp(min=1)).view_as(stack[0])


def _dare(
    stack: Tensor, mask: Tensor, alone: Tensor, density: float, drop: float, rng: torch.Generator
) -> Tensor:
    kept = torch.rand(stack.shape, generator=rng, dtype=stack.dtype) >= drop
    return (stack * kept).sum(0) / (1 - drop)


def _ram(stack: Tensor, mask: Tensor, *rest: Any) -> Tensor:
    return (stack * mask).sum(0) / mask.sum(0).clamp(min=1)


def _ram_plus(stack: Tensor, mask: Tensor, alone: Tensor, *rest: Any) -> Tensor:
    unique, shared = (x.flatten(1).sum(1).double() for x in (alone, mask & ~alone))
    factor = 1 + 0.1 * (shared / unique.clamp(min=1)).clamp(max=0.2)
    times = torch.where(alone, factor.view(-1, *[1] * (stack.dim() - 1)), 1.0)
    return _ram(stack * times, mask)


_RULES: dict[str, NumberRule] = {
    "sum": _sum, "mean": _mean, "ties": _ties, "dare": _dare, "ram": _ram, "ram+": _ram_plus,
}  # fmt: skip
