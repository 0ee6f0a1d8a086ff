"""Directions of refusal: which candidate is chosen, what it does, and what random ones do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from interp.core.chat_prompts import ChatPrompts
from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.refusal.selection import DirectionSelection, Limits, select_cosmic, select_direction
from interp.results.direction import Direction, DirectionKind, random_direction
from interp.steering.candidates import Candidates
from interp.steering.edits import Steering, ablate_direction, add_direction
from interp.studies.refusal.settings import LEAST, Places, RefusalContext
from interp.studies.steps import Result, mean_of

SELECTED: tuple[DirectionKind, ...] = ("harmful-harmless", "over-refusal")
"""Kinds whose position and layer are chosen by what they bypass and induce."""

FALSE: DirectionKind = "false-refusal"
FALSE_LIMITS = Limits(kl=0.2, induce=None, prune=0.0)
"""The rule of arXiv 2410.03415: the smallest score of over-refused rows with a KL of at most this,
at any layer; what it induces does not count."""

Edited = Callable[[LanguageModel, Direction], Steering]

RANDOM, NULL_ROWS = 20, 4
"""Random directions, and the rows of each side they are tried on."""

COST = 0.5
"""The largest KL of a candidate, in nats, if none passes the rule."""

VERSION = 2
"""Version of `effects`; part of its step's key."""


def selection(context: RefusalContext, kind: DirectionKind) -> Result:
    """Every candidate of a kind scored on select rows, and the rule's choice, with reasons.

    For an over-refusal direction, refusal is bypassed on benign rows that are refused and induced
    on answered rows of the same tasks. Its texts are longer, so only the last token is tried. A
    false-refusal direction is chosen by the rule of its paper, also at the last token.
    """
    sides = _to_select(context, kind)
    if isinstance(sides, dict):
        return sides
    candidates, bad, good = sides
    found = select_direction(
        context.model,
        candidates,
        bad,
        good,
        context.tokens,
        limits=FALSE_LIMITS if kind == FALSE else None,
        measure_all=kind != FALSE,
        progress=context.progress,
    )
    return _written(found) | {
        "n": [len(bad), len(good)],
        "classes": list(candidates.n),
        "tokens": list(candidates.tokens),
        "norms": candidates.norms.tolist(),
    }


def cosmic(context: RefusalContext) -> Result:
    """The choice by cosines alone, which needs no refusal token (COSMIC)."""
    sides = _to_select(context, SELECTED[0])
    if isinstance(sides, dict):
        return sides
    return _written(select_cosmic(context.model, *sides, progress=context.progress))


def _to_select(
    context: RefusalContext, kind: DirectionKind
) -> tuple[Candidates, ChatPrompts, ChatPrompts] | Result:
    """The candidates of a kind, and select rows of both classes; or why there are too few."""
    candidates = context.candidates(kind)
    first, second = context.classes(kind, "select")
    if candidates is None or min(len(first), len(second)) < LEAST:
        return {"skipped": f"{len(first)} and {len(second)} select rows: too few"}
    candidates = _tried(candidates, context.settings.thin, kind in ("over-refusal", FALSE))
    most = context.settings.select
    bad, good = (context.prompts[context.few(side, most)] for side in (first, second))
    return candidates, bad, good


def _tried(candidates: Candidates, thin: int, last: bool) -> Candidates:
    """Candidates of every thin-th layer, counted from the last; `last`: of the last token alone."""
    layers = slice((len(candidates.layers) - 1) % thin, None, thin)
    places = slice(-1, None) if last else slice(None)
    return replace(
        candidates,
        vectors=candidates.vectors[places, layers],
        reference=candidates.reference[places, layers],
        layers=candidates.layers[layers],
        positions=candidates.positions[places],
        tokens=candidates.tokens[places],
    )


