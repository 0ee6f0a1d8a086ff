"""Features patched in the engine equal hooked runs, and their estimate its derivative."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.core.metrics import METRICS, Logits
from interp.features import effects
from interp.features.attribution import feature_attribution
from interp.features.effects import FeatureEffects
from interp.features.patching import feature_patching
from interp.models.unembedding import logit_direction
from interp.patching import spec
from interp.runs.pairs import paired_runs
from tests.families import random_task, true_double
from tests.features.made import linear_dictionary, random_dictionary
from tests.features.test_dictionary import mlp_input
from tests.patching.test_attribution import seen

FAMILIES = ["gpt2", "neox", "llama", "gemma2", "olmo2"]
PLACES = {"SAE": ("resid_post", None), "heads": ("z", None), "transcoder": ("mlp_in", "mlp_out")}
ARGUMENTS = {"unit": "metric", "draws": 2}


@pytest.fixture(autouse=True)
def any_gap(monkeypatch, request):
    if "refused" not in request.node.name:
        for module in (effects, spec):
            for name in ("check_gap", "warn_gap"):
                monkeypatch.setattr(module, name, lambda clean, corrupted: None)


def both(model, name, runs, dictionary):
    """For each prompt: f' - f and y' - y, by hooks on the model."""
    found = []
    sides = []
    for prompts in (runs.base, runs.other):
        written, _ = seen(model, prompts, 1, dictionary.written)
        if dictionary.read == "mlp_in":
            read = [mlp_input(model, name, tokens) for tokens in prompts]
        else:
            read = seen(model, prompts, 1, dictionary.read)[0]
        sides.append(
            [(dictionary.encode(x.flatten(1)), y) for x, y in zip(read, written, strict=True)]
        )
    for prompt, (before, after) in enumerate(zip(*sides, strict=True)):
        n = len(runs.base[prompt])
        found.append((after[0][:n] - before[0][:n], after[1][:n] - before[1][:n]))
    return found


def hooked(model, task, runs, dictionary, deltas):
    """(n,) the metric with a delta (tokens, width) added to the site of each prompt."""

    def hook(value, batch):
        changed = value.clone()
        for row, prompt in enumerate(batch.prompts.tolist()):
            changed[row, : len(deltas[prompt])] += deltas[prompt].view_as(
                changed[row, : len(deltas[prompt])]
            )
        return changed

    logits = model.last_logits(runs.base, hooks={(1, dictionary.written): [hook]})
    return task.metric(Logits(logits), runs.targets).numpy()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("name", FAMILIES)
def test_patching_equals_hooked_runs(doubles, name, place, direction):
    model, task = doubles(name), random_task(lengths=(6, 8))
    dictionary = random_dictionary(model, *PLACES[place], kind="topk", k=6)
    runs = paired_runs(model, task, direction)
    with true_double():
        moves = both(model, name, runs, dictionary)
        chosen = [int(moves[0][0].abs().sum(0).argmax()), int(moves[1][0].abs().sum(0).argmax()), 3]
        chosen = sorted({*chosen})
        rows = dictionary.W_dec

        def gained(delta):
            plain = hooked(model, task, runs, dictionary, [0 * y.flatten(1) for _, y in moves])
            deltas = [delta(f, y.flatten(1)) for f, y in moves]
            return (hooked(model, task, runs, dictionary, deltas) - plain) * (
                1 if direction == "denoise" else -1
            )

        alone = [gained(lambda f, y, i=i: f[:, i, None] * rows[i]) for i in chosen]
        together = gained(lambda f, y: f[:, chosen] @ rows[chosen])
        error = gained(lambda f, y: y - f @ rows)
        site = gained(lambda f, y: y)
    assert max(np.abs(one).max() for one in alone) > 1e-4
    found = feature_patching(
        model, task, dictionary, features=chosen, direction=direction, **ARGUMENTS
    )
    np.testing.assert_allclose(found.effects[..., 0].T, alone, atol=1e-6)
    np.testing.assert_allclose(found.together, together, atol=1e-6)
    np.testing.assert_allclose(found.error, error, atol=1e-6)
    np.testing.assert_allclose(found.site, site, atol=1e-6)


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("name", FAMILIES)
def test_attribution_is_the_derivative_of_hooked_patching(doubles, name, place):
    model, task, step = doubles(name), random_task(lengths=(6, 8)), 1e-4
    dictionary = random_dictionary(model, *PLACES[place], kind="topk", k=6)
    runs = paired_runs(model, task, "denoise")
    found = feature_attribution(model, task, dictionary, **ARGUMENTS)
    with true_double():
        moves = both(model, name, runs, dictionary)
        best = int(np.abs(found.effects).sum((0, 2)).argmax())
        rows = dictionary.W_dec
        for mine, delta in (
            (found.effects[:, best, 0], lambda f, y: f[:, best, None] * rows[best]),
            (found.together, lambda f, y: f @ rows),
            (found.error, lambda f, y: y - f @ rows),
        ):
            high, low = (
                hooked(
                    model, task, runs, dictionary,
                    [sign * step * delta(f, y.flatten(1)) for f, y in moves],
                )
                for sign in (1, -1)
            )  # fmt: skip
            slope = (high - low) / (2 * step)
            assert np.abs(slope).max() > 1e-4
            np.testing.assert_allclose(mine, slope, atol=2e-6)
    np.testing.assert_allclose(found.together + found.error, found.site, atol=1e-9)
    whole = interp.attribution_patching(
        model, task, site=dictionary.written, by="layer", layers=[1], unit="metric"
    )
    np.testing.assert_allclose(found.site, whole.effects[:, 0], atol=1e-9)


@pytest.mark.parametrize("place", list(PLACES))
def test_all_features_and_the_error_are_the_patched_site(family_models, place):
    """Also by position: only the tokens asked for change."""
    model, task = family_models["llama"], random_task()
    dictionary = random_dictionary(model, *PLACES[place])
    for positions in ("all", "changed", ["changed", "near_end"]):
        found = feature_patching(
            model, task, dictionary, features=[0], positions=positions, **ARGUMENTS
        )
        whole = interp.activation_patching(
            model, task, site=dictionary.written, by="layer", layers=[1], unit="metric",
            positions=positions,
        )  # fmt: skip
        np.testing.assert_allclose(found.site, whole.effects[:, 0], atol=1e-4)


def test_features_without_an_error_carry_the_whole_site(doubles):
    model, task = doubles("llama"), random_task()
    rows = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0]
    found = feature_patching(
        model, task, linear_dictionary(model, rows, 1), features=range(32), **ARGUMENTS
    )
    np.testing.assert_allclose(found.together, found.site, atol=1e-8)
    np.testing.assert_allclose(found.error, 0, atol=1e-8)
    half = feature_patching(
        model, task, linear_dictionary(model, rows[:16], 1), features=range(16), **ARGUMENTS
    )
    assert np.abs(half.error).max() > 1e-3


def test_positions_apart(family_models):
    """Each column equals a call for that position alone."""
    model, task = family_models["gemma2"], random_task(lengths=(7, 7, 7))
    dictionary = random_dictionary(model, kind="topk", k=8)
    for call, asked in (
        (feature_patching, {"features": [1, 5, 9]}),
        (feature_attribution, {}),
    ):
        named = call(
            model, task, dictionary, positions=["changed", "near_end"], by_position=True,
            **asked, **ARGUMENTS,
        )  # fmt: skip
        each = call(model, task, dictionary, by_position=True, **asked, **ARGUMENTS)
        assert each.columns == tuple("0123456")
        for column, name in enumerate(("changed", "near_end")):
            one = call(model, task, dictionary, positions=name, **asked, **ARGUMENTS)
            np.testing.assert_allclose(named.effects[..., column], one.effects[..., 0], atol=1e-5)
            place = (2, 5)[column]
            np.testing.assert_allclose(each.effects[..., place], one.effects[..., 0], atol=1e-5)
        assert np.abs(each.effects[..., :2]).max() < 1e-6
        assert named.top(1, by="absolute")[0].position in ("changed", "near_end")
    with pytest.raises(InterpError, match="equal length"):
        feature_attribution(model, random_task(), dictionary, by_position=True)


def planted(model, task, *, with_answer):
    """A dictionary of the last stream: feature 0 is the direction of the answer, or is left out."""
    encoded = task.encode(model)
    u = logit_direction(
        model, encoded.targets.answers[0].tolist(), encoded.targets.wrong[0].tolist()
    )
    basis = torch.randn(32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    basis[:, 0] = u
    rows = torch.linalg.qr(basis)[0].T
    return linear_dictionary(model, rows if with_answer else rows[1:], model.n_layers - 1)


def test_a_planted_feature_is_found_and_its_absence_too(doubles):
    """One answer for all prompts: the last stream's direction of that answer carries the metric."""
    model, task = doubles("llama"), random_task(lengths=(9,) * 8)
    (right,), (wrong,) = task.pairs[0].answers, task.pairs[0].wrong
    pairs = []
    for pair in task.pairs:  # the prompt that prefers the answer is the clean one
        logits = model.last_logits([pair.clean, pair.corrupted])
        first, other = (logits[:, right] - logits[:, wrong]).tolist()
        sides = {} if first > other else {"clean": pair.corrupted, "corrupted": pair.clean}
        pairs.append(replace(pair, answers=(right,), wrong=(wrong,), **sides))
    task = replace(task, pairs=tuple(pairs))
    for call in (feature_attribution, feature_patching):
        found = call(model, task, planted(model, task, with_answer=True), unit="metric", draws=20)
        (best,) = found.top(1, by="absolute")
        assert best.feature == 0
        assert found.null().share == 1 / 21
        rest = np.abs(found.values[1:, 0]).max()
        assert abs(best.value) > 3 * rest
        assert found.null_together.draws == 20
        lost = call(model, task, planted(model, task, with_answer=False), unit="metric", draws=20)
        assert lost.null().share > 0.1
        assert lost.of("error").mean == pytest.approx(best.value, rel=1e-6)


