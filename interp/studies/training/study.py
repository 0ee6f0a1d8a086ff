"""The whole study, step by step, resumable."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from interp.core.corpus import shipped_passages
from interp.deltas.after_change import survival
from interp.deltas.compression import compress
from interp.deltas.merging import MergeRule, merge
from interp.deltas.reversal import recoverability, taken_back
from interp.deltas.singular import singular_effects
from interp.deltas.singular_fit import fit_singular
from interp.deltas.sizes import change_sizes
from interp.models.language_model import LanguageModel
from interp.models.weight_delta import WeightDelta
from interp.runs.hooks import intervene
from interp.runs.kinds import add, zero
from interp.steering.candidates import mean_difference
from interp.studies.steps import Result, plain
from interp.studies.study import Study, begin
from interp.studies.training.self_knowledge import self_reports, uncertainty
from interp.studies.training.settings import (
    REFUSAL,
    TRAINING,
    TrainingContext,
    TrainingSettings,
)
from interp.tasks.word_pairs import word_tasks

RULES: tuple[tuple[MergeRule, float], ...] = (
    *((rule, 1e-5) for rule in get_args(MergeRule)),
    ("ram", 1e-3),
)
"""Merging rules and thresholds: the published one of RAM, and one that separates."""

COMPRESSIONS: tuple[tuple[Any, dict[str, Any]], ...] = (
    *((how, {"share": share}) for how in ("magnitude", "wanda", "random") for share in (0.2, 0.5)),
    *(("round", {"bits": bits}) for bits in (8, 4)),
)
WAYS_BACK = ("float32", "bfloat16", "8 bits", "4 bits")


def study_training(
    model: LanguageModel,
    *,
    settings: TrainingSettings | None = None,
    directory: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Study[TrainingSettings]:
    """What training changed in the shipped adapters of a base, beside compressions of the base.

    Each adapter alone and merged by every rule, on every taught behaviour; what each says about
    itself, and how sure it is; whether changes come off; what compressions leave of IOI and its
    heads; singular directions of two of these heads; fitted scales of singular values.
    Every step is kept in `directory` (under the cache by default); the same call goes on from
    there.

    Args:
        model: the base.
        settings: see `TrainingSettings`.
        directory: where step results go.
        say: called with a line for every step.

    Raises:
        InterpError: fewer than two shipped adapters have this base.
    """
    settings = settings or TrainingSettings()
    context = TrainingContext(model=model, settings=settings)
    deltas = context.deltas
    study, step = begin(
        TRAINING, model, settings=settings, key=[delta.hash for delta in deltas],
        directory=directory, say=say,
    )  # fmt: skip
    step("where", lambda: plain({delta.name: _where(model, delta) for delta in deltas}))
    step("plain", lambda: plain(context.measured()))
    step("alone", lambda: plain({delta.name: context.measured(delta) for delta in deltas}))
    step("merged", lambda: plain(_merged(context)))
    step("self-report", lambda: plain(self_reports(context)))
    if any(delta.name == REFUSAL for delta in deltas):
        step("uncertainty", lambda: plain(uncertainty(context)))
    step("reversible", lambda: plain(_reversible(context)))
    for how, far in COMPRESSIONS:
        name = f"compressed {how} {next(iter(far.values())):g}"
        step(name, partial(_compressed, context, how, far))
    for head in settings.heads[:2]:
        step(f"singular {head}", partial(_singular, context, head))
    step("fitted scales", lambda: plain(_fitted(context)))
    return study


def _where(model: LanguageModel, delta: WeightDelta) -> Result:
    """The size of a change relative to the weights: part -> a number for each layer."""
    sizes = change_sizes(model, delta)
    parts = [part.rpartition(".")[2] for part in sizes.parts]
    return dict(zip(parts, sizes.values.T.round(5), strict=True))


def _merged(context: TrainingContext) -> Result:
    """The adapters merged by every rule: overlap, distance to the mean, and the behaviours."""
    found, average = {}, merge(context.deltas, "mean").delta
    for rule, threshold in RULES:
        one = merge(context.deltas, rule, threshold=threshold)
        pairs = [(one.delta.dense[name], average.dense[name]) for name in average.names]
        apart = sum(float((a - b).pow(2).sum()) for a, b in pairs) ** 0.5
        found[f"{rule} {threshold:g}"] = {
            "shares": one.shares(),
            "cosines": one.cosines,
            "difference to the mean": apart / sum(float(b.pow(2).sum()) for _, b in pairs) ** 0.5,
            "behaviours": context.measured(one.delta),
        }
    return found


def _reversible(context: TrainingContext) -> Result:
    """What is left after each kind of change was taken off, and after ways back without a copy."""
    model, delta = context.model, context.deltas[0]
    prompts = [pair.clean for pair in context.ioi.pairs[:8]]
    half = model.n_layers // 2
    direction = mean_difference(model, prompts[:4], prompts[4:], layer=half)
    blocks = {
        "the adapter as a delta": delta.applied(model),
        "a head at zero": intervene(model, zero(context.settings.heads[0])),
        "steering": intervene(model, add(direction, coefficient=4.0)),
    }
    found = {name: recoverability(model, prompts, block) for name, block in blocks.items()}
    for how in WAYS_BACK:
        found[f"added and subtracted in {how}"] = recoverability(
            model, prompts, delta.applied(model), reset=taken_back(model, delta, how)
        )
    return found


def _compressed(context: TrainingContext, how: Any, far: dict[str, Any]) -> Result:
    """What a compression leaves of IOI, of its heads, and of the loss of texts."""
    model, settings = context.model, context.settings
    texts = shipped_passages()[: settings.texts]
    delta = compress(model, how, texts=texts, **far)
    options = {"heads": settings.heads, "texts": texts, "draws": settings.draws}
    return plain(survival(model, delta, context.ioi, **options))


def _singular(context: TrainingContext, head: str) -> Result:
    """What the strongest singular directions of a head carry of IOI, beside random ones."""
    task, draws = context.ioi.first(min(24, context.settings.n)), context.settings.draws
    return plain(singular_effects(context.model, task, head, n=8, draws=draws))


def capitals() -> list[list[tuple[str, str]]]:
    """Questions and answers, for a fit and held out."""
    (task,) = word_tasks("capital")
    return [[(f"Q: {asked}\nA:", f" {told}") for asked, told in x.pairs] for x in task.split()]


def _fitted(context: TrainingContext) -> Result:
    """What scales of singular values alone learn of capitals, beside shuffled answers."""
    train, held_out = capitals()
    settings = context.settings
    found = fit_singular(context.model, settings.scaled, train, held_out, steps=settings.fit_steps)
    names = ("before", "change", "shuffled", "random", "beyond_shuffled", "beyond_random")
    ends = {part: (z.min(), z.max()) for part, z in found.scales.items()}
    return {name: getattr(found, name) for name in names} | {"scales": ends}
