"""The exact runs that an unfinished sweep has kept so far, put in the place of an estimate."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np

from interp.core.arguments import reads_arguments
from interp.core.prompts import Task
from interp.engine.forward import Runner
from interp.engine.memory import budget_bytes
from interp.engine.resume import Chunks
from interp.engine.sweep import SweepPlan, plan_sweep
from interp.models.language_model import LanguageModel
from interp.patching.activation import sweep_key
from interp.patching.spec import SweepKeywords, read_sweep
from interp.patching.sweep import PatchSweep, make_sweep
from interp.results.scores import Scores
from interp.results.store import chunks_so_far


@dataclass(kw_only=True)
class UnfinishedSweep:
    """A sweep that another process runs, or that was stopped; see `unfinished_sweep`."""

    sweep: PatchSweep
    plan: SweepPlan
    chunks: Chunks
    facts: dict[str, Any]
    _patched: np.ndarray = field(init=False)
    _ends: np.ndarray | None = field(init=False, default=None)
    _read: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        cells = self.sweep.cells
        self._patched = np.full((len(self.sweep.runs.base), self.sweep.n_cells), np.inf)
        self._patched[cells.prompt, cells.cell] = np.nan  # the others change nothing

    def _read_on(self) -> None:
        """Read the chunks that were finished since the last time."""
        every = [chunk for part in self.plan.chunks for chunk in part]
        if self._ends is None:
            self._ends = self.chunks.kept(len(every), 2)
        cells = self.sweep.cells
        for number in range(self._read, len(every)):  # several threads may read at once
            chunk = every[number]
            values = self.chunks.kept(number, len(chunk), of=chunk)
            if values is None:
                return
            self._patched[cells.prompt[chunk], cells.cell[chunk]] = values
            self._read = number + 1

    def into(self, estimate: Scores) -> tuple[Scores, np.ndarray]:
        """An estimate with every kept run in its place, and the number of kept runs of each cell.

        For a prompt whose run is not kept, a cell has the mean gain of the estimate. When all runs
        are kept, the effects are those of `activation_patching`.

        Args:
            estimate: `attribution_patching` with the same arguments, of some or all of the prompts.

        Returns:
            Scores over all prompts, and counts of prompts, (*axes).
        """
        self._read_on()
        shape = estimate.values.shape
        if self._ends is None:
            return estimate, np.zeros(shape, dtype=int)
        base, other = self._ends
        denoise = self.sweep.spec.direction == "denoise"
        patched = np.where(np.isposinf(self._patched), base[:, None], self._patched)
        gained = (patched - base[:, None]) * (1 if denoise else -1)
        exact = gained.reshape(len(base), *shape)
        clean, corrupted = (other, base) if denoise else (base, other)
        mixed = replace(
            estimate,
            effects=np.where(np.isnan(exact), estimate.effects.mean(0), exact),
            clean=clean,
            corrupted=corrupted,
            method=f"{estimate.method}, exact where measured",
            extra={**estimate.extra, **self.facts},
        )
        return mixed, (~np.isnan(exact)).sum(0)


@reads_arguments
def unfinished_sweep(
    model: LanguageModel, task: Task, **sweep: Unpack[SweepKeywords]
) -> UnfinishedSweep:
    """What an `activation_patching` call that runs, or was stopped, has kept so far.

    Nothing is run. The call must use the fast engine and the cache.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        sweep: the arguments of the call.

    Raises:
        InterpError: as `activation_patching`, or the model has no fast engine.
    """
    spec, options = read_sweep(**sweep)
    laid = make_sweep(model, task, spec)
    runner = Runner(model.require_decoder("reading an unfinished sweep"))
    full = task.metric.name != "logit_diff"
    budget = budget_bytes(options.budget_gb)
    return UnfinishedSweep(
        sweep=laid,
        plan=plan_sweep(runner, laid.cells, laid.lengths, spec.site, budget, full),
        facts=laid.facts(model),
        chunks=chunks_so_far(str(sweep_key(model, task, laid))),
    )