def test_the_control_keeps_activations_and_lengths(family_models):
    """Each draw is a dictionary with other directions, measured in the same way."""
    model, task = family_models["llama"], random_task()
    dictionary = random_dictionary(model, kind="topk", k=6)
    rows = effects.random_rows(dictionary.W_dec, 2, 5)
    for drawn in rows:
        torch.testing.assert_close(drawn.norm(dim=1), dictionary.W_dec.norm(dim=1))
    assert not torch.allclose(rows[0], rows[1])
    found = feature_attribution(model, task, dictionary, unit="metric", draws=2, seed=5)
    chosen = [1, 4]
    exact = feature_patching(
        model, task, dictionary, features=chosen, unit="metric", draws=2, seed=5
    )
    few = effects.random_rows(dictionary.W_dec[chosen], 2, 5)
    for draw in range(2):
        again = feature_attribution(model, task, replace(dictionary, W_dec=rows[draw]), **ARGUMENTS)
        np.testing.assert_allclose(found.random[draw], again.effects.mean(0), atol=1e-6)
        swapped = dictionary.W_dec.clone()
        swapped[chosen] = few[draw]
        again = feature_patching(
            model, task, replace(dictionary, W_dec=swapped), features=chosen, **ARGUMENTS
        )
        np.testing.assert_allclose(exact.random[draw], again.effects.mean(0), atol=1e-5)
        np.testing.assert_allclose(exact.random_together[draw], again.together.mean(), atol=1e-5)


