import numpy as np
import pytest
import torch

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.runs.capture import run_with_cache
from interp.runs.changed_runs import ChangedRuns
from interp.runs.generation import generate, generate_each
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation, random_like, zero
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import keep_runs, site_values

PROMPTS = [tuple(range(5 + i, 5 + i + n)) for i, n in enumerate((9, 6, 9, 7))]
LABELS = ("L0H1", "L0H3", "L1N4", "L1N20", "L2H0", "L1.mlp_out", "L2.resid_pre")
SETS = (LABELS[:2], LABELS[2:5], LABELS[5:])


def values_for(model, labels, kind, last):
    parts = [Component.parse(label) for label in labels]
    found = site_values(model, PROMPTS, list({(p.layer, p.site) for p in parts}), last=last)
    if kind == "mean":
        return {at: value.mean(0, keepdim=True) for at, value in found.items()}
    return {at: value[torch.tensor([2, 3, 0, 1])] for at, value in found.items()}


@pytest.mark.parametrize("where", [1, 2, "all"])
@pytest.mark.parametrize("kind", ["zero", "mean", "resample", "steer"])
def test_equals_hooked_passes(family, kind, where):
    last = 1 if where == "all" else where
    made = [
        make_ablation(
            family,
            labels,
            kind,
            values=None if kind == "zero" else values_for(family, labels, kind, last),
        )
        for labels in SETS
        if not (family.parallel and "L1.mlp_out" in labels)
    ]
    tokens = [3, 50, 96]
    found = ablate(family, PROMPTS, made, tokens=tokens, where=where)
    plain = family.last_logits(PROMPTS).log_softmax(-1)
    np.testing.assert_allclose(found.probabilities[0], plain.exp()[:, tokens], atol=2e-5)
    for row, ablation in enumerate(made, 1):
        with intervene(family, ablation.last(where)):
            slow = family.last_logits(PROMPTS).log_softmax(-1)
        assert (slow - plain).abs().max() > 1e-3, "the reference changed nothing"
        np.testing.assert_allclose(found.probabilities[row], slow.exp()[:, tokens], atol=2e-5)
        kl = (plain.exp() * (plain - slow)).sum(-1)
        np.testing.assert_allclose(found.kl[row], kl, atol=2e-5)
        assert (found.top[row] == slow.argmax(-1).numpy()).all()


def test_patching_everything_gives_the_other_run(family_models):
    model = family_models["llama"]
    prompts = [tuple(range(5 + i, 14 + i)) for i in range(3)]
    address = (model.n_layers - 1, "resid_post")
    values = site_values(model, prompts, [address])
    other = {address: values[address][torch.tensor([1, 2, 0])]}
    swap = make_ablation(model, ["L2.resid_post"], "patch", values=other)
    found = ablate(model, prompts, [swap], tokens=range(97), where=1)
    np.testing.assert_allclose(found.probabilities[1], found.probabilities[0][[1, 2, 0]], atol=1e-6)


@pytest.mark.parametrize("label", ["L0H1", "L1N4", "L2.resid_post", "L1.mlp_out", "L0.z"])
def test_a_run_s_own_values_change_nothing(family_models, label):
    model = family_models["llama"]
    part = Component.parse(label)
    address = (part.layer, part.site)
    values = site_values(model, PROMPTS, [address], last=2)
    same = make_ablation(model, [label], "patch", values=values)
    found = ablate(model, PROMPTS, [same], tokens=range(97), where=2)
    np.testing.assert_allclose(found.probabilities[1], found.probabilities[0], atol=1e-6)


def test_site_values_are_each_prompt_s_own(family):
    addresses = [(0, "z"), (1, "post"), (2, "resid_post")]
    values = site_values(family, PROMPTS, addresses, last=2)
    seen = run_with_cache(family, PROMPTS, sites=["z", "post", "resid_post"])
    for layer, site in addresses:
        for i, prompt in enumerate(PROMPTS):
            expected = seen[layer, site][i, len(prompt) - 2 : len(prompt)]
            torch.testing.assert_close(values[layer, site][i], expected, atol=2e-5, rtol=1e-4)


