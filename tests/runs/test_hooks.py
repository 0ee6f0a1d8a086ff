"""Interventions do what they say, where they say, and leave nothing behind."""

import warnings
from dataclasses import replace

import pytest
import torch

from interp.core.components import SITES, Component
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.runs.capture import run_with_cache
from interp.runs.change import Change
from interp.runs.hooks import intervene
from interp.runs.kinds import add, mean, one_edit, patch, project_out, resample, scale, zero
from tests.families import random_task

PROMPTS = [(5, 6, 7, 8, 9), (11, 12, 13)]
OTHERS = [(25, 26, 27, 28, 29), (31, 32, 33)]


def read(model, label, interventions, prompts=PROMPTS, **options):
    """A site under interventions, as (prompt, position, ...)."""
    layer, _, site = label.removeprefix("L").partition(".")
    with intervene(model, interventions, **options) as report:
        seen = run_with_cache(model, prompts, sites=[site], layers=[int(layer)])
    return seen[int(layer), site], report


@pytest.mark.parametrize("site", SITES)
def test_doing_nothing_is_bit_equal(family, site):
    if family.sites[site] is not None:
        pytest.skip(family.sites[site])
    plain = family.last_logits(PROMPTS)
    with intervene(family, [scale(f"L1.{site}", 1.0)]) as report:
        assert torch.equal(family.last_logits(PROMPTS), plain)
    assert report.fired[0].tokens == 8
    assert report.fired[0].norm == 0


def test_patch_everything_is_the_other_run(family):
    for component in ("L0.resid_pre", "L2.resid_post"):
        with intervene(family, [patch(family, component, OTHERS)]):
            found = family.last_logits(PROMPTS)
        torch.testing.assert_close(found, family.last_logits(OTHERS), atol=2e-5, rtol=0)


def test_add_then_subtract(family):
    vector = torch.randn(family.d_model)
    both = [add("L1.resid_post", vector), add("L1.resid_post", vector, coefficient=-1)]
    with intervene(family, both) as report:
        found = family.last_logits(PROMPTS)
    torch.testing.assert_close(found, family.last_logits(PROMPTS), atol=2e-5, rtol=0)
    assert report.fired[0].norm == pytest.approx(float(vector.norm()), rel=1e-5)


def test_project_out_is_orthogonal_and_idempotent(family_models):
    model, direction = family_models["llama"], torch.randn(32)
    once, _ = read(model, "L1.resid_post", [project_out("L1.resid_post", direction)])
    assert (once @ direction).abs().max() < 1e-4
    twice, _ = read(model, "L1.resid_post", [project_out("L1.resid_post", direction)] * 2)
    torch.testing.assert_close(twice, once, atol=1e-5, rtol=0)
    with pytest.raises(InterpError, match="length 0"):
        project_out("L1.resid_post", torch.zeros(32))


def test_zero_one_component_only(family_models):
    model = family_models["llama"]
    plain = run_with_cache(model, PROMPTS, sites=["z", "k", "post", "pattern"], layers=[1])
    for label, site, index in (
        ("L1H2", "z", (slice(None), slice(None), 2)),
        ("L1KV1.k", "k", (slice(None), slice(None), 1)),
        ("L1N7", "post", (..., 7)),
        ("L1H3.pattern", "pattern", (slice(None), slice(None), 3)),
    ):
        found, report = read(model, f"L1.{site}", [zero(label)])
        expected = plain[1, site].clone()
        expected[index] = 0
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert report.fired[0].tokens == 8
        assert label.removesuffix(".z") in str(report)


def test_named_positions_of_a_task(family_models):
    model, task = family_models["llama"], random_task(lengths=(8, 6))
    prompts = [pair.clean for pair in task.pairs]
    found, report = read(
        model, "L1.mlp_out", [zero("L1.mlp_out", positions="changed")], prompts, on=task
    )
    assert (found.abs().sum(-1) == 0).nonzero().tolist() == [[0, 2], [1, 2], [1, 6], [1, 7]]
    assert report.fired[0].tokens == 2
    _, report = read(model, "L1.mlp_out", [zero("L1.mlp_out", positions="last")])
    assert report.fired[0].tokens == 2
    _, report = read(model, "L1.mlp_out", [zero("L1.mlp_out", positions=[0, 2])])
    assert report.fired[0].tokens == 2
    with pytest.raises(InterpError, match="'changed' of prompt"):
        read(model, "L1.mlp_out", [zero("L1.mlp_out", positions="changed")])


