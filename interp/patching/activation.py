"""Exact activation patching: the effect of giving a component its value from another run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import torch

from interp.core.arguments import Columns, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.core.run_options import Engine, RunKeywords, RunOptions
from interp.core.schema import Whole, checked
from interp.engine.cost import note_pace
from interp.engine.forward import Baseline, Runner
from interp.engine.memory import budget_bytes, says_too_little
from interp.engine.resume import NO_CHUNKS, Chunks
from interp.engine.sweep import Replace, Swept, run_sweep
from interp.models.language_model import HOOKED, LanguageModel
from interp.patching.hook_loop import hook_loop
from interp.patching.spec import PatchSpec
from interp.patching.sweep import PatchSweep, make_sweep, operations
from interp.results.keys import result_key
from interp.results.prompt_effects import EffectUnit
from interp.results.provenance import provenance
from interp.results.scores import Scores
from interp.results.store import chunks_of, keep, stored
from interp.runs.mean_activations import batches_of, mean_values
from interp.runs.pairs import PatchDirection
from interp.runs.parts import TaskPart, by_parts

VERSION = 3

Source = Literal["other", "zero", "mean"]


@reads_arguments
@says_too_little
def activation_patching(
    model: LanguageModel,
    task: Task,
    *,
    site: str = "z",
    by: Sequence[str] = ("layer", "head"),
    direction: PatchDirection = "denoise",
    positions: Columns = "all",
    layers: Iterable[int] | None = None,
    components: Iterable[int] | None = None,
    source: Source = "other",
    reference: Task | None = None,
    unit: EffectUnit = "gap",
    engine: Engine = "auto",
    cache: bool = True,
    workers: int = 0,
    **run: Unpack[RunKeywords],
) -> Scores:
    """The effect of every component when its activation is taken from the pair's other run.

        effect(c) = mean(m[base with c := other] - m[base]) / mean(m[clean] - m[corrupted])

    Denoise: base = corrupted, other = clean (is c sufficient?). Noise: base = clean,
    other = corrupted, and the sign is reversed (is c necessary?). In both directions 1 is the
    whole gap, and a positive effect supports the behaviour.

    Args:
        model: a loaded model.
        task: prompt pairs of equal token length, and the metric.
        site: any site the model offers, see `interp.core.components.SITES`.
        by: the axes to sweep, or one axis: "layer", the site's own ("head", "kv_head", "neuron",
            "expert"; for k and v "head" means "kv_head") and "position". Along axes that are not
            swept, everything is patched together.
        direction: "denoise" or "noise".
        positions: with "position" in `by`: "all" (every token index; prompts of equal length), or
            several positions, one column each. Otherwise: "all", or several positions that are
            patched together. See `interp.core.arguments.Columns`.
        layers: which layers; all by default.
        components: which heads, neurons or experts; all by default.
        source: "other" (the pair's other run), "zero", or "mean" (one vector per layer: the mean
            over all tokens of the reference prompts). "zero" and "mean" ablate the base run.
        reference: the task whose prompts, clean and corrupted, the mean is taken over, e.g. the
            other half of a split, or `task.without`. None of them may be evaluated here.
        unit: "gap" (fractions of the clean-corrupted gap), or "metric": the mean metric gained, in
            the metric's own unit, which needs no gap. A gap below its standard error is then a
            warning. With a source other than "other" and direction "noise", the prompts may lack
            corrupted ones.
        engine: "fast" (batched, restarted at the patched layer), "hooks" (one forward pass per
            cell through TransformerLens), or "auto" (fast if the architecture is supported).
        cache: read and store results in the cache. The key holds the model's hash, the tokens and
            all arguments; see `interp.results.keys.result_key`. An interrupted sweep resumes from
            its finished chunks.
        workers: processes that share the prompts, a few at a time, see
            `interp.runs.workers.spread`; 0 computes in this one. The numbers are the same for
            1 and more, and differ from those of 0 by rounding.
        run: budget_gb, the memory for stored runs and runs in flight (it changes the time, not
            the result); progress, called with (chunks done, chunks in total); cancelled, asked
            before every chunk. The hook loop counts and asks at every cell.

    Returns:
        Scores with axes `by`, in `unit`.

    Raises:
        InterpError: the model lacks the site, the site lacks an axis, the gap is below its
            standard error, a prompt lacks a position, a mean has no reference prompts or
            evaluated ones, the model is in training mode, or the call is inside `intervene`
            (allowed with engine="hooks" and cache=False, which patches the changed model).

    Equals a loop of one forward pass per cell (tests/patching/test_activation.py). Departs from
    the usual code: a ratio of means, not a mean of ratios. Sources: Vig et al. 2020, arXiv
    2004.12265; Zhang and Nanda 2023, arXiv 2309.16042; Heimersheim and Nanda 2024, arXiv
    2404.15255.
    """
    spec = PatchSpec(
        site=site,
        by=by,
        direction=direction,
        positions=positions,
        layers=layers,
        components=components,
        source=source,
        reference=reference,
        unit=unit,
    )
    options = RunOptions(cache=cache, engine=engine, **run)
    workers = checked(Whole, workers, "workers")
    return _patch(model, task, make_sweep(model, task, spec), options, workers)


def _patch(
    model: LanguageModel, task: Task, sweep: PatchSweep, options: RunOptions, workers: int
) -> Scores:
    """Run a sweep, or read its stored result."""
    model.refuse_training()
    budget_bytes(options.budget_gb)
    fast = _is_fast(model, options.engine)
    if fast or options.cache:
        model.refuse_changed("a patching sweep", HOOKED)
    key = sweep_key(model, task, sweep, engine=options.engine) if options.cache else None
    if (found := stored(key)) is not None:
        return replace(found, extra={**found.extra, **sweep.facts(model)})
    with chunks_of(key) as chunks:
        begun, from_start = time.perf_counter(), not chunks.some
        if workers:
            swept = _shared(model, task, sweep, options, chunks, workers)
            sweep.spec.check_ends(swept.base, swept.other)
        else:
            swept = _swept(model, sweep, options, chunks, sweep.spec.check_ends)
        # The pace of one process, on the engine whose operations are counted.
        if from_start and not workers and fast == (model.decoder is not None):
            spent, flops = time.perf_counter() - begun, operations(model, sweep)
            kept = options.cache
            note_pace("sweep", model.hash, model.device, flops, spent, keep=kept)
        scores = _scores(model, task, sweep, swept, fast=fast)
        keep(key, scores, chunks)
    return scores


def _swept(
    model: LanguageModel,
    sweep: PatchSweep,
    options: RunOptions,
    chunks: Chunks,
    check: Callable[[np.ndarray, np.ndarray], None],
) -> Swept:
    """Run a sweep; `check` is given the metrics of both plain runs before anything is patched."""
    if not _is_fast(model, options.engine):
        return hook_loop(model, sweep, options, chunks=chunks, check=check)
    assert model.decoder is not None
    return run_sweep(
        Runner(model.decoder),
        sweep.runs.base,
        sweep.runs.other,
        sweep.cells,
        sweep.n_cells,
        site=sweep.spec.site,
        metric=sweep.metric,
        targets=sweep.runs.targets,
        budget=budget_bytes(options.budget_gb),
        check=check,
        replace=_replacement(model, sweep),
        chunks=chunks,
        progress=options.progress,
        cancelled=options.cancelled,
    )


def _shared(
    model: LanguageModel,
    task: Task,
    sweep: PatchSweep,
    options: RunOptions,
    chunks: Chunks,
    workers: int,
) -> Swept:
    """Run a sweep by several processes."""
    told = {"engine": options.engine, "budget_gb": options.budget_gb}
    work = partial(_part, spec=sweep.spec, **told)
    made = by_parts(
        work,
        model,
        task,
        positions=sweep.spec.positions,
        workers=workers,
        options=options,
        chunks=chunks,
    )
    found = np.concatenate(list(made))
    return Swept(base=found[:, 0], other=found[:, 1], patched=found[:, 2:])


def _part(model: LanguageModel, part: TaskPart, *, spec: PatchSpec, **options: Any) -> np.ndarray:
    """(prompts, 2 + cells) metrics of a part of a sweep: both plain runs, then every cell."""
    task, positions = part
    sweep = make_sweep(model, task, replace(spec, positions=positions))
    swept = _swept(model, sweep, RunOptions(**options), NO_CHUNKS, lambda *_: None)
    return np.concatenate([swept.base[:, None], swept.other[:, None], swept.patched], axis=1)


def sweep_key(
    model: LanguageModel, task: Task, sweep: PatchSweep, *, engine: Engine = "auto"
) -> str | None:
    """The cache key of this sweep's result; see `interp.results.keys.result_key`."""
    spec = {field.name: getattr(sweep.spec, field.name) for field in fields(sweep.spec)}
    cells = [getattr(sweep.cells, field.name) for field in fields(sweep.cells)]
    return result_key(
        "activation patching",
        VERSION,
        model,
        task,
        spec=spec,
        axes=sweep.axes,
        coordinates=sweep.coordinates,
        cells=cells,
        fast=_is_fast(model, engine),
    )


