"""Answers of several tokens in sweeps and attribution, against plain Hugging Face passes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.engine import readout, sweep
from interp.models.loading import wrap
from interp.patching import joint, path, spec
from interp.patching.activation import activation_patching
from interp.patching.attribution import atp_star, attribution_patching
from interp.patching.joint import set_effects
from interp.patching.path import path_patching
from tests.answers import plain_logits, scored, several
from tests.families import random_task, tiny, true_double
from tests.plain import Plain

KINDS = (
    "gpt2", "llama", "mistral", "gemma2", "olmo2", "bloom", "falcon-7b", "gpt-oss", "mixtral",
    "smollm3",
)  # fmt: skip
"""Absolute and rotary positions, windows, soft caps, norms, ALiBi, parallel, sinks, experts."""


@pytest.fixture(autouse=True)
def any_gap(monkeypatch):
    """Random models need not tell prompts apart: compare raw effects."""
    for module in (spec, joint, path):
        monkeypatch.setattr(module, "check_gap", lambda one, other: None)


def patched(plain, prompt, other, pair, layer, head, kept=lambda at, n: True):
    """The metric of `prompt` with a head's z from `other`, in plain passes over prompt + answer."""

    def logits_of(tokens):
        theirs, _ = plain.run((*other, *tokens[len(other) :]))
        new = theirs[layer, "z"].clone()

        def edit(mine):
            mixed = mine.clone()
            where = [at for at in range(mine.shape[1]) if kept(at, len(prompt))]
            mixed[0, where, head] = new[0, where, head]
            return mixed

        return plain.run(tokens, {(layer, "z"): edit})[1][0]

    return scored(logits_of, prompt, pair)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mistral"])
def test_a_sweep_equals_plain_passes_over_prompt_and_answer(name, family_models):
    """All tokens: those of the answer too. At a named token: only there."""
    with true_double():
        hf = tiny(name, torch.float64)
        model = wrap(tiny(name, torch.float64), name=name, check=False)
        plain = Plain(name, hf, family_models[name])
        task = several(random_task(lengths=(8, 6)))
        whole = activation_patching(model, task, direction="noise", unit="metric", cache=False)
        at_end = activation_patching(
            model, task, direction="noise", unit="metric", positions="last", cache=False
        )
        for i, pair in enumerate(task.pairs):
            clean, other = pair.clean, pair.corrupted
            before = scored(plain_logits(hf), clean, pair)
            assert whole.clean[i] == pytest.approx(before, abs=1e-9)
            assert whole.corrupted[i] == pytest.approx(
                scored(plain_logits(hf), other, pair), abs=1e-9
            )
            for layer, head in ((0, 0), (0, 3), (1, 1)):
                everywhere = patched(plain, clean, other, pair, layer, head)
                last = patched(plain, clean, other, pair, layer, head, lambda at, n: at == n - 1)
                assert whole.effects[i, layer, head] == pytest.approx(before - everywhere, abs=1e-9)
                assert at_end.effects[i, layer, head] == pytest.approx(before - last, abs=1e-9)
        assert np.abs(whole.effects - at_end.effects).max() > 1e-4


@pytest.mark.parametrize("site", ["z", "q", "k", "pattern", "mlp_out", "resid_pre"])
@pytest.mark.parametrize("name", KINDS)
def test_fast_equals_hooks(name, site, family_models):
    model, task = family_models[name], several()
    if model.sites[site] is not None:
        pytest.skip(model.sites[site])
    sweeps = [
        {"by": ("layer",), "direction": "noise"},
        {"by": ("layer", "position"), "positions": ["changed", "last"]},
        {"by": ("layer",), "source": "zero", "direction": "noise", "unit": "metric"},
    ]
    for options in sweeps:
        fast, slow = (
            activation_patching(model, task, site=site, engine=one, cache=False, **options)
            for one in ("fast", "hooks")
        )
        scale = max(1.0, np.abs(slow.clean).max())
        np.testing.assert_allclose(fast.effects, slow.effects, atol=4e-5 * scale, rtol=0)
        assert np.abs(slow.effects).max() > 1e-4


