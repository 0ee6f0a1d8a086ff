"""Neurons as nodes: counts, runs against plain loops, scores, and a planted neuron."""

import numpy as np
import pytest
import torch

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.find import Finder, find_circuit
from interp.circuits.discovery.redundancy import redundancy
from interp.circuits.drawing import draw_circuit
from interp.circuits.evaluation.curve_evaluation import faithfulness_curve
from interp.circuits.evaluation.evaluate import evaluate
from interp.circuits.evaluation.overlap import compare_circuits
from interp.circuits.files.mib import to_mib_json
from interp.circuits.ground_truth.recovery import recover_edges
from interp.circuits.model_graph import graph_of
from interp.circuits.positions.edge_positions import edge_positions
from interp.circuits.positions.narrow import narrow_circuit, narrow_curve
from interp.circuits.ranking import top_edges
from interp.circuits.scoring.edge_scores import EdgeScores
from interp.circuits.scoring.score_edges import score_edges
from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.engine.edges.graph import Graph
from interp.engine.restart import final_hidden
from interp.models.loading import load_model, wrap
from interp.runs.pairs import paired_runs
from interp.tasks.registry import load_task
from tests.cli.test_main import run
from tests.engine.test_edges import Case, placed
from tests.families import DENSE, random_task, tiny, true_double

NEURONS = ((0, 5), (2, 3), (2, 40))


@pytest.fixture(scope="module", params=DENSE)
def wide(request):
    """A family in float64."""
    with true_double():
        return wrap(tiny(request.param, torch.float64), name=f"wide-{request.param}")


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("expand_kv", [False, True])
def test_counts_and_edges_are_those_of_a_walk_through_the_model(parallel, expand_kv):
    graph = Graph(
        n_layers=3, n_heads=4, n_kv_heads=2, parallel=parallel, expand_kv=expand_kv,
        neurons=NEURONS,
    )  # fmt: skip
    written, expected, count = ["input"], set(), 0
    for layer in range(3):
        kv = 4 if expand_kv else 2
        here = [f"L{layer}H{h}.q" for h in range(4)]
        mark = "H" if expand_kv else "KV"
        here += [f"L{layer}{mark}{h}.{site}" for site in "kv" for h in range(kv)]
        expected |= {f"{w}->{r}" for w in written for r in here}
        neurons = [f"L{at}N{number}" for at, number in NEURONS if at == layer]
        count += (4 + 2 * kv) * len(written)
        count += (1 + len(neurons)) * (len(written) + (0 if parallel else 4))
        before = list(written)
        written += [f"L{layer}H{h}" for h in range(4)]
        seen = before if parallel else list(written)
        for reader in [*neurons, f"L{layer}.mlp_out"]:
            expected |= {f"{w}->{reader}" for w in seen}
            written.append(reader)
    expected |= {f"{w}->logits" for w in written}
    assert graph.writers == tuple(written)
    assert set(graph.labels(graph.allowed)) == expected
    assert graph.n_edges == len(expected) == count + len(written)
    for label in expected:
        assert graph.label(*graph.edge(label)) == label
    # A neuron is fed by its own reader, and by nothing else.
    for name in ("L2N3", "L2.mlp_out", "L0N5"):
        fed = np.flatnonzero(graph.feeds[:, graph.writer(name)])
        assert [graph.readers[reader] for reader in fed] == [name]
    whole = graph.mask()
    assert (graph.connected(whole) == whole).all()
    assert graph.native.expanded.neurons == graph.neurons
    taken = np.arange(len(graph.native.readers))[None][:, graph.copies][0]
    assert graph.native.readers[taken[-2]] == graph.expanded.readers[-2] == "L2.mlp_out"


def test_unknown_neurons_are_refused(family_models):
    model = family_models["llama"]
    assert graph_of(model, neurons=["L2N40", "L0N5", (2, 3)]).neurons == NEURONS
    for wrong in ("L9N0", "L0N48", "L0H1", "L0N3.pre", (0, -1)):
        with pytest.raises(InterpError, match="3 layers of 48 neurons"):
            graph_of(model, neurons=[wrong])
    with pytest.raises(InterpError, match="given twice"):
        graph_of(model, neurons=["L0N5", (0, 5)])


def test_all_edges_are_the_clean_run_and_none_the_corrupted(wide):
    case = Case(wide, neurons=NEURONS)
    found = case.logits([case.graph.allowed, np.zeros(case.graph.shape, bool)])
    for one, writes in enumerate((case.base, case.other)):
        plain = case.runner.decoder.logits(final_hidden(case.runner, writes.run))
        torch.testing.assert_close(found[one], plain, atol=1e-11, rtol=0)


