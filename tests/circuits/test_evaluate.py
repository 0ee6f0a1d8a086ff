"""All that is asked of a circuit in one run, random circuits on paths, and results as files."""

import dataclasses
import math

import numpy as np
import pytest

import interp
from interp.circuits.circuit import Circuit
from interp.circuits.discovery.acdc import Acdc, acdc
from interp.circuits.discovery.find import Finder, find_circuit
from interp.circuits.discovery.learned_masks import LearnedMask, learn_mask
from interp.circuits.discovery.redundancy import Redundancy, redundancy
from interp.circuits.evaluation import curve_evaluation as evaluation
from interp.circuits.evaluation.curve_evaluation import faithfulness_curve
from interp.circuits.evaluation.evaluate import CircuitEvaluation, evaluate
from interp.circuits.evaluation.knockouts import Completeness, Minimality, completeness, minimality
from interp.circuits.evaluation.stability import Stability, stability
from interp.circuits.ground_truth.recovery import (
    EdgeGroundTruth,
    Recovery,
    edge_ground_truth,
    recover_edges,
)
from interp.circuits.positions.edge_positions import EdgePositions, edge_positions
from interp.circuits.ranking import greedy_edges, top_edges
from interp.circuits.scoring.score_edges import score_edges
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError
from interp.core.records import Record
from interp.engine.edges.graph import Graph
from interp.models.loading import load_model
from tests.circuits.measured import measured
from tests.circuits.test_acdc import toy_task
from tests.circuits.test_circuit import planted

WIDE = Graph(n_layers=6, n_heads=6, n_kv_heads=2)


@pytest.fixture(scope="module")
def scored():
    """A toy, its task, and a circuit of half its edges with scores."""
    model, task, whole = planted("toy-induction")
    task = task.first(8)
    scores = score_edges(model, task, method="EAP-IG-activations", per_prompt=True)
    return model, task, dataclasses.replace(whole, scores=scores.signed), scores


@pytest.fixture
def engine_calls(monkeypatch):
    """The variants of every call of the engine."""
    variants, run = [], interp.circuits.trials.trials.run_edges

    def counted(*args, prompt, **options):
        variants.append(len(prompt))
        return run(*args, prompt=prompt, **options)

    monkeypatch.setattr("interp.circuits.trials.trials.run_edges", counted)
    return variants


# -- one run -------------------------------------------------------------------------------


def test_a_whole_curve_is_one_batched_run(scored, engine_calls):
    """One engine call for both ends, one for ten circuits and their random ones on all prompts."""
    model, task, _, scores = scored
    found = faithfulness_curve(model, task, scores, random=2, connected=True)
    assert engine_calls == [2 * len(task), (10 + 2 * 10 + 2 * 10) * len(task)]
    assert found.values.shape == (10, len(task))
    assert found.random.shape == found.random_connected.shape == (2, 10, len(task))


def test_everything_is_one_batched_run(scored, engine_calls, monkeypatch):
    model, task, circuit, _ = scored
    monkeypatch.setattr(evaluation, "_BATCH_ROWS", 10**6)
    found = evaluate(circuit, model, task, random=2, knockouts=4, most=2)
    curves = 2 + 2 * 2 * 2 + (10 + 2 * 2 * 10) + 10
    knockouts = 2 * 4 + (1 + 2) * (1 + len(found.minimality.parts))
    assert engine_calls == [2 * len(task), (curves + knockouts) * len(task)]
    assert (found.calls, found.tests) == (2, 2 + curves + knockouts)
    assert found.forwards < found.tests  # what circuits share is run once


