"""The figures of the reuse report: each function takes the results and draws one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp.plots import static
from interp.studies.reuse.steps.circuits import circuits_of
from interp.studies.reuse.tasks import IOI
from interp.studies.steps import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ioi_direct(results: dict[str, Result]) -> Figure:
    """The direct effect of every head on the logits, in IOI."""
    found = circuits_of(results)[IOI.name]
    values = np.array(found["stages"]["movers"]["values"]).reshape(-1, found["n_heads"])
    return static.head_map(values, title="direct effect of each head on the logits, IOI")
