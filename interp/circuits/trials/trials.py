"""Running candidate circuits: the metric of each on every prompt, and the cost of the runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from interp.circuits.model_graph import graph_of
from interp.circuits.trials.memory import edge_tape, refuse_beyond
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.removed_edges import ablated_runs
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.engine.edges.graph import Graph
from interp.engine.edges.run import run_edges
from interp.engine.edges.writes import edge_runner, record_writes, with_others_at
from interp.engine.layout import Indices
from interp.engine.memory import budget_bytes
from interp.engine.readout import LogitsOf, cut
from interp.engine.resume import NO_CHUNKS, Chunks
from interp.engine.stopping import stoppable
from interp.models.language_model import LanguageModel
from interp.runs.pairs import check_gap
from interp.runs.parts import PartWork, TaskPart, by_parts

PART_CIRCUITS = 256
"""The most circuits that are run together on a part of the prompts."""


class HasGraph(Protocol):
    """A circuit, with or without positions."""

    @property
    def graph(self) -> Graph: ...


class CircuitRunner(Protocol):
    """What a circuit search needs: the metric of candidate circuits on every prompt."""

    @property
    def graph(self) -> Graph: ...

    exact: bool
    """Whether a writer without any kept input writes exactly what a removed edge carries."""

    def values(self, masks: np.ndarray) -> np.ndarray:
        """The (masks, prompts) metric of (masks, writers, readers) bool masks."""
        ...


class Trials:
    """Runs of one model on one task in which only a circuit's edges carry the base run.

    Attributes:
        calls: number of batched runs.
        tests: number of circuits run.
        forwards: arithmetic, in forward passes over the whole task; see `forward_equivalents`.
        workers: number of processes that share the prompts; 0 for this one alone.
    """

    def __init__(
        self, model: LanguageModel, task: Task, options: TrialOptions | None = None
    ) -> None:
        """Run both prompts of every pair once, without any change.

        Args:
            model: a model with a fast engine.
            task: prompt pairs.
            options: the ablation, the graph, the memory, and processes that share the prompts.

        Raises:
            InterpError: no fast engine, training mode, a call inside `intervene`, denoising with
                an ablation other than "counterfactual", or as `ablated_runs`.
        """
        self.options = options = options or TrialOptions()
        decoder = model.require_decoder("a search for circuits")
        model.refuse_changed("a search for circuits")
        if options.direction == "denoise" and options.ablation != "counterfactual":
            raise InterpError(
                f"{options.ablation} ablation, {options.direction}",
                "denoising puts the clean run's values back; this ablation removes them",
                "use direction='noise', or ablation='counterfactual'",
            )
        self.model, self.task, self.workers = model, task, options.workers
        self.graph = graph_of(model, expand_kv=options.expand_kv, neurons=options.neurons)
        self.exact = options.ablation in ("counterfactual", "resample")
        self._budget = budget_bytes(options.budget_gb)
        self.calls = self.tests = 0
        self.forwards = 0.0
        self._runner = edge_runner(decoder, self.graph)
        ablated = ablated_runs(model, task, options)
        runs = ablated.runs
        with stoppable(options.cancelled):
            constant = ablated.writes(self._runner)
            self._base = record_writes(self._runner, runs.base)
            self._other = record_writes(self._runner, runs.other) if constant is None else constant
        self._targets = runs.targets
        self._lengths = np.array([len(prompt) for prompt in runs.base])
        self._start = runs.differ if constant is None else None
        self._positions: Indices | None = None

    def only_at(self, positions: np.ndarray) -> Trials:
        """Trials in which removed edges carry the ablated value at one position of each prompt.

        At all other positions they carry the base run's values. For circuits that lack one edge.
        """
        trials = copy(self)
        trials.workers = 0
        trials._other = with_others_at(self._base, self._other, positions)
        trials._start = positions
        return trials

    def with_positions(self, positions: Sequence[Indices]) -> Trials:
        """Trials that also take masks (writers, readers, positions): edges kept at some positions.

        `positions` holds, for every prompt, the index of each token's position.
        """
        trials, run = copy(self), self._base.run
        assert run is not None
        trials.workers = 0
        trials._positions = np.zeros(int(run.lengths.sum()), dtype=np.int64)
        for begin, one in zip(run.offset, positions, strict=True):
            trials._positions[begin : begin + len(one)] = one
        return trials

    def require_graph(self, circuits: Sequence[HasGraph]) -> None:
        """Refuse circuits of another graph.

        Raises:
            InterpError: a circuit has another graph.
        """
        for one in circuits:
            if one.graph != self.graph:
                raise InterpError(
                    f"circuits on {self.model.name}",
                    f"their graph is {one.graph}",
                    "use circuits of this model",
                )

    @property
    def protocol(self) -> str:
        """What was measured, in words."""
        removed = self.options.removed
        if self.options.direction == "denoise":
            removed = "the corrupted run, removed edges carry the clean run's values (denoise)"
        kv = "key/value readers per query head" if self.graph.expand_kv else "native k/v readers"
        if neurons := len(self.graph.neurons):
            kv += f", {neurons} neurons as nodes"
        return (
            f"{self.task.metric.name} on {len(self.task)} pairs of {self.task.name}, edges of "
            f"{self.graph.n_edges}, {kv}, {removed} at all tokens"
        )

    def metric(self, masks: Tensor) -> Tensor:
        """(masks, prompts) metric of bool or soft masks. Gradients flow to soft masks.

        `masks` is (masks, writers, readers), or (..., positions) after `with_positions`.
        """
        mask, prompt = (i.ravel() for i in np.indices((len(masks), len(self.task))))
        return self.each(masks, mask=mask, prompt=prompt).view(len(masks), len(self.task))

    def each(self, masks: Tensor, *, mask: Indices, prompt: Indices) -> Tensor:
        """(variants,) metric: variant i is prompt `prompt[i]` with mask `mask[i]`."""
        with stoppable(self.options.cancelled):
            hidden = run_edges(
                self._runner,
                self.graph,
                self._base,
                self._other,
                masks,
                prompt=prompt,
                mask=mask,
                start=self._start,
                places=self._positions if masks.dim() == 4 else None,
                budget_gb=self.options.budget_gb,
            )
        readout = LogitsOf(decoder=self._runner.decoder, hidden=hidden)
        return self.task.metric(readout, self._targets.select(torch.from_numpy(prompt)))

    def taped(self, masks: int) -> Iterator[tuple[Indices, Indices]]:
        """Mask and prompt numbers of the variants, in groups whose gradients fit the budget."""
        mask, prompt = (i.ravel() for i in np.indices((masks, len(self.task))))
        order = np.lexsort((mask, prompt, self._lengths[prompt]))
        per_token = edge_tape(self._runner.decoder, self.graph)
        fitting = max(self._budget // per_token, 1)
        for some in cut(order, self._lengths[prompt[order]], fitting):
            yield mask[some], prompt[some]

    def refuse_tapes(self, what: str) -> None:
        """Refuse to take gradients if those of one prompt do not fit the budget.

        Raises:
            InterpError: they do not fit.
        """
        longest = int(self._lengths.max())
        need = float(longest * edge_tape(self._runner.decoder, self.graph))
        name = f"one prompt of {longest} tokens with its gradient"
        refuse_beyond(f"{what} of {self.graph.n_edges} edges", {name: need}, self._budget)

    def values(self, masks: np.ndarray) -> np.ndarray:
        """(masks, prompts) metric of circuits, in one batched run."""
        self._count(masks)
        if self.workers:
            return self._shared(masks, replace(self.options, progress=None), NO_CHUNKS)
        with torch.no_grad():
            return self.metric(torch.from_numpy(masks)).numpy()

    def _count(self, masks: np.ndarray) -> None:
        self.calls += 1
        self.tests += len(masks)
        self.forwards += forward_equivalents(self.graph, masks)

    def _shared(
        self, masks: np.ndarray, options: TrialOptions, chunks: Chunks | None = None
    ) -> np.ndarray:
        """(masks, prompts) metric of circuits, on a few prompts at a time by other processes."""
        packed = np.packbits(masks[:, self.graph.allowed], axis=1)
        work: PartWork = partial(_part, packed=packed, options=self.options.quiet)
        workers = self.workers
        made = by_parts(
            work, self.model, self.task, workers=workers, options=options, chunks=chunks
        )
        return np.concatenate(list(made)).T

    def in_batches(self, masks: Iterable[np.ndarray], size: int, total: int) -> np.ndarray:
        """(masks, prompts) metric of `total` circuits, at most `size` of them in a run.

        With `workers`, all circuits are run on a few prompts at a time, and progress counts parts
        of the prompts. A call that was stopped goes on from its finished parts.
        """
        if self.workers and total:
            every = np.stack(list(masks))
            self._count(every)
            return self._shared(every, self.options)
        left, found = iter(masks), [np.zeros((0, len(self.task)))]
        while batch := list(islice(left, size)):
            found.append(self.values(np.stack(batch)))
            if self.options.progress is not None:
                self.options.progress(sum(map(len, found)), total)
        return np.concatenate(found)

    def ends(self) -> np.ndarray:
        """(2, prompts) metric of the whole graph and of the empty one."""
        full = self.graph.mask()
        return self.values(np.stack([full, np.zeros_like(full)]))

    def checked_ends(self) -> np.ndarray:
        """`ends`, if the two differ.

        Raises:
            InterpError: the gap is below its standard error.
        """
        found = self.ends()
        check_gap(*found)
        return found


def _part(
    model: LanguageModel, part: TaskPart, *, packed: np.ndarray, options: TrialOptions
) -> np.ndarray:
    """(prompts, circuits) metric of a part; `packed` holds the bits of each circuit's edges."""
    trials = Trials(model, part[0], options)
    allowed = trials.graph.allowed
    masks = np.zeros((len(packed), *allowed.shape), dtype=bool)
    masks[:, allowed] = np.unpackbits(packed, axis=1, count=int(allowed.sum()))
    return trials.in_batches(masks, PART_CIRCUITS, len(masks)).T


