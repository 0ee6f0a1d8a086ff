"""Drawings of positioned circuits: layers from bottom to top, positions from left to right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.circuits.drawing import MOST, Drawing, heights_of, kind_of, short_name, targets
from interp.circuits.positions.positioned_circuit import AT, ELSEWHERE, PositionedCircuit
from interp.engine.edges.graph import LOGITS
from interp.plots.graphs import GROUPS, Link, Node, layered_graph
from interp.plots.style import hover_text

WIDTH = 1.2
"""The width of all columns together."""

NodeAt = tuple[int, int]
"""A writer (-1: the logits) and the index of a position."""


def draw_positions(
    circuit: PositionedCircuit,
    values: np.ndarray,
    *,
    edge: str | None = None,
    most: int = MOST,
) -> Drawing:
    """Draw the `most` strongest positioned edges: width by |effect|, colour by sign.

    Every position is a column, in the order of `circuit.positions`, with "elsewhere" first. Edges
    into queries, MLPs and the logits stay in their column. An edge into a key or value is drawn to
    every position at which the head's output is used, since attention moves it there; positions
    before that of the key are skipped. A click on an edge reports (0, writer, reader, position), on
    a node (1, writer, position, 0).

    Args:
        circuit: a circuit whose positions are in the order of the prompt.
        values: (writers, readers, positions) effects.
        edge: an edge to highlight, such as "L3H4->L5KV1.k @ S2".
        most: the number of edges drawn.
    """
    graph, mask = circuit.graph, circuit.mask
    found = np.argwhere(mask)
    order = np.argsort(-np.abs(values[mask]), kind="stable")[:most]
    limit = float(np.abs(values[mask]).max(initial=0.0)) or 1.0
    ends = {
        (writer, reader, position): _ends(circuit, reader, position)
        for writer, reader, position in found[order[::-1]].tolist()
    }
    nodes_at: set[NodeAt] = {(writer, position) for writer, _, position in ends}
    nodes_at |= {end for some in ends.values() for end in some}
    heights, rows = heights_of(graph, {node for node, _ in nodes_at})
    across = _across(circuit, nodes_at)
    positive, negative = GROUPS
    links = []
    for (writer, reader, position), some in ends.items():
        value = float(values[writer, reader, position])
        label = f"{graph.label(writer, reader)}{AT}{circuit.positions[position]}"
        for end in some:
            to = "" if end[1] == position else f", to {circuit.positions[end[1]]}"
            links.append(
                Link(
                    start=(across[writer, position], heights[writer] + 0.12),
                    end=(across[end], heights[end[0]] - 0.12),
                    bend=0.0,
                    strength=abs(value) / limit,
                    group=positive if value >= 0 else negative,
                    data=(0, writer, reader, position),
                    text=hover_text(label, f"{value:+z.4f}{to}"),
                    selected=label == edge,
                )
            )
    sums = np.where(mask, values, 0.0).sum(1)
    nodes = [
        Node(
            label="" if node == 0 else short_name(graph, node),
            kind=kind_of(graph, node),
            x=across[node, position],
            y=heights[node],
            data=(1, node, position, 0),
            text=hover_text(
                f"{LOGITS if node < 0 else graph.writers[node]}{AT}{circuit.positions[position]}",
                "" if node < 0 else f"edges out {sums[node, position]:+z.4f}",
            ),
        )
        for node, position in sorted(nodes_at)
    ]
    figure = layered_graph(
        nodes,
        links,
        rows=rows,
        columns={
            circuit.positions[position]: x for position, x in _columns(circuit.positions).items()
        },
        height=int(np.clip(46 * len(rows), 320, 1400)),
    )
    return Drawing(figure=figure, drawn=len(ends), hidden=len(found) - len(ends))


def _ends(circuit: PositionedCircuit, reader: int, position: int) -> list[NodeAt]:
    """The nodes, with positions, to which an edge read at a position is drawn."""
    graph = circuit.graph
    fed = targets(graph, reader, np.any(circuit.mask, axis=(1, 2)))
    if graph.reader_kind[reader] not in ("k", "v"):
        return [(node, position) for node in fed]
    writes = np.any(circuit.mask, axis=1)
    found = [
        (node, to)
        for node in fed
        for to in np.flatnonzero(writes[node]).tolist()
        if to >= position or ELSEWHERE in (circuit.positions[to], circuit.positions[position])
    ]
    return found or [(node, position) for node in fed]


def _columns(positions: Sequence[str]) -> dict[int, float]:
    """The x coordinate of the middle of every position's column."""
    order = sorted(range(len(positions)), key=lambda position: positions[position] != ELSEWHERE)
    return {position: WIDTH * (i + 0.5) / len(positions) for i, position in enumerate(order)}


def _across(circuit: PositionedCircuit, nodes_at: set[NodeAt]) -> dict[NodeAt, float]:
    """The x coordinate of every node: nodes of a layer side by side in their column."""
    graph, middles = circuit.graph, _columns(circuit.positions)
    cells: dict[tuple[int, int], list[int]] = {}
    for node, position in sorted(nodes_at):
        layer = graph.n_layers if node < 0 else int(graph.writer_layer[node])
        cells.setdefault((layer, position), []).append(node)
    width = WIDTH / len(circuit.positions)
    return {
        (node, position): middles[position] + width * ((i + 0.5) / len(nodes) - 0.5)
        for (_, position), nodes in cells.items()
        for i, node in enumerate(nodes)
    }
