"""What carries a steering vector, and whether several directions of refusal have one effect."""

from dataclasses import replace

import pytest
import torch

import interp
from interp.refusal.cases import taboo_cases
from interp.refusal.score import score_refusals, suggest_refusal_tokens
from interp.runs.capture import run_with_cache
from interp.steering.edits import add_direction
from interp.studies.refusal.report import claims
from interp.studies.refusal.settings import RefusalContext, RefusalSettings
from interp.studies.refusal.steps import carriers, one_effect
from interp.studies.refusal.steps.directions import place_of, selection

KIND = "harmful-harmless"


@pytest.fixture(scope="module")
def context():
    """Gardening requests, of two kinds that differ in nothing, refused; all others answered."""
    model = interp.load_model("refusal-tiny")
    given = [case for case in taboo_cases(64) if case.task == "request"]
    cases = tuple(
        replace(case, kind=f"kind {i % 2}", should="refuse" if case.kind == "taboo" else "answer")
        for i, case in enumerate(given)
    )
    labels = tuple("direct_refusal" if x.should == "refuse" else "direct_answer" for x in cases)
    settings = RefusalSettings(n=24, max_new_tokens=20, select=6, draws=2)
    bare = RefusalContext(model=model, cases=cases, settings=settings, labels=labels)
    sides = [bare.logits(bare.rows("find", refused=x)) for x in (True, False)]
    first, wrong = (suggest_refusal_tokens(model, *some).ids for some in (sides, sides[::-1]))
    return replace(bare, tokens=first, wrong=wrong)


@pytest.fixture(scope="module")
def place(context):
    return place_of(selection(context, KIND))


@pytest.fixture(scope="module")
def own(context, place):
    return context.direction(KIND, place)


@pytest.fixture(scope="module")
def carried(context, own):
    return carriers.carriers(context, own)


@pytest.mark.long
def test_with_everything_frozen_the_vector_is_added_to_the_last_state(context, own, carried):
    decoder = context.model.require_decoder("a test")
    for side, sign, wanted in (("added", 1, "answer"), ("subtracted", -1, "refuse")):
        rows = context.few(context.rows("test", should=wanted), carriers.ROWS)
        prompts = context.prompts[rows]
        last = context.model.n_layers - 1
        kept = run_with_cache(
            context.model, list(prompts.rows), sites=["resid_post"], layers=[last], positions="last"
        )
        ends = kept[last, "resid_post"].reshape(len(rows), -1)
        with torch.no_grad():
            logits = decoder.logits(decoder.ln_final(ends + sign * own.vector.to(ends)))
        direct = score_refusals(logits, context.tokens).double()
        before = context.scores(rows).double()
        after = context.scores(rows, add_direction(context.model, own, coefficient=sign)).double()
        share = float((direct - before).sum() / (after - before).sum())
        found = carried["sides"][side]
        assert found["plain"] == pytest.approx(float(before.mean()), abs=1e-4)
        assert found["steered"] == pytest.approx(float(after.mean()), abs=1e-4)
        name = "both: the vector's own way to the output"
        assert found["frozen"][name]["mean"] == pytest.approx(share, abs=1e-3)


def test_frozen_parts_are_those_of_a_run_by_hand(context, own, carried):
    """Patterns and MLPs put back by plain PyTorch hooks, one prompt at a time."""
    rows = context.few(context.rows("test", should="refuse"), carriers.ROWS)
    module, layers = context.model.hf_model, range(own.layer, context.model.n_layers)
    blocks = module.model.layers
    shares = []
    for name in ("mlp", "self_attn"):
        gained = gap = 0.0
        for row in (context.prompts[rows].rows)[:4]:
            ids, plain, kept = torch.tensor([row]), {}, []
            for layer in layers:
                part = getattr(blocks[layer], name)
                kept.append(part.register_forward_hook(keeper(plain, layer)))
            before = scored(module, ids, context)
            for hook in kept:
                hook.remove()
            start = blocks[own.layer].register_forward_pre_hook(
                lambda _, args, kwargs: ((args[0] - own.vector.to(args[0]), *args[1:]), kwargs),
                with_kwargs=True,
            )
            after = scored(module, ids, context)
            hooks = [
                getattr(blocks[layer], name).register_forward_hook(putter(plain, layer))
                for layer in layers
            ]
            frozen = scored(module, ids, context)
            for hook in (start, *hooks):
                hook.remove()
            gained, gap = gained + frozen - before, gap + after - before
        shares.append(gained / gap)
    found = carriers._of(context, own, -1.0, rows[:4], layers=False)["frozen"]
    assert found["what MLPs write"]["mean"] == pytest.approx(shares[0], abs=1e-3)
    assert found["what attention writes"]["mean"] == pytest.approx(shares[1], abs=1e-3)


