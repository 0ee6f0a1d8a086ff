"""Attribution patching: a first-order estimate of every component's effect, from one backward pass.

AtP* corrects it in two ways: the attention softmax is recomputed for queries and keys (QK fix),
and gradients are dropped layer by layer to expose effects that cancel (GradDrop).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Unpack

import numpy as np

from interp.core.arguments import reads_arguments
from interp.core.components import SITES, within
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.run_options import RunOptions
from interp.engine.forward import Runner
from interp.engine.gradients import chunks, row_order
from interp.engine.memory import budget_bytes, keep_freed_memory, says_too_little
from interp.engine.stopping import Cancelled, stoppable
from interp.models.language_model import HOOKED, LanguageModel
from interp.patching.first_order import Attribution, Estimator
from interp.patching.spec import SweepKeywords, read_sweep
from interp.patching.sweep import make_sweep
from interp.results.provenance import provenance
from interp.results.scores import Scores
from interp.runs.mean_activations import batches_of, mean_values
from interp.runs.pairs import refuse_equal
from interp.runs.parts import TaskPart, by_parts

STREAM = ("resid_pre", "resid_mid", "resid_post")
_NO_GRADIENT = 1e-4


@reads_arguments
@says_too_little
def attribution_patching(
    model: LanguageModel,
    task: Task,
    *,
    workers: int = 0,
    **sweep: Unpack[SweepKeywords],
) -> Scores:
    """A first-order estimate of `activation_patching` for all cells at once.

        effect(c) = sum over tokens of (c[clean] - c[corrupted]) . dm/dc [base] / gap

    Denoise (the default): base is the corrupted run, and the effect is the metric gained when c
    takes its clean value. Noise: base is the clean run, and the effect is the metric lost when c
    takes its corrupted value. The gradient is taken at the base run, so the two directions differ
    if the model is not linear. Costs 2 forward passes and 1 backward pass per batch of prompts,
    for any number of cells.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        workers: processes that share the prompts, as in `activation_patching`; 0 computes in this
            one. A call that was stopped goes on from its finished parts.
        sweep: site, by, direction, positions, layers, components, source, reference and unit, with
            the meaning and the defaults of `activation_patching`; and budget_gb, progress (called
            with prompts done and in total) and cancelled (asked before every batch).

    Returns:
        Scores with axes `by`. Effects of the tokens of one cell are summed and can cancel.

    Raises:
        InterpError: as `activation_patching`. Also a metric whose gradient is zero at the base
            run (KL to the clean run, when noising), or that is not differentiable.

    Equals the derivative of exact patching (tests/patching/test_attribution.py). For the sum of a
    node's edges, see `interp.circuits.score_edges`. It misses effects if the model is flat at the
    base run, as in saturated attention; see `atp_star`. Sources: arXiv 2310.10348; Nanda 2023,
    "Attribution patching".
    """
    spec, options = read_sweep(**sweep)
    asked = Attribution(name="attribution_patching", spec=spec)
    return _attribute(model, task, asked, options, workers)


@reads_arguments
@says_too_little
def atp_star(
    model: LanguageModel,
    task: Task,
    *,
    qk_fix: bool = True,
    grad_drop: bool = True,
    workers: int = 0,
    **sweep: Unpack[SweepKeywords],
) -> Scores:
    """AtP*: attribution patching with a recomputed softmax and with gradients dropped by layer.

    It estimates `activation_patching` with the same arguments, by default denoising.

    QK fix, for sites q and k: attention is recomputed with the cell's queries (or keys) replaced
    and everything else at the base run. Only what follows attention is linearised:

        I(c) = sum over queries, keys of dm/dA . (A[base] - A[c replaced])  =  dm/dz . (change of z)

    This measures effects in saturated attention too. Query and key norms and the rotary embedding
    are recomputed. A key that several query heads share counts for all of them. Norms over all
    heads (OLMo-2) pass a change on to the other heads. All tokens of a cell are replaced together;
    with "position" in `by`, one at a time.

    GradDrop, for every site: I_l is the estimate when the gradient through the attention and MLP
    outputs of layer l is set to zero. Over L layers,

        effect(c) = 1/(L - 1) sum over l of |I_l(c)|,

    a magnitude per prompt, never negative. Costs L backward passes, each from layer l down.

    Args:
        model: a model with a fast engine of more than one layer.
        task: prompt pairs.
        qk_fix: recompute the softmax if the site is q or k.
        grad_drop: average magnitudes over dropped gradients. Without it effects keep their sign.
        workers: as in `attribution_patching`.
        sweep: as in `attribution_patching`, but for the site, which is q unless given: q or k for
            the QK fix, or any site of a component (not the residual stream).

    Returns:
        Scores with axes `by`.

    Raises:
        InterpError: as `attribution_patching`. Also `grad_drop` on the residual stream, or on a
            model of one layer.

    The QK fix equals attention recomputed head by head, in saturated attention too
    (tests/patching/test_attribution.py). Source: arXiv 2403.00745, equations 7 to 11.
    """
    spec, options = read_sweep(**{"site": "q", **sweep})
    if grad_drop and (spec.site in STREAM or model.n_layers < 2):
        raise InterpError(
            f"GradDrop of {spec.site} in {model.n_layers} layers",
            "it drops the gradient through one of several layers, and measures components",
            "use a component's site and a deeper model, or grad_drop=False",
        )
    fixed = qk_fix and spec.site in ("q", "k")
    asked = Attribution(name="atp_star", spec=spec, qk_fix=fixed, grad_drop=grad_drop)
    return _attribute(model, task, asked, options, workers)


def _attribute(
    model: LanguageModel, task: Task, asked: Attribution, options: RunOptions, workers: int
) -> Scores:
    _refuse(model, task, asked)
    work = _estimator(model, task, asked)
    if workers:
        ends, effects = _shared(model, task, work, options, workers)
    else:
        ends, effects = _estimated(work, options)
    clean, corrupted = ends if asked.spec.direction == "noise" else ends[::-1]
    asked.spec.check_ends(*ends)
    paired = bool((work.sweep.runs.differ < work.sweep.lengths).any())
    if paired and work.reach <= _NO_GRADIENT * np.abs(clean - corrupted).sum():
        raise _flat(task, "its gradient is zero at the base run")
    if asked.grad_drop:  # a magnitude must stay positive when the gap is negative
        effects *= np.sign((clean - corrupted).mean())
    return _scores(model, task, work, effects, clean, corrupted)


def _estimated(work: Estimator, options: RunOptions) -> tuple[np.ndarray, np.ndarray]:
    """(2, prompts) metric of both runs, and (prompts, layers, components, columns) gain."""
    lengths, spec = work.sweep.lengths, work.asked.spec
    order = row_order(work.sweep.runs.base)
    budget = budget_bytes(options.budget_gb)
    pieces = list(chunks(work.runner.decoder, lengths[order], budget, held=work.held()))
    work.batches = len(pieces)
    if work.sweep.means_over:
        batches = batches_of(work.sweep.means_over)
        work.constant = mean_values(work.runner, batches, spec.site)
        work.forwards += len(batches)
    effects = np.zeros((len(lengths), *work.shape))
    ends = np.zeros((2, len(lengths)))
    for piece, rebuilt in pieces:
        if options.cancelled():
            raise Cancelled(work.asked.method, f"stopped after {piece.start} prompts", "rerun it")
        prompts = order[piece]
        with stoppable(options.cancelled):
            ends[:, prompts], effects[prompts] = work.chunk(prompts, rebuilt)
        if options.progress is not None:
            options.progress(piece.stop, len(lengths))
    return ends, effects


def _shared(
    model: LanguageModel, task: Task, work: Estimator, options: RunOptions, workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `_estimated`, by several processes."""
    part = partial(_part, asked=work.asked, budget_gb=options.budget_gb)
    positions = work.asked.spec.positions
    made = by_parts(part, model, task, positions=positions, workers=workers, options=options)
    found = np.concatenate(list(made))
    totals, ends, effects = np.split(found, [4, 6], axis=1)
    work.reach = float(totals[:, 0].sum())
    work.forwards, work.backwards, work.batches = totals[:, 1:].sum(0).astype(int).tolist()
    return ends.T, effects.reshape(len(task), *work.shape)


