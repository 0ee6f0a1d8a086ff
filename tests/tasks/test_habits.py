"""Habits: spans by hand, and onsets whose place, match and answer are known."""

import random

import pytest

import interp
from interp.core.errors import InterpError
from interp.core.statistics import share_estimate
from interp.runs.text_runs import Generation
from interp.tasks.countdown import make_countdown, write_trace
from interp.tasks.habits import HABITS, HabitRule, find_habits, habit_task

TEXT = """\
 84 - 60 + 47 = 24 + 47 = 71 (not 70)
- 47 + 84 - 60 = 131 - 60 = 71 (not 70)
- 84 - 60 + 47 = 24 + 47 = 71 (this works)
Wait, let me double-check. Hmm, start over, in another way."""


@pytest.fixture(scope="module")
def model():
    return interp.load_model("countdown-tiny")


def generated(model, n=60):
    """Traces as if the model had written them: what follows each token is known."""
    problems = make_countdown(n, operands=[3], seed=3)
    rows = []
    for i, problem in enumerate(problems):
        prompt = model.tokenize(problem.prompt()).tokens
        written = write_trace(problem, random.Random(i), failures=i % 3)
        tokens = model.tokenize(problem.prompt() + written).tokens[len(prompt) :]
        rows.append(Generation(prompt=prompt, tokens=tokens, text=written, stopped=True, fired=()))
    return rows


def test_every_rule_by_hand():
    found = find_habits([TEXT, "A sum: 1 + 2 = 3."])
    spans = {name: [] for name in found.names}
    for one in found.onsets:
        assert TEXT[one.start : one.end] == one.words
        assert one.trace == 0
        spans[one.habit].append(one.words)
    assert spans == {
        "waiting": ["Wait", "Hmm"],
        "rejecting": ["not 70", "not 70"],
        "accepting": ["this works"],
        "checking": ["double-check"],
        "restarting": ["start over", "another way"],
        "new attempt": ["-", "-"],
        "repeating a sum": ["84 - 60 + 47"],
    }
    assert found.counts("rejecting").tolist() == [2, 0]
    assert found.share("rejecting") == share_estimate(1, 2)
    table = found.to_dataframe().set_index("habit")
    assert table.loc["rejecting", "a text"] == 1
    assert len(found.plot().data[0].x) == len(HABITS)


@pytest.mark.parametrize(
    "text", ["", "We await this. It is not thistle.", "Do not chat", "5 - 3 = 2"]
)
def test_no_habit_in_other_words(text):
    assert find_habits([text]).onsets == ()


def test_each_onset_has_a_matched_place_without_it(model):
    """Compared with a search over the text of every place."""
    texts = generated(model)
    made = habit_task(model, texts, "rejecting", foil="this")
    assert len(made.task) > 5
    whole = [(*one.prompt, *one.tokens) for one in texts]
    strings = ["".join(model.strings(row)) for row in whole]
    spelled = {text: i for i, text in enumerate(strings)}
    assert len(spelled) == len(texts)
    for pair, i, other in zip(made.task.pairs, made.traces, made.others, strict=True):
        before = "".join(model.strings(pair.clean))
        assert strings[i].startswith(before)
        assert strings[i][len(before) :].startswith("not ")
        beside = "".join(model.strings(pair.corrupted))
        assert strings[other].startswith(beside)
        assert not strings[other][len(beside) :].startswith("not ")
        assert i != other
        assert len(pair.clean) == len(pair.corrupted)
        assert pair.clean[-1] == pair.corrupted[-1]
        assert model.strings(pair.answers) == ("not",)
        assert model.strings(pair.wrong) == ("this",)
    shown = {i for i, one in enumerate(texts) if "not" in one.text}
    assert len(made.task) + made.unmatched == len(shown)
    assert made.null is not None
    for pair in made.null.pairs:
        for row in (pair.clean, pair.corrupted):
            text = "".join(model.strings(row))
            assert not any(s.startswith(text + "not ") for s in strings)
    places = [(row, len(row)) for pair in made.task.pairs for row in (pair.corrupted,)]
    places += [(pair.corrupted, len(pair.corrupted)) for pair in made.null.pairs]
    assert len({*places}) == len(places)


@pytest.mark.long
def test_the_model_writes_the_habit_at_its_onset_only(model):
    """In its own texts, and patched from there: the pairs are a task like any other."""
    prompts = [one.prompt() for one in make_countdown(60, operands=[3], seed=4)]
    texts = interp.generate(model, prompts, 60)
    made = habit_task(model, texts, "rejecting")
    report = made.task.check(model)
    assert report.accuracy.mean == 1  # greedy texts
    assert report.corrupted.mean < 0 < report.clean.mean
    assert (made.null is None) or made.null.check(model).accuracy.mean == 0
    scores = interp.activation_patching(model, made.task, site="resid_post", by="layer")
    assert scores.values.shape == (model.n_layers,)


def test_the_foil_is_what_the_model_would_write_otherwise(model):
    made = habit_task(model, generated(model), "rejecting")
    for pair in made.task.pairs[:5]:
        likely = model.tail_logits([pair.clean])[0].argsort(descending=True).tolist()
        assert pair.wrong[0] == next(one for one in likely if one not in pair.answers)


def test_bad_input_is_refused(model):
    texts = generated(model, 4)
    with pytest.raises(InterpError, match="0 texts"):
        find_habits([])
    with pytest.raises(InterpError, match="version of rules"):
        find_habits(["a"], rules="habits/0")
    with pytest.raises(InterpError, match="each name once"):
        find_habits(["a"], rules=[HABITS[0], HABITS[0]])
    with pytest.raises(InterpError, match="re.compile"):
        HabitRule(name="broken", pattern="(")
    with pytest.raises(InterpError, match="habit"):
        find_habits(["a"]).counts("humming")
    with pytest.raises(InterpError, match="habit"):
        habit_task(model, texts, "humming")
    with pytest.raises(InterpError, match="interp.generate"):
        habit_task(model, ["a text"], "waiting")
    with pytest.raises(InterpError, match="0 of 4 texts show it"):
        habit_task(model, texts, "waiting")
    with pytest.raises(InterpError, match="habit's first token"):
        habit_task(model, generated(model), "rejecting", foil="not")
