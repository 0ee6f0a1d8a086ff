"""An exact parser of written sums, and the attempts in a CountDown chain of thought."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from interp.core.errors import InterpError

_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
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
    symbols = re.findall(r"\d+|\S", expression.replace("×", "*").replace("÷", "/"))
    try:
        if odd := [one for one in symbols if not (one.isdigit() or one in "+-*/()")]:
            raise ValueError(f"{odd[0]!r} is not part of a sum")
        # Python's own grammar has the same precedence, but refuses numbers such as 007.
        written = " ".join(str(int(one)) if one.isdigit() else one for one in symbols)
        return _value(ast.parse(written, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError) as error:
        found = "a division by zero" if isinstance(error, ZeroDivisionError) else str(error)
        do = "write whole numbers with + - * / ( )"
        raise InterpError(f"the sum {expression!r}", found, do) from error


def numbers_in(expression: str) -> list[int]:
    """The whole numbers in an expression, sorted.

    Raises:
        InterpError: a number has more digits than Python converts (4,300).
    """
    return sorted(map(_whole, re.findall(r"\d+", expression)))


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
        with suppress(InterpError):
            return evaluate(self.expression)
        return None


def read_attempts(text: str) -> list[Attempt]:
    """The attempts of a chain of thought, in order.

    Lines of another form, or with a number of more than 4,300 digits, are skipped.
    """
    attempts = []
    for match in ATTEMPT.finditer(text):
        expression, *steps = match.group("chain").split(" = ")
        if not steps or not re.fullmatch(r"-?\d+", steps[-1].strip()):
            continue
        named = match.group("named")
        with suppress(InterpError):
            attempts.append(
                Attempt(
                    expression=expression,
                    steps=tuple(steps[:-1]),
                    written=_whole(steps[-1]),
                    works=named is None,
                    named=None if named is None else _whole(named),
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
    with suppress(InterpError):
        if numbers_in(answer) == sorted(numbers) and evaluate(answer) == target:
            return 1.0
    return 0.1


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:
        found = f"{len(digits)} digits"
        raise InterpError(f"the number {digits:.20}...", found, "write fewer digits") from error


def _value(node: ast.AST) -> Fraction:
    match node:
        case ast.BinOp(left, operation, right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](_value(left), _value(right))
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case ast.Constant(int(number)):
            return Fraction(number)
    raise ValueError("it is not a sum of whole numbers")
