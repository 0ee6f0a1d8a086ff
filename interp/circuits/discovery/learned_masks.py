"""A circuit learned by gradient descent: one gate per edge, with a penalty for open gates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from interp.circuits.ranking import Scored, ranked
from interp.circuits.trials.options import GraphKeywords, TrialOptions
from interp.circuits.trials.trials import Trials, mean_gap
from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine.edges.graph import Graph
from interp.engine.memory import says_too_little
from interp.models.language_model import LanguageModel

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""The hard-concrete distribution's beta, gamma and zeta (arXiv 1712.01312)."""


@dataclass(frozen=True, kw_only=True)
class LearnedMask(Record):
    """The gates of all edges after training, and the circuit of the open ones.

    Attributes:
        graph: the graph.
        signed: (writers, readers) openness sigma(log alpha), between 0 and 1; 0 without an edge.
        mask: the edges with log alpha > 0 on a path from the input to the logits.
        share: what this circuit reaches with its gates fully open, as a share of the gap between
            the whole graph and the empty one.
        losses: (steps,) the training objective.
        passes: number of forward passes over the task, and of backward passes.
        weight: the price of the whole graph, in squared gaps.
        seed: the seed of the gate draws.
        protocol: what was measured, in words.
    """

    graph: Graph
    signed: np.ndarray
    mask: np.ndarray
    share: float
    losses: np.ndarray
    passes: int
    weight: float
    seed: int
    protocol: str

    def __str__(self) -> str:
        return (
            f"a learned mask keeps {int(self.mask.sum())} of {self.graph.n_edges} edges, which "
            f"reach {self.share:z.3f} of the gap (weight {self.weight:g}, {len(self.losses)} "
            "steps, "
            f"seed {self.seed}); {self.protocol}"
        )


@says_too_little
@reads_arguments
def learn_mask(
    model: LanguageModel,
    task: Task,
    *,
    weight: float = 1.0,
    steps: int = 200,
    lr: float = 0.1,
    openness: float = 0.99,
    samples: int = 4,
    nodes: bool = False,
    start: Scored | None = None,
    **run: Unpack[GraphKeywords],
) -> LearnedMask:
    """Train one gate per edge to preserve the metric with as few edges as possible.

    A reader receives z times its writer's output plus (1 - z) times what a removed edge carries.
    Gates are hard-concrete (Louizos et al., arXiv 1712.01312),

        z = clip(LOW + (HIGH - LOW) sigma((log u - log(1 - u) + log alpha) / TEMPERATURE), 0, 1),

    with u uniform, drawn once per step for all prompts. Adam minimises over log alpha

        mean over prompts ((m(whole graph) - m(z)) / gap)^2  +  weight * expected share of edges
        open,   P(open) = sigma(log alpha - TEMPERATURE log(-LOW / HIGH)).

    `share` evaluates the circuit with its gates fully open. A mask can raise the metric above the
    model's; the squared distance does not reward that.

    Training needs gates whose small changes affect the metric. If attention or a ReLU is
    saturated, as in compiled programs, the gradient is zero and needed edges close. Starting with
    almost open gates and averaging several draws helps.

    Follows subnetwork probing (arXiv 2104.03514) and edge pruning (arXiv 2406.16778; code:
    princeton-nlp/Edge-Pruning), with a fixed weight in place of the latter's Lagrangian, and the
    task's metric in place of the KL divergence (give a task with the metric `kl` for that).

    Args:
        model: a model with a fast engine.
        task: prompt pairs; each step runs all of them.
        weight: the price of the whole graph, in squared gaps.
        steps: training steps.
        lr: Adam's learning rate, on log alpha.
        openness: sigma(log alpha) at the start.
        samples: draws of the gates per step, averaged.
        nodes: add one gate per writer, which multiplies the gates of all its edges.
        start: scores, such as those of EAP-IG, by whose absolute values the edges' gates begin:
            the strongest edge at `openness`, the weakest at 1/2, log alpha linear in the rank
            between them. An edge that the scores miss can still open. By default all begin alike.
        run: ablation, reference, expand_kv, seed, budget_gb (one prompt and its gradient must
            fit), progress (called with steps done, and in total) and cancelled; see `TrialOptions`.

    Raises:
        InterpError: an option out of range, scores of another graph or with an openness of at most
            1/2, a graph whose gradient on one prompt does not fit the budget, no gap, or as
            `Trials`.
    """
    if min(steps, samples) < 1 or weight < 0 or lr <= 0 or not 0 < openness < 1:
        raise InterpError(
            "learning a mask",
            f"weight {weight}, steps {steps}, lr {lr}, openness {openness}, samples {samples}",
            "give positive numbers, and an openness between 0 and 1",
        )
    if start is not None and openness <= 0.5:
        raise InterpError(
            "a learned mask that begins with scores",
            f"openness {openness:g}: the strongest edge would not begin most open",
            "give an openness above 0.5",
        )
    options = TrialOptions(**run)
    trials = Trials(model, task, options)
    trials.refuse_tapes("learning a mask")
    ends = trials.ends()
    gap, whole = mean_gap(ends), torch.from_numpy(ends[0])
    gates = _Gates(
        trials.graph, openness=openness, nodes=nodes, seed=options.seed, like=model.dtype
    )
    if start is not None:
        gates.begin(trials.graph, start)
    optimiser = torch.optim.Adam(gates.parameters, lr=lr)
    losses = np.zeros(steps)
    for step in range(steps):
        optimiser.zero_grad()
        drawn = gates.draw(samples)
        missed, slope = _missed(trials, drawn, whole, gap)
        price = weight * gates.open_share()
        torch.autograd.backward([drawn, price], [slope, torch.ones_like(price)])
        optimiser.step()
        losses[step] = missed + float(price.detach())
        if options.progress is not None:
            options.progress(step + 1, steps)
    with torch.no_grad():
        openness_of = gates.openness().double().numpy()
    mask = trials.graph.connected((openness_of > 0.5) & trials.graph.allowed)
    reached = trials.values(mask[None])[0]
    return LearnedMask(
        graph=trials.graph,
        signed=openness_of,
        mask=mask,
        share=float((reached - ends[1]).mean()) / gap,
        losses=losses,
        passes=steps * samples,
        weight=weight,
        seed=options.seed,
        protocol=trials.protocol,
    )


