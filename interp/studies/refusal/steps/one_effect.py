"""Directions of different kinds of refusal: are they apart, and do they have one effect?

After arXiv 2602.02132, which finds distinct directions for eleven categories of refusal and the
same trade-off of refusals and over-refusals along each of them. Departs from it: what decides is
how far a direction lowers the refusals of *other* groups; answered rows are shown beside them. Only
the abstract was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
import torch

from interp.results.direction import Direction, random_direction
from interp.steering.edits import add_direction
from interp.studies.refusal.settings import RefusalContext
from interp.studies.refusal.steps.directions import (
    like_direction,
    states_at,
    unembedding_direction,
)
from interp.studies.refusal.steps.geometry import halves_of, measured_twice
from interp.studies.steps import Result, mean_of, plain

LEAST_REFUSED = 8
"""The fewest refused rows to find a group's direction with."""

DOSES = (-1.0, -0.5, 0.5, 1.0)
"""Multiples of the study's own direction; all directions have its length."""

ROWS, RANDOM = 8, 5
"""Refused test rows of each group (twice as many answered ones); random directions."""

ENOUGH = 0.8
"""The share of a group's own direction that others must reach to have the same effect."""

Groups = dict[str, tuple[list[int], list[int]]]


def groups(context: RefusalContext, part: str) -> Groups:
    """Refused and answered rows by what is refused: each kind of request, each over-refused task.

    Answered rows have the kind or the task of the refused ones. Groups with fewer than
    `LEAST_REFUSED` refused or answered find rows are left out of both parts.
    """
    refused = context.rows("find", refused=True)
    wanted = {(context.cases[i].should, _name(context, i)) for i in refused}
    found: Groups = {}
    for should, name in sorted(wanted, reverse=True):
        sides = []
        for at in ("find", part):
            mine = [
                i
                for i in context.rows(at, should=should, refused=True)
                if _name(context, i) == name
            ]
            sides.append((mine, _answered(context, at, mine)))
        if min(map(len, sides[0])) >= LEAST_REFUSED and min(map(len, sides[1])) > 1:
            found[name if should == "refuse" else f"over-refused: {name}"] = sides[1]
    return found


def _name(context: RefusalContext, i: int) -> str:
    case = context.cases[i]
    return case.kind if case.should == "refuse" else case.task


def _answered(context: RefusalContext, part: str, refused: Sequence[int]) -> list[int]:
    """Answered rows to answer: of the tasks of the refused ones, and of their kind if there are."""
    tasks = {context.cases[i].task for i in refused}
    rows = context.rows(part, should="answer", refused=False, tasks=tasks)
    kinds = {context.cases[i].kind for i in refused}
    return [i for i in rows if context.cases[i].kind in kinds] or rows


def one_effect(context: RefusalContext, own: Direction, place: Sequence[int]) -> Result:
    """The angle between every two directions, and what each does to the refusals of all groups.

    A group's direction is refused minus answered find rows at the study's place. cosines: of every
    two. reach: what a cosine would be if the two were one direction, from halves of their rows
    (Spearman-Brown). Each direction is added at its layer, at doses of one length. refused,
    answered: mean refusal score of test rows of all groups by dose, in nats. drop: how far it
    lowers the score of every group's refused rows at dose -1, at most `ROWS` rows a group. others:
    each direction's drop on the other groups' rows, beside that by these rows' own directions.
    Random directions and the unembedding direction have the same length and place.
    """
    found = groups(context, "find")
    if len(found) < 2:
        return {"skipped": f"{len(found)} groups of at least {LEAST_REFUSED} refused find rows"}
    vectors = {}
    for name, sides in found.items():
        first, second = (states_at(context, rows, place).mean(0) for rows in sides)
        vectors[name] = like_direction(own, first - second, name)
    test = {name: side for name, side in groups(context, "test").items() if name in vectors}
    rows = {name: context.few(side[0], ROWS) for name, side in test.items()}
    calm = context.few(sorted({i for side in test.values() for i in side[1]}), 2 * ROWS)
    refused = [i for some in rows.values() for i in some]
    before = context.scores(refused), context.scores(calm)

    def curves(direction: Direction, doses: Sequence[float]) -> dict[float, list[torch.Tensor]]:
        edits = {x: add_direction(context.model, direction, coefficient=x) for x in doses}
        return {x: [context.scores(some, e) for some in (refused, calm)] for x, e in edits.items()}

    tried = {**vectors, "unembedding": unembedding_direction(context, own)}
    seen = {name: curves(direction, DOSES) for name, direction in context.counted(tried.items())}
    drawn = [curves(random_direction(own, seed=k), (DOSES[0],)) for k in range(RANDOM)]
    drops = {name: before[0] - curve[DOSES[0]][0] for name, curve in seen.items()}
    marks = np.array([name for name, some in rows.items() for _ in some])
    halves = [halves_of(context, found[name], place[0]) for name in vectors]
    reach = [measured_twice(float(np.mean(half, 0)[place[1]])) for half in halves]
    directions = list(vectors.values())
    return plain(
        {
            "groups": list(vectors),
            "n": {name: list(map(len, sides)) for name, sides in found.items()},
            "rows": {name: len(some) for name, some in rows.items()},
            "answered": len(calm),
            "length": own.norm,
            "doses": list(DOSES),
            "cosines": [[float(a.unit @ b.unit) for a in directions] for b in directions],
            "reach": [[sqrt(a * b) for a in reach] for b in reach],
            "plain": [mean_of(x) for x in before],
            "curves": {
                name: [[mean_of(x) for x in curve[dose]] for dose in DOSES]
                for name, curve in seen.items()
            },
            "drop": {
                name: {group: mean_of(drop[torch.from_numpy(marks == group)]) for group in rows}
                for name, drop in drops.items()
            },
            "random": [float((before[0] - curve[DOSES[0]][0]).mean()) for curve in drawn],
            "others": _others(drops, marks, list(vectors)),
        }
    )


def _others(drops: dict[str, torch.Tensor], marks: np.ndarray, names: list[str]) -> Result:
    """Each direction's drop on the other groups' rows, beside that of these rows' own directions.

    beyond: the drop minus `ENOUGH` times that of the row's own direction, paired by row.
    """
    own = torch.stack([drops[name][i] for i, name in enumerate(marks)])
    found: Result = {}
    for name in names:
        other = torch.from_numpy(marks != name)
        theirs, mine = own[other], drops[name][other]
        found[name] = {
            "drop": mean_of(mine),
            "own": mean_of(theirs),
            "share": float(mine.mean() / theirs.mean()),
            "beyond": mean_of(mine - ENOUGH * theirs),
        }
    return found
