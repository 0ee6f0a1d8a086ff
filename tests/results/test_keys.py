"""Whatever can change a result changes its key."""

import builtins
import functools
import inspect
import math
import os
import random
import re
import sys
import time
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as t
from transformers import AutoTokenizer

from interp.circuits.circuit import Circuit
from interp.circuits.discovery import acdc as acdc_module
from interp.circuits.discovery import find as finding
from interp.circuits.discovery import redundancy as redundancy_module
from interp.circuits.discovery.find import Finder, find_circuit
from interp.circuits.model_graph import graph_of
from interp.circuits.scoring import score_edges as scoring
from interp.circuits.trials import trials
from interp.core.files import cache_dir
from interp.core.metrics import METRICS, Metric
from interp.core.prompts import PromptPair, Task
from interp.models.loading import wrap
from interp.models.toys.build import save_tokenizer
from interp.models.toys.circuits import build_toy
from interp.patching import activation as patching
from interp.patching import path as paths
from interp.patching import spec
from interp.results.keys import code_key, result_key, tokeniser_key
from interp.runs import capture
from interp.runs.ablation_sets import AblatedSets
from interp.runs.capture import run_with_cache
from interp.runs.stored_runs import site_values
from tests.families import FAMILIES, random_task, tiny
from tests.keywords import names_of

FREE = {"model", "task", "budget_gb", "progress", "cancelled", "cache", "resume", "workers"}
"""Arguments tested apart, and those that change no number."""


class Looked(Exception):
    """Raised where a function looks for its result: its key."""


@pytest.fixture
def key_of(monkeypatch):
    """The key that a call looks for its result under."""

    def look(key, *_):
        raise Looked(key)

    for module in (patching, paths, acdc_module, redundancy_module):
        monkeypatch.setattr(module, "chunks_of", look)
    monkeypatch.setattr(finding, "kept_findings", look)
    monkeypatch.setattr(capture, "_open", lambda path, key: look(key))

    def get(call):
        with pytest.raises(Looked) as found:
            call()
        return found.value.args[0]

    return get


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("llama"), name="tiny", check=False)


def other_task():
    return replace(random_task(seed=9), name="others")


def cases(model):
    """For each cached function: how it is called, and other values of each argument."""
    graph = graph_of(model)
    part = Circuit.of(graph, ["input->L0H0.q", "L0H0->logits", "input->logits"])
    guide = scoring.score_edges(model, random_task(), method="EAP")
    yield (
        patching.activation_patching,
        {
            "layers": [0, 1],
            "positions": ["changed"],
            "components": [0, 1],
            "direction": "denoise",
        },
        {
            "site": ["q"],
            "by": [("layer", "head", "position")],
            "direction": ["noise"],
            "positions": ["all", ["near_end"], ["changed", "near_end"]],
            "layers": [[0], [0, 2], None],
            "components": [[0], None],
            "source": ["zero"],
            "reference": [{"source": "mean", "reference": r} for r in (OTHER, other_task())],
            "unit": ["metric"],
            "engine": ["hooks"],
        },
    )
    yield (
        paths.path_patching,
        {"receivers": ["L2H0.q"], "direction": "noise"},
        {
            "receivers": [["logits"], ["L2KV0.k"], ["L2H0.q", "L2H1.q"]],
            "senders": ["mlps"],
            "layers": [[0]],
            "direction": ["denoise"],
            "positions": ["changed", ["near_end"]],
            "freeze_mlps": [True],
            "unit": ["metric"],
            "runs": SAME,  # kept runs give the values that are computed without them
        },
    )
    yield (
        acdc_module.acdc,
        {"threshold": 0.1, "direction": "noise"},
        {
            "threshold": [0.2],
            "ablation": ["zero", "resample"],
            "direction": ["denoise"],
            "order": ["forward"],
            "absolute": [True],
            "batch": [7],
            "guide": [guide, replace(guide, signed=2 * guide.signed)],
            "reference": [{"ablation": "mean", "reference": r} for r in (OTHER, other_task())],
            "expand_kv": [True],
            "seed": [{"ablation": "resample", "seed": seed} for seed in (1, 2)],
        },
    )
    yield (
        redundancy_module.redundancy,
        {"parts": ["L0H0", "L0H1", "L1H0"]},
        {
            "parts": [None, ["L0H0", "L0H1"]],
            "within": [part],
            "expand_kv": [True],
            "neurons": [["L1N3"], ["L1N4"]],
            "threshold": SAME,  # the removals that are kept do not depend on it
            "limit": SAME,
            "ablation": ["zero", "resample"],
            "reference": [{"ablation": "mean", "reference": r} for r in (OTHER, other_task())],
            "seed": [{"ablation": "resample", "seed": seed} for seed in (1, 2)],
        },
    )


