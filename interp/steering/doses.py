"""Outcomes at several doses of an intervention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.core.errors import InterpError
from interp.core.schema import Real, checked
from interp.core.statistics import Estimate, mean_estimate
from interp.plots.tables import Tabled


@dataclass(frozen=True, kw_only=True)
class DoseResponse(Tabled):
    """Outcomes at several doses of a change.

    Attributes:
        doses: (k,) in ascending order; 0 is no change.
        values: name -> (k, n) one number per dose and row, such as a score or a refusal.
        control: the same for a control, such as a random direction of equal length.
    """

    doses: np.ndarray
    values: Mapping[str, np.ndarray]
    control: Mapping[str, np.ndarray] | None

    def curve(self, name: str, *, control: bool = False) -> list[Estimate]:
        """The mean at every dose, over the rows that have a value."""
        import torch

        chosen = (self.control or {}) if control else self.values
        return [mean_estimate(torch.from_numpy(row[~np.isnan(row)])) for row in chosen[name]]

    def monotonicity(self, name: str) -> Estimate:
        """Mean over rows of the rank correlation of dose and value; 0 for a row of one value."""
        import torch
        from scipy import stats

        found = []
        for row in self.values[name].T:
            known = ~np.isnan(row)
            moved = known.sum() > 1 and np.ptp(row[known]) > 0
            found.append(stats.spearmanr(self.doses[known], row[known])[0] if moved else 0.0)
        return mean_estimate(torch.tensor(found, dtype=torch.float64))

    def to_dataframe(self) -> Any:
        """One row per measure and dose: mean, interval, n, and the control's mean."""
        import pandas as pd

        table = []
        for name in self.values:
            controls = self.curve(name, control=True) if self.control else [None] * len(self.doses)
            for dose, point, other in zip(self.doses, self.curve(name), controls, strict=True):
                facts = {"measure": name, "dose": dose, "mean": point.mean, "low": point.low}
                facts |= {"high": point.high, "n": point.n}
                table.append(facts | {"control": other.mean if other else math.nan})
        return pd.DataFrame(table)


DoseMeasure = Callable[[float], Mapping[str, np.ndarray]]
"""A dose -> name -> (n,) one number per row."""


def dose_response(
    measure: DoseMeasure, doses: Sequence[float], *, control: DoseMeasure | None = None
) -> DoseResponse:
    """Measures at every dose of a change, on the same rows.

    Raises:
        InterpError: fewer than two doses, a repeated dose, one that is not finite, no dose 0 (the
            unchanged model), or a measure whose rows change.
    """
    grid = sorted({float(checked(Real, dose, "a dose")) for dose in doses})
    if len(grid) < 2 or len(grid) < len(doses) or 0.0 not in grid:
        raise InterpError(
            f"doses {list(doses)}",
            "fewer than two doses, a repeated dose, or no dose 0",
            "give 0 and at least one other",
        )

    def run(of: DoseMeasure) -> dict[str, np.ndarray]:
        found = [of(dose) for dose in grid]
        shapes = {tuple((name, np.shape(rows)) for name, rows in each.items()) for each in found}
        if len(shapes) > 1:
            raise InterpError("a dose-response", f"{sorted(shapes)}", "measure the same rows")
        return {
            name: np.stack([np.asarray(each[name], float) for each in found]) for name in found[0]
        }

    return DoseResponse(
        doses=np.array(grid), values=run(measure), control=None if control is None else run(control)
    )
