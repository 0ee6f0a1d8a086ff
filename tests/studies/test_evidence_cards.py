"""The evidence cards of the study reports, from the steps that ship."""

import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from interp.overview.evidence_card import TIERS
from interp.studies.refusal.report import evidence as refusal
from interp.studies.refusal.settings import REFUSAL
from interp.studies.report.markdown import shown
from interp.studies.reuse.report import evidence as reuse
from interp.studies.reuse.settings import REUSE
from interp.studies.study import SHIPPED, open_study
from interp.studies.training.report import evidence as training
from interp.studies.verification.report import evidence as verification
from interp.studies.verification.settings import VERIFICATION
from interp.studies.verification.steps.interchange import OTHER
from tests import ROOT

CARDS = {
    "verification-countdown-smollm2": (VERIFICATION, verification.card, TIERS[4]),
    "refusal-refusal-smollm2": (REFUSAL, refusal.card, TIERS[3]),
    "refusal-smollm2-135m-instruct": (REFUSAL, refusal.card, TIERS[1]),
    "reuse-smollm2-135m-instruct": (REUSE, reuse.card, TIERS[3]),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_shipped_report_shows_the_card_of_its_steps(name):
    kind, card, tier = CARDS[name]
    found = card(open_study(kind, SHIPPED / name))
    assert found.tier == tier
    text = (SHIPPED / name / "report.md").read_text()
    assert f"{found.task}: **{tier}**" in text
    for row in found.rows:
        assert f"| {row.family} | {row.name} | {shown(row.value)} | {row.value.n} |" in text
    assert all(f"| {family} |" not in text for family in found.absent)


def test_a_card_follows_the_steps():
    study = open_study(VERIFICATION, SHIPPED / "verification-countdown-smollm2")
    rows = {row.name: row for row in verification.card(study).rows}
    cell = study.results["interchange"]["sets"]["A_Verif"]["exchanges"][OTHER]["invalid"]
    told = rows["invalid verdicts turned by A_Verif"]
    assert told.value.mean == cell["flipped"]["mean"]
    assert told.above == 0 == max(cell["flipped_null"])
    direct, p = rows["paths into the logits, top 6 heads"], study.results["paths_direct"]["null"]
    assert (direct.value.low, direct.above, direct.p) == (
        p["unseen"]["low"],
        p["high"],
        p["flips"]["p"],
    )
    results = deepcopy(dict(study.results))
    for into in ("direct", "glu"):
        results[f"paths_{into}"]["null"]["flips"]["p"] = 0.2
    assert verification.card(replace(study, results=results)).tier == TIERS[3]
    results["patching"]["noise"]["null"]["high"] = 0.3
    for x in results["interchange"]["sets"]["A_Verif"]["exchanges"][OTHER].values():
        x["flipped_null"] = [0.0] * 25 + [1.0] * 25
    assert verification.card(replace(study, results=results)).tier == TIERS[1]
    results["probes"]["t_paren"]["resid_post"]["shuffled_high"] = [1.0]
    assert verification.card(replace(study, results=results)).tier == TIERS[0]


def test_an_adapter_s_own_behaviour_stands_beside_the_other_adapters():
    results = json.loads((ROOT / "experiments/results/what_training_changed.json").read_text())
    study: Any = SimpleNamespace(results=results, model="smollm2-135m-instruct")
    found = training.card(study)
    assert found.tier == TIERS[3]
    (row,) = [x for x in found.rows if x.name == "change of its behaviour by refusal-smollm2"]
    own = results["alone"]["refusal-smollm2"]["refusal-smollm2"]["change"]
    others = [x["refusal-smollm2"]["change"]["mean"] for x in results["alone"].values()]
    assert row.value.mean == own["mean"] == max(others)
    assert max(0.0, min(others)) <= row.above <= sorted(others)[-2]
    swapped = deepcopy(results)
    for x in swapped["alone"].values():
        x["refusal-smollm2"]["change"] = own  # every adapter does the same
    study.results = swapped
    assert not next(x for x in training.card(study).rows if x.name == row.name).holds
