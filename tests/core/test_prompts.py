"""Tasks: what they refuse, how positions are named, files, splits, metrics."""

import json
import math
from dataclasses import replace

import pytest
import torch

from interp.core.errors import InterpError
from interp.core.metrics import METRICS, Logits, Targets, metric_named
from interp.core.positions import NAMED, TokenizedPrompt, first_difference, resolve
from interp.core.prompts import PromptPair, Task
from interp.core.statistics import mean_estimate, ratio_estimate, share_estimate
from interp.models.loading import load_model
from interp.tasks.registry import TASKS, load_task


def one(**changes):
    """A task of one pair on toy-induction's words."""
    pair = {
        "clean": "<bos> a b c a",
        "corrupted": "<bos> a d c a",
        "answers": ("b",),
        "wrong": ("d",),
    }
    return Task(name="one", pairs=(PromptPair(**{**pair, **changes}),))


@pytest.fixture(scope="module")
def toy_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("INTERP_CACHE", raising=False)
        return load_model("toy-induction", check=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupted": "<bos> a d c"}, r"clean has 5 tokens, corrupted 4:\n.*a\|b\|c\|a"),
        ({"answers": ("b c",)}, r"2 tokens in toy-induction: b\|c"),
        ({"answers": ("",)}, "0 tokens"),
        ({"wrong": ("b",)}, "no token in both lists"),
        ({"answers": ()}, "at least one answer"),
        ({"wrong": ()}, "which logit_diff needs"),
        ({"answers": (99_999,)}, "tokens 0 to"),
        ({"answers": (-1,)}, "tokens 0 to"),
    ],
)
def test_pairs_that_are_refused(toy_model, changes, message):
    with pytest.raises(InterpError, match=message):
        one(**changes).encode(toy_model)


def test_what_is_left_without_another_task():
    task = load_task("capitals", n=40)
    left, right = task.first(20), replace(task, pairs=task.pairs[20:])
    others = right.without(left)
    seen = {prompt for pair in left.pairs for prompt in (pair.clean, pair.corrupted)}
    assert 0 < len(others) < len(right)  # countries come back as corrupted prompts
    assert all(not seen & {pair.clean, pair.corrupted} for pair in others.pairs)
    dropped = [pair for pair in right.pairs if pair not in others.pairs]
    assert len(others) + len(dropped) == len(right)
    assert all(seen & {pair.clean, pair.corrupted} for pair in dropped)
    assert others.source == f"{right.source}.without({left.source})"
    with pytest.raises(InterpError, match="none of 20"):
        left.without(left)


