"""Path patching equals the three hooked passes it stands for."""

import numpy as np
import pytest

from interp.core.components import SITES, Component
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.core.metrics import Logits
from interp.models.loading import load_model
from interp.patching import path as paths
from interp.patching import path_runner, spec
from interp.patching.activation import activation_patching
from interp.patching.path import path_key, path_patching
from interp.patching.path_runner import PathRunner
from interp.patching.path_spec import PathSpec
from interp.results.store import stored
from interp.runs.pairs import paired_runs
from interp.runs.stored_runs import keep_runs
from interp.tasks.registry import load_task
from tests.families import random_task


def three_passes(model, task, receivers, sender, freeze_mlps):
    """One sender, three runs through TransformerLens hooks, nothing shared or skipped."""
    runs = paired_runs(model, task, "noise")

    def keep(kept, site, layer):
        def hook(value, batch):
            for row, prompt in enumerate(batch.prompts.tolist()):
                kept[site, layer, prompt] = value[row].clone()
            return value

        return hook

    def put(source, site, layer, part=None):
        def hook(value, batch):
            changed = value.clone()
            for row, prompt in enumerate(batch.prompts.tolist()):
                new = source[site, layer, prompt]
                if part is None:
                    changed[row] = new
                else:
                    changed[row, :, part] = new[:, part]
            return changed

        return hook

    places = [(layer, site) for layer in range(model.n_layers) for site in ("z", "mlp_out")]
    base, other, seen = {}, {}, {}
    plain = model.last_logits(runs.base, hooks={(p): [keep(base, p[1], p[0])] for p in places})
    model.last_logits(runs.other, hooks={p: [keep(other, p[1], p[0])] for p in places})
    second = {}
    for layer, site in places:
        hooks = second[layer, site] = []
        if (site, layer) in [(r.site, r.layer) for r in receivers]:
            hooks.append(keep(seen, site, layer))
        if site == "z" or freeze_mlps:
            hooks.append(put(base, site, layer))
        if (layer, site) == (sender.layer, sender.site):
            hooks.append(put(other, site, layer, sender.index))
    for receiver in receivers:
        if receiver.site != "mlp_out":
            place = (receiver.layer, receiver.site)
            second[place] = [keep(seen, receiver.site, receiver.layer)]
    patched = model.last_logits(runs.base, hooks=second)
    if receivers:
        third = {}
        for r in receivers:
            third.setdefault((r.layer, r.site), []).append(put(seen, r.site, r.layer, r.index))
        patched = model.last_logits(runs.base, hooks=third)
    before, after = (task.metric(Logits(v), runs.targets).numpy() for v in (plain, patched))
    return before - after


@pytest.mark.parametrize("freeze_mlps", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "labels",
    [
        ["logits"],
        ["L2H1.q"],
        ["L1KV1.k", "L2KV0.v"],
        ["L2.mlp_out"],
        ["L1H3.q", "L2.k"],
        ["L1N7"],
        ["L1N7", "L2N5", "L2N40", "L1N30", "L2H2.q"],
    ],
)
def test_equals_three_hooked_passes(every_family, labels, freeze_mlps, monkeypatch):
    monkeypatch.setattr(paths, "check_gap", lambda clean, corrupted: None)
    task = random_task(lengths=(7, 9))
    parts = [] if labels == ["logits"] else [Component.parse(label) for label in labels]
    for part in parts:
        if every_family.sites[part.site] is not None:
            pytest.skip(every_family.sites[part.site])
        if part.index is not None and part.index >= every_family.size(SITES[part.site]):
            pytest.skip("fewer key/value heads")
    for senders, site in (("heads", "z"), ("mlps", "mlp_out")):
        options = {"senders": senders, "freeze_mlps": freeze_mlps, "cache": False}
        scores = path_patching(every_family, task, receivers=labels, **options)
        for layer in range(every_family.n_layers):
            index = 2 if senders == "heads" else None
            expected = three_passes(
                every_family, task, parts, Component(layer, site, index), freeze_mlps
            )
            found = scores.effects[:, layer, 2] if senders == "heads" else scores.effects[:, layer]
            np.testing.assert_allclose(found, expected, atol=3e-5)


