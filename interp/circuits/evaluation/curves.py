"""Circuits of every size from one set of scores, and the area under what they achieve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.circuits.circuit import Circuit, Level
from interp.circuits.ranking import By, Scored, edge_strength, ranked
from interp.core.errors import InterpError
from interp.engine.edges.graph import INPUT

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes of the circuits of a curve, as shares of all edges: MIB's."""


def curve(
    scores: Scored,
    fractions: Sequence[float] = FRACTIONS,
    *,
    level: Level = "edge",
    absolute: bool = False,
    by: By | None = None,
) -> list[Circuit]:
    """The circuits of the best edges (nodes) at every size.

    As in MIB, the best int(fraction * all) edges are taken, then those on no path from the input
    to the logits are dropped. At level "node" the best nodes by the sum of their outgoing edges'
    scores are taken with every edge between them; the input is always there and not counted. By
    mean absolute effect a node's score is the sum of its edges'.

    Raises:
        InterpError: a fraction outside 0 to 1, or fractions that do not increase.
    """
    shares = np.asarray(fractions, dtype=float)
    if not len(shares) or shares.min() < 0 or shares.max() > 1 or (np.diff(shares) <= 0).any():
        raise InterpError(f"fractions {list(fractions)}", "not increasing from 0 to 1", "sort them")
    graph = scores.graph
    order = ranked(scores, absolute=absolute, by=by)
    found = []
    for share in shares.tolist():
        mask = np.zeros(graph.shape, dtype=bool)
        if level == "edge":
            mask[tuple(order[: int(share * graph.n_edges)].T)] = True
        else:
            mask = _best_nodes(scores, share, absolute, by)
        found.append(
            Circuit(
                graph=graph,
                mask=graph.connected(mask),
                scores=np.asarray(scores.signed),
                name=f"best {share:.1%} of {level}s",
                method=getattr(scores, "method", ""),
            )
        )
    return found


def area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The integral over the last axis of `y`, by trapezoids."""
    return ((y[..., 1:] + y[..., :-1]) / 2) @ np.diff(x)


def _best_nodes(scores: Scored, share: float, absolute: bool, by: By | None) -> np.ndarray:
    graph = scores.graph
    values = scores.signed
    if by is not None:
        absolute = by == "absolute"
        values = edge_strength(scores, by="mean_absolute") if by == "mean_absolute" else values
    strength = np.where(graph.allowed, values, 0.0).sum(1)
    strength = np.abs(strength) if absolute else strength
    strength[graph.writer(INPUT)] = np.inf
    chosen = np.argsort(-strength, kind="stable")[: 1 + int(share * (len(strength) - 1))]
    kept = np.zeros(len(strength), dtype=bool)
    kept[chosen] = True
    return graph.allowed & kept[:, None]