def test_mean_over_every_token_not_the_last_batch(family_models, monkeypatch):
    """Unequal lengths and several batches: the mean is over all real tokens."""
    from interp.models import batches

    model = family_models["llama"]
    monkeypatch.setattr(batches, "BATCH_TOKENS", 4)
    reference = [(5, 6, 7, 8, 9), (11, 12, 13), (40,)]
    values = run_with_cache(model, reference, sites=["z"], layers=[1])
    every = values[1, "z"][values.mask][:, 2]
    assert len(every) == 9
    found, _ = read(model, "L1.z", [mean(model, "L1H2", reference)])
    torch.testing.assert_close(found[0, 3, 2], every.mean(0), atol=1e-6, rtol=0)
    found, _ = read(model, "L1.z", [mean(model, "L1H2", reference, pooled=False)])
    expected = (values[1, "z"][0, 1, 2] + values[1, "z"][1, 1, 2]) / 2
    torch.testing.assert_close(found[1, 1, 2], expected, atol=1e-6, rtol=0)
    with pytest.raises(InterpError, match="at most 2 tokens"):
        read(model, "L1.z", [mean(model, "L1H2", [(5, 6)], pooled=False)])
    with pytest.raises(InterpError, match="keys differ"):
        mean(model, "L1H2.pattern", reference)


def test_resample_is_seeded(family_models):
    model = family_models["llama"]
    reference = [tuple(range(i, i + 5)) for i in range(5, 60, 5)]
    draws = [
        read(model, "L1.z", [resample(model, "L1.z", reference, n=2, seed=seed)])[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_patterns_can_be_patched(family_models):
    model = family_models["llama"]
    other = run_with_cache(model, OTHERS, sites=["pattern"], layers=[1])[1, "pattern"]
    found, _ = read(model, "L1.pattern", [patch(model, "L1H2.pattern", OTHERS)])
    torch.testing.assert_close(found[:, :, 2], other[:, :, 2], atol=1e-6, rtol=0)


def test_nothing_is_left_after_an_exception(family_models):
    model = family_models["llama"]
    plain = model.last_logits(PROMPTS)
    with pytest.raises(RuntimeError, match="mine"), intervene(model, [zero("L0.mlp_out")]):
        raise RuntimeError("mine")

    def broken(old, tokens):
        raise RuntimeError("inside")

    broken_edit = one_edit("broken", Component.parse("L1H1"), broken)
    with (
        pytest.raises(RuntimeError, match="inside"),
        intervene(model, Change(name="broken", edits=(broken_edit,))),
    ):
        model.last_logits(PROMPTS)
    assert torch.equal(model.last_logits(PROMPTS), plain)
    assert not model.active
    assert not any(point.fwd_hooks for point in model.bridge.hook_dict.values())
    assert model.lock.acquire(blocking=False)
    model.lock.release()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: zero("L1X3"), "not the label"),
        (lambda m: zero("L1H9"), "heads 0 to 3"),
        (lambda m: zero("L1.z", positions=[5, 0]), "it has 5 tokens"),
        (lambda m: zero("L1.z", positions=[0, -4]), "it has 3 tokens"),
        (lambda m: zero("L1H2.mlp_out"), "has no heads"),
        (lambda m: add("L1H2", torch.zeros(3)), r"shape \(3,\)"),
        (lambda m: zero("L9.mlp_out"), "layers 0 to 2"),
        (lambda m: patch(m, "L1.z", OTHERS[:1]), "sources for 1 prompts only"),
        (lambda m: zero("L1.z", positions=[0]), "1 for [0-9]+ prompts"),
    ],
)
def test_bad_interventions(family_models, make, message):
    model = family_models["llama"]
    with pytest.raises(InterpError, match=message), intervene(model, [make(model)]):
        model.last_logits(PROMPTS)


