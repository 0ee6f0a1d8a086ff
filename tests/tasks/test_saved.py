"""A task of one's own is saved, and loaded by name with the same result everywhere."""

import os
from dataclasses import replace

import pytest

import interp
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.tasks import saved

PAIRS = (
    PromptPair(clean="a «b»\u2028c a", corrupted="a «d»\u2028c a", answers="x", wrong=("y", "z"),
               positions={"word": ("a", 1), "part": "b", "end": -1}),
    PromptPair(clean="b a", corrupted="c a", answers=("x", "w"), wrong="y"),
)  # fmt: skip
TASK = Task(name="mine", pairs=PAIRS)


def test_a_saved_task_loads_by_its_name_with_the_same_pairs() -> None:
    kept = interp.tasks.save_task(TASK, "two-pairs")
    assert kept.pairs == PAIRS
    assert kept.name.startswith("two-pairs-")
    loaded = interp.load_task(kept.name)
    assert (loaded.pairs, loaded.name, loaded.hash) == (PAIRS, kept.name, kept.hash)
    assert Task.from_jsonl(saved.saved_path(kept.name)).hash == kept.hash
    first = interp.load_task(kept.name, n=1, seed=3)
    assert first.pairs == PAIRS[:1]
    assert eval(first.source, {"interp": interp}).hash == first.hash


def test_ids_are_kept_as_ids_and_a_metric_is_chosen_as_for_files() -> None:
    ids = PromptPair(clean=(1, 2), corrupted=(1, 3), answers=(4,))
    kept = interp.tasks.save_task(Task(name="ids", pairs=(ids,), metric="log_odds"))
    assert kept.pairs == (ids,)
    assert kept.metric.name == "log_odds"


def test_a_model_in_which_an_answer_is_several_tokens_gives_a_metric_of_whole_answers(smollm):
    long = PromptPair(clean="The capital of India is", answers=" New Delhi", wrong=" Rome")
    kept = interp.tasks.save_task(Task(name="mine", pairs=(long,)))
    assert kept.metric.name == "logit_diff"
    task = interp.load_task(kept.name, smollm)
    assert task.metric.name == "log_prob_diff"
    assert eval(task.source, {"interp": interp, "model": smollm}).hash == task.hash
    alone = Task(name="mine", pairs=(replace(long, wrong=()),), metric="log_odds")
    assert interp.load_task(interp.tasks.save_task(alone).name, smollm).metric.name == "log_prob"
    short = Task(name="mine", pairs=(replace(long, answers=" Paris"),))
    assert interp.load_task(interp.tasks.save_task(short).name, smollm).metric.name == "logit_diff"


def test_other_pairs_have_another_name() -> None:
    names = {interp.tasks.save_task(task).name for task in (TASK, TASK.first(1))}
    assert len(names) == 2
    assert interp.tasks.save_task(TASK).name in names


@pytest.mark.parametrize("name", ["", "../x", "Über", "a b", "a" * 41, "-a"])
def test_a_name_that_is_no_file_or_link_is_refused(name) -> None:
    with pytest.raises(InterpError, match="not a name"):
        interp.tasks.save_task(TASK, name)


def test_too_much_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(saved, "MOST_PAIRS", 1)
    with pytest.raises(InterpError, match="2 pairs"):
        interp.tasks.save_task(TASK)
    mixed = PromptPair(clean="a", answers=("x", 3))
    with pytest.raises(InterpError, match="texts and token ids"):
        interp.tasks.save_task(Task(name="mixed", pairs=(mixed,)))


def test_a_missing_or_changed_file_is_said() -> None:
    kept = interp.tasks.save_task(TASK)
    with pytest.raises(InterpError, match="not saved in this cache"):
        interp.load_task("own-" + "0" * 16)
    with pytest.raises(InterpError, match="option"):
        interp.load_task(kept.name, corruption="abc")
    path = saved.saved_path(kept.name)
    path.write_text(path.read_text().replace("x", "q"))
    with pytest.raises(InterpError, match="changed"):
        interp.load_task(kept.name)


def test_the_tasks_not_loaded_for_the_longest_time_are_removed(monkeypatch) -> None:
    monkeypatch.setattr(saved, "MOST_KEPT", 2)
    names = []
    for name in ("a", "b"):
        names.append(interp.tasks.save_task(TASK, name).name)
        os.utime(saved.saved_path(names[-1]), (len(names), len(names)))
    interp.load_task(names[0])
    names.append(interp.tasks.save_task(TASK, "c").name)
    assert [saved.saved_path(name).is_file() for name in names] == [True, False, True]
