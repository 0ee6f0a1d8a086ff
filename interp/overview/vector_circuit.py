"""Whether a function vector is what a task's circuit carries: its heads beside the edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.circuits.ranking import top_edges
from interp.circuits.scoring.edge_scores import EdgeScores
from interp.circuits.scoring.score_edges import score_edges
from interp.core.arguments import reads_arguments
from interp.core.components import Axis, Component
from interp.core.errors import InterpError
from interp.core.nulls import Null, matched_components, null_of
from interp.core.schema import Brief, Count, checked
from interp.models.language_model import LanguageModel
from interp.results.scores import Scores
from interp.steering.function_vectors import head_task_effects
from interp.tasks.word_pairs import WordTask


@dataclass(frozen=True, kw_only=True)
class VectorCircuit(Brief):
    """The heads of a function vector beside the edges of the task's circuit.

    Attributes:
        task: the task's name.
        heads: the heads with the largest effect at the last token.
        k: number of edges of the circuit.
        share: of the k edges with the largest absolute score, those that leave the heads, as a
            share of those that leave any head; among random heads of the same layers and count.
        correlation: Spearman's correlation, over all heads, of the effect at the last token and the
            summed absolute score of a head's edges, among the correlations after heads are permuted
            within each layer.
        n: number of prompts of the edge scores.
    """

    task: str
    heads: tuple[str, ...]
    k: int
    share: Null
    correlation: Null
    n: int

    def __repr__(self) -> str:
        return (
            f"VectorCircuit({self.task}, {len(self.heads)} heads: share of the top {self.k} edges "
            f"{self.share}; rank correlation {self.correlation})"
        )


@reads_arguments
def circuit_of_vector(
    model: LanguageModel,
    task: WordTask,
    *,
    heads: int = 10,
    k: int = 1000,
    effects: Scores | None = None,
    edges: EdgeScores | None = None,
    draws: int = 1000,
    examples: int = 5,
    seed: int = 0,
) -> VectorCircuit:
    """Whether the heads of a function vector are those whose edges carry the task.

    The circuit is that of the prompts with examples: clean ones have the true answers, corrupted
    ones the permuted, and the metric is the log probability of the answer (`score_edges`). Edges
    count at all tokens, the effect of a head at the last one alone.

    Args:
        model: a model with a fast engine.
        task: its queries are those of the prompts.
        heads: number of heads with the largest effect.
        k: number of edges with the largest absolute score.
        effects: from `head_task_effects`; by default measured on `task`.
        edges: from `score_edges`; by default EAP scores on `task`.
        draws: number of random sets of heads, and of permutations.
        examples: number of examples in a prompt.
        seed: seed of examples and draws.

    Raises:
        InterpError: as `head_task_effects` and `score_edges`, more edges than the graph has, or
            scores of neurons apart from their MLP.
    """
    heads, k = checked(Count, heads, "heads"), checked(Count, k, "edges")
    draws = checked(Count, draws, "draws")
    if effects is None:
        effects = head_task_effects(model, task, examples=examples, seed=seed)
    if edges is None:
        edges = score_edges(model, task.prompts("examples", examples=examples, seed=seed))
    shape = (model.n_layers, model.n_heads)
    if effects.values.shape != shape or edges.graph.n_layers != model.n_layers:
        raise InterpError(
            f"the circuit of {task.name} beside its vector",
            f"effects of shape {effects.values.shape}, edges of {edges.graph.n_layers} layers",
            f"give effects of all {shape[0]} x {shape[1]} heads, and edges of the same model",
        )
    chosen = [one.component for one in effects.top(heads)]
    mask = top_edges(edges, k, connected=False)
    leaving = per_head(edges, mask.sum(1))
    strength = per_head(edges, (np.abs(edges.signed)).sum(1))
    rng = np.random.default_rng(seed)

    def size(axis: Axis) -> int:
        return model.n_heads

    def share(parts: Sequence[Component]) -> float:
        some = sum(leaving[part.layer, part.index] for part in parts)
        return float(some / max(leaving.sum(), 1))

    drawn = [share(matched_components(chosen, model.n_layers, size, rng)) for _ in range(draws)]
    values = effects.values
    turned = [rank_correlation(rng.permuted(values, axis=1), strength) for _ in range(draws)]
    return VectorCircuit(
        task=task.name,
        heads=tuple(map(str, chosen)),
        k=k,
        share=null_of(share(chosen), drawn),
        correlation=null_of(rank_correlation(values, strength), turned),
        n=edges.n,
    )


def per_head(edges: EdgeScores, values: np.ndarray) -> np.ndarray:
    """(layer, head) the values of heads, from one for every writer of the graph."""
    graph = edges.graph
    return np.stack([values[graph.heads(layer)] for layer in range(graph.n_layers)])


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two tables; 0 if all values of one are equal."""
    from scipy.stats import spearmanr

    if min(np.ptp(one), np.ptp(other)) == 0:
        return 0.0
    found = float(spearmanr(one.ravel(), other.ravel())[0])  # type: ignore[arg-type]
    return 0.0 if math.isnan(found) else found
