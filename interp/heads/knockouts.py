"""How the direct contributions of later heads change when earlier heads are switched off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.core.errors import InterpError
from interp.core.nulls import Null, null_of
from interp.core.prompts import Task
from interp.heads.direct_attribution import direction_reading, head_contrast, logit_reading
from interp.heads.switching import SwitchOff, both_sides
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.results.direction import Direction
from interp.runs.hooks import intervene
from interp.runs.kinds import random_like


@dataclass(frozen=True, kw_only=True)
class Cascade(Tabled):
    """How much the contributions of downstream heads depend on the gate heads.

    Attributes:
        gates, downstream: labels.
        normal, knocked: (heads,) mean contrast of each downstream head, in the metric's unit,
            without and with the gates switched off.
        change: (heads,) 100 (knocked - normal) / |normal|, in per cent; at -100 nothing is left.
        nulls: |change| of each head, against random heads of the gates' layers switched off.
    """

    gates: tuple[str, ...]
    downstream: tuple[str, ...]
    normal: np.ndarray
    knocked: np.ndarray
    change: np.ndarray
    nulls: tuple[Null, ...]

    def to_dataframe(self) -> Any:
        """One row per downstream head."""
        import pandas as pd

        columns = {"head": self.downstream, "normal": self.normal, "knocked": self.knocked}
        table = pd.DataFrame(columns | {"change_percent": self.change})
        names = (
            {"mean": "null_mean", "high": "null_high", "share": "as_strong"} if self.nulls else {}
        )
        return table.assign(
            **{name: [getattr(null, of) for null in self.nulls] for of, name in names.items()}
        )


def knockout_cascade(
    model: LanguageModel,
    task: Task,
    gates: Sequence[str],
    downstream: Sequence[str],
    switch: SwitchOff,
    *,
    direction: Direction | None = None,
    draws: int = 20,
    seed: int = 0,
) -> Cascade:
    """The contributions of downstream heads, with and without the gate heads at all tokens.

    A contribution is the contrast of `head_logit_attribution`, or of `direction_projection` if a
    direction is given. Norms are those of the run in which the gates are switched off.

    Args:
        model: a model whose weights are known.
        task: as for `head_logit_attribution`.
        gates: heads switched off together.
        downstream: heads of later layers.
        switch: how heads are switched off, from `interp.heads.switching.switch_off`.
        direction: read along this direction instead of the logits.
        draws: number of random sets of as many other heads of the same layers.
        seed: seed of the random sets.

    Raises:
        InterpError: a downstream head that does not come after every gate, or writes nothing.
    """
    before, after = (model.require_parts(labels, "z") for labels in (gates, downstream))
    if max(part.layer for part in before) >= min(part.layer for part in after):
        raise InterpError(
            f"a cascade from {list(gates)} to {list(downstream)}",
            "a downstream head in the gates' layer or before",
            "choose heads of later layers",
        )

    sides = both_sides(model, task)
    if direction is None:
        reading = logit_reading(model, task, sides)
    else:
        reading = direction_reading(model, direction)
    latest = max(after, key=lambda part: part.layer)
    if latest.layer not in reading.layers:
        raise InterpError(f"{latest} along {direction}", "the head comes later", "drop it")

    def contributions(off: Sequence[str]) -> np.ndarray:
        with intervene(model, [switch.change(off)] if off else []):
            found = head_contrast(model, sides, reading)[0].mean(0)
        return np.array([found[part.layer, part.index or 0] for part in after])

    normal, knocked = contributions(()), contributions(gates)
    if (np.abs(normal) < 1e-9).any():
        raise InterpError(f"a cascade to {list(downstream)}", "a head writes nothing", "drop it")

    def change(of: np.ndarray) -> np.ndarray:
        return 100 * (of - normal) / np.abs(normal)

    random = [change(contributions(heads)) for heads in random_like(model, gates, draws, seed=seed)]
    return Cascade(
        gates=tuple(map(str, before)),
        downstream=tuple(map(str, after)),
        normal=normal,
        knocked=knocked,
        change=change(knocked),
        nulls=tuple(
            null_of(float(abs(own)), np.abs([other[i] for other in random]))
            for i, own in enumerate(change(knocked))
            if random
        ),
    )
