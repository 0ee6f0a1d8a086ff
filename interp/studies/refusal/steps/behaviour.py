"""How the model replies to every prompt: texts, verdicts, and the tokens refusals begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from interp.core.errors import InterpError
from interp.core.statistics import group_numbers
from interp.probing.probes import evaluation
from interp.refusal.judging import (
    JUDGES,
    LEAST_TOKENS,
    REFUSALS,
    Judge,
    JudgedReplies,
    Label,
    count_labels,
    judge_replies,
    replies_of,
)
from interp.refusal.score import score_refusals, suggest_refusal_tokens
from interp.runs.text_runs import Generation
from interp.steering.edits import Steering
from interp.steering.runs import generate_steered
from interp.studies.refusal.settings import LEAST, RefusalContext
from interp.studies.steps import Result, plain, share_of

EXAMPLES = 6
ENOUGH = 0.5
"""The least probability of refusal tokens on refused rows for a threshold of 0."""

MANY = 4
"""More kinds than this are not shown for every task."""

BLOCK = 128
"""Replies that are written and judged together before their counts are reported."""


def replies(
    context: RefusalContext, rows: Sequence[int], steering: Steering | None = None
) -> tuple[JudgedReplies, list[str]]:
    """Greedy texts of some cases under a steering (None: plain), and the verdicts on them."""
    made, _ = generate_steered(
        context.model,
        context.prompts[rows],
        steering,
        max_new_tokens=context.settings.max_new_tokens,
        progress=context.progress,
    )
    return judged(context, rows, made), [one.text for one in made]


def judged(
    context: RefusalContext,
    rows: Sequence[int],
    made: Sequence[Generation],
    judge: Judge | None = None,
) -> JudgedReplies:
    """The verdicts on greedy texts of some cases, by the context's judge or another one."""
    cases = [context.cases[i] for i in rows]
    given = replies_of([x.row for x in cases], [x.prompt for x in cases], made)
    most = context.settings.max_new_tokens
    decoding = {"decoding": "greedy", "max_new_tokens": most}
    least = min(LEAST_TOKENS, most)  # a reply as long as is asked for is judged as it is
    return judge_replies(given, judge or context.judge, decoding=decoding, least_tokens=least)


def baseline_replies(
    context: RefusalContext, say: Callable[[str], None] = lambda line: None
) -> tuple[JudgedReplies, list[str]]:
    """`replies` to all cases, block by block, find rows first; reports the counts of each block.

    Raises:
        InterpError: too few refused or answered find rows, as soon as the rest cannot suffice.
    """
    find = context.rows("find")
    order = np.random.default_rng(context.settings.seed).permutation(find).tolist()
    order += [i for i in range(len(context.cases)) if context.parts[i] != "find"]
    made: list[Generation] = []
    progress = context.progress
    while len(made) < len(order):
        done = len(made)
        rows = order[done : done + BLOCK if done >= len(find) else min(done + BLOCK, len(find))]
        made += generate_steered(
            context.model,
            context.prompts[rows],
            max_new_tokens=context.settings.max_new_tokens,
            progress=progress and (lambda part, _, done=done: progress(done + part, len(order))),
        )[0]
        some = order[: len(made)]
        say(f"  {len(made)} of {len(order)} replies: {_counted(judged(context, some, made))}")
        if done < len(find):
            _require_both(context, some, made, len(find))
    place = {row: number for number, row in enumerate(order)}
    texts = [made[place[i]] for i in range(len(order))]
    return judged(context, range(len(order)), texts), [one.text for one in texts]


def _require_both(
    context: RefusalContext, rows: Sequence[int], made: Sequence[Generation], total: int
) -> None:
    """Raise if too few find rows are refused, or answered, whatever the rest give."""
    found = judged(context, rows, made)
    sides = {"refused": found.refused == 1, "answered": found.refused == 0}
    counts = {name: int(side.sum()) for name, side in sides.items()}
    if min(counts.values()) + total - len(rows) >= 2 * LEAST:
        return
    others = [judge for judge in JUDGES.values() if judge.name != context.judge.name]
    said = [f"by {context.judge.name} {_counted(found)}"]
    said += [f"by {judge.name} {_counted(judged(context, rows, made, judge))}" for judge in others]
    raise InterpError(
        f"{2 * LEAST} refused and {2 * LEAST} answered of {total} prompts to find with",
        f"after {len(rows)} replies of {context.model.name} {counts['refused']} refused and "
        f"{counts['answered']} answered; {'; '.join(said)}",
        "take a model that refuses some of them, give it a system prompt, other cases, or another "
        "judge (--judge)",
    )


def _counted(found: JudgedReplies) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.counts.items() if count)


