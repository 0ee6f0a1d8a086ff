"""Directions of refusal: which candidate is chosen, what it does, and what random ones do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from interp.core.chat_prompts import ChatPrompts
from interp.core.errors import InterpError
from interp.core.nulls import max_t_shares
from interp.heads.direct_attribution import mean_rows
from interp.models.language_model import LanguageModel
from interp.refusal.selection import DirectionSelection, Limits, select_cosmic, select_direction
from interp.results.direction import Direction, DirectionKind, random_direction
from interp.steering.candidates import Candidates
from interp.steering.edits import Steering, ablate_direction, add_direction
from interp.studies.refusal.settings import INVENTED, LEAST, Places, RefusalContext
from interp.studies.steps import Result, mean_of

SELECTED: tuple[DirectionKind, ...] = ("harmful-harmless", "over-refusal")
"""Kinds whose position and layer are chosen by what they bypass and induce."""

CHOSEN = (*SELECTED, INVENTED)
"""The same, with the contrast that fixes the topic."""

FALSE: DirectionKind = "false-refusal"
FALSE_LIMITS = Limits(kl=0.2, induce=None, prune=0.0)
"""The rule of arXiv 2410.03415: the smallest score of over-refused rows with a KL of at most this,
at any layer; what it induces does not count."""

Edited = Callable[[LanguageModel, Direction], Steering]
Rivals = dict[str, list[Direction]]
EDITS: dict[str, Edited] = {"ablated": ablate_direction, "added": add_direction}

RANDOM, NULL_ROWS = 20, 4
"""Random directions, and the rows of each side they are tried on."""

COST = 0.5
"""The largest KL of a candidate, in nats, if none passes the rule."""

SHUFFLED, ALIKE = 5, 0.9
"""Directions of shuffled labels; and the cosine from which two directions are called equal."""

VERSION = 3
"""Version of `effects`; part of its step's key."""


def selection(context: RefusalContext, kind: DirectionKind) -> Result:
    """Every candidate of a kind scored on select rows, and the rule's choice, with reasons.

    For an over-refusal direction, refusal is bypassed on benign rows that are refused and induced
    on answered rows of the same tasks, and only the last token is tried. A false-refusal direction
    is chosen by the rule of its paper, also at the last token. For refused against invented,
    refusal is bypassed on requests that are refused and induced on those that get an invented
    answer, at the last token of every layer.
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
        limits=FALSE_LIMITS if kind == FALSE else Limits(induce=context.threshold),
        measure_all=kind != FALSE,
        progress=context.progress,
    )
    return _written(found) | {
        "threshold": context.threshold,
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
    last = kind != SELECTED[0]
    candidates = _tried(candidates, 1 if last else context.settings.thin, last)
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
    that bypass (score below the threshold) and induce (above it), or among all if none does both,
    with a KL of at most `COST`. If all of these cost more, the one with the least KL is taken. The
    report says so. A skipped selection takes the place of `other`.

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
    at = found.get("threshold", 0.0)
    both = [row for row in rows if row["bypass"] < at < row["induce"]]
    cheap = [row for row in both or rows if row["kl"] <= COST]
    if cheap:
        best = min(cheap, key=lambda row: row["bypass"] - row["induce"])
    else:
        best = min(both or rows, key=lambda row: row["kl"])
    return [best["position"], best["layer"]]


def few_of_each(context: RefusalContext) -> dict[str, list[int]]:
    """A few test rows of each class; classes with fewer than two rows are left out."""
    every = {
        "properly refused": context.rows("test", should="refuse", refused=True),
        "invented": context.rows("test", should="refuse", refused=False),
        "over-refused": context.rows("test", should="answer", refused=True),
        "answered": context.rows("test", should="answer", refused=False),
    }
    some = {name: context.few(rows, 2 * context.settings.select) for name, rows in every.items()}
    return {name: rows for name, rows in some.items() if len(rows) > 1}


def effects(context: RefusalContext, places: Places) -> Result:
    """What ablating and adding each chosen direction does to test rows, against random ones.

    Mean refusal score, in nats, of the classes of `few_of_each`. Random directions have the same
    length and place; the score of each is the plain mean plus its change on a few of the rows. An
    ablation at every site depends on neither length nor place, so all kinds share its random
    directions. share: draws as strong as the direction, corrected for all rows of its table
    (max-T); ablations are ranked by how far they lower the score, additions by how far they raise
    it.
    """
    sides = few_of_each(context)
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
            for what, edit in EDITS.items()
        }
        _correct(found[kind])
        seen.append((direction, found[kind]))
    return found


def _correct(table: Result) -> None:
    """Add to every row of one direction's table its share of draws as strong, corrected."""
    rows = [(-1 if what == "ablated" else 1, x) for what in table for x in table[what].values()]
    shares = max_t_shares(
        [sign * row["value"]["mean"] for sign, row in rows],
        [[sign * value for value in row["random"]] for sign, row in rows],
    )
    for (_, row), share in zip(rows, shares, strict=True):
        row["share"] = share


