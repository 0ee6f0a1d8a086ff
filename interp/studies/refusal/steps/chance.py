"""Chance levels: random directions and random heads in place of the chosen ones.

Measured by the refusal score of the next token: twenty draws cost less than one set of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.core.nulls import null_of
from interp.core.statistics import mean_estimate, share_estimate
from interp.refusal.score import log_odds
from interp.results.direction import random_direction
from interp.runs.kinds import make_ablation, random_like
from interp.runs.next_tokens import ablate
from interp.steering.edits import add_direction
from interp.studies.refusal.settings import Context, Places
from interp.studies.steps import Result, plain

DRAWS, ROWS = 20, 8
SUBTRACTED, ZEROED = "add - over-refusal", "zero triggers of over-refusals"
SIDES = {"over-refused": "answer", "properly refused": "refuse"}


def chance(context: Context, places: Places, dose: float | None, heads: Sequence[str]) -> Result:
    """Two selections compared with twenty random ones each, on refused test rows.

    The over-refusal direction subtracted at a dose (None: left out), against random directions of
    its length at its place; and heads zeroed at all tokens (empty: left out), against random heads
    of their layers. fall: plain minus changed refusal score, nats. released: share of rows whose
    score changes sign.
    """
    rows = {
        name: context.few(context.rows("test", should=should, refused=True), ROWS)
        for name, should in SIDES.items()
    }
    rows = {name: some for name, some in rows.items() if len(some) > 1}
    found: Result = {"n": {name: len(some) for name, some in rows.items()}}
    ways: dict[str, Callable[[Sequence[int]], Tensor]] = {}
    if dose is not None and "over-refusal" in places:
        ways[SUBTRACTED] = lambda some: _subtracted(context, places, dose, some)
    if heads:
        ways[ZEROED] = lambda some: _zeroed(context, heads, some)
    for name, scores in ways.items():
        found[name] = {side: _judged(scores(some)) for side, some in rows.items()}
    return found


def _subtracted(context: Context, places: Places, dose: float, rows: Sequence[int]) -> Tensor:
    """Scores: one row for the plain run, the chosen direction and each random one."""
    own = context.direction("over-refusal", places["over-refusal"])
    drawn = [own, *(random_direction(own, seed=seed) for seed in range(DRAWS))]
    edits = [add_direction(context.model, one, coefficient=-dose) for one in drawn]
    return torch.stack([context.scores(rows, edit) for edit in context.counted((None, *edits))])


def _zeroed(context: Context, heads: Sequence[str], rows: Sequence[int]) -> Tensor:
    """Scores: one row for the plain run, the chosen heads zeroed and each random set."""
    model = context.model
    sets = [list(heads), *random_like(model, heads, DRAWS, seed=context.settings.seed)]
    seen = ablate(
        model,
        [context.prompts.rows[i] for i in rows],
        [make_ablation(model, labels) for labels in sets],
        tokens=context.tokens,
        where="all",
    )
    return log_odds(torch.from_numpy(seen.probabilities.sum(-1)))


def _judged(scores: Tensor) -> Result:
    before, own, *random = scores.double()
    flipped = [int(((before > 0) & (after <= 0)).sum()) for after in (own, *random)]
    among = int((before > 0).sum())
    falls = np.array([float((before - after).mean()) for after in random])
    found: Result = {
        "fall": plain(mean_estimate(before - own)),
        "released": plain(share_estimate(flipped[0], among)),
        "fall_null": None,
        "released_null": None,
    }
    if not random:
        return found
    found["fall_null"] = plain(null_of(found["fall"]["mean"], falls))
    if among:
        shares = np.array(flipped[1:]) / among
        found["released_null"] = plain(null_of(found["released"]["mean"], shares))
    return found
