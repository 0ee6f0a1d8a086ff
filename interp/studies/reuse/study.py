"""The whole study, step by step, resumable."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.registry import organisms
from interp.studies.reuse.settings import REUSE, ReuseContext, ReuseSettings
from interp.studies.reuse.steps import trained_model
from interp.studies.reuse.steps.circuits import circuit, circuits_of, pace, step_of
from interp.studies.reuse.steps.heads import labels, writes
from interp.studies.reuse.steps.overlap import behaviour, compared
from interp.studies.reuse.steps.repair import repair
from interp.studies.reuse.tasks import (
    IOI,
    IOI_TRAINED,
    OBJECTS,
    OBJECTS_TRAINED,
    Entry,
    entry_named,
)
from interp.studies.steps import Result, Results, StepJob
from interp.studies.study import Study, begin

TRAINED = {"smollm2-135m-instruct": "colored-objects-smollm2"}
"""The shipped model trained on Colored Objects, by its base."""


def trained_from(model: str) -> str | None:
    """The shipped model trained on Colored Objects from this one, if there is one."""
    name = TRAINED.get(model)
    return name if name in organisms() else None


def study_reuse(
    model: LanguageModel,
    trained: LanguageModel | None = None,
    *,
    settings: ReuseSettings | None = None,
    directory: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Study[ReuseSettings]:
    """Repeat the study of Merullo et al. 2024 (arXiv 2310.08744) on a model, with controls.

    Every step is kept in `directory` (under the cache by default) as it ends; the same call
    continues from there, and path patching continues within a step. Tasks that a model answers no
    better than chance are left out of the comparison and named in the report.

    Args:
        model: a model with a fast engine.
        trained: the same model trained on Colored Objects; without it the parts that need one are
            left out.
        settings: see `ReuseSettings`.
        directory: where step results go.
        say: called with a line for every step.

    Raises:
        InterpError: a model without the fast engine, one that does IOI no better than chance, or a
            trained model of other sizes.
    """
    settings = settings or ReuseSettings()
    if model.decoder is None:
        raise InterpError(f"the study on {model.name}", str(model.engine_reason), "use another")
    study, step = begin(
        REUSE, model, trained, settings=settings, key=[trained and trained.hash],
        directory=directory, say=say,
    )  # fmt: skip
    context = ReuseContext(model=model, trained=trained, settings=settings)
    done = step("behaviour", lambda: behaviour(context, context.entries))
    if done[IOI.name]["verdict"] == "does not":
        share, chance = done[IOI.name]["right"]["mean"], done[IOI.name]["chance"]
        found = f"right on {share:z.2f}, chance {chance:z.2f}"
        raise InterpError(f"IOI on {model.name}", found, "use a model that does it")
    entries = [entry for entry in context.entries if done[entry.name]["verdict"] != "does not"]
    say(_estimate(step("pace", lambda: pace(context, IOI)), len(entries), settings.n))
    step.all(*((step_of(entry), partial(_circuit, context, entry)) for entry in entries))
    circuits = circuits_of(study.results)
    if IOI.name not in circuits:
        raise InterpError(f"IOI on {model.name}", "no clean-corrupted gap", "use more prompts")
    entries = [entry for entry in entries if entry.name in circuits]
    # Ordered so that two processes share the time about equally.
    both = trained is not None and OBJECTS_TRAINED.name in circuits
    changes = _trained(context, circuits) if both else []
    pairs, names = list(combinations(circuits, 2)), list(circuits)
    written, *_ = step.all(
        ("writes", lambda: {e.name: writes(context, e) for e in entries}, names), *changes[:1]
    )
    marks = step(
        "labels", lambda: {e.name: labels(context, e, written[e.name]) for e in entries}, written
    )
    ioi, named = circuits[IOI.name], marks[IOI.name]["named"]
    step.all(
        ("repair", lambda: repair(context, ioi, named), ioi["stages"], named),
        _groups(context, circuits),
        ("overlap", lambda: compared(context, circuits, pairs), circuits),
        *changes[1:],
    )
    return study


def _circuit(context: ReuseContext, entry: Entry) -> Result:
    """The circuit, or why there is none: a task the model hardly does may show no gap."""
    try:
        return circuit(context, entry)
    except InterpError as error:
        return {"skipped": str(error)}


def _trained(context: ReuseContext, circuits: Results) -> list[StepJob]:
    """Base against trained model: heads used for the skill, changed weights, changed effects."""
    mine = {n: found for n, found in circuits.items() if entry_named(n).group != "variant"}
    both = ((IOI, IOI_TRAINED), (OBJECTS, OBJECTS_TRAINED))
    there = [(a.name, b.name) for a, b in both if a.name in circuits and b.name in circuits]
    # Do the base model's IOI heads carry the trained skill?
    reused = partial(trained_model.knocked_out, context, [OBJECTS_TRAINED])
    return [
        ("reused", lambda: reused(trained_model.head_sets(mine)), mine),
        ("weights", lambda: trained_model.weights(context, mine), mine),
        (
            "effects",
            lambda: {b: trained_model.effects(circuits[a], circuits[b]) for a, b in there},
            [[circuits[a], circuits[b]] for a, b in there],
        ),
    ]


def _groups(context: ReuseContext, circuits: Results) -> StepJob:
    """Forget, retain and shared heads, for IOI against every task of its model."""
    pairs = [
        (left, entry_named(name))
        for left in (IOI, IOI_TRAINED)
        if left.name in circuits
        for name in circuits
        if name != left.name and entry_named(name).trained == left.trained
        if entry_named(name).group in ("control", "target")
    ]
    return (
        "groups",
        lambda: {
            f"{a.name} / {b.name}": trained_model.grouped(context, a, b, circuits) for a, b in pairs
        },
        [[circuits[a.name], circuits[b.name]] for a, b in pairs],
    )


def _estimate(seconds: Result, tasks: int, n: int) -> str:
    """About how long the circuits will take at the measured speed."""
    whole = tasks * n * (seconds["last"] + seconds["all"])
    return (
        f"{tasks} tasks x {n} prompts at {seconds['last']:z.2f} + {seconds['all']:z.2f} s: about "
        f"{whole / 60:z.0f} minutes for the circuits on this machine as it is now, and about half "
        "as long again for the rest"
    )
