"""From edge scores to a circuit: the best edges on paths from the input to the logits."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from typing import Literal, Protocol, get_args

import numpy as np

from interp.core.errors import InterpError, unknown
from interp.engine.edges.graph import Graph

By = Literal["signed", "absolute", "mean_absolute"]
"""How edges are ranked: by the signed score (supporting edges first), by its absolute value, or by
the mean absolute effect over prompts, which finds edges that help on some prompts and hinder on
others."""


class Scored(Protocol):
    """Anything with a graph and one number per edge, such as `EdgeScores` or a learned mask."""

    @property
    def graph(self) -> Graph: ...
    @property
    def signed(self) -> np.ndarray: ...


def top_edges(scores: Scored, n: int, *, by: By = "absolute", connected: bool = True) -> np.ndarray:
    """The n best edges, as a (writers, readers) mask.

    With `connected`, only edges on a path from the input to the logits count. The circuit is the
    connected part of the longest list of best edges whose connected part has at most n edges. It
    has fewer than n edges if the next edge would complete a path of several. Without `connected`
    it has exactly n edges, and some may lie on no path. Edges of equal score are ordered causally,
    by reader and then by writer.

    Args:
        scores: an object with `graph` and `signed`, (writers, readers).
        n: number of edges, from 1 to `graph.n_edges`.
        by: the ranking, see `By`. "absolute" also finds edges that oppose the behaviour.
            "mean_absolute" needs scores with mean absolute effects, such as `EdgeScores`.
        connected: keep only edges on paths, see above.

    Raises:
        InterpError: n out of range, an unknown ranking or one that the scores lack, scores of
            another shape, or scores that are not finite.
    """
    return _longest(scores.graph, ranked(scores, by=by), n, connected)


def greedy_edges(scores: Scored, n: int, *, by: By = "absolute") -> np.ndarray:
    """At most n connected edges, selected greedily from the logits backwards, as a mask.

    The best edge into the logits is taken first. Then the edges into its writer join the
    candidates, the best candidate is taken, and so on. So every selected edge leads to the logits.
    Edges without a path from the input are dropped and do not count towards n. Source:
    `apply_greedy` of hannamw/EAP-IG, which counts them.

    Raises:
        InterpError: as `top_edges`.
    """
    graph = scores.graph
    values = edge_strength(scores, by=by)
    opened = np.zeros(len(graph.readers), dtype=bool)
    order: list[tuple[int, int]] = []
    waiting: list[tuple[float, int, int]] = []

    def open_reader(reader: int) -> None:
        opened[reader] = True
        for writer in np.flatnonzero(graph.allowed[:, reader]):
            heapq.heappush(waiting, (-values[writer, reader], reader, int(writer)))

    open_reader(len(graph.readers) - 1)
    while waiting:
        _, reader, writer = heapq.heappop(waiting)
        order.append((writer, reader))
        for further in np.flatnonzero(graph.feeds[:, writer] & ~opened):
            open_reader(int(further))
    return _longest(graph, np.array(order), n, connected=True)


CUTS = {"best": top_edges, "greedy": greedy_edges}
"""The two ways to select a circuit of a given size from scores."""


def ranked(scores: Scored, *, by: By = "absolute") -> np.ndarray:
    """(edges, 2) writer and reader of every edge, best first."""
    readers, writers = np.nonzero(scores.graph.allowed.T)
    values = edge_strength(scores, by=by)[writers, readers]
    order = np.argsort(-values, kind="stable")
    return np.stack([writers, readers], axis=1)[order]


def edge_strength(scores: Scored, *, by: By = "absolute") -> np.ndarray:
    """(writers, readers) the values by which edges are ranked.

    Raises:
        InterpError: an unknown ranking or one that the scores lack, scores of another shape, or
            scores that are not finite.
    """
    if by not in get_args(By):
        raise unknown("ranking", by, get_args(By))
    graph = scores.graph
    found = scores.signed if by != "mean_absolute" else getattr(scores, "absolute", None)
    if not isinstance(found, np.ndarray):
        raise InterpError(
            "edges by mean absolute effect",
            "these scores have only means of signed effects",
            "use scores of score_edges, or rank by 'absolute'",
        )
    values = np.asarray(found, dtype=float)
    if values.shape != graph.shape:
        raise InterpError(
            f"scores of shape {values.shape}", f"the graph's is {graph.shape}", "score its edges"
        )
    if not np.isfinite(values[graph.allowed]).all():
        bad = int((~np.isfinite(values[graph.allowed])).sum())
        raise InterpError("ranking edges", f"{bad} scores are not finite", "score every edge")
    return values if by == "signed" else np.abs(values)


def _longest(graph: Graph, order: np.ndarray, n: int, connected: bool) -> np.ndarray:
    """The mask of the longest prefix of `order` whose (connected) edges are at most n."""
    if not 1 <= n <= graph.n_edges:
        raise InterpError(
            f"a circuit of {n} edges", f"the graph has {graph.n_edges}", "ask for 1 to that many"
        )

    def prefix(length: int) -> np.ndarray:
        mask = np.zeros(graph.shape, dtype=bool)
        mask[tuple(order[:length].T)] = True
        return graph.connected(mask) if connected else mask

    lengths = range(len(order) + 1)
    return prefix(bisect_right(lengths, n, key=lambda length: int(prefix(length).sum())) - 1)
