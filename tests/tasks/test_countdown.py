import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.core.errors import InterpError
from interp.tasks.arithmetic import evaluate, numbers_in, read_attempts, score_answer
from interp.tasks.countdown import (
    TEMPLATES,
    Problem,
    cut_attempts,
    make_countdown,
    write_attempt,
    write_drill,
    write_trace,
)

NUMBER = st.integers(1, 99)
SUM = st.recursive(
    NUMBER.map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: f"({t[0]} {t[1]} {t[2]})"
    ),
    max_leaves=6,
)


def test_a_number_of_many_digits_is_a_wrong_answer_and_no_traceback():
    """Python converts no more than 4,300 digits."""
    long = "9" * 5000
    assert score_answer(f"<answer>{long} + 1</answer>", [1, 2], 3) == 0.1
    assert read_attempts(f"- 1 + 2 = {long} (not 3)") == []
    with pytest.raises(InterpError, match="5000 digits"):
        numbers_in(long)


@given(SUM)
def test_sums_are_python_s(expression):
    assert evaluate(expression) == eval(expression)  # noqa: S307 - numbers and operators only


def test_division_is_exact_and_signs_bind():
    assert evaluate("1 / 3 + 1 ÷ 6") == Fraction(1, 2)
    assert evaluate("-3 - -4 × 2") == 5
    assert evaluate("8 / (3 - 1) / 2") == 2


@pytest.mark.parametrize("bad", ["", "2 ** 3", "7 // 2", "1 / (2 - 2)", "(1 + 2", "a + 1", "1 2"])
def test_what_is_no_sum_is_refused(bad):
    with pytest.raises(InterpError, match="sum"):
        evaluate(bad)


def test_the_reward_is_the_paper_s():
    numbers, target = (84, 60, 47), 71
    assert score_answer("no answer", numbers, target) == 0
    assert score_answer("<answer> 84 - 60 + 47", numbers, target) == 0
    assert score_answer("<answer> 84 - 60 + 47 </answer>", numbers, target) == 1
    assert score_answer("<answer> (84 - 60) + 47 </answer>", numbers, target) == 1
    # The last complete answer counts, on whatever line.
    assert score_answer("<answer> 84 - 60 + 47 </answer>\nSo be it.", numbers, target) == 1
    assert (
        score_answer("<answer> 1 </answer>\n<answer> 84 - 60 + 47 </answer>", numbers, target) == 1
    )
    assert score_answer("<answer> 84 + 60 - 47 </answer>", numbers, target) == 0.1
    assert score_answer("<answer> 84 - 13 </answer>", numbers, target) == 0.1
    assert score_answer("<answer> 84 - 60 + 47 + 47 - 47 </answer>", numbers, target) == 0.1
    assert score_answer("<answer> 84 ** 60 // 47 </answer>", numbers, target) == 0.1


@pytest.mark.long
def test_problems_are_solvable_distinct_and_split_by_numbers():
    train, test = (make_countdown(300, seed=1, split=s) for s in ("train", "test"))
    assert len({(p.numbers, p.target) for p in test}) == 300
    assert {len(p.numbers) for p in test} == {3, 4}
    seen = {tuple(sorted(p.numbers)) for p in train}
    assert not any(tuple(sorted(p.numbers)) in seen for p in test)
    assert make_countdown(300, seed=1, split="test") == test
    rng = random.Random(0)
    for problem in test[:50]:
        assert 10 <= problem.target <= 99
        text = write_trace(problem, rng, failures=0)
        assert score_answer(text, problem.numbers, problem.target) == 1


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize("solved", [True, False])
def test_traces_are_honest(solved, in_turn):
    rng, options = random.Random(3), {"solved": solved, "in_turn": in_turn}
    for problem in make_countdown(60, seed=2):
        text = problem.prompt() + write_trace(problem, rng, failures=3, **options)
        attempts = read_attempts(text)
        assert len(attempts) == 3 + solved
        assert len({a.expression for a in attempts}) == len(attempts)
        for attempt in attempts:
            assert attempt.value == attempt.written
            assert all(evaluate(step) == attempt.written for step in attempt.steps)
            assert attempt.works == (attempt.written == problem.target)
            assert attempt.named in (None, problem.target)
            assert text[attempt.start : attempt.start + 2] == " ("
        assert [a.works for a in attempts] == [False] * 3 + [True] * solved
        assert ("<answer>" in text) == solved


