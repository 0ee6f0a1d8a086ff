"""The fast engine equals one hooked forward pass per cell, everywhere; theorems; files; faults."""

import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import interp
from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.core.metrics import METRICS, Logits, Metric
from interp.core.prompts import PromptPair, Task
from interp.engine import sweep
from interp.engine.forward import Runner
from interp.models.loading import load_model, wrap
from interp.models.toys.circuits import TOYS, build_toy
from interp.patching import activation as patching
from interp.patching import joint, spec
from interp.patching.activation import activation_patching
from interp.patching.joint import joint_patching
from interp.tasks.registry import load_task
from tests.families import FAMILIES, random_task, tiny, true_double

NEURONS = (0, 5, 17)


@pytest.fixture
def any_gap(monkeypatch):
    """Random models need not tell prompts apart: compare raw effects."""
    for module in (spec, joint):
        monkeypatch.setattr(module, "check_gap", lambda one, other: None)


def both(model, task, **options):
    """The same sweep by the fast engine and by the hook loop."""
    return (
        activation_patching(model, task, engine=engine, cache=False, **options)
        for engine in ("fast", "hooks")
    )


@pytest.mark.parametrize("site", SITES)
def test_fast_equals_hook_loop(every_family, site, any_gap):
    if every_family.sites[site] is not None:
        pytest.skip(every_family.sites[site])
    unit = SITES[site]
    sweeps = [
        {"by": ("layer",), "direction": "noise"},
        {"by": ("layer", "position"), "positions": ["changed", "near_end", "last"]},
        {"by": ("layer",), "positions": ["changed", "last"], "source": "zero"},
    ]
    if unit is not None:
        some = {"components": NEURONS} if unit == "neuron" else {}
        sweeps.append({"by": ("layer", unit), **some})
        sweeps.append({"by": ("layer", unit, "position"), "positions": ["changed", "last"], **some})
        if site != "pattern":
            mean = {"source": "mean", "reference": random_task((8, 6), seed=5)}
            sweeps.append({"by": ("layer", unit), "direction": "noise", **mean, **some})
    for options in sweeps:
        fast, slow = both(every_family, random_task(), site=site, **options)
        scale = max(1.0, np.abs(slow.clean).max())
        np.testing.assert_allclose(fast.effects, slow.effects, atol=2e-5 * scale, rtol=0)
        assert np.abs(slow.effects).max() > 1e-4, "a sweep that changes nothing proves nothing"


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_exact_in_float64(name, family_models, any_gap):
    with true_double():
        model = wrap(tiny(name, torch.float64), name=name, check=False)
        for site in ("z", "k", "mlp_out", "resid_pre", "q", "pattern"):
            if family_models[name].sites[site] is not None:
                continue
            axes = ("layer", SITES[site], "position") if SITES[site] else ("layer", "position")
            task = random_task(lengths=(8, 8))
            fast, slow = both(model, task, site=site, by=axes, positions=["changed", "last"])
            np.testing.assert_allclose(fast.effects, slow.effects, atol=1e-9, rtol=0)
            assert np.abs(slow.effects).max() > 1e-3


def test_all_positions_axis(family_models, any_gap):
    task = random_task(lengths=(8, 8, 8))
    fast, slow = both(family_models["llama"], task, by=("layer", "head", "position"))
    np.testing.assert_allclose(fast.effects, slow.effects, atol=2e-5)
    assert not fast.effects[..., :2].any(), "nothing before the first difference matters"
    with pytest.raises(InterpError, match="7 to 9 tokens"):
        activation_patching(
            family_models["llama"], random_task(), by=("layer", "position"), site="resid_pre"
        )


@pytest.mark.parametrize("metric", ["prob_diff", "log_odds", "kl"])
def test_other_metrics(family_models, metric, any_gap):
    task = random_task().with_metric(METRICS[metric])
    fast, slow = both(family_models["gemma2"], task, site="z")
    np.testing.assert_allclose(fast.effects, slow.effects, atol=2e-5)


def test_any_function_is_a_metric(family_models, any_gap):
    entropy = Metric(
        name="entropy",
        unit="nats",
        function=lambda readout, targets: torch.distributions.Categorical(
            logits=readout.all()
        ).entropy(),
    )
    task = random_task().with_metric(entropy)
    model = family_models["gpt2"]
    fast, slow = both(model, task, site="mlp_out", by=("layer",))
    np.testing.assert_allclose(fast.effects, slow.effects, atol=2e-5)
    # Another function under the same name is another metric: nothing is read from the cache.
    activation_patching(model, task, site="mlp_out", by=("layer",))
    twice = Metric(name="entropy", unit="nats", function=lambda r, t: 2 * entropy.function(r, t))
    doubled = activation_patching(model, task.with_metric(twice), site="mlp_out", by=("layer",))
    np.testing.assert_allclose(doubled.effects, 2 * fast.effects, atol=1e-5)


