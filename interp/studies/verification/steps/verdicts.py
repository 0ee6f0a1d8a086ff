"""The verdict under intervention: which sets disable it, compared with random sets like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.core.components import Component
from interp.core.nulls import null_of
from interp.core.statistics import mean_estimate, ratio_estimate, share_estimate
from interp.models.language_model import Address
from interp.runs.ablation_sets import AblatedSets
from interp.runs.change import Where
from interp.runs.kinds import AblationKind, make_ablation, random_like
from interp.runs.next_tokens import NextTokens, ablate
from interp.studies.steps import Result, plain
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import Context, verdict_task

KINDS: tuple[AblationKind, ...] = ("zero", "mean", "resample")

NULL_PAIRS = 20
"""Valid samples, and as many invalid ones, on which each random set is run."""

SUFFICIENT_PAIRS = 16
"""Pairs in which each random set is patched."""


def replacements(
    context: Context,
    samples: Samples,
    sets: Sequence[Sequence[str]],
    kind: AblationKind,
    where: Where,
) -> dict[Address, torch.Tensor] | None:
    """Values for sets of components: None for zero, else from the find samples.

    mean: the mean over the valid and invalid find samples, at the same token (t_ans or t_paren).
    resample: the value of another find sample of the other verdict, drawn for each sample.
    """
    if kind == "zero":
        return None
    addresses = _addresses(sets)
    last = 1 if where == "all" else int(where)
    found = context.values(context.find.tokens, addresses, last=last)
    if kind == "mean":
        return {at: value.mean(0, keepdim=True) for at, value in found.items()}
    rng = np.random.default_rng(context.settings.seed)
    donors = [np.flatnonzero(context.find.valid != label) for label in samples.valid]
    drawn = torch.tensor([int(rng.choice(choice)) for choice in donors])
    return {at: value[drawn] for at, value in found.items()}


def _addresses(sets: Sequence[Sequence[str]]) -> list[Address]:
    parts = [Component.parse(label) for labels in sets for label in labels]
    return list(dict.fromkeys((part.layer, part.site) for part in parts))


def verdict_effects(
    context: Context,
    samples: Samples,
    sets: Mapping[str, Sequence[str]],
    *,
    kind: AblationKind = "zero",
    where: Where | None = None,
    null_pairs: int = NULL_PAIRS,
) -> Result:
    """What each set does to the verdict, and what random sets like it do.

    disabled: share of valid samples whose most likely next token becomes "not". invalid_kept:
    share of invalid samples that stay "not"; an ablation that flips these breaks the verdict rather
    than disabling it. shift: mean change of logit(this) - logit(not), by log-probabilities, on
    valid samples. kl: mean KL(plain || ablated) in nats on all samples. Each with its values over
    `draws` random sets, which are run on the first `null_pairs` valid and as many invalid samples.
    share: share of these sets, counting the set itself, that disable at least as much as the set on
    the same samples.
    """
    where = context.settings.window if where is None else where
    valid = samples.valid
    part = np.concatenate([np.flatnonzero(valid == side)[:null_pairs] for side in (True, False)])
    random = {
        name: random_like(context.model, x, context.settings.draws, seed=context.settings.seed)
        for name, x in sets.items()
    }
    every = [*sets.values(), *(labels for drawn in random.values() for labels in drawn)]
    values = replacements(context, samples, every, kind, where)
    mine = _verdicts(context, samples, list(sets.values()), kind, where, values)
    found: Result = {"kind": kind, "where": where, "n": len(samples), "sets": {}}
    some = samples.take(part)
    if values is not None:
        values = {at: x if len(x) == 1 else x[torch.from_numpy(part)] for at, x in values.items()}
    others = _verdicts(context, some, every[len(sets) :], kind, where, values)
    first = 1
    for row, (name, labels) in enumerate(sets.items(), 1):
        rows = slice(first, first + len(random[name]))
        first = rows.stop
        no, on = mine.no[row], others.no[rows][:, some.valid]
        disabled = on.mean(1)
        found["sets"][name] = {
            "components": list(labels),
            "disabled": plain(share_estimate(int(no[valid].sum()), int(valid.sum()))),
            "invalid_kept": plain(share_estimate(int(no[~valid].sum()), int((~valid).sum()))),
            "shift": plain(mean_estimate(torch.from_numpy(mine.shift[row, valid]))),
            "kl": float(mine.kl[row].mean()),
            "draws": len(disabled),
            "null_n": len(part),
            "null": {
                "disabled": disabled.tolist(),
                "invalid_kept": others.no[rows][:, ~some.valid].mean(1).tolist(),
                "shift": others.shift[rows][:, some.valid].mean(1).tolist(),
                "kl": others.kl[rows].mean(1).tolist(),
            },
            "share": null_of(float(no[part][some.valid].mean()), disabled).share,
        }
    base = mine.no[0]
    found["none"] = {
        "disabled": plain(share_estimate(int(base[valid].sum()), int(valid.sum()))),
        "invalid_kept": plain(share_estimate(int(base[~valid].sum()), int((~valid).sum()))),
    }
    return found


def zeroed_sets(context: Context, samples: Samples) -> AblatedSets:
    """The verdict on the valid samples among some, with sets of components zeroed."""
    return ablated_sets(context, samples, (), "zero")


def ablated_sets(
    context: Context, samples: Samples, labels: Sequence[str], kind: AblationKind
) -> AblatedSets:
    """The verdict on the valid samples among some, with sets of components ablated.

    The values come from the find samples.
    """
    valid = samples.take(np.flatnonzero(samples.valid))
    window = context.settings.window
    return AblatedSets(
        model=context.model,
        prompts=valid.tokens,
        tokens=(context.ids.this, context.ids.no),
        where=window,
        kind=kind,
        values=replacements(context, valid, [labels], kind, window),
        runs=context.runs(valid.tokens, window),
    )


@dataclass(frozen=True, kw_only=True)
class _Verdicts:
    """Under each set (the first row is the plain run), (sets, samples) each."""

    no: np.ndarray
    shift: np.ndarray
    kl: np.ndarray


def _verdicts(
    context: Context,
    samples: Samples,
    sets: Sequence[Sequence[str]],
    kind: AblationKind,
    where: Where,
    values: dict[Address, torch.Tensor] | None,
) -> _Verdicts:
    ids = context.ids
    seen = ablate(
        context.model,
        samples.tokens,
        [make_ablation(context.model, labels, kind, values=values) for labels in sets],
        tokens=[ids.this, ids.no],
        where=where,
        runs=context.runs(samples.tokens, where),
    )
    gap = seen.log_odds
    return _Verdicts(no=seen.top == ids.no, shift=gap - gap[0], kl=seen.kl)


def sufficiency(context: Context, sets: Mapping[str, Sequence[str]]) -> Result:
    """Patch each set from a valid run into its invalid pair, and the reverse.

    effect: share of the log-odds gap between the two runs that the set carries over, as
    mean(change) / mean(gap), with its interval over pairs; flipped: share of pairs whose verdict
    becomes the other run's. Both are compared with `draws` random sets like it, patched in the
    first `SUFFICIENT_PAIRS` pairs. share: share of these sets that carry over as much in the same
    pairs.
    """
    ids, settings = context.ids, context.settings
    task, counts = verdict_task(context, context.test, settings.pairs)
    clean, corrupted = (tuple(getattr(p, x) for p in task.pairs) for x in ("clean", "corrupted"))
    n, few = len(clean), min(SUFFICIENT_PAIRS, len(clean))
    sides = {
        "valid into invalid": (corrupted, clean, ids.this),
        "invalid into valid": (clean, corrupted, ids.no),
    }
    random = {
        name: random_like(context.model, labels, settings.draws, seed=settings.seed)
        for name, labels in sets.items()
    }
    mine = list(sets.values())
    others = [labels for drawn in random.values() for labels in drawn]
    seen: dict[str, tuple[NextTokens, NextTokens]] = {}
    for side, (into, source, _) in sides.items():
        values = context.values(source, _addresses([*mine, *others]), last=settings.window)
        seen[side] = (
            _patched(context, into, mine, values),
            _patched(
                context, into[:few], others, {at: value[:few] for at, value in values.items()}
            ),
        )
    whole = seen["invalid into valid"][0].log_odds[0] - seen["valid into invalid"][0].log_odds[0]
    found: Result = {"n": n, "null_n": few, "counts": counts, "window": settings.window}
    for side, sign in (("valid into invalid", 1), ("invalid into valid", -1)):
        own, drawn, wanted = *seen[side], sides[side][2]
        carried, spread = (sign * (x.log_odds[1:] - x.log_odds[0]) for x in (own, drawn))
        found[side], first = {}, 0
        for row, name in enumerate(sets):
            rows = slice(first, first + len(random[name]))
            first = rows.stop
            null = spread[rows].mean(1) / whole[:few].mean()
            flipped = own.top[1 + row] == wanted
            found[side][name] = {
                **_effect(carried[row], whole),
                "effect_null": null.tolist(),
                "share": null_of(float(carried[row, :few].mean() / whole[:few].mean()), null).share,
                "flipped": plain(share_estimate(int(flipped.sum()), n)),
                "flipped_null": (drawn.top[1:][rows] == wanted).mean(1).tolist(),
            }
    return found | {"gap": float(whole.mean())}


def _patched(
    context: Context,
    into: tuple[tuple[int, ...], ...],
    sets: Sequence[Sequence[str]],
    values: dict[Address, torch.Tensor],
) -> NextTokens:
    """The verdict of some runs with each set's values patched in."""
    return ablate(
        context.model,
        into,
        [make_ablation(context.model, labels, "patch", values=values) for labels in sets],
        tokens=[context.ids.this, context.ids.no],
        where=context.settings.window,
        runs=context.runs(into, context.settings.window),
    )


def _effect(carried: np.ndarray, whole: np.ndarray) -> Result:
    """mean(carried) / mean(whole) and its 95 % interval over pairs."""
    found = ratio_estimate(carried, whole)
    return {"effect": found.mean, "effect_low": found.low, "effect_high": found.high}
