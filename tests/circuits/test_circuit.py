"""Circuits: what is in them, files, evaluation and knock-outs, against loops and planted truths."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from experiments.calibration import CURVES, areas
from interp.circuits.circuit import Circuit, jaccard
from interp.circuits.evaluation.curve_evaluation import (
    FaithfulnessCurves,
    faithfulness_curve,
    run_masks,
)
from interp.circuits.evaluation.curves import FRACTIONS, area, curve
from interp.circuits.evaluation.knockouts import completeness, minimality
from interp.circuits.evaluation.stability import stability
from interp.circuits.files.mib import from_mib_json, from_mib_pt, to_mib_json, to_mib_pt
from interp.circuits.model_graph import graph_of
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError
from interp.engine.edges.graph import Graph
from interp.models.toys.circuits import build_toy
from interp.tasks.registry import load_task
from tests import DATA
from tests.circuits.measured import measured
from tests.families import random_task

GROUPED = Graph(n_layers=3, n_heads=4, n_kv_heads=2)
PLAIN = Graph(n_layers=3, n_heads=4, n_kv_heads=4, parallel=True)


def drawn(graph, share=0.3, seed=0, **facts) -> Circuit:
    rng = np.random.default_rng(seed)
    mask = graph.allowed & (rng.random(graph.shape) < share)
    scores = np.where(graph.allowed, rng.normal(size=graph.shape), 0.0)
    return Circuit(graph=graph, mask=mask, scores=scores, **facts)


def planted(name, *, also=(), less=()) -> tuple:
    """A toy, its task, and every edge between its planted components."""
    model, toy = interp.load_model(name), build_toy(name)
    graph = graph_of(model)
    parts = {part if "H" in part else f"L{part[1]}.mlp_out" for part in toy.circuit}
    nodes = {*parts, *also, "input"} - set(less)
    mask = graph.allowed & np.array([writer in nodes for writer in graph.writers])[:, None]
    return model, load_task(name), Circuit(graph=graph, mask=mask, name=name)


def telling(model, task):
    """The task with answers swapped where needed, so that clean beats corrupted on each pair."""
    full, empty = Trials(model, task).ends()
    pairs = [
        pair if a > b else replace(pair, answers=pair.wrong, wrong=pair.answers)
        for pair, a, b in zip(task.pairs, full, empty, strict=True)
    ]
    return replace(task, pairs=tuple(pairs))


# -- the object ----------------------------------------------------------------------------


def test_edges_nodes_and_overlap():
    one = Circuit.of(GROUPED, ["input->L0KV1.v", "L0H2->L1.mlp_out", "L1.mlp_out->logits"])
    assert one.edges() == ["input->L0KV1.v", "L0H2->L1.mlp_out", "L1.mlp_out->logits"]
    assert one.nodes() == ["input", "L0H2", "L1.mlp_out"]
    assert "input->L0KV1.v" in one
    assert "input->L0KV0.v" not in one
    assert (len(one), one.share) == (3, 3 / GROUPED.n_edges)
    assert one.connected().edges() == one.edges()
    other = Circuit.of(GROUPED, ["L1.mlp_out->logits", "L0H0->logits"])
    found = one.overlap(other)
    assert (found["shared_edges"], found["jaccard_edges"]) == (1, 1 / 4)
    assert (found["shared_nodes"], found["jaccard_nodes"]) == (1, 1 / 3)
    assert jaccard(one.mask, one.mask) == 1
    with pytest.raises(InterpError, match="compare circuits of one graph"):
        one.overlap(drawn(PLAIN))
    with pytest.raises(InterpError, match="there are none"):
        _ = one.signed
    with pytest.raises(InterpError, match="one score per"):
        replace(one, scores=np.zeros(3))


def test_removing_edges_and_nodes():
    whole = Circuit(graph=GROUPED, mask=GROUPED.mask())
    assert "L0H0->logits" not in whole.without(["L0H0->logits"])
    fewer = whole.without(["L1H0"])
    gone = set(whole.edges()) - set(fewer.edges())
    assert {edge for edge in gone if "->L1H" in edge} == {
        edge for edge in whole.edges() if edge.endswith("->L1H0.q")
    }
    assert {edge for edge in gone if not edge.endswith(".q")} == {
        edge for edge in whole.edges() if edge.startswith("L1H0->") and not edge.endswith(".q")
    }
    both = whole.without(["L1H0", "L1H1"])  # now nothing attends with key/value head 0
    assert not [edge for edge in both.edges() if edge.endswith(("->L1KV0.k", "->L1KV0.v"))]
    assert [edge for edge in both.edges() if edge.endswith("->L1KV1.k")]
    nodes = Circuit.of(GROUPED, ["input->L0H0.q", "L0H0->logits"]).whole_nodes()
    assert set(nodes.edges()) == {
        *("input->L0H0.q", "input->L0KV0.k", "input->L0KV0.v", "input->logits", "L0H0->logits"),
    }


@pytest.mark.parametrize("level", ["edge", "node"])
def test_random_circuits_are_alike(level):
    graph = Graph(n_layers=6, n_heads=4, n_kv_heads=2)
    circuit = drawn(graph, 0.1)

    def census(one):
        """Edges by kind and third of the layers at both ends."""
        return Counter(
            (graph.writer_kind[w], graph.reader_kind[r])
            + (max(graph.writer_layer[w] // 2, 0), min(graph.reader_layer[r] // 2, 2))
            for w, r in np.argwhere(one.mask)
        )

    rng, seen = np.random.default_rng(0), []
    for _ in range(5):
        random = circuit.random_like(rng, level=level)
        if level == "edge":
            assert random.n_edges == circuit.n_edges
            assert census(random) == census(circuit)
        else:
            assert random.writers.sum() == circuit.writers.sum()
            assert random.whole_nodes().edges() == random.edges()
        seen.append(jaccard(random.mask, circuit.mask))
    assert max(seen) < 0.95


def test_native_and_expanded():
    circuit = drawn(GROUPED)
    wide = circuit.expanded()
    assert wide.graph == GROUPED.expanded
    assert ("L0H3->L2H3.k" in wide) == ("L0H3->L2KV1.k" in circuit)
    back = wide.native()
    assert back.hash == circuit.hash
    np.testing.assert_allclose(back.scores, circuit.scores, atol=1e-15)
    one = Circuit.of(GROUPED.expanded, ["input->L1H3.v"]).native()
    assert one.edges() == ["input->L1KV1.v"]


def test_saved_circuits_come_back(tmp_path):
    circuit = drawn(GROUPED, name="mine", method="by hand")
    path = circuit.save(tmp_path / "one")
    found = Circuit.load(path)
    assert found.hash == circuit.hash
    assert (found.name, found.method, found.graph) == ("mine", "by hand", GROUPED)
    np.testing.assert_array_equal(found.scores, circuit.scores)
    bare = Circuit.of(PLAIN, ["input->logits"])
    bare.save(tmp_path / "two")
    assert Circuit.load(tmp_path / "two").scores is None


# -- MIB -----------------------------------------------------------------------------------


def mib_index(cfg, edge):
    """Where MIB's own arithmetic puts an edge in its matrices."""
    source, target = edge.split("->")
    heads = cfg["n_heads"]

    def parts(name):
        layer, head = name.split(".")
        return int(layer[1:]), int(head[1:])

    if source == "input":
        row = 0
    elif source[0] == "m":
        row = 1 + int(source[1:]) * (heads + 1) + heads
    else:
        layer, head = parts(source)
        row = 1 + layer * (heads + 1) + head
    if target == "logits":
        column = -1
    elif target[0] == "m":
        column = int(target[1:]) * (3 * heads + 1) + 3 * heads
    else:
        layer, head = parts(target[:-3])
        column = layer * (3 * heads + 1) + "qkv".index(target[-2]) * heads + head
    return row, column