@pytest.mark.parametrize("labels", [["logits"], ["L2H1.q", "L1.k"], ["L1N7", "L2.mlp_out"]])
@pytest.mark.parametrize("senders", ["heads", "mlps"])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_kept_runs_give_the_same_effects(family, labels, senders, direction, monkeypatch):
    monkeypatch.setattr(paths, "check_gap", lambda clean, corrupted: None)
    task = random_task(lengths=(7, 9, 7))
    if any(family.sites[Component.parse(x).site] is not None for x in labels if x != "logits"):
        pytest.skip("a receiver that the family lacks")
    options = {"receivers": labels, "senders": senders, "direction": direction}
    options |= {"positions": ["near_end", "last"], "cache": False}
    runs = tuple(
        keep_runs(family, [getattr(pair, side) for pair in task.pairs], last=2)
        for side in ("clean", "corrupted")
    )
    slow, fast = (path_patching(family, task, **options, runs=each) for each in (None, runs))
    assert np.abs(slow.effects).max() > 1e-3
    np.testing.assert_allclose(fast.effects, slow.effects, atol=3e-5)
    np.testing.assert_allclose(fast.clean, slow.clean, atol=3e-5)


def test_kept_runs_that_do_not_fit_are_refused(family_models):
    model, task = family_models["llama"], random_task(lengths=(7, 9))
    runs = [
        keep_runs(model, [getattr(pair, side) for pair in task.pairs], last=1)
        for side in ("clean", "corrupted")
    ]
    for given, positions in ((runs[::-1], "last"), (runs, "all")):
        with pytest.raises(InterpError, match="in kept runs"):
            path_patching(model, task, receivers="logits", positions=positions, runs=given)


@pytest.mark.long
def test_toy_paths_follow_the_planted_edges():
    """Previous-token head -> the induction head's keys, and not its queries or values."""
    model, task = load_model("toy-induction"), load_task("toy-induction")
    into_keys = path_patching(model, task, receivers=["L1.k"], layers=[0])
    assert into_keys.top(1)[0].label == "L0H1"
    assert into_keys.top(1)[0].value == pytest.approx(1, abs=0.01)
    for site in ("q", "v"):
        other = path_patching(model, task, receivers=[f"L1.{site}"], layers=[0])
        assert np.abs(other.values).max() < 0.01
    direct = path_patching(model, task, receivers=["logits"])
    assert [one.label for one in direct.top(1)] == ["L1H2"]
    assert abs(direct.values[0]).max() < 0.01


@pytest.mark.parametrize("positions", ["all", ["changed"]])
@pytest.mark.parametrize("senders", ["heads", "mlps"])
def test_all_neurons_of_a_layer_are_its_mlp(family, senders, positions, monkeypatch):
    monkeypatch.setattr(paths, "check_gap", lambda clean, corrupted: None)
    task = random_task(lengths=(5, 6))  # short, for some families look back four tokens only
    each = [f"L1N{i}" for i in range(family.d_mlp)]
    one, parts, site = (
        path_patching(
            family, task, receivers=into, senders=senders, positions=positions, cache=False
        ).effects
        for into in (["L1.mlp_out"], each, ["L1.post", "L1N3"])
    )
    assert np.abs(one).max() > 1e-3
    np.testing.assert_allclose(parts, one, atol=2e-5)
    np.testing.assert_allclose(site, one, atol=2e-5)


@pytest.mark.long
def test_only_the_copier_speaks_to_the_planted_neuron():
    """L0H2 brings the target to the result, where L1N3 alone compares them."""
    model, task = load_model("toy-verification"), load_task("toy-verification")
    into = path_patching(model, task, receivers=["L1N3"])
    assert into.top(1)[0].label == "L0H2"
    assert into.top(1)[0].value == pytest.approx(1, abs=0.01)
    assert np.abs(np.delete(into.values.ravel(), 2)).max() < 0.01
    others = [f"L1N{i}" for i in range(model.d_mlp) if i != 3]
    assert np.abs(path_patching(model, task, receivers=others).values).max() < 0.01
    bracket = path_patching(model, task, receivers=["L1N3"], positions="last")
    assert np.abs(bracket.values).max() < 0.01


def test_into_logits_with_held_mlps_sums_to_the_last_layer(family, monkeypatch):
    """Into the logits, the last layer's heads have their whole activation-patching effect."""
    for module in (paths, spec):
        monkeypatch.setattr(module, "check_gap", lambda clean, corrupted: None)
    task, last = random_task(lengths=(8, 8)), family.n_layers - 1
    path = path_patching(family, task, receivers=["logits"], layers=[last])
    whole = activation_patching(family, task, layers=[last], direction="noise")
    np.testing.assert_allclose(path.effects, whole.effects, atol=2e-5)


def test_two_plain_runs_and_one_batch_of_senders_per_prompt(family_models, monkeypatch):
    """Step 3 restarts each sender once, from the receivers' layer on; step 2 runs no attention."""
    model, task, calls = family_models["llama"], random_task(), {"plain": 0, "rows": []}
    monkeypatch.setattr(paths, "check_gap", lambda clean, corrupted: None)
    plain, again = path_runner.baseline, path_runner.restart

    def counted(*args, **options):
        calls["plain"] += 1
        return plain(*args, **options)

    def restarted(runner, base, variants, **options):
        calls["rows"].append(len(variants.prompt))
        assert (variants.layer == 2).all()
        return again(runner, base, variants, **options)

    monkeypatch.setattr(path_runner, "baseline", counted)
    monkeypatch.setattr(path_runner, "restart", restarted)
    path_patching(model, task, receivers=["L2H1.q", "L2KV0.v"], cache=False)
    assert calls["plain"] == 2 * len(task)
    assert calls["rows"] == [2 * model.n_heads] * len(task)


