"""The whole study, step by step, resumable: from the replies to the comparison of methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.refusal.capability import capability_cases, require_twins
from interp.refusal.cases import Case, taboo_cases
from interp.refusal.judging import RULES, Judge
from interp.results.direction import STUDY_FILE, save_directions
from interp.results.keys import code_key
from interp.runs.kinds import random_like
from interp.studies.refusal.settings import (
    COMPARED,
    KINDS,
    LEAST,
    REFUSAL,
    TABOO_MODELS,
    Places,
    RefusalContext,
    RefusalSettings,
    usual,
)
from interp.studies.refusal.steps import (
    carriers,
    constellations,
    directions,
    frontier,
    geometry,
    heads,
    neurons,
)
from interp.studies.refusal.steps.behaviour import behaviour, tokens
from interp.studies.refusal.steps.directions import CHOSEN
from interp.studies.refusal.steps.methods import CONSTELLATIONS, methods
from interp.studies.refusal.steps.one_effect import one_effect
from interp.studies.steps import Pace, Result, Results, StepJob, Steps
from interp.studies.study import Study, begin


def study_refusal(
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    settings: RefusalSettings | None = None,
    judge: Judge = RULES,
    directory: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Study[RefusalSettings]:
    """Study what makes a chat model refuse and over-refuse, and what steering does to both.

    After Arditi et al. 2024 (arXiv 2406.11717), SafeConstellations (2508.11290) and head studies
    (2410.13708, 2604.04385), with held-out rows, intervals and random controls. Every step is kept
    in `directory` (under the cache by default) as it ends; the same call continues from there.

    Args:
        model: a chat model with a gated MLP and a fast engine.
        cases: prompts, and whether each should be answered or refused. By default shipped harmless
            ones: capability requests (`interp.refusal.capability_cases`), or the taboo for models
            trained on it. Texts of your own cases are never written to disk.
        settings: see `RefusalSettings`.
        judge: judges all replies; your own comes from `interp.refusal.judging.user_judge` or
            `judge_named`. Another judge, by name and version, makes another study.
        directory: where step results and the chosen directions go.
        say: called with a line for every step, and with the progress of long ones.

    Raises:
        InterpError: no chat template, no fast engine, or too few rows to refuse and to answer, or
            too few that are refused or answered.
    """
    own, trained = cases is not None, model.name in TABOO_MODELS
    settings = usual(settings or RefusalSettings(), "taboo" if own or trained else "capability")
    given = tuple(cases or _shipped(settings, trained))
    model.require_decoder("the study of refusals")
    key = [[asdict(case) for case in given]] if own else []
    key += [] if judge is RULES else [judge.name, code_key(judge.verdict)]
    pace = Pace(say)
    context = RefusalContext(
        model=model, cases=given, settings=settings, judge=judge, progress=pace
    )
    _require_sides(context)
    study, step = begin(
        REFUSAL, model, settings=settings, key=key, directory=directory, say=pace.say
    )
    found = step("behaviour", lambda: behaviour(context, show=not own, say=say), COMPARED)
    context = replace(context, labels=tuple(found["labels"]))
    first = step("tokens", lambda: tokens(context))
    told = {"tokens": tuple(first["ids"]), "wrong": tuple(first["wrong"])}
    context = replace(context, **told, threshold=first["threshold"])
    _steps(context, step, study.directory)
    return study


def _shipped(settings: RefusalSettings, trained: bool) -> tuple[Case, ...]:
    """The prompts of the taboo, for a model trained on it, or else capability requests."""
    if trained:
        return taboo_cases(settings.n, requests=settings.requests, seed=settings.seed)
    found = capability_cases(settings.n, seed=settings.seed)
    require_twins(found)
    return found


def _require_sides(context: RefusalContext) -> None:
    """Raise before any reply is written if too few cases can be compared.

    Raises:
        InterpError: fewer than `LEAST` rows to refuse, or to answer of the same tasks, in a part.
    """
    for part in ("find", "select"):
        sides = context.classes(KINDS[0], part)
        if min(map(len, sides)) < LEAST:
            raise InterpError(
                f"{LEAST} prompts to refuse, and {LEAST} to answer of the same tasks, to {part} "
                "with",
                f"{len(sides[0])} and {len(sides[1])} in that part of {len(context.cases)} prompts",
                'give more prompts; the columns "should" and "task" say which they are',
            )


def _steps(context: RefusalContext, step: Steps, directory: Path) -> None:
    """Everything after the replies; independent steps are asked for together."""
    *chosen, false, _, _ = step.all(
        *((f"selection_{kind}", partial(directions.selection, context, kind)) for kind in CHOSEN),
        (
            f"selection_{directions.FALSE}",
            partial(directions.selection, context, directions.FALSE),
            directions.VERSION,
        ),
        ("cosmic", partial(directions.cosmic, context)),
        ("separation", partial(geometry.class_separation, context), "all folds"),
    )
    selections = dict(zip(CHOSEN, chosen, strict=True))
    first = selections[KINDS[0]]
    own = directions.place_of(selections[context.main], first)
    if own is None:
        raise InterpError(
            f"directions of {context.model.name}", first["skipped"], "give more prompts to refuse"
        )
    # The place of the main kind decides all that follows; three kinds have their own.
    before: Places = {kind: own for kind in KINDS if context.candidates(kind) is not None}
    for kind in CHOSEN:
        if kind in before:
            before[kind] = directions.place_of(selections[kind], first) or own
    places = dict(before)
    if directions.FALSE in places:
        places[directions.FALSE] = false.get("best") or before["over-refusal"]
    found = {kind: context.direction(kind, place) for kind, place in places.items()}
    for direction in found.values():
        direction.require_unseen(context.prompts[context.rows("test")], "the study")
    save_directions(directory / STUDY_FILE, found)
    main = context.main
    *roles, bank, _, _, _, _, _, _ = step.all(
        *(
            (
                _named("heads", side),
                partial(heads.roles, context, side, found[main]),
                before,
                heads.VERSION,
            )
            for side in heads.SIDES
        ),
        ("constellations", partial(constellations.constellations, context)),
        ("directions", partial(directions.effects, context, places), places, directions.VERSION),
        ("rivals", partial(directions.against_rivals, context, main, before[main]), before),
        ("one_effect", partial(one_effect, context, found[main], before[main]), before),
        ("carriers", partial(carriers.carriers, context, found[main]), before, carriers.VERSION),
        ("neurons", partial(neurons.neurons, context)),
        ("geometry", partial(geometry.geometry, context, own), before, geometry.VERSION),
    )
    _steered(context, step, (before, places), bank, dict(zip(heads.SIDES, roles, strict=True)))


def _steered(
    context: RefusalContext, step: Steps, where: tuple[Places, Places], bank: Result, roles: Results
) -> None:
    """Groups of heads, and all methods compared.

    `where`: the places without and with that of false refusal.
    """
    before, places = where
    replied = step.results["behaviour"]
    gate = {name: bank[name] for name in ("identify", "threshold")}
    every = sorted(methods(context, places, gate), key=lambda method: method.null)
    used = {x.name: places if directions.FALSE in x.name else before for x in every}
    tried = [method for method in every if method.doses]
    chosen = step.all(
        *(
            (_named("dose", x.name), partial(frontier.choose_dose, context, x), used[x.name], gate)
            for x in tried
        ),
        *_between_heads(context, roles),
    )
    doses = {method.name: dose for method, dose in zip(tried, chosen, strict=False)}
    jobs: list[StepJob] = []
    for x in every:
        # A variant gets the dose of the method it is a variant of.
        dose = doses[x.of or x.name]
        work = partial(frontier.evaluate, context, replied, x, dose["dose"])
        jobs.append((_named("method", x.name), work, used[x.name], gate, dose, frontier.VERSION))
    if (dose := doses.get(CONSTELLATIONS)) is not None:
        work = partial(frontier.rows_of_ledger, context, gate, dose["dose"])
        jobs.append(("ledger", work, gate, dose))
    # Of over-refusals, if there are enough of them, or else of proper refusals.
    found = [roles[side] for side in heads.SIDES[::-1] if "skipped" not in roles[side]]
    triggers = heads.firsts(found[0]["measures"][heads.TRIGGERS]) if found else []
    drawn = (before, doses.get(frontier.SUBTRACTED, {}).get("dose"), triggers)
    step.all(
        *_heads_off(context, triggers, replied),
        *jobs,
        ("chance", partial(frontier.chance, context, *drawn), *drawn),
    )


def _between_heads(context: RefusalContext, roles: Results) -> list[StepJob]:
    """Groups of heads against random ones, paths between them, and texts without them."""
    jobs: list[StepJob] = []
    for side, other in (heads.SIDES, heads.SIDES[::-1]):
        both = (roles[side], roles[other])
        groups = partial(heads.groups, context, side, *both)
        jobs.append((_named("groups", side), groups, *both, heads.VERSION))
        paths = partial(heads.paths_to_carriers, context, side, roles[side])
        jobs.append((_named("paths", side), paths, roles[side], heads.VERSION))
    return [*jobs, ("flips", partial(heads.flips, context, roles), roles)]


def _heads_off(context: RefusalContext, triggers: list[str], replied: Result) -> list[StepJob]:
    """Zeroing triggers as a method: all, the first alone, the others; and random heads."""
    if not triggers:
        return []
    name = frontier.ZEROED
    random = random_like(context.model, triggers, 1, seed=context.settings.seed)[0]
    sets = (
        (name, triggers, ""),
        (frontier.ALONE, triggers[:1], ""),
        (frontier.OTHERS, triggers[1:], ""),
        ("zero random heads", random, name),
    )
    return [
        (
            _named("method", label),
            partial(frontier.evaluate_heads, context, replied, label, chosen, of),
            chosen,
            frontier.VERSION,
        )
        for label, chosen, of in sets
        if chosen
    ]


def _named(step: str, of: str) -> str:
    """The name of a step of one side or of one method; also a file name."""
    if step in ("dose", "method"):
        of = "".join(c if c.isalnum() else "_" for c in of)
    return f"{step}_{of.replace(' ', '_')}"
