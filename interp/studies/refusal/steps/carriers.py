"""What carries a steering vector from its layer to the output: attention, values, MLPs, layers.

After arXiv 2604.08524, which finds that steering works through what heads write (the OV circuit)
and hardly through where they look: with all attention scores frozen it loses 8.75 % of its effect,
and 90 to 99 % of the vector's entries can be left out. Only its abstract was read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from interp.core.statistics import ratio_estimate
from interp.refusal.score import score_refusals
from interp.results.direction import Direction
from interp.runs.change import Change
from interp.runs.hooks import intervene
from interp.runs.kinds import patch
from interp.steering.edits import add_direction
from interp.steering.runs import steering_change
from interp.studies.refusal.settings import LEAST, RefusalContext
from interp.studies.refusal.steps.directions import unembedding_direction
from interp.studies.steps import Result, mean_of, plain

FROZEN = {
    "where heads look (all patterns)": ("pattern",),
    "what attention writes": ("attn_out",),
    "what MLPs write": ("mlp_out",),
    "both: the vector's own way to the output": ("attn_out", "mlp_out"),
}
"""What is frozen at its value in the plain run, from the steered layer on."""

KEPT = (0.5, 0.1, 0.05, 0.01)
"""Shares of the vector's entries that are kept, the largest first."""

ROWS, RANDOM = 12, 3
"""Rows that are steered; random choices of entries."""

VERSION = 2
"""Of what the step computes; part of its key."""


def carriers(context: RefusalContext, own: Direction) -> Result:
    """How much of a steering's effect is left when something keeps its plain value. Exact runs.

    The direction is used once, at its layer and every token of the prompt: "added" to answered test
    rows (refusals are induced), and "subtracted" from refused ones. A share is the change of the
    mean refusal score that is left, over the whole change:

        (score steered with parts frozen - score plain) / (score steered - score plain)

    frozen: `FROZEN`, and every layer's attention and MLP alone. sparse: the steering with a share
    of the direction's entries, the largest or random ones, the others 0, at the same length.
    rival: the same of the unembedding direction, which needs nothing in between; None if its change
    is not apart from 0. left_out: why a side is missing: too few rows, or a change that is not
    apart from 0, so that no share of it means anything.
    """
    sides = {
        "added": (1.0, context.rows("test", should="answer", refused=False)),
        "subtracted": (-1.0, context.rows("test", should="refuse", refused=True)),
    }
    found: Result = {"sides": {}, "left_out": {}}
    rival = unembedding_direction(context, own)
    for name, (sign, rows) in sides.items():
        few = context.few(rows, ROWS)
        if len(few) < LEAST:
            found["left_out"][name] = f"{len(few)} rows"
            continue
        one = _of(context, own, sign, few)
        if "frozen" not in one:
            change = "the score changes by {mean:+z.2f} [{low:z.2f}, {high:z.2f}]".format(
                **one["change"]
            )
            found["left_out"][name] = f"{change}, which is not apart from 0"
            continue
        other = _of(context, rival, sign, few, layers=False).get("frozen")
        found["sides"][name] = {"n": len(few), **one, "rival": other}
    return plain(found)


def _of(
    context: RefusalContext,
    direction: Direction,
    sign: float,
    rows: Sequence[int],
    *,
    layers: bool = True,
) -> Result:
    model, prompts = context.model, context.prompts[rows]
    texts = list(prompts.rows)

    def scores(vector: Tensor, frozen: Change | None = None) -> Tensor:
        steering = add_direction(model, replace(direction, vector=vector), coefficient=sign)
        change = steering_change(model, steering, prompts)
        with intervene(model, change if frozen is None else change + frozen):
            return score_refusals(model.last_logits(texts).cpu(), context.tokens).double()

    before, after = context.scores(rows).double(), scores(direction.vector)
    gap = after - before
    change = mean_of(gap)
    if change["low"] <= 0 <= change["high"]:
        return {"change": change}

    def left(some: Tensor) -> Result:
        return vars(ratio_estimate(some - before, gap))

    every = range(direction.layer, model.n_layers)
    sites = dict.fromkeys(site for some in FROZEN.values() for site in some)
    values = patch(model, [f"L{layer}.{site}" for layer in every for site in sites], texts)

    def freeze(sites: Sequence[str], at: Collection[int]) -> Change:
        edits = [one for one in values.edits if one.site in sites and one.layer in at]
        return replace(values, edits=tuple(edits))

    frozen = {
        name: left(scores(direction.vector, freeze(sites, every)))
        for name, sites in context.counted(FROZEN.items())
    }
    found: Result = {
        "plain": float(before.mean()),
        "steered": float(after.mean()),
        "change": change,
        "frozen": frozen,
    }
    if layers:
        found["layers"] = {
            site: [
                left(scores(direction.vector, freeze([site], [layer])))
                for layer in context.counted(every)
            ]
            for site in ("attn_out", "mlp_out")
        }
        found["first"] = direction.layer
        found["sparse"] = [_sparse(direction, share, scores, left) for share in KEPT]
    return found


def _sparse(
    direction: Direction,
    share: float,
    scores: Callable[[Tensor], Tensor],
    left: Callable[[Tensor], Result],
) -> Result:
    """The effect of a share of the vector's entries: the largest, and random ones."""
    vector = direction.vector
    kept = max(1, round(share * len(vector)))
    generator = torch.Generator().manual_seed(0)
    orders = [vector.abs().argsort(descending=True)]
    orders += [torch.randperm(len(vector), generator=generator) for _ in range(RANDOM)]
    effects = []
    for order in orders:
        part = torch.zeros_like(vector)
        part[order[:kept]] = vector[order[:kept]]
        effects.append(left(scores(part * (vector.norm() / part.norm()))))
    return {"share": share, "kept": kept, "largest": effects[0], "random": effects[1:]}
