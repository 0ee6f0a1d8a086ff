import json

import numpy as np
import pytest

from interp.errors import InterpError
from interp.patterns import find_positions, number_positions, require_single
from interp.studies.steps import Steps
from interp.studies.verification.outcomes import classify_outcome, outcomes


def test_patterns_are_found_in_their_own_text():
    texts = [(5, 1, 2, 9), (1, 2, 1, 2, 3), (7,)]
    found = find_positions(texts, {"a": (1, 2), "b": (1, 3)})
    assert [(m.text, m.position, m.label) for m in found] == [(0, 1, "a"), (1, 0, "a"), (1, 2, "a")]
    with pytest.raises(InterpError, match="one twice"):
        find_positions(texts, {"a": (1, 2), "b": (1, 2)})
    with pytest.raises(InterpError, match="empty"):
        find_positions(texts, {"a": ()})


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("(this works)\nSo", "fail"),
        ("(not 71)\n- 3 + 4 = 7 (this works)", "fail"),
        ("(not 71)\n- 3 + 4", "success"),
        ("(not 71) <answer> 3 </answer>", "partial"),
        ("<answer> 3 </answer>", "partial"),
        ("another thing", "ood"),
        ("(yes, exactly)", "ood"),
        ("  ", "empty"),
    ],
)
def test_our_outcomes(text, outcome):
    assert classify_outcome(text) == outcome


@pytest.mark.parametrize(
    ("rule", "text", "outcome"),
    [
        ("next_token", "(not 3)", "success"),
        ("next_token", "(this is wrong", "fail"),
        ("next_token", "( equals", "ood"),
        ("v1", "(not 3)", "success"),
        ("v1", "anything at all", "success"),
        ("v1", "<answer>", "partial"),
        ("v1", "(this works) <answer>", "fail"),
        ("final", "(not 3)\n- 4 + 5 = 9 (not 3)", "success"),
        ("final", "(not 3) So the answer is", "partial"),
        ("final", "(not 64 - this is actually 84", "success"),
        ("final", "not correct, try", "success"),
        ("final", "not right but correct", "partial"),
        ("final", "another way", "success"),
        ("final", "well done", "ood"),
        ("r1", "(not 3) + 4", "success"),
        ("r1", "not so. Wait", "partial"),
        ("r1", "not so fast", "ood"),
        ("r1", "yes, this works", "fail"),
        ("final", "", "empty"),
    ],
)
def test_published_outcomes(rule, text, outcome):
    assert classify_outcome(text, rule) == outcome


def test_shares_add_up_and_unknown_rules_are_refused():
    found = outcomes(["(not 3)", "", "(this works)", "hm"])
    assert sum(found.share(name).mean for name in found.counts) == pytest.approx(1)
    assert found.n == 4
    with pytest.raises(InterpError, match="rule"):
        classify_outcome("x", "v2")


def test_steps_are_kept_under_their_key(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"value": (1, 2)}

    for _ in range(2):
        assert Steps(directory=tmp_path, key=["a"])("one", compute) == {"value": [1, 2]}
    assert len(calls) == 1
    Steps(directory=tmp_path, key=["b"])("one", compute)
    assert len(calls) == 2
    (tmp_path / "one.json").write_text("{")
    Steps(directory=tmp_path, key=["b"])("one", compute)
    assert len(calls) == 3
    assert json.loads((tmp_path / "one.json").read_text())["result"] == {"value": [1, 2]}
    with pytest.raises(InterpError, match="plain JSON"):
        Steps(directory=tmp_path, key=["a"])("two", lambda: {"x": np.zeros(2)})


def test_numbers_by_their_last_token(smollm):
    text = "equals 71. - 171 = 71 (not 71), -71, 7.1, 71.5 and 84-71"
    tokens = smollm.token_id(text)
    found = number_positions(smollm, tokens, 71)
    strings = smollm.strings(tokens)
    ends = np.cumsum([len(piece) for piece in strings])
    assert [text[: ends[i]].rsplit(" ", 1)[-1] for i in found] == ["71", "71", "71"]
    with pytest.raises(InterpError, match="cuts it into"):
        require_single(smollm, "verification", ["verif", "ication!"])
