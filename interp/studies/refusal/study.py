"""The whole study, step by step, resumable: from replies to one frontier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from interp.ablation import random_like
from interp.cases import Case, taboo_cases
from interp.directions import save_directions
from interp.errors import InterpError
from interp.files import content_key
from interp.judging import RULES, Judge
from interp.models.language_model import LanguageModel
from interp.studies import frame
from interp.studies.refusal import comparing, constellating, heading, neurons, pointing, separating
from interp.studies.refusal.behaviour import behaviour, tokens
from interp.studies.refusal.context import KINDS, LEAST, REFUSAL, Context, Places, Settings
from interp.studies.refusal.methods import CONSTELLATIONS, methods
from interp.studies.steps import Result, Steps

Study = frame.Study[Settings]
"""A refusal study."""

DIRECTIONS = "directions.safetensors"
"""The chosen directions with their contracts, beside the steps."""

FIRST_JUDGE = "rules/1-ca3d25"
"""The judge of results from before keys named one: they stay this judge's."""


def study_refusal(
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    settings: Settings | None = None,
    judge: Judge = RULES,
    directory: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Study:
    """What makes a chat model refuse, what makes it over-refuse, and what steering does to both.

    After Arditi et al. 2024 (arXiv 2406.11717), SafeConstellations (2508.11290) and head studies
    (2410.13708, 2604.04385), with held-out rows, intervals and random controls. Every step is kept
    in `directory` (under the cache by default) as it ends; the same call goes on from there.

    Args:
        model: a chat model with a gated MLP and a fast engine.
        cases: prompts and what should become of them; the shipped harmless ones by default. Texts
            of your own cases are never written.
        settings: see `Settings`.
        judge: of all replies; one of your own from `interp.judging.user_judge`. Results of another
            judge, by its name and version, are another study's.
        directory: where step results and the chosen directions go.
        say: called with a line at every step.

    Raises:
        InterpError: no chat template, no fast engine, or too few refused or answered rows.
    """
    settings = settings or Settings()
    own = cases is not None
    given = tuple(cases or taboo_cases(settings.n, requests=settings.requests, seed=settings.seed))
    model.require_decoder("the study of refusals")
    key = [content_key([asdict(case) for case in given])] if own else []
    key += [] if judge.name == FIRST_JUDGE else [judge.name]
    study, step = frame.begin(
        REFUSAL, model, settings=settings, key=key, directory=directory, say=say
    )
    context = Context(model=model, cases=given, settings=settings, judge=judge)
    _steps(_replied(context, step, show=not own), step, study.directory)
    return study


def _replied(context: Context, step: Steps, *, show: bool) -> Context:
    """The context with what became of each case.

    Raises:
        InterpError: too few refused or answered rows to find anything with.
    """
    found = step("behaviour", lambda: behaviour(context, show=show))
    context = replace(context, labels=tuple(found["labels"]))
    for refused, what in ((True, "refused"), (False, "answered")):
        if len(rows := context.rows("find", refused=refused)) < 2 * LEAST:
            raise InterpError(
                f"refusals of {context.model.name}",
                f"{len(rows)} {what} of {len(context.rows('find'))} prompts to find with",
                "take a model that refuses some of them, give it a system prompt, or other cases",
            )
    first = step("tokens", lambda: tokens(context))
    return replace(context, tokens=tuple(first["ids"]), wrong=tuple(first["wrong"]))


def _steps(context: Context, step: Steps, directory: Path) -> None:
    """Everything after the replies."""
    step("separation", lambda: separating.separation(context), "all folds")
    chosen = {
        kind: step(f"selection_{kind}", lambda kind=kind: pointing.selection(context, kind))
        for kind in pointing.SELECTED
    }
    step("cosmic", lambda: pointing.cosmic(context))
    first, over = (chosen[kind] for kind in pointing.SELECTED)
    own = pointing.place_of(first)
    if own is None:
        raise InterpError(
            f"directions of {context.model.name}", first["skipped"], "give more prompts to refuse"
        )
    places: Places = {kind: own for kind in KINDS if context.candidates(kind) is not None}
    if "over-refusal" in places:
        places["over-refusal"] = pointing.place_of(over, first) or own
    found = {kind: context.direction(kind, place) for kind, place in places.items()}
    for direction in found.values():
        direction.require_unseen(context.prompts[context.rows("test")], "the study")
    save_directions(directory / DIRECTIONS, found)
    step("directions", lambda: pointing.effects(context, places), places)
    step("geometry", lambda: pointing.geometry(context, places[KINDS[0]]), places)
    roles = {
        side: step(
            f"heads_{side}".replace(" ", "_"),
            lambda side=side: heading.roles(context, side, found[KINDS[0]]),
            places,
        )
        for side in heading.SIDES
    }
    for side, other in (heading.SIDES, heading.SIDES[::-1]):
        name = side.replace(" ", "_")
        both = (roles[side], roles[other])
        step(f"groups_{name}", lambda s=side, b=both: heading.groups(context, s, *b), *both)
        step(f"paths_{name}", lambda s=side: heading.passing(context, s, roles[s]), roles[side])
    step("flips", lambda: heading.flips(context, roles), roles)
    replied = step.results["behaviour"]
    told = step("constellations", lambda: constellating.constellations(context))
    gate = {name: told[name] for name in ("identify", "threshold")}
    curves: dict[str, Result] = {}
    for method in sorted(methods(context, places, gate), key=lambda method: method.null):
        name = "".join(c if c.isalnum() else "_" for c in method.name)
        curves[method.name] = step(
            f"dose_{name}", lambda m=method: comparing.choose_dose(context, m), places, gate
        )
        # A random version is given as much as what it is the null of.
        used = curves[method.of or method.name]
        step(
            f"method_{name}",
            lambda m=method, d=used: comparing.evaluate(context, replied, m, d["dose"]),
            places,
            gate,
            used,
        )
        if method.name == CONSTELLATIONS:
            step(
                "ledger",
                lambda d=used: comparing.rows_of_ledger(context, gate, d["dose"]),
                gate,
                used,
            )
    _heads_off(context, step, roles[heading.SIDES[1]], replied)
    step("neurons", lambda: neurons.neurons(context))


def _heads_off(context: Context, step: Steps, roles: Result, replied: Result) -> None:
    """The triggers of over-refusals at zero, as a method, and as many random heads."""
    if "skipped" in roles:
        return
    name = "zero triggers of over-refusals"
    heads = heading.firsts(roles["measures"]["triggers (necessity)"])
    random = random_like(context.model, heads, 1, seed=context.settings.seed)[0]
    for label, chosen, of in ((name, heads, ""), ("zero random heads", random, name)):
        step(
            "method_" + label.replace(" ", "_").replace("-", "_"),
            lambda label=label, chosen=chosen, of=of: comparing.evaluate_heads(
                context, replied, label, chosen, of
            ),
            chosen,
        )
