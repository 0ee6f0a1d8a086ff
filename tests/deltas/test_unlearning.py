"""Components by what they serve, and updates that follow their group's gradient."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.deltas.unlearning import ComponentGroups, group_components, relearning, unlearn
from interp.models.loading import plain_view
from interp.patching.activation import activation_patching
from interp.tasks.registry import load_task

FORGET = [("a b c d a b", " c"), ("e f g h e f", " g")]
RETAIN = [("a b c d e", " f"), ("c d e f g", " h")]
GROUPS = ComponentGroups(forget=("L1H2",), retain=("L0H1",), shared=("L1H0", "L1.mlp_out"))


@pytest.fixture(scope="module")
def tasks(toy):
    """Induction, and the same with the wrong answer exchanged: both need the same heads."""
    task = load_task("toy-induction", toy)
    return task.first(8), Task(name="other", pairs=task.pairs[8:16])


def test_groups_are_those_of_the_largest_effects(toy, tasks):
    found = group_components(toy, *tasks, top=2)
    for which, task in enumerate(tasks):
        heads = activation_patching(
            toy, task, site="z", by=("layer", "head"), direction="noise", cache=False
        )
        for one in heads.top(4):
            assert found.effects[one.label][which] == pytest.approx(one.value)
    assert {*found.shared} == {"L0H1", "L1H2"}  # what the toy is built of
    assert found.forget == found.retain == ()
    assert len(found.effects) == toy.n_layers * (toy.n_heads + 1)
    with pytest.raises(InterpError, match="choose fewer"):
        group_components(toy, *tasks, top=99)


def test_what_one_task_needs_alone_is_its_own(family_models, monkeypatch):
    """Planted effects: heads and MLPs of each task, and one of both."""
    planted = {
        ("one", "z"): [("L0H0", 0.5), ("L0H1", 0.4), ("L1H0", -0.9), ("L1H1", 0.0)],
        ("one", "mlp_out"): [("L0.mlp_out", 0.3), ("L1.mlp_out", 0.0)],
        ("two", "z"): [("L0H0", 0.0), ("L0H1", 0.6), ("L1H0", 0.0), ("L1H1", 0.1)],
        ("two", "mlp_out"): [("L0.mlp_out", -0.1), ("L1.mlp_out", 0.9)],
    }

    def scores(model, task, *, site, **options):
        rows = [
            SimpleNamespace(label=label, value=value) for label, value in planted[task.name, site]
        ]
        return SimpleNamespace(effects=np.zeros((2, len(rows))), top=lambda n: rows[:n])

    monkeypatch.setattr("interp.deltas.unlearning.activation_patching", scores)
    monkeypatch.setattr("interp.deltas.unlearning._cells", lambda found: found.effects.shape[1])
    pairs = (PromptPair(clean="a", answers=("b",)),)
    one, two = (Task(name=name, pairs=pairs) for name in ("one", "two"))
    found = group_components(family_models["llama"], one, two, top=3)
    assert found.forget == ("L0H0", "L0.mlp_out")
    assert found.retain == ("L1.mlp_out", "L1H1")
    assert found.shared == ("L0H1",)


def loss_of(hf_model, model, pairs):
    """Mean loss of the continuations, one text at a time."""
    total, count = torch.zeros(()), 0
    for text, more in pairs:
        before, after = model.tokenize(text).tokens, model.token_id(more)
        logits = hf_model(torch.tensor([[*before, *after]])).logits[0]
        for place, token in enumerate(after):
            total = total - logits[len(before) + place - 1].log_softmax(-1)[token]
            count += 1
    return total / count


@pytest.mark.parametrize("rule", ["by group", "uniform", "ascent"])
def test_the_first_step_follows_the_gradients_of_each_group(toy, rule):
    """Adam's first step moves every number by the rate against the sign of its gradient."""
    found = unlearn(toy, GROUPS, FORGET, RETAIN, rule=rule, steps=1, rate=1e-3, batch=2)
    copy = deepcopy(plain_view(toy)).requires_grad_(True)
    losses = loss_of(copy, toy, FORGET), loss_of(copy, toy, RETAIN)
    assert found.forget_loss[0] == pytest.approx(float(losses[0]), rel=1e-4)
    assert found.retain_loss[0] == pytest.approx(float(losses[1]), rel=1e-4)
    named, d = dict(copy.named_parameters()), toy.d_head
    goal = (8 - losses[0]).clamp(min=0)
    heads = {"forget": ("L1", 2), "retain": ("L0", 1), "shared": ("L1", 0)}
    for group, (layer, head) in heads.items():
        name = f"model.layers.{layer[1:]}.self_attn.o_proj.weight"
        columns = slice(head * d, (head + 1) * d)
        first, second = (
            torch.autograd.grad(x, named[name], retain_graph=True)[0][:, columns]
            for x in (goal, losses[1])
        )
        whole = {"forget": first, "retain": second}.get(group)
        if rule == "uniform":
            whole = first + second
        elif rule == "ascent":
            whole = first
        elif group == "shared":
            against = min(0.0, float((first * second).sum()))
            whole = second + first - against / float(second.pow(2).sum()) * second
        step = found.delta.difference(name)[:, columns].float()
        moved = whole.abs() > 1e-6
        assert moved.any() or rule == "ascent"
        torch.testing.assert_close(step[moved], -1e-3 * whole.sign()[moved], rtol=0.02, atol=1e-6)
    outside = found.delta.difference("model.layers.0.self_attn.o_proj.weight")[:, :d]
    assert bool((outside == 0).all())
    assert all("o_proj" in name or "down_proj" in name for name in found.delta.names)


