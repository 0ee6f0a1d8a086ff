"""Pairs in a chat template: the same tokens as single prompts have, and marks that stay."""

import pytest

import interp
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.models.chat import chat_prompts
from interp.models.loading import load_model
from interp.tasks.chat_pairs import in_chat_template

PAIR = PromptPair(
    clean="What is the capital of France, a country?",
    corrupted="What is the capital of Italy, a country?",
    answers=(504,),
    wrong=(57,),
    positions={"land": "France", "last-a": ("a", -1), "first-a": ("a", 0)},
)


@pytest.fixture(scope="module")
def task():
    return Task(name="chat", pairs=(PAIR,))


@pytest.mark.slow
def test_the_tokens_are_those_of_chat_prompts(smollm, task):
    made = in_chat_template(smollm, task)
    encoded = made.encode(smollm)
    expected = chat_prompts(smollm, [PAIR.clean, PAIR.corrupted]).rows
    assert (encoded.clean[0], encoded.corrupted[0]) == expected
    assert isinstance(made.pairs[0].clean, str)  # a text that other programs can read
    strings = encoded.prompts[0].strings
    assert strings[encoded.positions("land")[0]] == " France"
    plain = task.encode(smollm)
    (shift,) = {
        encoded.positions(name)[0] - plain.positions(name)[0]
        for name in ("land", "last-a", "first-a")
    }
    assert "a" in "".join(strings[:shift])  # the template has the part too, before the text


@pytest.mark.slow
def test_it_is_kept_and_loaded_as_it_is(smollm, task):
    made = interp.tasks.save_task(in_chat_template(smollm, task), "chat")
    again = interp.load_task(made.name)
    assert again.encode(smollm).clean == in_chat_template(smollm, task).encode(smollm).clean


def test_bad_input_is_refused(smollm, task):
    with pytest.raises(InterpError, match="is token ids"):
        in_chat_template(smollm, interp.pair((5, 6), (5, 7), 1, 2))
    marked = PromptPair(clean="Hello", corrupted="Howdy", answers=(1,), positions={"x": 0})
    with pytest.raises(InterpError, match="not a part of a text"):
        in_chat_template(smollm, Task(name="x", pairs=(marked,)))
    toy = load_model("toy-induction")
    with pytest.raises(InterpError, match="no chat template"):
        in_chat_template(toy, task)
