"""Effects of edges on every prompt, from gradients along a path between the two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError, unknown
from interp.core.metrics import Metric, Targets
from interp.engine.edges.graph import Graph
from interp.engine.edges.products import Point, Products, WriterOutputs, point
from interp.engine.edges.writes import Writes
from interp.engine.forward import Runner
from interp.engine.gradients import (
    NEURON_READS,
    READS,
    TAPE_SHARE,
    Run,
    forward,
    metric_gradient,
    metric_of,
    rows_of,
)
from interp.engine.layout import Indices, Layout
from interp.engine.readout import LogitsOf

IntegrationPoints = tuple[tuple[float, float], ...]
"""(position between base = 0 and other = 1, weight) of each point of an integration rule."""

RULES = ("midpoint", "left", "right", "trapezoid", "gauss")
WRITTEN = frozenset({"z", "mlp_out"})


def rule_points(rule: str, steps: int) -> IntegrationPoints:
    """The points and weights of an integration rule on [0, 1].

    Raises:
        InterpError: an unknown rule, or too few points for it.
    """
    if rule not in RULES:
        raise unknown("integration rule", rule, RULES)
    if steps < (2 if rule == "trapezoid" else 1):
        raise InterpError(
            f"the {rule} rule with {steps} points", "too few", "use more steps (5 is usual)"
        )
    even = np.full(steps, 1 / steps)
    if rule == "trapezoid":
        even = np.full(steps, 1 / (steps - 1))
        even[[0, -1]] /= 2
        points = np.linspace(0, 1, steps)
    elif rule == "gauss":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        points, even = (nodes + 1) / 2, weights / 2
    else:
        points = (np.arange(steps) + {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]) / steps
    return tuple(zip(points.tolist(), even.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some pairs, shortest first.

    Attributes:
        base: tokens of the base run.
        other: tokens of the other run.
        differ: the first token at which the two differ.
        targets: the targets of the metric.
        rebuilt: whether not even one pair's autograd graph fits the budget, so that layers are
            recomputed during the backward pass.
    """

    base: list[tuple[int, ...]]
    other: list[tuple[int, ...]]
    differ: Indices
    targets: Targets
    rebuilt: bool


@dataclass(frozen=True, kw_only=True)
class EdgeEffects:
    """The effects of all edges on each prompt of a chunk.

    Attributes:
        gained: (prompts, writers, readers) metric gained.
        base: (prompts,) metric of the base run.
        other: (prompts,) metric of the other run.
        unexplained: (prompts, paths) the sum of a path's effects minus the exact effect.
    """

    gained: Tensor
    base: Tensor
    other: Tensor
    unexplained: Tensor | None = None


@dataclass(kw_only=True)
class EstimateState:
    """What all chunks of a call share, and the passes made so far.

    Attributes:
        runner: the model.
        graph: the graph.
        metric: the task's metric.
        noise: whether the base run is the clean one.
        replacement: every writer's output at one token in zero and mean ablation; else None.
        budget: the memory budget in bytes.
        forwards: forward passes made.
        backwards: backward passes made.
        rebuilt: passes whose layers were recomputed.
        batches: batches of prompts.
        reach: first-order bound on how far the metric can move, summed over points and prompts.
    """

    runner: Runner
    graph: Graph
    metric: Metric
    noise: bool
    replacement: Writes | None
    budget: int
    forwards: int = 0
    backwards: int = 0
    rebuilt: int = 0
    batches: int = 0
    reach: float = 0.0

    @property
    def constant(self) -> bool:
        """Whether removed edges carry a constant, not the other run."""
        return self.replacement is not None

    @property
    def sign(self) -> int:
        """The sign of the metric gained: base minus other when noising, other minus base else."""
        return 1 if self.noise else -1

    def run(
        self,
        x: Tensor,
        layout: Layout,
        chunk: Chunk,
        *,
        first: int = 0,
        heads: Tensor | None = None,
        kept: frozenset[str] = frozenset(),
        grad: bool = False,
    ) -> Run:
        """Run the rows of a chunk forward, and count the pass."""
        self.forwards += 1
        post = any(block.ln1_post is not None for block in self.runner.decoder.blocks)
        wanted = frozenset(READS)
        if self.graph.neurons:
            wanted |= frozenset(NEURON_READS)
            kept |= {"resid_mid", "mlp_raw"} | ({"post"} if kept >= WRITTEN else frozenset())
        return forward(
            self.runner,
            x,
            layout,
            first=first,
            heads=heads,
            kept=kept | {"attn_raw"} if post else kept,
            wanted=wanted,
            grad=grad,
            recompute=chunk.rebuilt,
        )

    def point(self, run: Run, chunk: Chunk, weight: float, moved: Tensor) -> Point:
        """Take the gradient of a run, and count the pass.

        `moved` is the change of the final residual stream, which bounds that of the metric.
        """
        _, final = metric_gradient(self.runner, run, self.metric, chunk.targets)
        self.backwards += 1
        self.rebuilt += run.recompute
        at = run.layout.ends.to(self.runner.device)
        self.reach += float((final[at].norm(dim=-1) * moved[at].norm(dim=-1)).double().sum())
        return point(self.runner, run, final, weight, self.graph)

    def ends(self, chunk: Chunk) -> np.ndarray:
        """(2, prompts) metric of both runs."""
        rows = (rows_of(self.runner, prompts) for prompts in (chunk.base, chunk.other))
        return np.stack([self.value(self.run(x, at, chunk), chunk).numpy() for at, x in rows])

    def value(self, run: Run, chunk: Chunk) -> Tensor:
        """The metric of each row."""
        return metric_of(self.runner, run, self.metric, chunk.targets)

    def read(self, final: Tensor, chunk: Chunk) -> Tensor:
        """The metric of each pair, given its final residual at the tokens that are read."""
        hidden = self.runner.decoder.ln_final(final)
        with torch.no_grad():
            return self.metric(LogitsOf(decoder=self.runner.decoder, hidden=hidden), chunk.targets)

    def change(self, base: Run, other: Run) -> WriterOutputs:
        """The change of every writer's output: clean minus its replacement."""
        if self.replacement is not None:
            return WriterOutputs.of(base, self.graph).minus(self.replacement)
        clean, corrupted = (base, other) if self.noise else (other, base)
        return WriterOutputs.of(clean, self.graph).minus(WriterOutputs.of(corrupted, self.graph))

    def products(
        self, chunk: Chunk, layout: Layout, change: WriterOutputs, writers: slice
    ) -> Products:
        """Products of some writers' changes with gradients, in the budget that the runs leave."""
        starts = np.zeros_like(chunk.differ) if self.constant else chunk.differ
        return Products(
            runner=self.runner,
            graph=self.graph,
            change=change,
            layout=layout,
            starts=starts,
            budget=int((1 - TAPE_SHARE) * self.budget),
            writers=writers,
        )