def _written(found: DirectionSelection) -> Result:
    table, best = found.to_dataframe(), found.best
    return {
        "method": found.method,
        "rows": table.astype(object).where(table.notna(), None).to_dict("records"),
        "best": None if best is None else [best.position, best.layer],
        "rejections": found.rejections,
        "harmful": found.harmful,
        "harmless": found.harmless,
    }


def place_of(found: Result, other: Result | None = None) -> list[int] | None:
    """Position and layer of a selection: the rule's choice, or else a fallback.

    If no candidate passes the rule, the largest induce - bypass at any layer is taken, among those
    that bypass (score below 0) and induce (above 0) with a KL of at most `COST`. If all of these
    cost more, the one with the least KL is taken; if none does both, the largest induce - bypass.
    The report says so. A skipped selection takes the place of `other`.

    Raises:
        InterpError: all candidates are zero.
    """
    if "skipped" in found:
        return None if other is None else place_of(other)
    if found["best"]:
        return found["best"]
    rows = [row for row in found["rows"] if row["rejected"] not in ("zero", "nan")]
    if not rows:
        raise InterpError("a direction", "every candidate is zero", "give other prompts")
    both = [row for row in rows if row["bypass"] < 0 < row["induce"]]
    cheap = [row for row in both if row["kl"] <= COST]
    if both and not cheap:
        best = min(both, key=lambda row: row["kl"])
    else:
        best = min(cheap or rows, key=lambda row: row["bypass"] - row["induce"])
    return [best["position"], best["layer"]]


def effects(context: RefusalContext, places: Places) -> Result:
    """What ablating and adding each chosen direction does to test rows, against random ones.

    Mean refusal score on rows that should be refused, on benign rows that are refused, and on
    benign rows that are answered, in nats. Random directions have the same length and place; the
    score of each is the plain mean plus its change on a few of the rows. An ablation at every site
    depends on neither length nor place, so all kinds share its random directions.
    """
    sides = {
        "should be refused": context.rows("test", should="refuse"),
        "over-refused": context.rows("test", should="answer", refused=True),
        "answered": context.rows("test", should="answer", refused=False),
    }
    sides = {name: context.few(rows, 2 * context.settings.select) for name, rows in sides.items()}
    sides = {name: rows for name, rows in sides.items() if rows}
    before = {name: context.scores(rows) for name, rows in sides.items()}
    # Spread over the rows, which are in the order of tasks.
    some = {
        name: list(range(0, len(rows), max(1, len(rows) // NULL_ROWS)))[:NULL_ROWS]
        for name, rows in sides.items()
    }
    found: Result = {"n": {name: len(rows) for name, rows in sides.items()}}
    found["plain"] = {name: mean_of(scores) for name, scores in before.items()}

    def null(edit: Edited, direction: Direction) -> dict[str, list[float]]:
        drawn = [edit(context.model, random_direction(direction, seed=k)) for k in range(RANDOM)]
        found: dict[str, list[float]] = {}
        for name, rows in context.counted(sides.items()):
            few, old = [rows[i] for i in some[name]], before[name][some[name]]
            changes = [float((context.scores(few, one) - old).mean()) for one in drawn]
            found[name] = [float(before[name].mean()) + change for change in changes]
        return found

    seen: list[tuple[Direction, Result]] = []
    shared: dict[str, list[float]] | None = None
    for kind, place in places.items():
        direction = context.direction(kind, place)
        same = [result for other, result in seen if torch.equal(other.vector, direction.vector)]
        if same:  # if everything that should be refused is refused, two kinds are one
            found[kind] = same[0]
            continue
        shared = shared or null(ablate_direction, direction)
        random = {"ablated": shared, "added": null(add_direction, direction)}
        found[kind] = {
            what: {
                name: {
                    "value": mean_of(context.scores(rows, edit(context.model, direction))),
                    "random": random[what][name],
                }
                for name, rows in sides.items()
            }
            for what, edit in (("ablated", ablate_direction), ("added", add_direction))
        }
        seen.append((direction, found[kind]))
    return found
