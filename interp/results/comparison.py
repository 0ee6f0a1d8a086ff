"""Two sweeps of the same components: the difference of every cell, with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.statistics import ratio_of_means
from interp.results.scores import Scores


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoresDifference:
    """Values of one sweep minus those of another, for every cell, in the unit that both have.

    Attributes:
        left, right: the sweeps.
        values, stderr: (*axes) left - right, and its standard error.
        low, high: (*axes) the 95 % interval of `values`.
        unpaired: why the prompts are not paired; "" if they are.
    """

    left: Scores
    right: Scores
    values: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray
    unpaired: str

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.values.shape))
        how = f"paired over {self.left.n} prompts" if not self.unpaired else "not paired"
        return f"ScoresDifference({size} cells, {how})"

    def in_words(self) -> str:
        """How the intervals are made, and how many of them exclude 0, by chance too."""
        made = f"paired over the {self.left.n} prompts that both ran"
        if self.unpaired:
            made = f"not paired: {self.unpaired}. The prompts are taken as independent"
        clear, cells = int(((self.low > 0) | (self.high < 0)).sum()), self.values.size
        return (
            f"Intervals are {made}. {clear} of {cells} exclude 0; about {cells * 0.05:z.0f} would "
            "by chance if nothing differed, and the largest were selected."
        )

    def to_dataframe(self) -> Any:
        """One row per cell, the largest absolute difference first."""
        import pandas as pd

        order = np.argsort(-np.abs(self.values).ravel(), kind="stable")
        cells = np.stack(np.unravel_index(order, self.values.shape), -1).tolist()
        rows = [
            {
                "component": self.left.label(cell),
                "difference": float(self.values[*cell]),
                "low": float(self.low[*cell]),
                "high": float(self.high[*cell]),
                "left": float(self.left.values[*cell]),
                "right": float(self.right.values[*cell]),
            }
            for cell in cells
        ]
        return pd.DataFrame(rows)


@reads_arguments
def compare_scores(left: Scores, right: Scores) -> ScoresDifference:
    """The difference of two sweeps of the same components, paired over prompts where possible.

    With the value v = mean(e) / mean(g) of a cell, e_i its effect and g_i the gap of prompt i (1 in
    the metric's unit), each sweep has the influences u_i = (e_i - v g_i) / mean(g). If both ran the
    same prompts,

        difference = v_left - v_right,    stderr = sd(u_left - u_right) / sqrt(n),

    with the interval of `interp.core.statistics.ratio_of_means`. Else, and with two metrics, the
    prompts are taken as independent: stderr^2 is the sum of both, with Welch's degrees of freedom.

    Args:
        left: a sweep.
        right: another with the same axes, labels, site and unit, such as one of another model of
            the same shape, in the other direction, or with another source.

    Raises:
        InterpError: they do not score the same components in one unit.
    """
    here, there = ((one.axes, dict(one.coordinates), one.site) for one in (left, right))
    if here != there or left.unit_words != right.unit_words:
        sizes = (f"{one!r}" for one in (left, right))
        raise InterpError(
            "the difference of two sweeps",
            "they score other components, or in another unit: " + " and ".join(sizes),
            "compare sweeps of one site and shape in one unit, or look at them side by side",
        )
    values = left.values - right.values
    unpaired = _unpaired(left, right)
    if not unpaired:
        found = ratio_of_means(values + _influences(left) - _influences(right))
        ends = {"stderr": found.stderr, "low": found.low, "high": found.high}
    else:
        ends = _welch(values, left, right)
    return ScoresDifference(left=left, right=right, values=values, unpaired=unpaired, **ends)


def _unpaired(left: Scores, right: Scores) -> str:
    if left.n != right.n:
        return f"{left.n} and {right.n} prompts"
    if left.metric != right.metric:
        return f"one metric is {left.metric}, the other {right.metric}"
    same = left.provenance.task_hash == right.provenance.task_hash
    return "" if same else f"both have {left.n} prompts, but of different tasks"


def _influences(scores: Scores) -> np.ndarray:
    """(n, *axes) how far each prompt moves the value; their mean is 0."""
    gaps = np.ones(scores.n) if scores.unit == "metric" else scores.clean - scores.corrupted
    wide = gaps.reshape(-1, *[1] * scores.values.ndim)
    return (scores.effects - scores.values * wide) / gaps.mean()


def _welch(values: np.ndarray, left: Scores, right: Scores) -> dict[str, np.ndarray]:
    """The standard error and interval of a difference of independent values."""
    from scipy import stats

    squares = [one.stderr**2 for one in (left, right)]
    total = squares[0] + squares[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = (s**2 / (one.n - 1) for s, one in zip(squares, (left, right), strict=True))
        freedom = total**2 / sum(parts)
        half = np.where(total > 0, stats.t.ppf(0.975, freedom) * np.sqrt(total), 0.0)
    half = np.where(np.isnan(total), np.inf, half)  # a single prompt says nothing of the spread
    return {"stderr": np.sqrt(total), "low": values - half, "high": values + half}
