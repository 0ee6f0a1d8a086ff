"""Circuits by place: on a toy with a closed form, against single edges, and without places."""

from dataclasses import replace

import numpy as np
import pytest

from interp.circuits.circuit import Circuit
from interp.circuits.evaluation.curve_evaluation import faithfulness_curve
from interp.circuits.model_graph import graph_of
from interp.circuits.positions import narrow as narrowing
from interp.circuits.positions.edge_positions import edge_positions
from interp.circuits.positions.narrow import evaluate_positioned, narrow_circuit
from interp.circuits.positions.positioned_circuit import (
    PositionedCircuit,
    allowed,
    marked_positions,
    position_numbers,
    positions_of,
)
from interp.core.errors import InterpError
from interp.engine.edges.graph import Graph
from interp.models.loading import load_model
from interp.tasks.registry import load_task
from tests.families import random_task

INDUCTION = ("input->L0KV0.v", "L0H1->L1KV1.k", "input->L1KV1.v", "input->L1H2.q", "L1H2->logits")


def named_pairs(n=8):
    """Induction pairs: where the letters stand that followed, and those before them."""
    task = load_task("toy-induction", n=n)
    pairs = []
    for pair in task.pairs:
        words = str(pair.clean).split()
        right, wrong = (words.index(str(one[0])) for one in (pair.answers, pair.wrong))
        marks = {"right": right, "wrong": wrong, "cue": right - 1, "other": wrong - 1}
        pairs.append(replace(pair, positions=marks))
    return replace(task, pairs=tuple(pairs))


@pytest.fixture
def any_gap(monkeypatch):
    monkeypatch.setattr("interp.circuits.trials.trials.check_gap", lambda one, other: None)


@pytest.fixture(scope="module")
def toy():
    return load_model("toy-induction")


def test_the_planted_circuit_is_narrowed_to_the_tokens_it_acts_at(toy):
    """Counterfactual pairs differ in the letters before the candidates alone."""
    task, graph = named_pairs(), graph_of(toy)
    places = positions_of(["right", "wrong", "cue", "other"], toy, task)
    assert places == ("right", "wrong", "cue", "other", "last", "elsewhere")
    circuit = Circuit.of(graph, INDUCTION)
    found = narrow_circuit(toy, task, circuit, positions=list(places), threshold=0.05)
    # The previous-token head is at the candidates, its values at the letters before them.
    expected = {
        "input->L0KV0.v": ["cue", "other"],
        "L0H1->L1KV1.k": ["right", "wrong"],
        "L1H2->logits": ["last"],
    }
    assert found.circuit.edges() == PositionedCircuit.of(graph, places, expected).edges()
    assert "5 edges before" in str(found)
    short = {**expected, "L0H1->L1KV1.k": ["right"]}
    moved = {**expected, "L0H1->L1KV1.k": ["cue", "other", "elsewhere", "last"]}
    some = [found.circuit]
    some += [PositionedCircuit.of(graph, places, one) for one in (short, moved)]
    judged = evaluate_positioned(toy, task, some, random=3)
    whole, half, nothing = judged.faithfulness
    assert whole == pytest.approx(1, abs=0.02)
    assert 0.2 < half < 0.8
    assert nothing == pytest.approx(0, abs=0.02)
    assert list(judged.sizes) == [5, 4, 7]
    assert judged.random.shape == (3, 3, 8)
    assert "by position (right, wrong, cue, other, last, elsewhere)" in str(judged)
    assert list(judged.to_dataframe()["edges"]) == [5, 4, 7]
    assert judged.null(0).draws == 3


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "neox"])
@pytest.mark.parametrize("ablation", ["counterfactual", "zero", "mean"])
def test_kept_everywhere_it_is_the_circuit_without_positions(
    family_models, family, ablation, any_gap
):
    model, task = family_models[family], random_task()
    graph, rng = graph_of(model), np.random.default_rng(0)
    masks = graph.allowed & (rng.random((3, *graph.shape)) < np.array([0.2, 0.6, 1])[:, None, None])
    plain = [Circuit(graph=graph, mask=mask) for mask in masks]
    places = positions_of(["changed", "near_end"], model, task)
    some = [PositionedCircuit.everywhere(one, places) for one in plain]
    options = {"ablation": ablation, "random": 0}
    if ablation == "mean":
        options["reference"] = random_task((6, 7), seed=3)
    expected = faithfulness_curve(model, task, plain, **options)
    found = evaluate_positioned(model, task, some, **options)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal((found.full, found.empty), (expected.full, expected.empty))
    # All edges kept is the clean run.
    np.testing.assert_allclose(found.values[2], found.full, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "olmo2", "neox"])
