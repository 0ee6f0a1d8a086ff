"""Every kind of change gives the same numbers as hooks and in the fast engine."""

import pytest
import torch

from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.heads.switching import switch_off
from interp.runs.change import Change, Edit, ValueTable
from interp.runs.changed_runs import ChangedRuns
from interp.runs.generation import generate
from interp.runs.hooks import intervene
from interp.runs.kinds import (
    add,
    exclude,
    make_ablation,
    mean,
    patch,
    project_out,
    resample,
    scale,
    zero,
)
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import keep_runs, site_values
from interp.steering.edits import (
    ablate_direction,
    add_direction,
    affine_edit,
    null_space_direction,
    patch_direction,
)
from interp.steering.runs import generate_steered, steering_change
from tests.steering.test_edits import direction

PROMPTS = [tuple(range(5 + i, 5 + i + n)) for i, n in enumerate((9, 6, 9, 7))]
OTHERS = [tuple(range(40 - i, 40 - i + n)) for i, n in enumerate((9, 6, 9, 7))]
LABELS = ["L0H1", "L1H2", "L1N4", "L1N7", "L2.resid_mid"]
TOKENS = (5, 6, 7)


def sets(model, kind):
    labels = LABELS[:-1] if model.sites["resid_mid"] else LABELS
    addresses = [(0, "z"), (1, "z"), (1, "post"), (2, "resid_mid")][: 4 - (len(labels) < 5)]
    values = None if kind == "zero" else site_values(model, OTHERS, addresses)
    if kind == "mean":
        values = {at: value.mean((0, 1), keepdim=True) for at, value in values.items()}
    return make_ablation(model, labels, kind, values=values)


def steering(make):
    """A steering of the prompts, made from a random direction."""
    return lambda model: steering_change(model, make(model, direction(model)), PROMPTS)


def vector(model):
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))


def states(model, n):
    return torch.randn(n, model.d_model, generator=torch.Generator().manual_seed(n))


KINDS = {
    "zero": lambda m: zero("L1H2"),
    "zero of a whole site": lambda m: zero("L1.z"),
    "zero at the last token": lambda m: zero("L1H2", positions="last"),
    "zero at one token of each": lambda m: zero("L0.mlp_out", positions=[3, -1, 0, 2]),
    "scale": lambda m: scale("L1N4", -2.0),
    "add": lambda m: add("L1.resid_post", vector(m), coefficient=3.0),
    "add at a number": lambda m: add("L1.resid_post", vector(m), positions=-2),
    "project out": lambda m: project_out("L0.attn_out", vector(m)),
    "mean": lambda m: mean(m, "L2H1", OTHERS),
    "mean by position": lambda m: mean(m, "L2H1", OTHERS, pooled=False),
    "resample": lambda m: resample(m, "L1.resid_pre", [OTHERS[0]] * 2, n=4),
    "patch": lambda m: patch(m, "L1H0", OTHERS),
    "patch of a neuron": lambda m: patch(m, "L0N3", OTHERS, positions="last"),
    "two together": lambda m: zero("L1H2") + add("L1.resid_post", vector(m)) + scale("L1H2", 2.0),
    "a set at zero": lambda m: sets(m, "zero"),
    "a set at its mean": lambda m: sets(m, "mean"),
    "a set patched": lambda m: sets(m, "patch").last(6),
    "a set with values added": lambda m: sets(m, "steer").last(2),
    "heads switched off": lambda m: switch_off(m, "zero").change(["L0H1", "L1H2"]),
    "heads scaled": lambda m: switch_off(m, "scale", factor=0.3).change(["L0H1", "L1H2"]),
    "heads at their mean": lambda m: switch_off(m, "mean", reference=OTHERS).change(["L2H3"]),
    "a direction ablated": steering(lambda m, d: ablate_direction(m, d)),
    "a direction added": steering(lambda m, d: add_direction(m, d, coefficient=2.0)),
    "a direction added to two tokens": steering(
        lambda m, d: add_direction(m, d, positions=[-1, -3])
    ),
    "a direction added to some prompts": steering(
        lambda m, d: add_direction(m, d).gated([1.0, 0.0, 0.5, 1.0])
    ),
    "a direction set": steering(lambda m, d: patch_direction(m, d, value=1.5)),
    "an affine edit": steering(lambda m, d: affine_edit(m, d, states(m, 1)[0])),
    "a null-space edit": steering(
        lambda m, d: null_space_direction(m, d, states(m, 30), states(m, 20))
    ),
}  # fmt: skip


