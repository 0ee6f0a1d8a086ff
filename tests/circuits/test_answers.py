"""Answers of several tokens in circuits: every run equals plain passes over prompt + answer."""

import numpy as np
import pytest
import torch

from interp.circuits.discovery.find import find_circuit
from interp.circuits.evaluation import neuron_circuits
from interp.circuits.evaluation.evaluate import evaluate
from interp.circuits.scoring import score_edges as scoring
from interp.circuits.scoring.score_edges import score_edges
from interp.circuits.trials import trials as running
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.removed_edges import ablated_runs
from interp.circuits.trials.trials import Trials
from interp.core.prompts import PromptPair, Task
from interp.engine.forward import Runner
from interp.models.loading import wrap
from interp.patching import spec
from interp.patching.activation import activation_patching
from interp.tasks.registry import load_task
from tests.answers import plain_logits, scored, several, string
from tests.families import random_task, tiny, true_double

NAMES = ("gpt2", "neox", "llama", "gemma2", "olmo2", "gpt-oss")


@pytest.fixture(autouse=True)
def any_gap(monkeypatch):
    for module in (spec, scoring, running, neuron_circuits):
        if hasattr(module, "check_gap"):
            monkeypatch.setattr(module, "check_gap", lambda *ends: None)


def one_token_rows(task):
    """Every token of every answer as a prompt of its own: the same runs, without branches.

    A row reads one token with log_prob; `weights` say how the rows add up to log_prob_diff.
    """
    pairs, owner, weights = [], [], []
    for i, pair in enumerate(task.pairs):
        for answers, sign in ((pair.answers, 1), (pair.wrong, -1)):
            for answer in map(string, answers):
                for j, token in enumerate(answer):
                    clean, corrupted = (
                        (*side, *answer[:j]) for side in (pair.clean, pair.corrupted)
                    )
                    pairs.append(PromptPair(clean=clean, corrupted=corrupted, answers=(token,)))
                    owner.append(i)
                    weights.append(sign / len(answers))
    rows = Task(name="rows", pairs=tuple(pairs)).with_metric("log_prob")
    fold = np.zeros((len(task), len(pairs)))
    fold[owner, np.arange(len(pairs))] = weights
    return rows, fold


@pytest.mark.parametrize("ablation", ["counterfactual", "zero"])
@pytest.mark.parametrize("name", NAMES)
def test_circuits_equal_runs_without_branches(name, ablation, doubles):
    model, task = doubles(name), several(random_task(lengths=(8, 6, 8)))
    rows, fold = one_token_rows(task)
    options = TrialOptions(ablation=ablation)
    trials, plain = Trials(model, task, options), Trials(model, rows, options)
    rng = np.random.default_rng(0)
    masks = trials.graph.allowed & (rng.random((6, *trials.graph.shape)) < 0.7)
    masks[0], masks[1] = trials.graph.mask(), False
    found, slow = trials.values(masks), plain.values(masks) @ fold.T
    np.testing.assert_allclose(found, slow, atol=1e-6)
    assert np.ptp(found[2:], axis=0).min() > 1e-4, "circuits that are all alike prove nothing"


def test_the_whole_graph_is_the_plain_model():
    with true_double():
        hf = tiny("llama", torch.float64)
        model = wrap(tiny("llama", torch.float64), name="llama", check=False)
        task = several()
        ends = Trials(model, task).ends()
        for i, pair in enumerate(task.pairs):
            for end, prompt in zip(ends, (pair.clean, pair.corrupted), strict=True):
                assert end[i] == pytest.approx(scored(plain_logits(hf), prompt, pair), abs=1e-9)