@pytest.mark.parametrize("metric", ["log_prob_diff_per_token", "log_prob", "prob_diff"])
def test_other_metrics_of_strings(family_models, metric):
    model, task = family_models["gpt2"], several(metric=metric)
    fast, slow = (
        activation_patching(model, task, unit="metric", engine=one, cache=False)
        for one in ("fast", "hooks")
    )
    np.testing.assert_allclose(fast.effects, slow.effects, atol=1e-5, rtol=0)
    if metric == "log_prob_diff_per_token":
        found = [
            scored(plain_logits(model.hf_model), pair.clean, pair, per_token=True)
            for pair in task.pairs
        ]
        np.testing.assert_allclose(fast.clean, found, atol=1e-5)


def test_one_token_answers_are_the_logit_difference(family_models):
    task = random_task()
    logits = activation_patching(family_models["llama"], task, cache=False)
    for metric in ("log_prob_diff", "log_prob_diff_per_token"):
        same = activation_patching(family_models["llama"], task.with_metric(metric), cache=False)
        np.testing.assert_allclose(same.effects, logits.effects, atol=1e-6)


def test_chunks_and_prompts_do_not_change_a_sweep(family_models, monkeypatch):
    task = several(random_task(lengths=(9, 7, 12, 5, 9)))
    whole = activation_patching(family_models["gemma2"], task, cache=False)
    alone = [
        activation_patching(family_models["gemma2"], replace(task, pairs=(pair,)), cache=False)
        for pair in task.pairs
    ]
    np.testing.assert_allclose(
        whole.effects, np.concatenate([one.effects for one in alone]), atol=1e-5
    )
    monkeypatch.setattr(sweep, "CPU_TILE", 20)
    small = activation_patching(family_models["gemma2"], task, cache=False)
    np.testing.assert_allclose(whole.effects, small.effects, atol=1e-5)


def test_equal_prompts_have_no_effect(family_models):
    """The partner: nothing differs between the runs, so that no head may have an effect."""
    pair = PromptPair(clean=(5, 6, 7), corrupted=(5, 6, 7), answers=((8, 9),), wrong=((9, 4, 3),))
    task = Task(name="same", pairs=(pair,)).with_metric("log_prob_diff")
    found = activation_patching(family_models["llama"], task, unit="metric", cache=False)
    assert not found.effects.any()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
def test_attribution_is_the_derivative_of_exact_patching(name, family_models):
    """A small step towards the other run: exact change and first-order estimate agree."""
    with true_double():
        hf = tiny(name, torch.float64)
        model = wrap(tiny(name, torch.float64), name=name, check=False)
        plain, task = Plain(name, hf, family_models[name]), several(random_task(lengths=(8, 7)))
        found = attribution_patching(model, task, direction="noise", unit="metric")
        exact = activation_patching(model, task, direction="noise", unit="metric", cache=False)
        np.testing.assert_allclose(found.clean, exact.clean, atol=1e-9)
        step = 1e-5
        for i, pair in enumerate(task.pairs):
            for layer, head in ((0, 1), (1, 0)):

                def stepped(sign, pair=pair, layer=layer, head=head):
                    def logits_of(tokens):
                        n = len(pair.clean)
                        theirs = plain.run((*pair.corrupted, *tokens[n:]))[0][layer, "z"].clone()

                        def edit(mine):
                            mixed = mine.clone()
                            moved = theirs[:, :, head] - mine[:, :, head]
                            mixed[:, :, head] += sign * step * moved
                            return mixed

                        return plain.run(tokens, {(layer, "z"): edit})[1][0]

                    return scored(logits_of, pair.clean, pair)

                slope = (stepped(1) - stepped(-1)) / (2 * step)
                assert found.effects[i, layer, head] == pytest.approx(-slope, abs=1e-6)
        starred = atp_star(model, task, site="q", grad_drop=False, unit="metric")
        assert np.isfinite(starred.effects).all()
        assert np.abs(starred.effects).max() > 1e-6


