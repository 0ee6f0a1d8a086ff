"""What a patching sweep patches: the arguments that all sweeps have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Unpack

import numpy as np

from interp.core.arguments import Columns, as_positions, listed
from interp.core.prompts import Task
from interp.core.run_options import RunKeywords, RunOptions
from interp.results.prompt_effects import require_unit
from interp.runs.pairs import check_gap, warn_gap


class SweepKeywords(RunKeywords, total=False):
    """Keywords that every patching sweep takes: those of `PatchSpec` and of `RunKeywords`."""

    site: str
    by: Sequence[str]
    direction: str
    positions: Columns
    layers: Iterable[int] | None
    components: Iterable[int] | None
    source: str
    reference: Task | None
    unit: str


@dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """Which activations are patched, in which run, and with which values.

    Attributes:
        site: the activation that is patched, see `interp.core.components.SITES`.
        by: the axes of the sweep: "layer", the site's own axis and "position".
        direction: "denoise" or "noise".
        positions: the tokens that are patched, see `interp.core.arguments.Columns`.
        layers: the layers swept; None for all.
        components: the heads or neurons swept; None for all.
        source: "other" (the pair's other run), "zero" or "mean".
        reference: the task whose prompts a mean is taken over.
        unit: "gap" (fractions of the clean-corrupted gap) or "metric" (the metric's own unit).

    Raises:
        InterpError: positions that are neither names nor whole numbers, bytes or a dictionary in
            place of a list, or an unknown unit.
    """

    site: str = "z"
    by: Sequence[str] = ("layer", "head")
    direction: str = "denoise"
    positions: Columns = "all"
    layers: Iterable[int] | None = None
    components: Iterable[int] | None = None
    source: str = "other"
    reference: Task | None = None
    unit: str = "gap"

    def __post_init__(self) -> None:
        require_unit(self.unit)
        object.__setattr__(self, "by", tuple(str(axis) for axis in listed(self.by)))
        object.__setattr__(self, "positions", as_positions(self.positions))
        for name in ("layers", "components"):
            if (chosen := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(listed(chosen)))

    def check_ends(self, base: np.ndarray, other: np.ndarray) -> None:
        """Refuse, or warn of, the metrics of two plain runs by `check_gap` or `warn_gap`.

        In the metric's own unit only if one run gives its values to the other.
        """
        ends = (base, other) if self.direction == "noise" else (other, base)
        if self.unit == "gap":
            check_gap(*ends)
        elif self.source == "other":
            warn_gap(*ends)

    def source_arguments(self) -> dict[str, str]:
        """The arguments that say what replaces a cell and the unit, as Python source."""
        found = {"source": repr(self.source)}
        if self.unit != "gap":
            found["unit"] = repr(self.unit)
        if self.reference is not None:
            found["reference"] = self.reference.source or "own_reference"
        return found


def read_sweep(**sweep: Unpack[SweepKeywords]) -> tuple[PatchSpec, RunOptions]:
    """The keywords of a sweep, as what is patched and how it is run."""
    names = {field.name for field in fields(PatchSpec)}
    parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for name, value in sweep.items():
        parts[name not in names][name] = value
    return PatchSpec(**parts[0]), RunOptions(**parts[1])
