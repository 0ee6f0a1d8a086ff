"""A task from prompts that are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from interp.core.continuations import Tokenizing, answer_tokens
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


def scored_whole(task: Task, model: Tokenizing) -> Task:
    """The task with a metric of whole answers if one of its answers has several tokens in a model.

    log_prob_diff takes the place of logit_diff, and log_prob that of log_odds; another metric
    stays. An answer that no tokens write is left to `Task.encode`, which refuses it.
    """
    whole = {"logit_diff": "log_prob_diff", "log_odds": "log_prob"}
    if task.metric.name not in whole or not any(_is_long(model, one) for one in task.pairs):
        return task
    return replace(task, metric=METRICS[whole[task.metric.name]])


def _is_long(model: Tokenizing, pair: PromptPair) -> bool:
    """Whether an answer has several tokens."""
    for text in (*pair.answers, *pair.wrong):
        with suppress(InterpError):
            if len(answer_tokens(model, pair.clean, text, "an answer")) > 1:
                return True
    return False


def _task(name: str, made: Sequence[PromptPair], source: str) -> Task:
    metric = METRICS["logit_diff" if all(one.wrong for one in made) else "log_odds"]
    return Task(name=name, pairs=tuple(made), metric=metric, source=source)
