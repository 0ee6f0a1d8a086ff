"""Directions of refusal: which candidate, how they lie to each other, and their nulls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from interp.directions import Candidates, Kind, random_direction
from interp.errors import InterpError
from interp.geometry import compare, representational_independence, sample_cone
from interp.metrics import Estimate, mean_estimate
from interp.selection import Selection, select_cosmic, select_direction
from interp.steering import Steering, ablate_direction, add_direction
from interp.studies.refusal.context import KINDS, LEAST, Context, Places
from interp.studies.steps import Result, plain

SELECTED: tuple[Kind, ...] = ("harmful-harmless", "over-refusal")
"""Kinds whose position and layer are chosen by their effects; the others take the first's."""

RANDOM, CONE = 2, 8
SPLITS = 5


def selection(context: Context, kind: Kind) -> Result:
    """Every candidate of a kind scored on select rows, and the rule's choice, with reasons.

    For an over-refusal direction the rows to bypass are the benign ones that are refused, and the
    rows to induce on those of the same tasks that are answered; its texts are longer, and only the
    last token is tried.
    """
    candidates = context.candidates(kind)
    first, second = context.classes(kind, "select")
    if candidates is None or min(len(first), len(second)) < LEAST:
        return {"skipped": f"{len(first)} and {len(second)} select rows: too few"}
    if kind == "over-refusal":
        candidates = _last(candidates)
    most = context.settings.select
    bad, good = (context.prompts[context.few(side, most)] for side in (first, second))
    found = select_direction(context.model, candidates, bad, good, context.tokens, measure_all=True)
    return _written(found) | {
        "n": [len(bad), len(good)],
        "classes": list(candidates.n),
        "tokens": list(candidates.tokens),
        "norms": candidates.norms.tolist(),
    }


def cosmic(context: Context) -> Result:
    """The choice by cosines alone, which needs no refusal token (COSMIC)."""
    candidates = context.candidates("harmful-harmless")
    first, second = context.classes("harmful-harmless", "select")
    if candidates is None or min(len(first), len(second)) < LEAST:
        return {"skipped": "too few rows"}
    most = context.settings.select
    bad, good = (context.prompts[context.few(side, most)] for side in (first, second))
    return _written(select_cosmic(context.model, candidates, bad, good))


def _last(candidates: Candidates) -> Candidates:
    """Those at the last token only."""
    return replace(
        candidates,
        vectors=candidates.vectors[-1:],
        reference=candidates.reference[-1:],
        positions=candidates.positions[-1:],
        tokens=candidates.tokens[-1:],
    )


def _written(found: Selection) -> Result:
    table = found.to_dataframe()
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    best = found.best
    return {
        "method": found.method,
        "rows": rows,
        "best": None if best is None else [best.position, best.layer],
        "rejections": found.rejections,
        "harmful": found.harmful,
        "harmless": found.harmless,
    }


def place_of(found: Result, other: Result | None = None) -> list[int] | None:
    """Position and layer of a selection: the rule's, or else of the least harmful that does both.

    Where no candidate passes the rule the study goes on, and says so, with the one of least KL
    among those of any layer that bypass (score below 0) and induce (above 0); if none does both,
    with the lowest bypass - induce. A selection that was skipped takes another's place.

    Raises:
        InterpError: all candidates are zero.
    """
    if "skipped" in found:
        return None if other is None else place_of(other)
    if found["best"]:
        return found["best"]
    rows = [row for row in found["rows"] if row["rejected"] not in ("zero", "nan")]
    if not rows:
        raise InterpError("a direction", "no candidate is of any length", "give other prompts")
    both = [row for row in rows if row["bypass"] < 0 < row["induce"]]
    if both:
        best = min(both, key=lambda row: row["kl"])
    else:
        best = min(rows, key=lambda row: row["bypass"] - row["induce"])
    return [best["position"], best["layer"]]


