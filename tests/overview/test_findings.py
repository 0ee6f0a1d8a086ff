"""Scan are exact effects; the gradient only chooses what is measured."""

import dataclasses
import json

import numpy as np
import pytest

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.overview.findings import ScanEffect, _first, _nearest, scan, scan_steps
from interp.patching.activation import activation_patching
from interp.runs.hooks import intervene
from interp.runs.kinds import zero


@pytest.fixture(scope="module")
def pair(smollm):
    return scan(smollm, "The capital of France is", "The capital of Italy is", k=4, draws=6)


BY = {"z": ("layer", "head"), "mlp_out": ("layer",), "resid_pre": ("layer", "position")}


@pytest.mark.long
def test_effects_with_a_foil_are_those_of_activation_patching(smollm, pair):
    assert {finding.component.site for finding in pair.found} == {*BY}
    for finding in pair.found:
        layer, site = finding.component.layer, finding.component.site
        scores = activation_patching(
            smollm, pair.task, site=site, by=BY[site], layers=[layer], unit="metric", cache=False
        )
        place = None if finding.position is None else str(finding.position)
        expected = scores.estimate(str(finding.component), place).mean
        assert finding.exact == pytest.approx(expected, abs=1e-3)


@pytest.mark.long
def test_the_strongest_come_first_and_stand_beside_random_ones(pair):
    sizes = [abs(finding.exact) for finding in pair.found]
    assert sizes == sorted(sizes, reverse=True)
    assert pair.gap == pytest.approx(pair.clean - pair.corrupted)
    assert pair.changed == ((" France", " Italy"),)
    assert all(finding.null.draws == 6 for finding in pair.found)
    (token,) = [finding for finding in pair.found if finding.position is not None]
    assert token.token == pair.parts.run.prompt.strings[token.position]
    assert f"{token.component} at ␣{token.token[1:]} (token {token.position})" in str(pair)
    assert token.direct is None
    assert all(0 <= finding.larger_than <= 6 for finding in pair.found)
    assert pair.provenance.model_hash == pair.parts.run.model.hash
    assert "task" not in pair.provenance.call  # a prompt is enough
    assert len(pair.sentences) == 1 + 4 + 1
    assert pair.parts.total == pytest.approx(pair.clean, abs=1e-3)
    assert json.loads(json.dumps(pair.to_dict()))["n"] == 1
    assert str(pair.found[0].component) in pair.to_dataframe()["component"].tolist()


@pytest.mark.long
def test_without_a_foil_each_is_set_to_zero(smollm):
    prompt = "The Eiffel Tower is in the city of"
    found = scan(smollm, prompt, k=3, draws=3)
    assert found.corrupted is None
    assert found.gap is None
    right, wrong = found.task.pairs[0].answers[0], found.task.pairs[0].wrong[0]
    top = smollm.last_logits([prompt])[0].topk(2).indices.tolist()
    assert [right, wrong] == top
    assert any(finding.position is not None for finding in found.found)
    for finding in found.found:
        at = "all" if finding.position is None else finding.position
        change = zero(str(finding.component), positions=at)
        with intervene(smollm, change):
            logits = smollm.last_logits([prompt])[0]
        lost = found.clean - float(logits[right] - logits[wrong])
        assert finding.exact == pytest.approx(lost, abs=1e-3)


@pytest.mark.long
def test_a_foil_of_one_token_is_the_wrong_answer(smollm):
    prompt = "The Eiffel Tower is in the city of"
    found = scan(smollm, prompt, " Rome", k=2, draws=2)
    assert found.corrupted is None
    assert found.words == "␣Paris - ␣Rome"


@pytest.mark.long
def test_whole_answers_are_measured_as_in_a_sweep(smollm):
    """Against `activation_patching` of log_prob_diff, and the first effect against plain runs."""
    texts = ("The capital city of Cambodia is", "The capital city of Norway is")
    found = scan(smollm, *texts, answer=" Phnom Penh", wrong=" Oslo", k=2, draws=2)
    assert (found.unit, found.parts) == ("nats", None)
    assert found.words == "log P(␣Phnom␣Penh) - log P(␣Oslo)"
    assert f"{found.clean:+.2f} nats after the prompt" in str(found)
    assert found.to_dict()["answer"] == " Phnom Penh"

    def log_prob(prompt, answer):
        before = smollm.tokenize(prompt).tokens
        tokens = smollm.tokenize(prompt + answer).tokens[len(before) :]
        runs = [before + tokens[:at] for at in range(len(tokens))]
        rows = smollm.last_logits(runs).double().log_softmax(-1)
        return float(sum(row[token] for row, token in zip(rows, tokens, strict=True)))

    for prompt, value in zip(texts, (found.clean, found.corrupted), strict=True):
        expected = log_prob(prompt, " Phnom Penh") - log_prob(prompt, " Oslo")
        assert value == pytest.approx(expected, abs=1e-3)
    for finding in found.found:
        layer, site = finding.component.layer, finding.component.site
        scores = activation_patching(
            smollm, found.task, site=site, by=BY[site], layers=[layer], unit="metric", cache=False
        )
        place = None if finding.position is None else str(finding.position)
        expected = scores.estimate(str(finding.component), place).mean
        assert finding.exact == pytest.approx(expected, abs=1e-3)
        assert finding.direct is None


