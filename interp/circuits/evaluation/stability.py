"""How much a circuit depends on the prompts, by a bootstrap over prompts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from interp.circuits.circuit import Circuit, jaccard
from interp.circuits.ranking import CUTS, By, Scored, greedy_edges, top_edges
from interp.circuits.scoring.edge_scores import EdgeScores
from interp.core.errors import InterpError, unknown
from interp.core.records import Record
from interp.core.statistics import range_of_draws


@dataclass(frozen=True, kw_only=True)
class Stability(Record):
    """How much the best edges depend on which prompts were drawn.

    Jaccard index: edges in both circuits over edges in either; 1 for equal circuits. For random
    circuits with a share s of all edges it is about s / (2 - s).

    Attributes:
        circuit: the circuit from all prompts.
        jaccard: (draws,) Jaccard index of each resampled circuit with `circuit`.
        pairwise: mean Jaccard index over all pairs of resampled circuits.
        frequency: (writers, readers) share of resampled circuits that contain each edge.
        n: number of prompts.
    """

    circuit: Circuit
    jaccard: np.ndarray
    pairwise: float
    frequency: np.ndarray
    n: int

    @property
    def chance(self) -> float:
        """The approximate Jaccard index of two random circuits of this size."""
        return self.circuit.share / (2 - self.circuit.share)

    def __str__(self) -> str:
        low, high = range_of_draws(self.jaccard)
        return (
            f"{self.circuit.n_edges} edges: Jaccard with circuits from resampled prompts "
            f"{self.jaccard.mean():z.3f} [{low:z.3f}, {high:z.3f}], between two of these "
            f"{self.pairwise:z.3f}, by chance {self.chance:z.3f} "
            f"({len(self.jaccard)} draws, n={self.n})"
        )


def stability(
    scores: EdgeScores,
    n: int,
    *,
    draws: int = 20,
    by: By = "absolute",
    search: str = "best",
    connected: bool = True,
    seed: int = 0,
) -> Stability:
    """The n best edges from all prompts, compared with those from prompts drawn with replacement.

    Args:
        scores: edge scores with per-prompt values.
        n: number of edges of the circuit.
        draws: number of resampled circuits.
        by: the ranking, see `interp.circuits.ranking.By`.
        search: the "best" edges of all, or "greedy" from the logits back.
        connected: for "best", see `top_edges`.
        seed: seed of the draws.

    Raises:
        InterpError: per-prompt scores were not kept, an unknown search, no draws, or n is out of
            range.
    """
    if search not in CUTS:
        raise unknown("search", search, CUTS)
    if draws < 1:
        raise InterpError(f"stability from {draws} resampled circuits", "none", "draw at least one")
    rng = np.random.default_rng(seed)

    def best(some: Scored) -> np.ndarray:
        if search == "greedy":
            return greedy_edges(some, n, by=by)
        return top_edges(some, n, by=by, connected=connected)

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
