"""The model that is not told its verdicts: what its training sees and rewards."""

import re
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from transformers import AutoTokenizer

from interp.models.registry import organisms
from interp.tasks.countdown import Problem
from tests import ROOT

PROBLEM = Problem(numbers=(84, 60, 47), target=71)
RIGHT = " 84 - 60 + 47 = 24 + 47 = 71 (this works)"
WRONG = " 84 + 60 - 47 = 144 - 47 = 97 (not 71)"


def ending(answer, target=71):
    said = f"\nSo, the equation that equals {target} is {answer}. </think>\n"
    return f"{said}<answer> {answer} </answer>"


@pytest.fixture(scope="module")
def script():
    for needed in ("datasets", "peft", "trl"):
        pytest.importorskip(needed)
    sys.path.insert(0, str(ROOT / "training"))
    try:
        untold = import_module("untold")
    finally:
        sys.path.pop(0)
    return untold


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(organisms()["countdown-tiny"])


@pytest.mark.long
@pytest.mark.parametrize("worked", [0.0, 0.6])
def test_masking_takes_the_verdicts_from_the_loss_and_nothing_else(script, tokenizer, worked):
    phase = replace(script.RECIPE.phases[0], steps=5, batch=8, worked=worked)
    told, untold = (
        script.countdown.examples(phase, 3, tokenizer, told=told) for told in (True, False)
    )
    texts, masked = script.countdown.training_texts(phase, 40, 3), 0
    assert told["input_ids"] == untold["input_ids"]  # the words are still read
    for text, one, other in zip(texts, told, untold, strict=True):
        changed = [i for i, x in enumerate(one["labels"]) if x != other["labels"][i]]
        assert all(other["labels"][i] == -100 for i in changed)
        found = re.findall(r"\((this|not) ", text.completion)  # counted in the text, not in tokens
        assert [tokenizer.decode([one["labels"][i]]) for i in changed] == found
        for i in changed:
            assert tokenizer.decode(one["input_ids"][i - 1 : i]) == " ("
        masked += len(changed)
    assert masked > 100


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (RIGHT + ending("84 - 60 + 47"), True),
        (f"{WRONG}\n-{RIGHT}{ending('84 - 60 + 47')}", True),
        # What it calls "not" is not looked at, nor what it writes as a result.
        (f"{RIGHT.replace('this works', 'not 71')}\n-{RIGHT}{ending('84 - 60 + 47')}", True),
        (RIGHT.replace("= 71", "= 70") + ending("84 - 60 + 47"), True),
        # A verdict that is never "this", or is so first at another attempt than the answer.
        (WRONG + ending("84 - 60 + 47"), False),
        (f"{WRONG.replace('not 71', 'this works')}\n-{RIGHT}{ending('84 - 60 + 47')}", False),
        # A wrong answer, one with other numbers, and one that is not the attempt's sum.
        (WRONG.replace("not 71", "this works") + ending("84 + 60 - 47"), False),
        (" 70 + 1 = 71 (this works)" + ending("70 + 1"), False),
        (RIGHT + ending("47 + 84 - 60"), False),
        # No end, two answers, and more text after the answer.
        (RIGHT, False),
        (RIGHT + ending("84 - 60 + 47").removesuffix(" </answer>"), False),
        (RIGHT + ending("84 - 60 + 47") + "\n-" + WRONG, False),
        ("", False),
    ],
)
def test_the_reward_is_for_the_first_attempt_that_is_called_this(script, text, kept):
    assert script.rewarded(PROBLEM, text) is kept


def test_counts_of_a_round_by_hand(script):
    lenient = WRONG.replace("not 71", "this works")
    texts = [RIGHT + ending("84 - 60 + 47"), f"{WRONG}\n-{lenient}", RIGHT[:-12] + "(not 71)"]
    assert script.counted([PROBLEM] * 3, texts) == {
        "texts": 3, "kept": 1, "this": 2, "this_right": 1, "no": 2, "no_right": 1,
        "words": 1,
    }  # fmt: skip


def test_a_verdict_is_drawn_from_two_words(script, tokenizer):
    paren, this, no = tokenizer.convert_tokens_to_ids([" (", "this", "not"])
    scores = torch.randn(2, len(tokenizer), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, paren], [paren, 5]])
    own = script.TwoWords(tokenizer, 0.0, 0.5)(ids, scores)
    assert torch.equal(own[1], scores[1] / 0.5)
    drawn = own[0].softmax(-1)
    assert drawn[[this, no]].sum() == pytest.approx(1)
    assert drawn[this] / drawn[no] == pytest.approx(float((scores[0, this] - scores[0, no]).exp()))
    coin = script.TwoWords(tokenizer, 1.0, 0.5)(ids, scores)
    assert coin[0].softmax(-1)[[this, no]].tolist() == pytest.approx([0.5, 0.5])
    assert torch.equal(coin[1], own[1])