EdgeEstimate = Callable[[EstimateState, Chunk], EdgeEffects]


def input_path(work: EstimateState, chunk: Chunk, points: IntegrationPoints) -> EdgeEffects:
    """Gradients averaged over runs whose input embeddings are interpolated between the two runs.

    One point at 0 is "EAP"; one at each end is "clean-corrupted". The sum over the input's edges is
    compared with the exact difference between the ends of the path. Under zero and mean ablation
    all tokens are equal at the end of the path, see `_with_end`.
    """
    layout, x = rows_of(work.runner, chunk.base)
    y = rows_of(work.runner, chunk.other)[1]
    ends = [at for at, _ in points if at == 0 or (at == 1 and not work.constant)]
    both = _both(work, chunk, layout, (x, y), ends)
    end = x - both.change.embed if work.constant else y
    products = work.products(chunk, layout, both.change, slice(0, len(work.graph.writers)))
    gained = torch.zeros(len(layout), *work.graph.shape, dtype=torch.float64)
    held: list[Point] = []
    for at, weight in points:
        run = both.runs.pop(at, None)
        if run is None:
            run = work.run(x + at * (end - x), layout, chunk, grad=True)
        held.append(work.point(run, chunk, weight, both.moved))
        del run
        if chunk.rebuilt:
            products.add_to(gained, [held.pop()])
    if held:
        products.add_to(gained, held)
    unexplained = gained[:, 0].sum(-1) - work.sign * (both.base - both.end)
    return EdgeEffects(
        gained=gained.mul_(torch.tensor(work.graph.allowed)),
        base=both.base,
        other=both.other,
        unexplained=unexplained[:, None],
    )


@dataclass(frozen=True, kw_only=True)
class _Both:
    """Both runs of a chunk, their metric, and the change between them.

    Attributes:
        runs: the runs whose gradient is needed, by their point on the path, 0.0 or 1.0.
        base: metric of the base run.
        other: metric of the other run.
        end: metric at the end of the path; under counterfactual ablation that of the other run.
        change: the change of every writer's output.
        moved: the change of the final residual stream.
    """

    runs: dict[float, Run]
    base: Tensor
    other: Tensor
    end: Tensor
    change: WriterOutputs
    moved: Tensor


def _both(
    work: EstimateState,
    chunk: Chunk,
    layout: Layout,
    rows: tuple[Tensor, Tensor],
    wanted: Sequence[float],
) -> _Both:
    """Two forward passes. A run that is not needed again is freed here."""
    (x, y), last = rows, work.graph.n_layers
    base = work.run(x, layout, chunk, kept=WRITTEN, grad=0.0 in wanted)
    if work.constant:
        wide, y, constant = _with_end(work, layout, y)
        other = work.run(y, wide, chunk)
        finals = other.site(last, "resid_pre")
        ends = finals[wide.ends.to(finals.device)]
        read = constant.repeat_interleave(torch.from_numpy(wide.tails))
        found = ends[~read]
        m_other, m_end = (work.read(some, chunk) for some in (found, ends[read].expand_as(found)))
        finals = finals[~constant.repeat_interleave(torch.from_numpy(wide.length))]
    else:
        other = work.run(y, layout, chunk, kept=WRITTEN, grad=1.0 in wanted)
        finals = other.site(last, "resid_pre")
        m_other = m_end = work.value(other, chunk)
    change = work.change(base, other)
    for run in (base, other):
        run.kept -= WRITTEN | {"post"}
    return _Both(
        runs={at: run for at, run in ((0.0, base), (1.0, other)) if at in wanted},
        base=work.value(base, chunk),
        other=m_other,
        end=m_end,
        change=change,
        moved=finals - base.site(last, "resid_pre"),
    )


