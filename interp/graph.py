"""The graph of a decoder: who writes to the residual stream, who reads from it, and in what order.

In a residual network a reader's input is a plain sum of what earlier writers wrote, so an edge is
one term of that sum and a circuit is a set of terms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

import numpy as np

from interp.components import Component
from interp.errors import InterpError
from interp.models.language_model import LanguageModel

INPUT, LOGITS = "input", "logits"
ARROW = "->"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Writers, readers and the edges between them that causality allows.

    Writers, in causal order: "input" (the embedding), then of every layer its heads "L3H4" and
    its MLP "L3.mlp_out". Readers, in causal order: of every layer all queries "L3H4.q", all keys
    "L3H1.k", all values "L3H1.v" and the MLP's input "L3.mlp_out"; then "logits". A reader is
    linked with every writer before it: attention with earlier layers, the MLP also with the heads
    of its own layer, unless attention and MLP run in parallel.

    With grouped-query attention keys and values have one reader per key/value head. With
    `expand_kv` they have one per query head: "L3H4.k" is then the copy of its key that head 4
    attends to. The score of a key/value head's edge is the sum over its copies. Where every head
    has keys of its own the two are one graph.

    Edges between L layers of H heads over K key/value heads number

        sum over l of (H + 2K) (1 + l(H+1)) + (1 + l(H+1) + H [not parallel])  +  1 + L(H+1)

    with K = H where expanded: 32,491 for GPT-2 small. Source: the graph of arXiv 2304.14997 and
    2403.17806, with key/value heads kept as they are in the model.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    expand_kv: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "expand_kv", self.expand_kv and self.n_heads > self.n_kv_heads)

    # -- nodes -----------------------------------------------------------------------------

    @property
    def n_kv_readers(self) -> int:
        """Key readers of a layer, and value readers."""
        return self.n_heads if self.expand_kv else self.n_kv_heads

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Labels of the writers in causal order."""
        names = [INPUT]
        for layer in range(self.n_layers):
            names += [str(Component(layer, "z", head)) for head in range(self.n_heads)]
            names.append(str(Component(layer, "mlp_out")))
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Labels of the readers in causal order."""
        names = []
        for layer in range(self.n_layers):
            for site, group in self.groups(layer).items():
                numbers = range(group.stop - group.start) if site != "mlp_out" else [None]
                names += [str(Component(layer, site, number)) for number in numbers]
        return (*names, LOGITS)

    @cached_property
    def writer_kind(self) -> np.ndarray:
        """(writers,) "input", "head" or "mlp"."""
        layer = ["head"] * self.n_heads + ["mlp"]
        return np.array(["input", *layer * self.n_layers])

    @cached_property
    def reader_kind(self) -> np.ndarray:
        """(readers,) "q", "k", "v", "mlp" or "logits"."""
        kv = self.n_kv_readers
        layer = ["q"] * self.n_heads + ["k"] * kv + ["v"] * kv + ["mlp"]
        return np.array([*layer * self.n_layers, "logits"])

    @cached_property
    def writer_layer(self) -> np.ndarray:
        """(writers,) layer of each writer; -1 for the input."""
        return np.array([-1, *np.repeat(np.arange(self.n_layers), self.n_heads + 1)])

    @cached_property
    def reader_layer(self) -> np.ndarray:
        """(readers,) layer of each reader; n_layers for the logits."""
        width = self.n_heads + 2 * self.n_kv_readers + 1
        return np.array([*np.repeat(np.arange(self.n_layers), width), self.n_layers])

    # -- places of a layer -----------------------------------------------------------------

    def groups(self, layer: int) -> dict[str, slice]:
        """A layer's readers by site: "q", "k", "v" and "mlp_out" (one reader)."""
        kv = self.n_kv_readers
        sizes = {"q": self.n_heads, "k": kv, "v": kv, "mlp_out": 1}
        start = layer * sum(sizes.values())
        found = {}
        for site, size in sizes.items():
            found[site] = slice(start, start + size)
            start += size
        return found

    def heads(self, layer: int) -> slice:
        """A layer's heads among the writers."""
        start = 1 + layer * (self.n_heads + 1)
        return slice(start, start + self.n_heads)

    def mlp(self, layer: int) -> int:
        """A layer's MLP among the writers."""
        return self.heads(layer).stop

    def before(self, layer: int) -> slice:
        """The writers before a layer's attention; of n_layers, all writers."""
        return slice(0, 1 + layer * (self.n_heads + 1))

    # -- edges -----------------------------------------------------------------------------

    @cached_property
    def allowed(self) -> np.ndarray:
        """(writers, readers) bool: the edges there are."""
        earlier = self.writer_layer[:, None] < self.reader_layer
        own = self.writer_layer[:, None] == self.reader_layer
        heads_to_mlp = (self.writer_kind == "head")[:, None] & (self.reader_kind == "mlp")
        allowed = earlier if self.parallel else earlier | own & heads_to_mlp
        allowed.flags.writeable = False
        return allowed

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.allowed.sum())

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a mask: (writers, readers)."""
        return len(self.writers), len(self.readers)

    @cached_property
    def feeds(self) -> np.ndarray:
        """(readers, writers) bool: the reader is an input of that writer's own computation."""
        feeds = np.zeros(self.shape[::-1], dtype=bool)
        share = self.n_heads // self.n_kv_readers
        for layer in range(self.n_layers):
            heads = np.arange(self.n_heads)
            groups = self.groups(layer)
            for site, per in (("q", 1), ("k", share), ("v", share)):
                feeds[groups[site].start + heads // per, self.heads(layer).start + heads] = True
            feeds[groups["mlp_out"], self.mlp(layer)] = True
        return feeds

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        writers, readers = (
            {name: number for number, name in enumerate(names)}
            for names in (self.writers, self.readers)
        )
        return writers, readers

    def writer(self, label: str) -> int:
        """The number of a writer.

        Raises:
            InterpError: no such writer; the nearest name is given.
        """
        return _number("writer", label, self._numbers[0])

    def reader(self, label: str) -> int:
        """The number of a reader.

        Raises:
            InterpError: no such reader; the nearest name is given.
        """
        return _number("reader", label, self._numbers[1])

    def edge(self, label: str) -> tuple[int, int]:
        """Writer and reader of an edge such as "L3H4->L5H1.k".

        Raises:
            InterpError: not an edge, an unknown end, or a writer that does not come before.
        """
        source, arrow, target = (part.strip() for part in label.partition(ARROW))
        if not arrow:
            raise InterpError(f"edge {label!r}", f"no {ARROW}", "write L3H4->L5H1.k")
        found = self.writer(source), self.reader(target)
        if not self.allowed[found]:
            raise InterpError(
                f"edge {label!r}",
                f"{target} does not read {source}: it does not come before",
                "name an earlier writer",
            )
        return found

    def label(self, writer: int, reader: int) -> str:
        """The inverse of `edge`."""
        return f"{self.writers[writer]}{ARROW}{self.readers[reader]}"

    def mask(self, edges: Iterable[str | tuple[int, int]] | None = None) -> np.ndarray:
        """(writers, readers) bool: all edges, or those named (labels, or pairs of numbers).

        Raises:
            InterpError: an edge that does not exist.
        """
        if edges is None:
            return self.allowed.copy()
        mask = np.zeros(self.shape, dtype=bool)
        for edge in edges:
            mask[self.edge(edge if isinstance(edge, str) else self.label(*edge))] = True
        return mask

    def check(self, mask: np.ndarray) -> np.ndarray:
        """The mask as bool, if it is one of this graph.

        Raises:
            InterpError: another shape, or edges the graph does not have.
        """
        if mask.shape != self.shape:
            raise InterpError(
                f"a mask of shape {mask.shape}", f"the graph's is {self.shape}", "use graph.mask()"
            )
        mask = mask.astype(bool)
        if (outside := mask & ~self.allowed).any():
            first = self.label(*np.argwhere(outside)[0])
            raise InterpError(
                "a mask", f"{int(outside.sum())} impossible edges, first {first}", "leave them out"
            )
        return mask

    def labels(self, mask: np.ndarray) -> list[str]:
        """The edges of a mask as labels, by reader, in causal order."""
        return [self.label(writer, reader) for reader, writer in np.argwhere(self.check(mask).T)]

    def entered(self, mask: np.ndarray) -> np.ndarray:
        """(writers,) bool: nodes with an edge of the mask into one of their readers."""
        return np.any(mask, axis=0) @ self.feeds

    def connected(self, mask: np.ndarray) -> np.ndarray:
        """The edges of a mask that lie on a path from the input to the logits within it.

        A head is on a path if any of its queries, keys or values is.
        """
        mask = self.check(mask)
        return mask & self.reached(mask)[:, None] & self.useful(mask)

    def reached(self, mask: np.ndarray) -> np.ndarray:
        """(writers,) bool: those with a path from the input within a mask, the input too."""
        reached = np.zeros(len(self.writers), dtype=bool)
        reached[0] = True
        for writer in range(1, len(self.writers)):
            inputs = mask[:, self.feeds[:, writer]]
            reached[writer] = bool((inputs & reached[:, None]).any())
        return reached

    def useful(self, mask: np.ndarray) -> np.ndarray:
        """(readers,) bool: those with a path to the logits within a mask, the logits too."""
        useful = np.zeros(len(self.readers), dtype=bool)
        useful[-1] = True
        for writer in range(len(self.writers) - 1, 0, -1):
            if (mask[writer] & useful).any():
                useful |= self.feeds[:, writer]
        return useful

    # -- key/value heads and their copies --------------------------------------------------

    @property
    def native(self) -> Graph:
        """The same graph with one reader per key/value head."""
        return self._with(expand_kv=False)

    @property
    def expanded(self) -> Graph:
        """The same graph with key and value readers per query head."""
        return self._with(expand_kv=True)

    def _with(self, *, expand_kv: bool) -> Graph:
        return Graph(
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            parallel=self.parallel,
            expand_kv=expand_kv,
        )

    @cached_property
    def copies(self) -> np.ndarray:
        """(expanded readers,) the native reader each is a copy of.

        `values[:, copies]` takes a matrix of the native graph to the expanded one.
        """
        native, expanded = self.native, self.expanded
        share = self.n_heads // self.n_kv_heads
        found = np.full(len(expanded.readers), len(native.readers) - 1)
        for layer in range(self.n_layers):
            for site, group in expanded.groups(layer).items():
                per = share if site in ("k", "v") else 1
                numbers = np.arange(group.stop - group.start) // per
                found[group] = native.groups(layer)[site].start + numbers
        return found


def graph_of(model: LanguageModel, *, expand_kv: bool = False) -> Graph:
    """The graph of a model, key/value heads as they are, or copied for each query head."""
    return Graph(
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        parallel=model.parallel,
        expand_kv=expand_kv,
    )


def _number(kind: str, label: str, known: dict[str, int]) -> int:
    if label not in known:
        near = get_close_matches(label, known, n=1, cutoff=0.4)
        names = list(known)
        raise InterpError(
            f"{kind} {label!r}",
            f"not among the graph's {len(names)}, from {names[0]} to {names[-1]}",
            f"did you mean {near[0]!r}?" if near else "see graph.writers and graph.readers",
        )
    return known[label]
