"""One change of weights tried on a task: what it leaves, beside a random change as large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.core.arguments import reads_arguments
from interp.core.corpus import Corpus
from interp.core.prompts import Task
from interp.core.records import Provenance, Record
from interp.core.run_options import Progress
from interp.deltas.after_change import Survival, survival
from interp.deltas.merging import Merge
from interp.deltas.sizes import ChangeSizes, change_sizes, random_change
from interp.models.language_model import LanguageModel
from interp.models.weight_delta import WeightDelta
from interp.plots.tables import Tabled
from interp.results.provenance import provenance


@dataclass(frozen=True, kw_only=True)
class WeightTrial(Record, Tabled):
    """A change of weights, what it leaves of a task, and where the weights moved.

    Attributes:
        name: the change.
        survival: the task, its heads and the loss of texts, before and after.
        random: the task and the loss of texts under a random change as large in every tensor.
        sizes: how large the change is, by layer and part.
        shares: of each merged change, the shares of numbers that are active, shared and unique
            (`Merge.shares`); empty for a change that is no merge.
        provenance: model, task and call.
    """

    name: str
    survival: Survival
    random: Survival
    sizes: ChangeSizes
    shares: Mapping[str, Mapping[str, float]]
    provenance: Provenance

    def __str__(self) -> str:
        return f"{self.survival}\n{self.random}"

    def to_dataframe(self) -> Any:
        """One row per measure and time: before, after, the change, and the random change.

        With 95 % intervals; of random heads, the mean and the 95 % range.
        """
        from pandas import DataFrame

        one, other = self.survival, self.random
        sides = {"before": one.heads_before, "after": one.heads_after}
        joint = {when: found for when, found in sides.items() if found is not None}
        cells = [
            ("metric", "before", one.before),
            ("metric", "after", one.after),
            ("metric", "change", one.change),
            ("metric", "random change", other.change),
            *(("share of the gap, heads", when, found.effect) for when, found in joint.items()),
            *(("share of the gap, random heads", when, x.null) for when, x in joint.items()),
            ("loss of texts", "before", one.loss_before),
            ("loss of texts", "after", one.loss_after),
            ("loss of texts", "change", one.loss_change),
            ("loss of texts", "random change", other.loss_change),
            ("divergence of outputs", "change", one.divergence),
            ("divergence of outputs", "random change", other.divergence),
        ]
        rows = [
            {"measure": what, "when": when, "mean": x.mean, "low": x.low, "high": x.high}
            for what, when, x in cells
            if x is not None
        ]
        return DataFrame(rows)


@reads_arguments
def try_weights(
    model: LanguageModel,
    change: WeightDelta | Merge,
    task: Task,
    *,
    heads: Sequence[str] = (),
    texts: Corpus | None = (),
    draws: int = 20,
    seed: int = 0,
    call: str | None = None,
    progress: Progress | None = None,
) -> WeightTrial:
    """Measure what a change of weights leaves of a task, beside a random change as large.

    Nothing is selected here: choose the heads on other prompts. The change did more than its size
    explains where its effect is outside the interval of the random change's.

    Args:
        model: the base of the change.
        change: a delta, or a merge, whose overlap is then told too.
        task: prompt pairs, or clean prompts alone if no heads are given.
        heads: see `survival`.
        texts: see `survival`.
        draws: random sets of heads.
        seed: of the random heads and of the random change.
        call: Python that makes `change` and repeats this, for `provenance`; None writes a call with
            a `change` of your own.
        progress: called with (runs of patched heads done, in total).

    Raises:
        InterpError: see `survival`.
    """
    delta = change.delta if isinstance(change, Merge) else change
    found = survival(
        model, delta, task, heads=heads, texts=texts, draws=draws, seed=seed, progress=progress
    )
    options = f"heads={list(heads)!r}, draws={draws}, seed={seed}"
    call = call or f"found = interp.deltas.try_weights(model, change, task, {options})"
    return WeightTrial(
        name=delta.name,
        survival=found,
        random=survival(model, random_change(delta, seed=seed), task, texts=texts),
        sizes=change_sizes(model, delta),
        shares=change.shares() if isinstance(change, Merge) else {},
        provenance=provenance(model, task, call),
    )
