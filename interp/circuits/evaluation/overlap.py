"""The overlap of two circuits by kind of edge and node, compared with random circuits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from interp.circuits.circuit import Circuit, jaccard
from interp.core.errors import InterpError
from interp.core.nulls import Null, null_of
from interp.engine.edges.graph import Graph
from interp.plots.tables import Tabled

READERS = {
    "q": "edges into queries",
    "k": "edges into keys",
    "v": "edges into values",
    "mlp": "edges into MLPs",
    "neuron": "edges into neurons",
    "logits": "edges into the logits",
}
WRITERS = {"head": "heads", "mlp": "MLPs", "neuron": "neurons"}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The overlap of two circuits in one kind of edge or node.

    Attributes:
        kind: the kind.
        left: the number in the first circuit.
        right: the number in the second.
        shared: the number in both.
        jaccard: the number in both over the number in either; 1 if there are none.
        expected: the Jaccard index compared with matched random circuits; None without draws.
    """

    kind: str
    left: int
    right: int
    shared: int
    jaccard: float
    expected: Null | None


@dataclass(frozen=True, kw_only=True)
class CircuitComparison(Tabled):
    """The overlap of two circuits of one graph, in total and by kind of edge and node.

    The null are random circuits with the same number of edges of each kind and depth
    (`Circuit.random_like`). Overlap above the null is not explained by size and depth.

    Attributes:
        left: the first circuit.
        right: the second circuit.
        rows: the overlap of every kind.
        bands: number of layer bands in which depth is matched.
    """

    left: Circuit
    right: Circuit
    rows: tuple[Overlap, ...]
    bands: int

    def to_dataframe(self) -> Any:
        """One row per kind."""
        import pandas as pd

        rows, names = [], ("expected", "expected_low", "expected_high", "share")
        for row in self.rows:
            null, values = row.expected, [np.nan] * 4
            if null is not None:
                values = [null.mean, null.low, null.high, null.share]
            rows.append(vars(row) | dict(zip(names, values, strict=True)))
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Names, sizes and rows, as plain values."""
        sides = {"left": self.left, "right": self.right}
        return {
            **{side: {"name": c.name, "edges": c.n_edges} for side, c in sides.items()},
            "bands": self.bands,
            "rows": [asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        lines = [f"{self.left!r} and {self.right!r}"]
        for row in self.rows:
            expected = f"; {row.expected}" if row.expected else ""
            lines.append(
                f"  {row.kind:22} {row.left:6} {row.right:6} shared {row.shared:6} "
                f"Jaccard {row.jaccard:z.3f}{expected}"
            )
        return "\n".join(lines)


def compare_circuits(
    left: Circuit, right: Circuit, *, random: int = 200, bands: int = 3, seed: int = 0
) -> CircuitComparison:
    """Count the edges and nodes that two circuits share, and compare with random circuits.

    Args:
        left: a circuit.
        right: another circuit of the same graph. If only one of the two has separate key and value
            readers per query head, these are merged first.
        random: number of pairs of random circuits for the null; 0 for none.
        bands: number of layer bands in which their depth is matched.
        seed: seed of the random circuits.

    Raises:
        InterpError: circuits of different graphs.
    """
    if left.graph.expand_kv != right.graph.expand_kv:
        left, right = left.native(), right.native()
    if left.graph != right.graph:
        raise InterpError(
            f"comparing {left.name} and {right.name}",
            f"graphs {left.graph} and {right.graph}",
            "compare circuits of one graph",
        )
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(random):
        some = (parts(c.graph, c.random_like(rng, bands=bands).mask) for c in (left, right))
        drawn.append([jaccard(*both) for both in zip(*(x.values() for x in some), strict=True)])
    mine, yours = (parts(c.graph, c.mask) for c in (left, right))
    rows = []
    for number, (kind, a) in enumerate(mine.items()):
        b = yours[kind]
        found = jaccard(a, b)
        rows.append(
            Overlap(
                kind=kind,
                left=int(a.sum()),
                right=int(b.sum()),
                shared=int((a & b).sum()),
                jaccard=found,
                expected=null_of(found, np.array(drawn)[:, number]) if random else None,
            )
        )
    return CircuitComparison(left=left, right=right, rows=tuple(rows), bands=bands)


def parts(graph: Graph, mask: np.ndarray) -> dict[str, np.ndarray]:
    """A circuit's edges and nodes by kind, as bool arrays; "input" is not counted as a node."""
    writers, readers = graph.writer_kind, graph.reader_kind
    nodes = np.any(mask, axis=1) & (writers != "input")
    every = "heads, MLPs and neurons" if graph.neurons else "heads and MLPs"
    found = {"all edges": mask, every: nodes}
    found |= {name: nodes[writers == kind] for kind, name in WRITERS.items() if kind in writers}
    found |= {name: mask[:, readers == kind] for kind, name in READERS.items() if kind in readers}
    return found
