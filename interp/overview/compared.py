"""The two answers that a scan compares: tokens, or whole answers if one has several tokens."""

from __future__ import annotations

from dataclasses import dataclass

from interp.core.errors import InterpError
from interp.overview.logit_parts import (
    LogitParts,
    chosen_answers,
    likeliest,
    logit_parts,
    written,
)
from interp.overview.single_run import SingleRun
from interp.plots.style import visible


@dataclass(frozen=True, kw_only=True)
class ComparedAnswers:
    """An answer and the one it is compared with, as a task takes them.

    Attributes:
        answer, wrong: token ids; of whole answers, texts and token ids.
        metric: the name of the metric that takes them.
        words: that metric in words.
        parts: the direct attribution of the logit difference; None for whole answers, whose
            log-probability is no sum over parts.
    """

    answer: str | int
    wrong: str | int
    metric: str
    words: str
    parts: LogitParts | None


def compared(
    clean: SingleRun, other: SingleRun, answer: str | int | None, wrong: str | int | None
) -> ComparedAnswers:
    """The answers after a prompt, by default the likeliest token of each of two runs.

    Raises:
        InterpError: both are the same, or no tokens write one.
    """
    last = clean.n_tokens - 1
    given = (answer, "answer"), (wrong, "wrong")
    read = [None if text is None else written(clean, text, last, name) for text, name in given]
    if all(tokens is None or len(tokens) == 1 for tokens in read):
        (right,), _ = chosen_answers(clean, answer, wrong, last)
        parts = logit_parts(clean, right, likeliest(other, last, right) if wrong is None else wrong)
        words = parts.words
        return ComparedAnswers(
            answer=right, wrong=parts.wrong, metric="logit_diff", words=words, parts=parts
        )
    first = likeliest(clean, last) if answer is None else answer
    begun = read[0][0] if read[0] else None
    second = likeliest(other, last, begun) if wrong is None else wrong
    if read[0] is not None and read[0] == read[1]:
        raise InterpError(
            f"answer {answer!r} and wrong {wrong!r}", "they are the same tokens", "give two answers"
        )
    model = clean.model
    texts = [one if isinstance(one, str) else model.strings([one])[0] for one in (first, second)]
    words = " - ".join(f"log P({visible(text)})" for text in texts)
    return ComparedAnswers(
        answer=first, wrong=second, metric="log_prob_diff", words=words, parts=None
    )