@pytest.mark.parametrize("ablation", ["other", "zero", "mean"])
def test_random_circuits_equal_plain_loops(wide, ablation):
    case = Case(wide, neurons=NEURONS)
    other = case.other if ablation == "other" else case.constant(ablation)
    masks, options = case.random_masks(3), {"other": other, "start": ablation == "other"}
    # One in which only neurons part from the rest of their MLP.
    masks[2] = case.graph.allowed
    masks[2, :6, case.graph.reader("L2N40")] = masks[2, case.graph.writer("L0N5"), -1] = False
    found = case.logits(masks, **options)
    for number, mask in enumerate(masks):
        for prompt in range(len(case.task)):
            slow = case.slow(mask, prompt, other)
            torch.testing.assert_close(found[number, prompt], slow, atol=1e-9, rtol=0)
    apart = torch.tensor(masks).double().requires_grad_()
    torch.testing.assert_close(case.logits(apart, **options).detach(), found, atol=1e-9, rtol=0)
    by_place, places = placed(case)
    found = case.logits(by_place, places=places, **options)
    slow = case.slow(by_place[0], 0, other, places[: case.base.run.lengths[0]])
    torch.testing.assert_close(found[0, 0], slow, atol=1e-9, rtol=0)


def test_neurons_kept_with_the_rest_are_the_mlp(wide):
    """A mask of the graph without neurons, its MLP edges copied to neurons and rest."""
    plain, case = Case(wide), Case(wide, neurons=NEURONS)
    masks = plain.random_masks(4)
    writers, readers = (
        [known(f"L{name[1]}.mlp_out" if "N" in name else name) for name in names]
        for known, names in (
            (plain.graph.writer, case.graph.writers),
            (plain.graph.reader, case.graph.readers),
        )
    )
    split = masks[:, writers][:, :, readers]
    torch.testing.assert_close(case.logits(split), plain.logits(masks), atol=1e-10, rtol=0)


@pytest.fixture
def any_gap(monkeypatch):
    for module in ("trials.trials", "scoring.score_edges"):
        monkeypatch.setattr(f"interp.circuits.{module}.check_gap", lambda one, other: None)


LABELS = ("L0N5", "L2N3", "L2N40")


