"""Does forcing IOI's heads to attend on Colored Objects as they do in IOI repair the task?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from interp.core.components import Component
from interp.core.nulls import null_of, paired_p
from interp.core.prompts import Task
from interp.core.statistics import mean_estimate, share_estimate
from interp.heads.attention import attention_to
from interp.models.language_model import LanguageModel
from interp.runs.change import Change
from interp.runs.hooks import intervene
from interp.studies.reuse.settings import Choices, Context, choices
from interp.studies.reuse.steps.circuits import heads_of
from interp.studies.reuse.steps.forced_attention import (
    Written,
    blend,
    evenly,
    impose,
    matched_heads,
    written,
)
from interp.studies.reuse.tasks import OBJECTS
from interp.studies.steps import Result, plain

WATCHED = 48
"""Prompts on which the movers' attention is read."""

Plan = Mapping[str, tuple[str, str]]
"""Head -> (the colours it is made to attend to, the role it attends to in IOI)."""


def chosen_heads(ioi: Result) -> dict[str, list[str]]:
    """As many heads as published, chosen on IOI alone.

    The three strongest of the inhibition stage, the most negative mover, and the three strongest
    movers; fewer if a stage has fewer of that sign.
    """
    inhibition = heads_of(ioi, "inhibition", 1)[:3]
    negative = [head for head in heads_of(ioi, "movers", -1) if head not in inhibition][-1:]
    movers = [head for head in heads_of(ioi, "movers", 1) if head not in inhibition][:3]
    return {"inhibition": inhibition, "negative mover": negative, "movers": movers}


def plans_of(chosen: Mapping[str, Sequence[str]]) -> dict[str, Plan]:
    """Where each intervention makes which heads attend."""
    away = {head: ("wrong", "cue") for head in chosen["inhibition"]}
    negative = {head: ("wrong", "answer") for head in chosen["negative mover"]}
    toward = {head: ("right", "answer") for head in chosen["movers"]}
    plans = {
        "inhibition": away,
        "negative mover": negative,
        "both": away | negative if away and negative else {},
        "movers": toward,
        "all": away | negative | toward if toward and (away or negative) else {},
    }
    return {name: plan for name, plan in plans.items() if plan}


def repair(context: Context, ioi: Result, labels: Result) -> Result:
    """The intervention of arXiv 2310.08744 (section 5) on the untuned model, with controls.

    On Colored Objects, inhibition heads and the negative mover are made to attend, at the last
    token, to the two wrong colours, and movers to the right one: with all their attention
    ("full"), or with as much as they give that role in IOI and the rest on the first token, where
    idle heads attend ("as in IOI"). Random heads of the same layers get the same patterns, so they
    are given the same information about which colour is right.

    right: share of prompts on which the right colour is the most likely of the table's three.
    top: of all tokens. fixed, broken: prompts that become right, or wrong; p_paired: McNemar's
    exact test of the two. null: the random sets' shares of right answers; share: the share of
    random sets that do as well.
    """
    model, task = context.model, context.task(OBJECTS, test=True)
    encoded = task.encode(model)
    places = _places(model, task)
    patterns = {side: evenly(mine) for side, mine in places.items()}
    basis = written(model, encoded.clean, patterns | {"rest": [{0: 1.0}] * len(task)})
    chosen = chosen_heads(ioi)
    listed: list[Change] = []
    spans: dict[str, slice] = {}
    rng = np.random.default_rng(context.settings.seed)
    for name, plan in plans_of(chosen).items():
        for kind, mixed in _kinds(plan, basis, labels).items():
            begin = 1 + len(listed)
            listed.append(impose(model, list(mixed.items()), f"{name}, {kind}"))
            for _ in range(context.settings.sets):
                drawn = matched_heads(model, list(plan), rng)
                listed.append(impose(model, [(drawn[head], z) for head, z in mixed.items()]))
            spans[f"{name}, {kind}"] = slice(begin, 1 + len(listed))
    seen = choices(model, task, listed)
    found: Result = {
        "n": len(task),
        "chance": seen.chance,
        "sets_drawn": context.settings.sets,
        "heads": chosen,
        "none": {
            kind: plain(share_estimate(int(values[0].sum()), len(task)))
            for kind, values in (("right", seen.right), ("top", seen.top))
        },
        "sets": {name: _paired(seen, rows) for name, rows in spans.items()},
    }
    if "both, full" in spans and chosen["movers"]:
        made = listed[spans["both, full"].start - 1]
        found["attention"] = _moved(model, task.first(WATCHED), made, chosen["movers"])
    return found


