"""The heads of a function vector beside the edges: planted heads, and edges of other heads."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from interp.circuits.scoring.score_edges import score_edges
from interp.core.errors import InterpError
from interp.overview.vector_circuit import circuit_of_vector, per_head, rank_correlation
from interp.steering.function_vectors import head_task_effects
from tests.words import TASK, word_model

PLANTED = ((1, 2), (2, 0))


@pytest.fixture(scope="module")
def planted():
    model = word_model(heads=PLANTED)
    return model, head_task_effects(model, TASK), score_edges(model, TASK.prompts("examples"))


def absolute(effects):
    """Effects without their sign: whether a random model's head helps or harms is chance."""
    return replace(effects, effects=np.abs(effects.effects))


def test_planted_heads_have_all_edges_that_leave_heads(planted):
    model, effects, edges = planted
    strength = per_head(edges, np.abs(edges.signed).sum(1))
    assert {tuple(at) for at in np.argwhere(strength > 1e-12).tolist()} == {*PLANTED}
    k = int((np.abs(edges.signed) > 1e-12).sum())
    found = circuit_of_vector(
        model, TASK, heads=2, k=k, effects=absolute(effects), edges=edges, draws=200
    )
    assert {*found.heads} == {"L1H2", "L2H0"}
    assert found.share.selected == 1
    assert found.share.mean == 0  # no other head of these layers has an edge
    values = absolute(effects).values
    assert found.correlation.selected == pytest.approx(
        spearmanr(values.ravel(), strength.ravel()).statistic
    )
    assert found.correlation.selected > found.correlation.mean
    assert found.n == 12


def test_heads_that_have_no_edge_are_not_the_circuit(planted):
    """Nothing may be found: the effects are those of heads that write nothing."""
    model, effects, edges = planted
    moved = replace(effects, effects=np.roll(np.abs(effects.effects), 1, axis=2))
    found = circuit_of_vector(model, TASK, heads=2, k=20, effects=moved, edges=edges, draws=200)
    assert {*found.heads} == {"L1H3", "L2H1"}
    assert found.share.selected == 0
    assert found.share.share == 1  # every draw is as strong
    assert found.correlation.selected < found.correlation.high


def test_values_of_each_head_are_those_of_its_writer(planted):
    _, _, edges = planted
    outgoing = np.abs(edges.signed).sum(1)
    table = per_head(edges, outgoing)
    for layer in range(3):
        for head in range(4):
            assert table[layer, head] == outgoing[edges.graph.writer(f"L{layer}H{head}")]
    assert rank_correlation(np.ones((2, 2)), table[:2, :2]) == 0


def test_other_models_and_too_many_edges_are_refused(planted):
    model, effects, edges = planted
    for wrong in ({"k": 10**6}, {"heads": 0}, {"draws": 0}):
        with pytest.raises(InterpError):
            circuit_of_vector(model, TASK, **({"effects": effects, "edges": edges} | wrong))
    fewer = replace(
        effects,
        effects=effects.effects[:, :2],
        coordinates={"layer": ("0", "1"), "head": effects.coordinates["head"]},
    )
    with pytest.raises(InterpError, match="effects of shape"):
        circuit_of_vector(model, TASK, effects=fewer, edges=edges, k=20)
