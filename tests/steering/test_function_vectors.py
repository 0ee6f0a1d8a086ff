"""Function vectors against plain hooks, and heads that are planted."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.steering.function_vectors import function_vector, head_task_effects
from interp.steering.task_vectors import answered
from tests.words import TASK, word_model

PLANTED = ((1, 2), (2, 0))


@pytest.fixture(scope="module")
def model():
    return word_model()


@pytest.fixture(scope="module")
def planted():
    """A model in which only two heads write anything."""
    return word_model(heads=PLANTED)


def slow_run(model, text, *, layer=None, head=None, value=None):
    """The last logits, and z of every layer at the last token, by hooks of plain PyTorch.

    With a value, a head's z at the last token is replaced by it.
    """
    seen, handles = [], []
    for number, block in enumerate(model.hf_model.model.layers):

        def hook(module, inputs, number=number):
            (z,) = inputs
            if number == layer:
                z = z.clone()
                z[0, -1, 8 * head : 8 * head + 8] = value
            seen.append(z[0, -1].view(4, 8))
            return (z,)

        handles.append(block.self_attn.o_proj.register_forward_pre_hook(hook))
    with torch.no_grad():
        logits = model.hf_model(torch.tensor([model.tokenize(text).tokens])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits, torch.stack(seen)


def slow_means(model, texts):
    return torch.stack([slow_run(model, text)[1] for text in texts]).mean(0)


def slow_written(model, z, heads):
    """The sum of what heads write, from z (layer, head, d_head)."""
    total = torch.zeros(model.d_model, dtype=torch.float64)
    for layer, head in heads:
        weight = model.hf_model.model.layers[layer].self_attn.o_proj.weight
        total += weight[:, 8 * head : 8 * head + 8] @ z[layer, head]
    return total


def test_effects_equal_one_hooked_run_per_head_and_prompt(model):
    found = head_task_effects(model, TASK, seed=2)
    pairs = TASK.prompts("examples", seed=2).pairs
    means = slow_means(model, [pair.clean for pair in pairs])
    ids = [model.token_id(pair.answers[0])[0] for pair in pairs]
    for i, pair in enumerate(pairs[:3]):
        clean = slow_run(model, pair.clean)[0].softmax(-1)[ids[i]]
        plain = slow_run(model, pair.corrupted)[0].softmax(-1)[ids[i]]
        assert found.clean[i] == pytest.approx(float(clean), abs=1e-6)
        assert found.corrupted[i] == pytest.approx(float(plain), abs=1e-6)
        for layer in range(3):
            for head in range(4):
                changed, _ = slow_run(
                    model, pair.corrupted, layer=layer, head=head, value=means[layer, head]
                )
                gained = float(changed.softmax(-1)[ids[i]] - plain)
                assert found.effects[i, layer, head] == pytest.approx(gained, abs=1e-6)
    assert found.unit == "metric"
    assert found.n == 12


def test_the_planted_heads_alone_have_an_effect(planted):
    found = head_task_effects(planted, TASK)
    written = {(layer, head) for layer, head in np.argwhere(np.abs(found.values) > 1e-9).tolist()}
    assert written == {*PLANTED}


def test_where_no_head_writes_nothing_is_found():
    still = word_model(heads=())
    found = head_task_effects(still, TASK)
    assert np.abs(found.effects).max() < 1e-9
    with pytest.raises(InterpError, match="positive effect"):
        function_vector(still, TASK, heads=1)
    vector = function_vector(still, TASK, heads=["L1H2"], layer=1)
    assert float(vector.vector.norm()) == 0
    hits, likely = answered(still, TASK.prompts(), [vector.change()])
    assert likely[1] == pytest.approx(likely[0], abs=1e-12)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_vector_is_the_sum_of_mean_outputs(model, shuffled):
    heads = ["L0H1", "L2H3", "L2H0"]
    found = function_vector(model, TASK, heads=heads, layer=1, shuffled=shuffled)
    pairs = TASK.prompts("examples").pairs
    means = slow_means(model, [pair.corrupted if shuffled else pair.clean for pair in pairs])
    expected = slow_written(model, means, [(0, 1), (2, 3), (2, 0)])
    torch.testing.assert_close(found.vector, expected, atol=1e-5, rtol=1e-5)
    assert (found.added, found.layer, found.heads) == (True, 1, tuple(heads))


def test_all_heads_of_a_layer_give_its_mean_attention_output(planted):
    """The planted truth: in a layer where one head writes, the vector is the attention's output."""
    found = function_vector(planted, TASK, heads=[f"L1H{head}" for head in range(4)], layer=0)
    seen = []
    attention = planted.hf_model.model.layers[1].self_attn.o_proj
    handle = attention.register_forward_hook(lambda m, i, out: seen.append(out[0, -1]))
    with torch.no_grad():
        for pair in TASK.prompts("examples").pairs:
            planted.hf_model(torch.tensor([planted.tokenize(pair.clean).tokens]))
    handle.remove()
    expected = torch.stack(seen).mean(0)
    torch.testing.assert_close(found.vector, expected, atol=1e-5, rtol=1e-5)
    alone = function_vector(planted, TASK, heads="L1H2", layer=0)
    torch.testing.assert_close(alone.vector, found.vector)
    assert float(alone.vector.norm()) > 0.01


def test_adding_equals_plain_hooks(model):
    vector = function_vector(model, TASK, heads=["L0H1", "L1H3"], layer=1)
    _, likely = answered(model, TASK.prompts(), [vector.change(), vector.change(coefficient=0)])
    block = model.hf_model.model.layers[1]

    def write(module, inputs, output):
        state = (output[0] if isinstance(output, tuple) else output).clone()
        state[0, -1] += vector.vector
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handle = block.register_forward_hook(write)
    for i, pair in enumerate(TASK.prompts().pairs):
        ids = torch.tensor([model.tokenize(pair.clean).tokens])
        with torch.no_grad():
            slow = model.hf_model(ids).logits[0, -1].softmax(-1)
        expected = float(slow[model.token_id(pair.answers[0])[0]])
        assert likely[1, i] == pytest.approx(expected, abs=1e-6)
    handle.remove()
    assert likely[2] == pytest.approx(likely[0], abs=1e-12)
    assert likely[1] != pytest.approx(likely[0], abs=1e-4)


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"heads": 13}, {"heads": ["L0H9"]}, {"layer": 5}])
def test_heads_that_are_not_there_are_refused(model, wrong):
    with pytest.raises(InterpError):
        function_vector(model, TASK, **wrong)
