"""Corruptions: what changes, where, and that both prompts have as many tokens."""

import pytest

from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.tasks.corruptions import corrupt
from interp.tasks.language import word_lists


def by_hand(model, made):
    """The positions that differ, by a loop over tokens."""
    one, other = (model.tokenize(text).tokens for text in (made.clean, made.corrupted))
    assert len(one) == len(other)
    return tuple(i for i in range(len(one)) if one[i] != other[i])


@pytest.mark.parametrize(
    ("prompt", "kind", "given", "corrupted"),
    [
        (
            "The capital of France is", "entity", {"target": "France", "words": "Italy"},
            "The capital of Italy is",
        ),
        (
            "Then Mary and John left. John thanked", "role", {"target": "Mary", "words": "John"},
            "Then John and Mary left. Mary thanked",
        ),
        ("The box is not red, it", "negation", {}, None),
        ("The box is red, it", "negation", {}, "The box is not red, it"),
        ("From 1749 to 17", "number", {"target": "1749"}, None),
        ("A big dog ran", "paraphrase", {}, "A large dog ran"),
    ],
)  # fmt: skip
def test_only_what_was_asked_changes(smollm, prompt, kind, given, corrupted):
    made = corrupt(smollm, prompt, kind, **given)
    if corrupted is not None:
        assert made.corrupted == corrupted
    assert made.differ == by_hand(smollm, made) != ()
    if kind != "negation":
        assert made.clean == prompt
    assert f"{len(made.differ)} of {len(made.tokens)} tokens differ" in repr(made)
    task = Task(name="made", pairs=(made.pair(" one", " two"),))
    assert task.encode(smollm).positions("changed") == [made.differ[-1]]


def test_negation_puts_a_filler_where_not_is(smollm):
    made = corrupt(smollm, "The box is not red, it", "negation")
    (at,) = made.differ
    assert made.tokens[at] == " not"
    other = corrupt(smollm, "The box is red, it", "negation")
    (at,) = other.differ
    assert other.others[at] == " not"
    assert other.clean.replace(other.tokens[at], "") == "The box is red, it"


def test_numbers_keep_their_digits_and_seeds_choose(smollm):
    made = {corrupt(smollm, "She has 25 hens and", "number", seed=s).corrupted for s in range(8)}
    assert len(made) > 3
    for text in made:
        (number,) = [word for word in text.split() if word.isdigit()]
        assert len(number) == 2 and number != "25"  # noqa: PT018


def test_a_word_inside_another_is_left_alone(smollm):
    made = corrupt(smollm, "Ann likes Anna, and Ann", "entity", target="Ann", words=["Tom", "Sam"])
    assert "Anna" in made.corrupted
    assert made.corrupted.count("Ann") == 1


def test_what_cannot_be_aligned_is_refused(smollm):
    for prompt, kind, given, match in (
        ("I saw France", "entity", {"target": "France", "words": "Liechtenstein"}, "tokens"),
        ("I saw France", "entity", {"target": "Spain", "words": "Italy"}, "no 'Spain'"),
        ("I saw France", "entity", {"target": "France"}, "no words"),
        ("I saw France", "entity", {"target": "France", "words": "France"}, "no other words"),
        ("I saw France", "number", {}, "number"),
        ("I saw France", "negation", {}, "auxiliary"),
        ("I saw France", "paraphrase", {}, "synonym"),
        ("I saw France", "paraphrase", {"words": "Italy"}, "does not use"),
        ("I saw France", "role", {"target": "France", "words": "Italy"}, "changes places"),
        ("I saw France", "rhyme", {}, "rhyme"),
    ):
        with pytest.raises(InterpError, match=match):
            corrupt(smollm, prompt, kind, **given)


def test_no_synonym_is_in_two_pairs():
    words = [word for pair in word_lists()["synonyms"]["pairs"] for word in pair]
    assert len(words) == len({*words})
