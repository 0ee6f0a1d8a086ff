"""From scores to a circuit: the best edges, on paths from the input to the logits."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from interp.core.errors import InterpError, unknown
from interp.engine.edges.graph import Graph

By = Literal["signed", "absolute", "mean_absolute"]
"""What ranks edges: the signed score, supporting edges first; its size; or the mean over prompts of
the effect's size, which sees edges that help on some prompts and hinder on others."""

RANKINGS: tuple[By, ...] = ("signed", "absolute", "mean_absolute")


class Scored(Protocol):
    """Anything with a graph and one signed number per edge: `EdgeScores`, a learnt mask."""

    @property
    def graph(self) -> Graph: ...
    @property
    def signed(self) -> np.ndarray: ...


def top_edges(
    scores: Scored,
    n: int,
    *,
    absolute: bool = True,
    by: By | None = None,
    connected: bool = True,
) -> np.ndarray:
    """The n best edges, as a mask.

    With `connected`, edges that lie on no path from the input to the logits do not count: the
    circuit is that of the longest list of best edges whose connected part has at most n edges.
    It then has fewer than n where the next edge would complete a path of several. Without, it has
    exactly n, of which some may carry nothing. Edges of equal score go in causal order of their
    readers, then of their writers.

    Args:
        scores: an object with `graph` and `signed`, (writers, readers).
        n: number of edges, from 1 to `graph.n_edges`.
        absolute: rank by size, so that edges that oppose the behaviour are found too; else by the
            signed score, supporting edges first.
        by: the ranking by name, see `By`; overrides `absolute`. "mean_absolute" needs scores that
            keep mean absolute effects (`absolute`), as `EdgeScores` do.
        connected: see above.

    Raises:
        InterpError: n out of range, an unknown ranking or one the scores do not have, scores of
            another shape, or not finite on an edge.
    """
    order = ranked(scores, absolute=absolute, by=by)
    return _longest(scores.graph, order, n, connected)


def greedy_edges(
    scores: Scored, n: int, *, absolute: bool = True, by: By | None = None
) -> np.ndarray:
    """Edges chosen from the logits backwards, as a mask of at most n connected edges.

    The best edge into the logits comes first; its writer's inputs then compete with the rest, and
    so on, so that every edge chosen leads to the logits. Edges whose writer was never reached from
    the input are dropped, and do not count towards n. Source: `apply_greedy` of hannamw/EAP-IG,
    which counts them.

    Raises:
        InterpError: as `top_edges`.
    """
    graph = scores.graph
    values = edge_strength(scores, absolute=absolute, by=by)
    inputs_of = graph.feeds.T  # (writers, readers): what a writer computes from
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
        for further in np.flatnonzero(inputs_of[writer] & ~opened):
            open_reader(int(further))
    return _longest(graph, np.array(order), n, connected=True)


CUTS = {"best": top_edges, "greedy": greedy_edges}
"""How a circuit of a size is cut from scores."""


def ranked(scores: Scored, *, absolute: bool = True, by: By | None = None) -> np.ndarray:
    """(edges, 2) writers and readers, best first."""
    readers, writers = np.nonzero(scores.graph.allowed.T)
    values = edge_strength(scores, absolute=absolute, by=by)[writers, readers]
    order = np.argsort(-values, kind="stable")
    return np.stack([writers, readers], axis=1)[order]


def edge_strength(scores: Scored, *, absolute: bool = True, by: By | None = None) -> np.ndarray:
    """(writers, readers) what edges are ranked by.

    Raises:
        InterpError: an unknown ranking or one the scores do not have, scores of another shape, or
            not finite on an edge.
    """
    by = by or ("absolute" if absolute else "signed")
    if by not in RANKINGS:
        raise unknown("ranking", by, RANKINGS)
    graph = scores.graph
    found = scores.signed if by != "mean_absolute" else getattr(scores, "absolute", None)
    if not isinstance(found, np.ndarray):
        raise InterpError(
            "edges by mean absolute effect",
            "these scores keep means of signed effects alone",
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
    """The mask of the longest prefix of an order that keeps at most n edges."""
    if not 1 <= n <= graph.n_edges:
        raise InterpError(
            f"a circuit of {n} edges", f"the graph has {graph.n_edges}", "ask for 1 to all"
        )

    def prefix(length: int) -> np.ndarray:
        mask = np.zeros(graph.shape, dtype=bool)
        mask[tuple(order[:length].T)] = True
        return graph.connected(mask) if connected else mask

    return prefix(_last(len(order), lambda length: int(prefix(length).sum()) <= n))


def _last(longest: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `longest` at which a condition holds that, once lost, stays lost."""
    low, high = 0, longest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
