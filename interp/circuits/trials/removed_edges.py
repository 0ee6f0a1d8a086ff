"""What removed edges carry under each ablation, for scoring, searches and evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from interp.circuits.trials.options import TrialOptions
from interp.core.errors import InterpError
from interp.core.positions import first_difference
from interp.core.prompts import Task
from interp.engine.edges.writes import Writes, mean_writes, zero_writes
from interp.engine.forward import Runner
from interp.models.language_model import LanguageModel
from interp.runs.mean_activations import batches_of, reference_prompts
from interp.runs.pairs import PairedRuns, paired_runs, refuse_equal


@dataclass(frozen=True, kw_only=True)
class RemovedEdges:
    """Both runs of every pair, and what removed edges carry.

    Attributes:
        runs: base and other run; under resample ablation the other run is another clean prompt.
        constant: whether removed edges carry a constant (zero and mean ablation), not the other
            run.
        batches: the reference prompts of a mean, in batches.
    """

    runs: PairedRuns
    constant: bool
    batches: tuple[list[tuple[int, ...]], ...] = ()

    def writes(self, runner: Runner) -> Writes | None:
        """The constant output of every writer; None if removed edges carry the other run."""
        if not self.constant:
            return None
        return mean_writes(runner, self.batches) if self.batches else zero_writes(runner)


def ablated_runs(model: LanguageModel, task: Task, options: TrialOptions) -> RemovedEdges:
    """The runs of a task's pairs, and what removed edges carry.

    Raises:
        InterpError: an unknown direction, equal prompts in a pair (allowed in
            resample ablation), a missing or unused reference, a reference that contains an
            evaluated prompt, or a prompt without another of equal length to resample.
    """
    ablation = options.ablation
    runs = paired_runs(model, task, options.direction, strings=True)
    evaluated = [*runs.encoded.clean, *(runs.encoded.corrupted or ())]
    prompts = reference_prompts(model, ablation, options.reference, evaluated)
    if ablation == "resample":
        return RemovedEdges(runs=_resampled(runs, options.seed), constant=False)
    refuse_equal(runs, task)
    constant = ablation in ("zero", "mean")
    return RemovedEdges(runs=runs, constant=constant, batches=batches_of(prompts))


def _resampled(runs: PairedRuns, seed: int) -> PairedRuns:
    """The runs, with another clean prompt of equal length as the other run."""
    prompts, rows = runs.encoded.clean, runs.targets.rows
    partners = _partners([len(prompt) for prompt in prompts], seed)
    clean, other = rows(prompts), rows([prompts[i] for i in partners])
    pairs = zip(clean, other, strict=True)
    differ = np.array([first_difference(one, another) for one, another in pairs])
    return replace(runs, base=clean, other=other, differ=differ)


def _partners(lengths: Sequence[int], seed: int) -> list[int]:
    """For each prompt, the index of another one of equal length."""
    rng, found = np.random.default_rng(seed), np.zeros(len(lengths), dtype=int)
    for length in sorted(set(lengths)):
        same = np.flatnonzero(np.array(lengths) == length)
        if len(same) < 2:
            raise InterpError(
                f"resample ablation of prompt {same[0]}",
                f"no other prompt has {length} tokens",
                "give more prompts, or use counterfactual ablation",
            )
        shuffled = rng.permutation(same)
        found[shuffled] = np.roll(shuffled, 1)
    return found.tolist()
