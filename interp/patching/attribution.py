"""Attribution patching: every component's effect to first order, from one backward pass.

With the two repairs of AtP*: the softmax of attention recomputed for queries and keys, and
gradients dropped layer by layer, so that effects that cancel on the way are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from interp.core.arguments import Columns, as_positions, listed, reads_arguments
from interp.core.components import SITES, within
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.engine.forward import Runner
from interp.engine.gradients import chunks
from interp.engine.memory import budget_bytes, keep_freed_memory, says_too_little
from interp.engine.readout import Progress
from interp.engine.stopping import Cancelled, stoppable
from interp.models.language_model import HOOKED, LanguageModel
from interp.patching.first_order import Ask, Estimator
from interp.patching.request import make_request, spelled_positions, spelled_source
from interp.results.provenance import provenance
from interp.results.scores import Scores
from interp.runs.mean_activations import batches_of, mean_values
from interp.runs.pairs import PatchDirection, check_gap, refuse_equal

STREAM = ("resid_pre", "resid_mid", "resid_post")
_NO_GRADIENT = 1e-4


@reads_arguments
@says_too_little
def attribution_patching(
    model: LanguageModel,
    task: Task,
    *,
    site: str = "z",
    by: Sequence[str] = ("layer", "head"),
    direction: PatchDirection = "denoise",
    positions: Columns = "all",
    layers: Iterable[int] | None = None,
    components: Iterable[int] | None = None,
    source: str = "other",
    reference: Task | None = None,
    budget_gb: float = 1.0,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Scores:
    """`activation_patching` with the same arguments, to first order, for all cells at once.

        effect(c) = sum over tokens of (c[clean] - c[corrupted]) . dm/dc [base] / gap

    with base the corrupted run (denoise, the default of both): the metric gained when c takes its
    clean value there; or the clean run (noise): the metric lost when c takes its corrupted value.
    The gradient is that of the base run, so that the two directions differ where the model is not
    linear. 2 forward passes and 1 backward per batch of prompts, whatever the number of cells.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        site: any site, see `interp.core.components.SITES`.
        by: axes, as in `activation_patching`.
        direction: "denoise" or "noise", as in `activation_patching`.
        positions: as in `activation_patching`.
        layers: which layers; all by default.
        components: which heads or neurons; all by default.
        source: "other", or "zero" or "mean": ablations of the base run, as in
            `activation_patching`.
        reference: the task a mean is taken over, as in `activation_patching`.
        budget_gb: memory for runs in flight. Changes the time, not the result.
        progress: called with (prompts done, prompts in all).
        cancelled: asked before every batch.

    Returns:
        Scores with axes `by`; negative and positive effects can cancel within a cell's tokens.

    Raises:
        InterpError: as `activation_patching`; also a metric without gradient at the base run (KL
            to the clean run, when noising), or one that is not differentiable.

    Equals the derivative of exact patching (tests/test_attribution.py). For the sum of a node's
    edges, see `interp.circuits.score_edges`. Blind where the model is flat at the base run, as in
    saturated
    attention: see `atp_star`. Source: arXiv 2310.10348; Nanda 2023, "Attribution patching".
    """
    ask = Ask(
        name="attribution_patching",
        site=site,
        by=tuple(listed(by)),
        source=source,
        reference=reference,
        direction=direction,
        positions=as_positions(positions),
        layers=None if layers is None else tuple(listed(layers)),
        components=None if components is None else tuple(listed(components)),
    )
    return _attribute(model, task, ask, budget_gb=budget_gb, progress=progress, cancelled=cancelled)


@reads_arguments
@says_too_little
def atp_star(
    model: LanguageModel,
    task: Task,
    *,
    site: str = "q",
    by: Sequence[str] = ("layer", "head"),
    qk_fix: bool = True,
    grad_drop: bool = True,
    direction: PatchDirection = "denoise",
    positions: Columns = "all",
    layers: Iterable[int] | None = None,
    components: Iterable[int] | None = None,
    source: str = "other",
    reference: Task | None = None,
    budget_gb: float = 1.0,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Scores:
    """Attribution patching with the softmax recomputed and gradients dropped layer by layer.

    It estimates `activation_patching` with the same arguments, by default denoising.

    QK fix, for sites q and k: attention is recomputed with the cell's queries (or keys) replaced
    and all else at the base run, and only what follows is linear:

        I(c) = sum over queries, keys of dm/dA . (A[base] - A[c replaced])  =  dm/dz . (change of z)

    which sees through saturated attention. Query and key norms and rotary embedding are applied
    anew; a key that several query heads share counts for all of them; norms over all heads
    (OLMo-2) pass a change on to the other heads. All tokens of a cell are replaced together; with
    "position" in `by`, one at a time.

    GradDrop, for every site: with I_l the estimate when the gradient through what layer l (its
    attention and its MLP) writes is set to zero, over L layers,

        effect(c) = 1/(L - 1) sum over l of |I_l(c)|,

    a magnitude per prompt, never negative. It costs L backward passes, from layer l down.

    Args:
        model: a model with a fast engine of more than one layer.
        task: prompt pairs.
        site: q or k for the QK fix, or any site of a component (not the residual stream).
        by: axes, as in `activation_patching`.
        qk_fix: recompute the softmax where site is q or k.
        grad_drop: magnitudes over dropped gradients; without it effects keep their sign.
        direction: "denoise" or "noise", as in `activation_patching`.
        positions: as in `activation_patching`.
        layers: which layers; all by default.
        components: which heads or neurons; all by default.
        source: "other", "zero" or "mean".
        reference: the task a mean is taken over, as in `activation_patching`.
        budget_gb: memory for runs in flight.
        progress: called with (prompts done, prompts in all).
        cancelled: asked before every batch.

    Returns:
        Scores with axes `by`.

    Raises:
        InterpError: as `attribution_patching`; the residual stream, or a model of one layer, with
            `grad_drop`.

    The QK fix equals attention recomputed head by head, in saturated attention too
    (tests/test_attribution.py). Source: arXiv 2403.00745, equations 7 to 11.
    """
    if grad_drop and (site in STREAM or model.n_layers < 2):
        raise InterpError(
            f"GradDrop of {site} in {model.n_layers} layers",
            "it drops what one layer of several writes, and measures components",
            "use a component's site and a deeper model, or grad_drop=False",
        )
    ask = Ask(
        name="atp_star",
        site=site,
        by=tuple(listed(by)),
        source=source,
        reference=reference,
        direction=direction,
        positions=as_positions(positions),
        layers=None if layers is None else tuple(listed(layers)),
        components=None if components is None else tuple(listed(components)),
        fix=qk_fix and site in ("q", "k"),
        drop=grad_drop,
    )
    return _attribute(model, task, ask, budget_gb=budget_gb, progress=progress, cancelled=cancelled)


def _attribute(
    model: LanguageModel,
    task: Task,
    ask: Ask,
    *,
    budget_gb: float,
    progress: Progress | None,
    cancelled: Callable[[], bool],
) -> Scores:
    _refuse(model, task, ask)
    work = _estimator(model, task, ask)
    lengths = work.request.lengths
    order = np.argsort(lengths, kind="stable")
    budget = budget_bytes(budget_gb)
    pieces = list(chunks(work.runner.decoder, lengths[order], budget, held=work.held()))
    if work.request.means_over:
        batches = batches_of(work.request.means_over)
        work.constant = mean_values(work.runner, batches, ask.site)
        work.forwards += len(batches)
    size = 1 if work.parts is None else len(work.parts)
    effects = np.zeros((len(task), len(work.layers), size, work.columns))
    ends = np.zeros((2, len(task)))
    for piece, rebuilt in pieces:
        if cancelled():
            raise Cancelled(ask.method, f"stopped after {piece.start} prompts", "rerun it")
        prompts = order[piece]
        with stoppable(cancelled):
            ends[:, prompts], effects[prompts] = work.chunk(prompts, rebuilt)
        if progress is not None:
            progress(piece.stop, len(task))
    clean, corrupted = ends if ask.direction == "noise" else ends[::-1]
    check_gap(clean, corrupted)
    if work.reach <= _NO_GRADIENT * np.abs(clean - corrupted).sum():
        raise _flat(task, "its gradient is zero at the base run")
    if ask.drop:  # a magnitude, whichever way the metric counts
        effects *= np.sign((clean - corrupted).mean())
    return _scores(model, task, work, effects, clean, corrupted, batches=len(pieces))


def _estimator(model: LanguageModel, task: Task, ask: Ask) -> Estimator:
    """The estimate's layers, components and columns, checked."""
    chosen = within(ask.layers, model.n_layers, "layer", model.name)
    unit, parts, first = SITES.get(ask.site), None, ask.components
    if unit is not None and {unit, "head" if unit == "kv_head" else unit} & set(ask.by):
        parts = within(ask.components, model.size(unit), unit, model.name)
        first = parts[:1]
    # One layer and component stand for all of them: they are measured at the same tokens.
    request = make_request(
        model,
        task,
        site=ask.site,
        by=ask.by,
        direction=ask.direction,
        positions=ask.positions,
        layers=chosen[:1],
        components=first,
        source=ask.source,
        reference=ask.reference,
    )
    refuse_equal(request.runs, task)
    model.refuse_changed("attribution patching", HOOKED)
    keep_freed_memory()
    return Estimator(
        runner=Runner(model.require_decoder("attribution patching")),
        request=request,
        ask=ask,
        parts=parts,
        layers=chosen,
        columns=len(request.coordinates.get("position", ("",))),
    )


