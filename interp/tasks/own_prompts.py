"""A task from prompts that are at hand."""

from __future__ import annotations

from collections.abc import Sequence

from interp.core.metrics import METRICS
from interp.core.positions import Prompt
from interp.core.prompts import PromptPair, Task


def pair(
    clean: Prompt,
    corrupted: Prompt | None,
    answers: str | int | Sequence[str | int],
    wrong: str | int | Sequence[str | int] = (),
) -> Task:
    """A task of one pair of prompts; for more, give `Task` several `PromptPair`s.

    Its metric is the logit difference if there are wrong answers, and the log-odds otherwise.

    Args:
        clean: the prompt that is explained.
        corrupted: a prompt of as many tokens with another answer; None if there is none.
        answers: the correct next tokens of the clean prompt.
        wrong: the next tokens that they are compared with.

    Raises:
        InterpError: a prompt or an answer of the wrong type.
    """
    pairs = (PromptPair(clean=clean, corrupted=corrupted, answers=answers, wrong=wrong),)  # type: ignore[arg-type]
    source = f"interp.pair({clean!r}, {corrupted!r}, {pairs[0].answers!r}, {pairs[0].wrong!r})"
    metric = METRICS["logit_diff" if pairs[0].wrong else "log_odds"]
    return Task(name="one pair", pairs=pairs, metric=metric, source=source)
