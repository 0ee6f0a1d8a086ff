"""The experiment on checkpoints of a model that is not told its verdicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import interp
from experiments import untold_verifier
from experiments.untold_verifier import (
    STRONG,
    effects_of,
    judged,
    overlap,
    parts_of,
    stages,
    strongest,
    written_attempts,
)
from interp.models.loading import wrap
from interp.models.registry import organisms
from interp.studies.verification.steps.interchange import ANOTHER, OTHER, OTHER_SAMPLE, OWN


@pytest.fixture(scope="module")
def shipped():
    return interp.load_model("countdown-tiny")


@pytest.fixture(scope="module")
def untrained():
    folder = organisms()["countdown-tiny"]
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return wrap(made.float(), AutoTokenizer.from_pretrained(folder), name="untrained", check=False)


@pytest.fixture(scope="module")
def attempts(shipped):
    return written_attempts(shipped, 80)


@pytest.fixture(scope="module")
def parts(attempts):
    return parts_of(attempts)


@pytest.mark.long
def test_a_model_that_verifies_is_told_from_one_that_does_not(attempts, parts, untrained):
    seen = judged(attempts)
    assert seen["chance"] == {"right": False, "auc": False}
    assert seen["auc"]["mean"] > 0.9
    # The last layer's stream is the verdict: a sample of the own verdict changes nothing.
    last = parts["L3.resid_post"]
    assert last["carries"]
    assert not last["breaks"]
    assert last[OTHER_SAMPLE]["flipped"] == {"valid": 1, "invalid": 1}
    # Digits are what the first layers bring: samples of either verdict break a valid one.
    assert parts["L0H3"]["breaks"]
    assert not parts["L0H3"]["carries"]
    assert not parts["L1H5"]["breaks"]
    attempts = replace(attempts, model=untrained)
    assert judged(attempts)["chance"]["right"]
    assert not any(row["carries"] or row["breaks"] for row in parts_of(attempts).values())


def test_single_samples_and_means_name_the_same_heads(parts):
    for swap in (OTHER, OTHER_SAMPLE, ANOTHER, OWN):
        effects = effects_of(parts, swap)
        assert len(effects) == 24
        assert set(strongest(effects)[:4]) <= {"L0H2", "L0H3", "L2H0", "L2H1", "L2H2"}


def test_checkpoints_follow_training_and_unfinished_ones_are_left_out(tmp_path):
    made = ["sft0/checkpoint-400", "sft0/checkpoint-1200", "sft0/checkpoint-800"]
    made += ["sft1/checkpoint-400", "round1-done", "round0-done"]
    for name in [*made, "sft1/checkpoint-800"]:
        (tmp_path / name).mkdir(parents=True)
        if name in made:
            (tmp_path / name / "model.safetensors").touch()
    found = stages(tmp_path)
    steps = ["step 400", "step 800", "step 1200", "step 1600"]
    assert list(found) == [*steps, "round 1", "round 2"]
    assert found["step 1600"] == tmp_path / "sft1" / "checkpoint-400"
    assert list(stages(tmp_path, 3)) == ["step 400", "step 1200", "round 2"]
    assert stages(tmp_path, 6) == found


def heads(values):
    return {f"L{i}H{j}": float(x) for i, row in enumerate(values) for j, x in enumerate(row)}


def test_overlap_finds_the_same_heads_and_not_the_same_layers():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(4, 6))
    other = one + rng.normal(size=(4, 6)) / 10
    same = overlap(heads(one), heads(other), permutations=200)
    assert same["spearman"]["value"] == pytest.approx(spearmanr(one.ravel(), other.ravel())[0])
    assert same["spearman"]["value"] > 0.9
    assert same["spearman"]["share"] == same["shared"]["share"] == pytest.approx(1 / 201)
    # Equally strong layers alone: a high correlation, and permuted heads reach it too.
    level = np.array([[0.0], [0.0], [5.0], [9.0]])
    shares = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=(2, 4, 6))
        layered = overlap(heads(level + noise[0]), heads(level + noise[1]), permutations=100)
        assert layered["spearman"]["value"] > 0.5
        assert layered["spearman"]["null"] > 0.5
        assert layered["shared"]["null"] > STRONG / 2
        shares.append(layered["spearman"]["share"])
    assert 0.3 < np.mean(shares) < 0.7


@pytest.mark.long
def test_every_checkpoint_is_measured_once(shipped, tmp_path, monkeypatch):
    """Two checkpoints with the shipped weights: as the reference, and all heads the same."""
    sizes = {"PROBLEMS": 160, "OWN_TEXTS": 2, "JUDGED": 40, "EXCHANGED": 40, "SETS": 5}
    for name, value in sizes.items():
        monkeypatch.setattr(untold_verifier, name, value)
    for step in (400, 800):
        folder = tmp_path / "sft0" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for file in organisms()["countdown-tiny"].iterdir():
            (folder / file.name).symlink_to(file)
    kept, written = {}, []
    untold_verifier.measure_all({"copy": tmp_path}, kept, lambda: written.append(len(written)), 1)
    rows = kept["models"]["copy"]["stages"]
    assert list(rows) == ["step 400"]
    reference = kept["models"]["countdown-tiny"]["stages"]["shipped"]
    assert rows["step 400"]["judged"]["auc"] == reference["judged"]["auc"]
    assert kept["overlaps"]["countdown-tiny, copy"]["shared"]["value"] == STRONG
    joint = kept["models"]["copy"]["joint"]["countdown-tiny"]
    assert joint["flipped"][OTHER]["valid"]["mean"] > joint["random"]["mean"]
    assert joint["flipped"][OWN]["valid"]["mean"] < joint["flipped"][OTHER]["valid"]["mean"]
    monkeypatch.setattr(untold_verifier, "measured", None)  # a second call measures nothing again
    untold_verifier.measure_all({"copy": tmp_path}, kept, lambda: None, 1)