OTHER = random_task(seed=8)
SAME = ()


def changed_keys(key_of, function, model, base, others):
    """The keys of all calls with one argument changed; every argument has a case."""
    named = names_of(function) - FREE
    assert named == set(others), f"{function.__name__}: give new arguments a case"
    calls = [base]
    for name, values in others.items():
        for value in values:
            changed = value if isinstance(value, dict) else {name: value}
            calls.append({**base, **changed})
    task = random_task(lengths=(9, 9, 9, 9))
    return [key_of(lambda c=call: function(model, task, **c)) for call in calls]


@pytest.fixture(autouse=True)
def _any_gap(monkeypatch):
    for module in (spec, paths, scoring, trials):
        monkeypatch.setattr(module, "check_gap", lambda clean, corrupted: None)


def test_every_argument_is_in_the_key(key_of, model):
    for function, base, others in cases(model):
        keys = changed_keys(key_of, function, model, base, others)
        assert len(set(keys)) == len(keys), function.__name__
        assert None not in keys


def test_every_option_of_a_finder_is_in_the_key(key_of, model):
    changed = {
        "method": ["EAP", "ACDC", "learned-mask", "exact"],
        "ablation": ["zero"],
        "direction": ["denoise"],
        "steps": [3],
        "threshold": [{"method": "ACDC-paper"}, {"method": "ACDC-paper", "threshold": 0.1}],
        "weight": [{"method": "learned-mask", "weight": 2.0}],
        "expand_kv": [True],
        "neurons": [("L1N3",), ("L1N4",)],
        "seed": [{"ablation": "resample", "seed": 0}, {"ablation": "resample", "seed": 1}],
    }
    assert set(changed) == {field.name for field in fields(Finder)}
    assert names_of(find_circuit) - FREE == {"finder", "reference"}
    task, found = random_task(), []
    for name, values in ({"method": ["EAP-IG-inputs"]} | {}).items():
        found.append(
            key_of(lambda n=name, v=values: find_circuit(model, task, Finder(**{n: v[0]})))
        )
    for name, values in changed.items():
        for value in values:
            finder = Finder(**(value if isinstance(value, dict) else {name: value}))
            found.append(key_of(lambda f=finder: find_circuit(model, task, f)))
    by_mean = Finder(ablation="mean")
    for other in (OTHER, other_task()):
        found.append(key_of(lambda r=other: find_circuit(model, task, by_mean, reference=r)))
    assert len(set(found)) == len(found)


def test_every_argument_of_kept_activations_is_in_the_key(key_of, model):
    base = {"prompts": [(5, 6, 7), (8, 9, 10, 11)], "sites": ["z"], "to_disk": True}
    changed = {
        "prompts": [[(5, 6, 7), (8, 9, 10, 12)]],
        "sites": [["q"], ["z", "q"]],
        "layers": [[0], [1]],
        "positions": ["last", "first", [0, 2]],
        "padding_side": ["left"],
    }
    same = {"model", "budget_gb", "to_disk", "runs"}  # runs are refused beside to_disk
    assert set(inspect.signature(run_with_cache).parameters) - same == set(changed)
    calls = [base, *({**base, n: v} for n, values in changed.items() for v in values)]
    found = [key_of(lambda c=call: run_with_cache(model, **c)) for call in calls]
    assert len(set(found)) == len(found)


