"""Attribution patching is the derivative of exact patching; its repairs are what they say."""

import dataclasses
import inspect
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from interp.circuits.model_graph import graph_of
from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.core.metrics import METRICS, Logits, Metric
from interp.core.prompts import Task
from interp.engine import gradients
from interp.engine.edges.writes import edge_runner
from interp.engine.forward import Runner
from interp.engine.readout import LogitsOf
from interp.patching import spec
from interp.patching.activation import activation_patching
from interp.patching.attribution import atp_star, attribution_patching
from interp.patching.spec import PatchSpec
from interp.results.scores import Scores
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.runs.pairs import paired_runs
from tests.circuits.test_score_edges import linear
from tests.families import FAMILIES, random_task, true_double

LAYER, PART = 1, 1


@pytest.fixture(autouse=True)
def any_gap(monkeypatch, request):
    if "refused" not in request.node.name:
        monkeypatch.setattr(spec, "check_gap", lambda clean, corrupted: None)


def seen(model, prompts, layer, site, hooks=None):
    """A site's value in hooked runs through TransformerLens, prompt by prompt."""
    found = {}

    def keep(value, batch):
        for row, prompt in enumerate(batch.prompts.tolist()):
            found[prompt] = value[row].detach().clone()
        return value

    hooks = {address: list(functions) for address, functions in (hooks or {}).items()}
    hooks.setdefault((layer, site), []).append(keep)
    logits = model.last_logits(prompts, hooks=hooks)
    return [found[i] for i in range(len(prompts))], logits


def moved(values, other, site, part, step):
    """A hook that moves a component a part of the way to its value in the other run."""

    def hook(value, batch):
        changed = value.clone()
        for row, prompt in enumerate(batch.prompts.tolist()):
            change = step * (other[prompt] - values[prompt])
            if site == "pattern":
                changed[row, part] += change[part]
            elif SITES[site] is None:
                changed[row] += change
            else:
                changed[row, :, part] += change[:, part]
        return changed

    return hook


def part_of(model, site):
    """The component that is moved; some families have one key/value head."""
    unit = SITES[site]
    return PART if unit is None else min(PART, model.size(unit) - 1)


def one_layer(model, task, site, **options):
    """(n,) or (n, ...) effects of one component, in every way the function is called."""
    unit = SITES[site]
    if unit is not None:
        options |= {"by": ("layer", unit), "components": [part_of(model, site)]}
    else:
        options |= {"by": ("layer",)}
    return options | {"site": site, "layers": [LAYER]}


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"direction": "noise"}])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_is_the_derivative_of_hooked_patching(doubles, name, options):
    """Central differences through Hugging Face's own forward, every site with a gradient."""
    model, task, step = doubles(name), random_task(lengths=(6, 8)), 1e-4
    runs = paired_runs(model, task, options.get("direction", "denoise"))
    sites = [site for site, why in model.sites.items() if why is None and site != "router"]
    assert len(sites) > 8
    for site in sites:
        asked = one_layer(model, task, site) | options
        found = attribution_patching(model, task, **asked).effects
        values = []
        with true_double():
            base, _ = seen(model, runs.base, LAYER, site)
            other, _ = seen(model, runs.other, LAYER, site)
            for sign in (-1, 1):
                hook = moved(base, other, site, part_of(model, site), sign * step)
                logits = model.last_logits(runs.base, hooks={(LAYER, site): [hook]})
                values.append(task.metric(Logits(logits), runs.targets))
        slope = (values[0] - values[1]).numpy() / (2 * step) * (1 if options else -1)
        np.testing.assert_allclose(found.ravel(), slope, atol=2e-6, err_msg=site)


def test_exact_and_estimate_have_the_same_defaults():
    """The estimates take their defaults from `PatchSpec`."""
    exact = inspect.signature(activation_patching).parameters
    for field in dataclasses.fields(PatchSpec):
        assert exact[field.name].default == field.default


