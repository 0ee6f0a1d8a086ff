"""One reading of strings, prompts, positions, labels and metrics, on every public function."""

import importlib
import inspect
import pkgutil
import re
from dataclasses import fields, is_dataclass

import numpy as np
import pandas as pd
import pytest
import torch

import benchmarks
import interp
from benchmarks.circuits import bench_circuits
from interp.circuits.discovery.find import Finder
from interp.circuits.evaluation.curve_evaluation import faithfulness_curve
from interp.circuits.evaluation.evaluate import evaluate
from interp.circuits.evaluation.neuron_circuits import evaluate_neurons
from interp.circuits.ground_truth.recovery import edge_ground_truth
from interp.circuits.positions.narrow import narrow_circuit, narrow_curve
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.chat_prompts import PLAIN
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.core.records import Provenance
from interp.engine.memory import budget_bytes
from interp.features.attribution import feature_attribution
from interp.heads.attention_scores import attention_scores
from interp.models.loading import wrap
from interp.overview.single_run import run_once
from interp.patching.spec import read_sweep
from interp.probing.lens_maps import identity_lens
from interp.probing.lens_readings import read_lens
from interp.probing.lens_tests import lens_prediction
from interp.probing.tuned_lens import fit_tuned_lens
from interp.refusal.judging import Judge
from interp.runs.hooks import intervene
from interp.runs.kinds import (
    add,
    component_values,
    make_ablation,
    mean,
    patch,
    random_like,
    resample,
    scale,
    zero,
)
from interp.runs.stored_runs import keep_runs, site_values
from tests.families import random_task, tiny
from tests.features.made import random_dictionary
from tests.keywords import names_of

ROWS = [(5, 6, 7, 8, 9), (10, 11, 12), (13, 14, 15, 16)]
SENTENCE = "<bos> a b a"


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("llama"), name="inputs")


@pytest.fixture(scope="module")
def task():
    return random_task((7, 7, 7, 7), seed=3)


