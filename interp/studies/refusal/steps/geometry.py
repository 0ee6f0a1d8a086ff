"""Where refused and answered prompts separate, and the angles between directions of refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from interp.core.errors import InterpError
from interp.core.folds import joined
from interp.core.statistics import Estimate, bootstrap_weights, range_of_draws
from interp.probing.probes import ProbeMetrics, evaluation
from interp.probing.separation import CrossValidated, probe_cv, separation
from interp.results.direction import Direction, DirectionKind
from interp.steering.edits import ablate_direction
from interp.steering.geometry import compare_directions, representational_independence, sample_cone
from interp.studies.refusal.settings import KINDS, LEAST, RefusalContext
from interp.studies.refusal.steps.directions import FALSE, SELECTED
from interp.studies.steps import Result, plain

CONE, SPLITS, SHUFFLES, BOOTSTRAP = 8, 5, 40, 1000
VERSION = 3
"""Version of the step; part of its key."""

FOLDS, PROBE_SHUFFLES = 4, 5
MOST = 400
"""The most rows of a silhouette, which compares all pairs."""


def class_separation(context: RefusalContext) -> Result:
    """Silhouettes and probes at the last token of the prompt, of every layer's residual stream.

    Silhouettes (and distances of rows to their centroid over distances of centroids) of tasks, and
    of refused against answered rows within a task, in all dimensions. Logistic probes, every row
    judged by one that has not seen its base text: for refused against answered; among refused rows
    for over-refused against properly refused, which differ in task too; and for the topic: the
    first probe, asked for the kind of rows that are all answered. If it separates these, it reads
    what a text is about rather than whether it will be refused.
    """
    rows = context.few([*context.rows(refused=True), *context.rows(refused=False)], MOST)
    sets = {"tasks": (rows, [context.cases[i].task for i in rows])}
    for task in context.refused_tasks:
        both = context.few(
            [i for x in (True, False) for i in context.rows(refused=x, tasks=[task])], MOST
        )
        marks = [str(context.became(i)) for i in both]
        sets[f"refused / answered, {task}"] = (both, marks)
    found: Result = {"n": len(rows), "silhouettes": {}, "within / between": {}}
    for name, (some, marks) in sets.items():
        if 1 < len(set(marks)) < len(marks):
            parted = separation(_stacked(context, some), marks)
            found["silhouettes"][name] = parted.silhouette.tolist()
            found["within / between"][name] = parted.ratio.tolist()
    found["probes"] = _probes(context)
    return found


def _probes(context: RefusalContext) -> Result:
    refused, answered = (context.rows(refused=x) for x in (True, False))
    asked = {"refused / answered": (refused, answered)}
    wrong = [i for i in refused if context.cases[i].should == "answer"]
    proper = [i for i in refused if context.cases[i].should == "refuse"]
    if min(len(wrong), len(proper)) >= 2 * LEAST:
        asked["over-refused / properly refused"] = (wrong, proper)
    found: Result = {}
    for name, (first, second) in asked.items():
        rows = [*first, *second]
        fitted = probe_cv(
            _stacked(context, rows),
            [True] * len(first) + [False] * len(second),
            groups=[context.cases[i].group for i in rows],
            folds=FOLDS,
            shuffles=PROBE_SHUFFLES,
            seed=context.settings.seed,
        )
        found[name] = _measured(fitted.heldout) | {
            "n": [fitted.fitted, len(fitted.fold)],
            "shuffled": fitted.shuffled[:, 2].quantile(0.975, dim=0).tolist(),
        }
        if name == "refused / answered" and (topic := _topic(context, fitted, rows)):
            found["the same probe on the topic of answered rows"] = topic
    return found


def _measured(found: ProbeMetrics) -> Result:
    return {
        "accuracy": found.accuracy.tolist(),
        "auc": found.auc.tolist(),
        "low": found.low[2].tolist(),
        "high": found.high[2].tolist(),
    }


def _topic(context: RefusalContext, probes: CrossValidated, every: Sequence[int]) -> Result | None:
    """The probes' AUC for what should be refused, on rows of tasks that are answered.

    Each row is judged by the probe that has not seen its base text.
    """
    kinds = {context.cases[i].kind for i in context.rows(should="refuse")}
    refused = {context.cases[i].task for i in context.rows(refused=True)}
    calm = {case.task for case in context.cases} - refused
    places = [
        place
        for place, i in enumerate(every)
        if context.cases[i].task in calm and context.became(i) is False
    ]
    rows = [every[place] for place in places]
    about = np.array([context.cases[i].kind in kinds for i in rows], dtype=bool)
    if min(about.sum(), (~about).sum(), len(kinds)) < 1 or "" in kinds:
        return None
    bases = np.array([context.cases[i].group for i in rows])
    found = evaluation(probes.scores[..., places], about, bases, context.settings.seed)
    return _measured(found) | {"n": [0, len(rows)]}


def _stacked(context: RefusalContext, rows: Sequence[int]) -> torch.Tensor:
    """(layers, rows, d_model)."""
    return torch.from_numpy(context.trajectories.states[list(rows)]).transpose(0, 1)


def geometry(context: RefusalContext, place: Sequence[int]) -> Result:
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
        found |= {"cosines": compared.cosines, "components": compared.components}
    found["ceiling"] = {
        kind: halves_of(context, context.classes(kind), position)
        for kind in KINDS
        if kind in there and kind != FALSE
    }
    found["floor"] = _floor(context, position)
    first, second = SELECTED
    if first in there and second in there:
        found["cosine"] = cosine_interval(context, place)
        rows = context.few(context.rows("test"), 2 * context.settings.select)
        one, other = pair = [context.direction(kind, place) for kind in SELECTED]
        between = representational_independence(context.model, one, other, context.prompts[rows])
        found["independence"] = {
            f"{second} removed, along {first}": between.first,
            f"{first} removed, along {second}": between.second,
            "n": len(rows),
        }
        found["cone"] = _cone(context, pair)
    return plain(found)


def _tasks(context: RefusalContext, position: int) -> dict[str, torch.Tensor]:
    """Refused minus answered of each over-refused task: (layers, d_model)."""
    found = {}
    for task in context.refused_tasks:
        sides = [context.rows("find", refused=x, tasks=[task]) for x in (True, False)]
        if min(map(len, sides)) >= LEAST:
            made = context.difference("behaviour", *sides)
            found[f"refused - answered, {task}"] = made.vectors[made.positions.index(position)]
    return found


def halves_of(
    context: RefusalContext, classes: tuple[list[int], list[int]], position: int
) -> list[list[float]]:
    """(splits, layers) cosines of a direction from two halves of the find rows of each class.

    Rows with equal prompts are in the same half.
    """
    sides = [context.ends(rows)[:, position] for rows in classes]
    groups = [torch.from_numpy(joined([context.cases[i].prompt for i in rows])) for rows in classes]
    generator = torch.Generator().manual_seed(context.settings.seed)
    found = []
    for _ in range(SPLITS):
        orders = [torch.randperm(int(group.max()) + 1, generator=generator) for group in groups]
        means = [
            [side[torch.isin(group, order[half::2])].mean(0) for half in (0, 1)]
            for side, group, order in zip(sides, groups, orders, strict=True)
        ]
        halves = [one - other for one, other in zip(*means, strict=True)]
        found.append(cosine_similarity(*halves, dim=-1).tolist())
    return found


def measured_twice(halves: float) -> float:
    """The cosine with itself of a direction measured anew on as many rows, from that of halves.

    The Spearman-Brown formula, 2 c / (1 + c); 0 for halves that point apart.
    """
    return max(0.0, 2 * halves / (1 + halves)) if halves > -1 else 0.0


def _floor(context: RefusalContext, position: int) -> list[list[float]]:
    """(shuffles, layers) cosines with the true direction of directions of shuffled labels."""
    classes = context.classes(SELECTED[0])
    proper = [context.ends(rows)[:, position].mean(0) for rows in classes]
    if context.candidates(SELECTED[1]) is not None:
        classes = context.classes(SELECTED[1])
    rows = [*classes[0], *classes[1]]
    states = context.ends(rows)[:, position]
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
    context: RefusalContext, place: Sequence[int], *, kinds: Sequence[DirectionKind] = SELECTED
) -> Estimate:
    """The cosine of two kinds of direction at a place, with a bootstrap over base texts.

    Directions of resampled rows are noisier than those of all rows, so their cosine is lower. The
    interval is the reversed (basic) one in Fisher's z, which corrects this bias.
    """
    sides = [side for kind in kinds for side in context.classes(kind)]
    states = [context.ends(rows)[:, place[0], place[1]].double().numpy() for rows in sides]
    bases = [[context.cases[i].group for i in rows] for rows in sides]
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
    low, high = (float(np.tanh(2 * np.arctanh(value) - end)) for end in (high, low))
    return Estimate(mean=value, low=low, high=high, n=len(names))


def _cone(context: RefusalContext, pair: Sequence[Direction]) -> Result:
    """Mean refusal score of refused test rows with a random vector of the cone ablated."""
    rows = context.few(context.rows("test", refused=True), context.settings.select)
    try:
        drawn = sample_cone([one.towards_refusal for one in pair], CONE, seed=context.settings.seed)
    except InterpError as error:
        return {"skipped": str(error)}
    edits = [ablate_direction(context.model, replace(pair[0], vector=vector)) for vector in drawn]
    scores = [float(context.scores(rows, edit).mean()) for edit in edits]
    return {"n": len(rows), "plain": float(context.scores(rows).mean()), "ablated": scores}
