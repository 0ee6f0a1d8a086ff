"""Exact activation patching: what a component's value carries from one run into another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Literal

import torch

from interp.core.arguments import Columns, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.engine.cost import note_pace
from interp.engine.forward import Baseline, Runner
from interp.engine.memory import budget_bytes, says_too_little
from interp.engine.readout import Progress
from interp.engine.sweep import Replace, Swept, run_sweep
from interp.models.language_model import HOOKED, LanguageModel
from interp.patching.hook_loop import hook_loop
from interp.patching.request import (
    Request,
    make_request,
    operations,
    spelled_positions,
    spelled_source,
)
from interp.results.keys import result_key
from interp.results.provenance import provenance
from interp.results.scores import Scores
from interp.results.store import chunks_of, keep, stored
from interp.runs.mean_activations import batches_of, mean_values
from interp.runs.pairs import PatchDirection, check_gap

VERSION = 2

Source = Literal["other", "zero", "mean"]
Engine = Literal["auto", "fast", "hooks"]


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
    engine: Engine = "auto",
    budget_gb: float = 1.0,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    cache: bool = True,
) -> Scores:
    """The effect of every component's activation, patched from the other run of each pair.

        effect(c) = mean(m[base with c := other] - m[base]) / mean(m[clean] - m[corrupted])

    with base = corrupted, other = clean (denoise: is c sufficient?), or base = clean,
    other = corrupted and the sign turned (noise: is c necessary?). 1 is the whole gap and
    positive supports the behaviour in both directions.

    Args:
        model: a loaded model.
        task: prompt pairs of equal token length, and the metric.
        site: any site the model offers, see `interp.core.components.SITES`.
        by: which axes to sweep (one string is one axis), among "layer", the site's own ("head",
            "kv_head", "neuron"; "head" also stands for k's and v's kv_head) and "position". What
            is not swept is patched together.
        direction: "denoise" or "noise".
        positions: with "position" in `by`: "all" (every token index; prompts of one length) or
            several, one column each. Without: "all", or several patched together. See
            `interp.core.arguments.Columns`.
        layers: which layers; all by default.
        components: which heads or neurons; all by default.
        source: "other" (the other run), "zero", or "mean" (one vector per layer: the mean over
            every token of the reference prompts). The last two are ablations of the base run.
        reference: the task whose prompts, clean and corrupted, a mean is taken over; none of them
            may be evaluated here. E.g. a split's other half, or `task.without`.
        engine: "fast" (batched, restarted at the patched layer), "hooks" (one forward pass per
            cell through TransformerLens), "auto" (fast where the architecture is known).
        budget_gb: memory for stored runs and runs in flight. Changes the time, not the result.
        progress: called with (chunks done, chunks in all).
        cancelled: asked before every chunk (hook loop: cell).
        cache: reuse and keep results under the cache, keyed by the model's and the task's hash and
            the tokens. An interrupted sweep goes on from its finished chunks.
            Results under a metric of your own are never kept: its name does not tell what it is.

    Returns:
        Scores with axes `by`, unit "gap".

    Raises:
        InterpError: a site the model lacks, an axis it does not have, a gap below its standard
            error, a position a prompt lacks, a mean over no or evaluated prompts, training mode,
            or a call inside `intervene` (but for engine="hooks" with cache=False, which patches
            the changed model).

    Equals the one-cell-per-forward loop (tests/test_patching.py). Departs from the usual code:
    a ratio of means, not a mean of ratios. Sources: Vig et al. 2020, arXiv 2004.12265; Zhang and
    Nanda 2023, arXiv 2309.16042; Heimersheim and Nanda 2024, arXiv 2404.15255.
    """
    request = make_request(
        model,
        task,
        site=site,
        by=by,
        direction=direction,
        positions=positions,
        layers=layers,
        components=components,
        source=source,
        reference=reference,
    )
    model.refuse_training()
    budget = budget_bytes(budget_gb)
    fast = _choose_engine(model, engine)
    if fast or cache:
        model.refuse_changed("a patching sweep", HOOKED)
    key = request_key(model, task, request, engine=engine) if cache else None
    if (found := stored(key)) is not None:
        return found
    with chunks_of(key) as chunks:
        begun, afresh = time.perf_counter(), not chunks.some
        if not fast:
            options = {"chunks": chunks, "progress": progress, "cancelled": cancelled}
            swept = hook_loop(model, request, **options)
        else:
            assert model.decoder is not None
            swept = run_sweep(
                Runner(model.decoder),
                request.runs.base,
                request.runs.other,
                request.cells,
                request.n_cells,
                site=site,
                metric=request.metric,
                targets=request.runs.targets,
                budget=budget,
                check=check_gap,
                replace=_replacement(model, request),
                chunks=chunks,
                progress=progress,
                cancelled=cancelled,
            )
        if afresh:
            spent = time.perf_counter() - begun
            note_pace(model.hash, model.device, operations(model, request), spent)
        scores = _scores(model, task, request, swept, fast=fast)
        keep(key, scores, chunks)
    return scores


def request_key(
    model: LanguageModel,
    task: Task,
    request: Request,
    *,
    engine: Engine = "auto",
) -> str | None:
    """The key under which `activation_patching` keeps this sweep's result; see `result_key`."""
    names = ("site", "axes", "coordinates", "direction", "source", "reference", "positions")
    names += ("asked", "layers", "components")
    cells = [getattr(request.cells, field.name) for field in fields(request.cells)]
    return result_key(
        "activation patching",
        VERSION,
        model,
        task,
        **{name: getattr(request, name) for name in names},
        cells=cells,
        fast=_choose_engine(model, engine),
    )


