"""A behaviour before and after a change of weights, against plain runs."""

import numpy as np
import pytest
import torch

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.deltas.after_change import survival
from interp.deltas.compression import compress
from interp.models.modules import tensors_of
from interp.models.weight_delta import WeightDelta
from interp.patching.joint import joint_patching
from interp.runs.losses import text_losses
from interp.tasks.registry import load_task


@pytest.fixture(scope="module")
def planted(toy):
    """The toy whose induction head is known, its task, the head, and another head."""
    return toy, load_task("toy-induction", toy).first(12), "L1H2"


def without(model, head, name):
    """The delta that sets what a head writes to 0."""
    part = Component.parse(head)
    o = model.decoder.blocks[part.layer].attn.o.weight  # (heads * d_head, d_model)
    held = tensors_of(model.hf_model)
    key = next(key for key, tensor in held.items() if tensor.data_ptr() == o.data_ptr())
    change = torch.zeros_like(o)
    rows = slice(part.index * model.d_head, (part.index + 1) * model.d_head)
    change[rows] = -o[rows]
    turned = change if held[key].shape == o.shape and held[key].stride() == o.stride() else change.T
    return WeightDelta(name=name, base=model.hash, dense={key: turned.contiguous()})


def test_numbers_are_those_of_plain_calls(planted):
    model, task, head = planted
    delta = compress(model, "random", share=0.3)
    texts = [pair.clean for pair in task.pairs][:4]
    found = survival(model, delta, task, heads=[head], texts=texts, draws=4)
    before, plain = task.check(model), text_losses(model, texts)
    assert found.before.mean == pytest.approx(before.clean.mean, rel=1e-6)
    assert str(found.heads_before) == str(joint_patching(model, task, [head], draws=4))
    with delta.applied(model):
        assert found.after.mean == pytest.approx(task.check(model).clean.mean, rel=1e-6)
        later = text_losses(model, texts)
    assert found.change.mean == pytest.approx(found.after.mean - found.before.mean, rel=1e-6)
    assert found.loss_change.mean == pytest.approx(float((later - plain).mean()), rel=1e-6)
    assert 0 < found.divergence.mean < np.log(2)
    assert "Jensen-Shannon" in str(found)


def test_the_divergence_is_that_of_loops(planted):
    model, task, _ = planted
    delta, text = compress(model, "random", share=0.3), task.pairs[0].clean
    found = survival(model, delta, task, texts=[text])
    tokens, total = model.tokenize(text).tokens, 0.0
    for end in range(1, len(tokens) + 1):
        p = model.last_logits([tokens[:end]])[0].double().softmax(-1).numpy()
        with delta.applied(model):
            q = model.last_logits([tokens[:end]])[0].double().softmax(-1).numpy()
        m = (p + q) / 2
        total += sum(np.sum(x * np.log(np.maximum(x, 1e-300) / m)) for x in (p, q)) / 2
    assert found.divergence.mean == pytest.approx(total / len(tokens), rel=1e-3)


def test_a_change_that_removes_the_head_removes_the_behaviour_and_another_does_not(planted):
    model, task, head = planted
    gone = survival(model, without(model, head, "without it"), task, heads=[head], draws=2)
    assert gone.change.high < -0.5 * gone.before.mean
    assert gone.heads_after is None or abs(gone.heads_after.effect.mean) < 0.2
    other = next(f"L1H{i}" for i in range(model.n_heads) if f"L1H{i}" != head)
    kept = survival(model, without(model, other, "without another"), task, heads=[head], draws=2)
    assert abs(kept.change.mean) < 0.2 * kept.before.mean
    assert kept.heads_after.effect.mean > 0.5


def test_a_function_for_a_behaviour_and_refusals(planted):
    model, task, head = planted
    delta = WeightDelta(name="nothing", base=model.hash)
    same = survival(model, delta, lambda m: np.arange(5.0))
    assert (same.before.mean, same.change.mean, same.task) == (2, 0, "<lambda>")
    assert same.heads_before is None
    with pytest.raises(InterpError, match="it is a function"):
        survival(model, delta, lambda m: np.arange(5.0), heads=[head])
    lengths = iter((5, 4))
    with pytest.raises(InterpError, match="a number for each prompt"):
        survival(model, delta, lambda m: np.zeros(next(lengths)))
    with pytest.raises(InterpError, match="its base is"):
        survival(model, WeightDelta(name="x", base="other"), task)
