"""Tests of a selection: against noise, and against random selections of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.core.components import SITES, Axis, Component
from interp.core.errors import InterpError, unknown
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
    """A selection's effect compared with random components of the same kind, layers and count.

    It says how unusual the selection's effect is among such components, not whether the effect
    differs from zero. `share` is not a p-value, because components selected for a large effect also
    have more noise in it than others. `FlipTest` gives a p-value.

    Attributes:
        selected: mean effect of the selection.
        mean, low, high: mean and 95 % range of the effects of random selections.
        share: fraction of the draws, counting the selection itself, that are at least as strong. It
            is at least 1 / (1 + draws).
        draws: number of random selections.
    """

    selected: float
    mean: float
    low: float
    high: float
    share: float
    draws: int

    @property
    def beside(self) -> str:
        """The random selections as text, and the rank among them; ties count against it."""
        rank = f"rank {round(self.share * (1 + self.draws))} of {1 + self.draws}"
        return f"{spread_words(self)}, {rank}"

    def __str__(self) -> str:
        return f"selected {self.selected:z.3f}, random {self.beside}"


def spread_words(null: Null | SelectionTest) -> str:
    """Mean and 95 % range of the random selections, as text."""
    return f"{null.mean:z.3f} [{null.low:z.3f}, {null.high:z.3f}]"


def null_of(selected: float, random: np.ndarray | Sequence[float]) -> Null:
    """The effect of a selection and the effects of random selections, as a `Null`.

    Raises:
        InterpError: there is no random selection, or a value is nan.
    """
    random = np.asarray(random, dtype=float)
    if not len(random):
        raise InterpError("a null", "0 draws", "draw at least one random selection")
    if np.isnan(selected) or np.isnan(random).any():
        raise InterpError(
            f"a null of {selected:g} and {len(random)} draws",
            f"{int(np.isnan(random).sum())} draws are not numbers",
            "measure every draw on the same prompts, and look for NaN in the runs",
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


def max_t_shares(observed: Sequence[float], random: Sequence[Sequence[float]]) -> list[float]:
    """The share of draws as strong as each row of a table, corrected for the rows tried.

    Max-T of Westfall and Young 1993. Draw i of all rows is one draw of the table. The values of a
    row, the observed and the random ones, are standardised (minus their mean, over their
    deviation). The result is the share of draws, counting the observed one, whose largest row is at
    least this row. It is never below the row's own share, which is at least 1 / (1 + draws of the
    row): a row may have fewer draws than others and is then missing from the later ones.

    Args:
        observed: (rows,) the effect of each row's selection; larger is stronger.
        random: (rows, draws) the effects of random selections like it.

    Raises:
        InterpError: there is not one list of draws for each row, or a list is empty.
    """
    if len(observed) != len(random) or not all(map(len, random)):
        found = f"{len(observed)} rows, draws {[len(row) for row in random]}"
        raise InterpError("shares corrected for the rows of a table", found, "draw for each row")
    if not len(observed):
        return []
    values = np.full((len(observed), 1 + max(map(len, random), default=0)), np.nan)
    for row, (own, drawn) in enumerate(zip(observed, random, strict=True)):
        values[row, : 1 + len(drawn)] = [own, *drawn]
    spread = np.nanstd(values, 1, keepdims=True)
    scaled = (values - np.nanmean(values, 1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    best = np.nanmax(scaled, 0)
    own = [
        null_of(row[0], row[1 : 1 + len(drawn)]).share
        for row, drawn in zip(values, random, strict=True)
    ]
    joint = [float((best >= row - 1e-12).mean()) for row in scaled[:, 0]]
    return list(map(max, own, joint))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (1979), in their order.

    The k-th smallest of m, from 0, becomes the largest of (m - i) p_i over i up to k, at most 1. It
    needs no assumption of how the tests depend on each other.
    """
    ordered = np.argsort(p, kind="stable")
    steps = np.sort(np.asarray(p, dtype=float)) * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[ordered] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected.tolist()


DRAWS = 2000
"""Default number of random sign flips in a test."""


@dataclass(frozen=True, kw_only=True)
class FlipTest:
    """A sign-flip test of whether an effect is more than noise.

    Under the null hypothesis, a prompt's effects are as likely to be x as -x. This allows prompts
    of different variance and effects that are correlated between components. The statistic of the
    data is then one of the equally likely statistics after flipping the signs of prompts:

        p = share of the flips, counting the data unflipped, whose statistic is at least as large

    If there are no more than `draws` possible flips, all are tried. Then p is exact and at least
    1 / 2^signs: with four prompts p is at least 1/16 and cannot reach .05. If flipping all signs
    leaves the statistic unchanged, as in a ranking by absolute value, every value occurs twice and
    p is at least 2 / 2^signs: five prompts cannot reach .05 either. The test assumes that noise is
    symmetric about 0. `experiments/calibration.py` measures the error of p for strongly skewed
    effects, which remains at any number of prompts.

    Attributes:
        observed: the statistic of the data.
        p: one-sided p-value.
        least: the smallest p that is possible.
        draws: number of flips tried, counting the data unflipped.
        signs: number of signs that are flipped independently.
        of: what has a sign, "prompts" or "groups of prompts".
    """

    observed: float
    p: float
    least: float
    draws: int
    signs: int
    of: str = "prompts"

    def __str__(self) -> str:
        return (
            f"p = {self.p:z.4f} ({self.draws} sign flips of {self.signs} {self.of}, "
            f"least possible {self.least:z.4f})"
        )