def test_upstream_senders_only(family_models, monkeypatch):
    monkeypatch.setattr(paths, "check_gap", lambda clean, corrupted: None)
    scores = path_patching(family_models["llama"], random_task(), receivers=["L1H0.q"])
    assert scores.effects[:, 0].any()
    assert not scores.effects[:, 1:].any()


@pytest.mark.parametrize(
    "labels", [["L9H0.q"], ["L1KV3.k"], ["L1H1"], ["L1N48"], ["L1N3.pre"], ["logits", "L1.q"], []]
)
def test_bad_receivers_are_refused(family_models, labels):
    with pytest.raises(InterpError):
        path_patching(family_models["llama"], random_task(), receivers=labels)


def test_interrupted_and_bad_layers(family_models):
    model = family_models["llama"]
    with pytest.raises(InterpError, match="stopped after 0"):
        path_patching(model, random_task(), receivers=["logits"], cancelled=lambda: True)
    with pytest.raises(InterpError, match="positions=\\[\\]: no position"):
        path_patching(model, random_task(), receivers=["logits"], positions=[])
    for layers in ([99], [-1], []):
        with pytest.raises(InterpError, match="layers 0 to 2"):
            path_patching(model, random_task(), receivers=["logits"], layers=layers)


def test_resumes_prompt_by_prompt(family_models, monkeypatch):
    monkeypatch.setattr(paths, "check_gap", lambda clean, corrupted: None)
    model, task = family_models["llama"], random_task()
    whole = path_patching(model, task, receivers=["L2H1.q"], cache=False)
    done = [0]
    tell = {"progress": lambda now, n: done.append(now), "cancelled": lambda: done[-1] >= 2}
    with pytest.raises(InterpError, match="stopped after 2"):
        path_patching(model, task, receivers=["L2H1.q"], **tell)
    ran, inner = [], PathRunner.effects
    monkeypatch.setattr(PathRunner, "effects", lambda *a: ran.append(1) or inner(*a))
    resumed = path_patching(model, task, receivers=["L2H1.q"])
    assert len(ran) == len(task) - 2
    assert np.array_equal(resumed.effects, whole.effects)
    assert not list(cache_dir().glob("partial/*"))


@pytest.mark.parametrize(
    ("receivers", "layers", "positions"),
    [(["logits"], 3, 1), (["L2H1.q"], 2, None), (["L1.mlp_out"], 2, None), (["L1KV0.k"], 1, None)],
)
def test_mlps_are_recomputed_only_where_something_reads_them(
    family_models, receivers, layers, positions, monkeypatch
):
    """Into the logits at the last token alone, and never behind the last receiver."""
    model, task, rows = family_models["llama"], random_task(), []
    monkeypatch.setattr(paths, "check_gap", lambda clean, corrupted: None)
    runner, record = path_runner.Runner, PathRunner._record

    def recording(self, base, other, senders, where):
        mlp = self.runner.mlp_post

        def counted(block, x, layout):
            rows.append(len(x))
            return mlp(block, x, layout)

        monkeypatch.setattr(runner, "mlp_post", lambda self, *args: counted(*args))
        found = record(self, base, other, senders, where)
        monkeypatch.setattr(runner, "mlp_post", runner_mlp)
        return found

    runner_mlp = runner.mlp_post
    monkeypatch.setattr(PathRunner, "_record", recording)
    path_patching(model, task, receivers=receivers, cache=False)
    runs, each = paired_runs(model, task, "noise"), []
    for prompt, first in zip(runs.base, runs.differ, strict=True):
        each.append(positions or len(prompt) - int(first))
    each = [sum(each)] if receivers == ["logits"] else each  # all prompts together
    assert rows == [
        model.n_heads * (layer + 1) * tokens for tokens in each for layer in range(layers)
    ]


def test_the_key_names_the_kept_result(family_models) -> None:
    model, task = family_models["llama"], random_task()
    paths = {"receivers": ["L1H0.q"], "direction": "denoise", "unit": "metric"}
    key = path_key(model, task, PathSpec(**paths))
    assert stored(key) is None
    scores = path_patching(model, task, **paths)
    assert stored(key).hash == scores.hash
    assert path_key(model, task, PathSpec(**paths | {"receivers": ["L1H1.q"]})) != key
