"""Effects on every prompt, as fractions of the clean-corrupted gap or in the metric's own unit."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, get_args

import numpy as np

from interp.core.errors import InterpError, unknown
from interp.core.statistics import Ratio, ratio_of_means

EffectUnit = Literal["gap", "metric"]
"""Fractions of the clean-corrupted gap, or the metric's own unit."""


def require_unit(unit: str) -> None:
    """Refuse an unknown unit of effects."""
    if unit not in get_args(EffectUnit):
        raise unknown("unit", unit, get_args(EffectUnit))


class PromptEffects:
    """What `Scores` and `FeatureEffects` share: a metric gained on every prompt, and its unit.

        value = mean over prompts of (metric gained) / mean over prompts of (clean - corrupted)

    With the unit "metric" the denominator is 1.
    """

    effects: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    metric: str
    metric_unit: str
    unit: str

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.clean)

    @property
    def unit_words(self) -> str:
        """The unit of `values` in words."""
        return "fraction of the gap" if self.unit == "gap" else self.metric_unit or self.metric

    @property
    def gap(self) -> float:
        """Mean clean minus mean corrupted metric."""
        return float((self.clean - self.corrupted).mean())

    @property
    def values(self) -> np.ndarray:
        """Effects of the shape of one prompt's, in `unit`."""
        return self._ratio.values

    @cached_property
    def _ratio(self) -> Ratio:
        return ratio_of_means(self.effects, self._gaps)

    @property
    def _gaps(self) -> np.ndarray:
        """(n,) clean - corrupted, refused if the mean is 0; 1 for effects in the metric's unit."""
        if self.unit == "metric":
            return np.ones(self.n)
        gaps = self.clean - self.corrupted
        if gaps.mean() == 0:
            raise InterpError(
                f"fractions of the gap of {type(self).__name__}",
                "the clean and the corrupted prompts have the same mean metric",
                "use prompts that differ in the metric, or effects in its unit (unit='metric')",
            )
        return gaps