def test_it_is_what_each_measurement_gives_alone(scored):
    model, task, circuit, _ = scored
    scores = score_edges(model, task, per_prompt=True)  # saturated: the two rankings differ
    circuit = dataclasses.replace(circuit, scores=scores.signed)
    found = evaluate(circuit, model, task, random=3, knockouts=4, seed=1, stable_by=scores)
    trials = Trials(model, task)
    ranks = dataclasses.replace(scores, signed=circuit.signed)
    signed = faithfulness_curve(model, task, ranks, random=0)
    absolute = faithfulness_curve(model, task, ranks, random=0, by="absolute")
    np.testing.assert_allclose(found.signed.values, signed.values, atol=1e-5)
    np.testing.assert_allclose(found.absolute.values, absolute.values, atol=1e-5)
    assert found.cpr().mean == pytest.approx(signed.cpr().mean, abs=1e-5)
    assert found.cmd().mean == pytest.approx(absolute.cmd().mean, abs=1e-5)
    assert found.cmd().mean != pytest.approx(signed.cmd().mean, abs=1e-3)
    for place, one in enumerate((circuit, circuit.whole_nodes())):
        f = faithfulness_curve(model, task, one, random=0).faithfulness[0]
        assert found.itself.faithfulness[place] == pytest.approx(f, abs=1e-5)
    lacks = measured(completeness, trials, circuit, samples=4, seed=1)
    spares = measured(minimality, trials, circuit, samples=2, seed=1, most=32)
    np.testing.assert_allclose(found.completeness.incompleteness, lacks.incompleteness, atol=1e-5)
    np.testing.assert_allclose(found.minimality.effects, spares.effects, atol=1e-5)
    steady = stability(scores, circuit.n_edges, seed=1)
    np.testing.assert_array_equal(found.stability.jaccard, steady.jaccard)
    assert found.size == (circuit.n_edges, len(circuit.nodes()), circuit.share)
    for words in (
        "counterfactual ablation",
        "CPR",
        "CMD",
        "all edges on paths",
        "stability of EAP:",
    ):
        assert words in str(found)