def _missed(trials: Trials, drawn: Tensor, whole: Tensor, gap: float) -> tuple[float, Tensor]:
    """Mean squared distance from the whole graph in gaps, and its gradient at the drawn gates.

    Computed in groups of prompts and draws whose gradients fit the budget.
    """
    gates, total = drawn.detach().requires_grad_(), 0.0
    slope = torch.zeros_like(gates)
    for mask, prompt in trials.taped(len(drawn)):
        with torch.enable_grad():
            values = trials.each(gates, mask=mask, prompt=prompt)
            short = (whole[torch.from_numpy(prompt)] - values) / gap
            loss = short.pow(2).sum() / (len(drawn) * len(whole))
        slope += torch.autograd.grad(loss, gates)[0]
        total += float(loss.detach())
    return total, slope


class _Gates:
    """Log alpha of every edge and, with `nodes`, of every writer."""

    def __init__(
        self, graph: Graph, *, openness: float, nodes: bool, seed: int, like: torch.dtype
    ) -> None:
        self.allowed = torch.from_numpy(graph.allowed.copy()).to(like)
        start = math.log(openness / (1 - openness))
        shapes = [graph.shape] + ([(graph.shape[0], 1)] if nodes else [])
        self.parameters = [
            torch.full(shape, start, dtype=like, requires_grad=True) for shape in shapes
        ]
        self.generator = torch.Generator().manual_seed(seed)

    def begin(self, graph: Graph, scores: Scored) -> None:
        """Scale the edges' log alpha by their rank among scores: 1 for the strongest, 0 at last."""
        if scores.graph != graph:
            asked = "a learned mask that begins with scores"
            raise InterpError(asked, "they are of another graph", "score the same graph's edges")
        share = np.ones(graph.shape)
        order = ranked(scores, by="absolute")
        share[tuple(order.T)] = np.linspace(1, 0, len(order))
        with torch.no_grad():
            self.parameters[0] *= torch.from_numpy(share).to(self.parameters[0])

    def draw(self, samples: int) -> Tensor:
        """(samples, writers, readers) gates."""
        gates = self.allowed
        for alpha in self.parameters:
            u = torch.rand((samples, *alpha.shape), generator=self.generator, dtype=alpha.dtype)
            u = u.clamp(1e-6, 1 - 1e-6)
            smooth = torch.sigmoid((u.log() - (1 - u).log() + alpha) / TEMPERATURE)
            gates = gates * (LOW + (HIGH - LOW) * smooth).clamp(0, 1)
        return gates

    def open_share(self) -> Tensor:
        """Expected share of the graph's edges whose gates are open."""
        shift = TEMPERATURE * math.log(-LOW / HIGH)
        found = self.allowed
        for alpha in self.parameters:
            found = found * torch.sigmoid(alpha - shift)
        return (found * self.allowed).sum() / self.allowed.sum()

    def openness(self) -> Tensor:
        """Sigma(log alpha): the smaller of the edge's and its writer's."""
        found = self.allowed
        for alpha in self.parameters:
            found = torch.minimum(found, torch.sigmoid(alpha))
        return found * self.allowed
