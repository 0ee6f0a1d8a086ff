"""Steering methods with one interface: (dose, rows) -> a steering, and the rows it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from interp.refusal.task_steering import NOTEBOOK, Ledger, plan_steering
from interp.refusal.trajectories import Trajectories
from interp.results.direction import Direction, DirectionKind, random_direction
from interp.steering.candidates import end_states
from interp.steering.edits import (
    Steering,
    ablate_direction,
    add_direction,
    affine_edit,
    condition_similarity,
    conditional_steering,
    null_space_direction,
)
from interp.studies.refusal.settings import INVENTED, LEAST, Places, RefusalContext
from interp.studies.refusal.steps.constellations import benign_tasks, options_of
from interp.studies.refusal.steps.directions import CHOSEN, rivals
from interp.studies.steps import Result

Made = tuple[Steering, np.ndarray]
"""A steering, and (rows,) which of its rows it changes."""

DOSES = (0.5, 1.0, 2.0, 4.0)
STEPS = (0.125, 0.25, 0.5, 1.0)
CONSTELLATIONS = "task constellations"
EVERY_TASK = f"{CONSTELLATIONS}, every task"
"""The method with the tasks of proper refusals steered too; the published one bars them."""
ADDED = f"add {INVENTED}"
SHUFFLES = 5
"""Banks of permuted labels; several, because the result depends on the permutation."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of steering towards answers, or with `refuse` towards refusals of invented requests.

    of: the method whose chosen dose it uses, "" for its own; `null` methods are random versions of
    that one. doses: those tried on select rows; () for a variant that uses the other's dose only.
    """

    name: str
    doses: tuple[float, ...]
    make: Callable[[float, Sequence[int]], Made]
    null: bool = False
    of: str = ""
    refuse: bool = False


def methods(context: RefusalContext, places: Places, gate: Result) -> list[Method]:
    """All methods for which there are enough rows.

    `places` gives the chosen position and layer of each kind of direction; `gate` is that of
    `constellations.options_of`.
    """
    found = []
    directions: dict[DirectionKind, Direction] = {}
    for kind, place in places.items():
        direction = context.direction(kind, place)
        # If everything that should be refused is refused, two kinds are one.
        if not any(torch.equal(direction.vector, other.vector) for other in directions.values()):
            directions[kind] = direction
    model = context.model

    def ablated(direction: Direction) -> Callable[[float], Steering]:
        edit = ablate_direction(model, direction)
        return lambda _: edit

    def subtracted(direction: Direction) -> Callable[[float], Steering]:
        return lambda dose: add_direction(model, direction, coefficient=-dose)

    for kind, direction in directions.items():
        found.append(_always(f"ablate {kind}", (1.0,), ablated(direction)))
    for kind in CHOSEN:
        if kind in directions:
            found.append(_always(f"add - {kind}", DOSES, subtracted(directions[kind])))
    # Rivals of the direction that fixes the topic: of each kind the one most alike.
    main = context.main
    own = directions.get(main, directions.get("harmful-harmless"))
    for name, others in rivals(context, main, places[main]).items() if own else ():
        assert own is not None
        rival = max(others, key=lambda other: abs(float(own.unit @ other.unit)))
        found.append(_always(f"ablate {name}", (), ablated(rival), f"ablate {own.kind}"))
        if name == "unembedding" and INVENTED in directions:
            found.append(_towards(context, name, (), rival, ADDED))
    if INVENTED in directions:
        found.append(_towards(context, INVENTED, DOSES, directions[INVENTED]))
    if "harmful-harmless" in directions:
        first, of = directions["harmful-harmless"], "ablate harmful-harmless"
        found.append(_affine(context, first, places["harmful-harmless"]))
        drawn = ablated(random_direction(first, seed=0))
        found.append(_always("ablate random direction", (), drawn, of))
    over = directions.get("over-refusal")
    if over is not None:
        found += [_cast(context, over), _null_space(context, over)]
        for seed, doses in enumerate((DOSES, ())):
            drawn = subtracted(random_direction(over, seed=seed))
            name = f"random direction {seed + 1}"
            found.append(_always(name, doses, drawn, "add - over-refusal"))
    if context.bank.whole.any():
        found += _constellations(context, gate)
    return [method for method in found if method is not None]


def _always(
    name: str, doses: tuple[float, ...], make: Callable[[float], Steering], of: str = ""
) -> Method:
    """A method that changes every row; `of` marks a random version of that method."""

    def made(dose: float, rows: Sequence[int]) -> Made:
        return make(dose), np.ones(len(rows), dtype=bool)

    return Method(name=name, doses=doses, make=made, null=bool(of), of=of)


def _towards(
    context: RefusalContext, name: str, doses: tuple[float, ...], added: Direction, of: str = ""
) -> Method:
    """Adding a direction, so that requests with an invented answer are refused."""

    def make(dose: float) -> Steering:
        return add_direction(context.model, added, coefficient=dose)

    return replace(_always(f"add {name}", doses, make, of), refuse=True)


def _affine(context: RefusalContext, direction: Direction, place: Sequence[int]) -> Method:
    """ACE: the component along the direction set to its mean over harmless rows."""
    candidates = context.candidates(direction.kind)
    assert candidates is not None
    reference = candidates.reference_at(place[1], place[0])
    edit = affine_edit(context.model, direction, reference)
    return _always("affine edit (ACE)", (1.0,), lambda _: edit)


def _states(context: RefusalContext, rows: Sequence[int], layer: int) -> torch.Tensor:
    """(rows, d_model) the unnormalised residual stream after a layer, at the last token."""
    seen = context.trajectories
    raw = seen.states[list(rows), layer] * seen.scale[list(rows), layer]
    return torch.from_numpy(raw)


def _cast(context: RefusalContext, direction: Direction) -> Method | None:
    """CAST: the addition, only for prompts unlike those that should be refused.

    Condition vector: over-refused minus properly refused find rows. Layer, side and threshold are
    those that separate the two best on select rows.
    """
    sides = [
        {part: context.rows(part, should=should, refused=True) for part in ("find", "select")}
        for should in ("answer", "refuse")
    ]
    if min(len(rows) for side in sides for rows in side.values()) < LEAST:
        return None
    best: tuple[float, int, torch.Tensor, float, bool] | None = None
    for layer in range(context.model.n_layers):
        means = [_states(context, side["find"], layer).mean(0) for side in sides]
        condition = means[0] - means[1]
        if not float(condition.norm()):
            continue
        alike = [
            condition_similarity(_states(context, side["select"], layer), condition).numpy()
            for side in sides
        ]
        for threshold in np.unique(np.concatenate(alike)).tolist():
            right = ((alike[0] > threshold).mean() + (alike[1] <= threshold).mean()) / 2
            for above, share in ((True, right), (False, 1 - right)):
                if best is None or share > best[0]:
                    best = (float(share), layer, condition, threshold, above)
    assert best is not None
    _, layer, condition, threshold, above = best

    def made(dose: float, rows: Sequence[int]) -> Made:
        similarity = condition_similarity(_states(context, rows, layer), condition)
        steering = conditional_steering(
            add_direction(context.model, direction, coefficient=-dose),
            similarity,
            threshold,
            steer_above=above,
        )
        assert steering.gate is not None
        return steering, steering.gate.numpy() != 0

    return Method(name="conditional (CAST-like)", doses=DOSES, make=made)


def _null_space(context: RefusalContext, direction: Direction) -> Method | None:
    """AlphaSteer-like: the addition, projected so that states of proper refusals do not change."""
    sides = [context.rows("find", should=x, refused=True) for x in ("refuse", "answer")]
    if min(map(len, sides)) < LEAST:
        return None
    protected, steered = (
        end_states(
            context.model,
            context.prompts[rows],
            site=direction.site,
            last=-direction.position,
            layers=[direction.layer],
        )[:, 0, 0]
        for rows in sides
    )
    make = partial(null_space_direction, context.model, direction, protected, steered)
    return _always("null space (AlphaSteer-like)", DOSES, lambda dose: make(strength=-dose))


def _constellations(context: RefusalContext, gate: Result) -> list[Method]:
    """SafeConstellations: as published, without its bar on tasks, as in its notebooks, two nulls.

    Only benign tasks are steered. If proper refusals have a task of their own, this bar alone keeps
    them, whatever the steering would do; "every task" lifts it. All methods here read the
    normalised residual stream; the notebooks read a block's normalised input.
    """
    bank, options = context.bank, partial(options_of, context, gate)

    def planned(
        name: str,
        doses: tuple[float, ...],
        plan: Callable[[float, Trajectories], Ledger],
        **of: Any,
    ) -> Method:
        def made(dose: float, rows: Sequence[int]) -> Made:
            ledger = plan(dose, context.trajectories[rows])
            return ledger.steering(context.model), ledger.steered

        return Method(name=name, doses=doses, make=made, **of)

    def published(dose: float, seen: Trajectories) -> Ledger:
        return plan_steering(seen, bank, options(dose))

    def unbarred(dose: float, seen: Trajectories) -> Ledger:
        return plan_steering(seen, bank, replace(options(dose), tasks=None))

    def notebook(_: float, seen: Trajectories) -> Ledger:
        return plan_steering(seen, bank, replace(NOTEBOOK, tasks=benign_tasks(context)))

    def random(dose: float, seen: Trajectories) -> Ledger:
        return published(dose, seen).random(seed=context.settings.seed)

    def shuffled(seed: int, dose: float, seen: Trajectories) -> Ledger:
        return plan_steering(seen, context.shuffled_bank(seed), options(dose))

    name, null = CONSTELLATIONS, {"null": True, "of": CONSTELLATIONS}
    return [
        planned(name, STEPS, published),
        planned(EVERY_TASK, (), unbarred, of=name),
        planned(f"{name}, notebooks' options on our states", (1.0,), notebook),
        planned(f"{name}, random shifts", STEPS, random, **null),
        *(
            planned(f"{name}, shuffled labels {seed + 1}", (), partial(shuffled, seed), **null)
            for seed in range(SHUFFLES)
        ),
    ]