def _is_fast(model: LanguageModel, engine: str) -> bool:
    """Whether the fast engine runs the model.

    Raises:
        InterpError: an unknown engine, or a fast one that the model lacks.
    """
    if engine not in ("auto", "fast", "hooks"):
        raise unknown("engine", engine, ("auto", "fast", "hooks"))
    if engine == "fast" and model.decoder is None:
        raise InterpError(
            f"the fast engine for {model.name}", str(model.engine_reason), "use engine='hooks'"
        )
    return engine != "hooks" and model.decoder is not None


def _replacement(model: LanguageModel, sweep: PatchSweep) -> Replace | None:
    """Zeros, or a mean over the reference prompts; None if the other run is the source."""
    source = sweep.spec.source
    if source == "other":
        return None
    assert model.decoder is not None
    means = []
    if source == "mean":
        batches = batches_of(sweep.means_over)
        means = mean_values(Runner(model.decoder), batches, sweep.spec.site)

    def replaced(base: Baseline, layer: int, site: str) -> torch.Tensor:
        like = base.site(layer, site)
        if source == "zero":
            return torch.zeros_like(like)
        return means[layer].expand_as(like)

    return replaced


def _scores(
    model: LanguageModel, task: Task, sweep: PatchSweep, swept: Swept, *, fast: bool
) -> Scores:
    spec = sweep.spec
    denoise = spec.direction == "denoise"
    clean, corrupted = (swept.other, swept.base) if denoise else (swept.base, swept.other)
    gained = (swept.patched - swept.base[:, None]) * (1 if denoise else -1)
    shape = tuple(len(sweep.coordinates[axis]) for axis in sweep.axes)
    return Scores(
        effects=gained.reshape(len(clean), *shape),
        clean=clean,
        corrupted=corrupted,
        axes=sweep.axes,
        coordinates=sweep.coordinates,
        site=spec.site,
        direction=spec.direction,
        method="activation patching" if spec.source == "other" else f"{spec.source} ablation",
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        positions=sweep.positions,
        provenance=provenance(model, task, _call(sweep)),
        unit=spec.unit,
        extra={
            "engine": "fast" if fast else "hooks",
            "source": spec.source,
            **sweep.facts(model),
        },
    )


def _call(sweep: PatchSweep) -> str:
    """The Python call that repeats the measurement."""
    spec = sweep.spec
    arguments = [f"site={spec.site!r}", f"by={sweep.axes!r}", f"direction={spec.direction!r}"]
    for name, wanted in (("layers", spec.layers), ("components", spec.components)):
        if wanted is not None:
            arguments.append(f"{name}={_numbers(tuple(wanted))}")
    if sweep.positions not in ("all tokens", "each token"):
        arguments.append(f"positions={spec.positions!r}")
    named = spec.source_arguments()
    if spec.source == "other":
        del named["source"]
    arguments += [f"{name}={value}" for name, value in named.items()]
    return f"scores = interp.activation_patching(model, task, {', '.join(arguments)})"


def _numbers(numbers: tuple[int, ...]) -> str:
    """Numbers as Python source; consecutive ones as a range."""
    if len(numbers) > 2 and numbers == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"range({numbers[0]}, {numbers[-1] + 1})"
    return repr(list(numbers))