def _choose_engine(model: LanguageModel, engine: str) -> bool:
    if engine not in ("auto", "fast", "hooks"):
        raise unknown("engine", engine, ("auto", "fast", "hooks"))
    if engine == "fast" and model.decoder is None:
        raise InterpError(
            f"the fast engine for {model.name}", str(model.engine_reason), "use engine='hooks'"
        )
    return engine != "hooks" and model.decoder is not None


def _replacement(model: LanguageModel, request: Request) -> Replace | None:
    """Zeros, or a mean over the reference prompts; None when another run is the source."""
    if request.source == "other":
        return None
    assert model.decoder is not None
    means = []
    if request.source == "mean":
        batches = batches_of(request.means_over)
        means = mean_values(Runner(model.decoder), batches, request.site)

    def replaced(base: Baseline, layer: int, site: str) -> torch.Tensor:
        like = base.site(layer, site)
        if request.source == "zero":
            return torch.zeros_like(like)
        return means[layer].expand_as(like)

    return replaced


def _scores(
    model: LanguageModel, task: Task, request: Request, swept: Swept, *, fast: bool
) -> Scores:
    denoise = request.direction == "denoise"
    clean, corrupted = (swept.other, swept.base) if denoise else (swept.base, swept.other)
    gained = (swept.patched - swept.base[:, None]) * (1 if denoise else -1)
    shape = tuple(len(request.coordinates[axis]) for axis in request.axes)
    return Scores(
        effects=gained.reshape(len(clean), *shape),
        clean=clean,
        corrupted=corrupted,
        axes=request.axes,
        coordinates=request.coordinates,
        site=request.site,
        direction=request.direction,
        method="activation patching" if request.source == "other" else f"{request.source} ablation",
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        positions=request.positions,
        provenance=provenance(model, task, _call(request)),
        extra={"engine": "fast" if fast else "hooks", "source": request.source},
    )


def _call(request: Request) -> str:
    spelled = [f"site={request.site!r}", f"by={request.axes!r}", f"direction={request.direction!r}"]
    for name, wanted in (("layers", request.layers), ("components", request.components)):
        if wanted is not None:
            spelled.append(f"{name}={_spelled(wanted)}")
    if request.positions not in ("all tokens", "each token"):
        spelled.append(f"positions={spelled_positions(request.asked)}")
    if request.source != "other":
        spelled += [f"{name}={value}" for name, value in spelled_source(request).items()]
    return f"scores = interp.activation_patching(model, task, {', '.join(spelled)})"


def _spelled(numbers: tuple[int, ...]) -> str:
    """Numbers as Python, consecutive ones as a range."""
    if len(numbers) > 2 and numbers == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"range({numbers[0]}, {numbers[-1] + 1})"
    return repr(list(numbers))
