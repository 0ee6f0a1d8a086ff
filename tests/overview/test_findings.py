"""Scan are exact effects; the gradient only chooses what is measured."""

import dataclasses
import json

import numpy as np
import pytest

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.overview.findings import ScanEffect, scan
from interp.patching.activation import activation_patching
from interp.runs.hooks import intervene
from interp.runs.kinds import zero


@pytest.fixture(scope="module")
def pair(smollm):
    return scan(smollm, "The capital of France is", "The capital of Italy is", k=4, draws=6)


def test_effects_with_a_foil_are_those_of_activation_patching(smollm, pair):
    for finding in pair.found:
        layer, site = finding.component.layer, finding.component.site
        by = ("layer", "head") if site == "z" else ("layer",)
        scores = activation_patching(
            smollm, pair.task, site=site, by=by, layers=[layer], unit="metric", cache=False
        )
        expected = scores.estimate(str(finding.component)).mean
        assert finding.exact == pytest.approx(expected, abs=1e-3)


def test_the_strongest_come_first_and_stand_beside_random_ones(pair):
    sizes = [abs(finding.exact) for finding in pair.found]
    assert sizes == sorted(sizes, reverse=True)
    assert pair.gap == pytest.approx(pair.clean - pair.corrupted)
    assert pair.changed == ((" France", " Italy"),)
    assert all(finding.null.draws == 6 for finding in pair.found)
    assert all(0 <= finding.larger_than <= 6 for finding in pair.found)
    assert pair.provenance.model_hash == pair.parts.run.model.hash
    assert len(pair.sentences) == 5
    assert pair.parts.total == pytest.approx(pair.clean, abs=1e-3)
    assert json.loads(json.dumps(pair.to_dict()))["n"] == 1
    assert str(pair.found[0].component) in pair.to_dataframe()["component"].tolist()


def test_without_a_foil_each_is_set_to_zero(smollm):
    prompt = "The Eiffel Tower is in the city of"
    found = scan(smollm, prompt, k=3, draws=3)
    assert found.corrupted is None
    assert found.gap is None
    right, wrong = found.task.pairs[0].answers[0], found.task.pairs[0].wrong[0]
    top = smollm.last_logits([prompt])[0].topk(2).indices.tolist()
    assert [right, wrong] == top
    for finding in found.found:
        with intervene(smollm, zero(str(finding.component))):
            logits = smollm.last_logits([prompt])[0]
        lost = found.clean - float(logits[right] - logits[wrong])
        assert finding.exact == pytest.approx(lost, abs=1e-3)


def test_a_foil_of_one_token_is_the_wrong_answer(smollm):
    prompt = "The Eiffel Tower is in the city of"
    found = scan(smollm, prompt, " Rome", k=2, draws=2)
    assert found.corrupted is None
    assert found.words == "␣Paris - ␣Rome"


@pytest.mark.parametrize(
    ("estimate", "exact", "verdict"),
    [
        (1.0, 1.5, ""),
        (-1.0, 1.5, "the gradient has the wrong sign"),
        (4.0, 1.5, "the gradient overstates it"),
        (0.5, 1.5, "the gradient understates it"),
    ],
)
def test_what_the_gradient_got_wrong_is_said(pair, estimate, exact, verdict):
    first = pair.found[0]
    finding = ScanEffect(
        component=first.component, estimate=estimate, exact=exact, direct=0.0, null=first.null
    )
    assert finding.verdict == verdict


def test_bad_input_is_refused(smollm):
    with pytest.raises(InterpError, match=r"5 and \d+ tokens"):
        scan(smollm, "The capital of France is", "The capital of the Ivory Coast is")
    with pytest.raises(InterpError, match="inside intervene"), intervene(smollm, zero("L0H0")):
        scan(smollm, "The capital of France is")
    with pytest.raises(InterpError, match="components of a scan"):
        scan(smollm, "The capital of France is", k=0)


def test_a_scan_can_be_cancelled(smollm):
    with pytest.raises(InterpError, match="stopped"):
        scan(smollm, "The capital of France is", cancelled=lambda: True)


def test_a_scan_counts_its_runs(smollm, monkeypatch):
    monkeypatch.setattr("interp.patching.joint.CPU_TILE", 20)  # few runs at once
    seen = []
    scan(smollm, "The capital of France is", k=2, draws=3, progress=lambda *at: seen.append(at))
    done, total = zip(*seen, strict=True)
    assert len(done) > 1
    assert list(done) == sorted(set(done))
    assert set(total) == {done[-1]}


def test_it_runs_on_every_family_and_toy_with_its_defaults(family):
    """However few heads and MLPs there are, each is compared with those that exist."""
    if family.decoder is None:
        pytest.skip(str(family.engine_reason))
    for foil in (None, (5, 9, 2, 9, 12, 3)):
        found = scan(family, (5, 9, 2, 9, 11, 3), foil, answer=4, wrong=8)
        assert len(found.found) == 10
        for one in found.found:
            others = 20 if one.component.site == "z" else family.n_layers - 1
            count = family.n_layers * family.n_heads - 1
            assert one.null.draws == min(others, count)


def test_others_are_from_the_own_layer_first(smollm):
    from interp.overview.findings import _nearest

    heads = [Component(layer, "z", head) for layer in range(30) for head in range(9)]
    near = _nearest(heads[200], heads, 20, np.random.default_rng(0))
    layers = [abs(other.layer - heads[200].layer) for other in near]
    assert layers == [0] * 8 + [1] * 12
    assert heads[200] not in near


def test_a_small_gap_gives_no_shares(pair):
    """Effects larger than twice the gap are given in logits only."""
    small = dataclasses.replace(pair, corrupted=pair.clean - 0.1)
    assert not any("% of the gap" in line for line in small.sentences)
    assert "a small gap" in small.sentences[0]
    assert "% of the gap" in pair.sentences[1]