@pytest.mark.parametrize("graph", [GROUPED, PLAIN, GROUPED.expanded])
def test_mib_files(graph, tmp_path):
    circuit = drawn(graph)
    wide = circuit.expanded()
    json_path = to_mib_json(circuit, tmp_path / "c.json", d_model=32)
    pt_path = to_mib_pt(circuit, tmp_path / "c.pt", d_model=32)
    content = json.loads(json_path.read_text())
    tensors = torch.load(pt_path, weights_only=True)  # noqa: TID251
    assert len(content["edges"]) == graph.expanded.n_edges
    assert tensors["cfg"] == content["cfg"]
    assert [*tensors["src_nodes"], "logits"] == list(content["nodes"])
    for name, facts in content["edges"].items():
        row, column = mib_index(content["cfg"], name)
        assert bool(tensors["edges_in_graph"][row, column]) == facts["in_graph"]
        assert float(tensors["edges_scores"][row, column]) == pytest.approx(facts["score"])
        into = "logits" if column == -1 else tensors["dst_nodes"][column]
        assert name == f"{tensors['src_nodes'][row]}->{into}"
    for found in (from_mib_json(json_path, graph), from_mib_pt(pt_path, graph)):
        assert (found.mask == wide.mask).all()
        np.testing.assert_allclose(found.scores, wide.scores, atol=1e-6)
        assert graph.expand_kv or found.native().hash == circuit.hash