def test_sums_in_turn_go_round_in_one_circle():
    """Whatever the target, the same sums follow each other; a trace ends with the right one."""
    rng, circle = random.Random(0), ["+++", "++-", "+-+", "+--", "-++", "-+-", "--+"]
    problems = make_countdown(60, seed=2, operands=(3,))
    for problem in problems:
        a, b, c = problem.numbers
        if len({a, b, c}) < 3:
            continue
        text = problem.prompt() + write_trace(problem, rng, failures=6, in_turn=True)
        tried = [attempt.expression for attempt in read_attempts(text)]
        signs = []
        for expression in tried:
            terms = ("+ " + expression).split()
            found = dict(zip(map(int, terms[1::2]), terms[::2], strict=True))
            signs.append("".join(found[number] for number in (a, b, c)))
            first, *rest = terms[1::2]
            assert rest == [str(n) for n in (a, b, c) if str(n) != first]
        start = circle.index(signs[0])
        assert signs == circle[start:] + circle[:start]


def test_drills_are_honest_and_a_third_is_right():
    rng, works = random.Random(0), []
    for target in range(10, 100):
        for attempt in read_attempts("- " + write_drill(target, rng, attempts=8).strip()):
            assert attempt.value == attempt.written
            assert attempt.works == (attempt.written == target)
            works.append(attempt.works)
    assert len(works) == 8 * 90
    assert 0.25 < sum(works) / len(works) < 0.45


def test_an_attempt_is_worked_out_from_left_to_right():
    assert write_attempt("84 - 60 + 47", 71) == "84 - 60 + 47 = 24 + 47 = 71 (this works)"
    assert write_attempt("84 - 60 - 47", 71) == "84 - 60 - 47 = 24 - 47 = -23 (not 71)"
    assert write_attempt("5 + 6", 12, chained=False) == "5 + 6 = 11 (not 12)"


def test_unreadable_attempts_are_left_out():
    text = "- 1 + 1 = 2 (this works)\n- 1 + = (not 2)\n- 4 - 1 = x (not 2)\n-3 = 3 (not 2)"
    assert [a.expression for a in read_attempts(text)] == ["1 + 1"]
    assert read_attempts("- (84 - 60) + 47 = 71 (this works)")[0].value == 71


def test_bad_input():
    problem = Problem(numbers=(1, 2), target=50)
    with pytest.raises(InterpError, match="none with"):
        write_trace(problem, random.Random(0), failures=1)
    with pytest.raises(InterpError, match="template"):
        problem.prompt("long")
    with pytest.raises(InterpError, match="not 2 to 6"):
        make_countdown(3, operands=(1,))
    with pytest.raises(InterpError, match="split"):
        make_countdown(3, split="valid")
    with pytest.raises(InterpError, match="targets"):
        make_countdown(3, targets=(50, 40))
    with pytest.raises(InterpError, match="{numbers} or {target} is missing"):
        problem.prompt("Reach {target}.\n")
    assert set(TEMPLATES) == {"short", "paper", "in-context"}
    assert "[1, 2]" in problem.prompt("paper")


def test_worked_examples_are_honest_and_share_no_number_with_a_problem():
    prompt = TEMPLATES["in-context"]
    assert prompt.endswith(TEMPLATES["short"])
    examples = prompt.removesuffix(TEMPLATES["short"]).split("\n\n")[:-1]
    assert len(examples) == 2
    for text in examples:
        *numbers, target = map(int, re.findall(r"\d+", text.split("\n")[0]))
        attempts = read_attempts(text)
        assert [a.works for a in attempts] == [False] * (len(attempts) - 1) + [True]
        for attempt in attempts:
            assert attempt.value == attempt.written
            assert all(evaluate(step) == attempt.written for step in attempt.steps)
            assert attempt.named in (None, target)
            assert attempt.works == (attempt.written == target)
        assert score_answer(text, numbers, target) == 1
        assert min(map(int, re.findall(r"\d+", text))) > 99


def test_a_template_of_one_s_own():
    problem = Problem(numbers=(1, 2), target=50)
    assert problem.prompt('<u>{"a": {numbers}} -> {target}\n-') == '<u>{"a": 1, 2} -> 50\n-'


def test_cut_attempts_end_before_the_verdict_and_say_which_is_right():
    texts, reached = cut_attempts(20)
    assert texts == cut_attempts(20)[0] != cut_attempts(20, seed=1)[0]
    assert reached == [True] * 10 + [False] * 10
    for text, right in zip(texts, reached, strict=True):
        assert text.endswith(" (")
        (attempt,) = read_attempts(text.rpartition("\n")[2] + "this works)")
        assert (f"equals {attempt.written}." in text) == right
        assert evaluate(attempt.expression) == attempt.written