def behaviour(
    context: RefusalContext, *, show: bool, say: Callable[[str], None] = lambda line: None
) -> Result:
    """The model's own reply to every case, judged: the baseline of everything that follows.

    `show`: whether some texts may be kept (those of shipped prompts). `say` and errors: see
    `baseline_replies`.
    """
    found, texts = baseline_replies(context, say)
    seen: set[tuple[str, str, str]] = set()
    examples = []
    for case, label, text in zip(context.cases, found.labels, texts, strict=True):
        key = (case.task, case.should, label)
        if show and key not in seen:
            seen.add(key)
            about = {"task": case.task, "should": case.should, "label": label}
            examples.append(about | {"prompt": case.prompt, "reply": text[:300]})
    compared = [context.cases[i] for i in context.compared]
    examples.sort(key=lambda x: (x["should"] == "answer") == (x["label"] == "direct_answer"))
    return {
        "judge": found.judge,
        "decoding": dict(found.decoding),
        "labels": list(found.labels),
        "text_hashes": list(found.text_hashes),
        "cut": list(found.cut),
        "parts": {name: context.parts.count(name) for name in dict.fromkeys(context.parts)},
        "compared": {
            "should": [case.should for case in compared],
            "unit": group_numbers([case.group for case in compared], len(compared)).tolist(),
        },
        "became": became(context, found.labels),
        "cells": cells(context, found.labels),
        "examples": examples[:EXAMPLES],
    }


def became(context: RefusalContext, labels: Sequence[Label]) -> dict[str, list[str]]:
    """Ids of the rows to refuse that were refused, got an invented answer, or neither."""
    names = dict.fromkeys(REFUSALS, "refused") | {"direct_answer": "invented"}
    found: dict[str, list[str]] = {"refused": [], "invented": [], "neither": []}
    for case, label in zip(context.cases, labels, strict=True):
        if case.should == "refuse":
            found[names.get(label, "neither")].append(case.row)
    return found


def cells(context: RefusalContext, labels: Sequence[Label]) -> list[Result]:
    """Shares refused and answered of every task and kind.

    With many kinds, of every task, and of every kind of request to refuse, over all tasks.
    """
    found: dict[tuple[str, str, str], list[Label]] = {}
    many = len({case.kind for case in context.cases}) > MANY
    for i, (case, label) in enumerate(zip(context.cases, labels, strict=True)):
        about = context.role(i) if many else case.kind
        found.setdefault((case.task, about, case.should), []).append(label)
    for case, label in zip(context.cases, labels, strict=True):
        if many and case.should == "refuse":
            found.setdefault(("every task", case.kind, case.should), []).append(label)
    return [
        {
            "task": task,
            "kind": kind,
            "should": should,
            "refused": share_of([x in REFUSALS for x in got]),
            "answered": share_of([x == "direct_answer" for x in got]),
            "labels": count_labels(got),
        }
        for (task, kind, should), got in found.items()
    ]


def baseline(context: RefusalContext, found: Result, rows: Sequence[int]) -> JudgedReplies:
    """Some rows of the kept baseline."""
    return JudgedReplies(
        judge=found["judge"],
        decoding=found["decoding"],
        rows=tuple(context.cases[i].row for i in rows),
        **{name: tuple(found[name][i] for i in rows) for name in ("labels", "cut", "text_hashes")},
    )


def best_threshold(refused: np.ndarray, answered: np.ndarray) -> float:
    """The score that separates two classes with the best balanced accuracy, between two scores."""
    every = np.unique(np.concatenate([refused, answered]))
    middles = (every[1:] + every[:-1]) / 2
    right = [(refused > x).mean() + (answered <= x).mean() for x in middles]
    return float(middles[int(np.argmax(right))]) if len(middles) else 0.0


def tokens(context: RefusalContext) -> Result:
    """First tokens of refusals and of answers on find rows, and how well their score separates.

    threshold: of the score. 0 where the tokens hold at least half of the probability on refused
    rows; else the one with the best balanced accuracy on find rows, because the first token of a
    refusal may be the most probable one, but far from certain. auc: chance that a refused row
    scores above an answered one, on rows of the other parts.
    """
    model = context.model
    sides = [context.few(context.rows("find", refused=x), 200) for x in (True, False)]
    logits = [context.logits(side) for side in sides]
    refusing = suggest_refusal_tokens(model, *logits, enough=0.0)
    answering = suggest_refusal_tokens(model, *logits[::-1], enough=0.0)
    scores = [score_refusals(some, refusing.ids).numpy() for some in logits]
    rest = [
        i
        for i in (*context.rows(refused=True), *context.rows(refused=False))
        if context.parts[i] != "find"
    ]
    scored = score_refusals(context.logits(rest), refusing.ids)
    truth = np.array([bool(context.became(i)) for i in rest])
    bases = np.array([context.cases[i].group for i in rest])
    threshold = 0.0 if refusing.coverage[-1] >= ENOUGH else best_threshold(*scores)
    agrees = evaluation(scored - threshold, truth, bases, context.settings.seed)
    n = agrees.n_valid + agrees.n_invalid
    accuracy, auc = (
        {"mean": agrees.values[i], "low": agrees.low[i], "high": agrees.high[i], "n": n}
        for i in (0, 2)
    )
    return plain(
        {
            "ids": refusing.ids,
            "wrong": [i for i in answering.ids if i not in refusing.ids],
            "strings": refusing.strings,
            "answers": answering.strings,
            "threshold": threshold,
            "coverage": refusing.coverage[-1],
            "spill": refusing.spill[-1],
            "n": refusing.n,
            "sign": accuracy,
            "auc": auc,
        }
    )