@pytest.mark.parametrize("method", ["EAP", "EAP-IG-inputs", "EAP-IG-activations", "exact"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_those_without_branches(name, method, doubles):
    model, task = doubles(name), several(random_task(lengths=(8, 6)))
    rows, fold = one_token_rows(task)
    given = {"method": method, "per_prompt": True}
    given |= {"steps": 3} if "IG" in method else {}
    if method == "exact":
        model, given["expand_kv"] = doubles("gpt2"), False
        if name != "gpt2":
            pytest.skip("one run per edge")
    found, slow = (score_edges(model, one, **given) for one in (task, rows))
    np.testing.assert_allclose(
        found.per_prompt,
        np.tensordot(fold, slow.per_prompt, 1),
        atol=2e-6,
    )
    assert np.abs(found.per_prompt).max() > 1e-4


@pytest.mark.parametrize("name", ["gpt2", "gpt-oss"])
def test_a_path_to_constants_ends_where_single_tokens_say(name, doubles):
    """At its end all tokens are equal; the sum along the path is compared with what is read."""
    model, reference = doubles(name), random_task(lengths=(8, 6), seed=5)
    task = several(random_task(lengths=(8,)))
    rows, fold = one_token_rows(task)
    given = {"method": "EAP-IG-inputs", "ablation": "mean", "reference": reference, "steps": 2}
    found = score_edges(model, task, **given)
    error = 0.0
    for weight, pair in zip(fold[0], rows.pairs, strict=True):
        one = score_edges(model, Task(name="row", pairs=(pair,)).with_metric("log_prob"), **given)
        error += weight * one.completeness_gap * one.gap
    assert found.completeness_gap * found.gap == pytest.approx(error, abs=1e-5)
    assert abs(error) > 1e-4


def test_edges_of_a_last_head_are_its_patch(doubles):
    model, task = doubles("gpt2"), several()
    last = model.n_layers - 1
    swept = activation_patching(
        model, task, layers=[last], direction="noise", unit="metric", cache=False
    )
    trials = Trials(model, task)
    graph = trials.graph
    masks = np.repeat(graph.mask()[None], model.n_heads, 0)
    for head in range(model.n_heads):
        masks[head, graph.heads(last).start + head] = False
    lost = trials.values(graph.mask()[None]) - trials.values(masks)
    np.testing.assert_allclose(lost.T, swept.effects[:, 0], atol=1e-6)


def test_a_planted_circuit_is_found_from_answers_of_two_tokens(toy):
    """A constant second token leaves the behaviour, and so the strongest edges, as they are."""
    task = load_task(toy.name, n=8)
    end = toy.single_token(task.pairs[0].wrong[0])

    def longer(answers):
        return tuple((toy.single_token(answer), end) for answer in answers)

    pairs = tuple(
        PromptPair(
            clean=pair.clean,
            corrupted=pair.corrupted,
            answers=longer(pair.answers),
            wrong=longer(pair.wrong),
        )
        for pair in task.pairs
    )
    two = Task(name="two tokens", pairs=pairs).with_metric("log_prob_diff")
    found = find_circuit(toy, two)
    best = np.argsort(-found.absolute.ravel())[:3]
    named = {found.graph.label(*np.unravel_index(i, found.absolute.shape)) for i in best}
    assert named == {"input->L0KV0.v", "L0H1->L1KV1.k", "L1H2->logits"}
    report = evaluate(found.circuit(), toy, two, random=2, knockouts=2, draws=2)
    assert report.itself.estimate(0).mean == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("ablation", ["counterfactual", "zero"])
def test_neuron_circuits_equal_runs_without_branches(doubles, ablation):
    model, task = doubles("llama"), several(random_task(lengths=(8, 6, 8)))
    rows, fold = one_token_rows(task)
    options, runner = TrialOptions(ablation=ablation), Runner(model.decoder)
    masks = np.random.default_rng(0).random((3, model.n_layers, model.d_mlp)) < 0.5
    found, slow = (
        neuron_circuits._values(runner, one, ablated_runs(model, one, options), masks, options)
        for one in (task, rows)
    )
    np.testing.assert_allclose(found, slow @ fold.T, atol=1e-6)
    assert np.ptp(found, axis=0).min() > 1e-6