def _scores(
    model: LanguageModel,
    task: Task,
    work: Estimator,
    effects: np.ndarray,
    clean: np.ndarray,
    corrupted: np.ndarray,
    *,
    batches: int,
) -> Scores:
    request, ask = work.request, work.ask
    coordinates = dict(request.coordinates) | {"layer": tuple(map(str, work.layers))}
    unit = SITES[ask.site]
    if work.parts is not None and unit is not None:
        coordinates[unit] = tuple(map(str, work.parts))
    shape = tuple(len(coordinates[axis]) for axis in request.axes)
    passes = {"forwards": work.forwards, "backwards": work.backwards, "batches": batches}
    return Scores(
        effects=effects.reshape(len(task), *shape),
        clean=clean,
        corrupted=corrupted,
        axes=request.axes,
        coordinates=coordinates,
        site=ask.site,
        direction=request.direction,
        method=ask.method,
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        positions=request.positions,
        provenance=provenance(model, task, _call(work)),
        extra={"source": ask.source, "passes": passes},
    )


def _call(work: Estimator) -> str:
    """The Python that repeats the measurement."""
    ask = work.ask
    shown: dict[str, object] = {
        "site": ask.site,
        "by": ask.by,
        "direction": ask.direction,
    }
    shown |= {"layers": work.layers} if ask.layers is not None else {}
    shown |= {"components": work.parts} if ask.components is not None else {}
    shown |= {"qk_fix": ask.fix, "grad_drop": ask.drop} if ask.name == "atp_star" else {}
    words = {key: repr(value) for key, value in shown.items()} | spelled_source(work.request)
    words["positions"] = spelled_positions(ask.positions)
    spelled = ", ".join(f"{key}={value}" for key, value in words.items())
    return f"scores = interp.{ask.name}(model, task, {spelled})"


def _refuse(model: LanguageModel, task: Task, ask: Ask) -> None:
    model.require_decoder(ask.method)
    if task.metric.needs_reference and ask.direction == "noise":
        raise _flat(task, "it compares with the clean run, where its gradient is zero")
    if ask.source != "other" and ask.site == "pattern":
        raise InterpError(
            f"{ask.source} ablation of patterns",
            "the estimate replaces queries and keys, which say nothing of it",
            "use another site, source='other', or activation_patching",
        )


def _flat(task: Task, why: str) -> InterpError:
    return InterpError(
        f"the gradient of {task.metric.name}",
        why,
        "use direction='denoise', logit_diff, or activation_patching",
    )
