"""A selection judged: is it more than noise, and how does it compare with random ones like it?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.core.components import SITES, Axis, Component
from interp.core.errors import InterpError, unknown
from interp.core.schema import Index, checked
from interp.core.statistics import (
    Estimate,
    group_numbers,
    range_of_draws,
    ratio,
    ratio_of_means,
    skewness_of,
    summed,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Null:
    """A selection beside random components like it: the same kind, layers and count.

    It says how unusual the selection's effect is among such components, not whether it has one:
    `share` is no p-value, since what was selected for its effect is also noisier than its like. A
    p-value is that of `FlipTest`.

    selected: mean effect of the selection. mean, low, high: the same for random selections
    (95 % range). share: the fraction of the draws, the selection counted among them, that are at
    least as strong; no less than 1 / (1 + draws).
    """

    selected: float
    mean: float
    low: float
    high: float
    share: float
    draws: int

    def __str__(self) -> str:
        return f"selected {self.selected:.3f}, random {spread_words(self)}, {rank_words(self)}"


def rank_words(null: Null) -> str:
    """The place of a selection among random ones, ties against it."""
    return f"rank {round(null.share * (1 + null.draws))} of {1 + null.draws}"


def spread_words(null: Null | SelectionTest) -> str:
    """Mean and 95 % range of random selections."""
    # Adding zero turns a rounded -0.000 into 0.000.
    mean, low, high = (round(x, 3) + 0.0 for x in (null.mean, null.low, null.high))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def null_of(selected: float, random: np.ndarray) -> Null:
    """A selection's effect beside those of random selections.

    Raises:
        InterpError: no random selection, or a value that is not a number.
    """
    random = np.asarray(random, dtype=float)
    if not len(random):
        raise InterpError("a null", "0 draws", "draw at least one random selection")
    if np.isnan(selected) or np.isnan(random).any():
        raise InterpError(
            f"a null of {selected:g} and {len(random)} draws",
            f"{int(np.isnan(random).sum())} draws are not numbers",
            "measure every draw on the same prompts, and check the runs for NaN",
        )
    low, high = range_of_draws(random)
    return Null(
        selected=selected,
        mean=float(random.mean()),
        low=low,
        high=high,
        share=float((1 + (random >= selected).sum()) / (1 + len(random))),
        draws=len(random),
    )


DRAWS = 2000
"""Sign flips of a test."""


@dataclass(frozen=True, kw_only=True)
class FlipTest:
    """Is an effect more than noise? Its prompts' effects with their signs flipped at random.

    Without an effect a prompt's effect is as likely to be x as -x, whatever its spread and however
    its components hang together; the statistic of the data is then one of those of its flips.

        p = share of all flips, the data's own among them, whose statistic is at least as large

    Every flip is tried where there are no more than the draws; p is then exact and no less than
    1 / 2^units: with four prompts it never falls below 1/16 and cannot reach .05. A statistic that
    is the same with all signs turned, as of a ranking by absolute value, has every value twice,
    and p is no less than 2 / 2^units: five prompts cannot reach .05 either. What is assumed
    is symmetry about 0: of strongly skewed effects `experiments/calibration.py` says how far off p
    is, at any number of prompts.

    observed: the statistic. p: one-sided. least: the smallest p possible. draws: flips tried, the
    data's own among them. units: how many are flipped, each as one. unit: what these are, prompts
    or groups of prompts.
    """

    observed: float
    p: float
    least: float
    draws: int
    units: int
    unit: str = "prompts"

    def __str__(self) -> str:
        return (
            f"p = {self.p:.4f} ({self.draws} sign flips of {self.units} {self.unit}, "
            f"least possible {self.least:.4f})"
        )


def flip_test(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> FlipTest:
    """Compare a statistic with itself after random sign flips of prompts.

    Args:
        statistic: signs (flips, n) -> (flips,) its value on the effects times these signs. What
            was selected must be selected again inside.
        n: prompts.
        groups: one label per prompt; prompts of one label are flipped together. None: each its own.
        draws: flips, where all of them are more.
        seed: of these.

    Raises:
        InterpError: no prompts, no draws, or a statistic that is not a number.
    """
    if n < 1 or draws < 1:
        raise InterpError("flipping signs", f"{n} prompts, {draws} draws", "give at least one")
    numbers = np.arange(n) if groups is None else group_numbers(groups, n)
    signs = sign_flips(int(numbers.max()) + 1, draws, seed=seed)
    found = np.concatenate([statistic(some[:, numbers]) for some in np.array_split(signs, 20)])
    if not np.isfinite(found).all():
        raise InterpError("flipping signs", "effects that are not finite", "check for NaN")
    # The same sum in another order may round below: ties count as at least as strong.
    slack = 1e-9 * np.abs(found).max()
    # Where every flip is tried, the last ones are the first ones with all signs turned.
    even = len(signs) == 2 ** signs.shape[1] and bool((np.abs(found - found[::-1]) <= slack).all())
    return FlipTest(
        observed=float(found[0]),
        p=float((found >= found[0] - slack).mean()),
        least=(2 if even else 1) / len(signs),
        draws=len(signs),
        units=signs.shape[1],
        unit="prompts" if groups is None else "groups of prompts",
    )


def sign_flips(units: int, draws: int, *, seed: int = 0) -> np.ndarray:
    """(flips, units) of 1 and -1, the first all 1: every one if no more than draws, else random."""
    if units < 60 and 2**units <= draws:
        bits = np.arange(2**units)[:, None] >> np.arange(units) & 1
        return 1.0 - 2.0 * bits
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, units))
    signs[0] = 1
    return signs


def paired_p(changes: np.ndarray, groups: Sequence[Hashable] | None = None) -> float:
    """Two-sided p of whole-number changes under sign flips of groups, over every flip exactly.

        p = P(|sum over groups of s_g c_g| >= |sum of c_g|),   s_g = 1 or -1 with equal chance,

    c_g a group's summed changes; None: each row its own, and of -1, 0 and 1 McNemar's exact test.
    """
    if not len(changes):
        return 1.0
    totals = np.abs(changes if groups is None else summed(np.asarray(changes), groups).astype(int))
    chances = np.ones(1)
    for step in totals[totals > 0]:
        longer = np.zeros(len(chances) + 2 * step)
        longer[: len(chances)] += chances / 2
        longer[-len(chances) :] += chances / 2
        chances = longer
    sums = np.arange(len(chances)) - len(chances) // 2
    beyond = np.abs(sums) >= abs(int(np.sum(changes)))
    return min(1.0, float(chances[beyond].sum()))


@dataclass(frozen=True, kw_only=True)
class SelectionTest:
    """The strongest cells: are they more than the strongest of noise, and how strong are they?

    `flips` answers the first: on all prompts, every flip selecting anew. A small p says that some
    of the selected have an effect, not that each has. `unseen` answers the second: cells selected
    on one half of the prompts, their mean effect on the other half; it does not enter p. Its n is
    the number of prompts in that half, or of groups of prompts.

    skewness: mean skewness, over prompts or groups, of the effects of those selected on all, each
    prompt's divided by the root mean square of its effects over all cells. Where it is `skewed`,
    the words say so: p is then off, at any number of prompts.
    mean, low, high: what random cells of the same layers (at most `band` away) have on that half,
    mean and 95 % range; nan where there are no others.
    """

    k: int
    by: str
    flips: FlipTest
    unseen: Estimate
    mean: float
    low: float
    high: float
    band: int
    skewness: float = 0.0

    @property
    def skewed(self) -> bool:
        """Whether |skewness| is above 0.5 and two standard errors of independent normal effects."""
        return abs(self.skewness) > max(0.5, 2 * np.sqrt(6 / (self.k * self.flips.units)))

    @property
    def of(self) -> str:
        """Of what `unseen` is one half, where that is not prompts."""
        return "" if self.flips.unit == "prompts" else f" of the {self.flips.unit}"

    @property
    def warning(self) -> str:
        """What to say beside p, if there is anything."""
        return "; the effects are skewed, p assumes symmetry" if self.skewed else ""

    def __str__(self) -> str:
        where = "the same layers" if not self.band else f"layers at most {self.band} away"
        random = "" if np.isnan(self.mean) else f"; random ones of {where} {spread_words(self)}"
        return (
            f"top {self.k}: {self.flips}{self.warning}; selected on one half{self.of}, "
            f"on the other {self.unseen}{random}"
        )


def oriented(values: np.ndarray, by: str) -> np.ndarray:
    """Values as a ranking orders them, largest first.

    Raises:
        InterpError: an unknown ranking.
    """
    if by in ("value", "signed"):
        return values
    if by == "absolute":
        return np.abs(values)
    raise unknown("ranking", by, ("value", "signed", "absolute", "mean_absolute"))


def selection_test(
    effects: np.ndarray,
    gaps: np.ndarray,
    k: int,
    near: Callable[[int], np.ndarray],
    *,
    by: str,
    band: int,
    groups: Sequence[Hashable] | None,
    draws: int,
    seed: int,
) -> SelectionTest:
    """What `Scores.null` says: effects (n, cells), gaps (n,), near(cell) -> (cells,) alike."""
    n, size = effects.shape
    k, draws = (checked(Index, one, f"a null for the top {k}") for one in (k, draws))
    numbers = group_numbers(range(n) if groups is None else groups, n)
    units = int(numbers.max()) + 1
    if units < 4 or not 1 <= k <= size:
        raise InterpError(
            f"a null for the top {k}",
            f"{units} prompts of their own and {size} cells",
            "use at least four prompts and a k between 1 and the number of cells",
        )
    if by == "mean_absolute":
        raise InterpError(
            "a null of the ranking 'mean_absolute'",
            "flipping signs does not change it",
            "rank by 'value' or 'absolute'",
        )
    shares = effects / gaps.mean()

    def strongest(signs: np.ndarray) -> np.ndarray:
        flipped = oriented(signs @ shares / n, by)
        return np.partition(flipped, size - k, axis=-1)[:, size - k :].mean(-1)

    flips = flip_test(strongest, n, groups=groups, draws=draws, seed=seed)
    strong = np.argsort(-oriented(shares.mean(0), by), kind="stable")[:k]
    each = summed(shares, numbers.tolist())
    # Prompts of large effects are not skew: each counts in units of its own.
    own = np.sqrt((each**2).mean(1))[:, None]
    skewness = float(skewness_of(np.nan_to_num(ratio(each[:, strong], own))).mean())
    rng = np.random.default_rng(seed)
    find = np.isin(numbers, rng.permutation(units)[: units // 2])
    found = shares[find].mean(0)
    chosen = np.argsort(-oriented(found, by), kind="stable")[:k]
    # By absolute value a cell's sign is that of the half it was selected on.
    unseen = effects[~find] * (np.sign(found) if by == "absolute" else 1.0)
    own = ratio_of_means(unseen[:, chosen].mean(1), gaps[~find], groups=numbers[~find].tolist())
    values = unseen.mean(0) / gaps[~find].mean()
    free = ~np.isin(np.arange(size), chosen)
    total = np.zeros(draws)
    for cell in chosen:
        pool = values[free & near(cell)]
        total += rng.choice(pool, size=draws) if len(pool) else np.nan
    low, high = range_of_draws(total / k)
    return SelectionTest(
        k=k,
        by=by,
        flips=flips,
        unseen=Estimate(
            mean=float(own.values), low=float(own.low), high=float(own.high), n=units - units // 2
        ),
        mean=float(total.mean() / k),
        low=low,
        high=high,
        band=band,
        skewness=skewness,
    )


def matched_components(
    chosen: Sequence[Component],
    n_layers: int,
    size: Callable[[Axis], int],
    rng: np.random.Generator,
) -> list[Component]:
    """Random components like the chosen ones: same sites, layers and count, none twice.

    Chosen components are excluded. If a layer has too few others, we draw from all of it, the
    chosen ones too, which makes the comparison stricter. For a whole site, such as mlp_out,
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