def test_it_forgets_and_keeps_and_leaves_the_model_alone(toy):
    before = toy.hash
    plain = plain_view(toy)
    everything = ComponentGroups(
        forget=("L1H2", "L1.mlp_out"), retain=("L0H1", "L0.mlp_out"), shared=()
    )
    found = unlearn(toy, everything, FORGET, RETAIN, steps=40, rate=5e-2, batch=2)
    with torch.no_grad():
        old = [float(loss_of(plain, toy, pairs)) for pairs in (FORGET, RETAIN)]
        with found.delta.applied(toy):
            new = [float(loss_of(plain_view(toy), toy, pairs)) for pairs in (FORGET, RETAIN)]
    assert new[0] > old[0] + 1
    assert new[1] < old[1] + 0.5
    assert toy.hash == before
    again = relearning(toy, found, everything, FORGET, steps=30, rate=5e-2, batch=2)
    assert again[0] == pytest.approx(new[0], abs=1e-3)
    assert again[-1] < again[0] - 0.5


def test_a_run_has_a_seed(toy):
    many = [(f"{x} b c", " d") for x in "abcdefgh"]
    runs = [
        unlearn(toy, GROUPS, many, many, steps=3, batch=2, seed=seed).forget_loss
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_random_groups_have_the_layers_and_sizes(family_models):
    model = family_models["llama"]
    groups = ComponentGroups(forget=("L1H0", "L1H1"), retain=("L2H3",), shared=("L0.mlp_out",))
    drawn = groups.random(model)
    assert [len(x) for x in (drawn.forget, drawn.retain, drawn.shared)] == [2, 1, 1]
    assert not {*drawn.all} & {*groups.all}
    assert sorted(x[:2] for x in (*drawn.forget, *drawn.retain)) == ["L1", "L1", "L2"]
    assert groups.random(model, seed=1) != drawn or groups.random(model, seed=2) != drawn


def test_refusals(toy):
    none = ComponentGroups(forget=(), retain=(), shared=())
    for arguments, options, match in (
        ((none, FORGET, RETAIN), {}, "no components"),
        ((GROUPS, [], RETAIN), {}, "texts to forget"),
        ((GROUPS, FORGET, []), {}, "texts to retain"),
        ((GROUPS, [("a", "")], RETAIN), {}, "no tokens"),
        ((GROUPS, FORGET, RETAIN), {"rule": "magic"}, "rule"),
        ((GROUPS, FORGET, RETAIN), {"steps": 0}, "steps"),
        ((ComponentGroups(forget=("L0N1",), retain=(), shared=()), FORGET, RETAIN), {}, "not a"),
    ):
        with pytest.raises(InterpError, match=match):
            unlearn(toy, *arguments, **options)
