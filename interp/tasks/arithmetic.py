"""An exact parser of written sums, and the attempts in a CountDown chain of thought."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from interp.core.errors import InterpError

_SYMBOL = re.compile(r"\s*(\d+|[-+*/×÷()])")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
ATTEMPT = re.compile(
    r"^- (?P<chain>[^\n]+?) \((?P<verdict>this works|not (?P<named>-?\d+))\)", re.M
)
"""One attempt of the CountDown chain of thought: `- 84 - 60 + 47 = 24 + 47 = 71 (this works)`."""


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression of whole numbers with + - * / (or × ÷) and parentheses.

    The grammar has only these four operations: no powers, floor division or names.

    Raises:
        InterpError: the text is not such an expression, or divides by zero.
    """
    text, symbols, end = expression.strip(), [], 0
    while end < len(text):
        match = _SYMBOL.match(text, end)
        if match is None:
            raise _unreadable(expression, f"{text[end:][:8]!r} is not part of a sum")
        symbols.append(match.group(1).replace("×", "*").replace("÷", "/"))
        end = match.end()
    value, rest = _sum(symbols, expression)
    if rest:
        raise _unreadable(expression, f"unexpected {rest[0]!r} after the end")
    return value


def numbers_in(expression: str) -> list[int]:
    """The whole numbers in an expression, sorted."""
    return sorted(int(number) for number in re.findall(r"\d+", expression))


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt in a chain of thought.

    Attributes:
        expression: the sum as first written.
        steps: the intermediate sums.
        written: the result that the text gives.
        works: whether the text says "this works".
        named: the number after "not"; None after "this works".
        start: the character index at which " (" begins.
    """

    expression: str
    steps: tuple[str, ...]
    written: int
    works: bool
    named: int | None
    start: int

    @property
    def value(self) -> Fraction | None:
        """The correct value of the sum; None if it cannot be parsed."""
        try:
            return evaluate(self.expression)
        except InterpError:
            return None


def read_attempts(text: str) -> list[Attempt]:
    """The attempts of a chain of thought, in order; lines of another form are skipped."""
    attempts = []
    for match in ATTEMPT.finditer(text):
        expression, *steps = match.group("chain").split(" = ")
        if not steps or not re.fullmatch(r"-?\d+", steps[-1].strip()):
            continue
        named = match.group("named")
        attempts.append(
            Attempt(
                expression=expression,
                steps=tuple(steps[:-1]),
                written=int(steps[-1]),
                works=named is None,
                named=None if named is None else int(named),
                start=match.end("chain"),
            )
        )
    return attempts


def final_answer(text: str) -> str | None:
    """The content of the last complete <answer> of a text, or None."""
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None


def score_answer(text: str, numbers: Sequence[int], target: int) -> float:
    """The reward of a finished text, as in the paper: 0, 0.1 or 1.

    It is 0 without an `<answer>`, 0.1 if the answer does not use every number exactly once, cannot
    be parsed or is wrong, and 1 if it is right. The last complete `<answer> ... </answer>` counts.

    The released code (TinyZero, `countdown.py`) differs in two ways. It searches only the last line
    of the text, so an answer followed by further lines gets 0. And it computes the sum with `eval`
    and a tolerance of 1e-5; here it is parsed and exact.
    """
    answer = final_answer(text)
    if answer is None:
        return 0.0
    if numbers_in(answer) != sorted(numbers):
        return 0.1
    try:
        return 1.0 if evaluate(answer) == target else 0.1
    except InterpError:
        return 0.1


def _sum(symbols: list[str], whole: str) -> tuple[Fraction, list[str]]:
    value, rest = _product(symbols, whole)
    while rest and rest[0] in "+-":
        term, after = _product(rest[1:], whole)
        value, rest = (value + term if rest[0] == "+" else value - term), after
    return value, rest


def _product(symbols: list[str], whole: str) -> tuple[Fraction, list[str]]:
    value, rest = _factor(symbols, whole)
    while rest and rest[0] in "*/":
        factor, after = _factor(rest[1:], whole)
        if rest[0] == "/" and factor == 0:
            raise _unreadable(whole, "a division by zero")
        value, rest = (value * factor if rest[0] == "*" else value / factor), after
    return value, rest


def _factor(symbols: list[str], whole: str) -> tuple[Fraction, list[str]]:
    if not symbols:
        raise _unreadable(whole, "a number is missing at the end")
    head, *rest = symbols
    if head == "-":
        value, rest = _factor(rest, whole)
        return -value, rest
    if head == "(":
        value, rest = _sum(rest, whole)
        if not rest or rest[0] != ")":
            raise _unreadable(whole, "a parenthesis that is not closed")
        return value, rest[1:]
    if not head.isdigit():
        raise _unreadable(whole, f"{head!r} instead of a number")
    return Fraction(int(head)), rest


def _unreadable(expression: str, found: str) -> InterpError:
    return InterpError(f"the sum {expression!r}", found, "write whole numbers with + - * / ( )")
