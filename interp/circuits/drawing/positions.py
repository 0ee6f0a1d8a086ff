"""A circuit token by token as a picture: layers from bottom to top, places from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from interp.circuits.drawing.circuit import MOST, Drawing, heights_of, kind_of, short_name, targets
from interp.circuits.positions.positioned_circuit import AT, ELSEWHERE, PositionedCircuit
from interp.engine.edges.graph import LOGITS
from interp.plots.graphs import GROUPS, Link, Node, layered_graph
from interp.plots.style import hover_text

WIDTH = 1.2
"""Of all columns together."""

At = tuple[int, int]
"""A writer (-1: the logits) at the number of a place."""


def draw_places(
    circuit: PositionedCircuit,
    values: np.ndarray,
    *,
    edge: str | None = None,
    most: int = MOST,
) -> Drawing:
    """Edges by place, width by |effect| and colour by sign; the `most` strongest.

    A column is a place, in the order of `circuit.places`, "elsewhere" first. Queries, MLPs and the
    logits read in their own column; a key or value read at one place is drawn to where its head
    writes: what attention carries from token to token. A head that writes before what it would
    read there is left out. A click on an edge reports (0, writer, reader, place), on a node
    (1, writer, place, 0).

    Args:
        circuit: places in the order of the prompt.
        values: (writers, readers, places) effects.
        edge: an edge to mark, such as "L3H4->L5KV1.k @ S2".
        most: see above.
    """
    graph, mask = circuit.graph, circuit.mask
    found = np.argwhere(mask)
    order = np.argsort(-np.abs(values[mask]), kind="stable")[:most]
    limit = float(np.abs(values[mask]).max(initial=0.0)) or 1.0
    ends = {
        (writer, reader, place): _ends(circuit, reader, place)
        for writer, reader, place in found[order[::-1]].tolist()
    }
    spots: set[At] = {(writer, place) for writer, _, place in ends}
    spots |= {end for some in ends.values() for end in some}
    heights, rows = heights_of(graph, {node for node, _ in spots})
    across = _across(circuit, spots)
    positive, negative = GROUPS
    links = []
    for (writer, reader, place), some in ends.items():
        value, label = float(values[writer, reader, place]), _label(circuit, writer, reader, place)
        for end in some:
            to = "" if end[1] == place else f", to {circuit.places[end[1]]}"
            links.append(
                Link(
                    start=(across[writer, place], heights[writer] + 0.12),
                    end=(across[end], heights[end[0]] - 0.12),
                    bend=0.0,
                    strength=abs(value) / limit,
                    group=positive if value >= 0 else negative,
                    data=(0, writer, reader, place),
                    text=hover_text(label, f"{value:+.4f}{to}"),
                    selected=label == edge,
                )
            )
    sums = np.where(mask, values, 0.0).sum(1)
    nodes = [
        Node(
            label=short_name(graph, node),
            kind=kind_of(graph, node),
            x=across[node, place],
            y=heights[node],
            data=(1, node, place, 0),
            text=hover_text(
                f"{LOGITS if node < 0 else graph.writers[node]}{AT}{circuit.places[place]}",
                "" if node < 0 else f"edges out {sums[node, place]:+.4f}",
            ),
        )
        for node, place in sorted(spots)
    ]
    figure = layered_graph(
        [replace(node, label="") if node.kind == "input" else node for node in nodes],
        links,
        rows=rows,
        columns={circuit.places[place]: x for place, x in _columns(circuit.places).items()},
        height=int(np.clip(46 * len(rows), 320, 1400)),
    )
    return Drawing(figure=figure, drawn=len(ends), hidden=len(found) - len(ends))


def _label(circuit: PositionedCircuit, writer: int, reader: int, place: int) -> str:
    return f"{circuit.graph.label(writer, reader)}{AT}{circuit.places[place]}"


def _ends(circuit: PositionedCircuit, reader: int, place: int) -> list[At]:
    """Where what is read at a place comes out."""
    graph = circuit.graph
    fed = targets(graph, reader, np.any(circuit.mask, axis=(1, 2)))
    if graph.reader_kind[reader] not in ("k", "v"):
        return [(node, place) for node in fed]
    writes = np.any(circuit.mask, axis=1)
    found = [
        (node, to)
        for node in fed
        for to in np.flatnonzero(writes[node]).tolist()
        if to >= place or ELSEWHERE in (circuit.places[to], circuit.places[place])
    ]
    return found or [(node, place) for node in fed]


def _columns(places: Sequence[str]) -> dict[int, float]:
    """The middle of every place's column."""
    order = sorted(range(len(places)), key=lambda place: places[place] != ELSEWHERE)
    return {place: WIDTH * (i + 0.5) / len(places) for i, place in enumerate(order)}


def _across(circuit: PositionedCircuit, spots: set[At]) -> dict[At, float]:
    """Where each node stands: those of a layer side by side in their column, MLPs at the right."""
    graph, middles = circuit.graph, _columns(circuit.places)
    cells: dict[tuple[int, int], list[int]] = {}
    for node, place in sorted(spots):
        layer = graph.n_layers if node < 0 else int(graph.writer_layer[node])
        cells.setdefault((layer, place), []).append(node)
    width = WIDTH / len(circuit.places)
    return {
        (node, place): middles[place] + width * ((i + 0.5) / len(nodes) - 0.5)
        for (_, place), nodes in cells.items()
        for i, node in enumerate(nodes)
    }