def test_files_that_eap_ig_wrote_are_read_and_written_alike(tmp_path):
    """The same circuit in both formats, from that package's own code (tests/data/README.md)."""
    data = DATA
    theirs = json.loads((data / "eap_ig_circuit.json").read_text())
    tensors = torch.load(data / "eap_ig_circuit.pt", weights_only=True)  # noqa: TID251
    found = from_mib_json(data / "eap_ig_circuit.json")
    assert found.hash == from_mib_pt(data / "eap_ig_circuit.pt").hash
    assert found.graph == Graph(n_layers=2, n_heads=3, n_kv_heads=3, parallel=False)
    assert found.scores is not None
    inside = {name for name, facts in theirs["edges"].items() if facts["in_graph"]}
    assert 10 < len(inside) < 50
    assert int(found.mask.sum()) == len(inside)
    # A name of theirs says where the edge is here: a1.h2<k> reads as L1KV2.k, m0 as L0.mlp_out.
    for ours, name in (
        ("input->L1KV2.k", "input->a1.h2<k>"),
        ("L0H1->L0.mlp_out", "a0.h1->m0"),
        ("L0.mlp_out->L1KV0.v", "m0->a1.h0<v>"),
        ("L1.mlp_out->logits", "m1->logits"),
    ):
        place = found.graph.edge(ours)
        assert found.scores[place] == theirs["edges"][name]["score"]
        assert found.mask[place] == theirs["edges"][name]["in_graph"]
    again = json.loads(to_mib_json(found, tmp_path / "c.json", d_model=24).read_text())
    assert again == theirs
    assert list(again["nodes"]) == list(theirs["nodes"])
    written = torch.load(to_mib_pt(found, tmp_path / "c.pt", d_model=24), weights_only=True)  # noqa: TID251
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor):
            assert written[name].dtype == value.dtype
            assert torch.equal(written[name], value)
        else:
            assert written[name] == value


def test_mib_files_that_are_refused(tmp_path):
    path = to_mib_json(drawn(PLAIN), tmp_path / "c.json", d_model=32)
    assert from_mib_json(path).graph == PLAIN
    with pytest.raises(InterpError, match="model it was found in"):
        from_mib_json(path, GROUPED)
    content = json.loads(path.read_text())
    del content["edges"]["input->logits"]
    path.write_text(json.dumps(content))
    with pytest.raises(InterpError, match="1 edges missing or unknown, such as input->logits"):
        from_mib_json(path)
    content["nodes"]["m0"]["neurons"] = [True]
    path.write_text(json.dumps(content))
    with pytest.raises(InterpError, match="neurons"):
        from_mib_json(path)
    with pytest.raises(InterpError, match="MIB circuit"):
        from_mib_pt(path)
    with pytest.raises(InterpError, match="MIB circuit"):
        from_mib_json(tmp_path / "nowhere.json")

    class Sly:
        def __reduce__(self):
            return print, ("code in a file",)

    torch.save({"cfg": Sly()}, tmp_path / "sly.pt")
    with pytest.raises(InterpError, match="MIB circuit"):
        from_mib_pt(tmp_path / "sly.pt")


# -- evaluation ----------------------------------------------------------------------------


def test_the_curve_is_mibs():
    """Sizes, pruning and areas as in MIB's loop over percentages."""
    scores = drawn(GROUPED, seed=3)
    found = curve(scores)
    for fraction, circuit in zip(FRACTIONS, found, strict=True):
        best = np.argsort(-np.where(GROUPED.allowed, scores.scores, -np.inf).ravel())
        mask = np.zeros(GROUPED.allowed.size, dtype=bool)
        mask[best[: int(fraction * GROUPED.n_edges)]] = True
        assert (circuit.mask == GROUPED.connected(mask.reshape(GROUPED.shape))).all()
    f = np.random.default_rng(0).normal(size=len(FRACTIONS))
    under = from_one = 0.0
    for i in range(len(f) - 1):
        width = FRACTIONS[i + 1] - FRACTIONS[i]
        under += width * (f[i] + f[i + 1]) / 2
        from_one += width * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2
    assert area(np.array(FRACTIONS), f) == pytest.approx(under)
    assert area(np.array(FRACTIONS), abs(1 - f)) == pytest.approx(from_one)
    sizes = [circuit.n_edges for circuit in curve(scores, (0.1, 0.5, 1.0), level="node")]
    assert sizes == sorted(sizes)
    assert sizes[-1] == GROUPED.n_edges
    with pytest.raises(InterpError, match="not increasing"):
        curve(scores, (0.5, 0.1))


