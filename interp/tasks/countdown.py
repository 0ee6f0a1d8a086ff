"""CountDown: combine 3 or 4 numbers into a target, and judge after each attempt if it works.

The task, its prompt and the form of its chain of thought are those of Lee et al. 2025, "The
Geometry of Self-Verification in a Task-Specific Reasoning Model" (arXiv 2504.14379), which follows
TinyZero (Jiayi-Pan/TinyZero).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from interp.core.errors import InterpError, unknown
from interp.tasks.arithmetic import evaluate, numbers_in

SUCCESS, FAILURE = " (this works)", " (not {target})"
SHORT = """\
Using the numbers {numbers}, create an equation that equals {target}.
<think> Let's try different combinations:
-"""
PAPER = """\
A conversation between User and Assistant. The user asks a question, and the Assistant solves it. \
The assistant first thinks about the reasoning process in the mind and then provides the user with \
the answer.
User: Using the numbers {numbers}, create an equation that equals {target}. You can use basic \
arithmetic operations (+, -, *, /) and each number can only be used once. Show your work in \
<think> </think> tags. And return the final answer in <answer> </answer> tags, for example \
<answer> (1 + 2) / 3 </answer>.
Assistant: Let me solve this step by step.
<think>"""
EXAMPLES = """\
Using the numbers 350, 120, 105, create an equation that equals 335.
<think> Let's try different combinations:
- 350 + 120 - 105 = 470 - 105 = 365 (not 335)
- 350 - 120 + 105 = 230 + 105 = 335 (this works)
So, the equation that equals 335 is 350 - 120 + 105. </think>
<answer> 350 - 120 + 105 </answer>

Using the numbers 140, 115, 330, 250, create an equation that equals 175.
<think> Let's try different combinations:
- 140 + 115 + 330 - 250 = 255 + 330 - 250 = 585 - 250 = 335 (not 175)
- 330 - 140 + 250 - 115 = 190 + 250 - 115 = 440 - 115 = 325 (not 175)
- 140 + 250 + 115 - 330 = 390 + 115 - 330 = 505 - 330 = 175 (this works)
So, the equation that equals 175 is 140 + 250 + 115 - 330. </think>
<answer> 140 + 250 + 115 - 330 </answer>

"""
TEMPLATES = {"short": SHORT, "paper": PAPER, "in-context": EXAMPLES + SHORT}
"""`paper` is the prompt of the released checkpoint. `short` is that of the models trained here; it
starts the list of attempts, so that all texts have the same form. `in-context` adds two examples
for models that were not trained on the task, with numbers that no problem uses."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The numbers, each to be used once, and the target to reach."""

    numbers: tuple[int, ...]
    target: int

    def prompt(self, template: str = "short") -> str:
        """The prompt, up to the point at which the model continues.

        Args:
            template: a name in `TEMPLATES`, or a text with {numbers} and {target}.

        Raises:
            InterpError: there is no such template, or the text lacks {numbers} or {target}.
        """
        text = TEMPLATES.get(template, template)
        if "{numbers}" not in text or "{target}" not in text:
            if "\n" not in template and "{" not in template:
                raise unknown("template", template, TEMPLATES)
            raise InterpError(
                f"the template {template[:60]!r}",
                "{numbers} or {target} is missing",
                "write a prompt with both, up to the point at which the model continues",
            )
        numbers = ", ".join(map(str, self.numbers))
        shown = f"[{numbers}]" if template == "paper" else numbers
        return text.replace("{numbers}", shown).replace("{target}", str(self.target))

    @property
    def held_out(self) -> bool:
        """Whether the problem is in the held-out fifth, on which no model here is trained.

        This is decided by a hash of the sorted numbers, so that a held-out set of numbers is never
        seen in training, in any order or with any target.
        """
        key = ",".join(map(str, sorted(self.numbers)))
        return hashlib.sha256(key.encode()).digest()[0] % 5 == 0


def make_countdown(
    n: int,
    *,
    operands: Sequence[int] = (3, 4),
    seed: int = 0,
    split: Literal["train", "test"] = "test",
    targets: tuple[int, int] = (10, 99),
) -> list[Problem]:
    """Different solvable problems over the numbers 1 to 99 with + and -.

    Args:
        n: number of problems.
        operands: the possible counts of numbers in a problem, which are equally likely.
        seed: seed of the draw.
        split: "test" for held-out problems (`Problem.held_out`), "train" for the others.
        targets: smallest and largest target.

    Raises:
        InterpError: a count of numbers is not from 2 to 6, the split is unknown, or the targets are
            out of range or allow too few problems.
    """
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    if not operands or not all(2 <= count <= 6 for count in operands):
        raise InterpError(
            f"problems of {list(operands)} numbers", "not 2 to 6", "give counts from 2 to 6"
        )
    if not 0 < targets[0] <= targets[1] <= 300:
        raise InterpError(f"targets {targets}", "not within 1 to 300", "give (smallest, largest)")
    rng, found, tries = random.Random(f"{seed} {split}"), {}, 0
    while len(found) < n:
        if (tries := tries + 1) > 1000 * (n + 10):
            raise InterpError(f"{n} different problems", f"found {len(found)}", "widen the targets")
        numbers = tuple(rng.randint(1, 99) for _ in range(rng.choice(list(operands))))
        reach = [v for v in map(evaluate, _sums(numbers, rng)) if targets[0] <= v <= targets[1]]
        if not reach:
            continue
        problem = Problem(numbers=numbers, target=int(rng.choice(reach)))
        if problem.held_out == (split == "test"):
            found.setdefault((numbers, problem.target), problem)
    return list(found.values())


