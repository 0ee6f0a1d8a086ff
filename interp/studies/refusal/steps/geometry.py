"""Angles between the directions of refusal, with what noise alone would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from interp.core.errors import InterpError
from interp.core.folds import joined
from interp.core.statistics import Estimate, bootstrap_weights, range_of_draws
from interp.results.direction import DirectionKind
from interp.steering.edits import ablate_direction
from interp.steering.geometry import compare_directions, representational_independence, sample_cone
from interp.studies.refusal.settings import KINDS, LEAST, Context
from interp.studies.refusal.steps.directions import FALSE, SELECTED
from interp.studies.steps import Result, plain

CONE, SPLITS, SHUFFLES, BOOTSTRAP = 8, 5, 40, 1000
VERSION = 3
"""Version of the step; part of its key."""


def geometry(context: Context, place: Sequence[int]) -> Result:
    """Are the directions one direction? Cosines by layer, with a ceiling and a floor.

    Ceiling: cosines of the same direction from two halves of its rows. Floor: cosines of the
    refusal direction with over-refusal directions whose labels are shuffled inside each task (with
    refusal directions of shuffled labels if there is no over-refusal). `cosine`: that of the two
    directions at the chosen layer, with a bootstrap over base texts. All at the chosen position,
    pointing towards refusal.
    """
    position = place[0]
    there = {kind: x for kind in KINDS if (x := context.candidates(kind)) is not None}
    vectors = {kind: x.vectors[x.positions.index(position)] for kind, x in there.items()}
    vectors |= _tasks(context, position)
    names = list(vectors)
    found: Result = {"names": names, "position": position, "layer": place[1]}
    if len(vectors) > 1:
        compared = compare_directions(vectors)
        found["cosines"] = compared.cosines.tolist()
        found["components"] = compared.components.tolist()
    found["ceiling"] = {
        kind: _halves(context, kind, position) for kind in KINDS if kind in there and kind != FALSE
    }
    found["floor"] = _floor(context, position)
    kinds = SELECTED
    if all(kind in there for kind in kinds):
        found["cosine"] = plain(cosine_interval(context, place))
        rows = context.few(context.rows("test"), 2 * context.settings.select)
        one, other = (context.direction(kind, place) for kind in kinds)
        between = representational_independence(context.model, one, other, context.prompts[rows])
        found["independence"] = {
            f"{kinds[1]} removed, along {kinds[0]}": plain(between.first),
            f"{kinds[0]} removed, along {kinds[1]}": plain(between.second),
            "n": len(rows),
        }
        found["cone"] = _cone(context, place)
    return found


def _tasks(context: Context, position: int) -> dict[str, torch.Tensor]:
    """Refused minus answered of each over-refused task: (layers, d_model)."""
    found = {}
    for task in context.refused_tasks:
        sides = [context.rows("find", refused=x, tasks=[task]) for x in (True, False)]
        if min(map(len, sides)) >= LEAST:
            made = context.difference("behaviour", *sides)
            found[f"refused - answered, {task}"] = made.vectors[made.positions.index(position)]
    return found


def _halves(context: Context, kind: DirectionKind, position: int) -> list[list[float]]:
    """(splits, layers) cosines of a direction from two halves of the rows of each class.

    Rows with equal prompts are in the same half.
    """
    classes = context.classes(kind)
    sides = [_states(context, rows, position) for rows in classes]
    groups = [torch.from_numpy(joined([context.cases[i].prompt for i in rows])) for rows in classes]
    generator = torch.Generator().manual_seed(context.settings.seed)
    found = []
    for _ in range(SPLITS):
        halves = []
        orders = [torch.randperm(int(group.max()) + 1, generator=generator) for group in groups]
        for half in (0, 1):
            means = [
                side[torch.isin(group, order[half::2])].mean(0)
                for side, group, order in zip(sides, groups, orders, strict=True)
            ]
            halves.append(means[0] - means[1])
        found.append(cosine_similarity(*halves, dim=-1).tolist())
    return found


def _floor(context: Context, position: int) -> list[list[float]]:
    """(shuffles, layers) cosines with the true direction of directions of shuffled labels."""
    classes = context.classes(SELECTED[0])
    proper = [_states(context, rows, position).mean(0) for rows in classes]
    if context.candidates(SELECTED[1]) is not None:
        classes = context.classes(SELECTED[1])
    rows = [*classes[0], *classes[1]]
    states = _states(context, rows, position)
    marks = torch.tensor([True] * len(classes[0]) + [False] * len(classes[1]))
    tasks = [context.cases[i].task for i in rows]
    generator = torch.Generator().manual_seed(context.settings.seed)
    found = []
    for _ in range(SHUFFLES):
        drawn = marks.clone()
        for task in dict.fromkeys(tasks):
            mine = torch.tensor([i for i, name in enumerate(tasks) if name == task])
            drawn[mine] = marks[mine][torch.randperm(len(mine), generator=generator)]
        apart = states[drawn].mean(0) - states[~drawn].mean(0)
        found.append(cosine_similarity(apart, proper[0] - proper[1], dim=-1).tolist())
    return found


def cosine_interval(
    context: Context, place: Sequence[int], *, kinds: Sequence[DirectionKind] = SELECTED
) -> Estimate:
    """The cosine of two kinds of direction at a place, with a bootstrap over base texts.

    Directions of resampled rows are noisier than those of all rows, so their cosine is lower. The
    interval is the reversed (basic) one in Fisher's z, which corrects this bias.
    """
    sides = [side for kind in kinds for side in context.classes(kind)]
    states = [context.ends(rows)[:, place[0], place[1]].double().numpy() for rows in sides]
    bases = [[context.cases[i].unit for i in rows] for rows in sides]
    names = {name: i for i, name in enumerate(dict.fromkeys(x for side in bases for x in side))}
    drawn = bootstrap_weights(len(names), BOOTSTRAP, seed=context.settings.seed)

    def cosines(weights: np.ndarray) -> np.ndarray:
        means = []
        for side, x in zip(bases, states, strict=True):
            each = weights[:, [names[name] for name in side]]
            with np.errstate(invalid="ignore"):
                means.append(each @ x / each.sum(1, keepdims=True))
        one, other = means[0] - means[1], means[2] - means[3]
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        return np.clip((one * other).sum(1) / lengths, -1 + 1e-9, 1 - 1e-9)

    value = float(cosines(np.ones((1, len(names))))[0])
    resampled = cosines(drawn)
    low, high = range_of_draws(np.arctanh(resampled[np.isfinite(resampled)]))
    middle = 2 * np.arctanh(value)
    n = len(names)
    ends = (float(np.tanh(middle - end)) for end in (high, low))
    return Estimate(mean=value, low=next(ends), high=next(ends), n=n)


def _states(context: Context, rows: Sequence[int], position: int) -> torch.Tensor:
    """(rows, layers, d_model) block inputs at a position counted from the end."""
    return context.ends(rows)[:, position]


def _cone(context: Context, place: Sequence[int]) -> Result:
    """Mean refusal score of refused test rows with a random vector of the cone ablated."""
    rows = context.few(context.rows("test", refused=True), context.settings.select)
    pair = [context.direction(kind, place) for kind in SELECTED]
    try:
        drawn = sample_cone([one.towards_refusal for one in pair], CONE, seed=context.settings.seed)
    except InterpError as error:
        return {"skipped": str(error)}
    edits = [ablate_direction(context.model, replace(pair[0], vector=vector)) for vector in drawn]
    scores = [float(context.scores(rows, edit).mean()) for edit in edits]
    return {"n": len(rows), "plain": float(context.scores(rows).mean()), "ablated": scores}