def test_patching_everything_is_the_other_run(family, any_gap):
    """resid_pre of layer 0 is the whole input; resid_post of the last layer the whole output."""
    for direction in ("denoise", "noise"):
        for site, layer in (("resid_pre", 0), ("resid_post", family.n_layers - 1)):
            scores = activation_patching(
                family, random_task(), site=site, by=("layer",), layers=[layer], direction=direction
            )
            np.testing.assert_allclose(scores.values, 1.0, atol=1e-4)


def test_equal_prompts_have_no_effect_and_no_gap(family_models):
    pair = PromptPair(clean=(5, 6, 7), corrupted=(5, 6, 7), answers=(8,), wrong=(9,))
    with pytest.raises(InterpError, match="gap"):
        activation_patching(family_models["llama"], Task(name="same", pairs=(pair, pair)))


def test_prompts_do_not_depend_on_each_other(family_models, any_gap):
    """One at a time, or all in one call of mixed lengths: the same numbers."""
    task = random_task(lengths=(9, 7, 12, 5))
    together = activation_patching(family_models["qwen3"], task, cache=False)
    for i, pair in enumerate(task.pairs):
        alone = activation_patching(
            family_models["qwen3"], Task(name="one", pairs=(pair,)), cache=False
        )
        np.testing.assert_allclose(alone.effects[0], together.effects[i], atol=2e-6)


def test_chunking_changes_nothing(family_models, any_gap, monkeypatch):
    whole = activation_patching(family_models["llama"], random_task(), cache=False)
    monkeypatch.setattr(sweep, "CPU_TILE", 16)
    small = activation_patching(
        family_models["llama"], random_task(), cache=False, budget_gb=0.0005
    )
    np.testing.assert_allclose(small.effects, whole.effects, atol=2e-6)
    with pytest.raises(InterpError, match="raise budget_gb"):
        activation_patching(family_models["llama"], random_task(), cache=False, budget_gb=1e-6)


def test_interrupted_sweep_resumes_with_the_same_bits(family_models, any_gap, monkeypatch):
    monkeypatch.setattr(sweep, "CPU_TILE", 32)
    model, task = family_models["llama"], random_task()
    whole = activation_patching(model, task, cache=False)
    done = [0]
    tell = {"progress": lambda now, n: done.append(now), "cancelled": lambda: done[-1] >= 5}
    with pytest.raises(InterpError, match="stopped after 5"):
        activation_patching(model, task, **tell)
    saved = sorted(interp.core.files.cache_dir().glob("partial/*/chunk-*.safetensors"))
    assert len(saved) == 5 + 1  # the last one holds the unpatched runs
    saved[-2].write_bytes(saved[-2].read_bytes()[:20])  # as a killed writer would leave it
    ran = []
    patched = sweep.StoredPrompts.patched
    monkeypatch.setattr(
        sweep.StoredPrompts, "patched", lambda self, cells: ran.append(1) or patched(self, cells)
    )
    total = []
    resumed = activation_patching(model, task, progress=lambda done, n: total.append(n))
    assert len(ran) == total[0] - 4
    assert np.array_equal(resumed.effects, whole.effects)
    assert not list(interp.core.files.cache_dir().glob("partial/*"))


def test_a_run_is_stopped_within_a_layer(family_models, any_gap, monkeypatch):
    """Between chunks is not enough: one takes seconds where the model is large."""
    model, task, layers, attention = family_models["llama"], random_task(), [], Runner.attention

    def counted(self, layer, *args, **options):
        layers.append(layer)
        return attention(self, layer, *args, **options)

    monkeypatch.setattr(Runner, "attention", counted)
    with pytest.raises(InterpError, match="the run: cancelled"):
        activation_patching(model, task, cancelled=lambda: len(layers) >= 2)
    assert layers == [0, 1]
    activation_patching(model, task, cache=False)  # no longer asked
    assert len(layers) > 2


def test_hook_loop_resumes_too(family_models, any_gap, monkeypatch):
    model, task = family_models["llama"], random_task()
    whole = activation_patching(model, task, engine="hooks", cache=False)
    asked = iter(range(99))
    with pytest.raises(InterpError, match="stopped after 7"):
        activation_patching(model, task, engine="hooks", cancelled=lambda: next(asked) >= 7)
    ran, inner = [], type(model).tail_logits
    monkeypatch.setattr(type(model), "tail_logits", lambda *a, **k: ran.append(1) or inner(*a, **k))
    resumed = activation_patching(model, task, engine="hooks")
    assert len(ran) == 2 + 12 - 7  # both plain runs, and the cells that were left
    assert np.array_equal(resumed.effects, whole.effects)


