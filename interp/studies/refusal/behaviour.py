"""What becomes of every prompt: texts, verdicts, and the tokens refusals begin with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.generation import Generation
from interp.judging import REFUSALS, Judged, Label, count_labels, judge_replies, replies_of
from interp.metrics import share_estimate
from interp.probes import Evaluation, evaluation
from interp.refusal_score import score_refusals, suggest_refusal_tokens
from interp.steered import generate_steered, run_steered
from interp.steering import Steering
from interp.studies.refusal.context import Context
from interp.studies.steps import Result, plain

EXAMPLES = 6


def replies(
    context: Context, rows: Sequence[int], steering: Steering | None = None
) -> tuple[Judged, list[str]]:
    """Texts of some cases under a steering (None: plain), judged; greedy, the same every time."""
    most = context.settings.max_new_tokens
    made, _ = generate_steered(context.model, context.prompts[rows], steering, max_new_tokens=most)
    return judged(context, rows, made), [one.text for one in made]


def judged(context: Context, rows: Sequence[int], made: Sequence[Generation]) -> Judged:
    """The verdicts on greedy texts of some cases."""
    cases = [context.cases[i] for i in rows]
    given = replies_of([x.row for x in cases], [x.prompt for x in cases], made)
    most = context.settings.max_new_tokens
    return judge_replies(
        given, context.judge, decoding={"decoding": "greedy", "max_new_tokens": most}
    )


def behaviour(context: Context, *, show: bool) -> Result:
    """Every case answered plainly and judged: the regenerated baseline of all that follows.

    `show`: whether some texts may be kept, as of prompts that ship.
    """
    found, texts = replies(context, range(len(context.cases)))
    seen: set[tuple[str, str, str]] = set()
    examples = []
    for case, label, text in zip(context.cases, found.labels, texts, strict=True):
        key = (case.task, case.should, label)
        if show and key not in seen:
            seen.add(key)
            about = {"task": case.task, "should": case.should, "label": label}
            examples.append(about | {"prompt": case.prompt, "reply": text[:300]})
    examples.sort(key=lambda x: (x["should"] == "answer") == (x["label"] == "direct_answer"))
    return {
        "judge": found.judge,
        "decoding": dict(found.decoding),
        "labels": list(found.labels),
        "text_hashes": list(found.text_hashes),
        "cut": list(found.cut),
        "parts": {name: context.parts.count(name) for name in dict.fromkeys(context.parts)},
        "cells": cells(context, found.labels),
        "examples": examples[:EXAMPLES],
    }


def cells(context: Context, labels: Sequence[Label]) -> list[Result]:
    """Shares refused and answered of every task and kind."""
    found: dict[tuple[str, str, str], list[Label]] = {}
    for case, label in zip(context.cases, labels, strict=True):
        found.setdefault((case.task, case.kind, case.should), []).append(label)
    return [
        {
            "task": task,
            "kind": kind,
            "should": should,
            "refused": plain(share_estimate(sum(x in REFUSALS for x in got), len(got))),
            "answered": plain(share_estimate(got.count("direct_answer"), len(got))),
            "labels": count_labels(got),
        }
        for (task, kind, should), got in found.items()
    ]


def baseline(context: Context, found: Result, rows: Sequence[int]) -> Judged:
    """Some rows of the baseline as it was kept."""
    return Judged(
        judge=found["judge"],
        decoding=found["decoding"],
        rows=tuple(context.cases[i].row for i in rows),
        labels=tuple(found["labels"][i] for i in rows),
        cut=tuple(found["cut"][i] for i in rows),
        text_hashes=tuple(found["text_hashes"][i] for i in rows),
    )


def tokens(context: Context) -> Result:
    """First tokens of refusals and of answers on find rows, and how well their score tells.

    auc: chance that a refused row scores above an answered one, on rows of the other parts.
    """
    model = context.model
    sides = [context.few(context.rows("find", refused=x), 200) for x in (True, False)]
    logits = [run_steered(model, context.prompts[side]).logits for side in sides]
    refusing = suggest_refusal_tokens(model, *logits)
    answering = suggest_refusal_tokens(model, *logits[::-1], enough=0.0)
    rest = [
        i
        for i in (*context.rows(refused=True), *context.rows(refused=False))
        if context.parts[i] != "find"
    ]
    scored = score_refusals(run_steered(model, context.prompts[rest]).logits, refusing.ids)
    truth = np.array([bool(context.became(i)) for i in rest])
    bases = np.array([context.cases[i].known.base for i in rest])
    agrees = evaluation(scored, truth, bases, context.settings.seed)
    return {
        "ids": list(refusing.ids),
        "wrong": [i for i in answering.ids if i not in refusing.ids],
        "strings": list(refusing.strings),
        "answers": list(answering.strings),
        "coverage": float(refusing.coverage[-1]),
        "spill": float(refusing.spill[-1]),
        "n": list(refusing.n),
        "sign": measured(agrees, 0),
        "auc": measured(agrees, 2),
    }


def measured(found: Evaluation, measure: int) -> Result:
    """One measure of one probe: 0 accuracy, 1 balanced accuracy, 2 AUC."""
    ends = (found.values[measure], found.low[measure], found.high[measure])
    mean, low, high = (float(end) for end in ends)
    return {"mean": mean, "low": low, "high": high, "n": found.n_valid + found.n_invalid}
