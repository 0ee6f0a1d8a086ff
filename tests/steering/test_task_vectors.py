"""Task vectors against plain hooks, and against prompts whose logits they must give."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.runs.generation import generate
from interp.runs.hooks import intervene
from interp.steering.task_vectors import answered, permuted, task_vector
from interp.tasks.word_pairs import WordTask
from tests.words import TASK, WORDS, word_model


@pytest.fixture(scope="module")
def model():
    return word_model()


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # rotations are float32


def slow_state(model, text, layer):
    """The state after a layer at the last token, read by a hook of plain PyTorch."""
    seen = []
    block = model.hf_model.model.layers[layer]

    def read(module, inputs, output):
        seen.append((output[0] if isinstance(output, tuple) else output)[0, -1])

    with torch.no_grad():
        handle = block.register_forward_hook(read)
        model.hf_model(torch.tensor([model.tokenize(text).tokens]))
        handle.remove()
    return seen[0]


def slow_logits(model, text, layer, vector):
    """The last logits with a state replaced by a hook of plain PyTorch."""
    block = model.hf_model.model.layers[layer]

    def write(module, inputs, output):
        state = (output[0] if isinstance(output, tuple) else output).clone()
        state[0, -1] = vector
        return (state, *output[1:]) if isinstance(output, tuple) else state

    with torch.no_grad():
        handle = block.register_forward_hook(write)
        logits = model.hf_model(torch.tensor([model.tokenize(text).tokens])).logits[0, -1]
        handle.remove()
    return logits


@pytest.mark.parametrize("spec", ["examples", "instruction", "both", "bare"])
def test_the_vector_is_the_mean_state_of_plain_hooks(model, spec):
    ways = {"both": ("examples", "instruction"), "bare": ("none",)}.get(spec, (spec,))
    for layer in range(3):
        found = task_vector(model, TASK, spec=spec, layer=layer, seed=4)
        means = [
            torch.stack(
                [slow_state(model, pair.clean, layer) for pair in TASK.prompts(way, seed=4).pairs]
            ).mean(0)
            for way in ways
        ]
        close(found.vector, torch.stack(means).mean(0))
    assert found.n == 12 * len(ways)


def test_putting_it_in_equals_plain_hooks_in_every_way_of_running(model):
    vector = task_vector(model, TASK, layer=1)
    prompts = TASK.prompts()
    hits, likely = answered(model, prompts, [vector.change()])
    ids = [model.token_id(f" {answer}")[0] for _, answer in TASK.pairs]
    with intervene(model, vector.change()):
        hooked = model.last_logits([pair.clean for pair in prompts.pairs])
    everywhere = vector.change(positions="all")
    texts = generate(model, prompts, change=everywhere, where=1, max_new_tokens=1)
    for i, pair in enumerate(prompts.pairs):
        slow = slow_logits(model, pair.clean, 1, vector.vector)
        close(hooked[i], slow)
        assert likely[1, i] == pytest.approx(float(slow.softmax(-1)[ids[i]]), abs=1e-6)
        assert hits[1, i] == (int(slow.argmax()) == ids[i])
        assert [*texts[i].tokens, model.tokenizer.eos_token_id][0] == int(slow.argmax())
    assert not np.allclose(likely[0], likely[1])


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_vector_of_the_same_prompt_changes_nothing(model, layer):
    one = WordTask(name="one", instruction="waa.", pairs=TASK.pairs[:1])
    vector = task_vector(model, one, spec="instruction", layer=layer)
    told = one.prompts("instruction")
    _, likely = answered(model, told, [vector.change()])
    assert likely[1] == pytest.approx(likely[0], abs=1e-6)
    # After the last layer nothing of the query is left: any query gives the logits of that prompt.
    _, bare = answered(model, one.prompts(), [vector.change()])
    assert (bare[1] == pytest.approx(likely[0], abs=1e-6)) == (layer == 2)


def test_without_attention_no_prompt_specifies_a_task():
    """Nothing may be found: the last token of every prompt is the same, and sees no other."""
    still = word_model(heads=())
    for spec in ("examples", "instruction", "both"):
        vector = task_vector(still, TASK, spec=spec, layer=1)
        close(vector.vector, task_vector(still, TASK, spec="bare", layer=1).vector)
        hits, likely = answered(still, TASK.prompts(), [vector.change()])
        assert likely[1] == pytest.approx(likely[0], abs=1e-6)
        assert (hits[1] == hits[0]).all()


def test_the_layer_is_that_with_the_most_right_answers(model):
    every = [task_vector(model, TASK, layer=layer) for layer in range(3)]
    hits, likely = answered(model, TASK.prompts(), [one.change() for one in every])
    best = max(range(3), key=lambda i: (hits[1 + i].mean(), likely[1 + i].mean()))
    assert task_vector(model, TASK).layer == best


def test_permuted_answers_are_read_from_the_corrupted_prompts(model):
    turned = task_vector(model, TASK, layer=2, shuffled=True)
    texts = [pair.corrupted for pair in TASK.prompts("examples").pairs]
    means = torch.stack([slow_state(model, text, 2) for text in texts]).mean(0)
    close(turned.vector, means)
    assert turned.name == "tiny, examples, permuted answers"
    assert [pair.clean for pair in permuted(TASK.prompts("examples")).pairs] == texts


@pytest.mark.parametrize(
    "wrong",
    [
        {"spec": "told"},
        {"spec": "instruction", "shuffled": True},
        {"layer": 3},
        {"layer": -1},
        {"layer": 1.5},
        {"examples": 12},
        {"seed": -1},
    ],
)
def test_what_cannot_be_made_is_refused(model, wrong):
    with pytest.raises(InterpError):
        task_vector(model, TASK, **wrong)


def test_answers_of_several_tokens_and_changed_models_are_refused(model):
    long = WordTask(
        name="long", instruction="waa.", pairs=((WORDS[0], "waa wab"), (WORDS[1], "wac"))
    )
    with pytest.raises(InterpError):
        answered(model, long.prompts(), [])
    vector = task_vector(model, TASK, layer=1)
    with intervene(model, vector.change()), pytest.raises(InterpError, match="inside intervene"):
        task_vector(model, TASK, layer=1)
