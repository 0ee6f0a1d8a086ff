"""Step results as reports and pages show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from interp.core.statistics import Estimate, mean_estimate, range_of_draws
from interp.studies.steps import Result

MISSING = "–"
"""Stands for a number that is missing."""


def estimate(found: Mapping[str, Any] | None) -> Estimate | None:
    """An estimate from its plain numbers; None from None."""
    names = ("mean", "low", "high", "n")
    return None if found is None else Estimate(**{name: found[name] for name in names})


def spread(values: list[float]) -> str:
    """Mean and 95 % range of random draws."""
    low, high = range_of_draws(values)
    return f"{np.mean(values):z.3f} [{low:z.3f}, {high:z.3f}]"


def random_range(values: list[float]) -> str:
    """How many random draws there are, and their smallest and largest value."""
    if not values:
        return "no random ones"
    return f"{len(values)} random {min(values):z.2f} to {max(values):z.2f}"


def band(rows: list[Result]) -> tuple[list[float], list[float], list[float]]:
    """Means, lows and highs of rows of plain estimates."""
    return tuple([row[key] for row in rows] for key in ("mean", "low", "high"))  # type: ignore


def place(head: str) -> tuple[int, int]:
    """(layer, head) of a label."""
    layer, index = head[1:].split("H")
    return int(layer), int(index)


def bare(values: ArrayLike) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
    """Values as a curve without an interval."""
    return values, values, values


def maybe(found: Mapping[str, Any] | None) -> str:
    """An estimate as text, or – for None."""
    return MISSING if found is None else str(estimate(found))


def as_strong(share: float) -> str:
    """The share of random draws at least as strong, the judged set counted: never 0."""
    return "share as strong < 0.001" if share < 0.001 else f"share as strong {share:z.3f}"


def selected(found: Mapping[str, Any]) -> str:
    """A selection's test as text (`interp.core.nulls.SelectionTest`)."""
    return (
        f"{estimate(found['unseen'])} on pairs they were not selected on, random heads near "
        f"them {interval(found)}; p = {found['flips']['p']:z.4f}, by sign flips of all pairs"
    )


def null(found: Result | None) -> str:
    """Random draws as text, or – without draws."""
    if found is None:
        return MISSING
    return f"{interval(found)}, {as_strong(found['share'])}, {found['draws']} draws"


def retained(x: Result) -> str:
    """The share of refusals retained among those that were steered: a gate may exempt some."""
    if "retained_reached" not in x:
        return "not said which were steered"
    kept = x["retained_reached"]
    if kept is None:
        return "none steered: not tested"
    return f"{kept['mean']:z.3f} of the {kept['n']} steered"


def interval(found: Mapping[str, Any], decimals: int = 3) -> str:
    """A mean with its interval or range: mean [low, high]."""
    mean, low, high = (f"{found[key]:z.{decimals}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def value(found: Mapping[str, Any] | None) -> str:
    """A mean with its interval, or – for None."""
    return MISSING if found is None else interval(found)


def span(low: float, high: float, decimals: int = 3) -> str:
    """An interval; one prompt has none."""
    if math.isinf(low) or math.isinf(high):
        return "none (one prompt)"
    return f"{low:z.{decimals}f} to {high:z.{decimals}f}"


def ends(found: Mapping[str, Any]) -> str:
    """The interval of a plain estimate."""
    return span(found["low"], found["high"])


def mean_of_draws(draws: list[float] | None) -> str:
    """The mean of some draws; each is on too few samples for their range to say much."""
    return f"{sum(draws) / len(draws):z.3f}" if draws else MISSING


def pooled(values: list[float] | None) -> Estimate | None:
    """The mean of random draws with its interval over draws; None without draws."""
    return mean_estimate(torch.tensor(values)) if values else None


def change(pair: Result) -> str:
    """A rate before and after."""
    return f"{pair['before']['mean']:z.3f} → {pair['after']['mean']:z.3f}"


def listed(values: Iterable[float]) -> str:
    """Numbers separated by commas."""
    return ", ".join(f"{value:z.2f}" for value in values)