def test_random_sets_match_in_kind_layer_and_count(family_models):
    model = family_models["llama"]
    chosen = ["L0H1", "L0H2", "L2N5"]
    draws = random_like(model, chosen, 30, seed=1)
    for draw in draws:
        parts = [Component.parse(label) for label in draw]
        assert [(p.layer, p.site) for p in parts] == [(0, "z"), (0, "z"), (2, "post")]
        assert not set(draw) & set(chosen)
        assert len(set(draw)) == 3
    assert len({frozenset(draw) for draw in draws}) == 30
    assert draws == random_like(model, chosen, 30, seed=1)


def test_random_sets_never_leave_the_layer_nor_come_twice(family_models):
    model = family_models["llama"]  # four heads a layer
    assert sorted(map(sorted, random_like(model, ["L1H0", "L1H3"], 50))) == [["L1H1", "L1H2"]]
    three = random_like(model, ["L1H0", "L1H1", "L1H2"], 50)
    assert len(three) == 4
    assert all(label.startswith("L1H") for draw in three for label in draw)
    with pytest.raises(InterpError, match="every layer"):
        random_like(model, ["L0.mlp_out", "L1.mlp_out", "L2.mlp_out"], 1)


@pytest.mark.parametrize(
    ("labels", "kind", "match"),
    [
        ([], "zero", "no components"),
        (["L0H1", "L0H1"], "zero", "repeated"),
        (["L0H1"], "halve", "halve"),
        (["L0H1.q"], "zero", "site q"),
        (["L0H9"], "zero", "head"),
        (["L0H1"], "mean", "no values"),
    ],
)
def test_bad_sets_are_refused(family_models, labels, kind, match):
    with pytest.raises(InterpError, match=match):
        make_ablation(family_models["llama"], labels, kind)


@pytest.mark.parametrize(("shape", "where"), [((7, 1), 1), ((1, 2), 3), ((1, 2), "all")])
def test_values_of_other_prompts_or_too_few_positions_are_refused(family_models, shape, where):
    model = family_models["llama"]
    values = {(1, "z"): torch.zeros(*shape, model.n_heads, model.d_head)}
    made = make_ablation(model, ["L1H0"], "mean", values=values)
    with pytest.raises(InterpError, match=rf"over {shape[0]} prompts and {shape[1]} positions"):
        ablate(model, PROMPTS, [made], tokens=[1], where=where)
    with pytest.raises(InterpError, match="values of L1.z"):
        generate(model, PROMPTS, max_new_tokens=2, change=made, where=where)


def test_too_short_prompts_are_refused(family_models):
    model = family_models["llama"]
    zero = make_ablation(model, ["L0H1"])
    with pytest.raises(InterpError, match="last 7 tokens"):
        ablate(model, PROMPTS, [zero], tokens=[1], where=7)
    with pytest.raises(InterpError, match="last 7 tokens"):
        site_values(model, PROMPTS, [(0, "z")], last=7)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("L40H5", "layers 0 to 2"),
        ("L40.mlp_out", "layers 0 to 2"),
        ("L99N5", "layers 0 to 2"),
        ("L1H4", "heads 0 to 3"),
        ("L1N9999", "neurons 0 to"),
    ],
)
def test_components_that_the_model_lacks_are_refused(family_models, label, message):
    model = family_models["llama"]
    runs = keep_runs(model, PROMPTS, last=1, whole=True)
    for run in (
        lambda: ablate(model, PROMPTS, zero(label), tokens=[1]),
        lambda: generate(model, PROMPTS, max_new_tokens=2, change=zero(label)),
        lambda: generate_each(model, PROMPTS, [None, zero(label)], max_new_tokens=2),
        lambda: ChangedRuns(runs=runs, change=zero(label)),
    ):
        with pytest.raises(InterpError, match=message):
            run()


def test_a_label_is_not_a_change(family_models):
    model = family_models["llama"]
    for changes in ("L1H2", ["L1H2"], [None]):
        with pytest.raises(InterpError, match=r"does not say what to do; .* zero\('L17H11'\)"):
            ablate(model, PROMPTS, changes, tokens=[1])