def test_whole_answers_that_cannot_be_compared_are_refused(smollm):
    prompt = "The capital city of Cambodia is"
    with pytest.raises(InterpError, match="begins"):
        scan(smollm, prompt, answer=" Phnom Penh", wrong=" Ph")
    with pytest.raises(InterpError, match="the same tokens"):
        scan(smollm, prompt, answer=" Phnom Penh", wrong=" Phnom Penh")


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


@pytest.mark.long
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
    n = family.n_layers
    for foil, places in ((None, 6 * n), ((5, 9, 2, 9, 12, 3), 2 * (n - 1))):
        found = scan(family, (5, 9, 2, 9, 11, 3), foil, answer=4, wrong=8)
        tokens = [one for one in found.found if one.position is not None]
        assert len(tokens) == (2 if foil else 3)
        assert len(found.found) == len(tokens) + min(10, n * (family.n_heads + 1))
        assert found.of == n * (family.n_heads + 1) + places
        for one in found.found:
            count = {"z": n * family.n_heads - 1, "mlp_out": n - 1}.get(one.component.site)
            others = places - places // (2 if foil else 6)
            assert one.null.draws == min(20, others if count is None else count)


def test_others_are_from_the_own_layer_first():
    heads = [(Component(layer, "z", head), None) for layer in range(30) for head in range(9)]
    near = _nearest(heads[200], heads, 20, np.random.default_rng(0))
    layers = [abs(part.layer - heads[200][0].layer) for part, _ in near]
    assert layers == [0] * 8 + [1] * 12
    assert heads[200] not in near


def test_a_token_stands_beside_other_tokens():
    """The same token in a layer nearby has nearly the same stream: it is no comparison."""
    places = [(Component(layer, "resid_pre"), at) for layer in range(30) for at in range(5)]
    near = _nearest(places[52], places, 10, np.random.default_rng(0))
    assert [abs(part.layer - 10) for part, _ in near] == [0] * 4 + [1] * 6
    assert {at for _, at in near} == {0, 1, 3, 4}


def test_beside_the_components_are_tokens_each_at_one_layer():
    estimates = {
        (Component(layer, "resid_pre"), at): 10 + layer for layer in range(9) for at in (1, 2, 3)
    }
    estimates |= {(Component(layer, "z", 0), None): layer - 5 for layer in range(9)}
    first = _first(estimates, 7)
    assert [part for part, at in first if at is not None] == [Component(8, "resid_pre")] * 2
    assert len({at for _, at in first if at is not None}) == 2
    heads = [part.layer for part, at in first if at is None]
    assert heads == [0, 1, 2, 8, 3, 7, 4]
    assert all(at is None for _, at in _first(estimates, 2))


@pytest.mark.long
def test_step_by_step_the_estimates_become_the_exact_effects(smollm, pair):
    prompts = [one for one in (pair.task.pairs[0].clean, pair.task.pairs[0].corrupted)]
    steps = list(scan_steps(smollm, *prompts, k=4, draws=6))
    measured = [sum(one.exact is not None for one in step.found) for step in steps]
    assert measured == [0, 1, 2, 3, 4, 5]
    first, final = steps[0], steps[-1]
    assert all(one.verdict == "" and one.null is None for one in first.found)
    assert all("not measured yet" in sentence for sentence in first.sentences[1:])
    assert first.clean == pytest.approx(final.clean, abs=1e-3)
    assert first.corrupted == pytest.approx(final.corrupted, abs=1e-3)
    sizes = [abs(one.estimate) for one in first.found]
    assert sizes == sorted(sizes, reverse=True)
    assert final.to_dict()["findings"] == pair.to_dict()["findings"]
    assert {one.label: one.estimate for one in first.found} == {
        one.label: one.estimate for one in pair.found
    }


def test_a_small_gap_gives_no_shares(pair):
    """Effects larger than twice the gap are given in logits only."""
    small = dataclasses.replace(pair, corrupted=pair.clean - 0.1)
    assert not any("% of the gap" in line for line in small.sentences)
    assert "a small gap" in small.sentences[0]
    assert "% of the gap" in pair.sentences[1]
