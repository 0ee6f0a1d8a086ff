"""Exact path patching: the effect of one component through its direct paths to others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Unpack

import numpy as np
import torch

from interp.core.arguments import Columns, reads_arguments
from interp.core.prompts import Task
from interp.core.run_options import RunKeywords, RunOptions
from interp.core.schema import Whole, checked
from interp.engine.cost import note_pace
from interp.engine.forward import Runner
from interp.engine.memory import budget_bytes, says_too_little
from interp.engine.resume import NO_CHUNKS, Chunks
from interp.engine.stopping import Cancelled, stoppable
from interp.models.language_model import HOOKED, LanguageModel
from interp.patching.path_cost import path_operations
from interp.patching.path_receivers import grouped_receivers
from interp.patching.path_runner import KeptPair, PathRunner
from interp.patching.path_spec import PathSpec, PathSweep, lay_out_paths
from interp.results.keys import result_key
from interp.results.provenance import provenance
from interp.results.scores import Scores
from interp.results.store import chunks_of, keep, stored
from interp.runs.pairs import check_gap, warn_gap
from interp.runs.parts import TaskPart, by_parts

VERSION = 2


@reads_arguments
@says_too_little
def path_patching(
    model: LanguageModel,
    task: Task,
    *,
    receivers: Sequence[str],
    senders: str = "heads",
    layers: Sequence[int] | None = None,
    direction: str = "noise",
    positions: Columns = "all",
    freeze_mlps: bool = False,
    unit: str = "gap",
    cache: bool = True,
    workers: int = 0,
    runs: KeptPair | None = None,
    **run: Unpack[RunKeywords],
) -> Scores:
    """The effect of every sender through its direct paths into some receivers.

    Three steps (Wang et al. 2022), with base = clean for "noise" and corrupted for "denoise":

    1. Both runs of the pair are stored.
    2. In the base run the sender takes its value from the other run. All other heads keep their
       base values; MLPs are recomputed (or keep theirs, with `freeze_mlps`). The receivers' inputs
       are recorded.
    3. In the base run the receivers take their recorded values, and the metric is read.

        effect = mean(m[base] - m[patched]) / mean(m[clean] - m[corrupted])   for "noise"
        effect = mean(m[patched] - m[base]) / mean(m[clean] - m[corrupted])   for "denoise"

    Unit: fraction of the gap. Positive supports the behaviour. With `freeze_mlps` and one receiver
    this is one edge of the graph whose nodes are heads and MLPs. Step 2 handles all senders at
    once, and only the sender's own positions: with attention fixed, nothing moves between
    positions.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        receivers: "logits" alone, or labels: L9H6.q, L9KV2.k and L9KV2.v (a key/value head),
            L5.mlp_out (the input of an MLP), L26N6475 (the gate and up inputs of one neuron), or a
            whole site such as L9.q. Several receivers are patched together.
        senders: "heads" (site z) or "mlps" (site mlp_out).
        layers: the senders' layers; all by default.
        direction: "noise" or "denoise".
        positions: where the sender is patched: "all", or several positions together; see
            `interp.core.arguments.Columns`.
        freeze_mlps: keep the base values of MLPs between sender and receiver.
        unit: "gap" or "metric", as in `activation_patching`.
        cache: read and store results in the cache. An interrupted call resumes from its finished
            prompts.
        workers: processes that share the prompts; 0 computes in this one. As in
            `activation_patching`.
        runs: plain runs of the clean and of the corrupted prompts, in which all patched positions
            are among the last tokens that are kept (`interp.runs.stored_runs.keep_runs`). Several
            calls can share them. By default, and in other processes, they are computed.
        run: budget_gb, the memory for runs in flight; progress, called with (prompts done, prompts
            in total); cancelled, asked before every prompt.

    Returns:
        Scores over senders, axes (layer, head) or (layer,). A sender without a receiver downstream
        has effect 0.

    Raises:
        InterpError: no fast engine, training mode, equal prompts in a pair, unknown senders, a
            receiver that does not exist or cannot receive, a gap below its standard error, runs
            of other prompts or too few tokens, or a call inside `intervene`.

    Departs from released code: receivers are recorded and patched at all positions at which the
    sender is patched; that code freezes and patches one position. Recorded values are copies.
    Equals a hooked three-pass loop (tests/patching/test_path.py). Source: arXiv 2211.00593,
    appendix B.
    """
    model.require_decoder("path patching")
    options = RunOptions(cache=cache, **run)
    workers = checked(Whole, workers, "workers")
    budget_bytes(options.budget_gb)
    spec = PathSpec(
        receivers=receivers,
        senders=senders,
        layers=layers,
        direction=direction,
        positions=positions,
        freeze_mlps=freeze_mlps,
        unit=unit,
    )
    sweep = lay_out_paths(model, task, spec)
    model.refuse_changed("path patching", HOOKED)
    if runs is not None:
        runs = runs if direction == "noise" else (runs[1], runs[0])
        _require_runs(sweep, runs)
    return _patch_paths(model, task, sweep, options, workers, runs)


def path_key(model: LanguageModel, task: Task, spec: PathSpec) -> str | None:
    """The cache key of the result of `path_patching` of these paths.

    Raises:
        InterpError: as `path_patching`, as far as it can be told without a run.
    """
    model.require_decoder("path patching")
    return _key(model, task, lay_out_paths(model, task, spec))


def _key(model: LanguageModel, task: Task, sweep: PathSweep) -> str | None:
    return result_key(
        "path patching",
        VERSION,
        model,
        task,
        receivers=sweep.into,
        senders=sweep.spec.senders,
        layers=list(sweep.layers),
        direction=sweep.spec.direction,
        positions=[sweep.positions, sweep.where],
        freeze_mlps=sweep.spec.freeze_mlps,
        unit=sweep.spec.unit,
    )


def _require_runs(sweep: PathSweep, runs: KeptPair) -> None:
    """Refuse, by an `InterpError`, kept runs of other prompts or of too few tokens."""
    pairs = zip(sweep.runs.base, sweep.where, strict=True)
    last = max((len(base) - min(where) for base, where in pairs if where), default=1)
    for side, prompts in zip(runs, (sweep.runs.base, sweep.runs.other), strict=True):
        side.require(prompts, last, "path patching")


def _patch_paths(
    model: LanguageModel,
    task: Task,
    sweep: PathSweep,
    options: RunOptions,
    workers: int,
    runs: KeptPair | None,
) -> Scores:
    """Measure every sender, or read the stored result."""
    spec = sweep.spec
    key = _key(model, task, sweep) if options.cache else None
    if (found := stored(key)) is not None:
        return found
    with torch.no_grad(), stoppable(options.cancelled), chunks_of(key) as chunks:
        begun, from_start = time.perf_counter(), not chunks.some
        if workers:
            found = _shared(model, task, sweep, options, chunks, workers)
        else:
            found = _measure(model, task, sweep, options, chunks, runs)
        if from_start and not workers and runs is None:
            spent, flops = time.perf_counter() - begun, path_operations(model, sweep)
            note_pace("paths", model.hash, model.device, flops, spent, keep=options.cache)
        ends, effects = found[:, :2].T, found[:, 2:]
        denoise = spec.direction == "denoise"
        clean, corrupted = ends[::-1] if denoise else ends
        (check_gap if spec.unit == "gap" else warn_gap)(clean, corrupted)
        coordinates = {"layer": tuple(map(str, sweep.layers))}
        if sweep.heads:
            coordinates["head"] = tuple(map(str, range(model.n_heads)))
        shape = (len(task), *(len(along) for along in coordinates.values()))
        mlps = "held" if spec.freeze_mlps else "recomputed"
        scores = Scores(
            effects=effects.reshape(shape) * (1 if denoise else -1),
            clean=clean,
            corrupted=corrupted,
            axes=tuple(coordinates),
            coordinates=coordinates,
            site="z" if sweep.heads else "mlp_out",
            direction=spec.direction,
            method=f"path patching into {', '.join(sweep.into)}, MLPs {mlps}",
            metric=task.metric.name,
            metric_unit=task.metric.unit,
            positions="all tokens" if spec.positions == "all" else " and ".join(sweep.positions),
            provenance=provenance(model, task, sweep.call),
            unit=spec.unit,
        )
        keep(key, scores, chunks)
    return scores


def _measure(
    model: LanguageModel,
    task: Task,
    sweep: PathSweep,
    options: RunOptions,
    chunks: Chunks,
    runs: KeptPair | None = None,
) -> np.ndarray:
    """(n, 2 + senders): metric of base and of other run, then patched minus base metric."""
    work = PathRunner(
        runner=Runner(model.require_decoder("path patching")),
        runs=sweep.runs,
        receivers=grouped_receivers(sweep.receivers),
        heads=sweep.heads,
        freeze_mlps=sweep.spec.freeze_mlps,
        metric=task.metric,
        kept=runs,
    )
    numbers = range(model.n_heads) if sweep.heads else [-1]
    senders = [(layer, number) for layer in sweep.layers for number in numbers]
    per_sender = (model.d_model * 12 + 4 * model.d_mlp) * (torch.finfo(model.dtype).bits // 8)
    fitting = budget_bytes(options.budget_gb) // per_sender
    tile = min(fitting, 1536) if model.device.type == "cpu" else fitting
    result = np.zeros((len(task), 2 + len(senders)))
    for block in work.blocks(len(senders), tile):
        if options.cancelled():
            raise Cancelled("path patching", f"stopped after {block[0]} prompts", "rerun it")

        @cache
        def measured(block: tuple[int, ...] = tuple(block.tolist())) -> np.ndarray:
            return work.effects(block, senders, [sweep.where[i] for i in block], tile)

        for row, prompt in enumerate(block.tolist()):
            result[prompt] = chunks.once(
                prompt, 2 + len(senders), lambda row=row, found=measured: found()[row]
            )
            if options.progress is not None:
                options.progress(prompt + 1, len(task))
    return result


def _shared(
    model: LanguageModel,
    task: Task,
    sweep: PathSweep,
    options: RunOptions,
    chunks: Chunks,
    workers: int,
) -> np.ndarray:
    """What `_measure` gives, by several processes."""
    made = by_parts(
        partial(_part, spec=sweep.spec, budget_gb=options.budget_gb),
        model,
        task,
        positions=sweep.spec.positions,
        workers=workers,
        options=options,
        chunks=chunks,
    )
    return np.concatenate(list(made))


def _part(model: LanguageModel, part: TaskPart, *, spec: PathSpec, budget_gb: float) -> np.ndarray:
    """What `_measure` gives for a part of a task."""
    task, positions = part
    sweep = lay_out_paths(model, task, replace(spec, positions=positions))
    with torch.no_grad():
        return _measure(model, task, sweep, RunOptions(budget_gb=budget_gb), NO_CHUNKS)
