"""The short tasks: their answers by the word lists, aligned prompts, and what the model does."""

import json

import pytest

from interp.core.errors import InterpError
from interp.tasks.language import ARE, IS, LANGUAGE_TASKS, word_lists
from interp.tasks.registry import TASKS, load_task
from tests import ROOT

FOUND = json.loads((ROOT / "experiments/results/language_tasks.json").read_text())["tasks"]
LISTS = word_lists()


def subject_of(text):
    return text.removeprefix("I think that the ").split()[0]


def is_right(name, clean, answer):
    """Whether the word lists say so, read from the prompt's text."""
    lists = LISTS.get(name, {})
    if name == "subject_verb_agreement":
        plural = subject_of(clean) in {two for _, two in lists["nouns"]}
        return answer in (ARE if plural else IS)
    if name == "gender_pronouns":
        return any(word in lists[answer[1:]] for word in clean.replace(",", "").split())
    if name in ("country_language", "long_capitals"):
        known = dict(lists["languages" if name == "country_language" else "capitals"])
        return any(known.get(word) == answer[1:] for word in clean.replace(",", "").split())
    if name == "hypernyms":
        word = clean.removesuffix(" is a kind of").removesuffix(" is a type of").split()[-1]
        return word in lists["kinds"][answer[1:]]
    if name == "successor":
        seen = [*clean.removeprefix("In order: ").rstrip(",").split(", "), answer[1:]]
        return any(seen == row[i : i + 4] for row in lists["rows"] for i in range(len(row)))
    if name == "copy":
        first, second = clean.removeprefix("Original: ").split("\nCopy: ")
        return first.split()[len(second.split())] == answer[1:]
    named = clean.split("run(self, ")[1].split(")")[0].split(", ")
    return named[clean.count(":param ") + clean.endswith(":param") - 1] == answer[1:]


@pytest.mark.parametrize("name", LANGUAGE_TASKS)
def test_answers_are_right_and_prompts_aligned(name, smollm):
    task = load_task(name, smollm, n=40, seed=3)
    encoded = task.encode(smollm, strings=True)
    for pair, clean, other in zip(task.pairs, encoded.clean, encoded.corrupted, strict=True):
        assert len(clean) == len(other)
        assert clean != other
        assert all(is_right(name, pair.clean, answer) for answer in pair.answers)
        assert all(is_right(name, pair.corrupted, answer) for answer in pair.wrong)
        assert not any(is_right(name, pair.clean, answer) for answer in pair.wrong)
    assert (encoded.targets.strings is not None) == (name == "long_capitals")
    for position in task.position_names:
        assert len(encoded.positions(position)) == 40
    assert task.pairs == load_task(name, smollm, n=40, seed=3).pairs
    assert task.pairs != load_task(name, smollm, n=40, seed=4).pairs
    assert len(load_task(name, n=4)) == 4


@pytest.mark.parametrize("name", LANGUAGE_TASKS)
@pytest.mark.long
def test_the_default_model_does_them_as_committed(name, smollm):
    """The first prompts of the committed result: as often right, within its interval."""
    row = FOUND[name]
    assert row["preferred"]["low"] > 0.5
    report = load_task(name, smollm, n=8, seed=11).check(smollm)
    assert report.preferred.mean >= 0.75


def test_a_toy_has_too_few_words(toy):
    for name in LANGUAGE_TASKS:
        with pytest.raises(InterpError, match="words|tokens|runs|pairs"):
            load_task(name, toy)


def test_word_lists_have_no_word_twice():
    nouns = [word for pair in LISTS["subject_verb_agreement"]["nouns"] for word in pair]
    kinds = [word for some in LISTS["hypernyms"]["kinds"].values() for word in some]
    names = LISTS["gender_pronouns"]["he"] + LISTS["gender_pronouns"]["she"]
    for words in (nouns, kinds, names, LISTS["docstring"]["arguments"]):
        assert len(words) == len({*words})
    assert set(LANGUAGE_TASKS) < set(TASKS)
