"""Which heads cause refusals: carriers, necessary heads, triggers, and the paths between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.heads.direct_attribution import (
    direction_projection,
    head_logit_attribution,
    permuted_labels,
    top_stability,
)
from interp.heads.groups import greedy_head_group
from interp.heads.interchange import group_interchange, head_interchange
from interp.heads.knockouts import knockout_cascade
from interp.heads.scan import scan_heads
from interp.heads.switching import switch_off
from interp.patching.path import path_patching
from interp.refusal.flips import head_flips
from interp.results.direction import Direction
from interp.results.scores import Scores
from interp.studies.refusal.settings import LEAST, Context
from interp.studies.steps import Result, plain

SIDES = ("proper refusals", "over-refusals")
TOP = 10
GROUP = 4
"""Heads exchanged, knocked out or switched off together."""

FLIP_DRAWS = 5
GROUP_DRAWS = 20
"""The fewest random groups; with ten, no share as strong could be below 0.09."""

VERSION = 2
"""Version of `groups`; part of its step's key."""


def refusal_pairs(context: Context, side: str, part: str, n: int) -> Task | None:
    """Refused prompts, each paired with an equally long answered one that shares most tokens.

    Both have the same task. Refused prompts without an answered one of their length are left out;
    None if fewer than 4 are left.
    """
    proper = side == SIDES[0]
    refused = context.rows(part, should="refuse" if proper else "answer", refused=True)
    prompts = context.prompts.rows
    pairs = []
    for i in context.few(refused, len(refused)):
        others = [
            j
            for j in context.rows(part, refused=False, tasks=[context.cases[i].task])
            if len(prompts[j]) == len(prompts[i])
        ]
        if not others:
            continue
        shared = [sum(a == b for a, b in zip(prompts[i], prompts[j], strict=True)) for j in others]
        best = others[int(np.argmax(shared))]
        pairs.append(
            PromptPair(
                clean=prompts[i],
                corrupted=prompts[best],
                answers=context.tokens,
                wrong=context.wrong,
            )
        )
    if len(pairs) < LEAST:
        return None
    chosen = np.random.default_rng(context.settings.seed).permutation(len(pairs))[:n]
    return Task(name=f"{side}, {part}", pairs=tuple(pairs[k] for k in sorted(chosen.tolist())))


def roles(context: Context, side: str, direction: Direction) -> Result:
    """Which heads carry a refusal, are needed for it, and trigger it: all measures on find pairs.

    The first two measures have a null of permuted labels, corrected for the number of heads.
    """
    model, settings = context.model, context.settings
    task = refusal_pairs(context, side, "find", settings.pairs)
    if task is None:
        return {"skipped": "too few refused prompts with an answered one of their length"}
    dla, along = head_logit_attribution(model, task), direction_projection(model, task, direction)
    scan = scan_heads(model, task, switch_off(model, "zero"), progress=context.progress)
    exchanged = head_interchange(model, task, progress=context.progress)
    scores = {
        "carries (direct attribution)": dla,
        "carries (along the direction)": along,
        "needed (zeroed)": scan.necessity,
        "triggers (necessity)": exchanged.necessity,
        "triggers (sufficiency)": exchanged.sufficiency,
    }
    found: Result = {"n": len(task), "gap": dla.gap, "measures": {}}
    for name, score in scores.items():
        found["measures"][name] = _written(score)
    for name in list(scores)[:2]:
        null = permuted_labels(scores[name], seed=settings.seed)
        found["measures"][name]["limit"] = null.limit
        found["measures"][name]["beyond"] = int((null.p < 0.05).sum())
    ships = scan.ships.mean(0)
    order = np.argsort(-ships, axis=None)[:TOP]
    found["ships"] = {
        "values": ships.tolist(),
        "benign": scan.benign.mean(0).tolist(),
        "top": [_label(np.unravel_index(k, ships.shape)) for k in order],
    }
    found["jaccard"] = [
        {"pair": [a, b], "jaccard": _jaccard(scores[a], scores[b])}
        for a, b in combinations(scores, 2)
    ]
    return found


def groups(context: Context, side: str, found: Result, other: Result) -> Result:
    """The first heads of each measure, judged together on test pairs against random heads.

    Necessity and sufficiency of exchanging them. The triggers of the other side are judged too: do
    the heads of proper refusals also make over-refusals?
    """
    model, settings = context.model, context.settings
    task = refusal_pairs(context, side, "test", settings.pairs)
    if task is None or "skipped" in found:
        return {"skipped": "too few pairs"}
    sets = {name: firsts(one) for name, one in found["measures"].items()}
    if "skipped" not in other:
        name = "triggers (necessity)"
        sets["the other side's triggers"] = firsts(other["measures"][name])
    rows = {}
    for name, heads in context.counted(sets.items()):
        draws = max(GROUP_DRAWS, settings.draws)
        judged = group_interchange(model, task, heads, draws=draws, seed=settings.seed)
        rows[name] = {
            "heads": list(judged.heads),
            "necessity": plain(judged.necessity),
            "sufficiency": plain(judged.sufficiency),
            "necessity_null": _null(judged.necessity_null),
            "sufficiency_null": _null(judged.sufficiency_null),
        }
    return {"n": len(task), "sets": rows}


