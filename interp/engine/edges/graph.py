"""The graph of a decoder: what writes to the residual stream, what reads it, and in what order.

In a residual network, the input of a reader is the sum of the outputs of all earlier writers. An
edge is one term of this sum, and a circuit is a set of terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property

import numpy as np

from interp.core.arguments import listed
from interp.core.components import Component
from interp.core.errors import InterpError

INPUT, LOGITS = "input", "logits"
ARROW = "->"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Writers, readers, and the edges that the order of computation allows between them.

    The writers in causal order are "input" (the embedding) and then, for each layer, its heads
    "L3H4" and its MLP "L3.mlp_out". The readers in causal order are, for each layer, all queries
    "L3H4.q", all keys "L3KV1.k", all values "L3KV1.v" and the MLP's input "L3.mlp_out"; and then
    "logits". A reader has an edge from every earlier writer: queries, keys and values read earlier
    layers, and the MLP also reads the heads of its own layer, unless attention and MLP run in
    parallel.

    With grouped-query attention, keys and values have one reader per key/value head. With
    `expand_kv` they have one per query head: "L3H4.k" is then the copy of the key that head 4
    uses. The score of an edge into a key/value head is the sum over its copies. If every query head
    has its own keys, the two graphs are the same.

    With `neurons`, these neurons are nodes, "L26N6475", both writers and readers. They come after
    the heads of their layer and before "L26.mlp_out", which then stands for the remaining neurons
    and the output bias.

    The number of edges, for L layers of H query heads and K key/value heads, with n_l neurons as
    nodes in layer l and W_l = 1 + l(H+1) + n_0 + ... + n_(l-1) writers before layer l, is

        sum over l of (H + 2K) W_l + (1 + n_l) (W_l + H [not parallel])  +  W_L

    with K = H if expanded: 32,491 for GPT-2 small. Source: the graph of arXiv 2304.14997 and
    2403.17806, but with the model's own key/value heads.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    expand_kv: bool = False
    neurons: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "expand_kv", self.expand_kv and self.n_heads > self.n_kv_heads)
        neurons = sorted((int(layer), int(number)) for layer, number in self.neurons)
        object.__setattr__(self, "neurons", tuple(neurons))

    # -- nodes -----------------------------------------------------------------------------

    @property
    def n_kv_readers(self) -> int:
        """Number of key readers in a layer, which is also the number of value readers."""
        return self.n_heads if self.expand_kv else self.n_kv_heads

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Labels of the writers in causal order."""
        names = [INPUT]
        for layer in range(self.n_layers):
            names += [str(Component(layer, "z", head)) for head in range(self.n_heads)]
            names += [str(Component(layer, "post", number)) for number in self.chosen(layer)]
            names.append(str(Component(layer, "mlp_out")))
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Labels of the readers in causal order."""
        names = []
        for layer in range(self.n_layers):
            for site, group in self.groups(layer).items():
                numbers: Iterable[int | None] = range(group.stop - group.start)
                if site in ("post", "mlp_out"):
                    numbers = self.chosen(layer) if site == "post" else [None]
                if self.expand_kv and site in ("k", "v"):  # the copy that this query head uses
                    names += [f"L{layer}H{number}.{site}" for number in numbers]
                else:
                    names += [str(Component(layer, site, number)) for number in numbers]
        return (*names, LOGITS)

    @cached_property
    def writer_kind(self) -> np.ndarray:
        """(writers,) "input", "head", "neuron" or "mlp"."""
        kinds = ["input"]
        for layer in range(self.n_layers):
            kinds += ["head"] * self.n_heads + ["neuron"] * len(self.chosen(layer)) + ["mlp"]
        return np.array(kinds)

    @cached_property
    def reader_kind(self) -> np.ndarray:
        """(readers,) "q", "k", "v", "neuron", "mlp" or "logits"."""
        names, kinds = {"post": "neuron", "mlp_out": "mlp"}, []
        for layer in range(self.n_layers):
            for site, group in self.groups(layer).items():
                kinds += [names.get(site, site)] * (group.stop - group.start)
        return np.array([*kinds, "logits"])

    @cached_property
    def writer_layer(self) -> np.ndarray:
        """(writers,) layer of each writer; -1 for the input."""
        counts = self.n_heads + 1 + np.diff(self._neurons_before)
        return np.array([-1, *np.repeat(np.arange(self.n_layers), counts)])

    @cached_property
    def reader_layer(self) -> np.ndarray:
        """(readers,) layer of each reader; n_layers for the logits."""
        counts = self.n_heads + 2 * self.n_kv_readers + 1 + np.diff(self._neurons_before)
        return np.array([*np.repeat(np.arange(self.n_layers), counts), self.n_layers])

    # -- the nodes of a layer --------------------------------------------------------------

    def chosen(self, layer: int) -> list[int]:
        """The numbers of a layer's neurons that are nodes."""
        return [number for at, number in self.neurons if at == layer]

    @cached_property
    def _neurons_before(self) -> list[int]:
        """Number of neurons that are nodes before each layer, and at the end the total."""
        return [sum(at < layer for at, _ in self.neurons) for layer in range(self.n_layers + 1)]

    def groups(self, layer: int) -> dict[str, slice]:
        """A layer's readers by site: "q", "k", "v", "post" (if neurons are nodes), "mlp_out"."""
        kv = self.n_kv_readers
        sizes = {"q": self.n_heads, "k": kv, "v": kv, "mlp_out": 1}
        start = layer * sum(sizes.values()) + self._neurons_before[layer]
        if neurons := len(self.chosen(layer)):
            sizes = {"q": self.n_heads, "k": kv, "v": kv, "post": neurons, "mlp_out": 1}
        found = {}
        for site, size in sizes.items():
            found[site] = slice(start, start + size)
            start += size
        return found

    def mlp_readers(self, layer: int) -> slice:
        """The readers that are a layer's neurons, followed by the rest of its MLP."""
        groups = self.groups(layer)
        return slice(groups["v"].stop, groups["mlp_out"].stop)

    def heads(self, layer: int) -> slice:
        """The writers that are a layer's heads."""
        start = self.before(layer).stop
        return slice(start, start + self.n_heads)

    def mlp(self, layer: int) -> int:
        """The writer that is a layer's MLP, or the rest of it; its neurons come just before it."""
        return self.before(layer + 1).stop - 1

    def before(self, layer: int) -> slice:
        """The writers before a layer's attention; all writers for n_layers."""
        return slice(0, 1 + layer * (self.n_heads + 1) + self._neurons_before[layer])

    # -- edges -----------------------------------------------------------------------------

    @cached_property
    def allowed(self) -> np.ndarray:
        """(writers, readers) bool: True for the edges of the graph."""
        earlier = self.writer_layer[:, None] < self.reader_layer
        own = self.writer_layer[:, None] == self.reader_layer
        mlps = np.isin(self.reader_kind, ("mlp", "neuron"))
        heads_to_mlp = (self.writer_kind == "head")[:, None] & mlps
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
        """(readers, writers) bool: True if the writer's output depends on what the reader reads."""
        feeds = np.zeros(self.shape[::-1], dtype=bool)
        share = self.n_heads // self.n_kv_readers
        for layer in range(self.n_layers):
            heads = np.arange(self.n_heads)
            groups = self.groups(layer)
            for site, per in (("q", 1), ("k", share), ("v", share)):
                feeds[groups[site].start + heads // per, self.heads(layer).start + heads] = True
            readers = self.mlp_readers(layer)
            for place in range(readers.stop - readers.start):
                feeds[readers.stop - 1 - place, self.mlp(layer) - place] = True
        return feeds

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        writers, readers = (
            {name: number for number, name in enumerate(names)}
            for names in (self.writers, self.readers)
        )
        return writers, readers

    def writer(self, label: str) -> int:
        """The number of the writer with a label.

        Raises:
            InterpError: there is no such writer; the message suggests the nearest name.
        """
        return _number("writer", label, self._numbers[0])

    def reader(self, label: str) -> int:
        """The number of the reader with a label.

        Raises:
            InterpError: there is no such reader; the message suggests the nearest name.
        """
        return _number("reader", label, self._numbers[1])

    def edge(self, label: str) -> tuple[int, int]:
        """The numbers of writer and reader of an edge such as "L3H4->L5KV1.k".

        Raises:
            InterpError: the label is not that of an edge, its writer or reader is unknown, or the
                writer does not come before the reader.
        """
        source, arrow, target = (part.strip() for part in label.partition(ARROW))
        if not arrow:
            raise InterpError(f"edge {label!r}", f"no {ARROW}", "write L3H4->L5KV1.k")
        found = self.writer(source), self.reader(target)
        if not self.allowed[found]:
            raise InterpError(
                f"edge {label!r}",
                f"{target} does not read {source}, which does not come before it",
                "name an earlier writer",
            )
        return found

    def label(self, writer: int, reader: int) -> str:
        """The inverse of `edge`."""
        return f"{self.writers[writer]}{ARROW}{self.readers[reader]}"

    def mask(self, edges: Iterable[str | tuple[int, int]] | None = None) -> np.ndarray:
        """(writers, readers) bool: all edges, or those named (labels, or pairs of numbers).

        Raises:
            InterpError: an edge does not exist.
        """
        if edges is None:
            return self.allowed.copy()
        mask = np.zeros(self.shape, dtype=bool)
        for edge in listed(edges):
            mask[self.edge(edge if isinstance(edge, str) else self.label(*edge))] = True
        return mask

    def check(self, mask: np.ndarray) -> np.ndarray:
        """The mask as bool, if it is a mask of this graph.

        Raises:
            InterpError: the mask has another shape, or edges that the graph does not have.
        """
        if mask.shape != self.shape:
            raise InterpError(
                f"a mask of shape {mask.shape}", f"the graph's is {self.shape}", "use graph.mask()"
            )
        mask = mask.astype(bool)
        if (outside := mask & ~self.allowed).any():
            first = self.label(*np.argwhere(outside)[0])
            raise InterpError(
                "a mask", f"{int(outside.sum())} impossible edges, e.g. {first}", "remove them"
            )
        return mask

    def labels(self, mask: np.ndarray) -> list[str]:
        """The labels of a mask's edges, ordered by reader and then by writer."""
        return [self.label(writer, reader) for reader, writer in np.argwhere(self.check(mask).T)]

    def entered(self, mask: np.ndarray) -> np.ndarray:
        """(writers,) bool: True for nodes that an edge of the mask leads into."""
        return np.any(mask, axis=0) @ self.feeds

    def connected(self, mask: np.ndarray) -> np.ndarray:
        """The mask without edges that are on no path from the input to the logits within it.

        A path goes through a head if it enters any of its queries, keys or values.
        """
        mask = self.check(mask)
        return mask & self.reached(mask)[:, None] & self.useful(mask)

    def reached(self, mask: np.ndarray) -> np.ndarray:
        """(writers,) bool: True for the input, and for writers with a path from it in the mask."""
        reached = np.zeros(len(self.writers), dtype=bool)
        reached[0] = True
        for writer in range(1, len(self.writers)):
            inputs = mask[:, self.feeds[:, writer]]
            reached[writer] = bool((inputs & reached[:, None]).any())
        return reached

    def useful(self, mask: np.ndarray) -> np.ndarray:
        """(readers,) bool: True for the logits, and for readers with a path to them in the mask."""
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
        return replace(self, expand_kv=False)

    @property
    def expanded(self) -> Graph:
        """The same graph with one key and one value reader per query head."""
        return replace(self, expand_kv=True)

    @cached_property
    def copies(self) -> np.ndarray:
        """(expanded readers,) the native reader that each one copies.

        `values[:, copies]` expands a (writers, readers) matrix of the native graph.
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


def _number(kind: str, label: str, known: dict[str, int]) -> int:
    if label not in known:
        if re.fullmatch(r"L\d+N\d+", label):
            raise InterpError(
                f"{kind} {label!r}", "this neuron is not a node", "name it in neurons=[...]"
            )
        near = get_close_matches(label, known, n=1, cutoff=0.4)
        names = list(known)
        if label.replace("H", "KV") in known:
            near = [label.replace("H", "KV")]
        raise InterpError(
            f"{kind} {label!r}",
            f"not among the graph's {len(names)}, from {names[0]} to {names[-1]}",
            f"did you mean {near[0]!r}?" if near else "see graph.writers and graph.readers",
        )
    return known[label]
