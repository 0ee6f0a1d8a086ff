"""The benchmark of circuits: the harness runs, and its comparisons see what they should see."""

import json
import statistics
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
from benchmarks.circuits import (
    Shape,
    _edge_by_edge,
    bench_acdc,
    bench_circuits,
    random_gpt2,
    random_pairs,
)
from benchmarks.main import bench_app
from benchmarks.memory import PeakMemory, measure
from benchmarks.peer_process import _OnCpu, _place
from benchmarks.peers import Peers, compare, verdicts
from interp.circuits.scoring.score_edges import score_edges
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError
from interp.models.loading import wrap

TINY = Shape(layers=2, heads=2, width=16, vocabulary=50)


@pytest.fixture(scope="module")
def model():
    return wrap(random_gpt2(TINY), name="tiny", check=False)


@pytest.mark.long
def test_the_harness_runs_without_peers(tmp_path):
    said = []
    peers = Peers(checkout=tmp_path, python=tmp_path / "python", transformer_lens=False)
    found = bench_circuits(TINY, TINY, n=3, length=6, peers=peers, log=said.append)
    assert found["edges"] == 46
    assert set(found["ours"]) >= {"EAP", "EAP-IG-inputs", "curve"}
    for facts in found["ours"].values():
        assert facts["seconds"] == statistics.median(facts["runs"])
    assert found["ours"]["EAP"]["passes"] == {
        "forwards": 2, "backwards": 1, "batches": 1, "rebuilt": 0
    }  # fmt: skip
    assert found["ours"]["curve"]["faithfulness"][-1] == pytest.approx(1)
    assert str(tmp_path / "python") in found["beside"]["EAP-IG"]["absent"]
    assert any("is not run" in line for line in said)
    json.dumps(found)


def test_acdc_decides_as_the_plain_loop_does():
    found = bench_acdc(TINY, n=3, length=6, threshold=0.02)
    assert 0 < found["kept"] < found["edges"] == 46
    assert found["loop"]["forwards"] == 46 + 3
    for name in ("blind", "guided by EAP"):
        assert found[name]["equal"]
        assert found[name]["ratio"] == pytest.approx(49 / found[name]["forwards"])


def test_the_plain_loop_keeps_what_is_worth_the_threshold(model):
    task = random_pairs(model, 3, 6)
    mask, _ = _edge_by_edge(model, task, 0.02)
    trials = Trials(model, task)
    full, empty = trials.ends().mean(1)
    whole = trials.values(mask[None]).mean()
    # The last decision stands in the circuit that came of it all: the first layer's first edge.
    first = (0, 0)
    without = mask.copy()
    without[first] = ~mask[first]
    cost = (whole - trials.values(without[None]).mean()) / (full - empty)
    assert (cost >= 0.02) if mask[first] else (-cost < 0.02)


def test_random_pairs_have_a_gap(model):
    task = random_pairs(model, 4, 6)
    scores = score_edges(model, task)
    assert (scores.clean > scores.corrupted).all()
    for pair in task.pairs:
        assert pair.clean[:3] == pair.corrupted[:3]
        assert pair.clean[3:] != pair.corrupted[3:]


@pytest.mark.parametrize("weights", [np.ones(4), np.array([-0.5, -0.5, -1, -0.5])])
def test_compare_explains_weights_and_signs(model, weights):
    scores = score_edges(model, random_pairs(model, 4, 6), per_prompt=True)
    theirs = np.einsum("n,nwr->wr", weights, scores.per_prompt.astype(float)) / 4
    found = compare(theirs, scores, weights)
    assert found["expected"]["spearman"] == pytest.approx(1)
    assert found["expected"]["max_rel_diff"] < 1e-6
    assert found["outside_graph"] == 0
    if weights[0] < 0:
        assert found["spearman"] < 0
    wrong = compare(theirs, scores, -weights)
    assert wrong["expected"]["max_rel_diff"] == pytest.approx(2)
    theirs[1, -1] += 1
    assert compare(theirs, scores, weights)["expected"]["max_rel_diff"] > 1e-3


