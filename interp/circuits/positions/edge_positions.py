"""Where along the prompt an edge acts: exactly, one edge at one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from interp.circuits.trials.removed_edges import EdgeAblation
from interp.circuits.trials.trials import Trials, mean_gap
from interp.core.arguments import Columns, columns_of, listed
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.records import Record
from interp.core.statistics import Estimate, ratio_estimate
from interp.engine.edges.graph import Graph
from interp.models.language_model import LanguageModel

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class EdgePlaces(Record):
    """Effects of edges removed at one token alone, as fractions of the gap full - empty.

    Attributes:
        graph: writers and readers.
        edges: labels.
        positions: token indices, or names.
        lost: (n, edges, positions) metric that each removal takes away.
        lost_whole: (n, edges) metric that the edge's removal at all tokens takes away.
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
        """(edges,) effects of removal at all tokens; tokens need not add up to it."""
        return self.lost_whole.mean(0) / (self.full - self.empty).mean()

    def table(self) -> np.ndarray:
        """(writers, readers, positions) effects, 0 where none was measured."""
        found = np.zeros((*self.graph.shape, len(self.positions)))
        found[tuple(np.array([self.graph.edge(edge) for edge in self.edges]).T)] = self.values
        return found

    def estimate(self, edge: str, position: str | int) -> Estimate:
        """One effect with its interval over prompts (delta method, Student's t).

        Raises:
            InterpError: an edge or a position that was not measured.
        """
        for what, name, known in (("edge", edge, self.edges), ("place", position, self.positions)):
            if str(name) not in known:
                raise InterpError(f"the {what} {name}", "not measured", f"choose among {known}")
        place = self.edges.index(edge), self.positions.index(str(position))
        return self._estimate(self.lost[:, *place])

    def _estimate(self, lost: np.ndarray) -> Estimate:
        return ratio_estimate(torch.from_numpy(lost), torch.from_numpy(self.full - self.empty))

    def to_dataframe(self) -> Any:
        """One row per edge and position, and one per edge for all tokens."""
        import pandas as pd

        rows = []
        for place, edge in enumerate(self.edges):
            columns = [*self.lost[:, place].T, self.lost_whole[:, place]]
            for name, lost in zip([*self.positions, "all"], columns, strict=True):
                found = self._estimate(lost)
                rows.append({"edge": edge, "position": name, **vars(found)})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        lines = [self.protocol]
        for place, edge in enumerate(self.edges):
            best = int(np.abs(self.values[place]).argmax())
            found = self.estimate(edge, self.positions[best])
            lines.append(
                f"  {edge}: all tokens {self.whole[place]:+.3f}; most at "
                f"{self.positions[best]}: {found}"
            )
        return "\n".join(lines)


def edge_places(
    model: LanguageModel,
    task: Task,
    edges: Sequence[str],
    *,
    positions: Columns = "all",
    ablation: EdgeAblation = "counterfactual",
    reference: Task | None = None,
    expand_kv: bool = False,
    neurons: Sequence[str | tuple[int, int]] = (),
    seed: int = 0,
    budget_gb: float = 1.0,
) -> EdgePlaces:
    """Remove each edge at one token alone, and see what that takes from the metric.

        effect(u -> v, p) = mean(m(whole) - m(v reads u's other write at p))
                            / mean(m(whole) - m(empty))

    A reader reads token by token, so that an edge lies within a token: a key's edge at p changes
    what p offers to later tokens, a query's what p looks for, and the logits' edges lie at the last
    token. With all tokens at once this is `score_edges(method="exact")`. For nodes by position see
    `activation_patching` with "position" among its axes.

    Args:
        model: a model with a fast engine; one run per edge, position and prompt, in batches.
        task: prompt pairs.
        edges: labels such as L3H4->L5KV1.k, each once; of a circuit, `circuit.edges()`.
        positions: "all" (every token index; prompts of one length), or see
            `interp.core.arguments.Columns`.
        ablation: what the edge carries there instead; see `interp.circuits.trials.removed_edges`.
        reference: prompts whose tokens a mean is taken over, none of them evaluated.
        expand_kv: key and value readers per query head.
        neurons: those that are nodes of their own, in whose graph the edges are.
        seed: of the other prompts in resample ablation.
        budget_gb: memory for runs in flight.

    Raises:
        InterpError: no edge, an unknown or anti-causal one or one twice, prompts of several lengths
            where every token is asked for, a position that a prompt lacks, no gap, or as `Trials`.

    Equals one plain loop per edge and position (tests/test_places.py).
    """
    trials = Trials(
        model,
        task,
        ablation=ablation,
        reference=reference,
        expand_kv=expand_kv,
        neurons=neurons,
        budget_gb=budget_gb,
        seed=seed,
    )
    edges = listed(edges)
    places = [trials.graph.edge(label) for label in edges]
    if not places or len(set(places)) < len(places):
        raise InterpError(f"edges {list(edges)}", "none, or one twice", "give each edge once")
    names, columns = _columns(model, task, positions)
    ends = trials.ends()
    mean_gap(ends)
    masks = np.repeat(trials.graph.mask()[None], len(places), axis=0)
    masks[(np.arange(len(places)), *np.array(places).T)] = False

    def lost(some: Trials) -> np.ndarray:
        parts = [masks[at : at + BATCH] for at in range(0, len(masks), BATCH)]
        return (ends[0] - np.concatenate([some.values(part) for part in parts])).T

    found = [lost(trials.only_at(column)) for column in columns]
    return EdgePlaces(
        graph=trials.graph,
        edges=tuple(edges),
        positions=names,
        lost=np.stack(found, axis=-1),
        lost_whole=lost(trials),
        full=ends[0],
        empty=ends[1],
        protocol=trials.protocol.replace("at all tokens", "of one edge at one token at a time"),
    )


def _columns(
    model: LanguageModel, task: Task, positions: Columns
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of the positions, and where each is in every prompt."""
    encoded = task.encode(model)
    lengths = [len(prompt) for prompt in encoded.clean]
    if not isinstance(positions, str) or positions != "all":
        names, columns = columns_of(positions, encoded)
        return names, [np.array(column) for column in columns]
    if len(set(lengths)) > 1:
        raise InterpError(
            "edges at every token",
            f"prompts of {min(lengths)} to {max(lengths)} tokens",
            "give names of positions, or prompts of one length",
        )
    return tuple(map(str, range(lengths[0]))), [np.full(len(lengths), p) for p in range(lengths[0])]