def _places(model: LanguageModel, task: Task) -> dict[str, list[list[int]]]:
    """The positions of the right and of the wrong colours in every prompt."""
    positions, roles = task.encode(model).positions, OBJECTS.roles
    wrong = zip(*map(positions, roles.wrong), strict=True)
    return {
        "right": [[place] for place in positions(roles.answer)],
        "wrong": [sorted(pair) for pair in wrong],
    }


def _kinds(
    plan: Plan, basis: Mapping[str, Written], labels: Result
) -> dict[str, dict[str, Written]]:
    """What each head of a plan writes, by how much of its attention is imposed."""
    found: dict[str, dict[str, Written]] = {"full": {}, "as in IOI": {}}
    for head, (side, relation) in plan.items():
        part = Component.parse(head)
        share = labels["attention"][relation][part.layer][part.index or 0]
        found["full"][head] = basis[side]
        found["as in IOI"][head] = blend(basis[side], basis["rest"], share)
    return found


def _paired(seen: Choices, rows: slice) -> Result:
    """A set's accuracy against its random sets, and prompt by prompt against the plain run."""
    found: Result = {}
    for kind, shares in (("right", seen.right), ("top", seen.top)):
        before, after = shares[0], shares[rows][0]
        fixed, broken = int((~before & after).sum()), int((before & ~after).sum())
        random = shares[rows][1:].mean(1)
        found[kind] = {
            **plain(share_estimate(int(after.sum()), len(after))),
            "fixed": fixed,
            "broken": broken,
            "p_paired": paired_p(after.astype(int) - before.astype(int)),
            "null": random.tolist(),
            "share": null_of(float(after.mean()), random).share,
        }
    return found


def over_all(sets: Mapping[str, Result]) -> dict[str, float]:
    """Every row's share as strong, corrected for the rows tried: max-T of Westfall and Young 1993.

    Random set i of every row is one draw. Each row's shares, its own and the random ones, are
    standardised (minus their mean, over their deviation). The result is the share of draws,
    counting the chosen heads, whose largest row is at least this one; at least 1 / (1 + draws).
    """
    shares = np.array([[x["right"]["mean"], *x["right"]["null"]] for x in sets.values()])
    spread = shares.std(1, keepdims=True)
    scaled = (shares - shares.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    best = scaled.max(0)
    return {
        name: float((best >= row[0] - 1e-12).mean()) for name, row in zip(sets, scaled, strict=True)
    }


def _moved(model: LanguageModel, task: Task, made: Change, movers: Sequence[str]) -> Result:
    """The change of the movers' attention to right and wrong colours under an intervention."""
    prompts = task.encode(model).clean
    lengths = [len(tokens) for tokens in prompts]
    last = [length - 1 for length in lengths]
    found: Result = {"n": len(task)}
    parts = [Component.parse(head) for head in movers]
    for side, keys in _places(model, task).items():
        before = attention_to(model, prompts, last, keys, draws=1).samples
        with intervene(model, made.last(1)):
            after = attention_to(model, prompts, last, keys, draws=1).samples
        change = np.stack([(after - before)[:, part.layer, part.index or 0] for part in parts])
        found[side] = plain(mean_estimate(torch.from_numpy(change.mean(0))))
    return found