def test_named_positions(toy_model):
    encoded = one(positions={"second_a": ("a", 1), "c": "c", "third": 2, "end": -1}).encode(
        toy_model
    )
    found = {name: encoded.positions(name) for name in ("second_a", "c", "third", "end", "last")}
    assert found == {"second_a": [4], "c": [3], "third": [2], "end": [4], "last": [4]}
    for name in ("nowhere", "last_digit"):
        with pytest.raises(InterpError, match=f"position '{name}' of pair 0"):
            encoded.positions(name)
    for mark in ("zz", ("b", -3), 5, -6):  # the tokeniser shows that it is not there
        with pytest.raises(InterpError, match=r"'z' of pair 0 of .*: <bos>\|a\|b\|c\|a"):
            one(positions={"z": mark}).encode(toy_model)
    for name in (*NAMED, "all"):
        with pytest.raises(InterpError, match=f"'{name}' is reserved; .*last, first.*all"):
            one(positions={name: 1})


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_index_outside_the_tokens_is_refused_with_its_row(toy_model, tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    rows = [("<bos> a b", 2), ("<bos> a", 2)]
    path.write_text(
        "clean,answers,indices.x\n\n" + "".join(f"{text},b,{x}\n" for text, x in rows)
        if kind == "csv"
        else "\n\n".join(f'{{"clean":"{t}","answers":"b","indices":{{"x":{x}}}}}' for t, x in rows)
    )
    task = {"csv": Task.from_csv, "jsonl": Task.from_jsonl}[kind](path)
    line = {"csv": 4, "jsonl": 3}[kind]
    with pytest.raises(InterpError, match=rf"'x' of pair 1 of t \(.*t\.{kind}, line {line}\): not"):
        task.check(toy_model)


def test_marks_count_from_both_ends(toy_model):
    words = "<bos> a b c a b"
    marks = {"last_b": ("b", -1), "first_b": ("b", -3), "inside": "o"}
    encoded = one(clean=words, corrupted="<bos> a d c a b", positions=marks).encode(toy_model)
    # "b" is found inside "<bos>" as well: substrings, not words.
    assert (encoded.positions("last_b"), encoded.positions("first_b")) == ([5], [0])
    assert encoded.positions("inside") == [0]


def test_colored_objects_marks_the_object_asked_about():
    """Also where one object's name is inside another's, as pen is in pencil."""
    for pair in load_task("colored_objects", n=300).pairs:
        text, occurrence = pair.positions["object"]
        begin = [i for i in range(len(pair.clean)) if pair.clean.startswith(text, i)][occurrence]
        assert pair.clean[begin + len(text) :] == "?\nA:"


def test_positions_of_the_verification_format():
    strings = ("<s>", "user", " 4", "7", " =", " 7", "1", " (", "<e>", "\n")
    prompt = TokenizedPrompt(
        text=None, tokens=tuple(range(10)), strings=strings, spans=None, end_of_turn="<e>"
    )
    found = {
        name: resolve(name, prompt, {}, "it")
        for name in ("last_digit", "paren", "end_of_instruction", "first", "last")
    }
    assert found == {
        "last_digit": 6, "paren": 7, "end_of_instruction": 7, "first": 0, "last": 9
    }  # fmt: skip


def test_first_difference():
    assert first_difference((1, 2, 3), (1, 5, 3)) == 1
    assert first_difference((1, 2), (1, 2)) == 2


def test_a_toy_says_how_many_pairs_it_has_and_that_they_are_fixed():
    """Neither the n nor the seed that was asked for is written down where it has no effect."""
    task, other = load_task("toy-induction", n=500), load_task("toy-induction", n=500, seed=1)
    assert len(task) == 24
    assert task.hash == other.hash
    assert task.source == other.source == "interp.load_task('toy-induction', n=24)"
    assert task.seed is other.seed is None
    assert "24 of its 24 pairs, which no seed changes" in task.description
    assert "(3 of its 24 pairs" in load_task("toy-or", n=3).description


def test_split_is_disjoint_seeded_and_named():
    task = load_task("ioi", n=20)
    left, right = task.split(0.3, seed=1)
    assert (len(left), len(right)) == (6, 14)
    assert {p.clean for p in left.pairs}.isdisjoint({p.clean for p in right.pairs})
    assert left.hash == task.split(0.3, seed=1)[0].hash != task.split(0.3, seed=2)[0].hash
    assert left.source == "interp.load_task('ioi', n=20, seed=0).split(0.3, seed=1)[0]"
    with pytest.raises(InterpError, match="one side is empty"):
        task.split(0.001)


def test_equal_prompts_stay_on_one_side_and_are_told():
    task = load_task("greater_than", n=64)
    assert task.repeated == 3
    assert "3 of 64 prompts repeat an earlier one" in task.description
    for seed in range(20):
        sides = task.split(seed=seed)
        left, right = ({pair.clean for pair in side.pairs} for side in sides)
        assert not left & right
        assert sum(map(len, sides)) == 64
        assert 29 <= len(sides[0]) <= 32
    once = load_task("capitals", n=20)
    assert once.repeated == 0
    assert "repeat" not in once.description
    with pytest.raises(InterpError, match="1 different prompts"):
        Task(name="x", pairs=once.pairs[:1] * 4).split()
    for share in (0.0, -1.0, float("nan"), True):
        with pytest.raises(InterpError, match="share of a split"):
            once.split(share)
    for n in (0, -1, 1.5):
        with pytest.raises(InterpError, match="first pairs"):
            once.first(n)


@pytest.mark.parametrize("name", ["greater_than", "ioi"])
def test_no_prompt_is_on_both_sides_of_a_split(name):
    """Clean or corrupted: 11 corrupted prompts of greater-than were on both sides."""
    task = load_task(name, n=64)
    for seed in range(4):
        sides = [
            {prompt for pair in side.pairs for prompt in (pair.clean, pair.corrupted)}
            for side in task.split(seed=seed)
        ]
        assert not sides[0] & sides[1]
    alone = [PromptPair(clean=f"{i} is", corrupted=None, answers=(" a",)) for i in range(4)]
    assert list(map(len, Task(name="unpaired", pairs=tuple(alone)).split())) == [2, 2]


@pytest.mark.parametrize("name", TASKS)
def test_generators_are_seeded(name):
    assert load_task(name, n=5).hash == load_task(name, n=5).hash
    assert load_task(name, n=5).hash != load_task(name, n=5, seed=1).hash


def test_ioi_corruptions():
    for kind, kept in (("swap", 2), ("random", 2), ("abc", 0)):
        for pair in load_task("ioi", n=12, corruption=kind).pairs:
            subject, indirect = pair.wrong[0].strip(), pair.answers[0].strip()
            assert pair.clean.count(subject) == 2
            names = sum(name in pair.corrupted for name in (subject, indirect))
            assert names == kept
            assert len(pair.clean.split()) == len(pair.corrupted.split())
    with pytest.raises(InterpError, match="did you mean 'swap'"):
        load_task("ioi", corruption="swop")
    with pytest.raises(InterpError, match="did you mean 'ioi'"):
        load_task("iol")
    with pytest.raises(InterpError, match="did you mean 'corruption'"):
        load_task("ioi", corruptoin="swap")
    with pytest.raises(InterpError, match="there are 6"):
        load_task("ioi", templates=7)
    with pytest.raises(InterpError, match="known: none"):
        load_task("toy-or", foo=1)


def test_files(tmp_path, toy_model):
    rows = [
        {
            "clean": "<bos> a b c a",
            "corrupted": "<bos> a d c a",
            "answers": "b",
            "wrong": ["d"],
            "positions": {"cue": ["a", 1]},
        }
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    task = Task.from_jsonl(path)
    assert task.encode(toy_model).positions("cue") == [4]
    assert task.name == "mine"
    table = tmp_path / "mine.csv"
    table.write_text(
        "clean,corrupted,answers,wrong,positions.c\n<bos> a b c a,<bos> a d c a,b|e,d,c\n"
    )
    task = Task.from_csv(table)
    assert task.pairs[0].answers == ("b", "e")
    assert task.encode(toy_model).positions("c") == [3]
    table.write_bytes(b'\xef\xbb\xbfclean,answers\r\n"<bos> a\nb, c",d\r\n')
    assert Task.from_csv(table).pairs[0].clean == "<bos> a\nb, c"
    table.write_text("clean,answers\na, b,c\n")
    with pytest.raises(InterpError, match="line 2.*fields, but the header has"):
        Task.from_csv(table)
    table.write_bytes("clean,answers\né,c\n".encode("latin-1"))
    with pytest.raises(InterpError, match="UTF-8"):
        Task.from_csv(table)
    with pytest.raises(InterpError, match="directory"):
        Task.from_csv(tmp_path)
    path.write_text('{"clean": "a\u2028b", "answers": "c"}\n', encoding="utf-8")
    assert Task.from_jsonl(path).pairs[0].clean == "a\u2028b"
    for text, match in (
        ("[1]", "not an object"),
        (
            '{"clean": "a", "answers": "b", "positions": [1]}',
            "positions is .*name: a substring",
        ),
    ):
        path.write_text(text)
        with pytest.raises(InterpError, match=match):
            Task.from_jsonl(path)
    path.write_text('{"clean": "a", "answers": "b", "positions": null}')
    assert Task.from_jsonl(path).pairs[0].positions == {}
    path.write_text("{")
    with pytest.raises(InterpError, match="line 1"):
        Task.from_jsonl(path)
    path.write_text('{"clean": "x"}')
    with pytest.raises(InterpError, match="no answers"):
        Task.from_jsonl(path)
    with pytest.raises(InterpError, match="no such file"):
        Task.from_csv(tmp_path / "none.csv")
    with pytest.raises(InterpError, match="no prompts"):
        Task(name="empty", pairs=())


def test_unpaired_prompts_can_be_checked_but_not_patched(toy_model):
    from interp.patching.activation import activation_patching

    task = one(corrupted=None)
    assert task.check(toy_model).corrupted is None
    with pytest.raises(InterpError, match="corrupted"):
        activation_patching(toy_model, task)


def test_check_on_a_toy(toy_model):
    report = load_task("toy-induction").check(toy_model)
    assert report.accuracy.mean == 1
    assert report.accuracy.low > 0.8
    assert report.clean.mean == pytest.approx(-report.corrupted.mean, abs=0.01)
    assert "n=24" in str(report)


LOGITS = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]))
TARGETS = Targets(
    answers=torch.tensor([[3, 2], [0, -1]]),
    wrong=torch.tensor([[0, -1], [1, 2]]),
    reference=torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("logit_diff", [(math.log(0.4) + math.log(0.3)) / 2 - math.log(0.1), 0.0]),
        ("prob_diff", [0.6, -0.25]),
        ("log_odds", [math.log(0.7 / 0.3), math.log(1 / 3)]),
        ("kl", [0.0, -(0.7 * math.log(0.7 / 0.25) + 0.3 * math.log(0.1 / 0.25))]),
    ],
)
def test_metrics_by_hand(name, expected):
    found = METRICS[name](Logits(LOGITS), TARGETS)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_a_token_given_twice_counts_once(name):
    """Nor does the padding behind a short list take token 0 out of the others."""
    again = Targets(
        answers=torch.tensor([[3, 2, 3, 2], [2, 2, -1, -1]]),
        wrong=torch.tensor([[0, 0, -1], [1, 3, 1]]),
        reference=TARGETS.reference,
    )
    once = [
        Targets(
            answers=torch.tensor([a]), wrong=torch.tensor([b]), reference=TARGETS.reference[i:][:1]
        )
        for i, (a, b) in enumerate((([3, 2], [0]), ([2], [1, 3])))
    ]
    found = METRICS[name](Logits(LOGITS), again).tolist()
    for i, targets in enumerate(once):
        alone = METRICS[name](Logits(LOGITS[i:][:1]), targets)
        assert found[i] == pytest.approx(float(alone[0]), abs=1e-6)
    assert again.select(torch.tensor([1])).answers.tolist() == [[2, -1, -1, -1]]
    with pytest.raises(InterpError, match="from one of the two lists"):
        Targets(answers=torch.tensor([[1, 2]]), wrong=torch.tensor([[2, -1]]))