def same(a, b):
    """Whether two results hold the same values, whatever they are made of."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a, b, atol=1e-6, equal_nan=True)
    if isinstance(a, np.ndarray):
        both = a.shape == b.shape
        return both and (
            np.allclose(a, b, atol=1e-6, equal_nan=True)
            if a.dtype.kind == "f"
            else bool((a == b).all())
        )
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, interp.models.LanguageModel | Provenance) or callable(a):
        return True  # neither is what was measured
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return a == pytest.approx(b, abs=1e-6, nan_ok=True)
    return a == b


def cases(toy, model, task):
    """(function, parameter) -> a call with what is given for the parameter, and one string."""
    toy_task = interp.load_task("toy-induction", toy).first(4)
    graph = interp.circuits.graph_of(model)
    scores = interp.circuits.score_edges(model, task)
    patched = interp.activation_patching(model, task)
    whole = interp.Circuit(graph=graph, mask=interp.circuits.top_edges(scores, 40))
    edge = whole.edges()[0]
    head = "L0H1"
    sets = interp.runs.AblatedSets(model=model, prompts=ROWS, tokens=(5, 6))
    off, zeroed = interp.heads.switch_off(toy), interp.heads.switch_off(model)
    direction = interp.steering.difference_in_means(model, ROWS, ROWS[::-1][:2], last=1).at(1, -1)
    read = interp.steering.difference_in_means(toy, SENTENCE, "<bos> b", least=1, last=1)
    two = read.at(1, -1), read.at(1, -1)
    judge = Judge(name="any", verdict=lambda prompt, reply: "answered")
    trajectories = interp.refusal.read_trajectories(
        model,
        ROWS * 8,
        rows=list(map(str, range(24))),
        tasks=["t", "u"] * 12,
        classes=["answered", "refused", "refused"] * 8,
    )
    bank = interp.refusal.make_bank(trajectories)
    texts = ["<bos> a b c", "<bos> c a b"]
    candidates = interp.steering.difference_in_means(
        toy, ["<bos> a", "<bos> b"], ["<bos> c", "<bos> d"]
    )
    rng = np.random.default_rng(0)
    twenty = ["<bos> " + " ".join(rng.choice(list("abcdef"), 6)) for _ in range(24)]
    labels = [0, 1] * 12
    table = {
        ("make_ablation", "components"): (lambda x: make_ablation(model, x), head),
        ("ablate", "prompts"): (
            lambda x: interp.ablate(toy, x, make_ablation(toy, head), tokens=[1]).kl,
            SENTENCE,
        ),
        ("ablate", "tokens"): (
            lambda x: interp.ablate(toy, SENTENCE, [], tokens=x).probabilities,
            "a",
        ),
        ("ablation_curve", "order"): (lambda x: interp.runs.ablation_curve(sets, x), head),
        ("greedy_order", "candidates"): (lambda x: interp.runs.greedy_order(sets, x, 1), head),
        ("smallest_sets", "candidates"): (
            lambda x: interp.runs.smallest_sets(sets, x, most=1),
            head,
        ),
        ("AblatedSets", "prompts"): (
            lambda x: interp.runs.AblatedSets(model=toy, prompts=x, tokens=(5, 6))([[head]]),
            SENTENCE,
        ),
        ("activation_delta", "prompts"): (
            lambda x: (
                interp.neurons.activation_delta(toy, x, "last", ["L1N3"], [head], draws=0).change
            ),
            SENTENCE,
        ),
        ("activation_delta", "neurons"): (
            lambda x: (
                interp.neurons.activation_delta(model, ROWS, "last", x, [head], draws=2).change
            ),
            "L2N3",
        ),
        ("activation_delta", "heads"): (
            lambda x: (
                interp.neurons.activation_delta(model, ROWS, "last", ["L2N3"], x, draws=2).change
            ),
            head,
        ),
        ("activation_patching", "by"): (
            lambda x: interp.activation_patching(model, task, site="mlp_out", by=x),
            "layer",
        ),
        ("activation_patching", "positions"): (
            lambda x: interp.activation_patching(model, task, positions=x),
            "changed",
        ),
        ("attribution_patching", "by"): (
            lambda x: interp.attribution_patching(model, task, site="mlp_out", by=x),
            "layer",
        ),
        ("attribution_patching", "positions"): (
            lambda x: interp.attribution_patching(model, task, positions=x),
            "changed",
        ),
        ("atp_star", "by"): (
            lambda x: interp.patching.atp_star(model, task, site="mlp_out", by=x),
            "layer",
        ),
        ("atp_star", "positions"): (
            lambda x: interp.patching.atp_star(model, task, positions=x),
            "changed",
        ),
        ("path_patching", "receivers"): (
            lambda x: interp.path_patching(model, task, receivers=x),
            "logits",
        ),
        ("path_patching", "positions"): (
            lambda x: interp.path_patching(model, task, receivers="logits", positions=x),
            "changed",
        ),
        ("joint_patching", "components"): (
            lambda x: interp.joint_patching(model, task, x, draws=2).effect,
            head,
        ),
        ("attention_to", "prompts"): (
            lambda x: interp.heads.attention_to(toy, x, [2], [[1]]).samples,
            SENTENCE,
        ),
        ("opposed_neurons", "a"): (
            lambda x: interp.neurons.opposed_neurons(model, x, ["L1N2"], k=1, draws=2),
            "L0N1",
        ),
        ("opposed_neurons", "b"): (
            lambda x: interp.neurons.opposed_neurons(model, ["L1N2"], x, k=1, draws=2),
            "L0N1",
        ),
        ("blend_weights", "heads"): (
            lambda x: (
                interp.probing.blend_weights(
                    model, model, x, 0.0, shared_kv=True, check=False
                ).n_layers
            ),
            head,
        ),
        ("chat_prompts", "texts"): (lambda x: interp.models.chat_prompts(toy, x), "a"),
        ("compare_activations", "prompts"): (
            lambda x: interp.probing.compare_activations(toy, toy, x),
            SENTENCE,
        ),
        ("compare_activations", "positions"): (
            lambda x: interp.probing.compare_activations(model, model, ROWS[:1], x),
            "last",
        ),
        ("compare_activations", "sites"): (
            lambda x: interp.probing.compare_activations(model, model, ROWS, sites=x),
            "resid_post",
        ),
        ("compare_weights", "heads"): (
            lambda x: interp.probing.compare_weights(model, model, heads=x, neurons=[]),
            head,
        ),
        ("compare_weights", "neurons"): (
            lambda x: interp.probing.compare_weights(model, model, heads=[], neurons=x),
            "L0N1",
        ),
        ("difference_in_means", "first"): (
            lambda x: (
                interp.steering.difference_in_means(toy, x, "<bos> b", least=1, last=1).vectors
            ),
            SENTENCE,
        ),
        ("difference_in_means", "second"): (
            lambda x: (
                interp.steering.difference_in_means(toy, "<bos> b", x, least=1, last=1).vectors
            ),
            SENTENCE,
        ),
        ("edge_positions", "edges"): (
            lambda x: interp.circuits.edge_positions(model, task, x, positions="last"),
            edge,
        ),
        ("edge_positions", "positions"): (
            lambda x: interp.circuits.edge_positions(model, task, edge, positions=x),
            "changed",
        ),
        ("edge_positions", "neurons"): (
            lambda x: (
                interp.circuits.edge_positions(model, task, edge, positions="last", neurons=x).lost
            ),
            "L1N2",
        ),
        ("generate", "prompts"): (
            lambda x: interp.generate(toy, x, max_new_tokens=3),
            SENTENCE,
        ),
        ("generate", "stop"): (
            lambda x: interp.generate(model, ROWS, max_new_tokens=4, stop=x),
            "<5",
        ),
        ("glu_activations", "prompts"): (
            lambda x: interp.neurons.glu_activations(toy, x, "last", ["L1N3"]),
            SENTENCE,
        ),
        ("glu_activations", "positions"): (
            lambda x: interp.neurons.glu_activations(model, ROWS[:1], x, ["L1N3"]),
            "last",
        ),
        ("glu_activations", "neurons"): (
            lambda x: interp.neurons.glu_activations(model, ROWS, "last", x),
            "L1N3",
        ),
        ("graph_of", "neurons"): (lambda x: interp.circuits.graph_of(model, neurons=x), "L1N2"),
        ("group_interchange", "heads"): (
            lambda x: interp.heads.group_interchange(model, task, x, draws=2),
            head,
        ),
        ("head_glu_scores", "heads"): (
            lambda x: interp.neurons.head_glu_scores(model, x, ["L2N3"], mode="ov"),
            head,
        ),
        ("head_glu_scores", "neurons"): (
            lambda x: interp.neurons.head_glu_scores(model, [head], x, mode="ov"),
            "L2N3",
        ),
        ("head_glu_scores", "prompts"): (
            lambda x: interp.neurons.head_glu_scores(
                toy, [head], ["L1N3"], mode="activation", prompts=x, positions="last"
            ),
            SENTENCE,
        ),
        ("intervene", "interventions"): (lambda x: logits_under(model, x), zero(head)),
        ("logit_lens", "prompts"): (lambda x: interp.logit_lens(toy, x, k=3), SENTENCE),
        ("logit_lens", "positions"): (
            lambda x: interp.logit_lens(model, ROWS[:1], x, k=3),
            "last",
        ),
        ("logit_lens", "sites"): (
            lambda x: interp.logit_lens(model, ROWS, sites=x, k=3),
            "resid_mid",
        ),
        ("logit_lens", "words"): (
            lambda x: interp.logit_lens(toy, SENTENCE, words=x, k=3),
            "a",
        ),
        ("logit_lens", "groups"): (
            lambda x: interp.logit_lens(model, ROWS[:1], groups=x, k=3),
            "valid",
        ),
        ("narrow_circuit", "positions"): (
            lambda x: interp.circuits.narrow_circuit(
                model, task, whole, positions=x, threshold=0.0
            ),
            "changed",
        ),
        ("paired_word_probs", "prompts"): (
            lambda x: interp.probing.paired_word_probs(toy, x, "a", "b", variants=False),
            SENTENCE,
        ),
        ("paired_word_probs", "positive"): (
            lambda x: interp.probing.paired_word_probs(toy, SENTENCE, x, "b", variants=False),
            "a",
        ),
        ("paired_word_probs", "negative"): (
            lambda x: interp.probing.paired_word_probs(toy, SENTENCE, "b", x, variants=False),
            "a",
        ),
        ("probe_model", "prompts"): (
            lambda x: interp.probe_model(toy, x, "last", [True]),
            SENTENCE,
        ),
        ("probe_model", "positions"): (
            lambda x: interp.probe_model(toy, twenty[:1], x, [True]),
            "last",
        ),
        ("probe_model", "groups"): (
            lambda x: interp.probe_model(toy, twenty[:1], "last", [True], groups=x),
            "g",
        ),
        ("probe_model", "sites"): (
            lambda x: interp.probe_model(toy, twenty, "last", labels, sites=x, shuffles=1),
            "resid_post",
        ),
        ("read_trajectories", "prompts"): (
            lambda x: interp.refusal.read_trajectories(toy, x, rows=["r"], tasks=["t"]),
            SENTENCE,
        ),
        ("read_trajectories", "rows"): (
            lambda x: interp.refusal.read_trajectories(toy, SENTENCE, rows=x, tasks=["t"]),
            "row",
        ),
        ("read_trajectories", "tasks"): (
            lambda x: interp.refusal.read_trajectories(toy, SENTENCE, rows=["r"], tasks=x),
            "task",
        ),
        ("read_trajectories", "classes"): (
            lambda x: interp.refusal.read_trajectories(
                toy, SENTENCE, rows=["r"], tasks=["t"], classes=x
            ),
            "other",
        ),
        ("recover", "methods"): (
            lambda x: interp.circuits.recover_edges(toy, toy_task, methods=x).found[0].method,
            "EAP",
        ),
        ("recover", "planted"): (
            lambda x: interp.circuits.recover_edges(toy, toy_task, methods="EAP", planted=x).found[
                0
            ],
            head,
        ),
        ("redundancy", "parts"): (lambda x: interp.circuits.redundancy(model, task, parts=x), head),
        ("redundancy", "neurons"): (
            lambda x: (
                interp.circuits.redundancy(model, task, parts=["L0H1", "L1H2"], neurons=x).alone
            ),
            "L1N2",
        ),
        ("representational_independence", "prompts"): (
            lambda x: interp.steering.representational_independence(toy, *two, x),
            SENTENCE,
        ),
        ("run_steered", "prompts"): (
            lambda x: interp.steering.run_steered(toy, x).logits,
            SENTENCE,
        ),
        ("generate_steered", "prompts"): (
            lambda x: interp.steering.generate_steered(toy, x, max_new_tokens=2)[0],
            SENTENCE,
        ),
        ("generate_steered", "stop"): (
            lambda x: interp.steering.generate_steered(model, ROWS, max_new_tokens=3, stop=x)[0],
            "<5",
        ),
        ("run_with_cache", "prompts"): (
            lambda x: interp.run_with_cache(toy, x, sites=["z"]),
            SENTENCE,
        ),
        ("run_with_cache", "sites"): (
            lambda x: interp.run_with_cache(model, ROWS, sites=x),
            "resid_post",
        ),
        ("run_with_cache", "positions"): (
            lambda x: interp.run_with_cache(model, ROWS[:1], sites="z", positions=x),
            "last",
        ),
        ("greedy_head_group", "prompts"): (
            lambda x: interp.heads.greedy_head_group(
                toy, x, off, size=1, candidates=[head], draws=0
            ),
            SENTENCE,
        ),
        ("greedy_head_group", "candidates"): (
            lambda x: interp.heads.greedy_head_group(
                model, ROWS, zeroed, size=1, candidates=x, draws=0
            ),
            head,
        ),
        ("score_edges", "neurons"): (
            lambda x: interp.circuits.score_edges(model, task, neurons=x).signed,
            "L1N2",
        ),
        ("search_neurons", "words"): (lambda x: interp.neurons.search_neurons(toy, x, k=3), "a"),
        ("steer_at_trigger", "prompts"): (
            lambda x: interp.steering.steer_at_trigger(
                toy, x, torch.ones(toy.d_model), scale=1.0, max_new_tokens=2
            ),
            SENTENCE,
        ),
        ("steer_at_trigger", "stop"): (
            lambda x: interp.steering.steer_at_trigger(
                model, ROWS, torch.ones(model.d_model), scale=1.0, max_new_tokens=3, stop=x
            ),
            "<5",
        ),
        ("text_losses", "texts"): (lambda x: interp.runs.text_losses(toy, x), SENTENCE),
        ("text_losses", "starts"): (
            lambda x: interp.runs.text_losses(model, ROWS[:1], starts=x),
            "last",
        ),
        ("find_positions", "texts"): (
            lambda x: interp.models.find_positions(x, {"a": (5,)}),
            "text",
        ),
        ("train_probes", "groups"): (
            lambda x: interp.probing.train_probes(torch.randn(24, 3), [0, 1] * 12, groups=x),
            "g",
        ),
        ("Circuit.of", "edges"): (lambda x: interp.Circuit.of(graph, x).mask, edge),
        ("Circuit.without", "parts"): (lambda x: whole.without(x).mask, edge),
        ("Graph.mask", "edges"): (lambda x: graph.mask(x), edge),
        ("PositionedCircuit.of", "places"): (
            lambda x: interp.circuits.PositionedCircuit.of(graph, x, {edge: ["last"]}).mask,
            "last",
        ),
        ("PositionedCircuit.everywhere", "places"): (
            lambda x: interp.circuits.PositionedCircuit.everywhere(whole, x).mask,
            "last",
        ),
        ("random_like", "components"): (lambda x: random_like(model, x, 3), head),
        ("site_values", "prompts"): (lambda x: site_values(toy, x, [(0, "z")])[0, "z"], SENTENCE),
        ("keep_runs", "prompts"): (lambda x: keep_runs(toy, x, last=1).logits(), SENTENCE),
        ("component_values", "prompts"): (
            lambda x: component_values(toy, interp.Component.parse(head), x),
            SENTENCE,
        ),
        ("mean", "reference"): (
            lambda x: logits_under(toy, mean(toy, head, x), SENTENCE),
            SENTENCE,
        ),
        ("patch", "source"): (
            lambda x: logits_under(toy, patch(toy, head, x), SENTENCE),
            "<bos> b a b",
        ),
        ("resample", "reference"): (
            lambda x: logits_under(toy, resample(toy, head, x, n=1), SENTENCE),
            "<bos> b a b",
        ),
        ("LanguageModel.last_logits", "prompts"): (lambda x: toy.last_logits(x), SENTENCE),
        ("LanguageModel.require_parts", "labels"): (lambda x: model.require_parts(x, "z"), head),
        ("PromptPair", "answers"): (
            lambda x: PromptPair(clean="a", answers=x, wrong=x),
            " Paris",
        ),
        ("Scores.interval", "groups"): (lambda x: patched.interval(groups=x), "abcd"),
        ("Scores.null", "groups"): (lambda x: patched.null(k=1, groups=x), "abcd"),
        ("Scores.p_values", "groups"): (lambda x: patched.p_values(groups=x), "abcd"),
        ("pairs", "rows"): (lambda x: interp.pairs(x).pairs, ("a", "b", " Paris", " Rome")),
        ("view_neuron", "prompts"): (
            lambda x: interp.view_neuron(model, "L1N3", x).fires,
            ROWS[0],
        ),
        ("pair", "answers"): (lambda x: interp.pair("a", None, x).pairs, " Paris"),
        ("pair", "wrong"): (lambda x: interp.pair("a", None, " Paris", x).pairs, " Rome"),
        ("PromptPair", "wrong"): (lambda x: PromptPair(clean="a", answers=x, wrong=x), " Rome"),
        ("AblatedSets", "tokens"): (
            lambda x: interp.runs.AblatedSets(model=toy, prompts=SENTENCE, tokens=x),
            "a",
        ),
        ("LanguageModel.run", "prompts"): (
            lambda x: [logits for _, logits in toy.run(x)],
            SENTENCE,
        ),
        ("PositionedCircuit.of", "edges"): (
            lambda x: (
                interp.circuits.PositionedCircuit.of(graph, ["changed", "last"], {edge: x}).mask
            ),
            "changed",
        ),
        ("activation_delta", "positions"): (
            lambda x: (
                interp.neurons.activation_delta(model, ROWS[:1], x, ["L2N3"], head, draws=0).change
            ),
            "last",
        ),
        ("activation_delta", "interventions"): (
            lambda x: (
                interp.neurons.activation_delta(
                    model, ROWS, "last", ["L2N3"], changes=x, draws=0
                ).change
            ),
            zero(head),
        ),
        ("activation_delta", "positions_of_ablation"): (
            lambda x: (
                interp.neurons.activation_delta(
                    model, ROWS[:1], "last", ["L2N3"], head, positions_of_ablation=x, draws=0
                ).change
            ),
            "last",
        ),
        ("attention_to", "queries"): (
            lambda x: interp.heads.attention_to(model, ROWS[:1], x, [[1]]).samples,
            "last",
        ),
        ("head_glu_scores", "positions"): (
            lambda x: interp.neurons.head_glu_scores(
                model, [head], ["L1N3"], mode="activation", prompts=ROWS[:1], positions=x
            ),
            "last",
        ),
        ("head_flips", "prompts"): (
            lambda x: (
                interp.refusal.head_flips(toy, x, head, judge, rows=["r"], max_new_tokens=2).rate
            ),
            SENTENCE,
        ),
        ("head_flips", "heads"): (
            lambda x: (
                interp.refusal.head_flips(toy, SENTENCE, x, judge, rows="r", max_new_tokens=2).rate
            ),
            head,
        ),
        ("head_flips", "rows"): (
            lambda x: (
                interp.refusal.head_flips(toy, SENTENCE, head, judge, rows=x, max_new_tokens=2).rate
            ),
            "row",
        ),
        ("knockout_cascade", "gates"): (
            lambda x: interp.heads.knockout_cascade(
                model, task, x, ["L2H1"], interp.heads.switch_off(model), draws=2
            ),
            head,
        ),
        ("knockout_cascade", "downstream"): (
            lambda x: interp.heads.knockout_cascade(
                model, task, [head], x, interp.heads.switch_off(model), draws=2
            ),
            "L2H1",
        ),
        ("make_bank", "tasks"): (lambda x: interp.refusal.make_bank(trajectories, tasks=x), "tu"),
        ("steer", "prompts"): (lambda x: steered(toy, x), SENTENCE),
        ("steer_task", "prompts"): (
            lambda x: interp.refusal.steer_task(model, x, bank, rows=["r"], tasks=["t"])[1].rows,
            "text",
        ),
        ("steer_task", "rows"): (
            lambda x: interp.refusal.steer_task(model, (40, 41), bank, rows=x, tasks=["t"])[1].rows,
            "row",
        ),
        ("steer_task", "tasks"): (
            lambda x: (
                interp.refusal.steer_task(model, (40, 41), bank, rows=["r"], tasks=x)[1].tasks
            ),
            "task",
        ),
        ("switch_off", "reference"): (
            lambda x: interp.heads.switch_off(toy, "mean", reference=x).means,
            SENTENCE,
        ),
    }
    for name, make in (
        ("ablate_direction", lambda **x: interp.steering.ablate_direction(model, direction, **x)),
        ("add_direction", lambda **x: interp.steering.add_direction(model, direction, **x)),
        (
            "patch_direction",
            lambda **x: interp.steering.patch_direction(model, direction, value=1.0, **x),
        ),
        (
            "affine_edit",
            lambda **x: interp.steering.affine_edit(model, direction, direction.vector, **x),
        ),
    ):
        table[name, "sites"] = (lambda x, make=make: make(sites=x).edits.keys(), "resid_pre")
        table[name, "positions"] = (lambda x, make=make: make(positions=x).positions, "last")
    for name, make in (
        (
            "select_direction",
            lambda x, y: interp.refusal.select_direction(
                toy, candidates, x, y, [3], measure_all=True
            ),
        ),
        (
            "select_cosmic",
            lambda x, y: interp.refusal.select_cosmic(toy, candidates, x, y, measure_all=True),
        ),
    ):
        table[name, "harmful"] = (lambda x, make=make: make(x, texts), SENTENCE)
        table[name, "harmless"] = (lambda x, make=make: make(texts, x), SENTENCE)
    return table


def steered(model, prompts):
    """A run inside `steer` with nothing steered."""
    steering = interp.steering.edits.Steering(
        name="none", edits={}, format=PLAIN, model_hash=model.hash
    )
    with interp.steer(model, steering, prompts):
        return model.last_logits(SENTENCE)


def logits_under(model, interventions, prompts=ROWS):
    with intervene(model, interventions):
        return model.last_logits(prompts)


SEVERAL = re.compile(
    r"\b(Sequence|Iterable|Collection|list|tuple)\[(str|Prompt|Hashable|Neuron|Intervention|object)\b"
    r"|\b(Prompts|Positions|Columns)\b"
)
"""How an annotation says that several strings, prompts or components may be given."""

FILLED_HERE = {
    "Activations",
    "Direction",
    "Intervention",
    "LanguageModel",
    "PositionedCircuit",
    "Scores",
}
"""Records that the package fills itself: nobody types their fields."""


def public():
    """(name, parameter) of every public function and method that takes several of something."""
    found = []
    for name in interp.__all__:
        thing = getattr(interp, name)
        if inspect.isclass(thing):
            callables = {
                f"{name}.{label}": getattr(thing, label)
                for label, member in vars(thing).items()
                if not label.startswith("_") and callable(getattr(thing, label, None))
            }
            if not issubclass(thing, Exception) and name not in FILLED_HERE:
                callables[name] = thing
        elif callable(thing):
            callables = {name: thing}
        else:
            continue
        for label, function in callables.items():
            for parameter in inspect.signature(function).parameters.values():
                if SEVERAL.search(str(parameter.annotation)):
                    found.append((label, parameter.name))
    return found


def outcome(call, given):
    """What a call gives, or its refusal."""
    try:
        return call(given)
    except InterpError:
        return InterpError


REFUSED = {
    # One prompt, group or class is too few, or one string is no such thing.
    ("AblatedSets", "tokens"),
    ("Scores.interval", "groups"),
    ("Scores.null", "groups"),
    ("Scores.p_values", "groups"),
    ("chat_prompts", "texts"),
    ("find_positions", "texts"),
    ("probe_model", "groups"),
    ("probe_model", "positions"),
    ("probe_model", "prompts"),
    ("redundancy", "parts"),
    ("steer_task", "prompts"),
    ("steer_task", "rows"),
    ("steer_task", "tasks"),
    ("train_probes", "groups"),
}


@pytest.mark.filterwarnings("ignore")
def test_one_string_is_one_thing_on_every_public_function(toy, model, task):
    """A string alone is the list of it, or refused; a new public function needs a case."""
    table = cases(toy, model, task)
    assert set(public()) <= set(table)
    wrong, refused = [], set()
    for place, (call, one) in table.items():
        alone, listed = outcome(call, one), outcome(call, [one])
        if alone is InterpError:
            refused.add(place)
        if not same(alone, listed):
            wrong.append(place)
    assert wrong == []
    assert refused == REFUSED


def edited(name):
    """The model whose weights say what `zero("L0.attn_out")` does."""
    hf_model = tiny(name)
    attention = hf_model.model.layers[0].self_attn.o_proj
    attention.weight.data.zero_()
    return wrap(hf_model, name="inputs")


RUNS = {
    # What runs a model: inside `intervene` it gives the changed model's result, or refuses.
    "ablate": lambda m, t: interp.ablate(m, ROWS, make_ablation(m, "L1H1"), tokens=[5]),
    "activation_delta": lambda m, t: interp.neurons.activation_delta(
        m, ROWS, "last", "L2N3", "L1H1", draws=2
    ).change,
    "activation_patching": lambda m, t: interp.activation_patching(
        m, t.with_metric("kl"), by="layer", site="mlp_out", engine="hooks", cache=False
    ).effects,
    "activation_patching fast": lambda m, t: interp.activation_patching(m, t),
    "acdc": lambda m, t: interp.circuits.acdc(m, t, threshold=0.1),
    "atp_star": lambda m, t: interp.patching.atp_star(m, t),
    "attribution_patching": lambda m, t: interp.attribution_patching(m, t),
    "attention_to": lambda m, t: interp.heads.attention_to(m, ROWS, "last", [[0, 1]] * 3).samples,
    "component_values": lambda m, t: component_values(m, interp.Component.parse("L1H1"), ROWS),
    "difference_in_means": lambda m, t: interp.steering.difference_in_means(
        m, ROWS, ROWS[:2], last=1
    ),
    "direct_attribution": lambda m, t: interp.direct_attribution(m, ROWS[0], 5, 6).total,
    "edge_positions": lambda m, t: interp.circuits.edge_positions(
        m, t, ["input->logits"], positions="last"
    ),
    "generate": lambda m, t: interp.generate(m, ROWS, max_new_tokens=4),
    "generate_steered": lambda m, t: interp.steering.generate_steered(m, ROWS, max_new_tokens=2),
    "glu_activations": lambda m, t: interp.neurons.glu_activations(m, ROWS, "last", "L1N3"),
    "group_interchange": lambda m, t: interp.heads.group_interchange(m, t, "L1H1", draws=2),
    "head_glu_scores": lambda m, t: interp.neurons.head_glu_scores(
        m, "L1H1", "L2N3", mode="activation", prompts=ROWS, positions="last"
    ).values,
    "head_interchange": lambda m, t: interp.heads.head_interchange(m, t),
    "joint_patching": lambda m, t: interp.joint_patching(m, t, "L1H1", draws=2),
    "keep_runs": lambda m, t: keep_runs(m, ROWS, last=1),
    "last_logits": lambda m, t: m.last_logits(ROWS),
    "learn_mask": lambda m, t: interp.circuits.learn_mask(m, t, steps=2),
    "stability_axes": lambda m, t: str(interp.circuits.stability_axes(m, t, 4, draws=2, runs=0)),
    "logit_lens": lambda m, t: interp.logit_lens(m, ROWS, k=3).top_mean,
    "look": lambda m, t: interp.look(m, ROWS[0]).lens.top_mean,
    "path_patching": lambda m, t: interp.path_patching(m, t, receivers="logits"),
    "probe_model": lambda m, t: interp.probe_model(
        m, [(i + 3, 2 * i + 3, 5) for i in range(24)], "last", [0, 1] * 12,
        sites="resid_post", shuffles=1,
    )["resid_post"].heldout.values,
    "read_trajectories": lambda m, t: interp.refusal.read_trajectories(
        m, ROWS, rows=["a", "b", "c"], tasks=["t"] * 3
    ),
    "redundancy": lambda m, t: interp.circuits.redundancy(m, t, parts=["L1H1", "L2H1"]),
    "run_steered": lambda m, t: interp.steering.run_steered(m, ROWS),
    "run_with_cache": lambda m, t: interp.run_with_cache(m, ROWS, sites="resid_post").logits,
    "scan": lambda m, t: interp.scan(m, ROWS[0], answer=5, wrong=6, k=2, draws=2).to_dict(),
    "scan_heads": lambda m, t: interp.heads.scan_heads(m, t, interp.heads.switch_off(m)),
    "score_edges": lambda m, t: interp.circuits.score_edges(m, t),
    "site_values": lambda m, t: site_values(m, ROWS, [(1, "z")])[1, "z"],
    "steer_at_trigger": lambda m, t: interp.steering.steer_at_trigger(
        m, ROWS, torch.ones(m.d_model), scale=1.0, max_new_tokens=2
    ),
    "text_losses": lambda m, t: interp.runs.text_losses(m, ROWS),
    "top_tokens": lambda m, t: interp.top_tokens(m, ROWS[0], 3),
    "view_head": lambda m, t: interp.view_head(m, ROWS[0], "L1H1").promoted,
    "view_neuron": lambda m, t: interp.view_neuron(m, "L1N3", ROWS).fires,
    "Task.check": lambda m, t: t.check(m),
}  # fmt: skip


THROUGH_THOSE = """
compare_activations direction_projection evaluate_circuit evaluate_positioned find_circuit
head_logit_attribution head_flips knockout_cascade narrow_circuit null_space_direction
paired_word_probs recover representational_independence greedy_head_group mean_difference
select_cosmic select_direction steer steer_task suggest_refusal_tokens switch_off
""".split()
"""What runs a model by calling some of `RUNS`."""

WEIGHTS = """
ablate_direction add_direction affine_edit opposed_neurons blend_weights chat_prompts
compare_weights embedding_map glu_vectors graph_of head_weights intervene make_ablation model_hash
orthogonalise_weights patch_direction rank_glu search_neurons unembed vector_steering
""".split()
"""What takes a model and runs none."""


def test_every_function_of_a_model_is_in_a_table():
    """A new one needs a case, or a place among those that run none of their own."""
    functions = {
        name: getattr(interp, name)
        for name in interp.__all__
        if inspect.isfunction(getattr(interp, name))
    }
    taking = {
        name
        for name, function in functions.items()
        if any("LanguageModel" in str(p.annotation) for p in signature_of(function))
    }
    assert taking <= {*RUNS, *THROUGH_THOSE, *WEIGHTS}


def signature_of(function):
    """The parameters of a function."""
    return inspect.signature(function).parameters.values()


@pytest.mark.filterwarnings("ignore")
def test_inside_intervene_everything_obeys_or_is_refused(model, task):
    """What obeys equals a model whose weights were edited to the same effect."""
    other, wrong, obeyed = edited("llama"), {}, set()
    for name, call in RUNS.items():
        with intervene(model, zero("L0.attn_out")):
            try:
                found = call(model, task)
            except InterpError as error:
                if "inside intervene()" not in str(error) or "; use " not in str(error):
                    wrong[name] = str(error)
                continue
        expected = call(other, task)
        if not same(found, expected) or same(found, call(model, task)):
            wrong[name] = "neither obeys nor refuses"
        obeyed.add(name)
    assert wrong == {}
    assert {"generate", "run_with_cache", "last_logits", "logit_lens", "text_losses"} <= obeyed


def test_positions_are_read_alike(model, task):
    """The names, -1, a number, a list for each prompt and the numbers themselves are one place."""
    ends = [len(row) - 1 for row in ROWS]
    ways = ("last", -1, ends, [-1] * 3, ["last"] * 3, ["last", -1, ends[2]])
    one_each = {
        "run_with_cache": lambda p: (
            interp.run_with_cache(model, ROWS, sites="z", positions=p).values
        ),
        "logit_lens": lambda p: interp.logit_lens(model, ROWS, p, k=3).top_mean,
        "glu_activations": lambda p: interp.neurons.glu_activations(model, ROWS, p, "L1N3"),
        "compare_activations": lambda p: interp.probing.compare_activations(model, model, ROWS, p),
        "attention_to": lambda p: interp.heads.attention_to(model, ROWS, p, [[0]] * 3).samples,
        "activation_delta": lambda p: (
            interp.neurons.activation_delta(model, ROWS, p, "L2N3", "L0H1", draws=2).change
        ),
        "activation_delta, ablated": lambda p: (
            interp.neurons.activation_delta(
                model, ROWS, "last", "L2N3", "L0H1", positions_of_ablation=p, draws=2
            ).change
        ),
        "head_glu_scores": lambda p: (
            interp.neurons.head_glu_scores(
                model, "L0H1", "L2N3", mode="activation", prompts=ROWS, positions=p
            ).values
        ),
        "zero": lambda p: logits_under(model, zero("L0H1", positions=p)),
        "text_losses": lambda p: interp.runs.text_losses(model, ROWS, starts=p),
    }
    for name, call in one_each.items():
        found = [call(way) for way in ways]
        assert all(same(found[0], other) for other in found[1:]), name
        for bad in ([1, 1], [9, 0, 0], 9, -9, 1.5, True, "nowhere"):
            with pytest.raises(InterpError):
                call(bad)
    apart = {
        "activation_patching": lambda p: (
            interp.activation_patching(model, task, positions=p).effects
        ),
        "attribution_patching": lambda p: (
            interp.attribution_patching(model, task, positions=p).effects
        ),
        "path_patching": lambda p: (
            interp.path_patching(model, task, receivers="logits", positions=p).effects
        ),
        "edge_positions": lambda p: (
            interp.circuits.edge_positions(model, task, "L0H1->L1H1.q", positions=p).lost
        ),
    }
    for name, call in apart.items():
        found = [call(way) for way in ("last", ["last"], -1, 6, [6] * 4, [-1] * 4)]
        assert all(same(found[0], other) for other in found[1:]), name
        for bad in ([6], [], ["last", 3], 7, "nowhere", ["last", "last"]):
            with pytest.raises(InterpError):
                call(bad)


@pytest.mark.parametrize(
    "prompts",
    [
        [[1.5, 2]],
        [[True, 2]],
        [True, 2],
        [[1, 999999]],
        [[1, -1]],
        ["a", 5],
        [[]],
        b"Hello",
        [b"Hello"],
        {"b": 1},
    ],
)
def test_prompts_are_checked_on_every_way_in(model, prompts):
    for call in (
        model.last_logits,
        lambda rows: list(model.run(rows)),
        lambda rows: interp.ablate(model, rows, make_ablation(model, ["L0H1"]), tokens=[1]),
        lambda rows: site_values(model, rows, [(0, "z")]),
        lambda rows: interp.run_with_cache(model, rows, sites="z"),
        lambda rows: interp.generate(model, rows, max_new_tokens=1),
    ):
        with pytest.raises(InterpError):
            call(prompts)


def test_positions_are_kept_as_plain_names_and_numbers(model, task):
    """Whatever numbers they are given in, one or several, and however often they can be read."""
    one = (np.int64(-1), np.array(-1), torch.tensor(-1))
    several = (
        np.array([3, 3, 3, 2]),
        torch.tensor([3, 3, 3, 2]),
        (np.int64(3), 3, torch.tensor(3), 2),
        (place for place in (3, 3, 3, 2)),
    )
    for ways, plain in ((one, -1), (several, [3, 3, 3, 2])):
        for way in ways:
            kept = zero("L0H1", positions=way).edits[0].positions
            assert kept == plain
            assert {type(place) for place in np.ravel(kept).tolist()} == {int}
            assert type(kept) is type(plain)
        expected = interp.activation_patching(model, task, positions=plain)
        assert f"positions={plain!r}" in expected.provenance.call
        for way in (*ways[:3], *([iter(plain)] if isinstance(plain, list) else [])):
            found = interp.activation_patching(model, task, positions=way)
            assert found.provenance.call == expected.provenance.call
            assert same(found.effects, expected.effects)
    for bad in ([[3]], [1.5], [True], torch.tensor(True), np.array([[3]]), b"last", {"last": 1}):
        for call in (
            lambda p: zero("L0H1", positions=p),
            lambda p: interp.activation_patching(model, task, positions=p),
        ):
            with pytest.raises(InterpError):
                call(bad)


@pytest.mark.parametrize("positions", [[3], [2, 2, 2, 2], torch.tensor([2])])
def test_a_list_of_positions_has_one_for_each_prompt(model, positions):
    for label in ("L0H1", "L0H1.pattern"):
        with intervene(model, zero(label, positions=positions)):
            with pytest.raises(InterpError, match="for 3 prompts"):
                model.last_logits(ROWS)
            with pytest.raises(InterpError, match="for 3 prompts"):
                interp.generate(model, ROWS, max_new_tokens=2)


def test_numbers_of_any_library_are_read_and_other_things_refused(model, task):
    """Whole numbers of numpy and torch are numbers; booleans, fractions and texts are not."""
    head = make_ablation(model, ["L0H1"])
    scores = interp.activation_patching(model, task, layers=np.int64(0))
    assert scores.coordinates["layer"] == ("0",)
    assert len(task.first(np.int64(2))) == 2
    for steps in (np.int64(3), torch.tensor(3)):
        kept = Finder(steps=steps).steps
        assert (kept, type(kept)) == (3, int)
    for neurons in ("L1N3", ["L1N3"], np.array(["L1N3"])):
        assert Finder(neurons=neurons).neurons == ("L1N3",)
    new = interp.generate(model, ROWS, max_new_tokens=np.int64(2), change=head, where=np.int64(1))
    assert new == interp.generate(model, ROWS, max_new_tokens=2, change=head, where=1)
    assert len(scores.top(np.int64(2))) == 2
    for layers in (0, np.array(0), [np.int64(0)], torch.tensor([0])):
        found = interp.attribution_patching(model, task, layers=layers)
        assert found.coordinates["layer"] == ("0",)
    refused = (
        *(lambda bad=bad: scores.interval(level=bad) for bad in (95, 1, 0, True, "0.9")),
        *(lambda bad=bad: scores.top(bad) for bad in (-1, 0, 2.0, True)),
        *(lambda bad=bad: scores.null(bad) for bad in (-1, 2.0, True)),
        *(lambda bad=bad: scores.agreement(scores, k=bad) for bad in (0, 2.0)),
        *(
            lambda bad=bad, measure=measure: measure(model, task, layers=bad)
            for bad in ("0", [True], True, [0.5], ["0"], b"0", {0: 1})
            for measure in (interp.activation_patching, interp.attribution_patching)
        ),
        *(
            lambda bad=bad, change=change: interp.generate(
                model, ROWS, max_new_tokens=bad, change=change
            )
            for bad in (True, 2.5, "2", 0)
            for change in (None, head)
        ),
        *(
            lambda bad=bad: interp.generate(model, ROWS, max_new_tokens=2, change=head, where=bad)
            for bad in ("last", 1.5, True, 0)
        ),
        lambda: PromptPair(clean=(5, 6), answers={"b": 1}),
        lambda: Finder(steps=True),
        lambda: Finder(neurons=[3]),
    )
    for call in refused:
        with pytest.raises(InterpError):
            call()
    with pytest.raises(InterpError, match="write a text or a whole number"):
        PromptPair(clean=(5, 6), answers=[1.0])


def test_labels_are_read_alike():
    """Booleans and 0/1, as lists, arrays and tensors."""
    X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    truth = [i % 3 == 0 for i in range(24)] + []
    truth[1] = truth[4] = True
    X[truth] += 1
    ways = [truth, [int(x) for x in truth], np.array(truth), torch.tensor(truth).float()]
    found = [interp.probing.train_probes(X, way, shuffles=1).weights for way in ways]
    assert all(same(found[0], other) for other in found[1:])
    for bad in ([-1, 1] * 12, [2.0] * 24, ["valid"] * 24, [True] * 23, [None] * 24):
        with pytest.raises(InterpError, match="True or 1"):
            interp.probing.train_probes(X, bad)


def test_metrics_by_name_and_by_function(model, task):
    """A name, a metric and a plain function; what is no metric says what one is."""

    def difference(readout, targets):
        return readout.at(targets.answers)[:, 0] - readout.at(targets.wrong)[:, 0]

    shipped = interp.activation_patching(model, task, cache=False)
    for metric in ("logit_diff", interp.METRICS["logit_diff"], difference):
        other = interp.activation_patching(model, task.with_metric(metric), cache=False)
        assert same(other.effects, shipped.effects)
    with pytest.raises(InterpError, match=r"log_probs.*known: kl, log_odds"):
        task.with_metric("log_probs")
    for wrong, message in (
        (lambda logits: logits, "readout, targets"),
        (7, "readout, targets"),
        (lambda readout, targets: readout.all(), "one number per prompt"),
        (lambda readout, targets: 1.0, "one number per prompt"),
    ):
        with pytest.raises(InterpError, match=message):
            task.with_metric(wrong).check(model)


@pytest.mark.filterwarnings("ignore")
def test_the_call_kept_with_a_result_runs(toy, task, monkeypatch):
    """Valid Python; what it cannot spell is named in a comment, and needs only that name."""

    def own(readout, targets):
        return readout.at(targets.answers)[:, 0]

    shipped = interp.load_task("toy-induction", toy).first(6)
    left, right = shipped.split()
    mine = Task(name="mine", pairs=shipped.pairs)
    other = Task(name="other", pairs=left.pairs)
    for asked, needed, options in (
        (shipped, {}, {}),
        (shipped.with_metric("log_odds"), {}, {"positions": -1}),
        (shipped.with_metric(own), {"own_metric": own}, {}),
        (mine, {"own_task": mine}, {"by": "layer", "positions": ["last"]}),
        (mine.with_metric(own), {"own_task": mine, "own_metric": own}, {}),
        (right, {"own_reference": other}, {"source": "mean", "reference": other}),
        (shipped.without(other), {"own_other": other}, {}),
    ):
        kept = interp.activation_patching(toy, asked, cache=False, **options)
        code = kept.provenance.call
        for name in needed:
            assert f"# `{name}` is a" in code
        names = dict(needed)
        exec(code, names)  # noqa: S102
        assert same(names["scores"].effects, kept.effects)


def test_layers_come_before_positions(model):
    """A candidate is at (layer, position), as everywhere else."""
    found = interp.steering.difference_in_means(model, ROWS, [(20, 21, 22), (30, 31, 32)], last=2)
    assert found.at(2, -1).layer == 2
    assert found.at(2, -1).position == -1
    torch.testing.assert_close(found.at(2, -1).vector, found.vectors[1, 2])
    torch.testing.assert_close(found.reference_at(1, -2), found.reference[0, 1])
    with pytest.raises(InterpError, match="layer -1, position 2"):
        found.at(-1, 2)


# -- memory budgets ----------------------------------------------------------------------------


def budgeted(model, task):
    """function -> a call with a budget, for every public function that takes one."""
    graph = interp.circuits.graph_of(model)
    whole = interp.Circuit(graph=graph, mask=graph.mask())
    edge = whole.edges()[0]
    placed = interp.circuits.PositionedCircuit.everywhere(whole, ["last"])
    neurons = interp.attribution_patching(model, task, site="post", by=("layer", "neuron"))
    features = random_dictionary(model)
    return {
        feature_attribution: lambda gb: feature_attribution(model, task, features, budget_gb=gb),
        interp.activation_patching: lambda gb: interp.activation_patching(
            model, task, budget_gb=gb
        ),
        interp.heads.head_atlas: lambda gb: interp.heads.head_atlas(model, ROWS, budget_gb=gb),
        attention_scores: lambda gb: attention_scores(model, ROWS, budget_gb=gb),
        interp.circuits.acdc: lambda gb: interp.circuits.acdc(
            model, task, threshold=1e9, budget_gb=gb
        ),
        interp.attribution_patching: lambda gb: interp.attribution_patching(
            model, task, budget_gb=gb
        ),
        interp.patching.atp_star: lambda gb: interp.patching.atp_star(model, task, budget_gb=gb),
        bench_circuits: lambda gb: bench_circuits(n=1, length=4, budget_gb=gb),
        interp.probing.compare_activations: lambda gb: interp.probing.compare_activations(
            model, model, ROWS, budget_gb=gb
        ),
        interp.circuits.edge_positions: lambda gb: interp.circuits.edge_positions(
            model, task, [edge], budget_gb=gb
        ),
        faithfulness_curve: lambda gb: faithfulness_curve(model, task, whole, budget_gb=gb),
        evaluate: lambda gb: evaluate(whole, model, task, budget_gb=gb),
        evaluate_neurons: lambda gb: evaluate_neurons(model, task, neurons, budget_gb=gb),
        interp.circuits.evaluate_positioned: lambda gb: interp.circuits.evaluate_positioned(
            model, task, placed, budget_gb=gb
        ),
        interp.find_circuit: lambda gb: interp.find_circuit(model, task, budget_gb=gb),
        interp.neurons.glu_activations: lambda gb: interp.neurons.glu_activations(
            model, ROWS, "last", "L1N3", budget_gb=gb
        ),
        keep_runs: lambda gb: keep_runs(model, ROWS, last=1, budget_gb=gb),
        interp.circuits.stability_axes: lambda gb: interp.circuits.stability_axes(
            model, task, 4, draws=2, budget_gb=gb
        ),
        interp.circuits.learn_mask: lambda gb: interp.circuits.learn_mask(
            model, task, budget_gb=gb
        ),
        interp.logit_lens: lambda gb: interp.logit_lens(model, ROWS, k=3, budget_gb=gb),
        lens_prediction: lambda gb: lens_prediction(
            model, ROWS, identity_lens(model, [0, 1]), skip=1, budget_gb=gb
        ),
        read_lens: lambda gb: read_lens(
            model, ROWS, identity_lens(model, [0, 1]), k=3, budget_gb=gb
        ),
        fit_tuned_lens: lambda gb: fit_tuned_lens(model, ROWS * 4, skip=1, steps=1, budget_gb=gb),
        interp.look: lambda gb: interp.look(model, ROWS[0], budget_gb=gb),
        interp.scan: lambda gb: interp.scan(model, ROWS[0], answer=5, budget_gb=gb),
        interp.overview.scan_steps: lambda gb: list(
            interp.overview.scan_steps(model, ROWS[0], answer=5, budget_gb=gb)
        ),
        run_once: lambda gb: run_once(model, ROWS[0], budget_gb=gb),
        narrow_circuit: lambda gb: narrow_circuit(model, task, whole, budget_gb=gb),
        narrow_curve: lambda gb: narrow_curve(model, task, task, whole, budget_gb=gb),
        interp.path_patching: lambda gb: interp.path_patching(
            model, task, receivers="logits", budget_gb=gb
        ),
        interp.probe_model: lambda gb: interp.probe_model(
            model, [(i, i + 1) for i in range(5, 45)], "last", [0, 1] * 20, budget_gb=gb
        ),
        interp.circuits.recover_edges: lambda gb: interp.circuits.recover_edges(
            model, task, methods="EAP", budget_gb=gb
        ),
        interp.circuits.redundancy: lambda gb: interp.circuits.redundancy(
            model, task, parts=["L0H1", "L1H2"], budget_gb=gb
        ),
        interp.run_with_cache: lambda gb: interp.run_with_cache(
            model, ROWS, sites="z", budget_gb=gb
        ),
        interp.circuits.score_edges: lambda gb: interp.circuits.score_edges(
            model, task, budget_gb=gb
        ),
        edge_ground_truth: lambda gb: edge_ground_truth(model, task, budget_gb=gb),
        interp.patching.unfinished_sweep: lambda gb: interp.patching.unfinished_sweep(
            model, task, budget_gb=gb
        ),
        Trials: lambda gb: Trials(model, task, TrialOptions(budget_gb=gb)),
    }


def test_a_budget_is_a_positive_number(model, task):
    """Refused by every function, before its work, whatever is kept in the cache."""
    calls = budgeted(model, task)
    interp.activation_patching(model, task)
    interp.find_circuit(model, task)
    skipped = ("interp.ui", "interp.engine", "benchmarks.peer_process", "benchmarks.__main__")
    taking = {
        one
        for package in (interp, benchmarks)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not info.name.startswith(skipped)
        for name, one in inspect.getmembers(importlib.import_module(info.name), inspect.isfunction)
        if one.__module__ == info.name and not name.startswith("_") and "budget_gb" in names_of(one)
    }
    assert taking - {read_sweep} == set(calls) - {Trials}
    for function, call in calls.items():
        for wrong in (np.nan, np.inf, -np.inf, 0, -1.0, 1e300, "1", None, True, [1.0]):
            with pytest.raises(InterpError, match="budget_gb") as found:
                call(wrong)
            assert found.value.asked == "budget_gb", function.__name__
    for right in (2, 0.5, np.float32(0.5), np.int64(1)):
        assert budget_bytes(right) == right * 1e9


def test_nonsense_is_refused_and_never_a_traceback(toy, model, task):
    """Arguments of another kind than their annotation, out of range, or not finite."""
    scores = interp.activation_patching(model, task)
    head, ones = make_ablation(model, ["L0H1"]), torch.ones(model.d_head)
    kept = interp.run_with_cache(model, ROWS, sites="z")
    seeds = (-1, 1.5, True, 10**25, None, "1")
    table = {
        lambda x: scores.null(2, draws=20, seed=x): seeds,
        lambda x: resample(model, "L0H1", ROWS, n=3, seed=x): seeds,
        lambda x: interp.joint_patching(model, task, "L0H1", draws=2, seed=x): seeds,
        lambda x: interp.load_task("ioi", seed=x): seeds,
        lambda x: task.split(seed=x): seeds,
        lambda x: scale("L0H1", x): (np.nan, np.inf, "2", True, None),
        lambda x: add("L0H1", x): (2.0, None, ones * np.nan),
        lambda x: add("L0H1", ones, coefficient=x): (np.nan, np.inf, "2", True),
        zero: (5, None, [], 2.5),
        lambda x: mean(model, "L0H1", x): ([], None, 2.5),
        lambda x: patch(model, "L0H1", x): ([], None),
        lambda x: resample(model, "L0H1", x, n=2): ([], None),
        lambda x: resample(model, "L0H1", ROWS, n=x): (0, -1, 2.5, True),
        lambda x: intervene(model, x).__enter__(): ("L0H1", 5, None, ["L0H1"]),
        lambda x: interp.generate(model, ROWS, max_new_tokens=2, rows=x): (0, -1, 2.5, True),
        lambda x: interp.generate(model, ROWS, max_new_tokens=2, stop=x): ("", [""], 5, None),
        lambda x: interp.generate(x, ROWS, max_new_tokens=2): (2.5, None, "toy-induction"),
        lambda x: interp.generate(model, x, max_new_tokens=2): (2.5, None),
        lambda x: interp.generate(model, ROWS, max_new_tokens=1, change=head, trigger=x): (
            -1,
            10**25,
            2.5,
        ),
        lambda x: interp.run_with_cache(model, ROWS, sites=x): ([], 3, [[]]),
        lambda x: interp.run_with_cache(model, ROWS, sites="z", to_disk=x): ("no", 1, None),
        lambda x: kept[x]: ("z", "L7.z", None, 5, [], "L\u00b2.z"),
        lambda x: interp.neurons.search_neurons(toy, "a", k=x): (None, 2.5, True, "1", 0),
        lambda x: interp.neurons.search_neurons(toy, "a", sign=x): (None, True, 2),
        lambda x: interp.neurons.search_neurons(toy, "a", metric=x): (None, [], 3),
        lambda x: interp.logit_lens(toy, SENTENCE, "last", sites=x): (None, 3),
        lambda x: interp.activation_patching(model, x): (None, "ioi", 5),
        lambda x: interp.activation_patching(model, task, site=x): (None, [], 3),
        lambda x: interp.load_model(x): (None, "", 7, []),
        lambda x: interp.load_model("toy-induction", dtype=x): ("int8", 7, "", torch.int8),
        lambda x: interp.load_model("toy-induction", check=x): ("no", 1, None),
        lambda x: interp.load_model("toy-induction", device=x): ("", 2.5, []),
        lambda x: scores.top(by=x): (None, 3, [], "size"),
        lambda x: scores.interval(level=x): (None, np.nan, 2),
        lambda x: scores.null(2, band=x): (-1, 1.5, None),
        lambda x: scores.null(2, draws=x): (0, -1, 2.5, 10**25),
        scores.agreement: (None, "x", 5),
        scores.estimate: (None, 5, "L0", "L0H1.q", "L9H0", "L0.z", "L0N1"),
        lambda x: scores.estimate("L0H1", x): ("last", "", 0),
        lambda x: scores.plot(position=x): ("last", "", 0),
        lambda x: scores.plot(selected=x): (0, (0,), (9, 0), (-1, 0), "x", (0.5, 1)),
        lambda x: scores.plot(limit=x): (0, -1.0, np.nan, "x"),
        scores.label: (None, 0, (0,), (0, 99), (0, -1), "x"),
        scores.component: (None, (0, 0, 0), (0.5, 1)),
    }
    accepted = []
    for i, (call, odd) in enumerate(table.items()):
        for value in odd:
            try:
                call(value)
                accepted.append((i, value))
            except InterpError:
                pass
    assert accepted == []
    assert interp.load_model("toy-induction", dtype=torch.float64).dtype == torch.float64


def test_results_say_what_they_hold_and_how_to_read_it(model, task):
    """One line; records of arrays are equal only where they are one object."""
    kept = interp.run_with_cache(model, ROWS, sites=["z", "mlp_out"])
    assert repr(kept).startswith("Activations(3 prompts, 3 layers from 0 to 2: z (3, 5, 4, 8), ")
    assert "read acts['L0.z']" in repr(kept)
    candidates = interp.steering.difference_in_means(model, ROWS, ROWS[:2], last=1)
    direction = candidates.at(1, -1)
    for record in (kept, candidates, direction):
        assert len(repr(record).splitlines()) == 1
        assert len(repr(record)) < 600
    scores = interp.activation_patching(model, task)
    again = interp.activation_patching(model, task)
    assert scores == scores
    assert scores != again
    assert scores.hash == again.hash


def test_a_source_shorter_than_the_text_is_said_so(model):
    """A patched text that grows soon has tokens that its source has not."""
    for change in (patch(model, "L0H1", ROWS), resample(model, "L0H1", ROWS[:1], n=3)):
        with intervene(model, change), pytest.raises(InterpError, match="its source has . tokens"):
            interp.generate(model, ROWS, max_new_tokens=3)
