"""Would other prompts have given the same circuit? Bootstrap over prompts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, Self

import numpy as np

from interp.circuits.circuit import Circuit, jaccard
from interp.circuits.ranking import CUTS, By, Scored, greedy_edges, top_edges
from interp.core.errors import unknown
from interp.core.records import Record
from interp.core.statistics import range_of_draws


class Resampled(Scored, Protocol):
    """Scores that can be taken again over prompts drawn with replacement."""

    @property
    def n(self) -> int: ...
    def resampled(self, rng: np.random.Generator) -> Self: ...


@dataclass(frozen=True, kw_only=True)
class Stability(Record):
    """How far the best edges depend on which prompts were drawn.

    Jaccard index: edges in both of two circuits over edges in either; 1 for equal circuits. With
    random circuits of the same share s of all edges it would be about s / (2 - s).

    Attributes:
        circuit: the circuit from all prompts.
        jaccard: (draws,) of each resampled circuit with it.
        pairwise: mean over all pairs of resampled circuits.
        frequency: (writers, readers) share of resampled circuits that hold each edge.
        n: number of prompts.
    """

    circuit: Circuit
    jaccard: np.ndarray
    pairwise: float
    frequency: np.ndarray
    n: int

    @property
    def chance(self) -> float:
        """The Jaccard index two random circuits of this size would have, about."""
        return self.circuit.share / (2 - self.circuit.share)

    def __str__(self) -> str:
        low, high = range_of_draws(self.jaccard)
        return (
            f"{self.circuit.n_edges} edges: Jaccard with circuits from resampled prompts "
            f"{self.jaccard.mean():.3f} [{low:.3f}, {high:.3f}], between those "
            f"{self.pairwise:.3f}, by chance {self.chance:.3f} "
            f"({len(self.jaccard)} draws, n={self.n})"
        )


def stability(
    scores: Resampled,
    n: int,
    *,
    draws: int = 20,
    absolute: bool = True,
    by: By | None = None,
    search: str = "best",
    connected: bool = True,
    seed: int = 0,
) -> Stability:
    """The best n edges from all prompts, and from prompts drawn with replacement.

    Args:
        scores: with per-prompt scores.
        n: edges of a circuit.
        draws: resampled circuits.
        absolute: rank by |score|.
        by: the ranking by name, see `search.By`; overrides `absolute`.
        search: "best" of all, or "greedy" from the logits back.
        connected: of "best": see `top_edges`.
        seed: of the draws.

    Raises:
        InterpError: per-prompt scores were not kept, an unknown search, or n is out of range.
    """
    if search not in CUTS:
        raise unknown("search", search, CUTS)
    rng = np.random.default_rng(seed)

    def best(some: Scored) -> np.ndarray:
        if search == "greedy":
            return greedy_edges(some, n, absolute=absolute, by=by)
        return top_edges(some, n, absolute=absolute, by=by, connected=connected)

    whole = best(scores)
    drawn = [best(scores.resampled(rng)) for _ in range(draws)]
    between = [jaccard(left, right) for left, right in combinations(drawn, 2)]
    return Stability(
        circuit=Circuit(graph=scores.graph, mask=whole, scores=np.asarray(scores.signed)),
        jaccard=np.array([jaccard(whole, one) for one in drawn]),
        pairwise=float(np.mean(between)) if between else float("nan"),
        frequency=np.mean(drawn, axis=0),
        n=scores.n,
    )