def test_every_attribute_of_ablated_sets_is_a_new_computation(model):
    prompts = [(5, 6, 7, 8), (8, 9, 10, 11), (3, 4, 5, 6)]
    means = {
        at: value.mean(0, keepdim=True)
        for at, value in site_values(model, prompts, [(0, "z"), (1, "z")]).items()
    }
    base = {"model": model, "prompts": prompts, "tokens": (5, 6), "where": 1}
    changed = {
        "model": [wrap(tiny("qwen2"), name="another", check=False)],
        "prompts": [prompts[:2], [*prompts[:2], (3, 4, 5, 7)]],
        "tokens": [(5, 7), (6, 5)],
        "where": [2, "all"],
        "kind": [{"kind": "mean", "values": means}, {"kind": "steer", "values": means}],
        "values": [{"kind": "mean", "values": {at: 2 * v for at, v in means.items()}}],
    }
    public = {field.name for field in fields(AblatedSets) if not field.name.startswith("_")}
    assert public - {"runs"} == set(changed)
    asked = [["L0H1"], ["L1H0", "L0H0"]]
    sets = AblatedSets(**base)
    first = sets(asked)
    for name, values in changed.items():
        for value in values:
            options = value if isinstance(value, dict) else {name: value}
            fresh = AblatedSets(**{**base, **options})(asked)
            for mine, right in zip(replace(sets, **options)(asked), fresh, strict=True):
                np.testing.assert_array_equal(mine, right)
    np.testing.assert_array_equal(sets(asked)[1], first[1])


# -- models, tokens and targets ----------------------------------------------------------------


def test_models_that_compute_differently_have_different_keys():
    plain = tiny("llama")
    torch.manual_seed(0)
    sdpa = t.AutoModelForCausalLM.from_config(FAMILIES["llama"](), attn_implementation="sdpa")
    sdpa.load_state_dict(plain.state_dict())
    one, other = (wrap(model, name="x") for model in (plain, sdpa.eval()))
    # One implementation of attention for all: the same numbers to the bit, so the same hash.
    assert one.hash == other.hash
    assert torch.equal(*(model.last_logits([(5, 6, 7, 8)]) for model in (one, other)))
    double = wrap(tiny("llama", torch.float64), name="x", check=False)
    weights = tiny("llama")
    weights.get_parameter("model.norm.weight").data[0] += 1e-3
    nudged = wrap(weights, name="x", check=False)
    task = random_task()
    keys = {result_key("x", 1, model, task) for model in (one, double, nudged)}
    assert len(keys) == 3


def test_what_a_task_asks_is_in_the_key(model):
    task = random_task()
    pair = task.pairs[0]
    changed = [
        {"clean": (*pair.clean[:-1], 96)},
        {"corrupted": (*pair.corrupted[:-1], 96)},
        {"answers": (1,)},
        {"wrong": (1,)},
        {"positions": {"changed": 3}},
    ]
    tasks = [replace(task, pairs=(replace(pair, **one), *task.pairs[1:])) for one in changed]
    tasks += [task, task.first(3), replace(task, name="b"), task.with_metric(METRICS["kl"])]
    keys = [result_key("x", 1, model, one) for one in tasks]
    assert len(set(keys)) == len(keys)
    assert result_key("x", 2, model, task) not in keys
    assert result_key("y", 1, model, task) not in keys
    assert result_key("x", 1, model, replace(random_task())) in keys