def write_attempt(expression: str, target: int, *, chained: bool = True) -> str:
    """One correct attempt: the sum computed from left to right, and the right verdict.

    `84 - 60 + 47` for 71 gives `84 - 60 + 47 = 24 + 47 = 71 (this works)`.
    """
    first, *terms = expression.replace(" + ", " +").replace(" - ", " -").split(" ")
    total, written = int(first), [expression]
    for done, term in enumerate(terms, 1):
        total += int(term)
        rest = [f"{following[0]} {following[1:]}" for following in terms[done:]]
        if chained or not rest:
            written.append(" ".join([str(total), *rest]))
    verdict = SUCCESS if total == target else FAILURE.format(target=target)
    return " = ".join(written) + verdict


def write_trace(
    problem: Problem,
    rng: random.Random,
    *,
    failures: int,
    solved: bool = True,
    in_turn: bool = False,
) -> str:
    """The text that follows a problem's prompt: failed attempts, the solution and the answer.

    Failed attempts are drawn without repetition from all ways to put + and - before the numbers, in
    random order of the numbers. With `in_turn`, the numbers keep their order, except that the first
    positive one comes first, and the attempts are the ways just before the solution in a fixed
    cyclic order. With `solved=False` the text stops after the last failed attempt, so that a model
    cannot learn that the last attempt is always right.

    Raises:
        InterpError: no sum of the numbers with + and - gives the target.
    """
    sums = _sums(problem.numbers, None if in_turn else rng)
    right = [text for text in sums if evaluate(text) == problem.target]
    if solved and not right:
        raise InterpError(f"a solution of {problem}", "none with + and -", "change the target")
    start = sums.index(right[0]) if right and in_turn else 0
    wrong = [x for x in (*sums[start:], *sums[:start]) if evaluate(x) != problem.target]
    failures = min(failures, len(wrong))
    chosen = wrong[len(wrong) - failures :] if in_turn else rng.sample(wrong, failures)
    end = ""
    if solved:
        answer = right[0] if in_turn else rng.choice(right)
        chosen.append(answer)
        end = (
            f"\nSo, the equation that equals {problem.target} is {answer}. </think>\n"
            f"<answer> {answer} </answer>"
        )
    return "\n-".join(f" {write_attempt(text, problem.target)}" for text in chosen) + end


def write_drill(target: int, rng: random.Random, *, attempts: int, near: float = 0.0) -> str:
    """Attempts with two to four random numbers, a third of which reach the target.

    They give practice in adding, subtracting and comparing, and belong to no problem. In a share
    `near` of the failed ones, one digit of the result differs from the target's, so that no single
    digit gives the verdict away.
    """
    lines = []
    for _ in range(attempts):
        goal = None
        if rng.random() < 1 / 3:
            goal = target
        elif rng.random() < near:
            tens, ones = divmod(target, 10)
            digit = rng.randint(0, 9)
            goal = tens * 10 + digit if rng.random() < 0.5 else max(digit, 1) * 10 + ones
        lines.append(f" {write_attempt(_drawn_sum(goal, rng), target)}")
    return "\n-".join(lines)


def cut_attempts(n: int, *, seed: int = 0) -> tuple[list[str], list[bool]]:
    """CountDown texts cut behind " (", and whether the verdict that follows should be "this".

    No model wrote them. Half of them reach the target; in half of the others one digit of the
    result differs from the target's.
    """
    rng = random.Random(seed)
    found: dict[bool, list[str]] = {True: [], False: []}
    while min(map(len, found.values())) < n // 2:
        target = rng.randint(10, 99)
        written = write_drill(target, rng, attempts=1, near=0.5)
        cut = written.index(" (") + 2
        numbers = tuple(map(abs, numbers_in(written[: written.index(" =")])))
        right = written[cut:].startswith("this")
        if len(found[right]) < n // 2:
            prompt = Problem(numbers=numbers, target=target).prompt()
            found[right].append(prompt + written[:cut])
    return [*found[True], *found[False]], [True] * (n // 2) + [False] * (n // 2)


def _drawn_sum(goal: int | None, rng: random.Random) -> str:
    """A sum of two to four random numbers, the last of which is chosen to reach the goal."""
    while True:
        numbers = [rng.randint(1, 99)]
        numbers += [rng.choice((1, -1)) * rng.randint(1, 99) for _ in range(rng.randint(1, 3))]
        if goal is not None:
            numbers[-1] = goal - sum(numbers[:-1])
        if 1 <= abs(numbers[-1]) <= 99:
            first, *rest = numbers
            return " ".join([str(first), *(f"{'+-'[x < 0]} {abs(x)}" for x in rest)])


def _sums(numbers: Sequence[int], rng: random.Random | None) -> list[str]:
    """One sum for every way to put + and - before the numbers, which begins with a positive one.

    The numbers are in random order; without `rng` they keep their order, except that the first
    positive one comes first.
    """
    written = []
    for signs in product("+-", repeat=len(numbers)):
        if "+" not in signs:
            continue
        terms = list(zip(signs, numbers, strict=True))
        if rng is not None:
            rng.shuffle(terms)
        leading = next(i for i, (sign, _) in enumerate(terms) if sign == "+")
        terms.insert(0, terms.pop(leading))
        text = " ".join(f"{sign} {number}" for sign, number in terms)
        written.append(text.removeprefix("+ "))
    return written