@pytest.mark.long
def test_of_the_whole_graph_the_effects_are_those_of_edge_positions(family_models, family, any_gap):
    model, task, rng = family_models[family], random_task((8, 8)), np.random.default_rng(2)
    graph = graph_of(model)
    found = narrow_circuit(model, task, Circuit(graph=graph, mask=graph.mask()), threshold=0)
    chosen = [str(one) for one in rng.permutation(found.effects.edges)[:10]] + ["L1H0->logits"]
    expected = edge_positions(model, task, chosen)
    rows = [found.effects.edges.index(edge) for edge in chosen]
    assert found.effects.positions == ("0", "1", "2", "3", "4", "5", "6", "last")
    np.testing.assert_allclose(found.effects.lost[:, rows], expected.lost, atol=3e-5)
    np.testing.assert_allclose(found.effects.lost_whole[:, rows], expected.lost_whole, atol=3e-5)
    assert np.abs(expected.lost).max() > 1e-2


@pytest.mark.long
def test_within_a_circuit_effects_are_those_of_runs_without_the_edge(
    family_models, any_gap, monkeypatch
):
    model, task = family_models["qwen3"], random_task()
    edges = ["input->L0KV0.v", "input->L0KV0.k", "input->L0H1.q", "L0H1->L1.mlp_out"]
    edges += ["input->L1.mlp_out", "L1.mlp_out->logits"]
    circuit = Circuit.of(graph_of(model), edges)
    monkeypatch.setattr(narrowing, "BATCH", 3)
    found = narrow_circuit(model, task, circuit, positions="changed", threshold=1e-3)
    whole = PositionedCircuit.everywhere(circuit, found.circuit.positions)
    assert found.circuit.positions == ("changed", "last", "elsewhere")
    left = evaluate_positioned(model, task, whole, random=0).values[0]
    for row, label in enumerate(found.effects.edges):
        for column in range(len(whole.positions)):
            mask = whole.mask.copy()
            mask[(*circuit.graph.edge(label), column)] = False
            fewer = replace(whole, mask=mask)
            less = evaluate_positioned(model, task, fewer, random=0).values[0]
            np.testing.assert_allclose(found.effects.lost[:, row, column], left - less, atol=1e-5)
    kept = np.abs(found.effects.values) >= 1e-3
    assert 0 < found.circuit.n_edges <= kept.sum()
    assert found.circuit.connected().edges() == found.circuit.edges()


def test_edges_by_place_are_counted_and_named(tmp_path):
    graph = Graph(n_layers=2, n_heads=4, n_kv_heads=2)
    places = ("S2", "last", "elsewhere")
    into_logits = 1 + 2 * 5
    assert allowed(graph, places).sum() == (graph.n_edges - into_logits) * 3 + into_logits
    circuit = PositionedCircuit.of(
        graph, places, {"L0H1->L1KV1.k": ["S2", "elsewhere"], "L1H2->logits": ["last"]}, name="two"
    )
    assert circuit.edges() == [
        "L0H1->L1KV1.k @ S2", "L1H2->logits @ last", "L0H1->L1KV1.k @ elsewhere",
    ]  # fmt: skip
    assert "L0H1->L1KV1.k @ S2" in circuit
    assert "L0H1->L1KV1.k @ last" not in circuit
    assert len(circuit) == 3
    assert circuit.share == 3 / circuit.n_possible
    assert circuit.at("S2").edges() == ["L0H1->L1KV1.k"]
    assert circuit.anywhere().edges() == ["L0H1->L1KV1.k", "L1H2->logits"]
    again = PositionedCircuit.load(circuit.save(tmp_path / "two").with_suffix(""))
    assert (again.hash, again.positions, again.name) == (circuit.hash, places, "two")
    with pytest.raises(InterpError, match="its kind is"):
        Circuit.load(tmp_path / "two")
    whole = PositionedCircuit.everywhere(Circuit(graph=graph, mask=graph.mask()), places)
    assert whole.share == 1
    drawn = circuit.random_like(np.random.default_rng(0))
    assert [drawn.at(place).n_edges for place in places] == [1, 1, 1]
    assert drawn.hash != circuit.hash
    assert "'two', 3 of" in repr(circuit)