def test_another_tokeniser_is_another_result(tmp_path, key_of):
    """The same weights and texts, with a token before every text: other tokens, another circuit."""
    toy = build_toy("toy-induction")
    save_tokenizer(toy.vocabulary, tmp_path)
    first, second = (AutoTokenizer.from_pretrained(tmp_path) for _ in range(2))
    words = [word for word, _ in sorted(first.get_vocab().items(), key=lambda pair: pair[1])][2:8]
    from tokenizers.processors import TemplateProcessing

    second.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{words[0]} $A", special_tokens=[(words[0], first.convert_tokens_to_ids(words[0]))]
    )
    pair = PromptPair(
        clean=" ".join(words[1:4]), corrupted=" ".join(words[2:5]), answers=(3,), wrong=(4,)
    )
    task = Task(name="texts", pairs=(pair,))
    models = [
        wrap(build_toy("toy-induction").model, tokenizer, name="x", check=False)
        for tokenizer in (first, second)
    ]
    assert models[0].hash == models[1].hash
    assert models[0].tokenize(pair.clean).tokens != models[1].tokenize(pair.clean).tokens
    finder = Finder(method="EAP")
    assert len({key_of(lambda m=model: find_circuit(m, task, finder)) for model in models}) == 2
    assert len({tokeniser_key(model) for model in models}) == 2


# -- metrics of one's own ----------------------------------------------------------------------


def metric(function, name="mine"):
    return Metric(name=name, unit="logits", function=function)


def scaled(by):
    def function(readout, targets):
        return by * readout.at(targets.answers)[:, 0]

    return function


def wrapped(base, by):
    """A metric of one's own that carries the name and the module of `base`."""

    @functools.wraps(base)
    def function(readout, targets):
        return base(readout, targets) * by

    return function


def attributed(k):
    """A metric that reads an attribute of its own."""

    def function(readout, targets):
        return function.k * readout.at(targets.answers)[:, 0]

    function.k = k
    return function


SCALE = 1.0
READS = """globals()['S'] | eval('S') | exec('S = 1') | float(open('x').read()) | vars(torch)['S']
os.environ['S'] | random.random() | time.time() | np.random.rand() | torch.rand(1) | sys.argv[0]
torch.load('x') | torch.no_grad.__globals__['S'] | getattr(torch, 'S') | PLACE.read_text()
__import__('S') | id(readout) | datetime.now() | rand(1) | draw() | missing | np.load('x')
Path('x').stat() | torch.os.environ['S'] | builtins.eval('S') | HELD[0] | scaled(1) or readout.k
[sys for _ in [1]] | (lambda: globals())()"""


def with_global(readout, targets):
    return SCALE * readout.at(targets.answers)[:, 0]


def compiled(text):
    """The function that a file of one's own defines."""
    scope = {"torch": torch, "math": math}
    exec(text, scope)
    return scope["f"]


OWN = "def f(readout, targets, k={k}):\n    return {body}\n"


def test_an_edited_metric_is_a_new_circuit(model):
    """The file of a metric is edited and read again: its name stays, its numbers do not."""
    task = random_task()
    texts = [OWN.format(k=1, body=f"{x} * readout.at(targets.answers)[:, 0]") for x in (1, -2)]
    shown = []
    for text in (*texts, texts[0]):
        asked = task.with_metric(metric(compiled(text)))
        found = find_circuit(model, asked, Finder(method="clean-corrupted"))
        fresh = scoring.score_edges(model, asked, method="clean-corrupted")
        np.testing.assert_array_equal(found.signed, fresh.signed)
        sweep = patching.activation_patching(model, asked)
        right = patching.activation_patching(model, asked, cache=False)
        np.testing.assert_array_equal(sweep.effects, right.effects)
        shown.append(sweep.effects)
    np.testing.assert_allclose(shown[1], -2 * shown[0], atol=1e-6)
    assert (
        len(list(cache_dir().glob("results/*"))) == len(list(cache_dir().glob("circuits/*"))) == 2
    )


