"""What becomes of every capability request: refused, or an invented answer; and of its twin.

    python experiments/capability_replies.py --model smollm2-135m-instruct

Writes experiments/results/capability-<model>.json: the label of every shipped prompt by the rules,
and shares refused by kind of request and by task, with Wilson intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import interp
from interp.core.files import json_text
from interp.core.statistics import share_estimate
from interp.refusal.capability import capability_cases
from interp.refusal.cases import Case
from interp.refusal.judging import REFUSALS, RULES, Label, judge_replies, replies_of
from interp.runs.text_runs import Generation

MOST = 40
"""New tokens of a reply."""

ROLES = {"request": "requests", "twin": "twins", "wrapped": "wrapped requests"}
"""What a case is, by the last word of its id."""


def table(cases: Sequence[Case], made: Sequence[Generation]) -> dict[str, Any]:
    """The labels of replies to all cases, and shares refused of every group of them."""
    given = replies_of([x.row for x in cases], [x.prompt for x in cases], made)
    labels = judge_replies(given, RULES, least_tokens=MOST).labels
    groups: dict[str, list[Label]] = {}
    for case, label in zip(cases, labels, strict=True):
        role = ROLES[case.row.split()[-1]]
        for name in (role, f"{role}, {case.kind}", f"{role}, task {case.task}"):
            groups.setdefault(name, []).append(label)
    shares = {
        name: asdict(share_estimate(sum(x in REFUSALS for x in found), len(found)))
        | {"invented or answered": found.count("direct_answer")}
        for name, found in groups.items()
    }
    rows = {case.row: label for case, label in zip(cases, labels, strict=True)}
    return {"judge": RULES.name, "max_new_tokens": MOST, "refused": shares, "labels": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    model = interp.load_model(parser.parse_args().model)
    cases = capability_cases()
    prompts = interp.models.chat_prompts(model, [case.prompt for case in cases])
    made, _ = interp.steering.generate_steered(model, prompts, max_new_tokens=MOST)
    found = {"model": model.name, "weights": model.hash, **table(cases, made)}
    path = Path(__file__).parent / "results" / f"capability-{model.name}.json"
    path.write_text(json_text(found, indent=1) + "\n", encoding="utf-8")
    print(path)  # noqa: T201