def test_a_whole_curve_is_one_circuit_at_a_time(family):
    task = telling(family, random_task((9, 7, 9, 9)))
    graph = graph_of(family)
    found = faithfulness_curve(family, task, drawn(graph), random=0)
    # As given, a circuit is a circuit; its scores are what makes a curve.
    assert len(found.circuits) == 1
    with pytest.raises(InterpError, match="not a curve"):
        found.cpr()
    rng = np.random.default_rng(0)

    class Ranks:
        signed = np.where(graph.allowed, rng.normal(size=graph.shape), 0.0)

    Ranks.graph = graph
    found = faithfulness_curve(family, task, Ranks(), random=2)
    trials = Trials(family, task)
    alone = np.concatenate([trials.values(one.mask[None]) for one in found.circuits])
    np.testing.assert_allclose(found.values, alone, atol=2e-5)
    clean, corrupted = trials.ends()
    np.testing.assert_allclose(found.full, clean, atol=2e-5)
    np.testing.assert_allclose(found.empty, corrupted, atol=2e-5)
    f = (alone.mean(1) - corrupted.mean()) / (clean.mean() - corrupted.mean())
    np.testing.assert_allclose(found.faithfulness, f, atol=2e-3)
    assert found.faithfulness[-1] == pytest.approx(1, abs=1e-4)
    assert found.cpr().mean == pytest.approx(area(np.array(FRACTIONS), f), abs=2e-3)
    assert found.cmd().mean == pytest.approx(area(np.array(FRACTIONS), abs(1 - f)), abs=2e-3)
    assert found.cpr().low <= found.cpr().mean <= found.cpr().high
    assert found.random.shape == (2, len(FRACTIONS), 4)
    assert "counterfactual ablation" in str(found)
    assert "CPR" in str(found)


@pytest.mark.parametrize("kind", CURVES)
def test_cmd_covers_the_truth(kind):
    """A bootstrap of an area that cannot be below 0 never covers 0."""
    found = areas(kind, 8, 0.8, 150)
    assert found["truth"] >= 0.88
    assert found["estimate"] == 1


@pytest.mark.parametrize("name", ["toy-induction", "toy-and", "toy-or"])
@pytest.mark.parametrize("ablation", ["counterfactual", "mean", "zero"])
def test_planted_circuits_are_faithful(name, ablation):
    model, task, circuit = planted(name)
    kept = task.split()[1]
    reference = {"reference": task.split()[0]} if ablation == "mean" else {}
    found = faithfulness_curve(model, kept, circuit, ablation=ablation, level="node", **reference)
    assert found.faithfulness[0] == pytest.approx(1, abs=0.01)
    assert ablation in found.protocol
    if name == "toy-induction":
        assert found.null(0).mean < 0.01


def test_a_part_missing_is_seen():
    _, _, whole = planted("toy-and")
    model, task, less = planted("toy-and", less=["L0H1"])
    found = faithfulness_curve(model, task, [whole, less], random=0)
    np.testing.assert_allclose(found.faithfulness, [1, 0], atol=0.05)
    table = found.to_dataframe()
    assert list(table["edges"]) == [whole.n_edges, less.n_edges]


def test_resample_zero_and_mean_are_their_own(family):
    task = random_task((9, 9, 9, 9))
    circuit = drawn(graph_of(family))
    values = []
    for ablation in ("counterfactual", "resample", "zero", "mean"):
        reference = random_task((8, 8), seed=5) if ablation == "mean" else None
        trials = Trials(family, task, TrialOptions(ablation=ablation, reference=reference))
        values.append(trials.values(circuit.mask[None])[0])
    for left in range(4):
        for right in range(left):
            assert np.abs(values[left] - values[right]).max() > 1e-3


def test_evaluations_come_back(tmp_path):
    model, task, circuit = planted("toy-induction")
    found = faithfulness_curve(model, task, drawn(circuit.graph), random=3)
    again = FaithfulnessCurves.load(found.save(tmp_path / "evaluation"))
    assert str(again) == str(found)
    assert again.null(0) == found.null(0)
    loaded = Circuit.load(circuit.save(tmp_path / "circuit"))
    values = [faithfulness_curve(model, task, one, random=0).values for one in (circuit, loaded)]
    np.testing.assert_array_equal(*values)