@pytest.mark.parametrize("asked", [{}, {"direction": "noise"}, {"direction": "denoise"}])
@pytest.mark.parametrize("name", ["neox", "llama", "gemma2"])
def test_is_exact_where_the_model_is_linear(doubles, name, asked):
    model, task = linear(doubles(name)), random_task(lengths=(6, 8))
    for site, by in (
        ("z", ("layer", "head")),
        ("v", ("layer", "kv_head")),
        ("mlp_out", ("layer",)),
        ("resid_pre", ("layer",)),
        ("post", ("layer", "neuron")),
    ):
        options = dict(site=site, by=by, **asked)
        exact = activation_patching(model, task, cache=False, **options)
        found = attribution_patching(model, task, **options)
        assert (found.axes, found.coordinates) == (exact.axes, exact.coordinates)
        scale = np.abs(exact.effects).max()
        assert scale > 1e-4
        np.testing.assert_allclose(found.effects, exact.effects, atol=1e-6 * scale)
        assert found.direction == exact.direction


def test_a_small_step_is_estimated_in_the_default_direction(doubles):
    """Where both runs are close, the exact effect and its estimate under one default agree.

    The gradient of the corrupted run is not that of the clean one: of the other direction the
    estimate is off by a term that the two directions have with opposite signs.
    """
    model, task = doubles("llama"), random_task(lengths=(6, 8))
    exact = activation_patching(model, task, cache=False).effects
    right = attribution_patching(model, task).effects
    wrong = attribution_patching(model, task, direction="noise").effects
    assert np.corrcoef(exact.ravel(), right.ravel())[0, 1] > 0.9
    assert np.abs(exact - right).mean() < 0.8 * np.abs(exact - wrong).mean()


@pytest.mark.parametrize("asked", [{}, {"direction": "noise"}])
@pytest.mark.parametrize("source", ["zero", "mean"])
@pytest.mark.parametrize("name", ["llama", "olmo2"])
def test_zero_and_mean_are_exact_where_the_model_is_linear(doubles, name, source, asked):
    model, task = linear(doubles(name)), random_task(lengths=(6, 8))
    for site, by in (("z", ("layer", "head")), ("mlp_out", ("layer",))):
        options: dict[str, Any] = dict(site=site, by=by, source=source, **asked)
        if source == "mean":
            options["reference"] = random_task(lengths=(7, 5, 8), seed=3)
        exact = activation_patching(model, task, cache=False, **options)
        found = attribution_patching(model, task, **options)
        scale = np.abs(exact.effects).max()
        np.testing.assert_allclose(found.effects, exact.effects, atol=1e-6 * scale)


def gradient_at_z(model, task, runs):
    """dm/dz of one layer at the clean run, by one plain graph."""
    runner = Runner(model.decoder)
    found = []
    for i, prompt in enumerate(runs.base):
        layout, x = gradients.rows_of(runner, [prompt])
        z = None
        with torch.enable_grad():
            for layer in range(model.n_layers):
                if layer == LAYER:
                    _, sites = gradients.block_sites(runner, layer, x, layout)
                    z = sites["z"].detach().requires_grad_()
                x, _ = gradients.block_sites(
                    runner, layer, x, layout, z if layer == LAYER else None
                )
            hidden = model.decoder.ln_final(x[-1:])
            targets = runs.targets.select(torch.tensor([i]))
            value = task.metric(LogitsOf(decoder=model.decoder, hidden=hidden), targets).sum()
        found.append(torch.autograd.grad(value, z)[0])
    return found


