"""`Circuit`: some edges of a model's graph, with where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.circuits.random_edges import alike, connected_alike, edge_kinds, end_kinds
from interp.core.arguments import listed
from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.core.records import Provenance, Record
from interp.engine.edges.graph import INPUT, Graph

if TYPE_CHECKING:
    pass

Level = Literal["edge", "node"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a circuit was found, so that it can be found again on other prompts.

    Attributes:
        method: a method of `score_edges`, or a search.
        options: its options, by the names `score_edges` has for them.
        by: the ranking its edges were cut by, see `search.By`.
        search: "best" or "greedy".
    """

    method: str
    options: Mapping[str, Any]
    by: str = "absolute"
    search: str = "best"


@dataclass(frozen=True, kw_only=True, eq=False)
class Circuit(Record):
    """Edges of a graph.

    Attributes:
        graph: the graph they belong to.
        mask: (writers, readers) bool: the edges in the circuit.
        scores: (writers, readers) of all edges, if they were scored; positive supports.
        name: what to call it in tables.
        method: how it was found, in words.
        provenance: model, task and call it comes from, if it was found here.
        origin: how to find it again, if it was found here.
    """

    graph: Graph
    mask: np.ndarray
    scores: np.ndarray | None = None
    name: str = "circuit"
    method: str = ""
    provenance: Provenance | None = None
    origin: Origin | None = None

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
        """The circuit of some edges such as L3H4->L5KV1.k.

        Raises:
            InterpError: an edge that the graph does not have.
        """
        return cls(graph=graph, mask=graph.mask(edges), **facts)

    # -- what is in it ---------------------------------------------------------------------

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.mask.sum())

    @property
    def share(self) -> float:
        """Its edges as a share of the graph's."""
        return self.n_edges / self.graph.n_edges

    @property
    def signed(self) -> np.ndarray:
        """The scores; for functions that rank edges.

        Raises:
            InterpError: the edges were not scored.
        """
        if self.scores is None:
            raise InterpError(f"scores of {self.name}", "none were kept", "score the edges first")
        return self.scores

    def edges(self) -> list[str]:
        """Labels of its edges, by reader, in causal order."""
        return self.graph.labels(self.mask)

    @property
    def writers(self) -> np.ndarray:
        """(writers,) bool: its nodes, those that an edge of the circuit leaves."""
        return np.any(self.mask, axis=1)

    def nodes(self) -> list[str]:
        """Labels of its nodes in causal order."""
        return [self.graph.writers[place] for place in np.flatnonzero(self.writers)]

    def overlap(self, other: Circuit) -> dict[str, float]:
        """Edges and nodes in common: how many, and over those in either (Jaccard).

        Of two empty circuits the Jaccard index is 1. "input" is in every circuit and is left out.

        Raises:
            InterpError: circuits of different graphs.
        """
        if self.graph != other.graph:
            raise InterpError(
                f"the overlap of {self.name} and {other.name}",
                f"graphs {self.graph} and {other.graph}",
                "compare circuits of one graph; see native()",
            )
        found: dict[str, float] = {}
        place = self.graph.writer(INPUT) + 1
        pairs = {
            "edges": (self.mask, other.mask),
            "nodes": (self.writers[place:], other.writers[place:]),
        }
        for what, (left, right) in pairs.items():
            found[f"shared_{what}"] = int((left & right).sum())
            found[f"jaccard_{what}"] = jaccard(left, right)
        return found

    # -- others like it --------------------------------------------------------------------

    def connected(self) -> Circuit:
        """Without the edges that lie on no path from the input to the logits."""
        return replace(self, mask=self.graph.connected(self.mask))

    def whole_nodes(self) -> Circuit:
        """Every edge between its nodes: the circuit at node granularity."""
        return replace(self, mask=_between(self.graph, self.writers))

    def without(self, parts: Iterable[str]) -> Circuit:
        """Less some edges, or nodes with all edges that leave or enter them.

        An edge into a key or value that several heads share goes with the last of them.

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
        level: Level = "edge",
        bands: int = 3,
        connected: bool = False,
    ) -> Circuit:
        """A random circuit of the same size: for each edge another of its kind and depth.

        Kinds are input, head or MLP for writers and q, k, v, MLP or logits for readers; depth is
        one of `bands` equal parts of the layers, for either end. Edges are drawn without
        replacement from all of the kind, the circuit's own among them. At level "node" nodes are
        drawn so, and every edge between them is taken. Most of a small circuit's random edges lie
        on no path; with `connected` all do (see `random_masks.connected_alike`): a harder null.
        """
        graph = self.graph
        if level == "node":
            possible = np.ones_like(self.writers)
            nodes = alike(self.writers, end_kinds(graph, bands)[0], possible, rng)
            mask = _between(graph, nodes)
        elif connected:
            mask = connected_alike(graph, self.mask, rng, bands=bands)
        else:
            mask = alike(self.mask, edge_kinds(graph, bands), graph.allowed, rng)
        name = f"random, like {self.name}"
        return replace(self, mask=mask, scores=None, name=name, method="random", origin=None)

    def native(self) -> Circuit:
        """On the graph with one reader per key/value head: an edge is in if one of its copies is.

        Scores are sums over the copies.
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
        """On the graph with key and value readers per query head: with an edge, all its copies.

        A score is divided equally among the copies, whose sum it is.
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
        """Fingerprint of the edges and their graph."""
        return content_key([asdict(self.graph), np.packbits(self.mask).tobytes().hex()])


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Shared entries of two masks over those in either; 1 if both are empty."""
    either = int((left | right).sum())
    return int((left & right).sum()) / either if either else 1.0


def drop_nodes(graph: Graph, mask: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The mask without the edges that leave or enter some writers, (writers,) bool.

    A key or value reader goes when every head it serves has gone.
    """
    readers = np.any(graph.feeds, axis=1) & ~(graph.feeds @ ~gone)
    return mask & ~gone[:, None] & ~readers


def _between(graph: Graph, nodes: np.ndarray) -> np.ndarray:
    """Every edge between some nodes, (writers,) bool, and from them to the logits."""
    readers = graph.feeds @ nodes
    readers[-1] = True
    return graph.allowed & nodes[:, None] & readers