def scored(module, ids, context):
    with torch.no_grad():
        logits = module(ids).logits[:, -1].float()
    return float(score_refusals(logits, context.tokens)[0])


def keeper(plain, layer):
    def keep(_, args, out):
        plain[layer] = (out[0] if isinstance(out, tuple) else out).clone()

    return keep


def putter(plain, layer):
    def put(_, args, out):
        return (plain[layer], *out[1:]) if isinstance(out, tuple) else plain[layer]

    return put


def test_a_change_that_is_nothing_has_no_shares(context, own):
    """Shares of a change that is not apart from 0 would be arbitrary numbers."""
    nothing = replace(own, vector=own.vector * 1e-12)
    found = carriers.carriers(context, nothing)
    assert found["sides"] == {}
    assert list(found["left_out"]) == ["added", "subtracted"]
    for why in found["left_out"].values():
        assert "not apart from 0" in why


def test_all_entries_are_the_whole_vector(context, own, monkeypatch):
    monkeypatch.setattr(carriers, "KEPT", (1.0, 0.01))
    rows = context.few(context.rows("test", should="refuse"), 6)
    every, few = carriers._of(context, own, -1.0, rows)["sparse"]
    for one in (every["largest"], *every["random"]):
        assert one["mean"] == pytest.approx(1.0, abs=1e-4)
    assert few["kept"] == 2
    assert few["largest"]["mean"] < 0.9


def test_two_halves_of_one_kind_are_one_direction_with_one_effect(context, own, place, monkeypatch):
    monkeypatch.setattr(one_effect, "LEAST_REFUSED", 4)
    found = one_effect.one_effect(context, own, place)
    assert found["groups"] == ["kind 1", "kind 0"]
    sides = one_effect.groups(context, "find")
    means = []
    for name in found["groups"]:
        first, second = (context.ends(rows)[:, place[0], place[1]].double() for rows in sides[name])
        means.append(first.mean(0) - second.mean(0))
    cosine = float(torch.nn.functional.cosine_similarity(*means, dim=0))
    assert found["cosines"][0][1] == pytest.approx(cosine, abs=1e-6)
    assert found["cosines"][0][0] == pytest.approx(1.0)
    for name, x in found["others"].items():
        other = [found["drop"][name][group]["mean"] for group in found["groups"] if group != name]
        assert x["drop"]["mean"] == pytest.approx(other[0])
        assert x["share"] > one_effect.ENOUGH
        assert x["drop"]["low"] > max(found["random"])
    verdict, _ = claims.one_effect({"one_effect": found})
    apart = cosine < 0.9 * found["reach"][0][1]
    assert verdict is (True if apart else None)
    # The drop at dose -1 is the plain score minus that of the curve.
    drops = [found["drop"]["kind 0"][name]["mean"] for name in found["groups"]]
    counts = [found["rows"][name] for name in found["groups"]]
    mean = sum(a * b for a, b in zip(drops, counts, strict=True)) / sum(counts)
    curve = found["curves"]["kind 0"][0][0]["mean"]
    assert mean == pytest.approx(found["plain"][0]["mean"] - curve, abs=1e-4)


def test_a_direction_of_another_thing_does_not_do_the_same(context, own, place, monkeypatch):
    """One group's direction is that between two halves of its answered rows."""
    monkeypatch.setattr(one_effect, "LEAST_REFUSED", 4)
    seen = one_effect.groups

    def mixed(some, part):
        found = seen(some, part)
        calm = found["kind 0"][1]
        return {**found, "kind 0": (calm[::2], calm[1::2])} if part == "find" else found

    monkeypatch.setattr(one_effect, "groups", mixed)
    found = one_effect.one_effect(context, own, place)
    assert found["others"]["kind 0"]["beyond"]["high"] < 0
    assert found["others"]["kind 1"]["share"] > 1
    verdict, _ = claims.one_effect({"one_effect": found})
    assert verdict is not True


def test_too_few_groups_are_said(context, own, place, monkeypatch):
    monkeypatch.setattr(one_effect, "LEAST_REFUSED", 1000)
    assert "0 groups" in one_effect.one_effect(context, own, place)["skipped"]
    assert claims.one_effect({"one_effect": {"skipped": "0 groups"}}) is None
    assert claims.carriers({"carriers": {"sides": {}}}) is None