def forward_equivalents(graph: Graph, masks: np.ndarray) -> float:
    """The forward passes that a batch of circuits costs when shared layers are computed once.

    Circuits that keep the same edges into all readers up to a layer share one row in the engine up
    to there. Counted are the attention and MLP layers of all distinct rows, over those of one
    forward pass. Reading the logits is not counted.
    """
    apart = np.zeros(len(masks), dtype=np.int64)
    computed = 0
    for layer in range(graph.n_layers):
        groups = graph.groups(layer)
        attention = slice(groups["q"].start, groups["v"].stop)
        for readers in (attention, graph.mlp_readers(layer)):
            rows = np.packbits(masks[:, :, readers].reshape(len(masks), -1), axis=1)
            keyed = np.concatenate([apart[:, None].view(np.uint8), rows], axis=1)
            _, apart = np.unique(keyed, axis=0, return_inverse=True)
            apart = apart.reshape(-1)
            computed += int(apart.max()) + 1
    return computed / (2 * graph.n_layers)


def mean_gap(ends: np.ndarray) -> float:
    """Mean metric of the whole graph minus that of the empty one: the unit of effects.

    Raises:
        InterpError: the gap is below its standard error.
    """
    check_gap(*ends)
    return float((ends[0] - ends[1]).mean())
