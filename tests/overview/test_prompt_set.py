"""Measures of heads over a task equal those of each prompt alone."""

import numpy as np
import pytest

import interp
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.engine.stopping import Cancelled
from interp.overview.logit_parts import direct_attribution
from interp.overview.one_prompt import HEAD_METRICS, look
from interp.overview.prompt_set import DIRECT, head_samples


def test_samples_are_those_of_each_prompt_and_a_prompt_without_a_key_is_left_out(family_models):
    model = family_models["llama"]
    prompts = ((5, 9, 2, 9, 11), (5, 9, 2), (4, 4, 3, 4))
    pairs = tuple(
        PromptPair(clean=p, answers=(1,), wrong=(2,), positions={"B": len(p) - 2}) for p in prompts
    )
    task = Task(name="three", pairs=pairs)
    seen: list[tuple[int, int]] = []
    found = head_samples(model, task, progress=lambda *done: seen.append(done))
    assert {*found} == {"to B", DIRECT, *HEAD_METRICS[1:]}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for metric, samples in found.items():
        kept = (0, 2) if "same" in metric else (0, 1, 2)
        assert samples.kept == kept
        for row, i in zip(samples.samples, kept, strict=True):
            if metric == DIRECT:
                expected = direct_attribution(model, prompts[i], 1, 2).heads
            else:
                name = metric if metric in HEAD_METRICS else "to chosen token"
                expected = look(model, prompts[i]).head_attention(name, token=-2)
            np.testing.assert_allclose(row, expected, atol=1e-6)
        np.testing.assert_allclose(samples.values, samples.samples.mean(0))
        low, high = samples.interval()
        assert (low <= samples.values).all()
        assert (samples.values <= high).all()
    kept = head_samples(model, task, progress=lambda *done: pytest.fail("it was kept"))
    for metric, samples in found.items():
        np.testing.assert_array_equal(kept[metric].samples, samples.samples)
        assert kept[metric].kept == samples.kept


def test_the_planted_heads_stand_out(toy):
    task = interp.load_task("toy-induction", toy, n=8)
    found = head_samples(toy, task)
    assert found["to token after same token"].values[1, 2] > 0.3


def test_it_can_be_cancelled(toy):
    task = interp.load_task("toy-induction", toy, n=4)
    with pytest.raises(Cancelled):
        head_samples(toy, task, cancelled=lambda: True)
    assert issubclass(Cancelled, InterpError)
