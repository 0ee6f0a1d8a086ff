"""One ranking of edges from the scores of several methods, seeds or sets of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from interp.circuits.ranking import Scored, edge_strength
from interp.core.errors import InterpError, unknown
from interp.core.records import Record
from interp.engine.edges.graph import Graph

Combination = Literal["rank", "mean", "min", "max"]
"""How scores are combined, see `combine_scores`."""


@dataclass(frozen=True, kw_only=True)
class CombinedScores(Record):
    """The combination of several scores of one graph's edges.

    Attributes:
        graph: the graph.
        signed: (writers, readers) the combined scores; 0 without an edge.
        how: how they were combined.
        of: number of scores.
        unit: their unit; "rank" for ranks.
    """

    graph: Graph
    signed: np.ndarray
    how: str
    of: int
    unit: str


def combine_scores(*scores: Scored, how: Combination = "rank") -> CombinedScores:
    """Combine scores of the same edges into one ranking, for `top_edges` and curves.

    - "rank": the mean over scores of the share of edges whose absolute score is not above this
      edge's (ties count half). It needs no common unit and has no sign.
    - "mean": the mean of the signed scores.
    - "min", "max": the signed score of least or largest absolute value. An edge ranks high with
      "min" if all scores call it strong, with "max" if one does.

    Args:
        scores: edge scores or learned masks of one graph.
        how: one of these.

    Raises:
        InterpError: fewer than two scores, other graphs, an unknown combination, scores that are
            not finite, or units that differ and are not ranked.
    """
    if how not in get_args(Combination):
        raise unknown("combination of scores", how, get_args(Combination))
    graphs = {one.graph for one in scores}
    units = {getattr(one, "unit", "openness") for one in scores}
    if len(scores) < 2 or len(graphs) > 1 or (len(units) > 1 and how != "rank"):
        raise InterpError(
            f"combining {len(scores)} scores by {how}",
            f"{len(graphs)} graphs, units {', '.join(sorted(units)) or 'none'}",
            "give two or more scores of one graph; scores of unlike units combine by rank",
        )
    (graph,) = graphs
    each = np.stack([edge_strength(one, by="signed") for one in scores])
    found = np.zeros(graph.shape)
    if how == "rank":
        from scipy.stats import rankdata

        sizes = np.abs(each[:, graph.allowed])
        found[graph.allowed] = (rankdata(sizes, axis=1) / sizes.shape[1]).mean(0)
    elif how == "mean":
        found = each.mean(0)
    else:
        order = np.abs(each)
        at = order.argmin(0) if how == "min" else order.argmax(0)
        found = np.take_along_axis(each, at[None], 0)[0]
    (unit,) = {"rank"} if how == "rank" else units
    return CombinedScores(
        graph=graph, signed=np.where(graph.allowed, found, 0.0), how=how, of=len(scores), unit=unit
    )
