"""Prompts with branches: their layout, their plain rows, and log-probabilities of strings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.branches import Branched, StringReadout, Unfolded, greedy, places, sizes_of
from interp.core.errors import InterpError
from interp.core.metrics import METRICS, Logits, Targets
from interp.core.prompts import PromptPair, Task
from tests.answers import plain_logits, scored, several, string

STRINGS = ((7, 8, 9), (5,), (7, 4))
ROW = Branched.of((1, 2, 3), STRINGS)


def test_a_row_is_the_prompt_and_what_is_run_of_each_string():
    assert ROW == (1, 2, 3, 7, 8, 7)
    assert sizes_of(ROW) == (2, 1)
    position, branch = places(len(ROW), sizes_of(ROW))
    assert position.tolist() == [0, 1, 2, 3, 4, 3]
    assert branch.tolist() == [0, 0, 0, 1, 1, 2]
    assert sizes_of((1, 2, 3)) == ()


def test_plain_rows_and_back():
    plain = Unfolded.of([ROW, (4, 4)])
    assert plain.rows == [(1, 2, 3, 7, 8), (1, 2, 3, 7), (4, 4)]
    assert plain.owner == [0, 0, 1]
    assert [within.tolist() for within in plain.within] == [[0, 1, 2, 3, 4], [0, 1, 2, 5], [0, 1]]
    assert plain.counts == [3, 2, 1]
    tails = [torch.tensor([[30], [31], [32]]), torch.tensor([[30], [41]]), torch.tensor([[50]])]
    assert plain.folded(tails).ravel().tolist() == [30, 31, 32, 41, 50]


def test_strings_by_a_slow_loop():
    """Rows: after the prompt, after 7, after 7 8, after 7 of the third; then another prompt."""
    torch.manual_seed(0)
    logits, other = torch.randn(6, 12, dtype=torch.float64), ((3, 2),)
    found = StringReadout.of(logits, [STRINGS, other])
    logs = logits.log_softmax(-1)
    assert found.values[0].tolist() == pytest.approx(
        [
            float(logs[0, 7] + logs[1, 8] + logs[2, 9]),
            float(logs[0, 5]),
            float(logs[0, 7] + logs[3, 4]),
        ]
    )
    assert found.values[1].tolist() == pytest.approx([float(logs[4, 3] + logs[5, 2]), 0, 0])
    assert found.lengths.tolist() == [[3, 1, 2], [2, 1, 1]]
    top = logits.clone()
    for row, token in ((0, 7), (1, 8), (2, 9), (3, 0), (4, 3), (5, 0)):
        top[row, token] = 99
    assert greedy(top, [STRINGS, other]).tolist() == [[True, False, False], [False] * 3]
    with pytest.raises(ValueError, match="5 tokens read, 6 needed"):
        StringReadout.of(logits[:5], [STRINGS, other])


@pytest.mark.parametrize("metric", ["log_prob_diff", "log_prob_diff_per_token"])
def test_check_equals_plain_passes(family_models, metric):
    model, task = family_models["gpt2"], several(metric=metric)
    report = task.check(model)
    logits_of = plain_logits(model.hf_model)
    for side, found in (("clean", report.clean), ("corrupted", report.corrupted)):
        slow = [
            scored(logits_of, getattr(pair, side), pair, per_token=metric.endswith("token"))
            for pair in task.pairs
        ]
        assert found.mean == pytest.approx(np.mean(slow), abs=1e-5)


def test_accuracy_is_that_of_greedy_decoding(family_models):
    """Answers that greedy decoding writes are right; with one other token they are not."""
    model = family_models["llama"]
    pairs = []
    for pair in several().pairs:
        tokens = [*pair.clean]
        for _ in range(3):
            tokens.append(int(model.last_logits([tuple(tokens)])[0].argmax()))
        answer = tuple(tokens[len(pair.clean) :])
        pairs.append(replace(pair, answers=(answer,), wrong=((answer[0], answer[1], 2, 2),)))
    task = Task(name="greedy", pairs=tuple(pairs)).with_metric("log_prob_diff")
    assert task.check(model).accuracy.mean == 1.0
    turned = [replace(pair, answers=pair.wrong, wrong=pair.answers) for pair in pairs]
    assert replace(task, pairs=tuple(turned)).check(model).accuracy.mean == 0.0


def test_metrics_of_several_answers_by_hand():
    """log_prob sums probabilities, prob_diff subtracts them, log_prob_diff means logarithms."""
    torch.manual_seed(1)
    logits, strings = torch.randn(4, 12), (STRINGS,)
    targets = Targets(
        answers=torch.tensor([[0, 1]]), wrong=torch.tensor([[2, -1]]), strings=strings
    )
    a, b, c = StringReadout.of(logits, strings).values[0].double().tolist()
    expected = {
        "log_prob": np.log(np.exp(a) + np.exp(b)),
        "prob_diff": np.exp(a) + np.exp(b) - np.exp(c),
        "log_prob_diff": (a + b) / 2 - c,
        "log_prob_diff_per_token": (a / 3 + b) / 2 - c / 2,
    }
    for name, value in expected.items():
        assert float(METRICS[name](Logits(logits), targets)) == pytest.approx(value, abs=1e-6)
        assert METRICS[name].strings


def test_files_keep_answers_of_several_tokens(tmp_path, smollm):
    pairs = (
        PromptPair(clean=(1, 2), answers=((3, 4), 5), wrong=((6, 7),)),
        PromptPair(clean=(1, 3), answers=((3, 4), 5), wrong=((6, 7),)),
    )
    task = Task(name="ids", pairs=pairs)
    (tmp_path / "ids.jsonl").write_text(task.to_jsonl())
    assert Task.from_jsonl(tmp_path / "ids.jsonl").pairs == pairs
    text = PromptPair(clean="He lives in", answers=(" New York",), wrong=(" Paris",))
    encoded = (
        Task(name="text", pairs=(text,)).with_metric("log_prob_diff").encode(smollm, strings=True)
    )
    assert [len(one) for one in encoded.targets.strings[0]] == [2, 1]
    assert smollm.strings(encoded.targets.strings[0][0]) == (" New", " York")


def test_a_forgotten_space_is_said(smollm):
    for answer in ("New York", "Ulaanbaatar"):
        pair = PromptPair(clean="He lives in", answers=(answer,), wrong=(" Paris",))
        with pytest.raises(InterpError, match="with its space"):
            Task(name="no space", pairs=(pair,)).with_metric("log_prob_diff").check(smollm)


def test_functions_of_one_token_refuse(smollm):
    pair = PromptPair(
        clean="He lives in", corrupted="He died in", answers=(" New York",), wrong=(" Paris",)
    )
    task = Task(name="text", pairs=(pair,)).with_metric("log_prob_diff")
    with pytest.raises(InterpError, match="not one token"):
        task.encode(smollm)
    assert string(5) == (5,)
