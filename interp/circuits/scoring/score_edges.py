"""Scores of all edges at once, from gradients or from one run per edge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Unpack

import numpy as np
import torch

from interp.circuits.model_graph import graph_of
from interp.circuits.scoring.edge_scores import EdgeScores, Passes, RunningSums
from interp.circuits.scoring.exact_edges import exact_effects
from interp.circuits.scoring.gradient_estimates import (
    Chunk,
    EdgeEffects,
    EdgeEstimate,
    EstimateState,
    IntegrationPoints,
    activation_paths,
    input_path,
    rule_points,
)
from interp.circuits.scoring.information_flow import flow_shares
from interp.circuits.trials.memory import refuse_beyond, scoring_needs
from interp.circuits.trials.options import GraphKeywords, TrialOptions
from interp.circuits.trials.removed_edges import ablated_runs
from interp.core.arguments import listed, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.engine.edges.writes import edge_runner
from interp.engine.gradients import chunks, row_order
from interp.engine.layout import Indices
from interp.engine.memory import budget_bytes, keep_freed_memory, says_too_little
from interp.engine.stopping import Cancelled, stoppable
from interp.models.language_model import LanguageModel
from interp.results.provenance import provenance
from interp.runs.pairs import PairedRuns, check_gap
from interp.runs.parts import TaskPart, by_parts

FLOW = "information-flow-routes"
METHODS = ("EAP", "EAP-IG-inputs", "EAP-IG-activations", "clean-corrupted", FLOW, "exact")
RULED = ("EAP-IG-inputs", "EAP-IG-activations")
USERS = {"steps": RULED, "rule": RULED, "together": ("EAP-IG-activations",)}
"""The methods that use an option; the others refuse it."""
LONG = ("EAP-IG-activations", "exact")
_NO_GRADIENT = 1e-4
_ADVICE = "use method='EAP-IG-inputs' or 'clean-corrupted', direction='denoise', or logit_diff"
POST_NORM = (
    "head outputs are summed before a post-norm: each head's output is passed through the norm "
    "linearised at the run whose gradient is used"
)


@says_too_little
@reads_arguments
def score_edges(
    model: LanguageModel,
    task: Task,
    *,
    method: str = "EAP",
    steps: int = 5,
    rule: str = "midpoint",
    direction: str = "noise",
    neurons: Sequence[str | tuple[int, int]] = (),
    together: bool = False,
    per_prompt: bool = False,
    workers: int = 0,
    **run: Unpack[GraphKeywords],
) -> EdgeScores:
    """Estimate, for each edge u -> v, the metric's drop if v receives u's output of the other run.

    The exact effect is m(base) - m(base with u -> v carrying u's output in the other run), where
    base is the clean run ("noise"). For "denoise" base is the corrupted run and the sign is
    reversed. To first order the effect is

        s(u -> v) = sum over tokens of (a_u[clean] - a_u[corrupted]) . dm/d in_v,

    with a_u the output of u and in_v the residual stream that v reads, before its norm. Scores are
    divided by the mean clean-corrupted gap; positive scores support the behaviour. The methods
    differ in where the gradient is taken:

    - "EAP": at the base run (arXiv 2310.10348). 2 forward and 1 backward passes.
    - "clean-corrupted": the mean over both runs. 2 forward and 2 backward passes.
    - "EAP-IG-inputs": averaged over `steps` runs whose input embeddings are interpolated between
      the two runs (arXiv 2403.17806). At most 2 + steps forward and steps backward passes. The
      scores of the input's edges sum to the clean-corrupted difference up to the error of the
      integration rule, the completeness gap.
    - "EAP-IG-activations": for every writer separately, averaged over runs in which only this
      writer's output is interpolated. The scores of its edges sum to the exact effect of patching
      it. For W writers 4 + W (steps + 1) forward passes, all but 4 of them from the writer's layer
      on, and W steps backward passes. With `together` all heads of a layer are interpolated at
      once, and W is 1 + 2 n_layers.
    - "exact": one run per edge, in batches (`interp.engine.edges.run`).
    - "information-flow-routes": each writer's share of a reader's input in the clean run (arXiv
      2403.00824). Not causal; unit "share". 1 forward pass.

    These are passes per batch of prompts. Mean ablation adds one forward pass per batch of
    reference prompts, once per call.

    A head's output is z_h W_O^h; the output bias belongs to no head. There is one key and one value
    reader per key/value head, or per query head with `expand_kv`. Under a post-norm (Gemma-2 and 3,
    OLMo-2) head outputs are summed before the norm. Each is passed through the norm linearised at
    the run whose gradient is used, so the scores of a writer's edges sum to its node attribution.
    The exact effects recompute the norm.

    Args:
        model: a model with a fast engine.
        task: prompt pairs; lengths may differ between pairs.
        method: one of the above.
        steps: points of the integration path of the two EAP-IG methods.
        rule: the integration rule: "midpoint", "left", "right", "trapezoid" or "gauss"
            (Gauss-Legendre).
        direction: "noise" (base = clean) or "denoise" (base = corrupted).
        neurons: neurons that are nodes of their own, apart from the rest of their MLP, such as
            L26N6475. A neuron has its own input, and writes its activation times its output
            weights. Without a post-norm, the scores of an MLP's neurons and of its rest sum to
            those of the MLP, both out of it and into it. Not for "EAP-IG-activations" and
            "information-flow-routes".
        together: see "EAP-IG-activations".
        per_prompt: keep the scores of every prompt, for bootstraps.
        workers: processes that share the prompts, as in `interp.attribution_patching`; 0 computes
            in this one. Not for resample ablation, which draws among all prompts.
        run: ablation (what an edge carries instead: "counterfactual" is the other run, "resample"
            the run of another clean prompt, which replaces the corrupted one, also in the gap; not
            for "information-flow-routes"),
            reference, expand_kv, seed, budget_gb (also for autograd graphs and products; one prompt
            must fit), progress (called with prompts done, and in total) and cancelled; see
            `TrialOptions`.

    Returns:
        EdgeScores, as fractions of the clean-corrupted gap, positive for edges that support the
        behaviour.

    Raises:
        InterpError: no fast engine, training mode, unknown method, ablation or rule, an option that
            the method does not use (other than its default), pairs of equal prompts, a graph that
            does not fit the budget, a mean without reference prompts or over evaluated ones, a gap
            below its standard error (the two slow methods check it first, with two passes), a
            metric whose gradient is zero (KL at the clean run) or that is not differentiable, or a
            call inside `intervene`.

    Departs from hannamw/EAP-IG: sums within a prompt and means over prompts, so the batch size does
    not matter; midpoint rule; EAP-IG-activations integrates every writer separately and does not
    average over unrelated interpolations; means are over all tokens; post-norms are handled; EAP
    takes 2 forward passes, not 3. Equals finite differences and, for a linear model, exact effects
    (tests/circuits/test_score_edges.py).
    """
    nodes = tuple(listed(neurons))
    options = TrialOptions(direction=direction, neurons=nodes, workers=workers, **run)
    spec = _EdgeSpec(
        method=method,
        steps=steps,
        rule=rule,
        points=rule_points(rule, steps) if method in RULED else (),
        together=together,
        per_prompt=per_prompt,
        options=options,
    )
    _refuse(model, task, spec)
    work, runs = _prepare(model, task, spec)
    with stoppable(options.cancelled):
        _refuse_large(work, runs, spec)
        pieces = list(_chunks(work, runs, spec))
        if method in LONG:  # two more passes, so that no hours are spent without a gap
            check_gap(*np.concatenate([work.ends(chunk) for _, chunk in pieces], axis=1))
        made = _shared(model, task, work, spec) if workers else _effects(work, pieces, spec)
        sums, ends, unexplained, order = _summed(work, made, spec, len(task))
    clean, corrupted = ends if work.noise else ends[::-1]
    if not spec.share:
        check_gap(clean, corrupted)
        _check_reach(work, task, method, clean - corrupted)
    return EdgeScores(
        graph=work.graph,
        per_prompt=np.concatenate(sums.kept)[np.argsort(order)] if per_prompt else None,
        clean=clean,
        corrupted=corrupted,
        method=method,
        direction=direction,
        ablation="none" if spec.share else options.ablation,
        steps=len(spec.points) or 1,
        rule=rule if spec.points else "",
        completeness_gap=_completeness(unexplained, clean - corrupted, method),
        passes=Passes(
            forwards=work.forwards,
            backwards=work.backwards,
            batches=work.batches,
            rebuilt=work.rebuilt,
        ),
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        unit="share" if spec.share else "gap",
        provenance=provenance(model, task, spec.call()),
        notes=_notes(work, spec),
        **sums.result(),
    )


@dataclass(frozen=True, kw_only=True)
class _EdgeSpec:
    """The method and its options, with the points and weights of the integration rule."""

    method: str
    steps: int
    rule: str
    points: IntegrationPoints
    together: bool
    per_prompt: bool
    options: TrialOptions

    @property
    def share(self) -> bool:
        """Whether scores are shares of a reader's input, not effects."""
        return self.method == FLOW

    def call(self) -> str:
        """The Python call that repeats the measurement."""
        given = vars(self) | vars(self.options)
        names = ["method", *(name for name in USERS if self.method in USERS[name]), "direction"]
        names += ["ablation"] * (not self.share) + ["expand_kv"]
        names += ["neurons"] * bool(given["neurons"])
        names += ["seed"] * (given["ablation"] == "resample")
        spelled = [f"{name}={given[name]!r}" for name in names]
        if self.options.reference is not None:
            spelled.append(f"reference={self.options.reference.source or 'own_reference'}")
        return f"scores = interp.circuits.score_edges(model, task, {', '.join(spelled)})"


def _refuse(model: LanguageModel, task: Task, spec: _EdgeSpec) -> None:
    """Check the arguments before anything runs."""
    ablation, direction = spec.options.ablation, spec.options.direction
    if spec.method not in METHODS:
        raise unknown("edge scoring method", spec.method, METHODS)
    for name, methods in USERS.items():
        value = getattr(spec, name)
        if spec.method not in methods and value != signature(score_edges).parameters[name].default:
            do = f"leave it out, or use {' or '.join(methods)}"
            raise InterpError(f"{name}={value!r} with {spec.method}", "it is not used", do)
    if spec.share and ablation != "counterfactual":
        raise InterpError(
            f"{ablation} ablation with {spec.method}",
            "it is not used: no edge is removed",
            "leave ablation out, or use another method",
        )
    if spec.options.neurons and spec.method in ("EAP-IG-activations", FLOW):
        raise InterpError(
            f"{spec.method} with neurons as nodes",
            "it scores whole MLPs only",
            "use EAP, EAP-IG-inputs, clean-corrupted or exact",
        )
    model.require_decoder("scoring edges")
    if ablation != "counterfactual" and (
        direction == "denoise" or spec.method == "clean-corrupted"
    ):
        raise InterpError(
            f"{ablation} ablation with {spec.method}, {direction}",
            "this ablation removes values from the clean run and gives no second run to start from",
            "use direction='noise' and another method, or ablation='counterfactual'",
        )
    if spec.share and direction != "noise":
        raise InterpError(
            f"{spec.method}, {direction}",
            "it uses the clean run only",
            "use direction='noise'",
        )
    if task.metric.needs_reference and spec.method == "EAP" and direction == "noise":
        raise InterpError(
            f"{spec.method} of {task.metric.name}",
            "it compares with the clean run, so its gradient there is zero",
            _ADVICE,
        )


def _prepare(model: LanguageModel, task: Task, spec: _EdgeSpec) -> tuple[EstimateState, PairedRuns]:
    """What all chunks share, and the runs of the task."""
    options = spec.options
    decoder = model.require_decoder("scoring edges")
    budget = budget_bytes(options.budget_gb)
    model.refuse_changed("scoring edges")
    keep_freed_memory()
    graph = graph_of(model, expand_kv=options.expand_kv, neurons=options.neurons)
    runner = edge_runner(decoder, graph)
    ablated = ablated_runs(model, task, options)
    work = EstimateState(
        runner=runner,
        graph=graph,
        metric=task.metric,
        noise=options.direction == "noise",
        replacement=ablated.writes(runner),
        budget=budget,
        forwards=len(ablated.batches),
    )
    return work, ablated.runs


EffectsMade = Iterator[tuple[Indices, EdgeEffects]]
"""Numbers of some prompts, and the effects on each of them."""


def _effects(
    work: EstimateState, pieces: Sequence[tuple[Indices, Chunk]], spec: _EdgeSpec
) -> EffectsMade:
    """The effects on every chunk."""
    estimate, options, done = _estimate(spec), spec.options, 0
    total = sum(len(prompts) for prompts, _ in pieces)
    for prompts, chunk in pieces:
        if options.cancelled():
            raise Cancelled("scoring edges", f"stopped after {done} prompts", "rerun it")
        done += len(prompts)
        work.batches += 1
        yield prompts, estimate(work, chunk)
        if options.progress is not None:
            options.progress(done, total)


def _shared(model: LanguageModel, task: Task, work: EstimateState, spec: _EdgeSpec) -> EffectsMade:
    """The effects on every part, by several processes."""
    allowed, begin = work.graph.allowed, 0
    part = partial(_part, spec=replace(spec, options=spec.options.quiet))
    for found in by_parts(part, model, task, workers=spec.options.workers, options=spec.options):
        gained = np.zeros((len(found), *allowed.shape))
        totals, ends, unexplained, gained[:, allowed] = np.split(
            found, [len(COUNTED), len(COUNTED) + 2, found.shape[1] - int(allowed.sum())], axis=1
        )
        for name, count in zip(COUNTED, totals[0].tolist(), strict=True):
            setattr(work, name, getattr(work, name) + type(getattr(work, name))(count))
        base, other, paths, gains = map(torch.from_numpy, (*ends.T, unexplained, gained))
        effects = EdgeEffects(
            gained=gains,
            base=base,
            other=other,
            unexplained=paths if paths.shape[1] else None,
        )
        yield np.arange(begin, begin + len(found)), effects
        begin += len(found)


COUNTED = ("forwards", "backwards", "rebuilt", "batches", "reach")
"""What a part counts: attributes of `EstimateState`."""


def _part(model: LanguageModel, part: TaskPart, *, spec: _EdgeSpec) -> np.ndarray:
    """(prompts, numbers) of a part.

    What it counts (in the first row), both runs' metric, what is unexplained, the effects of edges.
    """
    task, _ = part
    work, runs = _prepare(model, task, spec)
    rows: dict[int, np.ndarray] = {}
    for prompts, found in _effects(work, list(_chunks(work, runs, spec)), spec):
        paths = np.zeros((len(prompts), 0)) if found.unexplained is None else found.unexplained
        gained = found.gained.numpy()[:, work.graph.allowed]
        columns = [found.base[:, None], found.other[:, None], paths, gained]
        rows |= zip(prompts.tolist(), np.concatenate(columns, axis=1), strict=True)
    totals = np.zeros((len(task), len(COUNTED)))
    totals[0] = [getattr(work, name) for name in COUNTED]
    return np.concatenate([totals, [rows[row] for row in range(len(task))]], axis=1)


def _summed(
    work: EstimateState, made: EffectsMade, spec: _EdgeSpec, n: int
) -> tuple[RunningSums, np.ndarray, list[np.ndarray], Indices]:
    """Sums over prompts, both runs' metric, what is unexplained, and the order of the prompts."""
    sums = RunningSums(shape=work.graph.shape, keep=spec.per_prompt)
    ends, unexplained, order = np.zeros((2, n)), [], []
    for prompts, found in made:
        order.append(prompts)
        ends[:, prompts] = found.base.numpy(), found.other.numpy()
        gaps = work.sign * (found.base - found.other).numpy()
        sums.add(found.gained.numpy(), np.ones_like(gaps) if spec.share else gaps)
        if found.unexplained is not None:
            unexplained.append(found.unexplained.numpy())
    return sums, ends, unexplained, np.concatenate(order)


def _estimate(spec: _EdgeSpec) -> EdgeEstimate:
    """The method as a function of a chunk."""
    found: dict[str, EdgeEstimate] = {
        "EAP": partial(input_path, points=((0.0, 1.0),)),
        "clean-corrupted": partial(input_path, points=((0.0, 0.5), (1.0, 0.5))),
        "EAP-IG-inputs": partial(input_path, points=spec.points),
        "EAP-IG-activations": partial(activation_paths, points=spec.points, together=spec.together),
        FLOW: flow_shares,
        "exact": exact_effects,
    }
    return found[spec.method]


def _chunks(
    work: EstimateState, runs: PairedRuns, spec: _EdgeSpec
) -> Iterator[tuple[Indices, Chunk]]:
    """The pairs, shortest first, in chunks that fit the budget, with their numbers."""
    order = row_order(runs.base)
    points = max(len(spec.points), 1 + (spec.method == "clean-corrupted"))
    decoder, held = work.runner.decoder, _held(work, points)
    lengths = np.array([len(runs.base[i]) for i in order])
    # A few float64 (writers, readers) matrices per prompt must fit a quarter of the budget.
    most = max(1, work.budget // (128 * work.graph.allowed.size))
    for part, rebuilt in chunks(decoder, lengths, work.budget, held=held):
        for begin in range(part.start, part.stop, most):
            some = slice(begin, min(begin + most, part.stop))
            chosen = order[some]
            yield (
                chosen,
                Chunk(
                    base=[runs.base[i] for i in chosen],
                    other=[runs.other[i] for i in chosen],
                    differ=np.minimum(runs.differ[chosen], lengths[some] - 1),
                    targets=runs.targets.select(torch.from_numpy(chosen)),
                    rebuilt=rebuilt,
                ),
            )


def _held(work: EstimateState, points: int) -> int:
    """Bytes per token besides the autograd graph: both runs' outputs, and all points' gradients."""
    decoder = work.runner.decoder
    attn, d = decoder.blocks[0].attn, decoder.d_model
    heads, kv = attn.n_heads * attn.d_head, attn.n_kv_heads * attn.d_head
    width = 6 * d + 3 * heads + points * (2 * d + heads + 2 * kv)
    width += 2 * decoder.d_mlp if work.graph.neurons else 0
    return len(decoder.blocks) * width * decoder.unembed.element_size()


def _refuse_large(work: EstimateState, runs: PairedRuns, spec: _EdgeSpec) -> None:
    """Refuse a graph if one prompt alone exceeds the budget."""
    longest = max(map(len, runs.base))
    needs = scoring_needs(work.runner.decoder, work.graph, longest, _held(work, 1))
    if spec.method == "exact":  # no gradients, and `run_edges` keeps to its own budget
        needs = dict([next(iter(needs.items()))])
    refuse_beyond(f"{spec.method} of {work.graph.n_edges} edges", needs, work.budget)


def _completeness(unexplained: list[np.ndarray], gaps: np.ndarray, method: str) -> float:
    """The error of the estimate along the input's path, or along the worst of several paths."""
    if not unexplained:
        return math.nan
    each = np.concatenate(unexplained).mean(0) / gaps.mean()
    return float(each[0]) if method != "EAP-IG-activations" else float(np.abs(each).max())


def _notes(work: EstimateState, spec: _EdgeSpec) -> tuple[str, ...]:
    """What was drawn or averaged, and how a post-norm was treated."""
    notes, options = [], spec.options
    if options.ablation == "resample":
        notes.append(f"other prompts drawn with seed {options.seed}")
    if options.reference is not None:
        notes.append(f"means over the tokens of {options.reference.name}")
    post = any(block.ln1_post is not None for block in work.runner.decoder.blocks)
    if post and spec.method != "exact" and not spec.share:
        notes.append(POST_NORM)
    return tuple(notes)


def _check_reach(work: EstimateState, task: Task, method: str, gaps: np.ndarray) -> None:
    if work.backwards and work.reach <= _NO_GRADIENT * np.abs(gaps).sum():
        raise InterpError(
            f"{method} of {task.metric.name}",
            "its gradient is zero at every point of the path",
            _ADVICE,
        )