def test_all_edges_out_of_a_neuron_are_its_activation(wide):
    """Hugging Face's own forward with the neuron set to what it is in the other run."""
    case = Case(wide, neurons=NEURONS, lengths=(9,))
    masks = np.repeat(case.graph.allowed[None], 3, 0)
    for row, name in enumerate(LABELS):
        masks[row, case.graph.writer(name)] = False
    with true_double():
        found = case.logits(masks)[:, 0]
        for row, (layer, number) in enumerate(NEURONS):
            kept = []

            def read(value, batch, kept=kept):
                kept.append(value.clone())
                return value

            def put(value, batch, kept=kept, number=number):
                value = value.clone()
                value[..., number] = kept[0][..., number]
                return value

            wide.last_logits(case.runs.other, hooks={(layer, "post"): [read]})
            slow = wide.last_logits(case.runs.base, hooks={(layer, "post"): [put]})[0]
            torch.testing.assert_close(found[row], slow, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ablation", ["counterfactual", "zero"])
def test_attribution_is_the_slope_of_runs_by_edge(wide, ablation, any_gap):
    case = Case(wide, neurons=NEURONS)
    other = case.other if ablation == "counterfactual" else case.constant("zero")
    with true_double():
        found = score_edges(
            wide, case.task, neurons=LABELS, ablation=ablation, per_prompt=True, budget_gb=0.5
        )
        ones = torch.tensor(case.graph.allowed)[None].double().requires_grad_()
        logits = case.logits(ones, other=other, start=False)[0]
        targets = paired_runs(wide, case.task, "noise").targets
        rows = case.task.metric(Logits(logits), targets)
        for prompt, row in enumerate(rows):
            (slope,) = torch.autograd.grad(row, ones, retain_graph=True)
            expected = slope[0].numpy() * case.graph.allowed
            np.testing.assert_allclose(found.per_prompt[prompt], expected, atol=2e-6)
    assert np.abs(found.per_prompt[:, case.graph.writer("L2N3")]).max() > 1e-4


@pytest.mark.parametrize("method", ["EAP", "EAP-IG-inputs", "clean-corrupted"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "qwen2", "gemma2"])
def test_neurons_and_rest_add_up_to_the_mlp(family_models, family, method, any_gap):
    model, task = family_models[family], random_task()
    whole = score_edges(model, task, method=method)
    split = score_edges(model, task, method=method, neurons=LABELS)
    columns = [whole.graph.reader(_mlp(name)) for name in split.graph.readers]
    rows = [whole.graph.writer(_mlp(name)) for name in split.graph.writers]
    into = np.zeros((len(rows), len(whole.graph.readers)))
    np.add.at(into.T, columns, split.signed.T)
    added = np.zeros(whole.graph.shape)
    np.add.at(added, rows, into)
    heads = whole.graph.writer_kind != "mlp"
    np.testing.assert_allclose(added[heads], whole.signed[heads], atol=2e-5)
    if family != "gemma2":  # there writes are linear only before the norm
        np.testing.assert_allclose(added, whole.signed, atol=2e-5)


def _mlp(name):
    return f"L{name[1]}.mlp_out" if "N" in name else name


@pytest.mark.long
def test_the_planted_neuron_is_found_and_its_mlp_is_not(tmp_path):
    model = load_model("toy-verification")
    task = load_task("toy-verification", model, n=16)
    neurons = ("L1N3", "L1N5", "L0N3")
    exact = score_edges(model, task, method="exact", neurons=neurons)
    true = {label for label in exact.graph.labels(exact.graph.allowed) if "1N" in label}
    matter = {label for label in true if abs(exact.signed[exact.graph.edge(label)]) > 0.05}
    assert matter == {"L0H2->L1N3", "L1N3->L2KV0.v"}
    for edge in ("L1N3->L2KV0.v", "L0H2->L1N3"):
        assert exact.signed[exact.graph.edge(edge)] == pytest.approx(1, abs=0.05)
    rest = exact.signed[exact.graph.writer("L1.mlp_out")]
    assert np.abs(rest).max() < 1e-3
    guessed = score_edges(model, task, method="EAP-IG-inputs", neurons=neurons, steps=10)
    out = guessed.signed[guessed.graph.edge("L1N3->L2KV0.v")]
    assert out == pytest.approx(exact.signed[exact.graph.edge("L1N3->L2KV0.v")], abs=0.1)
    again = EdgeScores.load(exact.save(tmp_path / "scores").with_suffix(""))
    assert again.graph == exact.graph
    circuit = Circuit(graph=exact.graph, mask=top_edges(exact, 6, by="absolute"))
    assert "L1N3->L2KV0.v" in circuit
    assert "L1N3" in circuit.nodes()
    assert Circuit.load(circuit.save(tmp_path / "c").with_suffix("")).hash == circuit.hash
    judged = faithfulness_curve(model, task, circuit, random=4)
    assert judged.faithfulness[0] == pytest.approx(1, abs=0.02)
    without = faithfulness_curve(model, task, circuit.without(["L1N3"]), random=0)
    assert without.faithfulness[0] == pytest.approx(0, abs=0.05)
    cut = narrow_circuit(model, task, circuit, positions="last", threshold=0.05)
    assert "L1N3->L2KV0.v @ elsewhere" in cut.circuit
    assert "L1N3->L2KV0.v @ last" not in cut.circuit


def test_places_of_neuron_edges_are_measured(family_models, any_gap):
    model, task = family_models["llama"], random_task((8, 8))
    edges = ("input->L0N5", "L0N5->L1KV0.k", "L0H1->L2N40", "L2N3->logits")
    found = edge_positions(model, task, edges, neurons=LABELS)
    exact = score_edges(model, task, method="exact", neurons=LABELS, per_prompt=True)
    expected = [exact.per_prompt[:, *exact.graph.edge(edge)] for edge in edges]
    np.testing.assert_allclose(found.lost_whole, np.stack(expected, 1), atol=2e-5)
    np.testing.assert_allclose(found.lost[:, 3, -1], found.lost_whole[:, 3], atol=2e-5)


def test_circuits_with_neurons_are_drawn_and_compared_and_not_mibs(tmp_path):
    graph = Graph(n_layers=3, n_heads=4, n_kv_heads=2, neurons=NEURONS)
    edges = ["input->L0N5", "L0N5->L2N40", "L2N40->logits", "input->L2.mlp_out"]
    circuit = Circuit.of(graph, [*edges, "L2.mlp_out->logits"])
    drawing = draw_circuit(graph, circuit.mask, circuit.mask.astype(float))
    assert drawing.drawn == 5
    inside = {text for trace in drawing.figure.data for text in trace.text or ()}
    beside = {note.text for note in drawing.figure.layout.annotations}
    assert "MLP" in inside
    assert {"N5", "N40"} <= beside
    rows = {row.kind: row.shared for row in compare_circuits(circuit, circuit, random=0).rows}
    assert rows["neurons"] == 2
    assert rows["edges into neurons"] == 2
    assert rows["heads, MLPs and neurons"] == 3
    assert circuit.without(["L0N5"]).edges() == ["input->L2.mlp_out", *circuit.edges()[3:]]
    drawn = circuit.random_like(np.random.default_rng(0))
    assert (drawn.mask[:, graph.reader_kind == "neuron"]).sum() == 2
    with pytest.raises(InterpError, match="dimensions of a node's output"):
        to_mib_json(circuit, tmp_path / "mib.json", d_model=8)


@pytest.mark.long
def test_find_takes_neurons(tmp_path):
    toy = ("--model", "toy-verification", "--task", "toy-verification", "--n", 8)
    options = ("--neurons", "L1N3", "--edges", 4, "--out", tmp_path / "c")
    assert "L1N3->L2KV0.v" in run("circuit", "find", *toy, *options)
    found = Circuit.load(tmp_path / "c")
    assert found.graph.neurons == ((1, 3),)
    assert "L0H2->L1N3" in found
    out = run("circuit", "evaluate", tmp_path / "c", *toy, "--random", 0, "--knockouts", 2)
    assert "minimality" in out
    assert "L1N3->L2KV0.v" in run(
        "circuit", "positions", tmp_path / "c", *toy, "--positions", "last"
    )
    with pytest.raises(InterpError, match="whole MLPs"):
        Finder(method="ACDC", neurons=("L1N3",))


@pytest.mark.long
def test_a_circuit_with_neurons_passes_through_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    model = load_model("toy-verification")
    task = load_task("toy-verification", model, n=8)
    found = find_circuit(model, task, Finder(method="EAP", neurons=("L1N3", "L0N2")))
    circuit = found.circuit(12)
    assert "L1N3" in circuit.nodes()
    done = evaluate(circuit, model, task, random=2, knockouts=2)
    assert done.stability.circuit.graph == circuit.graph
    assert (done.stability.circuit.mask == circuit.mask).all()
    assert "L1N3" in done.minimality.parts
    assert "2 neurons as nodes" in done.protocol
    inside = redundancy(model, task, ["L1N3", "L0H2"], within=circuit, resume=False)
    alone = faithfulness_curve(model, task, circuit.without(["L1N3"]), random=0)
    assert inside.alone[0] == pytest.approx(1 - alone.faithfulness[0], abs=1e-4)
    assert inside.alone[0] == pytest.approx(1, abs=0.05)
    assert redundancy(model, task, circuit, resume=False).parts == tuple(circuit.nodes()[1:])
    named = redundancy(model, task, ["L1N3", "L0H2"], neurons=["L1N3"], resume=False)
    assert named.alone[0] == pytest.approx(1, abs=0.05)
    with pytest.raises(InterpError, match="this neuron is not a node"):
        redundancy(model, task, ["L1N3", "L0H2"])
    with pytest.raises(InterpError, match="whole MLPs"):
        recover_edges(model, task, truth=circuit, methods=["EAP"])
    scores = score_edges(model, task, per_prompt=True)
    with pytest.raises(InterpError, match="score the circuit's graph"):
        evaluate(circuit, model, task, random=0, knockouts=0, stable_by=scores)
    judged = narrow_curve(model, task, task, circuit, positions="last", random=1).judged
    assert judged.faithfulness[0] == pytest.approx(1, abs=0.05)


@pytest.mark.long
def test_find_tests_pairs_of_neurons(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    toy = ("--model", "toy-verification", "--task", "toy-verification", "--n", 8)
    out = run("circuit", "find", *toy, "--neurons", "L1N3", "--edges", 4, "--redundant", 4)
    assert "of 6 pairs are redundant" in out
    assert "L1N3->L2KV0.v" in out


@pytest.mark.parametrize("method", ["EAP-IG-activations", "information-flow-routes"])
def test_methods_of_whole_mlps_are_refused(family_models, method):
    with pytest.raises(InterpError, match="whole MLPs"):
        score_edges(family_models["llama"], random_task(), method=method, neurons=LABELS)