def test_gradients_flow_through_interventions(family_models):
    """Steering with gradients on: the change reaches the skip connection as well."""
    model = family_models["llama"]
    vector = torch.zeros(32, requires_grad=True)
    totals = []
    for component in ("L1.resid_mid", "L1.attn_out"):
        with intervene(model, [add(component, vector)]):
            (_, logits), *_ = model.run([PROMPTS[0]])
        (gradient,) = torch.autograd.grad(logits[0, -1, 3], vector)
        totals.append(gradient)
    torch.testing.assert_close(totals[0], totals[1], atol=1e-5, rtol=1e-4)
    assert totals[0].abs().max() > 1e-4


def test_task_reference(family_models):
    model = family_models["llama"]
    pairs = tuple(PromptPair(clean=p, answers=(3,)) for p in PROMPTS)
    found, _ = read(model, "L1.z", [mean(model, "L1.z", Task(name="t", pairs=pairs))])
    assert torch.equal(found[0, 0], found[1, 2])


def test_order_of_edits_is_causal(family_models):
    """resid_mid is set after what it is the sum of, in whichever order they are given."""
    model = family_models["llama"]
    others = [scale("L1.resid_pre", 3.0), add("L1.attn_out", torch.ones(32))]
    for other in others:
        for order in ([zero("L1.resid_mid"), other], [other, zero("L1.resid_mid")]):
            found, _ = read(model, "L1.resid_mid", order)
            assert found.abs().max() < 1e-6


def test_nothing_is_kept_or_ignored_inside(family_models, monkeypatch):
    """Sweeps inside a block are refused, unless they patch the changed model and keep nothing."""
    from interp.patching.activation import activation_patching
    from interp.patching.joint import joint_patching
    from interp.patching.path import path_patching

    monkeypatch.setattr("interp.patching.spec.check_gap", lambda one, other: None)
    model, task = family_models["llama"], random_task()
    plain = activation_patching(model, task, engine="hooks", cache=False)
    with intervene(model, [scale("L1.attn_out", 0.25)]):
        for call in (
            lambda: activation_patching(model, task),
            lambda: activation_patching(model, task, engine="hooks"),
            lambda: path_patching(model, task, receivers=["logits"]),
            lambda: joint_patching(model, task, ["L1H0"]),
            lambda: run_with_cache(model, PROMPTS, sites=["z"], to_disk=True),
        ):
            with pytest.raises(InterpError, match="inside intervene"):
                call()
        changed = activation_patching(model, task, engine="hooks", cache=False)
    assert abs(changed.clean - plain.clean).max() > 1e-3
    again = activation_patching(model, task, engine="hooks", cache=False)
    assert (again.effects == plain.effects).all()


def test_other_prompts_than_the_tasks_are_refused(family_models):
    model, task = family_models["llama"], random_task(lengths=(8, 6))
    wanted = [zero("L1.mlp_out", positions="changed")]
    for prompts in (PROMPTS, [pair.clean for pair in random_task(lengths=(8, 6, 6)).pairs]):
        with pytest.raises(InterpError, match="not that prompt"), intervene(model, wanted, on=task):
            model.last_logits(prompts)


def test_a_key_or_value_that_heads_share_is_warned_of(family_models):
    grouped, single = family_models["llama"], family_models["gpt2"]
    assert grouped.n_heads == 2 * grouped.n_kv_heads
    with pytest.warns(UserWarning, match=r"L0KV1\.v is shared by query heads 2 to 3") as seen:
        found, _ = read(grouped, "L0.z", [zero("L0KV1.v")])
    assert seen[0].filename == __file__
    # So it is: these two heads change, and no other.
    plain, _ = read(grouped, "L0.z", [])
    changed = (found != plain).flatten(0, 1).flatten(2).any(-1).any(0)
    assert changed.tolist() == [False, False, True, True]
    with pytest.warns(UserWarning, match=r"L1KV0\.k .* heads 0 to 1"):
        read(grouped, "L1.z", [scale("L1KV0.k", 0.5)])
    read_only = scale("L0KV1.v", 1.0)
    quiet = [(grouped, zero("L0H1")), (grouped, zero("L0.v")), (grouped, zero("L0H1.q"))]
    quiet += [
        (grouped, replace(read_only, edits=(replace(read_only.edits[0], reads=True),))),
        (single, zero("L0KV1.v")),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, made in quiet:
            read(model, "L0.z", [made])
