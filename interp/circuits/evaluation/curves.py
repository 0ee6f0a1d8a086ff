"""Circuits of several sizes from one set of scores, and areas under their curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.circuits.circuit import Circuit, CircuitLevel
from interp.circuits.ranking import By, Scored, edge_strength, ranked
from interp.core.errors import InterpError
from interp.engine.edges.graph import INPUT

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes of the circuits of a curve, as shares of all edges, as in the MIB benchmark."""


def curve(
    scores: Scored,
    fractions: Sequence[float] = FRACTIONS,
    *,
    level: CircuitLevel = "edge",
    by: By = "signed",
) -> list[Circuit]:
    """The circuits of the best edges, or nodes, at every size.

    As in MIB, the best int(fraction * all) edges are taken, and those on no path from the input to
    the logits are then dropped. At level "node" a node's score is the sum over its outgoing edges;
    the best nodes are taken with all edges between them. The input is always included and not
    counted.

    Raises:
        InterpError: fractions outside 0 to 1, or fractions that do not increase.
    """
    graph = scores.graph
    order = ranked(scores, by=by)
    found = []
    for share in checked_fractions(fractions).tolist():
        mask = np.zeros(graph.shape, dtype=bool)
        if level == "edge":
            mask[tuple(order[: int(share * graph.n_edges)].T)] = True
        else:
            mask = _best_nodes(scores, share, by)
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


def checked_fractions(fractions: Sequence[float]) -> np.ndarray:
    """Shares of all parts that a curve's circuits have.

    Raises:
        InterpError: fractions outside 0 to 1, or fractions that do not increase.
    """
    shares = np.asarray(fractions, dtype=float)
    if not len(shares) or shares.min() < 0 or shares.max() > 1 or (np.diff(shares) <= 0).any():
        raise InterpError(f"fractions {list(fractions)}", "not increasing from 0 to 1", "sort them")
    return shares


def area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The integral over the last axis of `y`, by the trapezoidal rule."""
    return ((y[..., 1:] + y[..., :-1]) / 2) @ np.diff(x)


def _best_nodes(scores: Scored, share: float, by: By) -> np.ndarray:
    graph = scores.graph
    values = edge_strength(scores, by=by) if by == "mean_absolute" else scores.signed
    strength = np.where(graph.allowed, values, 0.0).sum(1)
    strength = np.abs(strength) if by == "absolute" else strength
    strength[graph.writer(INPUT)] = np.inf
    chosen = np.argsort(-strength, kind="stable")[: 1 + int(share * (len(strength) - 1))]
    kept = np.zeros(len(strength), dtype=bool)
    kept[chosen] = True
    return graph.allowed & kept[:, None]
