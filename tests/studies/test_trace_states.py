"""States along a trace: read by hand, planted in the state, and absent where nothing computes."""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import interp
from interp.core.errors import InterpError
from interp.models.loading import reinitialised
from interp.probing.class_probes import probe_values
from interp.probing.output_signatures import output_signature, states_and_signature
from interp.runs.text_runs import Generation
from interp.studies.verification import trace_states
from interp.studies.verification.trace_states import probe_trace, result_onsets, trace_steps
from interp.tasks.arithmetic import evaluate
from interp.tasks.countdown import Problem, make_countdown, write_trace


@pytest.fixture(scope="module")
def model():
    return interp.load_model("countdown-tiny")


def written(model, n, operands=(3,), failures=1):
    problems = make_countdown(n, operands=operands, seed=7)
    texts = []
    for i, one in enumerate(problems):
        prompt = model.tokenize(one.prompt()).tokens
        text = write_trace(one, random.Random(i), failures=failures)
        whole = model.tokenize(one.prompt() + text).tokens
        texts.append(
            Generation(
                prompt=prompt, tokens=whole[len(prompt) :], text=text, stopped=True, fired=()
            )
        )
    return texts, problems


@pytest.fixture(scope="module")
def steps(model):
    return trace_steps(model, *written(model, 120, failures=0))


def test_steps_by_hand(model):
    problem = Problem(numbers=(84, 60, 47), target=71)
    text = " 60 - 84 + 47 = -24 + 47 = 23 (not 71)\n- 84 - 60 + 47 = 24 + 47 = 71 (this works)"
    prompt = model.tokenize(problem.prompt()).tokens
    tokens = model.tokenize(problem.prompt() + text).tokens[len(prompt) :]
    one = Generation(prompt=prompt, tokens=tokens, text=text, stopped=True, fired=())
    found = trace_steps(model, [one], [problem])
    assert found.operand.tolist() == [1, 2, 3, 1, 2, 3]
    assert found.attempt.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.of.tolist() == [3] * 6
    assert found.total.tolist() == [60, -24, 23, 84, 24, 71]
    assert found.distance.tolist() == [11, 95, 48, -13, 47, 0]
    assert found.left.tolist() == [131, 47, 0, 107, 47, 0]
    assert found.verdict.tolist() == [False] * 3 + [True] * 3
    ends = ["60", "60 - 84", "60 - 84 + 47", "84", "84 - 60", "84 - 60 + 47"]
    for at, end in zip(found.position, ends, strict=True):
        assert "".join(model.strings(found.texts[0][: at + 1])).endswith(f"- {end}") or (
            "".join(model.strings(found.texts[0][: at + 1])).endswith(f" {end}")
        )


def test_steps_of_traces_agree_with_their_sums(model):
    texts, problems = written(model, 20, operands=(3, 4), failures=2)
    found = trace_steps(model, texts, problems)
    last = found.take(found.operand == found.of)
    sums = [
        evaluate(line.split(" = ")[0].strip("- "))
        for one in texts
        for line in one.text.split("\n")
        if "(" in line
    ]
    assert last.total.tolist() == sums
    assert last.verdict.tolist() == [
        total == problems[i].target for total, i in zip(sums, last.text, strict=True)
    ]
    assert (last.left == 0).all()


def test_states_and_signatures_are_those_of_each_prefix(model, steps):
    """Read in one run of each text; compared with a run of every prefix."""
    few = steps.take(np.arange(9))
    states, vectors = trace_states._read(model, few, [1, 3])
    k = min(trace_states.TOP, model.d_vocab)
    prefixes = [few.texts[i][: at + 1] for i, at in zip(few.text, few.position, strict=True)]
    slow, _ = states_and_signature(model, prefixes, layers=[1, 3], k=k)
    np.testing.assert_allclose(states, slow, atol=1e-4)
    signature = output_signature(model, prefixes, k=k)
    np.testing.assert_allclose(vectors, signature.vectors(), atol=1e-3)


