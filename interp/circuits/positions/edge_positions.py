"""At which token positions an edge acts, measured exactly: one edge at one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch

from interp.circuits.positions.positioned_circuit import common_length
from interp.circuits.trials.options import GraphKeywords, TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.arguments import Columns, listed, reads_arguments
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.records import Record
from interp.core.statistics import Estimate, ratio_estimate
from interp.engine.edges.graph import Graph
from interp.engine.memory import says_too_little
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class EdgePositions(Tabled, Record):
    """Effects of removing an edge at a single token, as fractions of the gap full - empty.

    Attributes:
        graph: the graph.
        edges: labels of the edges.
        positions: names or indices of the tokens.
        lost: (n, edges, positions) metric lost when the edge is removed at that position.
        lost_whole: (n, edges) metric lost when the edge is removed at all tokens.
        full: (n,) metric of the whole graph.
        empty: (n,) metric without any edge.
        protocol: what was measured, in words.
    """

    graph: Graph
    edges: tuple[str, ...]
    positions: tuple[str, ...]
    lost: np.ndarray
    lost_whole: np.ndarray
    full: np.ndarray
    empty: np.ndarray
    protocol: str

    @cached_property
    def values(self) -> np.ndarray:
        """(edges, positions) effects: positive supports the behaviour, 1 is the whole gap."""
        return self.lost.mean(0) / (self.full - self.empty).mean()

    @cached_property
    def whole(self) -> np.ndarray:
        """(edges,) effects of removal at all tokens. Those at single tokens need not add up."""
        return self.lost_whole.mean(0) / (self.full - self.empty).mean()

    def table(self) -> np.ndarray:
        """(writers, readers, positions) effects; 0 for edges that were not measured."""
        found = np.zeros((*self.graph.shape, len(self.positions)))
        found[tuple(np.array([self.graph.edge(edge) for edge in self.edges]).T)] = self.values
        return found

    def estimate(self, edge: str, position: str | int) -> Estimate:
        """One effect with its interval over prompts (delta method, Student's t).

        Raises:
            InterpError: an edge or a position that was not measured.
        """
        known = (("edge", edge, self.edges), ("position", position, self.positions))
        for what, name, names in known:
            if str(name) not in names:
                raise InterpError(f"the {what} {name}", "not measured", f"choose among {names}")
        cell = self.edges.index(edge), self.positions.index(str(position))
        return self._estimate(self.lost[:, *cell])

    def _estimate(self, lost: np.ndarray) -> Estimate:
        return ratio_estimate(torch.from_numpy(lost), torch.from_numpy(self.full - self.empty))

    def to_dataframe(self) -> Any:
        """One row per edge and position, and one row per edge for all tokens."""
        import pandas as pd

        rows = []
        for number, edge in enumerate(self.edges):
            columns = [*self.lost[:, number].T, self.lost_whole[:, number]]
            for name, lost in zip([*self.positions, "all"], columns, strict=True):
                found = self._estimate(lost)
                rows.append({"edge": edge, "position": name, **vars(found)})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        lines = [self.protocol]
        for number, edge in enumerate(self.edges):
            best = int(np.abs(self.values[number]).argmax())
            found = self.estimate(edge, self.positions[best])
            lines.append(
                f"  {edge}: all tokens {self.whole[number]:+z.3f}; strongest at "
                f"{self.positions[best]}: {found}"
            )
        return "\n".join(lines)


@says_too_little
@reads_arguments
def edge_positions(
    model: LanguageModel,
    task: Task,
    edges: Sequence[str],
    *,
    positions: Columns = "all",
    neurons: Sequence[str | tuple[int, int]] = (),
    **run: Unpack[GraphKeywords],
) -> EdgePositions:
    """Remove each edge at one token at a time, and measure how much the metric drops.

        effect(u -> v, p) = mean(m(whole) - m(v reads u's replaced output at p))
                            / mean(m(whole) - m(empty))

    Unit: fraction of the gap. Positive: the edge supports the behaviour at p. Every reader reads
    one token at a time: an edge into a key at p changes how later tokens attend to p, an edge into
    a query what p attends to, and edges into the logits act at the last token. With all tokens at
    once this is `score_edges(method="exact")`. To measure nodes by position, use
    `activation_patching` with "position" among its axes.

    Args:
        model: a model with a fast engine; one run per edge, position and prompt, in batches.
        task: prompt pairs.
        edges: labels such as L3H4->L5KV1.k, each once; for a circuit, `circuit.edges()`.
        positions: "all" (every token index; prompts of equal length), or see
            `interp.core.arguments.Columns`.
        neurons: neurons that are nodes of their own in the edges' graph.
        run: ablation, reference, expand_kv, seed, budget_gb, progress (called with positions
            done, and in total) and cancelled; see `TrialOptions`.

    Raises:
        InterpError: no edge, an edge that is unknown, anti-causal or given twice, "all" positions
            for prompts of different lengths, a prompt that lacks a position, no gap, or as
            `Trials`.

    Equals one plain loop per edge and position (tests/circuits/test_edge_positions.py).
    """
    options = TrialOptions(neurons=neurons, **run)
    trials = Trials(model, task, options)
    edges = listed(edges)
    indices = [trials.graph.edge(label) for label in edges]
    if not indices or len(set(indices)) < len(indices):
        raise InterpError(
            f"edges {list(edges)}", "no edges, or a repeated one", "give each edge once"
        )
    if isinstance(positions, str) and positions == "all":
        tokens = range(common_length(model, task))
        names = tuple(map(str, tokens))
        columns = [np.full(len(task), token) for token in tokens]
    else:
        names, found = task.encode(model).columns(positions)
        columns = list(map(np.array, found))
    ends = trials.checked_ends()
    masks = np.repeat(trials.graph.mask()[None], len(indices), axis=0)
    masks[(np.arange(len(indices)), *np.array(indices).T)] = False

    parts = [masks[at : at + BATCH] for at in range(0, len(masks), BATCH)]
    runs, lost = [*map(trials.only_at, columns), trials], []
    for some in runs:
        lost.append((ends[0] - np.concatenate([some.values(part) for part in parts])).T)
        if options.progress is not None:
            options.progress(len(lost), len(runs))
    return EdgePositions(
        graph=trials.graph,
        edges=tuple(edges),
        positions=names,
        lost=np.stack(lost[:-1], axis=-1),
        lost_whole=lost[-1],
        full=ends[0],
        empty=ends[1],
        protocol=trials.protocol.replace("at all tokens", "of one edge at one token at a time"),
    )
