"""Which heads cause refusals: carriers, necessary heads, triggers, and the paths between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

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
from interp.studies.formatting import place
from interp.studies.refusal.settings import LEAST, RefusalContext
from interp.studies.steps import Result, plain

SIDES = ("proper refusals", "over-refusals")
CARRIERS, TRIGGERS = "carries (direct attribution)", "triggers (necessity)"
ALONG = "carries (along the direction)"
TOP = 10
GROUP = 4
"""Heads exchanged, knocked out or switched off together."""

FLIP_DRAWS = 5
GROUP_DRAWS = 20
"""The fewest random groups; with ten, no share as strong could be below 0.09."""

VERSION = 4
"""Version of the steps about heads; part of their keys."""


FOUND_ON = (("find",), ("find", "select"))
"""The parts whose pairs heads are found on: the first with enough pairs. None holds test rows."""


def refusal_pairs(context: RefusalContext, side: str, parts: Sequence[str], n: int) -> Task | None:
    """Refused prompts of some parts, each paired with an equally long answered one.

    Of the answered prompts the one that shares most tokens is taken. Both have the same task, and
    the first token tells them apart: the score of the refused one is above the threshold, that of
    the other one below. Where there are enough, the other one is of the same kind and should be
    refused too (an invented answer), so that the topic is the same. Refused prompts without such an
    answered one of their length are left out; None if fewer than 4 are left.
    """
    proper = side == SIDES[0]
    should = "refuse" if proper else "answer"
    refused = [i for part in parts for i in context.rows(part, should=should, refused=True)]
    refused = [i for i in refused if context.score_of(i) > context.threshold]
    pairs: list[PromptPair] = []
    for alike in (True, False):
        pairs = [x for i in refused if (x := _pair(context, i, parts, alike)) is not None]
        if len(pairs) >= LEAST:
            break
    if len(pairs) < LEAST:
        return None
    chosen = np.random.default_rng(context.settings.seed).permutation(len(pairs))[:n]
    return Task(
        name=f"{side}, {' and '.join(parts)}",
        pairs=tuple(pairs[k] for k in sorted(chosen.tolist())),
    )


def _pair(context: RefusalContext, i: int, parts: Sequence[str], alike: bool) -> PromptPair | None:
    """A refused prompt and the best answered one, `alike` in kind and in what it should get."""
    case, prompts = context.cases[i], context.prompts.rows
    others = [
        j
        for part in parts
        for j in context.rows(part, refused=False, tasks=[case.task])
        if len(prompts[j]) == len(prompts[i])
        and context.score_of(j) < context.threshold
        and (
            not alike
            or (context.cases[j].kind, context.cases[j].should) == (case.kind, case.should)
        )
    ]
    if not others:
        return None
    shared = [sum(a == b for a, b in zip(prompts[i], prompts[j], strict=True)) for j in others]
    best = prompts[others[int(np.argmax(shared))]]
    return PromptPair(clean=prompts[i], corrupted=best, answers=context.tokens, wrong=context.wrong)


def roles(context: RefusalContext, side: str, direction: Direction) -> Result:
    """Which heads carry a refusal, are needed for it, and trigger it, on the pairs of `FOUND_ON`.

    The first two measures have a null of permuted labels, corrected for the number of heads.
    """
    model, settings = context.model, context.settings
    for parts in FOUND_ON:
        if (task := refusal_pairs(context, side, parts, settings.pairs)) is not None:
            break
    else:
        return {
            "skipped": "too few refused prompts with an answered one of their length that the "
            "first token tells apart"
        }
    try:
        dla = head_logit_attribution(model, task)
    except InterpError as error:  # the pairs do not differ in the metric
        return {"skipped": error.found}
    along = direction_projection(model, task, direction)
    scan = scan_heads(model, task, switch_off(model, "zero"), progress=context.progress)
    exchanged = head_interchange(model, task, progress=context.progress)
    scores = {
        CARRIERS: dla,
        ALONG: along,
        "needed (zeroed)": scan.necessity,
        TRIGGERS: exchanged.necessity,
        "triggers (sufficiency)": exchanged.sufficiency,
    }
    found: Result = {"n": len(task), "parts": list(parts), "gap": dla.gap, "measures": {}}
    for name, score in scores.items():
        found["measures"][name] = _written(score)
        if name.startswith("carries"):
            null = permuted_labels(score, seed=settings.seed)
            found["measures"][name] |= {"limit": null.limit, "beyond": int((null.p < 0.05).sum())}
    ships = scan.ships.mean(0)
    order = np.argsort(-ships, axis=None)[:TOP]
    found["ships"] = {
        "values": ships.tolist(),
        "benign": scan.benign.mean(0).tolist(),
        "top": ["L{}H{}".format(*np.unravel_index(k, ships.shape)) for k in order],
    }
    tops = {name: {x.label for x in score.top(TOP)} for name, score in scores.items()}
    found["jaccard"] = [
        {"pair": [a, b], "jaccard": len(tops[a] & tops[b]) / len(tops[a] | tops[b])}
        for a, b in combinations(scores, 2)
    ]
    return found


def groups(context: RefusalContext, side: str, found: Result, other: Result) -> Result:
    """The first heads of each measure, judged together on test pairs against random heads.

    Necessity and sufficiency of exchanging them. The triggers of the other side are judged too: do
    the heads of proper refusals also make over-refusals?
    """
    model, settings = context.model, context.settings
    task = refusal_pairs(context, side, ["test"], settings.pairs)
    if task is None or "skipped" in found:
        return {"skipped": "too few pairs"}
    sets = {name: firsts(one) for name, one in found["measures"].items()}
    if "skipped" not in other:
        sets["the other side's triggers"] = firsts(other["measures"][TRIGGERS])
    names = ("heads", "necessity", "sufficiency", "necessity_null", "sufficiency_null")
    draws, rows = max(GROUP_DRAWS, settings.draws), {}
    for name, heads in context.counted(sets.items()):
        judged = group_interchange(model, task, heads, draws=draws, seed=settings.seed)
        rows[name] = {key: getattr(judged, key) for key in names}
    return {"n": len(task), "sets": plain(rows)}


def paths_to_carriers(context: RefusalContext, side: str, found: Result) -> Result:
    """Paths from triggers to carriers, on test pairs.

    Exact path patching of every head into the queries, keys and values of the first carriers; the
    cascade: how what carriers write changes once the first trigger is switched off, against random
    heads; and the greedy group of heads whose ablation moves the states most (generalised Ships,
    Sahara).
    """
    model, settings = context.model, context.settings
    task = refusal_pairs(context, side, ["test"], settings.pairs)
    if task is None or "skipped" in found:
        return {"skipped": "too few pairs"}
    measures = found["measures"]
    carriers, triggers = firsts(measures[CARRIERS]), firsts(measures[TRIGGERS])
    receivers = _inputs(context, carriers)
    paths = path_patching(model, task, receivers=receivers, progress=context.progress)
    result: Result = {
        "n": len(task),
        "carriers": carriers,
        "triggers": triggers,
        "paths": _written(paths),
        "path_null": plain(paths.null(GROUP, seed=settings.seed)),
        "of triggers": [float(paths.values[place(head)]) for head in triggers],
    }
    first = min((place(head)[0] for head in triggers[:1]), default=-1)
    late = [*carriers, *firsts(measures[ALONG], TOP)]
    later = [head for head in dict.fromkeys(late) if place(head)[0] > first]
    if later:
        try:
            cascade = knockout_cascade(
                model, task, triggers[:1], later, switch_off(model, "zero"), draws=settings.draws
            )
            rows = zip(cascade.downstream, cascade.change, cascade.nulls, strict=True)
            result["cascade"] = [
                plain(dict(zip(("head", "change", "null"), row, strict=True))) for row in rows
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
    shown = {"heads": group.heads, "curve": group.curve, "null": group.null}
    return result | {"greedy_head_group": plain(shown)}


def flips(context: RefusalContext, found: dict[str, Result]) -> Result:
    """How often texts of test rows flip when the triggers are zeroed in prompt and text.

    On refused rows (does the model answer?) and on answered ones (does its reply break?).
    """
    result: Result = {}
    for side, one in found.items():
        if "skipped" in one:
            continue
        heads = firsts(one["measures"][TRIGGERS])
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
                context.prompts[few].rows,
                heads,
                context.judge,
                rows=[context.cases[i].row for i in few],
                max_new_tokens=context.settings.max_new_tokens,
                draws=FLIP_DRAWS if name == side else 0,
                seed=context.settings.seed,
            )
            about = {"heads": heads, "rate": flipped.rate, "null": flipped.null}
            result[name] = plain(about | {"after": flipped.after.counts})
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


def _inputs(context: RefusalContext, heads: Sequence[str]) -> list[str]:
    """Receivers: the query of each head, and the keys and values it shares."""
    group = context.model.n_heads // context.model.n_kv_heads
    found: list[str] = []
    for head in heads:
        part = Component.parse(head)
        shared = (part.index or 0) // group
        found += [f"{head}.q", *(str(Component(part.layer, site, shared)) for site in "kv")]
    return list(dict.fromkeys(found))