def paths_to_carriers(context: Context, side: str, found: Result) -> Result:
    """Paths from triggers to carriers, on test pairs.

    Exact path patching of every head into the queries, keys and values of the first carriers; the
    cascade: how what carriers write changes once the first trigger is switched off, against random
    heads; and the greedy group of heads whose ablation moves the states most (generalised Ships,
    Sahara).
    """
    model, settings = context.model, context.settings
    task = refusal_pairs(context, side, "test", settings.pairs)
    if task is None or "skipped" in found:
        return {"skipped": "too few pairs"}
    measures = found["measures"]
    carriers = firsts(measures["carries (direct attribution)"])
    triggers = firsts(measures["triggers (necessity)"])
    receivers = _inputs(context, carriers)
    paths = path_patching(model, task, receivers=receivers, progress=context.progress)
    values = paths.values
    result: Result = {
        "n": len(task),
        "carriers": carriers,
        "triggers": triggers,
        "paths": _written(paths),
        "path_null": _null(paths.null(GROUP, seed=settings.seed)),
        "of triggers": [_value(values, head) for head in triggers],
    }
    later = [
        head
        for head in dict.fromkeys(
            [*carriers, *firsts(measures["carries (along the direction)"], TOP)]
        )
        if all(_layer(head) > _layer(gate) for gate in triggers[:1])
    ]
    if later:
        try:
            cascade = knockout_cascade(
                model, task, triggers[:1], later, switch_off(model, "zero"), draws=settings.draws
            )
            result["cascade"] = [
                {"head": head, "change": float(change), "null": _null(null)}
                for head, change, null in zip(
                    cascade.downstream, cascade.change, cascade.nulls, strict=True
                )
            ]
        except InterpError as error:
            result["cascade"] = {"skipped": str(error)}
    pool = found["ships"]["top"][:6]
    group = greedy_head_group(
        model,
        [pair.clean for pair in task.pairs],
        switch_off(model, "zero"),
        size=min(3, len(pool)),
        candidates=pool,
        centred=True,
        draws=settings.draws,
        seed=settings.seed,
        progress=context.progress,
    )
    result["greedy_head_group"] = {
        "heads": list(group.heads), "curve": group.curve.tolist(), "null": _null(group.null)
    }  # fmt: skip
    return result


def flips(context: Context, found: dict[str, Result]) -> Result:
    """How often texts of test rows flip when the triggers are zeroed in prompt and text.

    On refused rows (does the model answer?) and on answered ones (does its reply break?).
    """
    result: Result = {}
    for side, one in found.items():
        if "skipped" in one:
            continue
        heads = firsts(one["measures"]["triggers (necessity)"])
        should = "refuse" if side == SIDES[0] else "answer"
        parts = {
            side: context.rows("test", should=should, refused=True),
            f"answered, heads of {side}": context.rows("test", refused=False),
        }
        for name, rows in context.counted(parts.items()):
            few = context.few(rows, context.settings.select)
            if len(few) < LEAST:
                continue
            flipped = head_flips(
                context.model,
                [context.prompts.rows[i] for i in few],
                heads,
                context.judge,
                rows=[context.cases[i].row for i in few],
                max_new_tokens=context.settings.max_new_tokens,
                draws=FLIP_DRAWS if name == side else 0,
                seed=context.settings.seed,
            )
            result[name] = {
                "heads": heads,
                "rate": plain(flipped.rate),
                "null": _null(flipped.null),
                "after": flipped.after.counts,
            }
    return result


def firsts(measure: Result, k: int = GROUP) -> list[str]:
    """The first heads of a measure, strongest first."""
    return [row["label"] for row in measure["top"][:k]]


def _written(scores: Scores) -> Result:
    top = [{"label": x.label, "value": x.value, "stderr": x.stderr} for x in scores.top(TOP)]
    return {
        "values": np.nan_to_num(scores.values).tolist(),
        "top": top,
        "stability": top_stability(scores, k=TOP) if scores.values.size > TOP else None,
    }


def _null(null: Any) -> Result | None:
    return None if null is None else plain(null)


def _jaccard(a: Scores, b: Scores) -> float:
    one, other = ({x.label for x in scores.top(TOP)} for scores in (a, b))
    return len(one & other) / len(one | other)


def _inputs(context: Context, heads: Sequence[str]) -> list[str]:
    """Receivers: the query of each head, and the keys and values it shares."""
    group = context.model.n_heads // context.model.n_kv_heads
    found: list[str] = []
    for head in heads:
        part = Component.parse(head)
        shared = (part.index or 0) // group
        found += [f"{head}.q", *(str(Component(part.layer, s, shared)) for s in ("k", "v"))]
    return list(dict.fromkeys(found))


def _layer(head: str) -> int:
    return Component.parse(head).layer


def _label(cell: Sequence[Any]) -> str:
    return f"L{int(cell[0])}H{int(cell[1])}"


def _value(values: np.ndarray, head: str) -> float:
    part = Component.parse(head)
    return float(values[part.layer, part.index])
