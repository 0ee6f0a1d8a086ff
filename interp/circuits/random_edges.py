"""Random edges that match a circuit's in kind and depth, with or without connected paths."""

from __future__ import annotations

import numpy as np

from interp.engine.edges.graph import INPUT, Graph


def edge_kinds(graph: Graph, bands: int) -> np.ndarray:
    """(writers, readers) numbers: equal where both ends have the same kinds and depths."""
    writers, readers = end_kinds(graph, bands)
    return writers[:, None] * (int(readers.max()) + 1) + readers


def end_kinds(graph: Graph, bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers for the kind and depth of every writer, and of every reader."""

    def ends(kinds: np.ndarray, layers: np.ndarray) -> np.ndarray:
        depth = np.clip(layers * bands // graph.n_layers, 0, bands - 1)
        names = [f"{kind} {band}" for kind, band in zip(kinds, depth, strict=True)]
        return np.unique(names, return_inverse=True)[1]

    return (
        ends(graph.writer_kind, graph.writer_layer),
        ends(graph.reader_kind, graph.reader_layer),
    )


def draw_matched(
    chosen: np.ndarray, kinds: np.ndarray, possible: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A random mask with as many entries of each kind as `chosen`, or all possible if fewer."""
    drawn = np.zeros_like(chosen)
    for kind, count in zip(*np.unique(kinds[chosen], return_counts=True), strict=True):
        entries = np.flatnonzero((kinds == kind) & possible)
        drawn.flat[rng.choice(entries, min(int(count), len(entries)), replace=False)] = True
    return drawn


def draw_connected(
    graph: Graph, mask: np.ndarray, rng: np.random.Generator, *, bands: int
) -> np.ndarray:
    """A random connected mask with as many edges, matched in kind and depth as far as possible.

    Draws random nodes that match the mask's in kind and depth, and for each an edge out and an edge
    in, so that all lie on paths from the input to the logits. Then random edges between these nodes
    are added up to the mask's number of edges: first of the kinds still missing, then of any kind.
    Nodes are dropped if their paths alone need too many edges, and added if there are too few edges
    between them.
    """
    total = int(mask.sum())
    if not total:
        return np.zeros_like(mask)
    inner = np.any(mask, axis=1)
    inner[graph.writer(INPUT)] = False
    writers = end_kinds(graph, bands)[0]
    possible = graph.writer_kind != "input"
    chosen = draw_matched(inner, writers, possible, rng)
    order = rng.permutation(np.flatnonzero(chosen))
    others = rng.permutation(np.flatnonzero(possible & ~chosen))
    kinds = edge_kinds(graph, bands)
    drawn = _paths(graph, order, mask, kinds, rng)
    while (excess := int(drawn.sum()) - total) > 0 and len(order):
        order = order[: -max(1, excess // 2)]
        drawn = _paths(graph, order, mask, kinds, rng)
    while int(_between(graph, order).sum()) < total and len(others):
        order, others = np.append(order, others[0]), others[1:]
        drawn = _paths(graph, order, mask, kinds, rng)
    between = _between(graph, order)
    wanted = mask.copy()
    for kind, taken in zip(*np.unique(kinds[drawn], return_counts=True), strict=True):
        wanted.flat[np.flatnonzero(mask & (kinds == kind))[:taken]] = False
    missing = draw_matched(wanted, kinds, between & ~drawn, rng)
    drawn |= _at_most(missing, total - int(drawn.sum()), rng)
    return drawn | _at_most(between & ~drawn, total - int(drawn.sum()), rng)


def _paths(
    graph: Graph, order: np.ndarray, mask: np.ndarray, kinds: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """One edge out of every node, and one edge into each node that has none yet."""
    drawn, between = np.zeros_like(mask), _between(graph, order)
    weight = 1e-3 + np.bincount(kinds[mask], minlength=int(kinds.max()) + 1)[kinds]
    weight = np.where(between, weight, 0.0)

    def draw(writers: np.ndarray, readers: np.ndarray) -> None:
        share = np.cumsum(weight[np.ix_(writers, readers)].ravel())
        entry = int(np.searchsorted(share, rng.random() * share[-1], side="right"))
        row, column = divmod(entry, len(readers))
        drawn[writers[row], readers[column]] = True

    writers, readers = (np.arange(size) for size in mask.shape)
    for writer in np.sort(order):
        draw(np.array([writer]), readers)
    for writer in np.sort(order):
        into = np.flatnonzero(graph.feeds[:, writer])
        if not drawn[:, into].any():
            draw(writers, into)
    if not len(order):
        draw(writers, readers)
    return drawn


def edges_between(graph: Graph, nodes: np.ndarray) -> np.ndarray:
    """All edges between some nodes, given as (writers,) bool, and from them to the logits."""
    readers = graph.feeds @ nodes
    readers[-1] = True
    return graph.allowed & nodes[:, None] & readers


def _between(graph: Graph, order: np.ndarray) -> np.ndarray:
    """All edges among some nodes, given by number, from the input to them, and to the logits."""
    inside = np.zeros(len(graph.writers), dtype=bool)
    inside[[graph.writer(INPUT), *order]] = True
    return edges_between(graph, inside)


def _at_most(chosen: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """At most `number` random entries of a mask."""
    entries = np.flatnonzero(chosen)
    kept = np.zeros_like(chosen)
    kept.flat[rng.permutation(entries)[:number]] = True
    return kept