@pytest.mark.long
def test_stability_is_that_of_the_method_the_circuit_came_from(scored, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    model, task, _, _ = scored
    quiet: dict = {"random": 0, "knockouts": 0, "seed": 2}
    for options, cut in (
        ({"method": "EAP"}, {"by": "signed"}),
        ({"method": "clean-corrupted"}, {"search": "greedy"}),
        ({"method": "EAP-IG-inputs", "steps": 3, "direction": "denoise"}, {}),
        ({"method": "EAP", "ablation": "resample", "seed": 7}, {"by": "mean_absolute"}),
    ):
        circuit = find_circuit(model, task, Finder(**options)).circuit(9, **cut)
        circuit = Circuit.load(circuit.save(tmp_path / "c").with_suffix(""))
        found = evaluate(circuit, model, task, **quiet)
        scores = score_edges(model, task, per_prompt=True, **options)
        expected = stability(scores, circuit.n_edges, seed=2, **cut)
        np.testing.assert_array_equal(found.stability.frequency, expected.frequency)
        assert (found.stability.circuit.mask == circuit.mask).all()
        assert found.stable_by == options["method"]
    other = evaluate(circuit, model, task, stable_by="clean-corrupted", **quiet)
    assert "stability of clean-corrupted" in str(other)
    slow = find_circuit(model, task, Finder(method="ACDC", threshold=0.1)).circuit()
    found = evaluate(slow, model, task, **quiet)
    assert found.stability is None
    assert found.stable_by == ""
    assert "stability was not measured: ACDC, which found it, needs many runs" in str(found)
    assert "ACDC" in found.to_dict()["no_stability"]
    unknown = evaluate(slow.random_like(np.random.default_rng(0)), model, task, **quiet)
    assert "does not say which method found it" in unknown.unstable
    kl = task.with_metric(interp.METRICS["kl"])
    circuit = find_circuit(model, task, Finder(method="EAP")).circuit(9)
    assert "cannot be repeated" in evaluate(circuit, model, kl, **quiet).unstable
    with pytest.raises(InterpError, match="compares with the clean run"):
        evaluate(circuit, model, kl, stable_by="EAP", **quiet)


def test_what_is_not_asked_for_is_left_out_and_bad_requests_are_refused(scored):
    model, task, circuit, _ = scored
    bare = dataclasses.replace(circuit, scores=None)
    found = evaluate(bare, model, task, random=0, knockouts=0, stable_by=None)
    assert found.signed is found.completeness is found.stability is None
    assert "curve" not in found.to_dict()
    with pytest.raises(InterpError, match="have no scores"):
        found.cpr()
    with pytest.raises(InterpError, match="no random circuits"):
        found.itself.null(0, connected=True)
    with pytest.raises(InterpError, match="the method needs many runs"):
        evaluate(circuit, model, task, stable_by="exact")
    with pytest.raises(InterpError, match="level"):
        evaluate(circuit, model, task, level="layer")
    with pytest.raises(InterpError, match="circuits of this model"):
        evaluate(Circuit(graph=WIDE, mask=WIDE.mask()), model, task)


# -- random circuits on paths --------------------------------------------------------------


def test_a_mask_is_no_circuit():
    model, task = load_model("toy-and"), toy_task("toy-and", 2)
    mask = Trials(model, task).graph.mask()
    for odd in (mask, None, "circuit"):
        with pytest.raises(InterpError, match="circuit of evaluate"):
            evaluate(odd, model, task)


@pytest.mark.parametrize("n", [3, 8, 30, 120, 600, WIDE.n_edges])
def test_random_circuits_on_paths_are_of_one_size_and_alike(n):
    rng = np.random.default_rng(n)
    values = np.where(WIDE.allowed, rng.normal(size=WIDE.shape), 0.0)
    scores = Circuit(graph=WIDE, mask=WIDE.mask(), scores=values)
    circuit = Circuit(graph=WIDE, mask=top_edges(scores, n))
    drawn = [circuit.random_like(rng, connected=True) for _ in range(8)]
    for one in drawn:
        assert one.n_edges == circuit.n_edges
        assert (one.connected().mask == one.mask).all()
    if 3 < n < WIDE.n_edges:
        assert len({one.hash for one in drawn}) == len(drawn)
    loose = [circuit.random_like(rng) for _ in range(8)]
    if n == 30:  # what makes the other null easy
        assert np.mean([one.connected().n_edges for one in loose]) < 15
    if n >= 120:
        kinds = [np.bincount([WIDE.reader_kind[r] == "mlp" for r in np.nonzero(c.mask)[1]])
                 for c in (circuit, *drawn)]  # fmt: skip
        assert np.ptp([k[1] for k in kinds]) < 0.2 * n


# -- directions, rankings ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "noise", "denoise"),
    [("toy-or", 1, 2), ("toy-and", 2, 1)],
)
@pytest.mark.long
def test_both_directions_tell_an_or_gate_from_an_and_gate(name, noise, denoise):
    """The inputs of the gate that are kept: one of an OR when noising, all when denoising."""
    model, task = load_model(name), toy_task(name)
    for direction, expected in (("noise", noise), ("denoise", denoise)):
        found = acdc(model, task, threshold=0.05, direction=direction, resume=False)
        writers = {edge.split("->")[0] for edge in found.graph.labels(found.mask)}
        assert len(writers & {"L0H1", "L0H2"}) == expected
        assert ("denoise" in found.protocol) == (direction == "denoise")
        assert found.effects[found.mask].min() >= 0.05
    with pytest.raises(InterpError, match="use direction='noise'"):
        acdc(model, task, threshold=0.05, direction="denoise", ablation="zero")