def test_the_strongest_estimates_are_patched(family_models):
    model, task = family_models["llama"], random_task()
    dictionary = random_dictionary(model, kind="topk", k=6)
    estimate = feature_attribution(model, task, dictionary, unit="metric")
    found = feature_patching(model, task, dictionary, top=4, **ARGUMENTS)
    assert set(found.features) == {one.feature for one in estimate.top(4, by="absolute")}


def test_effects_are_saved_shown_and_in_fractions(family_models, tmp_path):
    model, task = family_models["llama"], random_task()
    dictionary = random_dictionary(model)
    told = []
    found = feature_patching(
        model, task, dictionary, features=[2, 3], unit="gap", draws=3,
        progress=lambda done, n: told.append((done, n)),
    )  # fmt: skip
    assert told[-1] == (4, 4)
    metric = replace(found, unit="metric")
    gap = (found.clean - found.corrupted).mean()
    np.testing.assert_allclose(found.values, metric.values / gap)
    again = FeatureEffects.load(found.save(tmp_path / "effects"))
    np.testing.assert_array_equal(again.effects, found.effects)
    assert repr(again) == repr(found)
    assert list(found.to_dataframe()["feature"]) == ["L1F2", "L1F3"]
    assert len(repr(found)) < 400
    assert "feature_patching(model, task, dictionary" in found.provenance.call
    with pytest.raises(InterpError, match="part"):
        found.of("half")
    with pytest.raises(InterpError, match="cells"):
        found.null(3)
    with pytest.raises(InterpError, match="at least one"):
        feature_patching(model, task, dictionary, features=[2], draws=0).null()


def test_bad_input_is_refused(family_models):
    model, task = family_models["llama"], random_task()
    dictionary = random_dictionary(model)
    for call in (feature_attribution, feature_patching):
        for asked, match in (
            ({"unit": "nats"}, "unit"),
            ({"direction": "sideways"}, "direction"),
            ({"positions": "nowhere"}, "nowhere"),
            ({"draws": -1}, "draws"),
        ):
            with pytest.raises(InterpError, match=match):
                call(model, task, dictionary, **asked)
        inside = interp.intervene(model, interp.runs.zero("L0.attn_out"))
        with inside, pytest.raises(InterpError, match="inside intervene"):
            call(model, task, dictionary)
    with pytest.raises(InterpError, match="feature"):
        feature_patching(model, task, dictionary, features=[40])
    with pytest.raises(InterpError, match="top"):
        feature_patching(model, task, dictionary, top=0)
    with pytest.raises(InterpError, match="gradient"):
        feature_attribution(model, task.with_metric(METRICS["kl"]), dictionary, direction="noise")
