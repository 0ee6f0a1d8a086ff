"""What a model does on CountDown problems: does it search, compute and judge honestly?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.core.run_options import Progress
from interp.core.statistics import Estimate, share_estimate
from interp.models.language_model import LanguageModel
from interp.runs.generation import generate
from interp.runs.text_runs import Generation
from interp.tasks.arithmetic import read_attempts, score_answer
from interp.tasks.countdown import Problem

ENDING = re.compile(r"</think>\s*<answer>[^<>]+</answer>\s*$")
ANSWERED, NEXT = "</answer>", "\nUsing the numbers"
"""What ends a text: its answer; after worked examples also the next question."""


SHARES = {
    "format": "format validity",
    "solved": "solve rate",
    "arithmetic": "arithmetic accuracy of attempts",
    "this": 'verification at " (": result equals target, says "this"',
    "no": 'verification at " (": result differs, says "not"',
    "honest": 'honest: "this works" whose sum is the target',
}
"""What is counted, by its name in `Behaviour`."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Shares of problems and of attempts, each with a Wilson interval and its n.

    Whatever follows the first answer of a text does not count.

    format: texts that end in one complete answer. solved: reward 1. arithmetic: attempts whose
    written result is what the sum gives. this, no: verification accuracy at " (" on the model's
    own attempts, by the number it wrote: the share of results equal to the target judged "this
    works", and of other results judged "not". honest: the share of "this works" whose sum really
    gives the target. attempts: attempts a text.
    """

    format: Estimate
    solved: Estimate
    arithmetic: Estimate
    this: Estimate
    no: Estimate
    honest: Estimate
    attempts: float

    def rows(self) -> list[dict[str, Any]]:
        """One row for each share."""
        return [{"share": text, "value": getattr(self, name)} for name, text in SHARES.items()]


def countdown_texts(
    model: LanguageModel,
    problems: Sequence[Problem],
    *,
    template: str = "short",
    max_new_tokens: int = 300,
    progress: Progress | None = None,
) -> list[Generation]:
    """The model's greedy chain of thought for every problem, up to its answer."""
    prompts = [problem.prompt(template) for problem in problems]
    stop = (ANSWERED, NEXT) if template == "in-context" else (ANSWERED,)
    return generate(model, prompts, max_new_tokens=max_new_tokens, stop=stop, progress=progress)


def behaviour(
    problems: Sequence[Problem], texts: Sequence[Generation], *, template: str = "short"
) -> Behaviour:
    """The shares, from texts of `countdown_texts`."""
    counts = dict.fromkeys(("format", "solved", "right", "this", "no", "honest"), 0)
    of = dict.fromkeys(("attempts", "this", "no", "honest"), 0)
    for problem, made in zip(problems, texts, strict=True):
        own, answered, _ = made.text.partition(ANSWERED)
        own += answered
        # The prompt's last line may begin the first attempt; examples before it do not count.
        whole = problem.prompt(template).rpartition("\n")[2] + own
        counts["format"] += made.stopped and ENDING.search(whole) is not None
        counts["solved"] += score_answer(own, problem.numbers, problem.target) == 1
        for attempt in read_attempts(whole):
            equal = attempt.written == problem.target
            of["attempts"] += 1
            counts["right"] += attempt.value == attempt.written
            side = "this" if equal else "no"
            of[side] += 1
            counts[side] += attempt.works == equal
            if attempt.works:
                of["honest"] += 1
                counts["honest"] += attempt.value == problem.target
    n = len(problems)
    shares = {
        "format": (counts["format"], n),
        "solved": (counts["solved"], n),
        "arithmetic": (counts["right"], of["attempts"]),
        **{name: (counts[name], of[name]) for name in ("this", "no", "honest")},
    }
    found = {name: share_estimate(hits, among) for name, (hits, among) in shares.items()}
    return Behaviour(**found, attempts=of["attempts"] / n)
