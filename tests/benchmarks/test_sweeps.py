"""The benchmark of sweeps: peers patch the same cells, and the harness says what they took."""

import json

import numpy as np
import pytest
import torch

import interp
from benchmarks import growth, memory, patching
from benchmarks.environments import python_of, run_process
from benchmarks.sweep_peers import PEERS, Request
from interp.core.errors import InterpError
from tests.families import tiny

PROMPTS = (torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]]), torch.tensor([[3, 4, 11, 6], [7, 8, 2, 1]]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("by_position", [True, False])
@pytest.mark.parametrize("name", ["hooks-looped", "hooks-batched", "transformer-lens"])
def test_a_peer_has_the_values_of_our_sweep(name, by_position, family):
    clean, corrupted = PROMPTS
    raw, peer = tiny(family).eval(), PEERS[name]
    pairs = [
        interp.PromptPair(clean=tuple(a), corrupted=tuple(b), answers=(5,), wrong=(9,))
        for a, b in zip(clean.tolist(), corrupted.tolist(), strict=True)
    ]
    ours = interp.activation_patching(
        interp.models.wrap(tiny(family).eval(), name=family, check=False),
        interp.Task(name="two", pairs=tuple(pairs)),
        by=("layer", "head", "position") if by_position else ("layer", "head"),
        unit="metric",
        cache=False,
    )
    request = Request(
        model=raw,
        wrapped=peer.wrap(raw),
        clean=clean,
        corrupted=corrupted,
        targets=torch.tensor([[5, 9], [5, 9]]),
        by_position=by_position,
    )
    with torch.no_grad():
        values = peer.sweep(request, request.layers)
        some = peer.sweep(request, request.layers[:1])
    mine = ours.effects.mean(0) + ours.corrupted.mean()
    assert np.abs(values.reshape(mine.shape).numpy() - mine).max() < 1e-5
    assert np.abs(mine - ours.corrupted.mean()).max() > 1e-3
    torch.testing.assert_close(some[0], values[0])


@pytest.mark.long
def test_the_harness_runs_a_peer_in_its_own_process(monkeypatch):
    monkeypatch.setattr(patching, "repeat", lambda work: memory.repeat(work, seconds=0))
    said = []
    kept = []
    whole = patching.bench_patching(["b"], log=said.append, peers=[], keep=kept.append)
    whole = json.loads(json.dumps(kept[-1]))  # as in a file
    again = patching.bench_patching(["b"], log=said.append, peers=["hooks-batched"], kept=whole)
    found = again["cases"]["b"]
    assert found["ours"] == whole["cases"]["b"]["ours"]  # not measured again
    assert found["cells"] == 720
    assert found["floor_ratio"] == found["ours"]["seconds"] / found["floor"]
    assert found["ours"]["peak_mb"] < found["budget_mb"] * 1.1
    peer = found["peers"]["hooks-batched"]
    assert peer["max_abs_diff"] < 1e-5
    assert peer["ratio"] == peer["seconds"] / found["ours"]["seconds"] > 1
    assert peer["versions"]["torch"] == torch.__version__
    assert any("hooks-batched" in line for line in said)
    json.dumps(found)


@pytest.mark.long
def test_unknown_cases_and_peers_and_broken_processes_are_refused(tmp_path):
    with pytest.raises(InterpError, match="benchmark case"):
        patching.bench_patching(["z"])
    with pytest.raises(InterpError, match="going on with"):
        patching.bench_patching(["b"], kept={"cases": {}, "versions": {"torch": "1"}})
    with pytest.raises(InterpError, match="peer"):
        patching.bench_patching(["b"], peers=["baukit"])
    with pytest.raises(InterpError, match="Repo id"):
        run_process(python_of("torch"), "benchmarks.sweep_peers", "hooks-looped", tmp_path)


@pytest.mark.long
def test_repeated_work_is_timed_until_its_seconds_are_over():
    calls = []
    result, found = memory.repeat(lambda: calls.append(1) or len(calls), seconds=60, times=3)
    assert (result, len(found["runs"])) == (3, 3)
    assert found["seconds"] == sorted(found["runs"])[1]
    _, found = memory.repeat(lambda: None, seconds=0)
    assert len(found["runs"]) == 1


@pytest.mark.long
def test_growth_compares_exponents_with_those_of_the_floor(monkeypatch):
    monkeypatch.setattr(growth, "BASE", {"prompts": 2, "tokens": 8, "layers": 2, "heads": 4})
    monkeypatch.setattr(growth, "GROWN", {"tokens": (8, 64), "layers": (2, 6)})
    found = growth._growth(lambda text: None)
    assert found["layers"]["floor_exponent"] > 1.5  # twice the layers have four times the cells
    for row in found["tokens"]["rows"]:
        assert row["seconds"] > row["floor"] > 0


@pytest.mark.long
def test_products_take_a_share_of_the_sweep():
    found = growth._products("b", lambda text: None)
    assert 0.3 < found["share"] < 1  # the rest is norms, softmax, copies
    assert found["over_floor"] > 0.5
