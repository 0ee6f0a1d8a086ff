"""Carriers, necessary heads and triggers: against slow references and the toy's planted gate."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.metrics import METRICS, Logits
from interp.core.prompts import Task
from interp.heads.direct_attribution import (
    direction_projection,
    head_logit_attribution,
    permuted_labels,
    top_stability,
)
from interp.heads.groups import greedy_head_group, subspace_shift
from interp.heads.interchange import align_ends, group_interchange, head_interchange
from interp.heads.knockouts import knockout_cascade
from interp.heads.scan import scan_heads
from interp.heads.switching import both_sides, switch_off
from interp.models.loading import load_model
from interp.patching.activation import activation_patching
from interp.patching.joint import joint_patching
from interp.refusal.flips import head_flips
from interp.refusal.judging import Judge
from interp.results.direction import Direction
from interp.runs.capture import run_with_cache
from interp.runs.change import Change
from interp.runs.hooks import intervene
from interp.runs.kinds import mean, one_edit, scale, zero
from interp.tasks.registry import load_task
from tests.families import random_task

GATE, AMPLIFIERS = "L0H0", ("L1H2", "L1H3")


@pytest.fixture(scope="module")
def refusal():
    return load_model("toy-refusal"), load_task("toy-refusal")


@pytest.fixture
def any_gap(monkeypatch):
    """Random models need not tell clean from corrupted."""
    for module in (
        "heads.switching",
        "heads.interchange",
        "patching.spec",
    ):
        monkeypatch.setattr(f"interp.{module}.check_gap", lambda one, other: None)


def shifted(task: Task, by: int = 1) -> Task:
    """The same prompts in pairs of unequal length."""
    pairs = task.pairs
    turned = [
        replace(pair, corrupted=other.corrupted)
        for pair, other in zip(pairs, pairs[by:] + pairs[:by], strict=True)
    ]
    return replace(task, pairs=tuple(turned))


def direction_of(model, layer, site="resid_post", seed=0):
    vector = torch.randn(model.d_model, generator=torch.manual_seed(seed)).double()
    return Direction(
        vector=vector, kind="behaviour", site=site, layer=layer, position=-1, sign=1, n=(2, 2),
        model_hash=model.hash,
    )  # fmt: skip


# -- carriers -------------------------------------------------------------------------------------


def test_the_gate_is_missed_by_attribution_and_found_by_interchange(refusal):
    model, task = refusal
    dla, swapped = head_logit_attribution(model, task), head_interchange(model, task)
    assert [ranked.label for ranked in dla.top(2)] == [*AMPLIFIERS]
    assert abs(dla.estimate(GATE).mean) < 0.01
    assert sum(dla.estimate(head).mean for head in AMPLIFIERS) == pytest.approx(1, abs=0.02)
    for scores in (swapped.necessity, swapped.sufficiency):
        assert scores.top(1)[0].label == GATE
        assert scores.estimate(GATE).mean == pytest.approx(1, abs=0.01)
        assert all(0.3 < scores.estimate(head).mean < 0.7 for head in AMPLIFIERS)
    assert dla.agreement(swapped.necessity, k=2)["top_2_jaccard"] < 1


def test_heads_mlps_and_embedding_add_up(family, any_gap):
    """The heads' shares and everything else's are the logit difference, post-norms included."""
    task = random_task()
    scores, decoder = head_logit_attribution(family, task), family.decoder
    sides = both_sides(family, task)
    answers, wrong = sides.targets.answers[:, 0], sides.targets.wrong[:, 0]
    sites = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    totals, others = [], []
    for prompts in (sides.clean, sides.corrupted):
        seen = run_with_cache(family, prompts, sites=[*sites, "z"], positions="last")
        whole = seen[family.n_layers - 1, "resid_post"]
        rows = (decoder.unembed[answers] - decoder.unembed[wrong]).double()

        def read(part, whole=whole, rows=rows):
            return (decoder.ln_final.share(part, whole).double() * rows).sum(-1)

        totals.append(read(whole))
        rest = read(seen[0, "resid_pre"])
        for layer in range(family.n_layers):
            attn, post = decoder.blocks[layer].attn, decoder.blocks[layer].ln1_post
            rest = rest + read(seen[layer, "mlp_out"])
            if attn.o.bias is not None:
                raw = attn.o(seen[layer, "z"].flatten(1))
                bias = attn.o.bias.expand_as(raw)
                rest = rest + read(bias if post is None else post.share(bias, raw))
        others.append(rest)
    found = scores.effects.sum((1, 2)) + (others[0] - others[1]).numpy()
    np.testing.assert_allclose(found, (totals[0] - totals[1]).numpy(), atol=2e-4)
    np.testing.assert_allclose(scores.clean, totals[0], atol=1e-4)


def test_projection_by_hand(family, any_gap):
    if family.decoder.blocks[0].ln1_post is not None or family.parallel:
        pytest.skip("attn_out is not the sum of the heads, or the MLP is beside it")
    task, direction = random_task(), direction_of(family, 1)
    scores = direction_projection(family, task, direction)
    assert scores.effects.shape == (4, 2, family.n_heads)
    sides = both_sides(family, task)
    sums = []
    for prompts in (sides.clean, sides.corrupted):
        seen = run_with_cache(family, prompts, sites=["attn_out"], positions="last")
        sums.append([seen[layer, "attn_out"].double() @ direction.unit for layer in (0, 1)])
    for layer in (0, 1):  # biases cancel between the sides
        expected = (sums[0][layer] - sums[1][layer]).numpy()
        np.testing.assert_allclose(scores.effects[:, layer].sum(1), expected, atol=1e-4)
    before = direction_projection(family, task, direction_of(family, 1, "resid_pre"))
    assert before.coordinates["layer"] == ("0",)
    with pytest.raises(InterpError, match="no head precedes"):
        direction_projection(family, task, direction_of(family, 0, "resid_pre"))


def test_permuted_labels(refusal):
    model, task = refusal
    dla = head_logit_attribution(model, task)
    null = permuted_labels(dla)
    for head in AMPLIFIERS:
        assert null.p[dla.index(head)] < 0.01
        assert dla.estimate(head).mean > null.limit
    assert null.p[dla.index(GATE)] > 0.5
    # On noise the smallest of all p is below 0.05 about one time in twenty.
    rng, hits = np.random.default_rng(0), 0
    for seed in range(100):
        effects = rng.normal(size=dla.effects.shape)
        hits += permuted_labels(replace(dla, effects=effects), draws=99, seed=seed).p.min() <= 0.05
    assert hits <= 12
    with pytest.raises(InterpError, match="does not change its sign"):
        permuted_labels(head_interchange(model, task).necessity)


def test_top_stability(refusal):
    dla = head_logit_attribution(*refusal)
    assert top_stability(dla, k=2) == 1
    noise = replace(dla, effects=np.random.default_rng(0).normal(size=dla.effects.shape))
    assert top_stability(noise, k=2) < 0.8
    with pytest.raises(InterpError, match="choose fewer"):
        top_stability(dla, k=8)


def test_cascade(refusal):
    """Without the gate the amplifiers write nothing; without another head they write the same."""
    model, task = refusal
    found = knockout_cascade(model, task, [GATE], AMPLIFIERS, switch_off(model), draws=3)
    np.testing.assert_allclose(found.change, -100, atol=1)
    for null in found.nulls:
        assert null.share == 1 / 4
        assert null.high < 1
    assert found.to_dataframe().null_high.max() < 1
    along = knockout_cascade(
        model,
        task,
        [GATE],
        AMPLIFIERS,
        switch_off(model),
        draws=0,
        direction=direction_of(model, 1),
    )
    np.testing.assert_allclose(along.change, -100, atol=1)
    assert along.nulls == ()
    with pytest.raises(InterpError, match="heads of later layers"):
        knockout_cascade(model, task, [GATE], ["L0H1"], switch_off(model))


# -- switched off ---------------------------------------------------------------------------------


def uniform_pattern(model, head):
    """The slow way: the attention itself made equal over the visible keys."""
    window = model.decoder.blocks[head.layer].attn.window

    def value(old, tokens):
        new = torch.zeros_like(old)
        for row, query in enumerate(tokens.positions.tolist()):
            first = 0 if window is None else max(0, query - window + 1)
            new[row, first : query + 1] = 1 / (query + 1 - first)
        return new

    part = Component(head.layer, "pattern", head.index)
    return Change(name="uniform", edits=(one_edit("uniform", part, value),))


def slow_off(model, head, mode, unit, reference):
    """A head switched off by what `interp.runs.kinds` has."""
    if mode == "uniform":
        return uniform_pattern(model, head)
    if mode == "mean":
        return mean(model, str(head), reference)
    if mode == "direction":
        edit = one_edit("direction", head, lambda old, tokens: old - (old @ unit)[:, None] * unit)
        return Change(name="direction", edits=(edit,))
    return zero(str(head)) if mode == "zero" else scale(str(head), 0.3)


@pytest.mark.filterwarnings("ignore:2 heads of .* share")
@pytest.mark.parametrize("mode", ["zero", "scale", "mean", "uniform", "direction"])
def test_scan_equals_hooked_passes(family, mode, any_gap):
    task, direction = random_task(), direction_of(family, 1)
    sides = both_sides(family, task)
    options = {
        "mean": {"reference": sides.corrupted},
        "scale": {"factor": 0.3},
        "direction": {"direction": direction},
    }
    switch = switch_off(family, mode, **options.get(mode, {}))
    found = scan_heads(family, task, switch)
    plain = [family.last_logits(side) for side in (sides.clean, sides.corrupted)]
    for label in ("L0H1", "L1H2", "L2H3"):
        head, cell = Component.parse(label), (int(label[1]), int(label[3]))
        weight = family.decoder.blocks[head.layer].attn.o.weight.view(
            family.n_heads, family.d_head, -1
        )[head.index]
        unit = direction.unit.float() @ torch.linalg.pinv(weight)
        unit = unit / unit.norm()
        slow = slow_off(family, head, mode, unit, sides.corrupted)
        for made in (slow, switch.change([label])):
            for side, kl in enumerate((found.ships, found.benign)):
                with intervene(family, made):
                    logits = family.last_logits((sides.clean, sides.corrupted)[side])
                before, after = (x.double().log_softmax(-1) for x in (plain[side], logits))
                expected = (before.exp() * (before - after)).sum(-1)
                np.testing.assert_allclose(kl[:, *cell], expected, atol=2e-5)
                if side == 0:
                    lost = [task.metric(Logits(x), sides.targets) for x in (plain[0], logits)]
                    np.testing.assert_allclose(
                        found.necessity.effects[:, *cell], lost[0] - lost[1], atol=1e-4
                    )
    assert found.ships.max() > 1e-4
    assert len(found.to_dataframe()) == found.ships[0].size


def test_key_value_groups(family_models, any_gap):
    model, task = family_models["llama"], random_task()
    found = scan_heads(model, task, switch_off(model), by="kv_head", layers=[1])
    assert found.necessity.label((0, 1)) == "L1KV1.v"
    sides = both_sides(model, task)
    with intervene(model, [zero("L1H2"), zero("L1H3")]):
        logits = model.last_logits(sides.clean)
    plain = model.last_logits(sides.clean).double().log_softmax(-1)
    expected = (plain.exp() * (plain - logits.double().log_softmax(-1))).sum(-1)
    np.testing.assert_allclose(found.ships[:, 0, 1], expected, atol=2e-5)


def test_refusal_score_on_the_toy(refusal):
    """With log_odds as metric, necessity is the drop of the refusal score."""
    model, task = refusal
    scan = scan_heads(model, task.with_metric(METRICS["log_odds"]), switch_off(model))
    assert scan.necessity.estimate(GATE).mean == pytest.approx(1, abs=0.02)
    assert scan.ships.mean(0)[0, 0] > 50 * scan.benign.mean(0)[0, 0]


def test_switching_needs_what_it_needs(family_models):
    model = family_models["llama"]
    for mode, options in (("mean", {}), ("direction", {}), ("zero", {"reference": [(3, 4)]})):
        with pytest.raises(InterpError, match="missing or unused"):
            switch_off(model, mode, **options)
    with pytest.raises(InterpError, match="did you mean 'uniform'"):
        switch_off(model, "uniforms")


# -- groups ---------------------------------------------------------------------------------------


def test_subspace_shift_by_hand():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    right = np.linalg.qr(rng.normal(size=(4, 4)))[0]

    def states(angle):
        first = math.cos(angle) * basis[:, 0] + math.sin(angle) * basis[:, 2]
        return torch.from_numpy(9 * np.outer(first, right[0]) + 3 * np.outer(basis[:, 1], right[1]))

    for angle in (0.0, 0.3, 1.2):
        for k in (1, 2):
            found = subspace_shift(states(0), states(angle), k=k)
            assert found == pytest.approx(angle, abs=1e-6)
    large = torch.full((6, 4), 1e4)
    one, other = (x + large for x in (states(0), states(1.2)))
    assert subspace_shift(one, other) < 0.01  # the mean decides
    assert subspace_shift(one, other, centred=True) > 0.3
    with pytest.raises(InterpError, match="smaller k"):
        subspace_shift(one, other, k=7)


@pytest.mark.parametrize("objective", ["kl", "subspace"])
def test_the_group_of_heads_is_greedy(family_models, objective):
    model, prompts = family_models["llama"], both_sides(family_models["llama"], random_task()).clean
    switch = switch_off(model, "uniform")
    found = greedy_head_group(model, prompts, switch, size=2, objective=objective, k=2, draws=4)
    labels = [f"L{i}H{h}" for i in range(3) for h in range(4)]

    def value(heads):
        with intervene(model, [uniform_pattern(model, Component.parse(h)) for h in heads]):
            seen = run_with_cache(model, prompts, sites=["resid_post"], positions="last")
        plain = run_with_cache(model, prompts, sites=["resid_post"], positions="last")
        if objective == "subspace":
            return subspace_shift(plain[2, "resid_post"], seen[2, "resid_post"], k=2)
        before, after = (x.logits.double().log_softmax(-1) for x in (plain, seen))
        return float((before.exp() * (before - after)).sum(-1).mean())

    first = max(labels, key=lambda head: value([head]))
    second = max((h for h in labels if h != first), key=lambda head: value([first, head]))
    assert found.heads == (first, second)
    np.testing.assert_allclose(found.curve, [value([first]), value([first, second])], atol=1e-4)
    assert found.null.draws == 1  # two heads of a layer of four: one other pair
    with pytest.raises(InterpError, match="too few candidates"):
        greedy_head_group(model, prompts, switch, size=2, candidates=["L0H1"])


def test_sahara_finds_the_planted_circuit(refusal):
    model, task = refusal
    prompts = [pair.clean for pair in task.pairs[:8]]
    found = greedy_head_group(model, prompts, switch_off(model), size=1, objective="kl", draws=3)
    assert found.heads == (GATE,)
    assert found.null.share == 1 / 4


# -- interchange ----------------------------------------------------------------------------------


def test_interchange_equals_activation_patching(family, any_gap):
    task = random_task()
    found = head_interchange(family, task)
    for scores, direction in ((found.necessity, "noise"), (found.sufficiency, "denoise")):
        slow = activation_patching(family, task, direction=direction, engine="hooks", cache=False)
        np.testing.assert_allclose(scores.effects, slow.effects, atol=2e-4)
        np.testing.assert_allclose(scores.clean, slow.clean, atol=1e-4)
    assert found.aligned.tolist() == [9, 9, 7, 9]


@pytest.mark.long
def test_unequal_lengths_need_a_map(refusal):
    model, task = refusal
    odd = shifted(task)
    sides = both_sides(model, odd)
    assert any(len(a) != len(b) for a, b in zip(sides.clean, sides.corrupted, strict=True))
    with pytest.raises(InterpError, match="say which tokens correspond"):
        head_interchange(model, odd)
    with pytest.raises(InterpError, match="say which tokens correspond"):
        group_interchange(model, odd, [GATE])
    maps = align_ends(model, odd)
    for places, clean, corrupted in zip(maps, sides.clean, sides.corrupted, strict=True):
        assert places[0] == 0
        assert places[len(clean) - 1] == len(corrupted) - 1
    found = head_interchange(model, odd, alignment=maps)
    assert found.necessity.top(1)[0].label == GATE
    assert found.necessity.estimate(GATE).mean == pytest.approx(1, abs=0.01)
    # Aligned from the start, the last tokens do not meet and the gate is lost.
    wrong = [
        {i: i for i in range(min(len(a), len(b)))}
        for a, b in zip(sides.clean, sides.corrupted, strict=True)
    ]
    lost = head_interchange(model, odd, alignment=wrong)
    assert lost.necessity.estimate(GATE).mean < 0.7


@pytest.mark.parametrize("label", ["L0H0", "L1H3"])
def test_aligned_interchange_against_hooks(refusal, label):
    model, task = refusal
    odd = shifted(task.first(6))
    maps, sides = align_ends(model, odd), both_sides(model, odd)
    found = head_interchange(model, odd, alignment=maps)
    head = Component.parse(label)
    for i, places in enumerate(maps):
        z = run_with_cache(model, [sides.corrupted[i]], sites=["z"])[head.layer, "z"]

        def value(old, tokens, z=z, places=places):
            new = old.clone()
            for here, there in places.items():
                new[here] = z[0, there, head.index]
            return new

        made = Change(name="x", edits=(one_edit("x", head, value),))
        targets = sides.targets.select(torch.tensor([i]))
        values = []
        for changes in ([], [made]):
            with intervene(model, changes):
                logits = model.last_logits([sides.clean[i]])
            values.append(float(odd.metric(Logits(logits), targets)[0]))
        got = found.necessity.effects[i, head.layer, head.index]
        assert got == pytest.approx(values[0] - values[1], abs=1e-4)


@pytest.mark.parametrize("uneven", [False, True])
def test_group_is_the_same_through_hooks(refusal, uneven):
    """Heads of several layers; tokens that stand for none keep what the change made of them."""
    model, task = refusal
    task = shifted(task) if uneven else task
    labels = [GATE, *AMPLIFIERS, "L0H1"]
    maps = align_ends(model, task)
    fast = group_interchange(model, task, labels, alignment=maps, draws=2)
    slow = group_interchange(replace(model, decoder=None), task, labels, alignment=maps, draws=2)
    for name in ("necessity", "sufficiency"):
        one, other = getattr(fast, name), getattr(slow, name)
        assert one.mean == pytest.approx(other.mean, abs=1e-4)
        assert one.high == pytest.approx(other.high, abs=1e-3)
        nulls = getattr(fast, f"{name}_null"), getattr(slow, f"{name}_null")
        assert nulls[0].mean == pytest.approx(nulls[1].mean, abs=1e-4)
    assert abs(fast.necessity.mean) > 0.5


@pytest.mark.long
def test_group_equals_joint_patching(refusal):
    model, task = refusal
    found = group_interchange(model, task, AMPLIFIERS, draws=1)
    for estimate, null, direction in (
        (found.necessity, found.necessity_null, "noise"),
        (found.sufficiency, found.sufficiency_null, "denoise"),
    ):
        slow = joint_patching(model, task, AMPLIFIERS, direction=direction, draws=0)
        assert estimate.mean == pytest.approx(slow.effect.mean, abs=1e-4)
        assert estimate.low == pytest.approx(slow.effect.low, abs=1e-3)
        assert abs(null.mean) < 0.05
    odd = shifted(task)
    gate = group_interchange(model, odd, [GATE], alignment=align_ends(model, odd), draws=3)
    assert gate.necessity.mean == pytest.approx(1, abs=0.01)
    assert gate.necessity_null.share == 1 / 4
    assert gate.sufficiency.mean == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "places", [{}, {0: 99}, {-1: 0}, {0: 1, 1: 1}], ids=["empty", "outside", "negative", "twice"]
)
def test_bad_alignments(refusal, places):
    model, task = refusal
    few = task.first(2)
    with pytest.raises(InterpError, match="empty, tokens that do not exist, or one used twice"):
        head_interchange(model, few, alignment=[{0: 0}, places])
    with pytest.raises(InterpError, match="one for each pair"):
        head_interchange(model, few, alignment=[{0: 0}])


# -- behaviour ------------------------------------------------------------------------------------


def test_flips(refusal):
    model, task = refusal
    prompts = [pair.clean for pair in task.pairs[:6]]
    words = Judge(
        name="first word/1",
        verdict=lambda prompt, text: (
            "direct_refusal" if text.startswith("refuse") else "direct_answer"
        ),
    )
    given = {"rows": [f"r{i}" for i in range(6)], "max_new_tokens": 1}
    found = head_flips(model, prompts, [GATE], words, least_tokens=1, draws=3, **given)
    assert found.before.counts["direct_refusal"] == 6
    assert found.after.counts["direct_answer"] == 6
    assert (found.rate.mean, found.rate.n) == (1, 6)
    assert (found.null.mean, found.null.share) == (0, 1 / 4)
    # By default one token is no text: what is not refused is cut off, and gives no verdict.
    short = head_flips(model, prompts, [GATE], words, **given)
    assert short.after.counts["truncated"] == 6
    assert short.rate.n == 0
    with pytest.raises(InterpError, match="one of each per row"):
        head_flips(model, prompts, [GATE], words, rows=["r0"], max_new_tokens=1)


def test_inside_intervene_is_refused(refusal):
    model, task = refusal
    for measure in (
        lambda: scan_heads(model, task, switch_off(model)),
        lambda: head_interchange(model, task),
    ):
        with intervene(model, [zero("L0H1")]), pytest.raises(InterpError, match="inside intervene"):
            measure()


def test_sides_without_a_gap_are_refused(refusal):
    model, task = refusal
    same = replace(task, pairs=tuple(replace(p, corrupted=p.clean) for p in task.pairs))
    with pytest.raises(InterpError, match="does not distinguish the prompts"):
        head_logit_attribution(model, same)
    alone = replace(task, pairs=tuple(replace(p, corrupted=None) for p in task.pairs))
    with pytest.raises(InterpError, match="without a corrupted prompt"):
        head_logit_attribution(model, alone)


def test_uniform_attention_over_shared_values_is_warned_of(family_models):
    with pytest.warns(UserWarning, match=r"2 heads of tiny-llama share .* by='kv_head'"):
        switch = switch_off(family_models["llama"], "uniform")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with intervene(family_models["llama"], switch.change(["L0H3"])):
            run_with_cache(family_models["llama"], [(5, 6, 7)], sites=["z"])
        switch_off(family_models["gpt2"], "uniform")
        switch_off(family_models["llama"], "zero")
