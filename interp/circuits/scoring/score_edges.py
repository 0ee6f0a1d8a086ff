"""Scores of all edges at once: gradients in place of one run per edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from interp.circuits.model_graph import graph_of
from interp.circuits.scoring.edge_scores import EdgeScores, Passes, Tally
from interp.circuits.scoring.exact_edges import exact_effects
from interp.circuits.scoring.gradient_estimates import (
    Alphas,
    Chunk,
    EdgeEstimate,
    Work,
    activation_paths,
    input_path,
    rule_points,
)
from interp.circuits.scoring.information_flow import flow_shares
from interp.circuits.trials.memory import refuse_beyond, scoring_needs
from interp.circuits.trials.removed_edges import ABLATIONS, ablated_runs
from interp.core.arguments import listed
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.engine.edges.writes import edge_runner
from interp.engine.gradients import chunks
from interp.engine.memory import budget_bytes, keep_freed_memory, says_too_little
from interp.engine.readout import Progress
from interp.engine.stopping import Cancelled, stoppable
from interp.models.language_model import LanguageModel
from interp.results.provenance import provenance
from interp.runs.pairs import PairedRuns, check_gap

METHODS = (
    "EAP",
    "EAP-IG-inputs",
    "EAP-IG-activations",
    "clean-corrupted",
    "information-flow-routes",
    "exact",
)
RULED = ("EAP-IG-inputs", "EAP-IG-activations")
LONG = ("EAP-IG-activations", "exact")
_NO_GRADIENT = 1e-4
_ADVICE = "use method='EAP-IG-inputs' or 'clean-corrupted', direction='denoise', or logit_diff"
POST_NORM = (
    "heads add up before a post-norm: each head's write is taken through the norm's "
    "linearisation at the run whose gradient is used"
)


@says_too_little
def score_edges(
    model: LanguageModel,
    task: Task,
    *,
    method: str = "EAP",
    steps: int = 5,
    rule: str = "midpoint",
    direction: str = "noise",
    ablation: str = "counterfactual",
    reference: Task | None = None,
    expand_kv: bool = False,
    neurons: Sequence[str | tuple[int, int]] = (),
    together: bool = False,
    per_prompt: bool = False,
    seed: int = 0,
    budget_gb: float = 1.0,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> EdgeScores:
    """An estimate, for every edge u -> v, of what replacing what u tells v takes from the metric.

    The exact number is m(base) - m(base with u -> v carrying u's value in the other run), base
    being the clean run (noise); with the sign turned and base the corrupted run for denoise. To
    first order it is

        s(u -> v) = sum over tokens of (a_u[clean] - a_u[corrupted]) . dm/d in_v,

    a_u being u's write and in_v the residual stream as v reads it, before its norm. The methods
    differ in where the gradient is taken:

    - "EAP": at the base run (arXiv 2310.10348). 2 forward passes, 1 backward per batch.
    - "clean-corrupted": the mean of both runs. 2 forward, 2 backward.
    - "EAP-IG-inputs": averaged over `steps` runs whose input embeddings lie between the two
      (arXiv 2403.17806). At most 2 + steps forward, steps backward. The input's edges then add up
      to the clean-corrupted difference, but for the rule's error: the completeness gap.
    - "EAP-IG-activations": for every writer on its own, averaged over runs in which that writer
      alone lies between. Its edges add up to the exact effect of patching it. This takes more
      passes than the other: for W writers 4 + W (steps + 1) forward, all but 4 from the writer's
      layer on, and W steps backward; with `together` a layer's heads lie between at once, and W is
      1 + 2 n_layers.
    - "exact": one run per edge, in batches (`interp.engine.edges.run`).
    - "information-flow-routes": shares of a reader's input (arXiv 2403.00824), clean run only;
      not causal, unit "share". 1 forward.

    These are passes per batch under every ablation. A mean takes one forward pass more for every
    batch of reference prompts, once a call.

    Heads write z_h W_O^h; the output bias belongs to none. Keys and values have one reader per
    key/value head, or per query head with `expand_kv`. Under a post-norm (Gemma-2 and 3, OLMo-2)
    heads add up before the norm: a head's write is taken through the norm's linearisation at the
    run whose gradient is used, so that a writer's edges add up to its node's attribution. (The
    exact effects recompute the norm.)

    Args:
        model: a model with a fast engine.
        task: prompt pairs; lengths may differ between pairs.
        method: one of the above.
        steps: points of the path for the two EAP-IG methods.
        rule: "midpoint", "left", "right", "trapezoid" or "gauss" (Gauss-Legendre).
        direction: "noise" (base = clean) or "denoise" (base = corrupted).
        ablation: what an edge carries instead: "counterfactual" (the other run), "resample"
            (the run of another clean prompt, which then stands for the corrupted one: the gap is
            that between the two), "zero", or "mean". See `interp.circuits.trials.removed_edges`.
        reference: the prompts whose tokens the mean is over, none of them evaluated.
        expand_kv: key and value readers per query head.
        neurons: those that are nodes of their own beside the rest of their MLP, such as L26N6475.
            A neuron writes its activation times its output weights and reads for itself; without
            a post-norm, scores of the neurons of an MLP and of its rest add up to the MLP's, both
            out of it and into it. Not for "EAP-IG-activations" and "information-flow-routes".
        together: see EAP-IG-activations.
        per_prompt: keep every prompt's scores, for bootstraps.
        seed: which other prompt resample ablation takes.
        budget_gb: memory for runs in flight, graphs and products. Changes time, not the result;
            one prompt must fit.
        progress: called with (prompts done, prompts in all).
        cancelled: asked before every batch.

    Returns:
        EdgeScores, as fractions of the clean-corrupted gap, positive = supports the behaviour.

    Raises:
        InterpError: no fast engine, training mode, unknown method, ablation or rule, pairs of equal
            prompts, a graph beyond the budget, a mean over no or evaluated prompts, a gap below its
            standard error (for the two methods of many passes found by two passes first), a metric
            without gradient where it is taken (KL at the clean run) or not differentiable, a call
            inside `intervene`.

    Departs from hannamw/EAP-IG: sums within a prompt, means over prompts (no dependence on batch
    size); midpoint rule; EAP-IG-activations integrates each writer on its own rather than
    averaging over unrelated interpolations; means are over all tokens; post-norms are respected;
    2 forward passes for EAP rather than 3. Equals finite differences and, where the model is
    linear, exact effects (tests/test_edge_scores.py).
    """
    ask = _Ask(
        method=method,
        steps=steps,
        rule=rule,
        direction=direction,
        ablation=ablation,
        expand_kv=expand_kv,
        neurons=tuple(listed(neurons)),
        together=together,
        per_prompt=per_prompt,
        points=rule_points(rule, steps) if method in RULED else (),
    )
    _refuse(model, task, ask, budget_gb)
    work, runs, over = _prepare(model, task, ask, reference, seed, budget_gb)
    estimate = _estimate(ask, cancelled)
    with stoppable(cancelled):
        tally, ends, unexplained, batches = _measure(work, runs, ask, estimate, progress, cancelled)
    clean, corrupted = ends if work.noise else ends[::-1]
    if not ask.share:
        check_gap(clean, corrupted)
        _check_reach(work, task, method, clean - corrupted)
    return EdgeScores(
        graph=work.graph,
        per_prompt=np.concatenate(tally.kept)[_back(runs)] if per_prompt else None,
        clean=clean,
        corrupted=corrupted,
        method=method,
        direction=direction,
        ablation="none" if ask.share else ablation,
        steps=len(ask.points) or 1,
        rule=rule if ask.points else "",
        completeness_gap=_completeness(unexplained, clean - corrupted, method),
        passes=Passes(
            forwards=work.forwards,
            backwards=work.backwards,
            batches=batches,
            rebuilt=work.rebuilt,
        ),
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        unit="share" if ask.share else "gap",
        provenance=provenance(model, task, ask.call(reference, seed)),
        notes=(*over, *_notes(work, method)),
        **tally.result(),
    )


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """What is estimated, and how."""

    method: str
    steps: int
    rule: str
    direction: str
    ablation: str
    expand_kv: bool
    neurons: tuple[str | tuple[int, int], ...]
    together: bool
    per_prompt: bool
    points: Alphas

    @property
    def share(self) -> bool:
        """Whether inputs are divided up rather than effects measured."""
        return self.method == "information-flow-routes"

    def call(self, reference: Task | None, seed: int) -> str:
        """The Python that repeats the measurement."""
        names = ("method", "steps", "rule", "direction", "ablation", "expand_kv", "together")
        spelled = [f"{name}={getattr(self, name)!r}" for name in names]
        if self.neurons:
            spelled.append(f"neurons={self.neurons!r}")
        if self.ablation == "resample":
            spelled.append(f"seed={seed}")
        if reference is not None:
            spelled.append(f"reference={reference.source or 'own_reference'}")
        return f"scores = interp.circuits.score_edges(model, task, {', '.join(spelled)})"


def _refuse(model: LanguageModel, task: Task, ask: _Ask, budget_gb: float) -> None:
    """Check the arguments before anything runs."""
    if ask.method not in METHODS:
        raise unknown("edge scoring method", ask.method, METHODS)
    if ask.neurons and ask.method in ("EAP-IG-activations", "information-flow-routes"):
        raise InterpError(
            f"{ask.method} with neurons as nodes",
            "it takes whole MLPs",
            "use EAP, EAP-IG-inputs, clean-corrupted or exact",
        )
    if ask.ablation not in ABLATIONS:
        raise unknown("ablation", ask.ablation, ABLATIONS)
    model.require_decoder("scoring edges")
    if ask.ablation != "counterfactual" and (
        ask.direction == "denoise" or ask.method == "clean-corrupted"
    ):
        raise InterpError(
            f"{ask.ablation} ablation with {ask.method}, {ask.direction}",
            "it takes something away from the clean run; there is no second run to start from",
            "use direction='noise' and another method, or ablation='counterfactual'",
        )
    if ask.share and ask.direction != "noise":
        raise InterpError(
            f"{ask.method}, {ask.direction}", "it looks at the clean run", "use direction='noise'"
        )
    budget_bytes(budget_gb)
    if task.metric.needs_reference and ask.method == "EAP" and ask.direction == "noise":
        raise InterpError(
            f"{ask.method} of {task.metric.name}",
            "it compares with the clean run, where its gradient is zero",
            _ADVICE,
        )


def _prepare(
    model: LanguageModel,
    task: Task,
    ask: _Ask,
    reference: Task | None,
    seed: int,
    budget_gb: float,
) -> tuple[Work, PairedRuns, tuple[str, ...]]:
    """The runs of the task, what removed edges carry, and that in words."""
    decoder = model.require_decoder("scoring edges")
    model.refuse_changed("scoring edges")
    keep_freed_memory()
    graph = graph_of(model, expand_kv=ask.expand_kv, neurons=ask.neurons)
    runner = edge_runner(decoder, graph)
    ablated = ablated_runs(
        model,
        task,
        ablation="counterfactual" if ask.share else ask.ablation,
        direction=ask.direction,
        reference=None if ask.share else reference,
        seed=seed,
    )
    work = Work(
        runner=runner,
        graph=graph,
        metric=task.metric,
        noise=ask.direction == "noise",
        replacement=ablated.writes(runner),
        budget=budget_bytes(budget_gb),
        forwards=len(ablated.batches),
    )
    over = {"resample": f"other prompts drawn with seed {seed}"}
    if reference is not None:
        over["mean"] = f"means over the tokens of {reference.name}"
    words = "" if ask.share else over.get(ask.ablation, "")
    return work, ablated.runs, (words,) if words else ()


def _measure(
    work: Work,
    runs: PairedRuns,
    ask: _Ask,
    estimate: EdgeEstimate,
    progress: Progress | None,
    cancelled: Callable[[], bool],
) -> tuple[Tally, np.ndarray, list[np.ndarray], int]:
    """Sums over prompts, the metrics of both runs, what is unexplained, and number of batches."""
    order, done = _order(runs), 0
    points = max(len(ask.points), 1 + (ask.method == "clean-corrupted"))
    _refuse_large(work, runs, ask)
    pieces = list(_chunks(work, runs, order, points))
    tally = Tally(shape=work.graph.shape, keep=ask.per_prompt)
    ends, unexplained = np.zeros((2, len(order))), []
    if ask.method in LONG:  # two passes more, and no effect of nothing is computed for hours
        check_gap(*np.concatenate([work.ends(chunk) for chunk in pieces], axis=1))
    for chunk in pieces:
        if cancelled():
            raise Cancelled("scoring edges", f"stopped after {done} prompts", "rerun it")
        chosen, done = order[done : done + len(chunk.base)], done + len(chunk.base)
        found = estimate(work, chunk)
        ends[:, chosen] = found.base.numpy(), found.other.numpy()
        gaps = work.sign * (found.base - found.other).numpy()
        tally.add(found.gained.numpy(), np.ones_like(gaps) if ask.share else gaps)
        if found.unexplained is not None:
            unexplained.append(found.unexplained.numpy())
        if progress is not None:
            progress(done, len(order))
    return tally, ends, unexplained, len(pieces)


def _order(runs: PairedRuns) -> np.ndarray:
    """Prompt numbers, shortest first."""
    return np.argsort([len(prompt) for prompt in runs.base], kind="stable")


def _back(runs: PairedRuns) -> np.ndarray:
    """Where each prompt is in that order."""
    return np.argsort(_order(runs))


def _estimate(ask: _Ask, cancelled: Callable[[], bool]) -> EdgeEstimate:
    """The method as a function of a chunk."""

    def stop() -> None:
        if cancelled():
            raise Cancelled("scoring edges", "stopped in between", "rerun it")

    found: dict[str, EdgeEstimate] = {
        "EAP": partial(input_path, points=((0.0, 1.0),)),
        "clean-corrupted": partial(input_path, points=((0.0, 0.5), (1.0, 0.5))),
        "EAP-IG-inputs": partial(input_path, points=ask.points),
        "EAP-IG-activations": partial(activation_paths, points=ask.points, together=ask.together),
        "information-flow-routes": flow_shares,
        "exact": partial(exact_effects, stop=stop),
    }
    return found[ask.method]


def _chunks(work: Work, runs: PairedRuns, order: np.ndarray, points: int) -> Iterator[Chunk]:
    """The pairs, shortest first, in chunks whose runs fit the budget."""
    decoder, held = work.runner.decoder, _held(work, points)
    lengths = np.array([len(runs.base[i]) for i in order])
    # A few float64 matrices of writers and readers per prompt, in a quarter of the budget.
    most = max(1, work.budget // (128 * work.graph.allowed.size))
    for part, rebuilt in chunks(decoder, lengths, work.budget, held=held):
        for begin in range(part.start, part.stop, most):
            some = slice(begin, min(begin + most, part.stop))
            chosen = order[some]
            yield Chunk(
                base=[runs.base[i] for i in chosen],
                other=[runs.other[i] for i in chosen],
                differ=np.minimum(runs.differ[chosen], lengths[some] - 1),
                targets=runs.targets.select(torch.from_numpy(chosen)),
                rebuilt=rebuilt,
            )


def _held(work: Work, points: int) -> int:
    """Bytes a token takes besides a graph: both runs' writes and the gradients of all points."""
    decoder = work.runner.decoder
    attn, d = decoder.blocks[0].attn, decoder.d_model
    heads, kv = attn.n_heads * attn.d_head, attn.n_kv_heads * attn.d_head
    width = 6 * d + 3 * heads + points * (2 * d + heads + 2 * kv)
    width += 2 * decoder.d_mlp if work.graph.neurons else 0
    return len(decoder.blocks) * width * decoder.unembed.element_size()


def _refuse_large(work: Work, runs: PairedRuns, ask: _Ask) -> None:
    """Refuse a graph of which not one prompt fits the budget."""
    longest = max(map(len, runs.base))
    needs = scoring_needs(work.runner.decoder, work.graph, longest, _held(work, 1))
    if ask.method == "exact":  # no gradients, and `run_edges` looks after its own
        needs = dict([next(iter(needs.items()))])
    refuse_beyond(f"{ask.method} of {work.graph.n_edges} edges", needs, work.budget)


def _completeness(unexplained: list[np.ndarray], gaps: np.ndarray, method: str) -> float:
    """What the estimate leaves unexplained: of the input's path, or the worst path of several."""
    if not unexplained:
        return math.nan
    each = np.concatenate(unexplained).mean(0) / gaps.mean()
    return float(each[0]) if method != "EAP-IG-activations" else float(np.abs(each).max())


def _notes(work: Work, method: str) -> tuple[str, ...]:
    post = any(block.ln1_post is not None for block in work.runner.decoder.blocks)
    linear = method not in ("exact", "information-flow-routes")
    return (POST_NORM,) if post and linear else ()


def _check_reach(work: Work, task: Task, method: str, gaps: np.ndarray) -> None:
    if work.backwards and work.reach <= _NO_GRADIENT * np.abs(gaps).sum():
        raise InterpError(
            f"{method} of {task.metric.name}",
            "its gradient is zero wherever it is taken",
            _ADVICE,
        )