def test_evaluation_refuses(family):
    task = random_task()
    circuit = drawn(graph_of(family))
    other = Graph(n_layers=5, n_heads=4, n_kv_heads=4)
    with pytest.raises(InterpError, match="circuits of this model"):
        faithfulness_curve(family, task, drawn(other))
    with pytest.raises(InterpError, match="level"):
        faithfulness_curve(family, task, circuit, level="neuron")
    with pytest.raises(InterpError, match="none were given"):
        faithfulness_curve(family, task, [])
    same = replace(task, pairs=tuple(replace(p, corrupted=p.clean) for p in task.pairs))
    with pytest.raises(InterpError, match="equal in 4 of 4"):
        faithfulness_curve(family, same, circuit)


# -- knock-outs and stability ----------------------------------------------------------------


def test_a_backup_left_out_makes_a_circuit_incomplete():
    model, task, half = planted("toy-or", less=["L0H2"])
    _, _, whole = planted("toy-or")
    trials = Trials(model, task)
    assert faithfulness_curve(model, task, half, random=0).faithfulness[0] == pytest.approx(
        1, abs=0.05
    )
    incomplete, complete = (
        measured(completeness, trials, one, samples=12) for one in (half, whole)
    )
    assert incomplete.worst.mean == pytest.approx(-1, abs=0.05)
    assert complete.incompleteness.max() < 0.05
    place = int(incomplete.incompleteness.argmax())
    assert incomplete.sizes[place] > 0
    assert "worst" in str(incomplete)


def test_what_is_not_needed_is_minimal():
    model, task, circuit = planted("toy-and", also=["L1H0"])
    found = measured(minimality, Trials(model, task), circuit, samples=3)
    needed = dict(zip(found.parts, found.values, strict=True))
    assert needed["L0H1"] == pytest.approx(1, abs=0.05)
    assert needed["L0H2"] == pytest.approx(1, abs=0.05)
    assert needed["L1.mlp_out"] == pytest.approx(1, abs=0.05)
    assert needed["L1H0"] < 0.05
    assert found.to_dataframe()["part"][0] == "L1H0"
    assert len(measured(minimality, Trials(model, task), circuit, most=2, samples=0).parts) == 2


@pytest.mark.parametrize("level", ["edge", "node"])
def test_knock_outs_equal_a_loop(level):
    model, task, circuit = planted("toy-induction")
    trials = Trials(model, task)
    found = measured(minimality, trials, circuit, level=level, samples=0, most=5)
    full, empty = trials.ends().mean(1)
    base = trials.values(circuit.mask[None]).mean()
    for part, effect in zip(found.parts, found.effects[:, 0], strict=True):
        left = trials.values(circuit.without([part]).mask[None]).mean()
        assert effect == pytest.approx((base - left) / (full - empty), abs=1e-6)
    with pytest.raises(InterpError, match="level"):
        measured(completeness, trials, circuit, level="layer")
    with pytest.raises(InterpError, match="another graph"):
        measured(minimality, trials, drawn(PLAIN))


def test_batches_of_masks_are_joined(family):
    trials = Trials(family, random_task((9, 7)))
    rng = np.random.default_rng(0)
    masks = [trials.graph.allowed & (rng.random(trials.graph.shape) < 0.5) for _ in range(5)]
    together = run_masks(trials, masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.circuits.evaluation.curve_evaluation._BATCH_ROWS", 4)
        np.testing.assert_allclose(run_masks(trials, masks), together, atol=2e-5)


class PerPrompt:
    """Scores of each prompt, as `EdgeScores` keeps them."""

    def __init__(self, values):
        self.graph, self.values, self.n = GROUPED, values, len(values)
        self.signed = values.mean(0)

    def resampled(self, rng):
        return PerPrompt(self.values[rng.integers(self.n, size=self.n)])


def test_stability_under_other_prompts():
    rng = np.random.default_rng(0)
    clear = np.where(GROUPED.allowed, rng.normal(size=GROUPED.shape), 0.0)[None]
    noise = np.where(GROUPED.allowed, rng.normal(size=(30, *GROUPED.shape)), 0.0)
    firm = stability(PerPrompt(clear + 0.001 * noise), 20, connected=False)
    loose = stability(PerPrompt(noise), 20, connected=False)
    assert firm.jaccard.mean() > 0.95
    assert firm.frequency[firm.circuit.mask].min() > 0.5
    assert loose.jaccard.mean() < 0.7
    assert loose.pairwise < loose.jaccard.mean()
    assert firm.chance == pytest.approx(20 / GROUPED.n_edges / (2 - 20 / GROUPED.n_edges))
    assert "Jaccard" in str(firm)
