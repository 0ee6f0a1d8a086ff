"""The exact effect of every edge: one run in which only that edge is replaced."""

from __future__ import annotations

import numpy as np
import torch

from interp.circuits.scoring.gradient_estimates import Chunk, EdgeEffects, EstimateState
from interp.engine.edges.graph import Graph
from interp.engine.edges.run import run_edges
from interp.engine.edges.writes import Writes, record_writes
from interp.engine.layout import Indices
from interp.engine.readout import LogitsOf


def exact_effects(work: EstimateState, chunk: Chunk) -> EdgeEffects:
    """The metric gained when each edge in turn carries the other run's value, or the replacement.

    Edges are run in batches ordered by reader, from the last: edges into late readers share all
    earlier layers.
    """
    with torch.no_grad():
        base = record_writes(work.runner, chunk.base)
        runs = record_writes(work.runner, chunk.other)
        other, start = runs, chunk.differ
        if work.replacement is not None:
            other, start = work.replacement, np.zeros_like(start)
        full = torch.tensor(work.graph.allowed)[None]
        m_base = _metric(work, chunk, base, other, full, start)[0]
        m_other = _metric(work, chunk, runs, runs, full, start)[0]
        gained = torch.zeros(len(chunk.base), *work.graph.shape, dtype=torch.float64)
        work.forwards += 4
        for edges in _batches(work.graph, work.budget):
            masks = full.repeat(len(edges), 1, 1)
            masks[np.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
            patched = _metric(work, chunk, base, other, masks, start)
            gained[:, edges[:, 0], edges[:, 1]] = work.sign * (m_base - patched).T
            work.forwards += len(edges)
    return EdgeEffects(gained=gained, base=m_base, other=m_other)


def _batches(graph: Graph, budget: int) -> list[Indices]:
    """Edges as (writer, reader), last readers first, in batches whose masks fit the budget."""
    edges = np.argwhere(graph.allowed.T)[::-1, ::-1].copy()
    size = int(np.clip(budget // 16 // graph.allowed.size, 1, 512))
    return [edges[begin : begin + size] for begin in range(0, len(edges), size)]


def _metric(
    work: EstimateState,
    chunk: Chunk,
    base: Writes,
    other: Writes,
    masks: torch.Tensor,
    start: Indices,
) -> torch.Tensor:
    """(masks, prompts) metric."""
    hidden = run_edges(
        work.runner,
        work.graph,
        base,
        other,
        masks,
        start=start,
        budget_gb=work.budget / 1e9,
    )
    which = torch.arange(len(chunk.base)).repeat(len(masks))
    readout = LogitsOf(decoder=work.runner.decoder, hidden=hidden)
    return work.metric(readout, chunk.targets.select(which)).view(len(masks), -1)