def _part(
    model: LanguageModel, part: TaskPart, *, asked: Attribution, budget_gb: float
) -> np.ndarray:
    """(prompts, numbers) of a part: its totals in the first row, both runs' metric, the gain."""
    task, positions = part
    spec = replace(asked.spec, positions=positions)
    work = _estimator(model, task, replace(asked, spec=spec))
    ends, effects = _estimated(work, RunOptions(budget_gb=budget_gb))
    totals = np.zeros((len(task), 4))
    totals[0] = work.reach, work.forwards, work.backwards, work.batches
    return np.concatenate([totals, ends.T, effects.reshape(len(task), -1)], axis=1)


def _estimator(model: LanguageModel, task: Task, asked: Attribution) -> Estimator:
    """The estimate's layers, components and columns, checked."""
    spec = asked.spec
    chosen = within(spec.layers, model.n_layers, "layer", model.name)
    axis, parts, first = SITES.get(spec.site), None, spec.components
    if axis is not None and {axis, "head" if axis == "kv_head" else axis} & set(spec.by):
        parts = within(spec.components, model.size(axis), axis, model.name)
        first = parts[:1]
    # All layers and components are measured at the same tokens, so one of each is laid out.
    sweep = make_sweep(model, task, replace(spec, layers=chosen[:1], components=first))
    if spec.source == "other":
        refuse_equal(sweep.runs, task)
    model.refuse_changed("attribution patching", HOOKED)
    keep_freed_memory()
    return Estimator(
        runner=Runner(model.require_decoder("attribution patching")),
        sweep=sweep,
        asked=asked,
        parts=parts,
        layers=chosen,
        columns=len(sweep.coordinates.get("position", ("",))),
    )


