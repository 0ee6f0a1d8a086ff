"""Do heads found on IOI repair Colored Objects, if they are told which colours are wrong?"""

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
from interp.studies.reuse.steps.circuits import heads_of, label, strongest
from interp.studies.reuse.tasks import OBJECTS
from interp.studies.steps import Result, mean_of, share_of

WATCHED = 48
"""Prompts on which the movers' attention is read."""

NEAR = 3
"""How many layers away the random heads for a single head may be."""

Pattern = Sequence[Mapping[int, float]]
"""For each prompt the attention of its last token: position -> weight, adding up to 1."""
Written = Mapping[Address, Tensor]
"""Site z of every layer, (prompts, 1, heads, d_head)."""


def candidates(ioi: Result) -> list[str]:
    """The strongest heads of the stages that act at the last token, twice as many as they list."""
    found = {}
    for stage in ("movers", "inhibition"):
        values = np.array(ioi["stages"][stage]["values"])
        found |= dict.fromkeys(label(h, ioi["n_heads"]) for h in strongest(values, 2 * ioi["k"]))
    return list(found)


def chosen_heads(ioi: Result, named: Mapping[str, Result]) -> dict[str, list[str]]:
    """As many heads as published, chosen on IOI alone.

    The three strongest of the inhibition stage; the most negative head of the movers' stage that is
    a suppressor; and the three strongest of that stage that are movers. Fewer if there are fewer.
    """
    roles = {head: x["role"] for head, x in named.items()}
    inhibition = heads_of(ioi, "inhibition", 1)[:3]
    rest = [head for head in heads_of(ioi, "movers") if head not in inhibition]
    against = [h for h in heads_of(ioi, "movers", -1) if h in rest and roles.get(h) == "suppressor"]
    movers = [head for head in rest if roles.get(head) == "mover"]
    return {"inhibition": inhibition, "negative mover": against[-1:], "movers": movers[:3]}


def repair(context: ReuseContext, ioi: Result, named: Mapping[str, Result]) -> Result:
    """Heads of IOI told, one by one, which colours are wrong; with controls.

    On Colored Objects the attention of a head's last token is set to the two wrong colours, half to
    each, and to nothing else. Rows: every one of the `candidates` of IOI alone, with its role on
    IOI (`interp.studies.reuse.steps.heads.named`), and the sets of arXiv 2310.08744, section 5: the
    inhibition heads, and these with the negative mover ("both"). Random heads are given the same
    colours: for a set, heads of the same layers; for one head, others at most `NEAR` layers away
    that are no candidates.

    right: share of prompts on which the right colour is the most likely of the table's three.
    top: of all tokens. fixed, broken: prompts that become right, or wrong; p_paired: McNemar's
    exact test of the two. null: the random sets' shares of right answers; share: the share of
    random sets that do as well.

    Args:
        context: the models and settings.
        ioi: the circuit of IOI.
        named: `named` on IOI.
    """
    model, task = context.model, context.task(OBJECTS, test=True)
    places, draws = _places(model, task), context.settings.sets
    told = written(model, task.encode(model).clean, {"wrong": evenly(places["wrong"])})["wrong"]
    chosen, single = chosen_heads(ioi, named), candidates(ioi)
    rng = np.random.default_rng(context.settings.seed)
    rows: dict[str, list[tuple[str, ...]]] = {}
    inhibition, negative = chosen["inhibition"], chosen["negative mover"]
    sets = {"both": [*inhibition, *negative] if inhibition and negative else []}
    for name, heads in (sets | {"inhibition": inhibition}).items():
        if heads:
            drawn = [matched_heads(model, heads, rng) for _ in range(draws)]
            rows[name] = [tuple(heads), *(tuple(x[head] for head in heads) for x in drawn)]
    for head in single:
        near = others_near(model, head, single)
        if near:
            picked = rng.permutation(near)[:draws].tolist()
            rows[head] = [(head,), *((other,) for other in picked)]
    listed = list(dict.fromkeys(heads for row in rows.values() for heads in row))
    made = {heads: impose(model, heads, told) for heads in listed}
    seen = choices(model, task, list(made.values()))
    at = {heads: 1 + i for i, heads in enumerate(listed)}
    found: Result = {
        "n": len(task),
        "chance": seen.chance,
        "sets_drawn": draws,
        "heads": chosen,
        "roles": {head: named.get(head) for head in single},
        "none": {"right": share_of(seen.right[0]), "top": share_of(seen.top[0])},
        "sets": {name: _paired(seen, [at[heads] for heads in row]) for name, row in rows.items()},
    }
    if "both" in rows and chosen["movers"]:
        change = made[rows["both"][0]]
        found["attention"] = _moved(model, task.first(WATCHED), change, chosen["movers"])
    return found


def _places(model: LanguageModel, task: Task) -> dict[str, list[list[int]]]:
    """The positions of the right and of the wrong colours in every prompt."""
    positions, roles = task.encode(model).positions, OBJECTS.roles
    wrong = zip(*map(positions, roles.wrong), strict=True)
    return {
        "right": [[place] for place in positions(roles.answer)],
        "wrong": [sorted(pair) for pair in wrong],
    }


def _paired(seen: Choices, rows: Sequence[int]) -> Result:
    """A set's accuracy against its random sets, and prompt by prompt against the plain run.

    rows: the set's row of `seen`, and those of its random sets.
    """
    found: Result = {}
    for kind, shares in (("right", seen.right), ("top", seen.top)):
        before, (after, *others) = shares[0], shares[list(rows)]
        fixed, broken = int((~before & after).sum()), int((before & ~after).sum())
        random = np.mean(others, 1)
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


def impose(model: LanguageModel, heads: Sequence[str], told: Written) -> Change:
    """An ablation that sets heads, at the last token, to what a pattern writes."""
    layers = {place(head)[0] for head in heads}
    values = {(layer, "z"): told[layer, "z"] for layer in layers}
    return make_ablation(model, heads, "patch", values=values)


def others_near(model: LanguageModel, head: str, excluded: Sequence[str]) -> list[str]:
    """The heads at most `NEAR` layers from a head, without the excluded ones."""
    layer = place(head)[0]
    layers = range(max(0, layer - NEAR), min(model.n_layers, layer + NEAR + 1))
    every = [str(Component(k, "z", i)) for k in layers for i in range(model.n_heads)]
    return [other for other in every if other not in excluded]


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
