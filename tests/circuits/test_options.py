"""The keywords that all functions on circuits share: they are read, refused and honoured alike."""

import inspect
import re
from dataclasses import fields

import pytest

import interp
from interp.circuits.circuit import Circuit
from interp.circuits.discovery.find import Finder
from interp.circuits.ground_truth.recovery import edge_ground_truth
from interp.circuits.model_graph import graph_of
from interp.circuits.positions.positioned_circuit import PositionedCircuit
from interp.circuits.trials.options import GraphKeywords, TrialKeywords, TrialOptions
from interp.circuits.trials.trials import Trials
from interp.engine.stopping import Cancelled
from tests.circuits.test_input import neuron_scores


@pytest.fixture(scope="module")
def toy():
    model = interp.load_model("toy-and")
    return model, interp.load_task("toy-and", model).first(2)


def whole(model):
    graph = graph_of(model)
    return Circuit(graph=graph, mask=graph.mask())


def everywhere(model):
    return PositionedCircuit.everywhere(whole(model), ("last", "elsewhere"))


circuits = interp.circuits
GRAPH = {
    "score_edges": lambda m, t, **run: circuits.score_edges(m, t, method="exact", **run),
    "acdc": lambda m, t, **run: circuits.acdc(m, t, threshold=0.1, resume=False, **run),
    "learn_mask": lambda m, t, **run: circuits.learn_mask(m, t, steps=2, **run),
    "redundancy": lambda m, t, **run: circuits.redundancy(m, t, resume=False, **run),
    "edge_positions": lambda m, t, **run: circuits.edge_positions(
        m, t, ["input->L0H0.q"], positions="last", **run
    ),
    "edge_ground_truth": edge_ground_truth,
}
CIRCUIT = {
    "faithfulness_curve": lambda m, t, **run: circuits.faithfulness_curve(m, t, whole(m), **run),
    "evaluate": lambda m, t, **run: circuits.evaluate(whole(m), m, t, stable_by=None, **run),
    "evaluate_neurons": lambda m, t, **run: circuits.evaluate_neurons(m, t, neuron_scores(), **run),
    "evaluate_positioned": lambda m, t, **run: circuits.evaluate_positioned(
        m, t, everywhere(m), **run
    ),
    "narrow_circuit": lambda m, t, **run: circuits.narrow_circuit(
        m, t, whole(m), positions="last", **run
    ),
    "recover_edges": lambda m, t, **run: circuits.recover_edges(m, t, methods=["EAP"], **run),
}
CURVE = {
    "narrow_curve": lambda m, t, **run: circuits.narrow_curve(
        m, t, t, whole(m), positions="last", **run
    ),
}
ALL = GRAPH | CIRCUIT | CURVE


@pytest.mark.parametrize("keywords", [TrialKeywords, GraphKeywords])
def test_keywords_are_the_fields_of_the_options(keywords):
    listed = {name: kind.__forward_arg__ for name, kind in keywords.__annotations__.items()}
    of_record = {one.name: one.type for one in fields(TrialOptions)}
    assert listed == {name: of_record[name] for name in listed}


@pytest.mark.parametrize("name", ALL)
def test_no_function_takes_more_than_twelve_arguments(name):
    function = getattr(circuits, name, edge_ground_truth)
    assert len(inspect.signature(function).parameters) <= 12


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_keyword_is_refused_with_the_names_that_exist(name, toy):
    with pytest.raises(TypeError, match=rf"{name}\(\): .*'abblation'") as refusal:
        ALL[name](*toy, abblation="zero")
    takes = re.split(r"it takes |, ", str(refusal.value))
    assert {"ablation", "seed", "budget_gb", "progress", "cancelled"} <= {*takes}
    assert ("expand_kv" in takes) == (name in GRAPH)


@pytest.mark.parametrize("name", ALL)
def test_a_cancelled_run_stops_within_a_batch(name, toy, monkeypatch):
    """It runs until the answer changes, and then not one layer further."""
    asked, left = [], 3

    def cancelled():
        asked.append(len(asked))
        return len(asked) > left

    with pytest.raises(Cancelled):
        ALL[name](*toy, cancelled=cancelled)
    assert len(asked) == left + 1
    calls = []
    monkeypatch.setattr(Trials, "values", lambda self, masks: calls.append(masks))
    with pytest.raises((Cancelled, TypeError)):
        ALL[name](*toy, cancelled=lambda: True)
    assert len(calls) <= 1


def test_a_mean_over_a_reference_can_be_cancelled(toy):
    model, task = toy
    reference = interp.load_task("toy-and", model).without(task)
    asked = []
    options = TrialOptions(
        ablation="mean", reference=reference, cancelled=lambda: asked.append(1) or len(asked) > 2
    )
    with pytest.raises(Cancelled):
        Trials(model, task, options)
    assert len(asked) == 3


@pytest.mark.parametrize("name", ALL)
def test_progress_ends_at_its_total(name, toy):
    seen = []
    ALL[name](*toy, progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert seen[-1][0] == seen[-1][1] > 0


def test_a_stop_asked_for_outside_reaches_a_search_that_has_a_check_of_its_own(toy):
    from interp.engine.stopping import stoppable

    with stoppable(lambda: True), pytest.raises(Cancelled):
        circuits.learn_mask(*toy, steps=1, cancelled=lambda: False)


def test_a_method_that_is_cancelled_is_no_result(toy):
    """A refusal becomes a note in the table; a cancelled method ends the comparison."""
    model, task = toy
    truth = edge_ground_truth(model, task)
    with pytest.raises(Cancelled):
        circuits.recover_edges(model, task, truth=truth, methods=["EAP"], cancelled=lambda: True)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        *(
            (name, CIRCUIT[name])
            for name in CIRCUIT
            if name not in ("narrow_circuit", "recover_edges")
        ),
        ("score_edges", GRAPH["score_edges"]),
        ("acdc", lambda m, t: interp.find_circuit(m, t, Finder(method="ACDC"))),
        ("learn_mask", lambda m, t: interp.find_circuit(m, t, Finder(method="learned-mask"))),
    ],
)
def test_the_recorded_call_names_the_function(name, measure, toy):
    found = measure(*toy)
    call = getattr(found, "itself", found).provenance.call
    assert re.search(rf"= interp\.circuits\.{name}\(", call), call
    assert callable(getattr(circuits, name))