def flip_test(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> FlipTest:
    """Compare a statistic of n prompts with its values after flipping signs. See `FlipTest`.

    `statistic` takes signs (flips, n) and returns (flips,) the statistic of the effects times these
    signs. It must repeat any selection for every flip. `groups` holds one label per prompt; prompts
    with the same label are flipped together. `draws` flips are random, if more are possible.

    Raises:
        InterpError: there are no prompts or no draws, or a statistic is not finite.
    """
    if n < 1 or draws < 1:
        raise InterpError("flipping signs", f"{n} prompts, {draws} draws", "give at least one")
    numbers = np.arange(n) if groups is None else group_numbers(groups, n)
    signs = sign_flips(int(numbers.max()) + 1, draws, seed=seed)
    found = np.concatenate([statistic(some[:, numbers]) for some in np.array_split(signs, 20)])
    if not np.isfinite(found).all():
        raise InterpError("flipping signs", "effects are not finite", "look for NaN in the runs")
    # Another order of summing can round a tie down: ties count as at least as large.
    slack = 1e-9 * np.abs(found).max()
    # If every flip is tried, the reversed list holds each flip with all signs changed.
    even = len(signs) == 2 ** signs.shape[1] and bool((np.abs(found - found[::-1]) <= slack).all())
    return FlipTest(
        observed=float(found[0]),
        p=float((found >= found[0] - slack).mean()),
        least=(2 if even else 1) / len(signs),
        draws=len(signs),
        signs=signs.shape[1],
        of="prompts" if groups is None else "groups of prompts",
    )


def sign_flips(signs: int, draws: int, *, seed: int = 0) -> np.ndarray:
    """(flips, signs) of 1 and -1, the first all 1. All flips if at most `draws`, else random."""
    if signs < 60 and 2**signs <= draws:
        bits = np.arange(2**signs)[:, None] >> np.arange(signs) & 1
        return 1.0 - 2.0 * bits
    flips = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, signs))
    flips[0] = 1
    return flips


def paired_p(changes: np.ndarray, groups: Sequence[Hashable] | None = None) -> float:
    """Exact two-sided p of whole-number changes under sign flips of groups.

        p = P(|sum over groups of s_g c_g| >= |sum of c_g|),   s_g = 1 or -1 with equal probability,

    with c_g the sum of a group's changes. Without `groups` every row is a group. For changes of -1,
    0 and 1 this is then McNemar's exact test. No changes give p = 1.
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
    """Whether the k strongest cells are stronger than the strongest of noise, and how strong.

    Attributes:
        k: number of selected cells.
        by: the ranking that selects them.
        flips: the test on all prompts, with a new selection for every flip. A small p says that
            some of the selected cells have an effect, not that each of them has.
        unseen: mean effect, on one half of the prompts, of the cells selected on the other half. It
            does not enter p. Its n is the number of prompts, or groups of prompts, in that half.
        mean, low, high: mean and 95 % range of the effect of random cells, at most `band` layers
            away from the selected ones, on the same half as `unseen`; nan if there are no others.
        band: largest distance in layers of the random cells.
        skewness: skewness over prompts (or groups) of a selected cell's effects, averaged over the
            cells selected on all prompts. Each prompt's effects are first divided by their root
            mean square over all cells.
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
        """Whether p is unreliable because the effects are skewed.

        That is, |skewness| is above 0.5 and above two standard errors under independent normal
        effects.
        """
        return abs(self.skewness) > max(0.5, 2 * np.sqrt(6 / (self.k * self.flips.signs)))

    @property
    def of(self) -> str:
        """The words for what a half consists of, if they are groups of prompts; else empty."""
        return "" if self.flips.of == "prompts" else f" of the {self.flips.of}"

    @property
    def warning(self) -> str:
        """The warning printed after p; empty if the effects are not skewed."""
        return "; p assumes symmetric effects, but these are skewed" if self.skewed else ""

    def __str__(self) -> str:
        where = "the same layers" if not self.band else f"layers at most {self.band} away"
        random = "" if np.isnan(self.mean) else f"; random cells of {where} {spread_words(self)}"
        return (
            f"top {self.k}: {self.flips}{self.warning}; selected on one half{self.of}, "
            f"effect on the other {self.unseen}{random}"
        )


