"""Word tasks: the pairs that ship, and the prompts made of them."""

from dataclasses import replace

import pytest

from interp.core.errors import InterpError
from interp.tasks.word_pairs import WordTask, word_tasks

TASK = WordTask(
    name="next", instruction="Say the next.", pairs=(("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"))
)


def test_six_tasks_of_forty_queries_ship():
    tasks = word_tasks()
    assert [task.name for task in tasks] == [
        "capital", "plural", "past_tense", "antonym", "next_number", "colour",
    ]  # fmt: skip
    assert [len(task) for task in tasks] == [40] * 6
    for task in tasks:
        assert all(query != answer for query, answer in task.pairs)
    assert dict(word_tasks("capital")[0].pairs)["Peru"] == "Lima"


@pytest.mark.slow
def test_every_answer_is_one_token_of_the_default_model(smollm):
    assert [len(task) for task in word_tasks(model=smollm)] == [40] * 6
    for task in word_tasks():
        encoded = task.prompts("examples").encode(smollm)
        assert encoded.targets.answers.shape == (40, 1)
        assert encoded.corrupted is not None  # permuted answers keep the length


def test_prompts_show_the_task_in_three_ways():
    bare, told = TASK.prompts().pairs[0], TASK.prompts("instruction").pairs[0]
    assert (bare.clean, bare.corrupted, bare.answers) == ("Q: a\nA:", None, (" b",))
    assert told.clean == "Say the next.\n\nQ: a\nA:"
    shown = TASK.prompts("examples", examples=3).pairs[1]
    assert shown.clean.endswith("\n\nQ: b\nA:")
    known = dict(TASK.pairs)
    lines = shown.clean.split("\n\n")[:-1]
    pairs = [tuple(line.removeprefix("Q: ").split("\nA: ")) for line in lines]
    assert sorted(pairs) == sorted(pair for pair in TASK.pairs if pair[0] != "b")
    turned = [tuple(x.removeprefix("Q: ").split("\nA: ")) for x in shown.corrupted.split("\n\n")]
    assert [query for query, _ in turned[:-1]] == [query for query, _ in pairs]
    assert sorted(said for _, said in turned[:-1]) == sorted(said for _, said in pairs)
    assert all(known[query] != said for query, said in turned[:-1])


def test_examples_come_from_the_other_half():
    first, second = word_tasks("antonym")[0].split(seed=3)
    assert {*first.pairs} | {*second.pairs} == {*word_tasks("antonym")[0].pairs}
    assert not {*first.pairs} & {*second.pairs}
    assert len(first) == len(second) == 20
    text = "".join(pair.clean for pair in second.prompts("examples", source=first).pairs)
    held_out = {answer for _, answer in second.pairs} - {
        word for pair in first.pairs for word in pair
    }
    assert held_out
    assert not any(f"A: {answer}\n" in text for answer in held_out)
    assert first.split(seed=3) != first.split(seed=4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: word_tasks("capitals"),
        lambda: TASK.prompts("told"),
        lambda: TASK.prompts("examples", examples=4),
        lambda: TASK.prompts("examples", examples=1),
        lambda: TASK.prompts("examples", seed=-1),
        lambda: replace(TASK, pairs=(("a", "b"), ("b", "b"), ("c", "b"))).prompts(
            "examples", examples=2
        ),
        lambda: replace(TASK, pairs=(("a", "b"), ("a", "c"))),
        lambda: replace(TASK, pairs=()),
        lambda: replace(TASK, pairs=(("a", "b"),)).split(),
    ],
)
def test_what_cannot_be_shown_is_refused(call):
    with pytest.raises(InterpError):
        call()
