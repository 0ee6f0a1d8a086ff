"""`Circuit`: a subset of the edges of a model's graph, and how it was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.circuits.drawing import draw_circuit
from interp.circuits.random_edges import (
    draw_connected,
    draw_matched,
    edge_kinds,
    edges_between,
    end_kinds,
)
from interp.core.arguments import listed
from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.core.records import Provenance, Record
from interp.engine.edges.graph import INPUT, Graph
from interp.plots.tables import Tabled

if TYPE_CHECKING:
    from pandas import DataFrame

CircuitLevel = Literal["edge", "node"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a circuit was found, so that the method can be repeated on other prompts.

    Attributes:
        method: a method of `score_edges`, or a search.
        options: its options, under the argument names of `score_edges`.
        by: the ranking that its edges were selected by, see `interp.circuits.ranking.By`.
        search: how they were selected: "best" or "greedy".
    """

    method: str
    options: Mapping[str, Any]
    by: str = "absolute"
    search: str = "best"


@dataclass(frozen=True, kw_only=True, eq=False)
class Circuit(Tabled, Record):
    """A subset of the edges of a graph.

    Attributes:
        graph: the graph.
        mask: (writers, readers) bool: the edges in the circuit.
        scores: (writers, readers) scores of all edges, positive for edges that support the
            behaviour; None if the edges were not scored.
        name: its name in tables.
        method: how it was found, in words.
        provenance: the model, task and call that it comes from; None for circuits from elsewhere.
        origin: how to find it again; None for circuits from elsewhere.
    """

    graph: Graph
    mask: np.ndarray
    scores: np.ndarray | None = None
    name: str = "circuit"
    method: str = ""
    provenance: Provenance | None = None
    origin: Origin | None = None

    strongest_by = "score"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", self.graph.check(np.asarray(self.mask)))
        if self.scores is not None and self.scores.shape != self.graph.shape:
            raise InterpError(
                f"the scores of {self.name}",
                f"shape {self.scores.shape}, the graph's is {self.graph.shape}",
                "give one score per (writer, reader)",
            )

    def __repr__(self) -> str:
        return (
            f"Circuit({self.name!r}, {self.n_edges} of {self.graph.n_edges} edges "
            f"({self.share:.2%}), {len(self.nodes())} nodes)"
        )

    def __len__(self) -> int:
        return self.n_edges

    def __contains__(self, edge: str) -> bool:
        return bool(self.mask[self.graph.edge(edge)])

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[str], **facts: Any) -> Circuit:
        """The circuit that consists of the given edges, such as L3H4->L5KV1.k.

        Raises:
            InterpError: an edge that the graph does not have.
        """
        return cls(graph=graph, mask=graph.mask(edges), **facts)

    # -- contents --------------------------------------------------------------------------

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.mask.sum())

    @property
    def share(self) -> float:
        """Its edges as a share of all edges of the graph."""
        return self.n_edges / self.graph.n_edges

    @property
    def signed(self) -> np.ndarray:
        """The scores of all edges, for functions that rank edges.

        Raises:
            InterpError: the edges were not scored.
        """
        if self.scores is None:
            raise InterpError(f"scores of {self.name}", "there are none", "score the edges first")
        return self.scores

    def edges(self) -> list[str]:
        """Labels of its edges, sorted by reader, in causal order."""
        return self.graph.labels(self.mask)

    def to_dataframe(self) -> DataFrame:
        """One row per edge, with its score; nan if the edges were not scored."""
        from pandas import DataFrame

        scores = np.full(self.n_edges, np.nan) if self.scores is None else self.scores[self.mask]
        labels = [self.graph.label(int(w), int(r)) for w, r in np.argwhere(self.mask)]
        return DataFrame({"edge": labels, "score": scores})

    def plot(self) -> Any:
        """A Plotly diagram of its strongest edges: layers upwards, heads across, MLPs at the right.

        Width is the absolute score, red supports the behaviour. Edges without scores are equal.
        """
        scores = np.ones(self.graph.shape) if self.scores is None else self.scores
        return draw_circuit(self.graph, self.mask, scores).figure

    @property
    def writers(self) -> np.ndarray:
        """(writers,) bool: its nodes, which are the writers of its edges."""
        return np.any(self.mask, axis=1)

    def nodes(self) -> list[str]:
        """Labels of its nodes in causal order."""
        return [self.graph.writers[writer] for writer in np.flatnonzero(self.writers)]

    def overlap(self, other: Circuit) -> dict[str, float]:
        """Number of edges and nodes in both circuits, and the Jaccard indices.

        The Jaccard index is the number in both over the number in either; 1 for two empty
        circuits. "input" is in every circuit and is not counted as a node.

        Raises:
            InterpError: circuits of different graphs.
        """
        if self.graph != other.graph:
            raise InterpError(
                f"the overlap of {self.name} and {other.name}",
                f"graphs {self.graph} and {other.graph}",
                "compare circuits of one graph; native() merges key/value copies",
            )
        after = self.graph.writer(INPUT) + 1
        nodes = self.writers[after:], other.writers[after:]
        return {
            "shared_edges": int((self.mask & other.mask).sum()),
            "jaccard_edges": jaccard(self.mask, other.mask),
            "shared_nodes": int((nodes[0] & nodes[1]).sum()),
            "jaccard_nodes": jaccard(*nodes),
        }

    # -- derived circuits ------------------------------------------------------------------

    def connected(self) -> Circuit:
        """The circuit without edges that lie on no path from the input to the logits."""
        return replace(self, mask=self.graph.connected(self.mask))

    def whole_nodes(self) -> Circuit:
        """The circuit of all edges between its nodes: the circuit at node level."""
        return replace(self, mask=edges_between(self.graph, self.writers))

    def without(self, parts: Iterable[str]) -> Circuit:
        """The circuit without some edges, or without nodes and all of their edges.

        Edges into a key or value that several heads share are removed with the last of these heads.

        Raises:
            InterpError: no such edge or node.
        """
        mask, gone = self.mask.copy(), np.zeros(len(self.graph.writers), dtype=bool)
        for part in listed(parts):
            if "->" in part:
                mask[self.graph.edge(part)] = False
            else:
                gone[self.graph.writer(part)] = True
        return replace(self, mask=drop_nodes(self.graph, mask, gone))

    def random_like(
        self,
        rng: np.random.Generator,
        *,
        level: CircuitLevel = "edge",
        bands: int = 3,
        connected: bool = False,
    ) -> Circuit:
        """A random circuit with the same number of edges of each kind and depth.

        Kinds are input, head or MLP for writers and q, k, v, MLP or logits for readers. The depth
        of each end is one of `bands` equal bands of layers. Edges are drawn without replacement
        from all edges of the kind, including the circuit's own. At level "node", nodes are drawn
        in this way, and all edges between them are taken. Most random edges of a small circuit lie
        on no path from the input to the logits. With `connected` all of them do, which is a harder
        null; see `interp.circuits.random_edges.draw_connected`.
        """
        graph = self.graph
        if level == "node":
            possible = np.ones_like(self.writers)
            nodes = draw_matched(self.writers, end_kinds(graph, bands)[0], possible, rng)
            mask = edges_between(graph, nodes)
        elif connected:
            mask = draw_connected(graph, self.mask, rng, bands=bands)
        else:
            mask = draw_matched(self.mask, edge_kinds(graph, bands), graph.allowed, rng)
        name = f"random, like {self.name}"
        return replace(self, mask=mask, scores=None, name=name, method="random", origin=None)

    def native(self) -> Circuit:
        """The circuit on the graph with one key and value reader per key/value head.

        An edge is kept if any of its copies is kept. Its score is the sum over the copies.
        """
        graph, copies = self.graph.native, self.graph.copies
        if not self.graph.expand_kv:
            return self
        mask, scores = np.zeros(graph.shape, dtype=bool), np.zeros(graph.shape)
        np.logical_or.at(mask.T, copies, self.mask.T)
        if self.scores is not None:
            np.add.at(scores.T, copies, self.scores.T)
        return replace(self, graph=graph, mask=mask, scores=None if self.scores is None else scores)

    def expanded(self) -> Circuit:
        """The circuit on the graph with separate key and value readers for every query head.

        All copies of an edge are kept, and its score is divided equally among them.
        """
        if self.graph.expand_kv:
            return self
        graph, copies = self.graph.expanded, self.graph.copies
        number = np.bincount(copies)[copies]
        scores = None if self.scores is None else self.scores[:, copies] / number
        return replace(self, graph=graph, mask=self.mask[:, copies], scores=scores)

    # -- files -----------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """A hash of the edges and their graph."""
        return content_key([asdict(self.graph), np.packbits(self.mask).tobytes().hex()])


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Jaccard index: entries in both masks over entries in either; 1 if both are empty."""
    either = int((left | right).sum())
    return int((left & right).sum()) / either if either else 1.0


def drop_nodes(graph: Graph, mask: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The mask without the edges of some nodes, given as (writers,) bool.

    Edges into a key or value reader are removed if all heads that use it are.
    """
    readers = np.any(graph.feeds, axis=1) & ~(graph.feeds @ ~gone)
    return mask & ~gone[:, None] & ~readers
