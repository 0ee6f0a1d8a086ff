"""A task from prompts that are at hand."""

from __future__ import annotations

from collections.abc import Sequence

from interp.core.errors import InterpError
from interp.core.metrics import METRICS
from interp.core.positions import Prompt
from interp.core.prompts import PromptPair, Task


def pair(
    clean: Prompt,
    corrupted: Prompt | None,
    answers: str | int | Sequence[str | int],
    wrong: str | int | Sequence[str | int] = (),
) -> Task:
    """A task of one pair of prompts; see `pairs`.

    Args:
        clean: the prompt that is explained.
        corrupted: a prompt of as many tokens with another answer; None if there is none.
        answers: the correct next tokens of the clean prompt.
        wrong: the next tokens that they are compared with.

    Raises:
        InterpError: a prompt or an answer of the wrong type.
    """
    made = PromptPair(clean=clean, corrupted=corrupted, answers=answers, wrong=wrong)  # type: ignore[arg-type]
    source = f"interp.pair({clean!r}, {corrupted!r}, {made.answers!r}, {made.wrong!r})"
    return _task("one pair", [made], source)


def pairs(rows: Sequence[Sequence[object]]) -> Task:
    """A task of several pairs of prompts, each (clean, corrupted, answers, wrong) as in `pair`.

    One such row is a task of one pair.
    Its metric is the logit difference if all have wrong answers, and the log-odds otherwise;
    `.with_metric()` gives it another.

    Raises:
        InterpError: no rows, a row of another length, or a part of the wrong type.
    """
    rows = [rows] if rows and isinstance(rows[0], str) else rows
    names = ("clean", "corrupted", "answers", "wrong")
    for row in rows:
        if isinstance(row, str) or len(row) not in (3, 4):
            found = f"{row!r:.60}"
            raise InterpError("a pair of prompts", found, f"give ({', '.join(names)}) for each")
    made = [PromptPair(**dict(zip(names, row, strict=False))) for row in rows]  # type: ignore[arg-type]
    parts = [(one.clean, one.corrupted, one.answers, one.wrong) for one in made]
    return _task(f"{len(made)} pairs", made, f"interp.pairs({parts!r})")


def _task(name: str, made: Sequence[PromptPair], source: str) -> Task:
    metric = METRICS["logit_diff" if all(one.wrong for one in made) else "log_odds"]
    return Task(name=name, pairs=tuple(made), metric=metric, source=source)
