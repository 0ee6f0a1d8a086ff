"""Drawings of circuits: layers from bottom to top, heads in columns, MLPs on the right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.core.components import Component
from interp.engine.edges.graph import LOGITS, Graph
from interp.plots.graphs import GROUPS, Link, Node, layered_graph
from interp.plots.style import CHOSEN, LOWERS, hover_text

MOST = 250
"""The most edges that are drawn; more are unreadable."""

SIDE = 1.12
"""The x coordinate of MLPs; heads are between 0 and 1."""

BOTH, LEFT, RIGHT = "both", "the first only", "the second only"
OVERLAP = {BOTH: "#2e8b57", LEFT: LOWERS, RIGHT: CHOSEN}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure, the number of edges it shows, and the number it omits."""

    figure: Any
    drawn: int
    hidden: int


def draw_circuit(
    graph: Graph,
    mask: np.ndarray,
    signed: np.ndarray,
    *,
    edge: str | None = None,
    node: str | None = None,
    most: int = MOST,
) -> Drawing:
    """Draw the `most` strongest edges of a circuit: width by |score|, colour by sign.

    An edge into a key or value that several heads share is drawn to each of these heads in the
    circuit. Edges enter a head on the left (query), in the middle (key) or on the right (value).
    A click on an edge reports (0, writer, reader), on a node (1, writer, 0).

    Args:
        graph: the graph.
        mask: (writers, readers) the circuit.
        signed: (writers, readers) scores.
        edge: label of an edge to highlight.
        node: label of a node to highlight.
        most: the number of edges drawn.
    """
    positive, negative = GROUPS
    groups = np.where(signed >= 0, positive, negative)
    return _draw(graph, mask, signed, groups, GROUPS, most, edge=edge, node=node)


def draw_overlap(
    graph: Graph, left: np.ndarray, right: np.ndarray, signed: np.ndarray, *, most: int = MOST
) -> Drawing:
    """Draw the edges of two circuits, coloured by the circuits they are in; width by |score|."""
    groups = np.where(left & right, BOTH, np.where(left, LEFT, RIGHT))
    return _draw(graph, left | right, signed, groups, OVERLAP, most)


def _draw(
    graph: Graph,
    mask: np.ndarray,
    signed: np.ndarray,
    groups: np.ndarray,
    colours: Mapping[str, str],
    most: int,
    *,
    edge: str | None = None,
    node: str | None = None,
) -> Drawing:
    edges = np.argwhere(mask)
    order = np.argsort(-np.abs(signed[mask]), kind="stable")[:most]
    drawn = edges[order[::-1]]
    inside = np.any(mask, axis=1)
    shown = {int(writer) for writer, _ in drawn}
    shown |= {node for _, reader in drawn for node in targets(graph, int(reader), inside)}
    heights, rows = heights_of(graph, shown)
    limit = float(np.abs(signed[mask]).max(initial=0.0)) or 1.0
    marked = None if edge is None else graph.edge(edge)
    links, present = [], {}
    for writer, reader in drawn.tolist():
        for target in targets(graph, reader, inside):
            start, end, bend = _course(graph, writer, reader, target, heights)
            value = float(signed[writer, reader])
            links.append(
                Link(
                    start=start,
                    end=end,
                    bend=bend,
                    strength=abs(value) / limit,
                    group=str(groups[writer, reader]),
                    data=(0, writer, reader),
                    text=hover_text(graph.label(writer, reader), f"{value:+z.4f}"),
                    selected=marked == (writer, reader),
                )
            )
            present[target] = present[writer] = True
    sums = np.where(mask, signed, 0.0).sum(1)
    nodes = [
        _node(graph, number, heights, float(sums[number]) if number >= 0 else 0.0, node)
        for number in present
    ]
    figure = layered_graph(
        nodes, links, rows=rows, colours=colours, height=int(np.clip(46 * len(rows), 320, 1400))
    )
    return Drawing(figure=figure, drawn=len(drawn), hidden=len(edges) - len(drawn))


def heights_of(graph: Graph, nodes: set[int]) -> tuple[dict[int, float], dict[str, float]]:
    """The height of every drawn node (-1: the logits), and of every row by its label."""
    layers = sorted({int(graph.writer_layer[node]) for node in nodes if node >= 0} - {-1})
    heights, rows = {0: 0.0}, {"input": 0.0}
    for row, layer in enumerate(layers, 1):
        rows[f"layer {layer}"] = float(row)
    for node in nodes - {-1, 0}:
        height = rows[f"layer {int(graph.writer_layer[node])}"]
        heights[node] = height + {"mlp": 0.3, "neuron": 0.6}.get(str(graph.writer_kind[node]), 0.0)
    heights[-1] = rows["logits"] = float(len(layers) + 1)
    return heights, rows


def targets(graph: Graph, reader: int, inside: np.ndarray) -> list[int]:
    """The nodes that use a reader: those in the circuit, or else the first."""
    if reader == len(graph.readers) - 1:
        return [-1]
    fed = np.flatnonzero(graph.feeds[reader])
    return (fed[inside[fed]] if inside[fed].any() else fed[:1]).tolist()


def _x(graph: Graph, node: int) -> float:
    """The x coordinate of a node."""
    if node <= 0:
        return 0.5
    if graph.writer_kind[node] == "mlp":
        return SIDE
    layer = int(graph.writer_layer[node])
    heads = graph.heads(layer)
    if graph.writer_kind[node] == "neuron":
        return 1.0 + 0.2 * (node - heads.stop + 0.5) / len(graph.chosen(layer))
    return (node - heads.start + 0.5) / graph.n_heads


def _course(
    graph: Graph, writer: int, reader: int, target: int, heights: Mapping[int, float]
) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Start, end and bend of a link.

    Long links between nodes in one column are bent, so that they do not cover other nodes.
    """
    aside = {"q": -0.016, "v": 0.016}.get(str(graph.reader_kind[reader]), 0.0)
    start = (_x(graph, writer), heights[writer] + 0.12)
    end = (_x(graph, target) + aside, heights[target] - 0.12)
    span = heights[target] - heights[writer]
    level = abs(start[0] - end[0]) < 0.03
    bend = min(0.035 * span, 0.25) if level and span > 1 else 0.0
    return start, end, bend if start[0] >= 0.5 else -bend


def _node(
    graph: Graph, number: int, heights: Mapping[int, float], total: float, chosen: str | None
) -> Node:
    out = "" if number < 0 else f"edges out {total:+z.4f}"
    label = LOGITS if number < 0 else graph.writers[number]
    return Node(
        label=short_name(graph, number),
        kind=kind_of(graph, number),
        x=_x(graph, number),
        y=heights[number],
        data=(1, number, 0),
        text=hover_text(label, out),
        selected=label == chosen,
    )


def kind_of(graph: Graph, number: int) -> str:
    """The kind of a node: that of its writer, or "logits" for -1."""
    return LOGITS if number < 0 else str(graph.writer_kind[number])


def short_name(graph: Graph, number: int) -> str:
    """The short label of a node."""
    kind = kind_of(graph, number)
    if kind == "neuron":
        return f"N{Component.parse(graph.writers[number]).index}"
    if kind == "head":
        return f"H{number - graph.heads(int(graph.writer_layer[number])).start}"
    return "MLP" if kind == "mlp" else kind
