"""Circuits of neurons: against hooked runs, and on toys whose neurons are planted."""

import numpy as np
import pytest
import torch

from interp.circuits.evaluation import neuron_circuits as neurons
from interp.circuits.evaluation.curve_evaluation import FaithfulnessCurves
from interp.circuits.evaluation.neuron_circuits import NeuronEvaluation, evaluate_neurons
from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.models.loading import load_model
from interp.models.toys.circuits import build_toy
from interp.patching.attribution import attribution_patching
from interp.runs.pairs import paired_runs
from interp.tasks.registry import load_task
from tests.families import random_task

FRACTIONS = (0.2, 0.7, 1.0)


@pytest.fixture
def any_gap(monkeypatch):
    monkeypatch.setattr(neurons, "check_gap", lambda full, empty: None)
    monkeypatch.setattr("interp.patching.spec.check_gap", lambda clean, corrupted: None)


def scored(model, task):
    return attribution_patching(model, task, site="post", by=("layer", "neuron"))


def slow(model, task, mask, new):
    """Metric per prompt with hooks on every layer's neurons; `new` is (layer, prompt) -> values."""
    runs, found = paired_runs(model, task, "noise"), []
    for i, prompt in enumerate(runs.base):

        def put(layer, i=i):
            keep = torch.from_numpy(mask[layer])
            return lambda value, batch: torch.where(keep, value, new(layer, i))

        hooks = {(layer, "post"): [put(layer)] for layer in range(model.n_layers)}
        logits = model.last_logits([prompt], hooks=hooks)
        found.append(float(task.metric(Logits(logits), runs.targets.select(torch.tensor([i])))))
    return np.array(found)


def seen(model, prompt):
    """Every layer's neurons on a prompt, (tokens, neurons)."""
    kept = {}

    def keeping(layer):
        def hook(value, batch):
            kept[layer] = value[0].clone()
            return value

        return hook

    hooks = {(layer, "post"): [keeping(layer)] for layer in range(model.n_layers)}
    model.last_logits([prompt], hooks=hooks)
    return kept


@pytest.mark.parametrize("ablation", ["counterfactual", "resample", "zero", "mean"])
def test_neurons_ablated_equal_hooked_runs(family, any_gap, ablation):
    task, rest = random_task((9, 7, 7, 9)), random_task((6, 8), seed=3)
    reference = rest if ablation == "mean" else None
    runs = paired_runs(family, task, "noise")
    found = evaluate_neurons(
        family, task, scored(family, task), ablation=ablation, reference=reference,
        fractions=FRACTIONS, random=1, budget_gb=1e-4,
    )  # fmt: skip
    others = {"counterfactual": runs.other, "resample": [runs.base[i] for i in (3, 2, 1, 0)]}
    each = [seen(family, prompt) for prompt in others.get(ablation, [])]
    encoded = rest.encode(family)
    means = [seen(family, prompt) for prompt in (*encoded.clean, *encoded.corrupted)]

    def new(layer, i):
        if ablation == "zero":
            return torch.zeros(1)
        if ablation == "mean":
            return torch.cat([one[layer] for one in means]).mean(0)
        return each[i][layer]

    for mask, values in zip(found.masks, found.values, strict=True):
        np.testing.assert_allclose(values, slow(family, task, mask, new), atol=1e-4)
    nothing = np.zeros_like(found.masks[0])
    np.testing.assert_allclose(found.empty, slow(family, task, nothing, new), atol=1e-4)
    np.testing.assert_allclose(found.values[-1], found.full, atol=1e-5)
    assert np.abs(found.full - found.empty).max() > 1e-3
    assert found.sizes.tolist() == [int(f * found.masks[0].size) for f in FRACTIONS]
    np.testing.assert_allclose(found.random[0, -1], found.full, atol=1e-5)


@pytest.mark.parametrize("name", ["toy-and", "toy-verification"])
def test_planted_neurons_are_found_and_suffice(name):
    model, toy, task = load_model(name), build_toy(name), load_task(name)
    planted = {part for part in toy.circuit if "N" in part}
    find, confirm = task.split()
    scores = scored(model, find)
    share = (len(planted) + 0.5) / scores.values.size
    found = evaluate_neurons(
        model, confirm, scores, fractions=(share, 1.0), by="absolute", random=20
    )
    assert set(found.neurons(0)) == planted
    assert found.faithfulness[0] == pytest.approx(1, abs=0.02)
    assert found.drawn["random"][:, 0].mean() < 0.6
    assert "neurons" in str(found)


def test_bad_requests_are_refused(family_models, any_gap):
    model, task = family_models["llama"], random_task()
    scores = scored(model, task)
    heads = attribution_patching(model, task)
    part = attribution_patching(model, task, site="post", by=("layer", "neuron"), layers=[0])
    for some in (heads, part):
        with pytest.raises(InterpError, match="score with site"):
            evaluate_neurons(model, task, some)
    with pytest.raises(InterpError, match="not increasing"):
        evaluate_neurons(model, task, scores, fractions=(0.5, 0.1))
    with pytest.raises(InterpError, match="ranking"):
        evaluate_neurons(model, task, scores, by="size")
    found = evaluate_neurons(
        model, task, scores, by="mean_absolute", fractions=(0.1, 1.0), random=0
    )
    assert scores.strength("mean_absolute")[found.masks[0]].min() >= (
        scores.strength("mean_absolute")[~found.masks[0]].max()
    )
    with pytest.raises(InterpError, match="no reference"):
        evaluate_neurons(model, task, scores, ablation="mean")
    with pytest.raises(InterpError, match="evaluated prompts"):
        evaluate_neurons(model, task, scores, ablation="mean", reference=task)


def test_an_evaluation_comes_back(family_models, tmp_path, any_gap):
    model, task = family_models["llama"], random_task()
    options = {"ablation": "mean", "reference": random_task(seed=3), "random": 2}
    found = evaluate_neurons(model, task, scored(model, task), fractions=FRACTIONS, **options)
    path = found.save(tmp_path / "neurons")
    again = NeuronEvaluation.load(path)
    assert str(again) == str(found)
    assert again.to_dataframe().equals(found.to_dataframe())
    assert again.provenance == found.provenance
    for circuit in range(len(FRACTIONS)):
        assert again.neurons(circuit) == found.neurons(circuit)
    table = found.to_dataframe()
    assert list(table["neurons"]) == list(found.sizes)
    assert list(table["faithfulness"]) == pytest.approx(list(found.faithfulness))
    with pytest.raises(InterpError, match="its kind is 'NeuronEvaluation'"):
        FaithfulnessCurves.load(path)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InterpError, match="damaged"):
        NeuronEvaluation.load(path)