EXPERT_KINDS = {
    "zero of an expert": lambda m: zero("L1E2"),
    "all experts doubled": lambda m: scale("L1.expert_out", 2.0),
    "an expert at its mean": lambda m: mean(m, "L1E1", OTHERS),
    "an expert patched": lambda m: patch(m, "L0E3", OTHERS),
    "two experts at values": lambda m: make_ablation(
        m, ["L1E0", "L1E3"], "patch", values=site_values(m, OTHERS, [(1, "expert_out")], last=6)
    ).last(6),
    "an expert excluded": lambda m: exclude("L1E2"),
    "one excluded and one zero": lambda m: exclude("L1E2") + zero("L1E0") + zero("L2H1"),
    "routes patched": lambda m: patch(m, "L1.router", OTHERS),
    "a logit of the router patched at a token": lambda m: add(
        "L1E1.router", torch.tensor([9.0]), positions=[3, -1, 0, 2]
    ),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("gpt2", "gemma2", "qwen3") for kind in KINDS),
        *((name, kind) for name in ("qwen2-moe", "gpt-oss") for kind in EXPERT_KINDS),
    ],
)
def test_hooks_and_engine_agree(doubles, name, kind):
    """In float64: the next token of every prompt, by `ablate` and inside `intervene`."""
    model = doubles(name)
    change = (KINDS | EXPERT_KINDS)[kind](model)
    found = ablate(model, PROMPTS, change, tokens=TOKENS)
    with intervene(model, change):
        expected = model.last_logits(PROMPTS).double().log_softmax(-1)
    plain = model.last_logits(PROMPTS).double().log_softmax(-1)
    torch.testing.assert_close(
        torch.from_numpy(found.probabilities[1]), expected.exp()[:, TOKENS], atol=3e-8, rtol=1e-6
    )
    kl = (plain.exp() * (plain - expected)).sum(-1)
    torch.testing.assert_close(torch.from_numpy(found.kl[1]), kl, atol=3e-8, rtol=1e-6)
    assert kl.max() > 1e-6, "the change changes nothing, so that the comparison shows nothing"


FIXED = {"at", "two", "by", "patch", "patched", "values", "resample"}
"""Words of the kinds whose value or place depends on the length of the text."""

GROWING = [kind for kind in KINDS if not FIXED & {*kind.split()}] + ["two together"]


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_texts_agree(doubles, name, kind):
    """`generate` with a change writes what it writes inside `intervene`."""
    model = doubles(name)
    change = KINDS[kind](model)
    found = generate(model, PROMPTS, max_new_tokens=5, change=change)
    with intervene(model, change):
        expected = generate(model, PROMPTS, max_new_tokens=5)
    assert [one.tokens for one in found] == [one.tokens for one in expected]


@pytest.mark.parametrize("kind", ["one excluded and one zero", "all experts doubled"])
def test_texts_of_changed_experts_are_those_of_whole_runs(doubles, kind):
    """Cached generation against a run of the whole text, through hooks, for every token."""
    model = doubles("mixtral")
    change, texts = EXPERT_KINDS[kind](model), [list(prompt) for prompt in PROMPTS]
    with intervene(model, change):
        for _ in range(6):
            for text, token in zip(texts, model.last_logits(texts).argmax(-1), strict=True):
                text.append(int(token))
    found = generate(model, PROMPTS, max_new_tokens=6, change=change)
    assert [list(PROMPTS[i] + one.tokens) for i, one in enumerate(found)] == texts
    plain = generate(model, PROMPTS, max_new_tokens=6)
    assert [one.tokens for one in plain] != [one.tokens for one in found]


def test_steered_texts_are_texts_of_the_change(doubles):
    model = doubles("gpt2")
    made = ablate_direction(model, direction(model))
    change = steering_change(model, made, PROMPTS)
    found = generate(model, PROMPTS, max_new_tokens=5, change=change)
    steered, _ = generate_steered(model, PROMPTS, made, max_new_tokens=5)
    assert [one.tokens for one in found] == [one.tokens for one in steered]


