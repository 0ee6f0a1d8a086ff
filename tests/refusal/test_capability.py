"""Capability requests: varied, harmless, and each with a twin about the same thing."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from interp.core.errors import InterpError
from interp.refusal import judge_rules
from interp.refusal.capability import WRAPPERS, capability_cases, require_twins, shipped
from interp.refusal.judging import REFUSALS, RULES
from tests import DATA, ROOT
from tests.tasks.test_taboo import HARM

COMMON = set(
    "a about am an and any are as at be by can could did do does for from give had has have how i "
    "if in into is it many me much my of on one or our out please put should so tell than that "
    "the there these they this three to two was we what when where which who why will with would "
    "you your french other words".split()
)


@pytest.fixture(scope="module")
def cases():
    return capability_cases()


@pytest.fixture(scope="module")
def twins(cases):
    return require_twins(cases)


def words(text):
    return re.findall(r"[\w']+", text.lower())


def stems(text):
    left = set(words(text)) - COMMON
    return {re.sub(r"(?:'s|ing|ed|es|er|ies|s|e|y)$", "", word) for word in left}


def test_there_are_enough_of_every_kind_and_task(cases, twins):
    requests = [case for case in cases if case.should == "refuse"]
    assert len(requests) == len(twins) >= 500
    kinds, tasks = (Counter(getattr(x, of) for x in requests) for of in ("kind", "task"))
    assert set(kinds) == set(shipped()["pairs"])
    assert min(kinds.values()) >= 50
    assert set(tasks) == {"request", "translate", "rephrase", "summarise"}
    assert min(tasks.values()) >= 30
    # Every plain request is also a text that some task is done on, and should be.
    wrapped = [case for case in cases if case.row.endswith("wrapped")]
    assert len(wrapped) == tasks["request"]
    assert {case.should for case in wrapped} == {"answer"}
    assert Counter(case.task for case in wrapped).keys() == set(WRAPPERS)
    asked = {case.base: case.prompt for case in requests}
    assert all(asked[case.base] in case.prompt for case in wrapped)
    assert len({case.row for case in cases}) == len(cases) == 2 * len(requests) + len(wrapped)


def test_no_text_is_written_twice_or_nearly(cases):
    texts = [case.prompt for case in cases if not case.row.endswith("wrapped")]
    assert len(set(map(str.lower, texts))) == len(texts)
    sets = [set(words(text)) for text in texts]
    near = [
        (texts[i], texts[j])
        for i, j in combinations(range(len(texts)), 2)
        if len(sets[i] & sets[j]) > 0.75 * len(sets[i] | sets[j])
    ]
    assert near == []
    # No two openings of four words make up more than a few of the requests.
    requests = [case.prompt for case in cases if case.should == "refuse"]
    opened = Counter(tuple(words(text)[:4]) for text in requests)
    assert opened.most_common(1)[0][1] <= 0.02 * len(requests)


def test_a_twin_is_about_the_same_thing(twins):
    apart = [
        (a.prompt, b.prompt) for a, b in twins.values() if not stems(a.prompt) & stems(b.prompt)
    ]
    assert apart == []
    lengths = [(len(words(a.prompt)), len(words(b.prompt))) for a, b in twins.values()]
    plain = [
        pair for pair, (a, _) in zip(lengths, twins.values(), strict=True) if a.task == "request"
    ]
    assert abs(sum(a - b for a, b in plain)) < len(plain)  # within a word, on average


def test_nothing_is_harmful(cases):
    found = re.compile(rf"\b(?:{'|'.join(map(re.escape, HARM))})", re.IGNORECASE)
    assert [case.prompt for case in cases if found.search(case.prompt)] == []


def test_a_smaller_set_is_part_of_a_larger_one(cases):
    few, more = capability_cases(5), capability_cases(9)
    assert set(few) < set(more) < set(cases)
    assert Counter(x.kind for x in few if x.should == "refuse") == dict.fromkeys(
        shipped()["pairs"], 5
    )
    assert capability_cases(5, seed=1) != few
    assert capability_cases(1000) == cases
    with pytest.raises(InterpError, match="pairs of each kind"):
        capability_cases(0)


@pytest.mark.parametrize("other", [{"task": "translate"}, {"kind": "files"}, {"base": "elsewhere"}])
def test_a_twin_that_asks_for_something_else_is_refused(cases, other):
    request, twin = next((a, b) for a, b in require_twins(cases).values())
    assert require_twins([request, twin]) == {request.base: (request, twin)}
    with pytest.raises(InterpError, match="the twin of"):
        require_twins([request, replace(twin, **other)])


def test_the_judge_on_replies_of_the_default_model(cases):
    """Replies to prompts that no rule was tuned on, labelled by hand; see `judge_rules`."""
    lines = (DATA / "capability_replies.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = {case.row: case.prompt for case in cases}
    groups = {"requests": [], "others": [], "judged refusals": []}
    for x in map(json.loads, lines):
        said = RULES.verdict(prompts[x["row"]], x["reply"]) in REFUSALS
        kind = "requests" if x["row"].endswith("request") else "others"
        name = kind if x["drawn"] == "at random" else "judged refusals"
        groups[name].append((said, x["label"] == "refused"))
    right = {name: sum(a == b for a, b in found) for name, found in groups.items()}
    assert {name: len(found) for name, found in groups.items()} == {
        "requests": 80, "others": 30, "judged refusals": 24,
    }  # fmt: skip
    assert right == {"requests": 77, "others": 30, "judged refusals": 22}
    both = sum(a and b for a, b in groups["requests"])
    precision, recall = (both / sum(x[i] for x in groups["requests"]) for i in (0, 1))
    told = f"77 of 80 requests drawn at random, precision {precision:.2f}, recall {recall:.2f}"
    for path in (Path(judge_rules.__file__), ROOT / "docs" / "guides" / "refusal.md"):
        assert told in " ".join(path.read_text(encoding="utf-8").split())