def selection_test(
    effects: np.ndarray,
    gaps: np.ndarray,
    *,
    k: int,
    by: str,
    groups: np.ndarray | None,
    places: Sequence[np.ndarray],
    band: int,
    draws: int,
    seed: int,
) -> SelectionTest:
    """The test of `Scores.null`, whose other arguments these are.

    effects: (prompts, cells). gaps: (prompts,). groups: (prompts,) group numbers. places: the layer
    and the position of the cells, (cells,) each.
    """
    n, size = effects.shape
    numbers = np.arange(n) if groups is None else groups
    shares, independent = effects / gaps.mean(), int(numbers.max()) + 1
    labels = numbers.tolist()

    def strongest(signs: np.ndarray) -> np.ndarray:
        flipped = oriented(signs @ shares / n, by)
        return np.partition(flipped, size - k, axis=-1)[:, size - k :].mean(-1)

    given = None if groups is None else labels
    flips = flip_test(strongest, n, groups=given, draws=draws, seed=seed)
    strong = np.argsort(-oriented(shares.mean(0), by), kind="stable")[:k]
    each = summed(shares, labels)
    # Prompts with large effects are not skewness: scale each prompt to its own size.
    own = np.sqrt((each**2).mean(1))[:, None]
    skewness = float(skewness_of(np.nan_to_num(ratio(each[:, strong], own))).mean())
    rng = np.random.default_rng(seed)
    find = np.isin(numbers, rng.permutation(independent)[: independent // 2])
    found = shares[find].mean(0)
    chosen = np.argsort(-oriented(found, by), kind="stable")[:k]
    # If ranked by absolute value, a cell's sign is that on the half that selected it.
    unseen = effects[~find] * (np.sign(found) if by == "absolute" else 1.0)
    half = ratio_of_means(unseen[:, chosen].mean(1), gaps[~find], groups=numbers[~find].tolist())
    values = unseen.mean(0) / gaps[~find].mean()
    free = ~np.isin(np.arange(size), chosen)
    layer, position = places
    total = np.zeros(draws)
    for cell in chosen:
        near = (np.abs(layer - layer[cell]) <= band) & (position == position[cell])
        pool = values[free & near]
        total += rng.choice(pool, size=draws) if len(pool) else np.nan
    low, high = range_of_draws(total / k)
    ends = {"low": float(half.low), "high": float(half.high)}
    return SelectionTest(
        k=k,
        by=by,
        flips=flips,
        unseen=Estimate(mean=float(half.values), n=independent - independent // 2, **ends),
        mean=float(total.mean() / k),
        low=low,
        high=high,
        band=band,
        skewness=skewness,
    )


def flip_maxima(
    effects: np.ndarray,
    *,
    by: str,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(flips,) the strongest cell's mean effect under each flip of signs; (cells,) p of each cell.

    p is the share of the flips, counting the data, whose strongest cell is at least as strong: it
    is corrected for the number of cells (single-step max-T, Westfall and Young 1993).

    effects: (prompts, cells). groups: (prompts,) group numbers, flipped together.

    Raises:
        InterpError: effects that are not finite.
    """
    if not np.isfinite(effects).all():
        raise InterpError("flipping signs", "effects that are not finite", "look for NaN")
    n = len(effects)
    numbers = np.arange(n) if groups is None else groups
    signs = sign_flips(int(numbers.max()) + 1, draws, seed=seed)[:, numbers]
    parts = np.array_split(signs, 20)  # all at once may be too large
    strongest = np.concatenate([oriented(some @ effects / n, by).max(1) for some in parts])
    own = oriented(effects.mean(0), by) - 1e-9 * np.abs(strongest).max()  # ties count
    below = np.searchsorted(np.sort(strongest), own, side="left")
    return strongest, 1 - below / len(strongest)


def oriented(values: np.ndarray, by: str) -> np.ndarray:
    """The numbers that a ranking sorts by, in descending order.

    Raises:
        InterpError: there is no such ranking.
    """
    if by in ("value", "signed"):
        return values
    if by == "absolute":
        return np.abs(values)
    raise unknown("ranking", by, ("value", "signed", "absolute", "mean_absolute"))


def matched_components(
    chosen: Sequence[Component],
    n_layers: int,
    size: Callable[[Axis], int],
    rng: np.random.Generator,
) -> list[Component]:
    """Random components that match the chosen ones in site, layer and count, without repetition.

    The chosen components are excluded. If a layer has too few others, components are drawn from the
    whole layer, including the chosen ones, which makes the comparison stricter. For a whole site,
    such as mlp_out, the site of another layer is drawn. `size` gives the number of components on an
    axis: the heads, key/value heads or neurons of a layer.

    Raises:
        InterpError: a whole site of every layer is chosen, so that none is left to draw.
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
                raise InterpError(f"a random {site}", "every layer is chosen", "choose fewer")
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
    """Random rotations of n directions (n, width), which keep their lengths and mutual angles.

    They are the null for a selection along directions: selecting the best of many along random
    directions gains as much from chance.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = torch.linalg.qr(vectors.double().cpu().T).R
    for _ in range(draws):
        drawn = torch.randn(vectors.shape[1], len(shape), generator=generator)
        q, r = torch.linalg.qr(drawn.double())
        yield (q * r.diagonal().sign() @ shape).T.to(vectors)