def test_killed_sweep_resumes_with_the_same_bits():
    """kill -9 in the middle: what was saved is used, and the result is that of one run."""
    script = (
        "import time, torch, interp\n"
        "from interp.engine import sweep\n"
        "torch.set_num_threads(1)\n"
        "sweep.CPU_TILE = 32\n"
        "model, task = interp.load_model('toy-or'), interp.load_task('toy-or')\n"
        "interp.activation_patching(model, task, progress=lambda done, n: time.sleep(0.2))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script])
    chunks = interp.core.files.cache_dir().glob
    while len(list(chunks("partial/*/chunk-*.safetensors"))) < 3:
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    child.kill()
    child.wait()
    saved = len(list(chunks("partial/*/chunk-*.safetensors")))
    model, task = load_model("toy-or"), load_task("toy-or")
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "CPU_TILE", 32)
        whole = activation_patching(model, task, cache=False)
        inner = sweep.StoredPrompts.patched
        patch.setattr(
            sweep.StoredPrompts, "patched", lambda s, cells: ran.append(1) or inner(s, cells)
        )
        total = []
        resumed = activation_patching(model, task, progress=lambda done, n: total.append(n))
    assert len(ran) == total[0] - (saved - 1)  # one file holds the unpatched runs
    assert np.array_equal(resumed.effects, whole.effects)


def test_stored_result_is_found_and_a_damaged_one_recomputed(family_models, any_gap, monkeypatch):
    model, task = family_models["llama"], random_task()
    first = activation_patching(model, task)
    path = next(interp.core.files.cache_dir().glob("results/*.safetensors"))
    monkeypatch.setattr(patching, "run_sweep", lambda *a, **k: pytest.fail("ran again"))
    assert np.array_equal(activation_patching(model, task).effects, first.effects)
    path.write_bytes(path.read_bytes()[:-8])
    monkeypatch.undo()
    monkeypatch.setattr(spec, "check_gap", lambda clean, corrupted: None)
    monkeypatch.setenv("INTERP_CACHE", str(path.parent.parent))
    assert np.array_equal(activation_patching(model, task).effects, first.effects)
    shutil.rmtree(path.parent.parent)


@pytest.mark.parametrize("name", TOYS)
def test_planted_circuit_is_found(name):
    """Every planted head has an effect in one of the directions; no other component has."""
    toy, model = build_toy(name), load_model(name)
    task = load_task(name)
    for site, kind in (("z", "H"), ("post", "N")):
        planted = {label for label in toy.circuit if kind in label}
        found = set()
        for direction in ("denoise", "noise"):
            unit = SITES[site]
            scores = activation_patching(
                model, task, site=site, by=("layer", unit), direction=direction
            )
            strong = [one.label for one in scores.top(99) if abs(one.value) > 0.01]
            found |= set(strong)
        assert found == planted


@pytest.mark.long
def test_or_and_and_need_joint_patching():
    """Single patches miss an OR when noising and an AND when denoising; together they show."""
    for name, direction in (("toy-or", "noise"), ("toy-and", "denoise")):
        model, task = load_model(name), load_task(name)
        alone = activation_patching(model, task, direction=direction, layers=[0])
        assert np.abs(alone.values).max() < 0.01
        found = joint_patching(model, task, ["L0H1", "L0H2"], direction=direction, draws=5)
        assert found.effect.mean == pytest.approx(1.0, abs=0.01)
        assert found.null is not None
        assert abs(found.null.mean) < 0.01
        # The whole gap on every prompt: no flip is as strong but none at all.
        assert found.flips.p == found.flips.least
        assert found.flips.observed == pytest.approx(found.effect.mean)
        assert "p = " in str(found)
        assert "rank 1 of 6" in str(found)


