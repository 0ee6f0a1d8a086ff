"""The evidence card: planted effects reach their tier, noise does not, criteria stay as saved."""

import dataclasses
import json

import numpy as np
import pytest

import interp
from interp.core.errors import InterpError
from interp.heads.direct_attribution import head_logit_attribution
from interp.overview import Criteria, evidence
from interp.overview.evidence_card import TIERS
from interp.results.provenance import provenance
from interp.results.scores import Scores


@pytest.fixture(scope="module")
def toy():
    model = interp.load_model("toy-induction")
    return model, interp.load_task("toy-induction", n=12)


@pytest.fixture(scope="module")
def patched(toy):
    return interp.activation_patching(*toy, site="z", by=("layer", "head"))


def made(effects, method="activation patching", task="made", model=None):
    """`Scores` of four layers of heads with given effects, and gaps of about 1."""
    n, heads = len(effects), effects.shape[-1]
    model = model or interp.load_model("toy-induction")
    origin = provenance(model, interp.load_task("toy-induction", n=4), "made()")
    return Scores(
        effects=effects,
        clean=np.linspace(0.9, 1.1, n),
        corrupted=np.zeros(n),
        axes=("layer", "head"),
        coordinates={
            "layer": tuple(map(str, range(effects.shape[1]))),
            "head": tuple(map(str, range(heads))),
        },
        site="z",
        direction="denoise",
        method=method,
        metric="logit_diff",
        metric_unit="logits",
        positions="all",
        provenance=origin,
    )


@pytest.mark.long
def test_noise_reaches_no_tier_more_often_than_its_level():
    reached = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=(16, 4, 9))
        reached += evidence(made(noise), k=3).tier != TIERS[0]
    assert reached <= 13  # 5 % of 200, and two standard errors


def test_planted_effects_reach_the_tier_of_their_method():
    planted = np.random.default_rng(0).normal(scale=0.1, size=(16, 4, 9))
    planted[:, 2, :3] += 0.4
    assert evidence(made(planted), k=3).tier == TIERS[3]
    assert evidence(made(planted, "attribution patching"), k=3).tier == TIERS[1]
    assert evidence(made(planted, "direct attribution"), k=3).tier == TIERS[1]
    both = evidence(made(planted), made(planted, "path patching into logits"), k=3)
    assert both.tier == TIERS[4]
    assert evidence(made(planted, "path patching into logits"), k=3).tier == TIERS[1]


def test_a_few_prompts_have_no_null_and_stay_below(patched):
    few = evidence(made(np.full((3, 4, 9), 0.5) + np.random.default_rng(0).normal(size=(3, 4, 9))))
    row = few.rows[-1]
    assert not row.held_out
    assert row.null == ""
    strong = np.full((3, 4, 9), 0.01) + np.linspace(0, 1e-3, 3)[:, None, None]
    strong[:, 1, 2] += 0.5
    assert evidence(made(strong)).tier == TIERS[2]


def test_a_row_is_what_the_result_itself_says(toy, patched):
    model, task = toy
    card = evidence(patched, head_logit_attribution(model, task), k=1)
    test = patched.null(1)
    [row] = [row for row in card.rows if row.family == "causal"]
    assert row.value == test.unseen
    assert row.p == test.flips.p
    assert row.above == max(0, test.high)
    assert card.absent == ("structural", "representational")
    assert [row.family for row in card.rows] == ["behavioural", "causal", "informational"]
    assert "not measured: whether the parts act" in str(card)
    assert len(card.to_dataframe()) == 3


def test_circuits_are_held_out_if_found_on_other_prompts(toy, patched):
    model, task = toy
    first = task.first(6)
    other = dataclasses.replace(task, pairs=task.pairs[6:])
    circuit = interp.find_circuit(model, first).circuit(3)
    here, there = (
        interp.circuits.evaluate(circuit, model, on, random=20, knockouts=0, stable_by=None)
        for on in (first, other)
    )
    [same], [new] = (evidence(one).rows for one in (here, there))
    assert (same.held_out, new.held_out) == (False, True)
    assert new.value == there.itself.estimate(0)
    assert evidence(patched, here, k=1).tier == TIERS[3]
    assert evidence(patched, there, k=1).tier == TIERS[4]


def test_probes_stand_beside_the_best_of_shuffled_ones():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2 == 0
    told, noise = rng.normal(size=(2, 60, 2, 5))
    told[labels, 0, 0] += 4
    options = {"groups": np.arange(60), "shuffles": 20}
    import torch

    good, bad = (
        interp.probing.train_probes(torch.tensor(x).transpose(0, 1), labels, **options)
        for x in (told, noise)
    )
    assert evidence(good).tier == TIERS[1]
    assert evidence(bad).tier == TIERS[0]
    assert evidence(good).rows[0].value.mean == float(good.heldout.auc.max())


def test_criteria_are_kept_as_they_were(tmp_path, patched):
    name = "activation patching, z, top 1"
    path = tmp_path / "criteria.json"
    said = Criteria(at_least={name: 0.5}).save(path)
    kept = Criteria.load(path)
    assert kept.hash == said
    assert evidence(patched, k=1, criteria=kept).met == {name: True}
    assert evidence(patched, k=1, criteria=Criteria(at_least={name: 1.5})).met == {name: False}
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"at_least": {name: 0.1}}))
    with pytest.raises(InterpError, match="their hash"):
        Criteria.load(path)
    path.write_text("[]")
    with pytest.raises(InterpError, match="criteria in"):
        Criteria.load(path)
    with pytest.raises(InterpError, match="criterion 'speed'"):
        evidence(patched, criteria=Criteria(at_least={"speed": 1.0}))


def test_results_that_do_not_belong_together_are_refused(patched):
    with pytest.raises(InterpError, match="no results"):
        evidence()
    with pytest.raises(InterpError, match="evidence of a dict"):
        evidence({})
    other = interp.load_model("toy-verification")
    with pytest.raises(InterpError, match="one model"):
        evidence(patched, made(np.ones((4, 4, 9)), model=other))