def test_the_mean_size_sees_what_helps_here_and_hinders_there(scored):
    """An edge whose effects cancel is first by mean size and last by mean."""
    model, task, _, scores = scored
    edge = scores.graph.edge("L0H0->logits")
    turned = np.zeros((len(task), *scores.graph.shape), dtype=np.float32)
    turned[(slice(None), *edge)] = 100.0 * np.where(np.arange(len(task)) % 2, 1, -1)
    sizes = np.abs(turned).mean(0) / abs(scores.gap)
    made = dataclasses.replace(scores, signed=turned.mean(0) / scores.gap, absolute=sizes)
    assert top_edges(made, 1, by="mean_absolute", connected=False)[edge]
    assert not top_edges(made, 1, by="absolute", connected=False)[edge]
    assert greedy_edges(made, 8, by="mean_absolute")[edge]
    assert stability(scores, 3, draws=2, by="mean_absolute").circuit.n_edges <= 3
    assert faithfulness_curve(model, task, made, by="mean_absolute", random=0).fractions is not None
    with pytest.raises(InterpError, match="only means of signed effects"):
        top_edges(Circuit(graph=scores.graph, mask=scores.graph.mask(), scores=scores.signed), 1,
              by="mean_absolute")  # fmt: skip
    with pytest.raises(InterpError, match="ranking"):
        top_edges(scores, 1, by="size")


def test_nodes_by_mean_size(toy):
    task = interp.load_task("toy-induction", toy, n=6)
    scores = interp.attribution_patching(toy, task)
    sizes = np.abs(scores.effects).mean(0) / abs(scores.gap)
    np.testing.assert_allclose(scores.strength("mean_absolute"), sizes)
    best = np.unravel_index(sizes.argmax(), sizes.shape)
    assert scores.top(1, by="mean_absolute")[0].label == f"L{best[0]}H{best[1]}"
    with pytest.raises(InterpError, match="ranking"):
        scores.top(1, by="size")


# -- files ---------------------------------------------------------------------------------


def made(kind, scored):
    """A result of every kind that is kept."""
    model, task, circuit, scores = scored
    task, trials = task.first(4), Trials(model, task.first(4))
    return {
        Acdc: lambda: acdc(model, task, threshold=0.1, absolute=True, resume=False),
        LearnedMask: lambda: learn_mask(model, task, steps=2),
        EdgePositions: lambda: edge_positions(model, task, ["input->L0H1.q"], positions="last"),
        Redundancy: lambda: redundancy(model, task, ["L0H0", "L0H1"], threshold=-9.0, resume=False),
        Stability: lambda: stability(scores, 4, draws=1),
        Completeness: lambda: measured(completeness, trials, circuit, samples=2),
        Minimality: lambda: measured(minimality, trials, circuit, samples=1),
        EdgeGroundTruth: lambda: edge_ground_truth(model, task),
        Recovery: lambda: recover_edges(model, task, methods=["random", "EAP"]),
        CircuitEvaluation: lambda: evaluate(circuit, model, task, random=2, knockouts=2),
    }[kind]()


def same(left, right):
    """Whether two results are the same, field by field, to the last bit."""
    assert type(left) is type(right)
    if dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            same(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    elif isinstance(left, float) and math.isnan(left):
        assert math.isnan(right)
    else:
        assert left == right


@pytest.mark.parametrize(
    "kind",
    [Acdc, LearnedMask, EdgePositions, Redundancy, Stability, Completeness, Minimality,
     EdgeGroundTruth, Recovery, CircuitEvaluation],
)  # fmt: skip
def test_results_come_back_whole(kind, scored, tmp_path):
    found = made(kind, scored)
    again = kind.load(found.save(tmp_path / "kept"))
    same(again, found)
    assert str(again) == str(found)
    with pytest.raises(InterpError, match=f"its kind is '{kind.__name__}'"):
        next(one for one in (Acdc, Stability) if one is not kind).load(tmp_path / "kept")
    assert issubclass(kind, Record)


def test_no_draws_are_no_stability(scored):
    model, task, circuit, scores = scored
    found = evaluate(circuit, model, task, stable_by="EAP", draws=0, random=0, knockouts=0)
    assert (found.stability, found.stable_by) == (None, "")
    assert "stability" not in str(found)
    with pytest.raises(InterpError, match="stability from 0 resampled circuits"):
        stability(scores, 4, draws=0)


def test_findings_are_one_line_that_says_how_to_go_on(scored):
    model, task, _, _ = scored
    found = find_circuit(model, task)
    edges = found.graph.n_edges
    assert repr(found) == f"Findings(EAP-IG-inputs of {edges} edges, n=8; cut by .circuit(n))"