@pytest.mark.parametrize("site", ["q", "k"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_qk_fix_is_attention_recomputed(doubles, name, site):
    """One head's queries (keys) replaced by a hook, attention run by Hugging Face, then linear."""
    model, task = doubles(name), random_task(lengths=(6, 8))
    runs = paired_runs(model, task, "noise")
    slopes = gradient_at_z(model, task, runs)
    options = one_layer(model, task, site) | {"direction": "noise"}
    found = atp_star(model, task, grad_drop=False, **options).effects
    with true_double():
        base, _ = seen(model, runs.base, LAYER, site)
        other, _ = seen(model, runs.other, LAYER, site)
        plain, _ = seen(model, runs.base, LAYER, "z")
        hook = moved(base, other, site, part_of(model, site), 1.0)
        mixed, _ = seen(model, runs.base, LAYER, "z", {(LAYER, site): [hook]})
    for i in range(len(task)):
        length = len(runs.base[i])
        change = (plain[i] - mixed[i])[:length].view_as(slopes[i])
        expected = float((slopes[i] * change).sum())
        assert found.ravel()[i] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", ["llama", "olmo2", "gemma2"])
def test_keys_one_position_at_a_time(doubles, name):
    """Each key token is isolated: replaced alone, the softmax renormalised."""
    model, task = doubles(name), random_task(lengths=(7, 7))
    runs = paired_runs(model, task, "noise")
    slopes = gradient_at_z(model, task, runs)
    options = one_layer(model, task, "k") | {"by": ("layer", "kv_head", "position")}
    options["direction"] = "noise"
    found = atp_star(model, task, grad_drop=False, **options).effects[:, 0, 0]
    with true_double():
        base, _ = seen(model, runs.base, LAYER, "k")
        other, _ = seen(model, runs.other, LAYER, "k")
        plain, _ = seen(model, runs.base, LAYER, "z")
        for position in range(7):
            some = [value.clone() for value in base]
            for value, source in zip(some, other, strict=True):
                value[position] = source[position]
            hook = moved(base, some, "k", PART, 1.0)
            mixed, _ = seen(model, runs.base, LAYER, "z", {(LAYER, "k"): [hook]})
            for i in range(2):
                change = (plain[i] - mixed[i]).view_as(slopes[i])
                expected = float((slopes[i] * change).sum())
                assert found[i, position] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("site", ["q", "k"])
def test_qk_fix_sees_through_saturated_attention(family_models, doubles, site, dtype):
    """Softmax at one token to the last bit: the plain estimate is blind, the fix is finite."""
    model = doubles("llama") if dtype == torch.float64 else family_models["llama"]
    blocks = [
        dataclasses.replace(
            block,
            attn=dataclasses.replace(
                block.attn, q=dataclasses.replace(block.attn.q, weight=block.attn.q.weight * 1e6)
            ),
        )
        for block in model.decoder.blocks
    ]
    hard = dataclasses.replace(
        model, decoder=dataclasses.replace(model.decoder, blocks=tuple(blocks))
    )
    task = random_task(lengths=(9,) * 8)
    plain = attribution_patching(hard, task, site=site)
    fixed = atp_star(hard, task, site=site, grad_drop=False)
    swept = atp_star(hard, task, site=site, by=("layer", "head", "position"))
    exact = activation_patching(hard, task, site=site, cache=False)
    for scores in (plain, fixed, swept):
        assert np.isfinite(scores.effects).all()
    # In float32, rounding in the softmax's own backward pass is multiplied by the scores' size.
    blind = 1e-6 if dtype == torch.float64 else 0.05
    assert np.abs(fixed.effects).max() > 0.05
    assert np.abs(plain.effects).max() < blind * max(1, np.abs(fixed.effects).max())
    flips = np.abs(exact.effects) > 1e-3
    assert (np.abs(fixed.effects)[flips] > 0).mean() > 0.6


@pytest.mark.parametrize("name", ["neox", "qwen3", "olmo2"])
def test_grad_drop_by_detaching_a_layer(doubles, name):
    """Against one graph per dropped layer, in which that layer's writes are detached."""
    model, task = doubles(name), random_task(lengths=(6, 8))
    runs, runner, layers = paired_runs(model, task, "noise"), Runner(doubles(name).decoder), 3
    found = atp_star(model, task, site="z", direction="noise")
    assert "GradDrop" in found.method
    expected = np.zeros_like(found.effects)
    for i, prompt in enumerate(runs.base):
        layout, x = gradients.rows_of(runner, [prompt])
        _, y = gradients.rows_of(runner, [runs.other[i]])
        kept = frozenset({"z"})
        base, other = (gradients.forward(runner, v, layout, kept=kept) for v in (x, y))
        for dropped in range(layers):
            heads, stream = [], x.clone().requires_grad_()
            for layer in range(layers):
                out, sites = gradients.block_sites(runner, layer, stream, layout)
                stream = stream + (out - stream).detach() if layer == dropped else out
                heads.append(sites["z"])
            hidden = model.decoder.ln_final(stream[-1:])
            targets = runs.targets.select(torch.tensor([i]))
            value = task.metric(LogitsOf(decoder=model.decoder, hidden=hidden), targets).sum()
            slopes = torch.autograd.grad(value, heads, allow_unused=True)
            for layer, slope in enumerate(slopes):
                if slope is not None:
                    change = base.site(layer, "z") - other.site(layer, "z")
                    expected[i, layer] += (slope * change).sum((0, 2)).abs().numpy() / (layers - 1)
    sign = np.sign((found.clean - found.corrupted).mean())
    np.testing.assert_allclose(found.effects, sign * expected, atol=1e-9)
    assert (found.values >= 0).all()


@pytest.mark.parametrize("repairs", [{}, {"grad_drop": True}])
@pytest.mark.parametrize("site", ["z", "k"])
def test_batches_and_budgets_change_nothing(doubles, site, repairs):
    model, task = doubles("gemma2"), random_task(lengths=(9, 6, 9, 7))

    def run(some, budget):
        if not repairs:
            return attribution_patching(model, some, site=site, budget_gb=budget)
        return atp_star(model, some, site=site, budget_gb=budget, **repairs)

    whole = run(task, 1.0)
    assert whole.extra["passes"]["batches"] == 1
    assert whole.extra["passes"]["forwards"] == 2
    assert whole.extra["passes"]["backwards"] == (model.n_layers if repairs else 1)
    for budget in (1e-3, 2e-5):
        small = run(task, budget)
        assert small.extra["passes"]["batches"] > 1
        np.testing.assert_allclose(small.effects, whole.effects, atol=1e-9)
    sign = np.sign(whole.gap) if repairs else 1
    for i, pair in enumerate(task.pairs):
        alone = run(Task(name="one", pairs=(pair,)), 1.0)
        own = np.sign(alone.gap) if repairs else 1
        np.testing.assert_allclose(own * alone.effects[0], sign * whole.effects[i], atol=1e-9)


@pytest.mark.parametrize(("site", "grad_drop"), [("z", False), ("z", True), ("k", True)])
def test_passes_by_the_engine_s_own_calls(doubles, monkeypatch, site, grad_drop):
    """2 forward and 1 backward; with GradDrop one backward for every layer, from it down."""
    model, calls = doubles("llama"), {"block": 0, "grad": 0}
    block, grad = gradients.block_sites, torch.autograd.grad

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(gradients, "block_sites", counted("block", block))
    monkeypatch.setattr(torch.autograd, "grad", counted("grad", grad))
    task, layers = random_task(lengths=(8, 8)), model.n_layers
    if grad_drop:
        atp_star(model, task, site=site)
    else:
        attribution_patching(model, task, site=site)
    assert calls["block"] == 2 * layers
    dropped = sum(range(1, layers)) if grad_drop else 0
    assert calls["grad"] == 1 + layers + dropped


@pytest.mark.parametrize("site", ["k", "v"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_a_shared_key_or_value_counts_for_all_its_queries(doubles, name, site):
    """Against the same model with a copy of each key/value head for every query head."""
    model, task = doubles(name), random_task(lengths=(6, 8))
    graph = graph_of(model, expand_kv=True)
    wide = dataclasses.replace(
        model, decoder=edge_runner(model.decoder, graph).decoder, n_kv_heads=model.n_heads
    )
    share = model.n_heads // model.n_kv_heads
    assert share > 1
    for run in (attribution_patching, partial(atp_star, grad_drop=False)):
        native = run(model, task, site=site, by=("layer", "kv_head")).effects
        copies = run(wide, task, site=site, by=("layer", "kv_head")).effects
        summed = copies.reshape(*native.shape, share).sum(-1)
        np.testing.assert_allclose(summed, native, atol=1e-9)


def test_axes_positions_and_choices(doubles):
    model, task = doubles("qwen2"), random_task(lengths=(8, 8))
    whole = attribution_patching(model, task)
    swept = attribution_patching(model, task, by=("layer", "head", "position"))
    assert swept.axes == ("layer", "head", "position")
    np.testing.assert_allclose(swept.effects.sum(-1), whole.effects, atol=1e-9)
    named = attribution_patching(model, task, positions=["changed", "near_end"])
    np.testing.assert_allclose(
        named.effects, swept.effects[..., 2] + swept.effects[..., 6], atol=1e-9
    )
    rows = attribution_patching(model, task, by=("layer",))
    np.testing.assert_allclose(rows.effects, whole.effects.sum(-1), atol=1e-9)
    some = attribution_patching(model, task, layers=[2, 0], components=[3, 1])
    assert some.coordinates == {"layer": ("0", "2"), "head": ("1", "3")}
    np.testing.assert_allclose(some.effects, whole.effects[:, [0, 2]][:, :, [1, 3]], atol=1e-12)
    assert some.top(1)[0].label.startswith("L")
    assert "layers=[0, 2]" in some.provenance.call
    # All queries of a layer together: heads are independent, so their effects add up.
    layer = atp_star(model, task, by=("layer",), grad_drop=False)
    heads = atp_star(model, task, grad_drop=False)
    np.testing.assert_allclose(layer.effects, heads.effects.sum(-1), atol=1e-9)


def test_files_and_progress(family_models, tmp_path):
    calls = []
    scores = attribution_patching(
        family_models["gpt2"], random_task(), progress=lambda done, of: calls.append((done, of))
    )
    assert calls[-1] == (4, 4)
    loaded = Scores.load(scores.save(tmp_path / "scores"))
    assert loaded.hash == scores.hash


def test_finds_what_exact_patching_finds(toy):
    """The toy's own heads: attention there is saturated, so the plain estimate misses queries."""
    from interp.tasks.registry import load_task

    task = load_task("toy-induction").first(16)
    exact = activation_patching(toy, task, site="k", by=("layer", "kv_head"))
    fixed = atp_star(toy, task, site="k", by=("layer", "kv_head"), grad_drop=False)
    plain = attribution_patching(toy, task, site="k", by=("layer", "kv_head"))
    assert exact.top(1)[0].label == fixed.top(1)[0].label == "L1KV1.k"
    assert abs(fixed.top(1)[0].value - 1) < 0.1
    assert np.abs(plain.values).max() < 0.5


SOURCES = ("zero", "mean")


def test_metrics_and_requests_are_refused(family_models, monkeypatch):
    model, task = family_models["llama"], random_task()
    same = dataclasses.replace(task.pairs[0], corrupted=task.pairs[0].clean)
    with pytest.raises(InterpError, match="equal in 2 of 2"):
        attribution_patching(model, Task(name="same", pairs=(same, same)))
    monkeypatch.setattr(spec, "check_gap", lambda clean, corrupted: None)
    others = {"zero": None, "mean": random_task(seed=4)}
    passes = {
        s: attribution_patching(model, task, source=s, reference=others[s]).extra["passes"]
        for s in SOURCES
    }
    assert {s: counts["forwards"] for s, counts in passes.items()} == {"zero": 2, "mean": 3}
    kl = task.with_metric(METRICS["kl"])
    for function in (attribution_patching, atp_star):
        with pytest.raises(InterpError, match="direction='denoise'"):
            function(model, kl, direction="noise")
        assert np.abs(function(model, kl).values).max() > 0
    constant = Metric(name="flat", unit="", function=lambda r, t: 0 * r.all().sum(1))
    with pytest.raises(InterpError, match="gradient is zero"):
        attribution_patching(model, task.with_metric(constant))
    hard = Metric(name="hits", unit="", function=lambda r, t: (r.all().argmax(1) > 9).double())
    with pytest.raises(InterpError, match="differentiable"):
        attribution_patching(model, task.with_metric(hard))
    for options, words in (
        ({"site": "zz"}, "did you mean"),
        ({"direction": "up"}, "denoise"),
        ({"layers": [9]}, "layers 0 to 2"),
        ({"components": [9]}, "heads 0 to 3"),
        ({"by": ("layer",), "components": [1]}, "not in by"),
        ({"site": "pattern", "source": "zero"}, "queries and keys"),
        ({"site": "pattern", "source": "mean"}, "queries and keys"),
        ({"source": "mean"}, "no reference prompts"),
        ({"source": "mean", "reference": task}, "evaluated prompts are among"),
        ({"source": "zero", "reference": others["mean"]}, "not used"),
        ({"positions": []}, "positions=\\[\\]: no position"),
        ({"cancelled": lambda: True}, "stopped after 0"),
    ):
        with pytest.raises(InterpError, match=words):
            attribution_patching(model, task, **options)
    with pytest.raises(InterpError, match="grad_drop=False"):
        atp_star(model, task, site="resid_pre", by=("layer",))
    with intervene(model, [zero("L0H0")]), pytest.raises(InterpError, match="inside"):
        attribution_patching(model, task)
    experts = family_models["mixtral"]
    with pytest.raises(InterpError, match="the choice of experts jumps"):
        attribution_patching(experts, task, site="router", by=("layer", "expert"))
    with pytest.raises(InterpError, match="use a known family"):
        attribution_patching(dataclasses.replace(model, decoder=None), task)
