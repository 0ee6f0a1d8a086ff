"""Effects in the metric's own unit: no gap is needed, and corrupted prompts only for patches."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.models.language_model import LanguageModel
from interp.models.loading import load_model
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from interp.patching.joint import joint_patching, set_effects
from interp.patching.path import path_patching
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.tasks.registry import load_task
from tests.families import random_task


@pytest.fixture
def model(family_models) -> LanguageModel:
    return family_models["llama"]


def alone(task: Task) -> Task:
    """The task without its corrupted prompts."""
    return replace(task, pairs=tuple(replace(pair, corrupted=None) for pair in task.pairs))


@pytest.mark.parametrize(
    "measure",
    [
        activation_patching,
        attribution_patching,
        lambda model, task, unit: path_patching(model, task, receivers=["logits"], unit=unit),
    ],
)
def test_values_are_the_mean_metric_gained(model, measure):
    task = random_task()
    with pytest.warns(UserWarning, match="does not distinguish the prompts"):
        scores = measure(model, task, unit="metric")
    np.testing.assert_array_equal(scores.values, scores.effects.mean(0))
    assert scores.unit == "metric"
    assert scores.plot().data[0].colorbar.title.text == "effect (logits)"
    assert "unit='metric'" in scores.provenance.call


def test_both_units_are_one_measurement(model, monkeypatch):
    monkeypatch.setattr("interp.patching.spec.check_gap", lambda one, other: None)
    gap = activation_patching(model, random_task(), cache=False)
    with pytest.warns(UserWarning, match="distinguish"):
        raw = activation_patching(model, random_task(), unit="metric", cache=False)
    np.testing.assert_array_equal(raw.effects, gap.effects)
    np.testing.assert_allclose(raw.values / gap.gap, gap.values, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:the model does not distinguish")
def test_one_prompt_without_a_pair_is_ablated(model):
    """Zero ablation of each head equals the same head zeroed by hooks."""
    task = alone(random_task((9,)))
    scores = activation_patching(
        model, task, source="zero", direction="noise", unit="metric", cache=False
    )
    encoded = task.encode(model)
    for layer, head in np.ndindex(scores.values.shape):
        with intervene(model, zero(f"L{layer}H{head}")):
            logits = model.last_logits(encoded.clean)
        right, wrong = (t[0, 0] for t in (encoded.targets.answers, encoded.targets.wrong))
        lost = scores.clean[0] - float(logits[0, right] - logits[0, wrong])
        assert scores.values[layer, head] == pytest.approx(lost, abs=1e-5)


def test_a_fraction_still_needs_a_gap_and_a_patch_needs_pairs(model):
    with pytest.raises(InterpError, match="unit='metric'"):
        activation_patching(model, random_task(), cache=False)
    with pytest.raises(InterpError, match="without a corrupted counterpart"):
        activation_patching(model, alone(random_task()), unit="metric")
    for measure in (activation_patching, attribution_patching):
        with pytest.raises(InterpError, match="unit 'logits'.*known: gap, metric"):
            measure(model, random_task(), unit="logits")
    with pytest.raises(InterpError, match="unit 'logits'"):
        joint_patching(model, random_task(), ["L0H0"], unit="logits")


def test_single_components_equal_the_sweep(model):
    """`set_effects` of one head each is the sweep's column."""
    from interp.core.components import Component

    task = random_task()
    with pytest.warns(UserWarning, match="distinguish"):
        scores = activation_patching(model, task, unit="metric", cache=False)
    cells = list(np.ndindex(scores.values.shape))
    found = set_effects(model, task, [[Component(*_of(cell))] for cell in cells], "denoise")
    expected = np.stack([scores.effects[:, *cell] for cell in cells])
    np.testing.assert_allclose(found.gained, expected, atol=1e-5)
    with pytest.warns(UserWarning, match="distinguish"):
        joint = joint_patching(model, task, ["L1H1"], unit="metric")
    assert joint.effect.mean == pytest.approx(scores.estimate("L1H1").mean, abs=1e-5)


def test_a_set_at_one_token_equals_the_sweep_by_position(model):
    from interp.core.components import Component

    task = random_task()
    length = len(task.pairs[0].clean)
    task = replace(task, pairs=tuple(pair for pair in task.pairs if len(pair.clean) == length))
    with pytest.warns(UserWarning, match="distinguish"):
        scores = activation_patching(
            model, task, site="resid_pre", by=("layer", "position"), unit="metric", cache=False
        )
    cells = list(np.ndindex(scores.values.shape))
    sets = [[Component(layer, "resid_pre")] for layer, _ in cells]
    found = set_effects(model, task, sets, "denoise", at=[place for _, place in cells])
    expected = np.stack([scores.effects[:, *cell] for cell in cells])
    assert abs(expected).max() > 0.01
    np.testing.assert_allclose(found.gained, expected, atol=1e-5)


def _of(cell: tuple[int, int]) -> tuple[int, str, int]:
    return cell[0], "z", cell[1]


def test_the_unit_is_kept_and_told(model):
    with pytest.warns(UserWarning, match="distinguish"):
        raw = activation_patching(model, random_task(), unit="metric", cache=False)
    assert "effects in logits" in repr(raw)
    assert "corrupted" not in repr(
        activation_patching(
            model, alone(random_task()), source="zero", direction="noise", unit="metric"
        )
    )
    with pytest.raises(InterpError, match="units"):
        raw.agreement(replace(raw, unit="gap"))
    with pytest.raises(InterpError, match="unit 'logits'"):
        replace(raw, unit="logits")


@pytest.mark.parametrize("unit", ["gap", "metric"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    "measure",
    [
        lambda *given, **options: activation_patching(*given, **options, cache=False),
        attribution_patching,
        lambda *given, **options: path_patching(
            *given, receivers=["logits"], **options, cache=False
        ),
    ],
    ids=["activation", "attribution", "path"],
)
def test_a_negative_gap_is_warned_of_in_either_direction(measure, direction, unit):
    """With answers and wrong answers exchanged; not on the task as it is."""
    model = load_model("toy-induction")
    task = load_task("toy-induction", model, n=12)
    pairs = (replace(pair, answers=pair.wrong, wrong=pair.answers) for pair in task.pairs)
    with pytest.warns(UserWarning, match=r"lower on the clean .* works against the answers"):
        measure(model, replace(task, pairs=tuple(pairs)), unit=unit, direction=direction)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(model, task, unit=unit, direction=direction)