def unembedding_direction(context: RefusalContext, like: Direction) -> Direction:
    """What writes the first tokens of refusals at once: learnt from no prompt.

        u = w_final * (mean W_U[first tokens of refusals] - mean W_U[first tokens of answers])

    with w_final the final norm's weight, and the length and place of `like`.
    """
    decoder = context.model.require_decoder("an unembedding direction")
    sides = [
        mean_rows(decoder.unembed, torch.tensor([tokens]))[0]
        for tokens in (context.tokens, context.wrong)
        if tokens
    ]
    vector = sides[0] - (sides[1] if len(sides) > 1 else decoder.unembed.double().cpu().mean(0))
    return like_direction(
        like, vector * decoder.ln_final.weight.double().cpu(), "unembedding direction"
    )


def like_direction(direction: Direction, vector: torch.Tensor, made: str) -> Direction:
    """Another vector of a direction's length, at its place."""
    vector = vector * (direction.norm / max(float(vector.norm()), 1e-30))
    return replace(direction, vector=vector, normalisation="none", made=made, rows=())


def rivals(context: RefusalContext, kind: DirectionKind, place: Sequence[int]) -> Rivals:
    """Directions that a found one must be told apart from, of its length and at its place.

    unembedding: see `unembedding_direction`. shuffled labels: the same rows, labels permuted inside
    each task (for refused against invented, each task and kind). another fact: answered find rows
    of one task, or of one kind, minus the others.
    """
    own = context.direction(kind, place)
    found: Rivals = {"unembedding": [unembedding_direction(context, own)]}
    first, second = context.classes(kind)
    rows = [*first, *second]
    states = states_at(context, rows, place)
    marks = np.array([True] * len(first) + [False] * len(second))
    # Where kinds and classes are the same thing, only tasks can be held fixed.
    fixed = ("task", "kind") if kind == INVENTED else ("task",)
    cells = np.array([str([getattr(context.cases[i], of) for of in fixed]) for i in rows])
    rng = np.random.default_rng(context.settings.seed)
    found["shuffled labels"] = []
    for _ in range(SHUFFLED):
        drawn = marks.copy()
        for cell in dict.fromkeys(cells.tolist()):
            drawn[cells == cell] = rng.permutation(marks[cells == cell])
        vector = states[drawn].mean(0) - states[~drawn].mean(0)
        found["shuffled labels"].append(like_direction(own, vector, "shuffled labels"))
    answered = context.rows("find", refused=False)
    states = states_at(context, answered, place)
    for of in ("task", "kind"):
        names = np.array([getattr(context.cases[i], of) for i in answered])
        for name in dict.fromkeys(names.tolist()):
            mine = names == name
            if min(mine.sum(), (~mine).sum()) >= LEAST:
                vector = states[mine].mean(0) - states[~mine].mean(0)
                found.setdefault(f"another fact: {of}", []).append(
                    like_direction(own, vector, name)
                )
    return found


def states_at(context: RefusalContext, rows: Sequence[int], place: Sequence[int]) -> torch.Tensor:
    """(rows, d_model) float64 block inputs of find rows at a position and layer."""
    candidates = context.candidates(SELECTED[0])
    assert candidates is not None
    at = candidates.positions.index(place[0]), candidates.layers.index(place[1])
    return context.ends(rows)[:, at[0], at[1]].double()


def against_rivals(context: RefusalContext, kind: DirectionKind, place: Sequence[int]) -> Result:
    """Effects of a direction and of its rivals on the same test rows, each ablated and added.

    cosine: with the direction. scores: mean refusal score by class, in nats. apart: the direction's
    effect minus the rival's, paired by row (of several rivals, that of their mean). equal: whether
    the direction is the unembedding direction (cosine of at least `ALIKE`).
    """
    own, sides = context.direction(kind, place), few_of_each(context)

    def scores(direction: Direction) -> dict[str, dict[str, torch.Tensor]]:
        return {
            what: {
                name: context.scores(rows, edit(context.model, direction))
                for name, rows in sides.items()
            }
            for what, edit in EDITS.items()
        }

    mine, found = scores(own), []
    every = rivals(context, kind, place)
    for name, directions in context.counted(every.items()):
        theirs = [scores(direction) for direction in directions]
        cosines = [float(own.unit @ direction.unit) for direction in directions]
        about: Result = {"name": name, "n": len(directions), "cosines": cosines}
        for what, sided in mine.items():
            about[what] = {}
            for side, values in sided.items():
                others = torch.stack([one[what][side] for one in theirs])
                about[what][side] = {
                    "score": mean_of(others.mean(0)),
                    "each": others.mean(1).tolist(),
                    "apart": mean_of(values - others.mean(0)),
                }
        found.append(about)
    return {
        "kind": kind,
        "place": list(place),
        "own": {what: {s: mean_of(x) for s, x in sided.items()} for what, sided in mine.items()},
        "rivals": found,
        "equal": abs(found[0]["cosines"][0]) >= ALIKE,
    }