def test_joint_patching_equals_interventions(every_family, any_gap):
    """The set effect equals nested hooks through TransformerLens."""
    task, parts = random_task(), ["L0H1", "L1H2.q", "L1KV0.v", "L2.mlp_out"]
    parts += ["L0E2", "L1E1.router"] if every_family.n_experts else []
    clean = [pair.clean for pair in task.pairs]
    corrupted = [pair.corrupted for pair in task.pairs]
    from interp.runs.hooks import intervene
    from interp.runs.kinds import patch

    together = joint_patching(every_family, task, parts, draws=0)
    encoded = task.encode(every_family)
    patches = [patch(every_family, part, clean) for part in parts]
    with intervene(every_family, patches):
        logits = every_family.last_logits(corrupted)
    plain, top = every_family.last_logits(corrupted), every_family.last_logits(clean)

    def metric(values):
        return task.metric(interp.core.metrics.Logits(values), encoded.targets)

    gap = (metric(top) - metric(plain)).mean()
    expected = (metric(logits) - metric(plain)).mean() / gap
    assert together.effect.mean == pytest.approx(float(expected), abs=1e-4, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "zz"}, "did you mean 'z'"),
        ({"site": "resid_mid"}, "parallel"),
        ({"by": ("head",)}, "name 'layer'"),
        ({"site": "mlp_out", "by": ("layer", "head")}, "axes of mlp_out"),
        ({"direction": "sideways"}, "denoise"),
        ({"layers": [7]}, "0 to 2"),
        ({"layers": []}, "0 to 2"),
        ({"layers": ["0"]}, "whole numbers"),
        ({"positions": []}, "positions=\\[\\]: no position"),
        ({"positions": "nowhere"}, "this prompt has"),
        ({"source": "median"}, "mean"),
        ({"source": "mean"}, "no reference prompts"),
        ({"source": "mean", "reference": random_task()}, "8 evaluated prompts are among"),
        ({"source": "zero", "reference": random_task(seed=1)}, "not used"),
        ({"source": "mean", "site": "pattern", "reference": random_task(seed=1)}, "differ in keys"),
        ({"engine": "warp"}, "hooks"),
    ],
)
def test_bad_input_is_refused_with_advice(family_models, options, message):
    with pytest.raises(InterpError, match=message):
        activation_patching(family_models["neox"], random_task(), **options)


def test_joint_refuses_what_is_not_there(family_models):
    for labels in (["L99H0"], ["L0H99"], [], ["L0.pattern"], ["L0N5.pre"]):
        with pytest.raises(InterpError):
            joint_patching(family_models["llama"], random_task(), labels)


def test_a_mean_is_over_the_reference_and_kept_by_it(family_models, any_gap):
    model, task = family_models["llama"], random_task()
    options = {"site": "mlp_out", "by": ("layer",), "source": "mean", "direction": "noise"}
    one, two = (random_task((6, 7), seed=seed) for seed in (1, 2))
    found = [activation_patching(model, task, reference=r, **options) for r in (one, two, one)]
    assert np.array_equal(found[0].effects, found[2].effects)
    assert np.abs(found[0].effects - found[1].effects).max() > 1e-4
    assert found[0].provenance.call.endswith("source='mean', reference=own_reference)")
    # By hand: the mean over all tokens of the reference's runs, in place of every layer's MLP.
    encoded, kept = one.encode(model), []
    assert encoded.corrupted is not None

    def keep(value, batch):
        kept.append(value[0])
        return value

    for prompt in [*encoded.clean, *encoded.corrupted]:
        model.last_logits([prompt], hooks={(1, "mlp_out"): [keep]})
    mean = torch.cat(kept).mean(0)
    hooks = {(1, "mlp_out"): [lambda value, batch: mean.expand_as(value)]}
    changed = task.encode(model)
    logits = [model.last_logits(changed.clean, hooks=h) for h in ({}, hooks)]
    plain, patched = (task.metric(Logits(x), changed.targets).numpy() for x in logits)
    np.testing.assert_allclose(found[0].effects[:, 1], plain - patched, atol=2e-5)


def test_numpy_numbers_and_reproducing_code(any_gap, family_models):
    model = family_models["llama"]
    scores = activation_patching(
        model, random_task(), layers=np.arange(2), components=np.array([0, 2]), direction="noise"
    )
    call = scores.provenance.call.splitlines()[-1]
    assert "layers=[0, 1], components=[0, 2]" in call
    assert "np." not in call
    again = eval(
        call.removeprefix("scores = "), {"interp": interp, "model": model, "task": random_task()}
    )
    assert np.array_equal(again.effects, scores.effects)