def effects(context: Context, places: Places) -> Result:
    """What ablating and adding each chosen direction does to test rows, against random ones.

    Mean refusal score on rows that should be refused, on benign rows that are refused, and on
    benign rows that are answered, in nats; random directions have the same length and place.
    """
    sides = {
        "should be refused": context.rows("test", should="refuse"),
        "over-refused": context.rows("test", should="answer", refused=True),
        "answered": context.rows("test", should="answer", refused=False),
    }
    sides = {name: context.few(rows, 2 * context.settings.select) for name, rows in sides.items()}
    sides = {name: rows for name, rows in sides.items() if rows}
    found: Result = {"n": {name: len(rows) for name, rows in sides.items()}}
    found["plain"] = {
        name: plain(mean_estimate(context.scores(rows))) for name, rows in sides.items()
    }

    def mean(rows: Sequence[int], steering: Steering) -> Estimate:
        return mean_estimate(context.scores(rows, steering))

    for kind, place in places.items():
        direction = context.direction(kind, place)
        random = [random_direction(direction, seed=seed) for seed in range(RANDOM)]
        found[kind] = {
            what: {
                name: {
                    "value": plain(mean(rows, edit(context.model, direction))),
                    "random": [mean(rows, edit(context.model, other)).mean for other in random],
                }
                for name, rows in sides.items()
            }
            for what, edit in (("ablated", ablate_direction), ("added", add_direction))
        }
    return found


def geometry(context: Context, place: Sequence[int]) -> Result:
    """Are the directions one direction? Cosines by layer, with a ceiling and a floor.

    Ceiling: cosines of the same direction from two halves of its rows. Floor: of directions of
    shuffled labels with the true one. All at the chosen position, turned towards refusal.
    """
    position = place[0]
    there = {kind: x for kind in KINDS if (x := context.candidates(kind)) is not None}
    vectors = {kind: x.vectors[x.positions.index(position)] for kind, x in there.items()}
    vectors |= _tasks(context, position)
    names = list(vectors)
    found: Result = {"names": names, "position": position, "layer": place[1]}
    if len(vectors) > 1:
        compared = compare(vectors)
        found["cosines"] = compared.cosines.tolist()
        found["components"] = compared.components.tolist()
    found["ceiling"] = {kind: _halves(context, kind, position) for kind in KINDS if kind in there}
    found["floor"] = _floor(context, position)
    kinds = SELECTED
    if all(kind in there for kind in kinds):
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
    """Refused - answered of each over-refused task: (layers, d_model)."""
    found = {}
    for task in context.refused_tasks:
        sides = [context.rows("find", refused=x, tasks=[task]) for x in (True, False)]
        if min(map(len, sides)) >= LEAST:
            made = context.difference("behaviour", *sides)
            found[f"refused - answered, {task}"] = made.vectors[made.positions.index(position)]
    return found


def _halves(context: Context, kind: Kind, position: int) -> list[list[float]]:
    """(splits, layers) cosines of the direction from two halves of the rows of each class."""
    sides = [_states(context, rows, position) for rows in context.classes(kind)]
    generator = torch.Generator().manual_seed(context.settings.seed)
    found = []
    for _ in range(SPLITS):
        halves = []
        orders = [torch.randperm(len(side), generator=generator) for side in sides]
        for half in (0, 1):
            means = [
                side[order[half::2]].mean(0) for side, order in zip(sides, orders, strict=True)
            ]
            halves.append(means[0] - means[1])
        found.append(cosine_similarity(*halves, dim=-1).tolist())
    return found


def _floor(context: Context, position: int) -> list[list[float]]:
    """(splits, layers) cosines of directions of shuffled labels with the true one."""
    sides = [_states(context, rows, position) for rows in context.classes("harmful-harmless")]
    true = sides[0].mean(0) - sides[1].mean(0)
    both = torch.cat(sides)
    generator = torch.Generator().manual_seed(context.settings.seed)
    found = []
    for _ in range(SPLITS):
        order = torch.randperm(len(both), generator=generator)
        first, second = both[order[: len(sides[0])]], both[order[len(sides[0]) :]]
        found.append(cosine_similarity(first.mean(0) - second.mean(0), true, dim=-1).tolist())
    return found


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


def cosine_of_choices(context: Context, places: Places) -> list[Result]:
    """Cosines of the chosen directions, each where it was chosen."""
    units = {kind: context.direction(kind, place).unit for kind, place in places.items()}
    return [
        {"pair": [a, b], "cosine": float(np.clip(units[a] @ units[b], -1, 1))}
        for a, b in combinations(units, 2)
    ]