def test_a_metric_is_told_by_what_it_does(model, monkeypatch):
    bodies = ["readout.all()[:, 0]", "readout.all()[:, 1]", "readout.all()[:, k]"]
    bodies += ["(lambda x: x + 1)(readout.all()[:, 0])", "(lambda x: x + 2)(readout.all()[:, 0])"]
    bodies += ["torch.exp(readout.all()[:, 0])", "torch.log(readout.all()[:, 0])"]
    functions = [compiled(OWN.format(k=1, body=body)) for body in bodies]
    functions += [compiled(OWN.format(k=2, body=bodies[2])), scaled(1.0), scaled(2.0)]
    functions += [scaled(torch.ones(2)), scaled(torch.zeros(2)), with_global]
    functions += [functools.partial(compiled(OWN.format(k=1, body=bodies[2])), k=k) for k in (1, 5)]
    keys = [code_key(function) for function in functions]
    shipped = METRICS["logit_diff"].function
    keys += [code_key(f) for f in (shipped, *(wrapped(shipped, by) for by in (2, 3)))]
    keys += [code_key(attributed(k)) for k in (1, 2)]
    keys += [code_key(functools.partial(f)) for f in (attributed(3), attributed(4))]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert code_key(compiled(OWN.format(k=1, body=bodies[0]))) == keys[0]
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert code_key(with_global) not in keys


@pytest.mark.parametrize("body", re.split(r"\s*[|\n]\s*", READS))
def test_a_metric_that_reads_what_cannot_be_told_has_no_key(body):
    scope = {m.__name__: m for m in (torch, os, random, time, sys, builtins)}
    scope |= {"np": np, "datetime": datetime, "Path": Path, "PLACE": Path("x"), "S": 1}
    scope |= {"rand": torch.rand, "draw": np.random.default_rng(0).normal}
    scope |= {"HELD": np.array([None], dtype=object), "scaled": object()}
    exec(f"def f(readout, targets):\n    return {body}\n", scope)
    assert code_key(scope["f"]) is None


@pytest.mark.parametrize(
    "text", ["import os", "from os import environ", "from builtins import eval", "global S; S = 2"]
)
def test_imports_and_assignments_outside_have_no_key(text):
    scope = {"S": 1}
    exec(f"def f(readout, targets):\n    {text}\n    return 1\n", scope)
    assert code_key(scope["f"]) is None
    scope["f"].__module__, scope["f"].__qualname__ = "torch", "exp"
    assert code_key(scope["f"]) is None


def test_a_metric_that_counts_its_calls_has_no_key():
    calls = 0

    def function(readout, targets):
        nonlocal calls
        calls += 1
        return calls * readout.all()[:, 0]

    assert code_key(function) is None


def test_plain_python_is_told():
    def function(readout, targets):
        worst = max(float(one) for one in readout.all()[0])
        if not math.isfinite(worst):
            raise ValueError(f"{worst}")
        return sum(map(abs, [worst])) * torch.softmax(readout.all(), -1)[:, 0]

    assert code_key(function) is not None


def test_a_metric_that_cannot_be_told_is_not_kept(model, monkeypatch):
    class Scaled:
        by = 1.0

        def __call__(self, readout, targets):
            return self.by * readout.all()[:, 0]

    class Held:
        by = 1.0

    held = Held()
    text = "def f(readout, targets):\n    import tests\n    return tests.x\n"
    functions = (Scaled(), lambda readout, targets: held.by * readout.all()[:, 0], compiled(text))
    task = random_task()
    for function in functions:
        asked = task.with_metric(metric(function))
        assert code_key(function) is None
        assert Finder().key(model, asked) is None
    asked = task.with_metric(metric(functions[0]))
    first = patching.activation_patching(model, asked).clean
    Scaled.by = 3.0
    np.testing.assert_allclose(patching.activation_patching(model, asked).clean, 3 * first)
    assert {path.parent.name for path in cache_dir().glob("*/*")} <= {"paces"}