def _scores(
    model: LanguageModel,
    task: Task,
    work: Estimator,
    effects: np.ndarray,
    clean: np.ndarray,
    corrupted: np.ndarray,
) -> Scores:
    sweep, spec = work.sweep, work.asked.spec
    coordinates = dict(sweep.coordinates) | {"layer": tuple(map(str, work.layers))}
    axis = SITES[spec.site]
    if work.parts is not None and axis is not None:
        coordinates[axis] = tuple(map(str, work.parts))
    shape = tuple(len(coordinates[axis]) for axis in sweep.axes)
    names = ("forwards", "backwards", "batches")
    passes = {name: getattr(work, name) for name in names}
    return Scores(
        effects=effects.reshape(len(task), *shape),
        clean=clean,
        corrupted=corrupted,
        axes=sweep.axes,
        coordinates=coordinates,
        site=spec.site,
        direction=spec.direction,
        method=work.asked.method,
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        positions=sweep.positions,
        provenance=provenance(model, task, _call(work)),
        unit=spec.unit,
        extra={"source": spec.source, "passes": passes, **sweep.facts(model)},
    )


def _call(work: Estimator) -> str:
    """The Python call that repeats the measurement."""
    asked, spec = work.asked, work.asked.spec
    shown: dict[str, object] = {"site": spec.site, "by": spec.by, "direction": spec.direction}
    shown |= {"layers": work.layers} if spec.layers is not None else {}
    shown |= {"components": work.parts} if spec.components is not None else {}
    if asked.name == "atp_star":
        shown |= {"qk_fix": asked.qk_fix, "grad_drop": asked.grad_drop}
    arguments = {key: repr(value) for key, value in shown.items()} | spec.source_arguments()
    arguments["positions"] = repr(spec.positions)
    spelled = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"scores = interp.{asked.name}(model, task, {spelled})"


def _refuse(model: LanguageModel, task: Task, asked: Attribution) -> None:
    model.require_decoder(asked.method)
    spec = asked.spec
    if task.metric.needs_reference and spec.direction == "noise":
        raise _flat(task, "it compares with the clean run, so its gradient there is zero")
    if spec.source != "other" and spec.site == "pattern":
        raise InterpError(
            f"{spec.source} ablation of patterns",
            "the estimate replaces queries and keys, and no queries and keys give such a pattern",
            "use another site, source='other', or activation_patching",
        )

    if spec.site == "router":
        raise InterpError(
            f"{asked.method} of a router",
            "the choice of experts jumps, which no gradient shows",
            "use activation_patching, or site='expert_out'",
        )


def _flat(task: Task, why: str) -> InterpError:
    return InterpError(
        f"the gradient of {task.metric.name}",
        why,
        "use direction='denoise', logit_diff, or activation_patching",
    )
