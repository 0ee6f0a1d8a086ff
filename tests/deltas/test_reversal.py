"""What comes off exactly has factor 1 and no other bits; what does not is told."""

import numpy as np
import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.deltas.reversal import recoverability, taken_back
from interp.models.weight_delta import WeightDelta
from interp.runs.kinds import zero
from tests.models.test_weight_delta import noise

PROMPTS = [(3, 4, 5, 6, 7), (5, 6, 7)]


def test_blocks_that_come_off_exactly(family_models):
    model = family_models["llama"]
    blocks = {
        "delta": noise(model).applied(model),
        "intervene": interp.intervene(model, zero("L1H0")),
    }
    for name, block in blocks.items():
        found = recoverability(model, PROMPTS, block, name=name)
        assert (found.factor, found.left.mean, found.largest) == (1, 0, 0)
        assert (found.logits_apart, found.weights_apart) == (0, 0)
        assert found.changed.mean > 1e-6
        assert "recoverability 1.000000" in str(found)


@pytest.mark.long
def test_the_divergence_is_that_of_loops(family_models):
    model = family_models["llama"]
    delta = noise(model)
    found = recoverability(model, PROMPTS, delta.applied(model))
    means = []
    for prompt in PROMPTS:
        total = 0.0
        for end in range(1, len(prompt) + 1):
            plain = model.last_logits([prompt[:end]])[0].double().softmax(-1)
            with delta.applied(model):
                new = model.last_logits([prompt[:end]])[0].double().softmax(-1)
            total += sum(float(p * np.log(p / q)) for p, q in zip(new, plain, strict=True))
        means.append(total / len(prompt))
    assert found.changed.mean == pytest.approx(np.mean(means), rel=1e-4)


@pytest.mark.parametrize("how", ["bfloat16", "float16", "4 bits", "8 bits"])
def test_a_way_back_without_a_copy_leaves_something(family_models, how):
    model = family_models["llama"]
    delta = noise(model, scale=0.5)
    left = taken_back(model, delta, how)
    found = recoverability(model, PROMPTS, delta.applied(model), reset=left)
    assert 0.5 < found.factor < 1
    assert found.weights_apart > 0
    assert found.logits_apart > 0
    assert found.left.mean > 0
    worse = taken_back(model, delta, "4 bits")
    assert sum(float(worse.difference(n).abs().sum()) for n in worse.names) >= sum(
        float(left.difference(n).abs().sum()) for n in left.names
    )


def test_adding_and_subtracting_by_hand(family_models):
    model = family_models["llama"]
    delta = noise(model, scale=0.5)
    left, name = taken_back(model, delta, "bfloat16"), "model.layers.0.mlp.up_proj.weight"
    from interp.models.modules import tensors_of

    old = tensors_of(model.hf_model)[name]
    added = delta.difference(name).bfloat16()
    by_hand = (old.bfloat16() + added) - added
    torch.testing.assert_close(old.double() + left.difference(name), by_hand.double())


def test_nothing_changed_and_refusals(family_models):
    model = family_models["llama"]
    nothing = WeightDelta(name="nothing", base=model.hash)
    assert np.isnan(recoverability(model, PROMPTS, nothing.applied(model)).factor)
    with pytest.raises(InterpError, match="no prompts"):
        recoverability(model, [], nothing.applied(model))
    with pytest.raises(InterpError, match="way back"):
        taken_back(model, nothing, "int3")
