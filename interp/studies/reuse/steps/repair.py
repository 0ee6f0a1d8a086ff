"""Does forcing IOI's heads to attend on Colored Objects as they do in IOI repair the task?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.core.components import Component
from interp.core.nulls import max_t_shares, null_of, paired_p
from interp.core.prompts import Task
from interp.heads.attention import attention_to
from interp.models.batches import Batch
from interp.models.language_model import Address, Hook, LanguageModel
from interp.runs.change import Change
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation
from interp.studies.formatting import place
from interp.studies.reuse.settings import Choices, ReuseContext, choices
from interp.studies.reuse.steps.circuits import heads_of
from interp.studies.reuse.tasks import OBJECTS
from interp.studies.steps import Result, mean_of, share_of

WATCHED = 48
"""Prompts on which the movers' attention is read."""

AttentionPlan = Mapping[str, tuple[str, str]]
"""Head -> (the colours it is made to attend to, the role it attends to in IOI)."""

Pattern = Sequence[Mapping[int, float]]
"""For each prompt the attention of its last token: position -> weight, adding up to 1."""
Written = Mapping[Address, Tensor]
"""Site z of every layer, (prompts, 1, heads, d_head)."""


def chosen_heads(ioi: Result) -> dict[str, list[str]]:
    """As many heads as published, chosen on IOI alone.

    The three strongest of the inhibition stage, the most negative mover, and the three strongest
    movers; fewer if a stage has fewer of that sign.
    """
    inhibition = heads_of(ioi, "inhibition", 1)[:3]
    negative = [head for head in heads_of(ioi, "movers", -1) if head not in inhibition][-1:]
    movers = [head for head in heads_of(ioi, "movers", 1) if head not in inhibition][:3]
    return {"inhibition": inhibition, "negative mover": negative, "movers": movers}


def plans_of(chosen: Mapping[str, Sequence[str]]) -> dict[str, AttentionPlan]:
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


def repair(context: ReuseContext, ioi: Result, labels: Result) -> Result:
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
        "none": {"right": share_of(seen.right[0]), "top": share_of(seen.top[0])},
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
    plan: AttentionPlan, basis: Mapping[str, Written], labels: Result
) -> dict[str, dict[str, Written]]:
    """What each head of a plan writes, by how much of its attention is imposed."""
    found: dict[str, dict[str, Written]] = {"full": {}, "as in IOI": {}}
    for head, (side, relation) in plan.items():
        layer, index = place(head)
        share = labels["attention"][relation][layer][index]
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
            **share_of(after),
            "fixed": fixed,
            "broken": broken,
            "p_paired": paired_p(after.astype(int) - before.astype(int)),
            "null": random.tolist(),
            "share": null_of(float(after.mean()), random).share,
        }
    return found


def over_all(sets: Mapping[str, Result]) -> dict[str, float]:
    """Every row's share as strong, corrected for the rows tried: `max_t_shares`."""
    rights = [x["right"] for x in sets.values()]
    shares = max_t_shares([x["mean"] for x in rights], [x["null"] for x in rights])
    return dict(zip(sets, shares, strict=True))


def _moved(model: LanguageModel, task: Task, made: Change, movers: Sequence[str]) -> Result:
    """The change of the movers' attention to right and wrong colours under an intervention."""
    prompts = task.encode(model).clean
    last = [len(tokens) - 1 for tokens in prompts]
    found: Result = {"n": len(task)}
    for side, keys in _places(model, task).items():
        before = attention_to(model, prompts, last, keys, draws=1).samples
        with intervene(model, made.last(1)):
            after = attention_to(model, prompts, last, keys, draws=1).samples
        change = np.stack([(after - before)[:, *place(head)] for head in movers])
        found[side] = mean_of(change.mean(0))
    return found


def written(
    model: LanguageModel, prompts: Sequence[Sequence[int]], patterns: Mapping[str, Pattern]
) -> dict[str, Written]:
    """What every head would write if its last token attended by each pattern.

        z[h] = sum over positions j of pattern[j] * v[j, key/value head of h]

    If the weight is on earlier tokens only, setting z to this imposes the pattern exactly, whatever
    else is changed at the last token, because earlier tokens do not see the last one.
    """
    group = model.n_heads // model.n_kv_heads
    shape = (len(prompts), 1, model.n_heads, model.d_head)
    addresses = [(layer, "z") for layer in range(model.n_layers)]
    found = {n: {at: torch.zeros(shape, dtype=model.dtype) for at in addresses} for n in patterns}

    def reader(layer: int) -> Hook:
        def hook(value: Tensor, batch: Batch) -> Tensor:
            for row, prompt in enumerate(batch.prompts.tolist()):
                for name, pattern in patterns.items():
                    mixed = torch.zeros_like(value[row, 0])
                    for position, weight in pattern[prompt].items():
                        mixed = mixed + weight * value[row, batch.column(row, position)]
                    heads = mixed.repeat_interleave(group, 0)
                    found[name][layer, "z"][prompt, 0] = heads.detach().cpu()
            return value

        return hook

    hooks = {(layer, "v"): [reader(layer)] for layer in range(model.n_layers)}
    with torch.no_grad():
        for _ in model.run([tuple(prompt) for prompt in prompts], hooks=hooks):
            pass
    return {name: dict(values) for name, values in found.items()}


def evenly(places: Sequence[Sequence[int]]) -> Pattern:
    """Equal attention to each place, none elsewhere."""
    return [dict.fromkeys(mine, 1 / len(mine)) for mine in places]


def blend(one: Written, other: Written, share: float) -> Written:
    """What heads write if `share` of their attention follows one pattern and the rest another."""
    return {at: share * one[at] + (1 - share) * other[at] for at in one}


def impose(model: LanguageModel, wanted: Sequence[tuple[str, Written]], name: str = "") -> Change:
    """An ablation that sets each head, at the last token, to what its own pattern writes."""
    values: dict[Address, Tensor] = {}
    for head, mixed in wanted:
        layer, index = place(head)
        merged = values.setdefault((layer, "z"), mixed[layer, "z"].clone())
        merged[:, :, index] = mixed[layer, "z"][:, :, index]
    return make_ablation(model, [head for head, _ in wanted], "patch", values=values, name=name)


def matched_heads(
    model: LanguageModel, heads: Sequence[str], rng: np.random.Generator
) -> dict[str, str]:
    """For every head another one of its layer; none twice, and none of the heads themselves.

    If a layer has too few others, any of its heads are drawn, which makes the test conservative.
    """
    drawn: dict[str, str] = {}
    for layer in sorted({place(head)[0] for head in heads}):
        mine = [head for head in dict.fromkeys(heads) if place(head)[0] == layer]
        taken = {place(head)[1] for head in mine}
        free = [i for i in range(model.n_heads) if i not in taken]
        pool = free if len(free) >= len(mine) else list(range(model.n_heads))
        picked = rng.choice(pool, len(mine), replace=False).tolist()
        drawn |= {h: str(Component(layer, "z", i)) for h, i in zip(mine, picked, strict=True)}
    return drawn