def test_a_planted_total_is_read_and_noise_is_not(model, steps, monkeypatch):
    """One layer holds the total; the other model's layers hold noise."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, len(steps), 8))
    held = noise.copy()
    held[1, :, 3] += steps.total / 10
    signatures = rng.standard_normal((len(steps), 4))
    tensor = trace_states.torch.from_numpy
    kept = {model.name: held, "blank": noise}
    monkeypatch.setattr(
        trace_states,
        "_read",
        lambda which, given, layers: (tensor(kept[which.name]), tensor(signatures)),
    )
    blank = SimpleNamespace(name="blank", n_layers=model.n_layers)
    found = probe_trace(model, steps, "total", others={"noise": blank}, layers=[0, 1], shuffles=9)[
        "total"
    ]
    assert {*found.states} == {1, 2, 3}
    for operand, probes in found.states.items():
        assert probes.low[1] > 0.5 > probes.high[0]
        assert probes.p[1] == 0.1
        rival = found.rivals[operand]["noise"]
        assert np.array_equal(rival.test, probes.test)
        assert probes.minus(rival).low[1] > 0
        held_out = {*steps.text[steps.operand == operand][probes.test].tolist()}
        fitted = {*steps.text[steps.operand == operand][~probes.test].tolist()}
        assert not held_out & fitted
        rows = np.flatnonzero(steps.operand == operand)
        slow = probe_values(tensor(held)[:, rows], steps.total[rows], test=probes.test, shuffles=1)
        np.testing.assert_allclose(slow.values, probes.values)
    table = found.to_dataframe()
    assert len(table) == 6
    np.testing.assert_allclose(table["beyond noise"], table["R2"] - table["noise"])
    assert len(found.plot().data) == 3


def test_the_model_adds_and_a_model_with_random_weights_does_not(model, steps):
    """After two operands their sum is in the state, although no token says it."""
    second = steps.take(steps.operand == 2)
    others = {"untrained": reinitialised(model, seed=0)}
    fit = {"layers": [1], "shuffles": 9, "regularisation": 1.0}
    found = probe_trace(model, second, "total", others=others, **fit)["total"]
    assert found.states[2].low[0] > 0.4
    assert found.states[2].p[0] == 0.1
    assert found.states[2].minus(found.rivals[2]["untrained"]).low[0] > 0


def test_what_is_the_same_in_every_row_is_refused(model, steps):
    last = steps.take(steps.operand == 3)
    assert (last.left == 0).all()
    with pytest.raises(InterpError, match="the same in every row"):
        probe_trace(model, last, "left", shuffles=1)


def test_results_are_cut_before_their_first_digit(model):
    texts, _ = written(model, 60)
    prompts, values = result_onsets(model, texts, least=2)
    for prompt, value in zip(prompts, values, strict=True):
        text = "".join(model.strings(prompt))
        assert text.rstrip().endswith("=")
        assert text.count("=") == 1
        digit = "".join(model.strings([value]))
        assert any(
            "".join(model.strings((*one.prompt, *one.tokens))).startswith(text + digit)
            for one in texts
        )
    assert min(values.count(value) for value in values) >= 2


def test_bad_input_is_refused(model, steps):
    texts, problems = written(model, 2)
    with pytest.raises(InterpError, match="one problem for each text"):
        trace_steps(model, texts, problems[:1])
    other = replace(texts[0], tokens=texts[0].tokens[:3])
    with pytest.raises(InterpError, match="no attempt"):
        trace_steps(model, [other], problems[:1])
    with pytest.raises(InterpError, match="state of a trace"):
        probe_trace(model, steps, "mood")
    with pytest.raises(InterpError, match="'tokens'"):
        probe_trace(model, steps, others={"tokens": model})
    with pytest.raises(InterpError, match="layer"):
        probe_trace(model, steps, layers=[99])
    with pytest.raises(InterpError, match="first digits"):
        result_onsets(model, texts, least=50)
