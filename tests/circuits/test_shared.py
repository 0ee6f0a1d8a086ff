"""Edge scores and circuits that several processes share equal those of one process."""

import json
import shutil

import numpy as np
import pytest

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.acdc import acdc
from interp.circuits.discovery.find import Finder, find_circuit
from interp.circuits.evaluation.curve_evaluation import faithfulness_curve, run_masks
from interp.circuits.evaluation.evaluate import evaluate
from interp.circuits.scoring.score_edges import METHODS, score_edges
from interp.circuits.trials import trials
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.engine.stopping import Cancelled
from interp.runs.parts import PART
from interp.tasks.registry import load_task
from tests.cli.test_main import run

COUNTS = (0, 1, 2)
"""Numbers of processes; 0 is the plain loop."""


@pytest.fixture(scope="module")
def task(toy):
    return load_task("toy-induction", toy).first(2 * PART + 1)


@pytest.fixture(scope="module")
def rest(toy, task):
    return load_task("toy-induction", toy).without(task)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_shared_edge_scores_equal_those_of_a_single_process(toy, task, method):
    options = {"method": method, "per_prompt": True}
    alone, one, two = (score_edges(toy, task, workers=n, **options) for n in COUNTS)
    for name in ("signed", "absolute", "stderr", "per_prompt", "clean", "corrupted"):
        left, right = getattr(one, name), getattr(two, name)
        assert left.tobytes() == right.tobytes()
        assert np.allclose(right, getattr(alone, name), atol=1e-4, equal_nan=True)
    assert np.abs(alone.signed).max() > 0.01
    assert one.passes == two.passes
    assert two.passes.batches > alone.passes.batches
    assert np.isclose(two.completeness_gap, alone.completeness_gap, atol=1e-4, equal_nan=True)
    assert two.provenance.call == alone.provenance.call


def test_a_mean_is_shared_and_drawn_prompts_are_refused(toy, task, rest):
    options = {"ablation": "mean", "reference": rest}
    alone, two = (score_edges(toy, task, workers=n, **options) for n in (0, 2))
    assert np.allclose(alone.signed, two.signed, atol=1e-4)
    circuit = Circuit(graph=alone.graph, mask=alone.graph.mask(), name="all")
    drawn = {"ablation": "resample", "workers": 1}
    for refused in (
        lambda: score_edges(toy, task, **drawn),
        lambda: evaluate(circuit, toy, task, **drawn),
        lambda: acdc(toy, task, threshold=0.1, **drawn),
    ):
        with pytest.raises(InterpError, match="the other one is drawn among all"):
            refused()


def kept():
    """Whether a part is kept: it stops a call after its first part."""
    return any(cache_dir().glob("partial/*/chunk-*"))


def test_stopped_edge_scores_go_on_from_their_parts(toy, task):
    counts, options = [], {"method": "EAP", "workers": 1}
    with pytest.raises(Cancelled):
        score_edges(toy, task, cancelled=kept, **options)
    done = score_edges(toy, task, progress=lambda *at: counts.append(at), **options)
    assert counts == [(0, 2), (1, 2), (2, 2)]
    again = score_edges(toy, task, progress=lambda *at: counts.append(at), **options)
    assert counts[-1] == (3, 3)
    assert again.signed.tobytes() == done.signed.tobytes()


def test_a_shared_evaluation_equals_that_of_a_single_process(toy, task):
    circuit = find_circuit(toy, task, Finder(method="EAP")).circuit(20)
    options = {"random": 2, "knockouts": 4, "draws": 3, "fractions": (0.1, 0.5)}
    alone, one, two = (evaluate(circuit, toy, task, workers=n, **options) for n in COUNTS)
    for name in ("values", "full", "empty", "random", "random_connected"):
        left, right = getattr(one.itself, name), getattr(two.itself, name)
        assert left.tobytes() == right.tobytes()
        assert np.allclose(right, getattr(alone.itself, name), atol=1e-4)
    assert np.ptp(alone.itself.random) > 0.1
    assert one.completeness.circuit.tobytes() == two.completeness.circuit.tobytes()
    assert np.allclose(two.completeness.circuit, alone.completeness.circuit, atol=1e-4)
    assert one.minimality.effects.tobytes() == two.minimality.effects.tobytes()
    assert np.allclose(two.minimality.effects, alone.minimality.effects, atol=1e-4)
    assert one.stability.jaccard.tolist() == two.stability.jaccard.tolist()
    assert one.tests == two.tests == alone.tests


def test_a_stopped_curve_goes_on_from_its_parts(toy, task):
    scores, counts = score_edges(toy, task), []
    options = {"random": 2, "fractions": (0.1, 0.5), "workers": 1}
    with pytest.raises(Cancelled):
        faithfulness_curve(toy, task, scores, cancelled=kept, **options)
    done = faithfulness_curve(toy, task, scores, progress=lambda *at: counts.append(at), **options)
    assert counts == [(0, 2), (1, 2), (2, 2)]
    assert (
        done.values.tobytes() == faithfulness_curve(toy, task, scores, **options).values.tobytes()
    )


def test_more_circuits_than_a_run_holds_are_shared(toy, task, monkeypatch):
    monkeypatch.setattr(trials, "PART_CIRCUITS", 3)
    made = Trials(toy, task, TrialOptions())
    rng = np.random.default_rng(0)
    masks = [made.graph.allowed & (rng.random(made.graph.shape) < 0.7) for _ in range(8)]
    shared = run_masks(Trials(toy, task, TrialOptions(workers=1)), masks)
    np.testing.assert_allclose(shared, run_masks(made, masks), atol=1e-4)
    assert np.ptp(shared) > 0.1


def test_acdc_with_processes_decides_the_same(toy, task):
    options = {"threshold": 0.05, "resume": False, "batch": 16}
    alone, one, two = (acdc(toy, task, workers=n, **options) for n in COUNTS)
    assert one.effects.tobytes() == two.effects.tobytes()
    assert np.array_equal(two.mask, alone.mask)
    assert 0 < alone.mask.sum() < alone.graph.n_edges


def test_a_learned_mask_is_not_shared(toy, task):
    with pytest.raises(InterpError, match="each training step needs the one before"):
        find_circuit(toy, task, Finder(method="learned-mask"), workers=2)


def test_the_command_line_shares_circuits(tmp_path):
    asked = ["--model", "toy-induction", "--task", "toy-induction", "--n", 8, "--json"]
    scores, judged = [], []
    for n in (0, 1):
        path = tmp_path / f"circuit-{n}"
        more = ["--workers", n, "--out", path]
        run("circuit", "find", *asked, tmp_path / "f", "--method", "EAP", "--edges", 9, *more)
        scores.append(
            [row["score"] for row in json.loads((tmp_path / "f").read_text())["strongest"]]
        )
        few = ["--random", 2, "--knockouts", 2, "--draws", 2, "--workers", n]
        run("circuit", "evaluate", f"{path}.safetensors", *asked, tmp_path / "e", *few)
        judged.append(json.loads((tmp_path / "e").read_text())["cpr"]["mean"])
        shutil.rmtree(cache_dir() / "circuits")
    assert len(scores[0]) == 9
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert judged[0] == pytest.approx(judged[1], abs=1e-4)