def test_joint_patching_of_one_part_is_its_sweep(family_models):
    model, task = family_models["llama"], several()
    swept = activation_patching(model, task, cache=False, unit="metric")
    found = set_effects(model, task, [[Component(1, "z", 2)], [Component(0, "z", 1)]], "denoise")
    np.testing.assert_allclose(found.gained[0], swept.effects[:, 1, 2], atol=1e-5)
    np.testing.assert_allclose(found.gained[1], swept.effects[:, 0, 1], atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_path_to_the_logits_moves_only_what_the_head_writes(name, family_models):
    """From the last layer all paths are direct: path patching is a patch of the head itself."""
    model, task = family_models[name], several()
    last = model.n_layers - 1
    asked = {"layers": [last], "unit": "metric", "direction": "noise", "cache": False}
    direct = path_patching(model, task, receivers=["logits"], freeze_mlps=False, **asked)
    whole = activation_patching(model, task, **asked)
    np.testing.assert_allclose(direct.effects, whole.effects, atol=1e-5)
    assert np.abs(whole.effects).max() > 1e-5


def test_path_patching_of_several_receivers(family_models):
    """All receivers of the next layer together pass on whatever the head changes there."""
    model, task = family_models["gpt2"], several()
    asked = {"layers": [0], "unit": "metric", "direction": "noise", "cache": False}
    heads, groups = range(model.n_heads), range(model.n_kv_heads)
    labels = [f"L1H{h}.q" for h in heads] + [f"L1KV{h}.{s}" for h in groups for s in "kv"]
    found = path_patching(model, task, receivers=[*labels, "L1.mlp_out"], **asked)
    single = [
        path_patching(model, replace(task, pairs=(p,)), receivers=[*labels, "L1.mlp_out"], **asked)
        for p in task.pairs
    ]
    np.testing.assert_allclose(
        found.effects, np.concatenate([o.effects for o in single]), atol=1e-6
    )
    assert np.abs(found.effects).max() > 1e-5


def test_bad_strings_are_refused(family_models):
    model = family_models["llama"]
    task = several()
    with pytest.raises(InterpError, match="one token"):
        activation_patching(model, task.with_metric("logit_diff"))
    with pytest.raises(InterpError, match="one token"):
        activation_patching(model, task.with_metric("kl"))
    pair = PromptPair(clean=(5, 6, 7), corrupted=(5, 8, 7), answers=((8, 9),), wrong=((8, 9, 4),))
    begins = Task(name="begins", pairs=(pair,)).with_metric("log_prob_diff")
    with pytest.raises(InterpError, match="never less likely"):
        begins.check(model)
    long = PromptPair(clean=(5,) * model.max_positions, answers=((8, 9),), wrong=((7, 3),))
    with pytest.raises(InterpError, match="shorter prompt"):
        Task(name="long", pairs=(long,)).with_metric("log_prob_diff").check(model)
    empty = {"clean": (5, 6), "answers": ((),), "wrong": ((4,),)}
    with pytest.raises(InterpError):
        PromptPair(**empty)


def test_logits_of_a_few_rows_at_a_time(doubles, monkeypatch):
    """Held in slices, values and gradients are those of all logits at once."""
    model, task = doubles("llama"), several()
    whole = attribution_patching(model, task, unit="metric")
    swept = activation_patching(model, task, unit="metric", cache=False)
    monkeypatch.setattr(readout, "ROWS", 3)
    np.testing.assert_allclose(
        attribution_patching(model, task, unit="metric").effects, whole.effects, atol=1e-9
    )
    again = activation_patching(model, task, unit="metric", cache=False)
    np.testing.assert_allclose(again.effects, swept.effects, atol=1e-9)
