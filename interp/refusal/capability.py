"""Requests that a text model cannot meet, each with an answerable twin about the same thing.

Nothing in them is harmful. They ask for live data, physical actions, the model's own senses or
life, private facts of the user, acts on the user's behalf, other chats, or things that were not
given. A model should decline them; real chat models decline some and invent an answer to others.
Which of the two becomes of a request is measured, never stored with it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from interp.core.errors import InterpError
from interp.refusal.cases import Case
from interp.tasks.taboo import shipped as shipped_taboo

SOURCE = Path(__file__).parent.parent / "data" / "capability.json"

WRAPPERS = ("translate", "rephrase", "summarise", "sentiment")
"""Tasks on the text of a request. They can be done, so a refusal of them is an over-refusal."""


@cache
def shipped() -> dict[str, Any]:
    """The pairs by kind of inability and task, with their origin and licence."""
    return json.loads(SOURCE.read_text(encoding="utf-8"))


def capability_cases(n: int | None = None, *, seed: int = 0) -> tuple[Case, ...]:
    """Requests to decline, their answerable twins, and tasks on the text of a request.

    Three groups of cases, which share a base text:

    - requests (should be refused): plain ones, and ones inside a task, such as "Summarise the book
      that is lying on my sofa." Their task is "request", "translate", "rephrase" or "summarise".
    - twins (should be answered): the same task about the same thing, with all that it needs.
    - wrapped requests (should be answered): "Translate this into French: Make me a cup of coffee."
      Every plain request is wrapped in one of `WRAPPERS`, in turn.

    A kind of case is the inability ("live data"), the same for all cases of a base text.

    Args:
        n: at most so many pairs of each kind; None for all. A larger n adds pairs to those of a
            smaller one.
        seed: seed of the draw.

    Raises:
        InterpError: n is below 1.
    """
    if n is not None and n < 1:
        raise InterpError(f"{n} pairs of each kind", "there must be at least 1", "give n >= 1")
    found: list[Case] = []
    for kind, tasks in shipped()["pairs"].items():
        pairs = [(task, *pair) for task, some in tasks.items() for pair in some]
        numbers = random.Random(f"{seed} {kind}").sample(range(len(pairs)), len(pairs))
        for number in sorted(numbers[:n]):
            found += _cases(kind, number, *pairs[number])
    return tuple(found)


def _cases(kind: str, number: int, task: str, request: str, twin: str) -> list[Case]:
    base = f"{kind} {number}"
    common: dict[str, Any] = {"task": task, "kind": kind, "base": base}
    made = [
        Case(row=f"{base} request", prompt=request, should="refuse", **common),
        Case(row=f"{base} twin", prompt=twin, should="answer", **common),
    ]
    if task == "request":
        wrapper = WRAPPERS[number % len(WRAPPERS)]
        wordings = shipped_taboo()["tasks"][wrapper]
        prompt = wordings[number // len(WRAPPERS) % len(wordings)].format(text=request)
        about = common | {"task": wrapper}
        made.append(Case(row=f"{base} wrapped", prompt=prompt, should="answer", **about))
    return made


def require_twins(cases: Sequence[Case]) -> Mapping[str, tuple[Case, Case]]:
    """The request to decline and the answerable twin of each base text.

    Raises:
        InterpError: a request without a twin, or one whose twin has another task or kind, so that
            the two would differ in more than what can be answered.
    """
    found: dict[str, tuple[Case, Case]] = {}
    for case in cases:
        if case.should != "refuse":
            continue
        others = [x for x in cases if x.base == case.base and x.should == "answer"]
        twins = [x for x in others if (x.task, x.kind) == (case.task, case.kind)]
        if len(twins) != 1:
            seen = ", ".join(f"{x.row}: {x.task}, {x.kind}" for x in others) or "none"
            raise InterpError(
                f"the twin of {case.row} ({case.task}, {case.kind})",
                seen,
                "give one prompt to answer with the same base, task and kind",
            )
        found[case.base] = (case, twins[0])
    return found
