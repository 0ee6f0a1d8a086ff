"""What no measurement of circuits takes: training mode, equal pairs, graphs beyond the budget."""

import dataclasses
import re

import numpy as np
import pytest
import torch

import interp
from interp.circuits.circuit import Circuit
from interp.circuits.discovery import learned_masks as masks
from interp.circuits.discovery.find import find_circuit
from interp.circuits.discovery.learned_masks import learn_mask
from interp.circuits.evaluation.knockouts import completeness
from interp.circuits.evaluation.neuron_circuits import evaluate_neurons
from interp.circuits.ground_truth.recovery import edge_ground_truth
from interp.circuits.model_graph import graph_of
from interp.circuits.scoring import score_edges as scoring
from interp.circuits.trials import memory as room
from interp.circuits.trials.memory import edge_tape
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError
from interp.models.loading import wrap
from tests.circuits.measured import measured
from tests.families import random_task, tiny


def whole(model):
    graph = graph_of(model)
    return Circuit(graph=graph, mask=graph.mask())


def neuron_scores():
    """Scores of a toy's neurons."""
    toy = interp.load_model("toy-and")
    task = interp.load_task("toy-and", toy).first(2)
    by = ("layer", "neuron")
    return interp.activation_patching(toy, task, site="post", by=by, cache=False)


CALLS = {
    "score_edges": interp.circuits.score_edges,
    "acdc": lambda m, t: interp.circuits.acdc(m, t, threshold=0.1, resume=False),
    "learn_mask": lambda m, t: learn_mask(m, t, steps=1),
    "redundancy": lambda m, t: interp.circuits.redundancy(m, t, ["L0H0", "L0H1"], resume=False),
    "edge_positions": lambda m, t: interp.circuits.edge_positions(
        m, t, ["input->L0H0.q"], positions="changed"
    ),
    "evaluate_circuit": lambda m, t: interp.circuits.faithfulness_curve(m, t, whole(m)),
    "find_circuit": find_circuit,
    "recover": lambda m, t: interp.circuits.recover_edges(m, t, methods=["EAP"]),
    "edge_ground_truth": edge_ground_truth,
    "completeness": lambda m, t: measured(completeness, Trials(m, t), whole(m)),
    "evaluate_neurons": lambda m, t: evaluate_neurons(m, t, neuron_scores()),
    "attribution_patching": interp.attribution_patching,
    "atp_star": interp.patching.atp_star,
    "path_patching": lambda m, t: interp.path_patching(m, t, receivers=["logits"]),
    "joint_patching": lambda m, t: interp.joint_patching(m, t, ["L0H0"], draws=1),
    "activation_patching": interp.activation_patching,
}
ONE_PROMPT_ALONE = {"joint_patching", "activation_patching", "evaluate_neurons"}
"""Those that take an equal pair: its effect is zero, or they look at something else first."""


@pytest.mark.parametrize("name", CALLS)
def test_training_mode_is_refused(name, family_models):
    model, task = family_models["llama"], random_task()
    model.bridge.train()
    try:
        with pytest.raises(InterpError, match="training mode"):
            CALLS[name](model, task)
    finally:
        model.bridge.eval()


@pytest.mark.parametrize("name", sorted(set(CALLS) - ONE_PROMPT_ALONE))
def test_equal_pairs_are_refused(name, family_models):
    task = random_task()
    same = dataclasses.replace(task.pairs[1], corrupted=task.pairs[1].clean)
    mixed = dataclasses.replace(task, pairs=(task.pairs[0], same))
    with pytest.raises(InterpError, match="equal in 1 of 2, first in pair 1"):
        CALLS[name](family_models["llama"], mixed)


# -- graphs beyond the budget ----------------------------------------------------------------


def test_scores_of_one_prompt_beyond_the_budget_are_refused(family_models, monkeypatch):
    """By the matrices alone, where prompts are short and graphs are wide; before anything runs."""
    monkeypatch.setattr(scoring, "chunks", None)
    monkeypatch.setattr(room, "tape_bytes", lambda decoder, longest: 0)
    monkeypatch.setattr(scoring, "_held", lambda work, points: 0)
    model, task = family_models["llama"], random_task((5, 5))
    size = graph_of(model).allowed.size
    for method in ("EAP", "exact"):
        with pytest.raises(InterpError, match=r"scores of 190 edges needs a budget of") as refusal:
            interp.circuits.score_edges(model, task, method=method, budget_gb=4 * 8 * size / 1e9)
    assert "budget_gb=" in refusal.value.do


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "gemma2", "olmo2"])
def test_tapes_are_no_larger_than_is_said(name):
    """Against the tensors that autograd saves, each storage once."""
    model = wrap(tiny(name), None, name=name, check=False)
    trials = Trials(model, random_task((9,)), TrialOptions(ablation="zero"))
    gates = torch.tensor(trials.graph.allowed).float().mul(0.5).requires_grad_()
    kept, sizes = [], {}

    def note(tensor):
        kept.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        trials.metric(gates[None])
    said = 9 * edge_tape(model.decoder, trials.graph)
    assert said / 4 < sum(sizes.values()) < said


def test_a_mask_learns_the_same_within_any_budget_that_holds_a_prompt(monkeypatch):
    model = wrap(tiny("llama"), None, name="llama", check=False)
    task, options = random_task((6, 9, 6)), {"steps": 3, "samples": 2, "lr": 0.3}
    monkeypatch.setattr(masks, "mean_gap", lambda ends: 1.0)
    large = learn_mask(model, task, **options)
    with pytest.raises(InterpError, match="9 tokens with its gradient needs") as refusal:
        learn_mask(model, task, budget_gb=1e-4, **options)
    enough = float(re.search(r"budget_gb=([\d.e-]+)", refusal.value.do).group(1))
    held = []
    each = Trials.each

    def spy(self, gates, *, mask, prompt):
        if gates.requires_grad:
            held.append(int(self._lengths[prompt].sum()))
        return each(self, gates, mask=mask, prompt=prompt)

    monkeypatch.setattr(Trials, "each", spy)
    small = learn_mask(model, task, budget_gb=enough, **options)
    tape = edge_tape(model.decoder, large.graph)
    assert len(held) == 3 * 6
    assert max(held) * tape <= enough * 1e9
    np.testing.assert_allclose(small.signed, large.signed, atol=1e-5)
    np.testing.assert_allclose(small.losses, large.losses, atol=1e-5)