def test_verdicts_name_the_fastest_peer():
    ours = {"EAP": {"seconds": 1.0, "peak_mb": 10.0}}
    found = {
        "EAP-IG": {
            "commit": "c",
            "EAP, a": {"seconds": 4.0, "peak_mb": 50.0, "ratio": 4.0},
            "EAP-IG-inputs, a": {"seconds": 0.1, "peak_mb": 1.0, "ratio": 0.1},
            "curve": {"ratio": 6.0},
        },
        "TransformerLens": {"seconds": 2.0, "peak_mb": 200.0, "ratio": 2.0},
    }
    said = verdicts(ours, found)
    assert "(TransformerLens) takes 2.00 times our time (aim 1) and 20.0 times" in said["EAP"]
    assert "leanest (EAP-IG, EAP, a) 5.0 times our memory" in said["EAP"]
    assert "6.00 times faster" in said["curve"]
    assert verdicts(ours, {"EAP-IG": {"absent": "no"}}) == {}


def test_missing_peers_are_named(tmp_path):
    assert "--eap-python" in Peers().missing
    (tmp_path / "src" / "eap").mkdir(parents=True)
    assert Peers(python=tmp_path, checkout=tmp_path).missing == ""


@pytest.mark.long
def test_a_peer_that_fails_says_why(tmp_path):
    from pathlib import Path

    from benchmarks.peers import _run

    with pytest.raises(InterpError, match="No such file"):
        _run(Path(sys.executable), "transformer-lens", tmp_path)


def test_places_of_peer_nodes_are_those_of_the_graph(model):
    from types import SimpleNamespace

    graph = score_edges(model, random_pairs(model, 3, 6)).graph

    def node(kind, layer=None, head=None):
        return SimpleNamespace(kind=kind, layer=layer, head=head)

    assert _place(node("embed"), 2, 1) == 0
    assert graph.writers[_place(node("attn_head_out", 1, 1), 2, 1)] == "L1H1"
    assert graph.writers[_place(node("mlp_out", 1), 2, 1)] == "L1.mlp_out"
    for site in "qkv":
        assert (
            graph.readers[_place(node(f"{site}_input", 1, 1), 2, 3)]
            == f"L1{'H' if site == 'q' else 'KV'}1.{site}"
        )
    assert graph.readers[_place(node("mlp_in", 0), 2, 3)] == "L0.mlp_out"
    assert graph.readers[_place(node("logits", 1), 2, 3)] == "logits"


def test_tensors_asked_for_on_a_gpu_come_on_the_cpu():
    assert _OnCpu().zeros((2, 3), device="cuda").device.type == "cpu"
    assert _OnCpu().float32 is torch.float32


@pytest.mark.long
def test_measure_sees_memory_and_time():
    kept = []

    def work():
        block = np.ones(10_000_000)  # 80 MB
        begun = time.thread_time()
        while time.thread_time() - begun < 0.05:
            pass
        time.sleep(0.2)
        kept.append(block[0])

    _, facts = measure(work, seconds=0, times=5)
    assert len(kept) == 2
    assert 60 < facts["peak_mb"] < 200
    assert 0.05 <= facts["seconds"] <= facts["wall"] - 0.1
    with PeakMemory() as memory:
        time.sleep(0.02)
    assert memory.peak < 20e6


@pytest.mark.long
def test_command(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.circuits.SMALL", TINY)
    monkeypatch.setattr("benchmarks.circuits.SEARCHED", TINY)
    path = tmp_path / "bench.json"
    done = CliRunner().invoke(
        bench_app,
        ["circuits", "--n", "3", "--length", "6", "--no-peers", "--json", str(path)],
    )
    assert done.exit_code == 0, done.output
    assert "ACDC keeps" in done.output
    assert json.loads(path.read_text())["versions"]["interp"] == interp.__version__
