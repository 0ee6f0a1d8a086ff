"""Directions of refusal: which candidate is chosen, what it does, and what random ones do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from interp.core.errors import InterpError
from interp.core.statistics import mean_estimate
from interp.models.language_model import LanguageModel
from interp.refusal.selection import DirectionSelection, Limits, select_cosmic, select_direction
from interp.results.direction import Direction, DirectionKind, random_direction
from interp.steering.candidates import Candidates
from interp.steering.edits import Steering, ablate_direction, add_direction
from interp.studies.refusal.settings import LEAST, Context, Places
from interp.studies.steps import Result, plain

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


def selection(context: Context, kind: DirectionKind) -> Result:
    """Every candidate of a kind scored on select rows, and the rule's choice, with reasons.

    For an over-refusal direction, refusal is bypassed on benign rows that are refused and induced
    on answered rows of the same tasks. Its texts are longer, so only the last token is tried.
    """
    candidates = context.candidates(kind)
    first, second = context.classes(kind, "select")
    if candidates is None or min(len(first), len(second)) < LEAST:
        return {"skipped": f"{len(first)} and {len(second)} select rows: too few"}
    if kind == "over-refusal":
        candidates = _last(candidates)
    candidates = _thinned(candidates, context.settings.thin)
    most = context.settings.select
    bad, good = (context.prompts[context.few(side, most)] for side in (first, second))
    found = select_direction(
        context.model,
        candidates,
        bad,
        good,
        context.tokens,
        measure_all=True,
        progress=context.progress,
    )
    return _written(found) | {
        "n": [len(bad), len(good)],
        "classes": list(candidates.n),
        "tokens": list(candidates.tokens),
        "norms": candidates.norms.tolist(),
    }


def false_refusal(context: Context) -> Result:
    """Candidates of the false-refusal direction, at the last token, and the choice of its paper."""
    candidates = context.candidates(FALSE)
    first, second = context.classes(FALSE, "select")
    if candidates is None or min(len(first), len(second)) < LEAST:
        return {"skipped": f"{len(first)} and {len(second)} select rows: too few"}
    candidates, most = _thinned(_last(candidates), context.settings.thin), context.settings.select
    bad, good = (context.prompts[context.few(side, most)] for side in (first, second))
    found = select_direction(
        context.model,
        candidates,
        bad,
        good,
        context.tokens,
        limits=FALSE_LIMITS,
        progress=context.progress,
    )
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
    candidates, most = _thinned(candidates, context.settings.thin), context.settings.select
    bad, good = (context.prompts[context.few(side, most)] for side in (first, second))
    found = select_cosmic(context.model, candidates, bad, good, progress=context.progress)
    return _written(found)


def _thinned(candidates: Candidates, thin: int) -> Candidates:
    """Candidates of every thin-th layer, counted from the last."""
    first = (len(candidates.layers) - 1) % thin
    return replace(
        candidates,
        vectors=candidates.vectors[:, first::thin],
        reference=candidates.reference[:, first::thin],
        layers=candidates.layers[first::thin],
    )


def _last(candidates: Candidates) -> Candidates:
    """Candidates at the last token only."""
    return replace(
        candidates,
        vectors=candidates.vectors[-1:],
        reference=candidates.reference[-1:],
        positions=candidates.positions[-1:],
        tokens=candidates.tokens[-1:],
    )


def _written(found: DirectionSelection) -> Result:
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


def effects(context: Context, places: Places) -> Result:
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
    found["plain"] = {name: plain(mean_estimate(scores)) for name, scores in before.items()}

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
                    "value": plain(
                        mean_estimate(context.scores(rows, edit(context.model, direction)))
                    ),
                    "random": random[what][name],
                }
                for name, rows in sides.items()
            }
            for what, edit in (("ablated", ablate_direction), ("added", add_direction))
        }
        seen.append((direction, found[kind]))
    return found