def test_metric_refuses_nan_and_unknown_names():
    with pytest.raises(InterpError, match="1 of 2 values"):
        METRICS["logit_diff"](
            Logits(LOGITS.clone().index_fill(0, torch.tensor(1), math.nan)), TARGETS
        )
    with pytest.raises(InterpError, match="did you mean 'logit_diff'"):
        metric_named("logit_dif")


def test_estimates():
    share = share_estimate(95, 100)
    assert (share.low, share.high) == (
        pytest.approx(0.888, abs=1e-3),
        pytest.approx(0.978, abs=1e-3),
    )
    assert str(share) == "0.950 [0.888, 0.978], n=100"
    mean = mean_estimate(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert (mean.mean, mean.high) == (2.0, pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-3))
    assert mean_estimate(torch.tensor([1.0])).high == math.inf
    exact = ratio_estimate(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 6.0]))
    assert (exact.mean, exact.low, exact.high) == (0.5, 0.5, 0.5)
    loose = ratio_estimate(torch.tensor([0.0, 2.0]), torch.tensor([2.0, 2.0]))
    assert loose.high - loose.mean == pytest.approx(12.706 * 0.5, abs=1e-2)


def test_a_task_shows_its_first_pairs_in_a_notebook_and_no_html_of_theirs():
    pair = PromptPair(clean="<b>a</b> is", corrupted="b is", answers=(" x",), wrong=(" y",))
    task = Task(name="mine", pairs=(pair,) * 9)
    shown = task._repr_html_()
    assert "n=9" in shown
    assert shown.count("<tr") == 1 + 5
    assert "<b>" not in shown
    assert "&#x27; x&#x27;" in shown or "' x'" in shown
    alone = Task(name="mine", pairs=(PromptPair(clean="a", answers=(" x",)),))
    assert "–" in alone._repr_html_()