def _with_end(work: EstimateState, layout: Layout, rows: Tensor) -> tuple[Layout, Tensor, Tensor]:
    """The rows, and rows whose tokens are all the replacement of the input; which rows these are.

    If all tokens enter as the same vector, attention mixes equal values, and all tokens leave as
    the same vector. So a single row of one token gives the result for prompts of every length,
    except if attention has sinks, whose share depends on the number of keys.
    """
    assert work.replacement is not None
    branches = [layout.kinds[kind] for kind in layout.shape.tolist()]
    if any(block.attn.sinks is not None for block in work.runner.decoder.blocks):
        length = np.repeat(layout.length, 2)
        branches = [one for one in branches for _ in range(2)]
        constant = torch.arange(len(length)) % 2 == 0
    else:
        length, branches = np.concatenate([[1], layout.length]), [(), *branches]
        constant = torch.arange(len(length)) == 0
    wide = Layout.of_rows(length, np.cumsum(length) - length, branches=branches)
    tokens = constant.repeat_interleave(torch.from_numpy(length)).to(rows.device)
    flat = work.replacement.embed.to(rows).repeat(len(tokens), 1)
    flat[~tokens] = rows
    return wide, flat, constant


def activation_paths(
    work: EstimateState, chunk: Chunk, points: IntegrationPoints, *, together: bool
) -> EdgeEffects:
    """For every writer, gradients averaged over runs in which only its output is interpolated.

    The scores of its edges sum to the exact effect of patching it, which is computed as well. With
    `together` all heads of a layer are interpolated at once.
    """
    layout, x = rows_of(work.runner, chunk.base)
    y = rows_of(work.runner, chunk.other)[1]
    base, other = (work.run(rows, layout, chunk, kept=WRITTEN) for rows in (x, y))
    change = work.change(base, other)
    m_base = work.value(base, chunk)
    n_layers = work.graph.n_layers
    moved = other.site(n_layers, "resid_pre") - base.site(n_layers, "resid_pre")
    gained = torch.zeros(len(layout), *work.graph.shape, dtype=torch.float64)
    unexplained = []
    for writers in _paths(work.graph, together):
        products = work.products(chunk, layout, change, writers)
        held: list[Point] = []
        for alpha, weight in points:
            run = _between(work, chunk, base, change, writers, alpha, grad=True)
            held.append(work.point(run, chunk, weight, moved))
            if chunk.rebuilt:
                products.add_to(gained[:, writers], [held.pop()])
        if held:
            products.add_to(gained[:, writers], held)
        end = _between(work, chunk, base, change, writers, 1.0, grad=False)
        exact = work.sign * (m_base - work.value(end, chunk))
        unexplained.append(gained[:, writers].sum((1, 2)) - exact)
    return EdgeEffects(
        gained=gained.mul_(torch.tensor(work.graph.allowed)),
        base=m_base,
        other=work.value(other, chunk),
        unexplained=torch.stack(unexplained, 1),
    )


def _paths(graph: Graph, together: bool) -> Iterator[slice]:
    """Writers interpolated together: each one alone, or all heads of a layer at once."""
    yield slice(0, 1)
    for layer in range(graph.n_layers):
        heads = graph.heads(layer)
        if together:
            yield heads
        else:
            yield from (slice(head, head + 1) for head in range(heads.start, heads.stop))
        yield slice(heads.stop, heads.stop + 1)


def _between(
    work: EstimateState,
    chunk: Chunk,
    base: Run,
    change: WriterOutputs,
    writers: slice,
    alpha: float,
    *,
    grad: bool,
) -> Run:
    """The base run with some writers' outputs interpolated towards their other values."""
    step = -alpha * work.sign
    layer = int(work.graph.writer_layer[writers.start])
    if layer < 0:
        x = base.site(0, "resid_pre") + step * change.embed
        return work.run(x, base.layout, chunk, grad=grad)
    heads = work.graph.heads(layer)
    if writers.start == heads.stop:
        x = base.site(layer, "resid_post") + step * change.mlp_out[layer]
        return work.run(x, base.layout, chunk, first=layer + 1, grad=grad)
    z = base.site(layer, "z").clone()
    chosen = slice(writers.start - heads.start, writers.stop - heads.start)
    z[:, chosen] += step * change.z[layer][:, chosen]
    x = base.site(layer, "resid_pre")
    return work.run(x, base.layout, chunk, first=layer, heads=z, grad=grad)