def test_two_tokenisers_do_not_share_results(tmp_path, any_gap):
    """The same weights and text, other tokens: another result."""
    from transformers import AutoTokenizer

    from interp.models.toys.build import save_tokenizer

    toy = build_toy("toy-or")
    save_tokenizer(toy.vocabulary, tmp_path)
    plain = load_model("toy-or")
    swapped = AutoTokenizer.from_pretrained(tmp_path)
    inner = swapped.__call__

    class Doubling(type(swapped)):
        """A tokeniser that repeats the first token, as one that adds a BOS would."""

        def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False):
            encoded = inner(text, return_offsets_mapping=True)
            ids, spans = encoded["input_ids"], encoded["offset_mapping"]
            if add_special_tokens:
                ids, spans = [ids[0], *ids], [(0, 0), *spans]
            return {"input_ids": ids, "offset_mapping": spans}

    other = load_model("toy-or")
    swapped.__class__ = Doubling
    other.tokenizer = swapped
    assert other.hash == plain.hash
    first = activation_patching(plain, load_task("toy-or"))
    second = activation_patching(other, load_task("toy-or"))
    fresh = activation_patching(other, load_task("toy-or"), cache=False)
    assert np.array_equal(second.effects, fresh.effects)
    assert len(plain.tokenize("<bos> on").tokens) != len(other.tokenize("<bos> on").tokens)
    assert first.n == second.n


def test_budget_belongs_to_the_run_not_to_the_result(any_gap, family_models, monkeypatch):
    first = activation_patching(family_models["llama"], random_task(), budget_gb=0.5)
    monkeypatch.setattr(patching, "run_sweep", lambda *a, **k: pytest.fail("ran again"))
    again = activation_patching(family_models["llama"], random_task(), budget_gb=2.0)
    assert np.array_equal(again.effects, first.effects)


def test_result_survives_a_disk_that_does_not_take_it(any_gap, family_models, monkeypatch):
    def full(self, path, **options):
        raise InterpError("writing", "No space left on device", "free some space")

    monkeypatch.setattr(interp.Scores, "save", full)
    with pytest.warns(UserWarning, match="not kept"):
        scores = activation_patching(family_models["llama"], random_task())
    assert scores.n == 4


def test_floor_and_cost_by_hand():
    """The arithmetic of one cell of a two-layer model, written out."""
    from interp.engine.cost import floor_flops
    from interp.patching.spec import PatchSpec
    from interp.patching.sweep import cost, make_sweep

    model = load_model("toy-or")  # d 64, 4 heads of 16 over 2 k/v heads, 8 neurons, 2 layers
    task = load_task("toy-or").first(1)
    asked = PatchSpec(site="z", layers=[0], components=[1], positions="last")
    sweep = make_sweep(model, task, asked)
    length = int(sweep.lengths[0])
    mlp, kv, qo = 2 * 64 * 8 * 3, 4 * 64 * 32, 4 * 64 * 64
    head, mixing = 2 * 16 * 64, 4 * 64 * length
    expected = head + mlp + kv + qo + mlp + mixing
    assert floor_flops(model.decoder, sweep.cells, sweep.lengths, "z") == expected
    found = cost(model, sweep)
    assert (found.runs, found.flops) == (1, expected)
    assert found.seconds > 0


def test_an_estimate_goes_by_the_last_run(monkeypatch):
    """Whatever a matrix product says, the pace of the model's own last sweep is better."""
    from interp.engine import cost as costs
    from interp.patching.spec import PatchSpec
    from interp.patching.sweep import cost, make_sweep

    model, task = load_model("toy-or"), load_task("toy-or")
    arguments = {"site": "z", "by": ("layer", "head")}
    monkeypatch.setattr(costs, "PACE", {})
    sweep = make_sweep(model, task, PatchSpec(**arguments))
    first = cost(model, sweep)
    assert not first.timed
    assert "between" in first.words or first.words == "seconds"
    clock = iter([100.0, 142.0])
    watch = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("interp.patching.activation.time", watch)
    activation_patching(model, task, **arguments)
    second = cost(model, sweep)
    assert (second.timed, second.words) == (True, "about 42 s")
    assert second.seconds == pytest.approx(42.0)
    half = make_sweep(model, task.first(len(task) // 2), PatchSpec(**arguments))
    assert 10 < cost(model, half).seconds < 32
    costs.PACE.clear()  # as in another process, which reads it in the cache
    assert cost(model, sweep) == second
    monkeypatch.setattr("platform.node", lambda: "another machine")
    assert not cost(model, sweep).timed


def test_only_one_process_on_the_engine_gives_the_pace(monkeypatch):
    """The hook loop and several processes have other speeds; cache=False writes nothing."""
    from interp.engine import cost as costs

    model, task = load_model("toy-or"), load_task("toy-or")
    monkeypatch.setattr(costs, "PACE", {})
    paces = interp.core.files.cache_dir() / "paces"
    activation_patching(model, task, engine="hooks")
    activation_patching(model, task, workers=1)
    assert not costs.PACE
    activation_patching(model, task, layers=[1], cache=False)
    assert costs.PACE
    assert not paces.exists()
    activation_patching(model, task, layers=[1])
    assert len(list(paces.iterdir())) == 1