def test_paths_stay_at_their_place_but_for_keys_and_values():
    graph, places = Graph(n_layers=2, n_heads=2, n_kv_heads=1), ("S2", "last", "elsewhere")

    def left(**edges):
        named = {label.replace("_to_", "->").replace("_in", "."): at for label, at in edges.items()}
        return PositionedCircuit.of(graph, places, named).connected().edges()

    keys = {"input_to_L1KV0_ink": ["S2"], "L1H0_to_logits": ["last"]}
    assert left(**keys) == ["input->L1KV0.k @ S2", "L1H0->logits @ last"]
    queries = {"input_to_L1H0_inq": ["S2"], "L1H0_to_logits": ["last"]}
    assert left(**queries) == []
    assert len(left(**(queries | {"input_to_L1H0_inq": ["S2", "last"]}))) == 2
    chain = {
        "input_to_L0_inmlp_out": ["S2", "last"],
        "L0_inmlp_out_to_L1KV0_inv": ["S2"],
        "L1H1_to_logits": ["last"],
    }
    assert left(**chain) == [
        "input->L0.mlp_out @ S2", "L0.mlp_out->L1KV0.v @ S2", "L1H1->logits @ last",
    ]  # fmt: skip


def test_tokens_are_told_apart():
    model, task = load_model("toy-induction"), named_pairs(4)
    unmarked = load_task("toy-induction", model, n=2)
    assert positions_of(marked_positions(model, unmarked), model, unmarked) == ("last", "elsewhere")
    places = positions_of("right", model, task)
    assert places == ("right", "last", "elsewhere")
    right = task.encode(model).positions("right")
    for index, one in zip(right, position_numbers(places, model, task), strict=True):
        assert (one[index], one[-1]) == (0, 1)
        assert (one == 2).sum() == len(one) - 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "all"}, "7 to 9 tokens"),
        ({"positions": ["changed", "changed"]}, "a repeated one"),
        ({"positions": "nowhere"}, "this prompt has"),
        ({"positions": ["changed", "2"]}, "both are token 2 of pair 0"),
        ({"positions": ["near_end", "7"]}, "both are token 7 of pair 0"),
        ({"positions": ["changed", "8"]}, "both are token 8|it has 7"),
        ({"positions": "changed", "threshold": -1}, "0 or more"),
        ({"positions": "changed", "threshold": float("nan")}, "finite number"),
        ({"positions": "changed", "ablation": "mean"}, "no reference prompts"),
    ],
)
def test_what_cannot_be_narrowed_is_refused(family_models, any_gap, change, message):
    model = family_models["llama"]
    circuit = Circuit.of(graph_of(model), ["L0H0->logits"])
    with pytest.raises(InterpError, match=message):
        narrow_circuit(model, random_task(), circuit, **change)


def test_masks_that_do_not_fit_are_refused(family_models, any_gap):
    model, task = family_models["llama"], random_task()
    graph, places = graph_of(model), ("changed", "last", "elsewhere")
    with pytest.raises(InterpError, match="first input->logits @ changed"):
        PositionedCircuit.of(graph, places, {"input->logits": ["changed"]})
    with pytest.raises(InterpError, match="did you mean|known|choose"):
        PositionedCircuit.of(graph, places, {"input->logits": ["lost"]})
    with pytest.raises(InterpError, match="no 'last'"):
        PositionedCircuit(graph=graph, positions=("changed",), mask=graph.allowed[..., None])
    with pytest.raises(InterpError, match="a mask of shape"):
        PositionedCircuit(graph=graph, positions=places, mask=graph.allowed)
    circuit = PositionedCircuit.of(graph, places, {"input->logits": ["last"]})
    with pytest.raises(InterpError, match="0 circuits"):
        evaluate_positioned(model, task, [])
    other = PositionedCircuit.of(graph, ("last", "elsewhere"), {"input->logits": ["last"]})
    with pytest.raises(InterpError, match="2 circuits"):
        evaluate_positioned(model, task, [circuit, other])
    with pytest.raises(InterpError, match="use circuits of this model"):
        evaluate_positioned(family_models["neox"], task, circuit)
    short = PositionedCircuit.of(graph, ("0", "1", "last"), {"input->logits": ["last"]})
    with pytest.raises(InterpError, match="token 2 of pair 0 has none of them"):
        evaluate_positioned(model, task, short)