def test_named_positions_are_those_of_the_task(doubles):
    model = doubles("gpt2")
    pairs = [
        PromptPair(clean=p, answers=(5,), positions={"name": 2 + i}) for i, p in enumerate(PROMPTS)
    ]
    task = Task(name="named", pairs=tuple(pairs))
    found = ablate(model, task, zero("L0.mlp_out", positions="name"), tokens=TOKENS)
    listed = zero("L0.mlp_out", positions=[2, 3, 4, 5])
    expected = ablate(model, PROMPTS, listed, tokens=TOKENS)
    assert (found.kl == expected.kl).all()
    assert found.kl[1].min() > 0


def test_what_the_engine_cannot_do_is_refused(doubles):
    model = doubles("gpt2")
    uniform = switch_off(model, "uniform").change(["L1H2"])
    for change in (uniform, zero("L1H2.q"), zero("L1H2.pattern")):
        with pytest.raises(InterpError, match="use intervene"):
            ablate(model, PROMPTS, change, tokens=TOKENS)
        with pytest.raises(InterpError, match="use intervene"):
            generate(model, PROMPTS, max_new_tokens=2, change=change)
    with pytest.raises(InterpError, match="positions of its own"):
        generate(model, PROMPTS, max_new_tokens=2, change=zero("L1H2", positions=0))
    with pytest.raises(InterpError, match="give one of them"):
        ablate(model, PROMPTS, zero("L1H2", positions=0), tokens=TOKENS, where=2)
    with pytest.raises(InterpError, match="fewer tokens"), intervene(model, zero("L1H2").last(8)):
        model.last_logits(PROMPTS)
    short = ValueTable(values=torch.zeros(1, 2, 1, model.d_head))
    edit = Edit(name="patch", layer=1, site="z", components=(2,), value=short)
    with pytest.raises(InterpError, match="each position changed"):
        ablate(model, PROMPTS, Change(name="short", edits=(edit,)), tokens=TOKENS)


def test_an_edit_that_reads_changes_nothing(doubles):
    """Whatever its function returns: the site is left bit for bit as it was."""
    model, seen = doubles("gpt2"), []

    def value(old, tokens):
        seen.append(old.clone())
        return old + 1

    edit = Edit(name="read", layer=1, site="z", components=(2,), value=value, reads=True)
    plain = model.last_logits(PROMPTS)
    with intervene(model, Change(name="read", edits=(edit,))) as report:
        assert torch.equal(model.last_logits(PROMPTS), plain)
    assert len(seen) == len(PROMPTS)
    assert report.fired[0].norm == 0


@pytest.mark.parametrize("site", ["z", "post", "resid_post"])
def test_values_of_a_wrong_shape_are_refused_where_they_are_given(doubles, site):
    model = doubles("gpt2")
    label = {"z": "L1H2", "post": "L1N4", "resid_post": "L1.resid_post"}[site]
    good = site_values(model, OTHERS, [(1, site)])[1, site]
    assert make_ablation(model, label, "patch", values={(1, site): good})
    odd = (good[0], good[..., :-1], good[:0], good[:, :0], good * torch.nan, good.numpy(), 3.0)
    for values in odd:
        with pytest.raises(InterpError, match=f"values of L1.{site}"):
            make_ablation(model, label, "patch", values={(1, site): values})


def test_stored_runs_find_positions_as_ablate_does(doubles):
    model = doubles("gpt2")
    runs = keep_runs(model, PROMPTS, last=1, whole=True)
    for positions in (-2, "last", [3, -1, 0, 2]):
        change = zero("L0.mlp_out", positions=positions)
        with intervene(model, change):
            expected = model.last_logits(PROMPTS)
        found = ChangedRuns(runs=runs, change=change).logits()
        torch.testing.assert_close(found, expected, atol=3e-8, rtol=1e-6)


def test_a_change_says_which_tokens_it_is_in_force_at(doubles):
    model = doubles("gpt2")
    for where in (0, -1, 1.5, "two"):
        with pytest.raises(InterpError):
            zero("L1H2").last(where)
    for positions in (slice(0, None), slice(1, 3), slice(-4, None, 2), slice(None)):
        with pytest.raises(InterpError, match=r"slice\(-k, None\)"):
            zero("L1H2").at(positions)
    empty = Change(name="nothing", edits=())
    for call in (
        lambda: ablate(model, PROMPTS, empty, tokens=TOKENS),
        lambda: generate(model, PROMPTS, max_new_tokens=2, change=empty),
    ):
        with pytest.raises(InterpError, match="no edits"):
            call()
