"""Circuits whose edges are kept at some token positions only.

Every reader reads one token at a time, so an edge has a token position. Only attention moves
information between tokens: what a key or value reads at one token reaches later ones. The positions
of a circuit are named positions of the prompts (one token each), "last", and "elsewhere" for all
other tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

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

LAST, ELSEWHERE = "last", "elsewhere"
AT = " @ "


def positions_of(positions: Columns, model: LanguageModel, task: Task) -> tuple[str, ...]:
    """The names of a positioned circuit's positions, from a caller's choice.

    Args:
        positions: names of positions or one token index, to which "last" and "elsewhere" are
            added; or "all": every token index of prompts of equal length, the last named "last".
        model: the model whose tokeniser is used.
        task: prompt pairs.

    Raises:
        InterpError: no position, one that is given twice, several numbers, or "all" for prompts of
            different lengths.
    """
    if isinstance(positions, str) and positions == "all":
        return (*map(str, range(common_length(model, task) - 1)), LAST)
    names = [LAST if position == -1 else position for position in listed(positions)]
    numbers = [
        position
        for position in names
        if isinstance(position, int) and not isinstance(position, bool)
    ]
    if numbers:
        if len(names) > 1 or numbers[0] < 0:
            raise InterpError(
                f"positions of a circuit at {positions!r}",
                "a number names a different position in each prompt",
                "name positions in the task, or give one number for all prompts: -1, or 0 or more",
            )
        names = [str(names[0])]
    if not names or len(set(names)) < len(names):
        raise InterpError(f"positions {names}", "no positions, or a repeated one", "give each once")
    named = tuple(name for name in names if name not in (LAST, ELSEWHERE))
    return (*named, LAST, ELSEWHERE)


def common_length(model: LanguageModel, task: Task) -> int:
    """The number of tokens of every prompt.

    Raises:
        InterpError: prompts of different lengths.
    """
    lengths = {len(prompt) for prompt in task.encode(model).clean}
    if len(lengths) > 1:
        raise InterpError(
            "edges at every token",
            f"prompts of {min(lengths)} to {max(lengths)} tokens",
            "give named positions, or prompts of equal length",
        )
    return lengths.pop()


def marked_positions(model: LanguageModel, task: Task) -> tuple[str, ...]:
    """The positions named in every prompt, in token order and one name per token; then "last".

    Raises:
        InterpError: a prompt lacks a named position.
    """
    encoded = task.encode(model)
    at = {name: np.array(encoded.positions(name)) for name in (*task.position_names, LAST)}
    found = [LAST]
    for name in sorted(task.position_names, key=lambda name: float(at[name].mean())):
        if name != ELSEWHERE and not any((at[name] == at[other]).any() for other in found):
            found.append(name)
    return (*found[1:], LAST)


def position_numbers(positions: Sequence[str], model: LanguageModel, task: Task) -> list[Indices]:
    """For every prompt, the index in `positions` of each of its tokens.

    Raises:
        InterpError: a prompt lacks a position, two names mean the same token, or a token has no
            position.
    """
    encoded, positions = task.encode(model), listed(positions)
    found = [np.full(len(prompt), -1) for prompt in encoded.clean]
    for number, name in enumerate(positions):
        if name == ELSEWHERE:
            continue
        numbered = name.isdigit() and not any(name in marks for marks in encoded.marks)
        indices = [int(name)] * len(found) if numbered else encoded.positions(name)
        for pair, (one, index) in enumerate(zip(found, indices, strict=True)):
            if index >= len(one):
                raise InterpError(
                    f"token {name} of pair {pair}", f"it has {len(one)}", "use named positions"
                )
            if one[index] >= 0:
                raise InterpError(
                    f"positions {positions[one[index]]} and {name}",
                    f"both are token {index} of pair {pair}",
                    "leave one of them out",
                )
            one[index] = number
    rest = positions.index(ELSEWHERE) if ELSEWHERE in positions else -1
    for pair, one in enumerate(found):
        one[one < 0] = rest
        if (one < 0).any():
            raise InterpError(
                f"positions {', '.join(positions)}",
                f"token {int(np.argmin(one))} of pair {pair} has none of them",
                f"add {ELSEWHERE!r}, or use prompts as long as those of the circuit",
            )
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionedCircuit(Record):
    """Edges of a graph, each kept at some token positions.

    A pair of an edge and a position counts as one positioned edge. A graph with E edges, L of them
    into the logits, has (E - L) P + L positioned edges at P positions: the logits read the last
    token only.

    Attributes:
        graph: the graph.
        positions: names of positions, "last" among them. "elsewhere" means all other tokens.
        mask: (writers, readers, positions) bool: what is kept.
        name: its name in tables.
        method: how it was found, in words.
    """

    FORM: ClassVar[int] = 2

    graph: Graph
    positions: tuple[str, ...]
    mask: np.ndarray
    name: str = "circuit"
    method: str = ""

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask)
        if len(set(self.positions)) < len(self.positions) or LAST not in self.positions:
            raise InterpError(
                f"positions {self.positions}",
                f"a repeated position, or no {LAST!r}",
                "see positions_of",
            )
        if mask.shape != (shape := (*self.graph.shape, len(self.positions))):
            raise InterpError(
                f"a mask of shape {mask.shape}", f"the graph and its positions are {shape}",
                "give (writers, readers, positions)",
            )  # fmt: skip
        mask = mask.astype(bool)
        if (outside := mask & ~allowed(self.graph, self.positions)).any():
            writer, reader, position = np.argwhere(outside)[0].tolist()
            raise InterpError(
                f"a mask of {self.name}",
                f"{int(outside.sum())} impossible edges, first "
                f"{self.graph.label(writer, reader)}{AT}{self.positions[position]}",
                f"leave them out; the logits read {LAST!r} only",
            )
        object.__setattr__(self, "mask", mask)

    def __repr__(self) -> str:
        return (
            f"PositionedCircuit({self.name!r}, {self.n_edges} of {self.n_possible} positioned "
            f"edges ({self.share:.2%}), positions {', '.join(self.positions)})"
        )

    def __len__(self) -> int:
        return self.n_edges

    def __contains__(self, edge: str) -> bool:
        label, _, position = edge.partition(AT)
        return bool(self.mask[(*self.graph.edge(label), self._position(position))])

    @classmethod
    def of(
        cls,
        graph: Graph,
        positions: Sequence[str],
        edges: Mapping[str, Iterable[str]],
        **facts: Any,
    ) -> PositionedCircuit:
        """The circuit of some edges, each with the positions at which it is kept.

        Raises:
            InterpError: an edge that the graph does not have, or an unknown position.
        """
        known = listed(positions)
        mask = np.zeros((*graph.shape, len(known)), dtype=bool)
        for edge, where in edges.items():
            for position in listed(where):
                if position not in known:
                    raise unknown("position", position, known)
                mask[(*graph.edge(edge), known.index(position))] = True
        return cls(graph=graph, positions=tuple(known), mask=mask, **facts)

    @classmethod
    def everywhere(cls, circuit: Circuit, positions: Sequence[str]) -> PositionedCircuit:
        """A circuit with all of its edges kept at every position."""
        positions = tuple(listed(positions))
        return cls(
            graph=circuit.graph,
            positions=positions,
            mask=circuit.mask[..., None] & allowed(circuit.graph, positions),
            name=circuit.name,
            method=circuit.method,
        )

    @property
    def n_edges(self) -> int:
        """Number of positioned edges."""
        return int(self.mask.sum())

    @property
    def n_possible(self) -> int:
        """Number of positioned edges of the whole graph."""
        return int(allowed(self.graph, self.positions).sum())

    @property
    def share(self) -> float:
        """Its positioned edges as a share of the whole graph's."""
        return self.n_edges / self.n_possible

    def edges(self) -> list[str]:
        """Labels such as "L3H4->L5KV1.k @ S2", by position, then by reader, in causal order."""
        return [
            f"{self.graph.label(writer, reader)}{AT}{self.positions[position]}"
            for position, reader, writer in np.argwhere(self.mask.T).tolist()
        ]

    def at(self, position: str) -> Circuit:
        """The edges kept at one position.

        Raises:
            InterpError: no such position.
        """
        mask = self.mask[..., self._position(position)]
        return Circuit(graph=self.graph, mask=mask, name=f"{self.name}{AT}{position}")

    def anywhere(self) -> Circuit:
        """The circuit of every edge that is kept at any position."""
        return Circuit(
            graph=self.graph, mask=np.any(self.mask, axis=-1), name=self.name, method=self.method
        )

    def connected(self) -> PositionedCircuit:
        """The circuit without edges that lie on no path from the input to the logits.

        A path changes position only through a head: a key or value read at any position may reach
        the head's output at any other. The order of positions in a prompt is ignored.
        """
        mask = self.mask & self._reached()[:, None] & self._useful()
        return replace(self, mask=mask)

    def random_like(self, rng: np.random.Generator, *, bands: int = 3) -> PositionedCircuit:
        """A random circuit with the same number of edges of each kind and depth at every position.

        See `Circuit.random_like`.
        """
        drawn = [
            self.at(position).random_like(rng, bands=bands).mask for position in self.positions
        ]
        return replace(
            self, mask=np.stack(drawn, -1), name=f"random, like {self.name}", method="random"
        )

    # -- files -----------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """A hash of the edges, their positions and their graph."""
        packed = np.packbits(self.mask).tobytes().hex()
        return content_key([asdict(self.graph), self.positions, packed])

    # -- paths -----------------------------------------------------------------------------

    def _position(self, name: str) -> int:
        if name not in self.positions:
            raise unknown("position", name, self.positions)
        return self.positions.index(name)

    def _reached(self) -> np.ndarray:
        """(writers, positions) bool: the input has a path to them."""
        graph = self.graph
        reached = np.zeros((len(graph.writers), len(self.positions)), dtype=bool)
        reached[0] = True
        for writer in range(1, len(reached)):
            for reader in np.flatnonzero(graph.feeds[:, writer]).tolist():
                read = (self.mask[:, reader] & reached).any(0)
                reached[writer] |= read.any() if self._spreads(reader) else read
        return reached

    def _useful(self) -> np.ndarray:
        """(readers, positions) bool: they have a path to the logits."""
        graph = self.graph
        useful = np.zeros((len(graph.readers), len(self.positions)), dtype=bool)
        useful[-1] = True
        for writer in range(len(graph.writers) - 1, 0, -1):
            needed = (self.mask[writer] & useful).any(0)
            for reader in np.flatnonzero(graph.feeds[:, writer]).tolist():
                useful[reader] |= needed.any() if self._spreads(reader) else needed
        return useful

    def _spreads(self, reader: int) -> bool:
        return self.graph.reader_kind[reader] in ("k", "v")


def allowed(graph: Graph, positions: Sequence[str]) -> np.ndarray:
    """(writers, readers, positions) bool: all positioned edges; those into the logits at "last"."""
    positions = listed(positions)
    found = np.repeat(graph.allowed[..., None], len(positions), -1)
    found[:, -1] &= np.array(positions) == LAST
    return found
