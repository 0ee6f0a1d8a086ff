"""Circuits whose edges are kept at some tokens only.

A reader reads token by token, so that an edge lies within a token; only attention takes what a key
and a value read at one token to others. Tokens are told apart by place: named positions of the
prompts, each one token, "last", and "elsewhere" for all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from interp.circuits.circuit import Circuit
from interp.core.arguments import Columns, listed
from interp.core.errors import InterpError, unknown
from interp.core.files import content_key
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine.edges.graph import Graph
from interp.engine.layout import Indices
from interp.models.language_model import LanguageModel

FORMAT = 21
LAST, ELSEWHERE = "last", "elsewhere"
AT = " @ "


def places_of(positions: Columns, model: LanguageModel, task: Task) -> tuple[str, ...]:
    """The places that a choice of positions tells apart.

    Args:
        positions: names of positions or one token index, to which "last" and "elsewhere" are
            added; or "all": every token index of prompts of one length, the last called "last".
        model: the model whose tokens are meant.
        task: prompt pairs.

    Raises:
        InterpError: a name twice, or all tokens of prompts of several lengths.
    """
    if isinstance(positions, str) and positions == "all":
        lengths = {len(prompt) for prompt in task.encode(model).clean}
        if len(lengths) > 1:
            raise InterpError(
                "a circuit at every token",
                f"prompts of {min(lengths)} to {max(lengths)} tokens",
                "give names of positions, or prompts of one length",
            )
        return (*map(str, range(lengths.pop() - 1)), LAST)
    names = [LAST if place == -1 else place for place in listed(positions)]
    numbers = [place for place in names if isinstance(place, int) and not isinstance(place, bool)]
    if numbers:
        if len(names) > 1 or numbers[0] < 0:
            raise InterpError(
                f"places of a circuit at {positions!r}",
                "numbers that are other places in other prompts",
                "mark names in the task, or give one number from 0 on, or -1, for all prompts",
            )
        names = [str(names[0])]
    if not names or len(set(names)) < len(names):
        raise InterpError(f"positions {names}", "none, or one twice", "give each once")
    named = tuple(name for name in names if name not in (LAST, ELSEWHERE))
    return (*named, LAST, ELSEWHERE)


def named_places(model: LanguageModel, task: Task) -> tuple[str, ...]:
    """Names marked in every prompt, in the order of their tokens, one name a token; then "last".

    Raises:
        InterpError: a mark that a prompt lacks.
    """
    encoded = task.encode(model)
    at = {name: np.array(encoded.positions(name)) for name in (*task.position_names, LAST)}
    found = [LAST]
    for name in sorted(task.position_names, key=lambda name: float(at[name].mean())):
        if name != ELSEWHERE and not any((at[name] == at[other]).any() for other in found):
            found.append(name)
    return (*found[1:], LAST)


def tokens_by_place(places: Sequence[str], model: LanguageModel, task: Task) -> list[Indices]:
    """Of every prompt, the number of the place each of its tokens is.

    Raises:
        InterpError: a position that a prompt lacks, two names for one token, or a token that is
            none of the places.
    """
    encoded, places = task.encode(model), listed(places)
    found = [np.full(len(prompt), -1) for prompt in encoded.clean]
    for number, name in enumerate(places):
        if name == ELSEWHERE:
            continue
        numbered = name.isdigit() and not any(name in marks for marks in encoded.marks)
        indices = [int(name)] * len(found) if numbered else encoded.positions(name)
        for pair, (one, index) in enumerate(zip(found, indices, strict=True)):
            if index >= len(one):
                raise InterpError(
                    f"token {name} of pair {pair}", f"it has {len(one)}", "use names of positions"
                )
            if one[index] >= 0:
                raise InterpError(
                    f"positions {places[one[index]]} and {name}",
                    f"both are token {index} of pair {pair}",
                    "leave one of them out",
                )
            one[index] = number
    rest = places.index(ELSEWHERE) if ELSEWHERE in places else -1
    for pair, one in enumerate(found):
        one[one < 0] = rest
        if (one < 0).any():
            raise InterpError(
                f"places {', '.join(places)}",
                f"token {int(np.argmin(one))} of pair {pair} is none of them",
                f"add {ELSEWHERE!r}, or use prompts of the length the circuit was made for",
            )
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionedCircuit(Record):
    """Edges of a graph, each at some places.

    With P places a graph of E edges, L of them into the logits, has (E - L) P + L of these: the
    logits read the last token alone.

    Attributes:
        graph: the graph they belong to.
        places: names of positions, "last" among them; "elsewhere" stands for all other tokens.
        mask: (writers, readers, places) bool.
        name: what to call it in tables.
        method: how it was found, in words.
    """

    graph: Graph
    places: tuple[str, ...]
    mask: np.ndarray
    name: str = "circuit"
    method: str = ""

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask)
        if len(set(self.places)) < len(self.places) or LAST not in self.places:
            raise InterpError(
                f"places {self.places}", f"one twice, or no {LAST!r}", "see places_of"
            )
        if mask.shape != (shape := (*self.graph.shape, len(self.places))):
            raise InterpError(
                f"a mask of shape {mask.shape}", f"the graph and its places are {shape}",
                "give (writers, readers, places)",
            )  # fmt: skip
        mask = mask.astype(bool)
        if (outside := mask & ~allowed(self.graph, self.places)).any():
            writer, reader, place = np.argwhere(outside)[0].tolist()
            raise InterpError(
                f"a mask of {self.name}",
                f"{int(outside.sum())} impossible edges, first "
                f"{self.graph.label(writer, reader)}{AT}{self.places[place]}",
                f"leave them out; the logits read {LAST!r} alone",
            )
        object.__setattr__(self, "mask", mask)

    def __repr__(self) -> str:
        return (
            f"PositionedCircuit({self.name!r}, {self.n_edges} of {self.n_possible} edges by place "
            f"({self.share:.2%}), places {', '.join(self.places)})"
        )

    def __len__(self) -> int:
        return self.n_edges

    def __contains__(self, edge: str) -> bool:
        label, _, place = edge.partition(AT)
        return bool(self.mask[(*self.graph.edge(label), self._place(place))])

    @classmethod
    def of(
        cls,
        graph: Graph,
        places: Sequence[str],
        edges: Mapping[str, Iterable[str]],
        **facts: Any,
    ) -> PositionedCircuit:
        """The circuit of some edges, each with the places where it is kept.

        Raises:
            InterpError: an edge that the graph does not have, or a place that is none.
        """
        known = listed(places)
        mask = np.zeros((*graph.shape, len(known)), dtype=bool)
        for edge, where in edges.items():
            for place in listed(where):
                if place not in known:
                    raise unknown("place", place, known)
                mask[(*graph.edge(edge), known.index(place))] = True
        return cls(graph=graph, places=tuple(known), mask=mask, **facts)

    @classmethod
    def everywhere(cls, circuit: Circuit, places: Sequence[str]) -> PositionedCircuit:
        """A circuit's edges at every place: what it is without positions."""
        places = tuple(listed(places))
        return cls(
            graph=circuit.graph,
            places=places,
            mask=circuit.mask[..., None] & allowed(circuit.graph, places),
            name=circuit.name,
            method=circuit.method,
        )

    @property
    def n_edges(self) -> int:
        """Number of edges, each place counted."""
        return int(self.mask.sum())

    @property
    def n_possible(self) -> int:
        """Number of edges of the graph, each place counted."""
        return int(allowed(self.graph, self.places).sum())

    @property
    def share(self) -> float:
        """Its edges as a share of the graph's, each place counted."""
        return self.n_edges / self.n_possible

    def edges(self) -> list[str]:
        """Labels such as "L3H4->L5KV1.k @ S2", by place, then by reader, in causal order."""
        return [
            f"{self.graph.label(writer, reader)}{AT}{self.places[place]}"
            for place, reader, writer in np.argwhere(self.mask.T).tolist()
        ]

    def at(self, place: str) -> Circuit:
        """The edges kept at one place.

        Raises:
            InterpError: no such place.
        """
        mask = self.mask[..., self._place(place)]
        return Circuit(graph=self.graph, mask=mask, name=f"{self.name}{AT}{place}")

    def anywhere(self) -> Circuit:
        """The edges kept at some place or other, at all tokens."""
        return Circuit(
            graph=self.graph, mask=np.any(self.mask, axis=-1), name=self.name, method=self.method
        )

    def connected(self) -> PositionedCircuit:
        """Without the edges that lie on no path from the input to the logits.

        A path stays at its place, but for heads: keys and values of any place may reach a head's
        output at any. Which places come first in a prompt is not asked.
        """
        mask = self.mask & self._reached()[:, None] & self._useful()
        return replace(self, mask=mask)

    def random_like(self, rng: np.random.Generator, *, bands: int = 3) -> PositionedCircuit:
        """A random circuit with as many edges of each kind and depth at every place.

        See `Circuit.random_like`.
        """
        drawn = [self.at(place).random_like(rng, bands=bands).mask for place in self.places]
        return replace(
            self, mask=np.stack(drawn, -1), name=f"random, like {self.name}", method="random"
        )

    # -- files -----------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """Fingerprint of the edges, their places and their graph."""
        packed = np.packbits(self.mask).tobytes().hex()
        return content_key([asdict(self.graph), self.places, packed])

    # -- paths -----------------------------------------------------------------------------

    def _place(self, name: str) -> int:
        if name not in self.places:
            raise unknown("place", name, self.places)
        return self.places.index(name)

    def _reached(self) -> np.ndarray:
        """(writers, places) bool: those with a path from the input."""
        graph = self.graph
        reached = np.zeros((len(graph.writers), len(self.places)), dtype=bool)
        reached[0] = True
        for writer in range(1, len(reached)):
            for reader in np.flatnonzero(graph.feeds[:, writer]).tolist():
                read = (self.mask[:, reader] & reached).any(0)
                reached[writer] |= read.any() if self._spreads(reader) else read
        return reached

    def _useful(self) -> np.ndarray:
        """(readers, places) bool: those with a path to the logits."""
        graph = self.graph
        useful = np.zeros((len(graph.readers), len(self.places)), dtype=bool)
        useful[-1] = True
        for writer in range(len(graph.writers) - 1, 0, -1):
            needed = (self.mask[writer] & useful).any(0)
            for reader in np.flatnonzero(graph.feeds[:, writer]).tolist():
                useful[reader] |= needed.any() if self._spreads(reader) else needed
        return useful

    def _spreads(self, reader: int) -> bool:
        return self.graph.reader_kind[reader] in ("k", "v")


def allowed(graph: Graph, places: Sequence[str]) -> np.ndarray:
    """(writers, readers, places) bool: the edges there are; into the logits at "last" alone."""
    places = listed(places)
    found = np.repeat(graph.allowed[..., None], len(places), -1)
    found[:, -1] &= np.array(places) == LAST
    return found
