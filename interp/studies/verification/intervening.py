"""The verdict under intervention: which sets disable it, against random sets like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from interp.ablation import (
    Kind,
    Where,
    ablate,
    make_ablation,
    random_like,
)
from interp.components import Component
from interp.cumulative import AblatedSets
from interp.metrics import mean_estimate, share_estimate
from interp.models.language_model import Address
from interp.nulls import null_of
from interp.studies.steps import Result, plain
from interp.studies.verification.context import Context, verdict_task
from interp.studies.verification.samples import Samples

KINDS: tuple[Kind, ...] = ("zero", "mean", "resample")


def replacements(
    context: Context, samples: Samples, sets: Sequence[Sequence[str]], kind: Kind, where: Where
) -> dict[Address, torch.Tensor] | None:
    """Values for sets of components: none for zero, over the find samples for the others.

    mean: the mean over the valid and invalid find samples, at the same place (t_ans or t_paren).
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


def with_random(
    context: Context, sets: Mapping[str, Sequence[str]], draws: int
) -> tuple[list[list[str]], dict[str, slice]]:
    """Each set and behind it its random sets, and where they stand in the rows of `ablate`.

    Row 0 of `ablate` is the plain run, so that the list's first set is row 1.
    """
    listed: list[list[str]] = []
    places: dict[str, slice] = {}
    for name, labels in sets.items():
        begin = 1 + len(listed)
        drawn = random_like(context.model, labels, draws, seed=context.settings.seed)
        listed += [list(labels), *drawn]
        places[name] = slice(begin, 1 + len(listed))
    return listed, places


def verdict_effects(
    context: Context,
    samples: Samples,
    sets: Mapping[str, Sequence[str]],
    *,
    kind: Kind = "zero",
    where: Where | None = None,
    draws: int | None = None,
) -> Result:
    """What each set does to the verdict, and what random sets like it do.

    disabled: share of valid samples whose most likely next token becomes "not". invalid_kept:
    share of invalid ones that stay "not" (the false-positive side: an ablation that makes the
    model say "not" everywhere disables nothing in particular, one that flips these breaks it).
    shift: mean change of logit(this) - logit(not), by log-probabilities, on valid samples. kl:
    mean KL(plain || ablated) in nats on all samples. Each with its values over random sets.
    """
    ids, settings = context.ids, context.settings
    where = settings.window if where is None else where
    listed, places = with_random(context, sets, settings.draws if draws is None else draws)
    values = replacements(context, samples, listed, kind, where)
    ablations = [make_ablation(context.model, labels, kind, values=values) for labels in listed]
    seen = ablate(
        context.model,
        samples.tokens,
        ablations,
        tokens=[ids.this, ids.no],
        where=where,
        runs=context.runs(samples.tokens, where),
    )
    valid, gap = samples.valid, seen.log_odds
    found: Result = {"kind": kind, "where": where, "n": len(samples), "sets": {}}
    for name, rows in places.items():
        no = seen.top[rows] == ids.no
        disabled = no[:, valid].mean(1)
        kept = no[:, ~valid].mean(1)
        shift = (gap[rows] - gap[0])[:, valid].mean(1)
        kl = seen.kl[rows].mean(1)
        found["sets"][name] = {
            "components": list(sets[name]),
            "disabled": plain(share_estimate(int(no[0, valid].sum()), int(valid.sum()))),
            "invalid_kept": plain(share_estimate(int(no[0, ~valid].sum()), int((~valid).sum()))),
            "shift": plain(mean_estimate(torch.from_numpy((gap[rows][0] - gap[0])[valid]))),
            "kl": float(kl[0]),
            "draws": len(disabled) - 1,
            "null": {
                "disabled": disabled[1:].tolist(),
                "invalid_kept": kept[1:].tolist(),
                "shift": shift[1:].tolist(),
                "kl": kl[1:].tolist(),
            },
            "p": null_of(float(disabled[0]), disabled[1:]).p,
        }
    base = seen.top[0] == ids.no
    found["none"] = {
        "disabled": plain(share_estimate(int(base[valid].sum()), int(valid.sum()))),
        "invalid_kept": plain(share_estimate(int(base[~valid].sum()), int((~valid).sum()))),
    }
    return found


def zeroed_sets(context: Context, samples: Samples) -> AblatedSets:
    """The verdict on the valid ones of some samples with sets of components zeroed."""
    valid = samples.take(np.flatnonzero(samples.valid))
    window = context.settings.window
    return AblatedSets(
        model=context.model,
        prompts=valid.tokens,
        tokens=(context.ids.this, context.ids.no),
        where=window,
        runs=context.runs(valid.tokens, window),
    )


def sufficiency(context: Context, sets: Mapping[str, Sequence[str]]) -> Result:
    """Patch each set from a valid run into its invalid pair, and the reverse.

    effect: share of the log-odds gap between the two runs that the set carries over, as
    mean(change) / mean(gap); flipped: share of pairs whose verdict becomes the other run's. Both
    against random sets like it.
    """
    ids, settings = context.ids, context.settings
    task, counts = verdict_task(context, context.test, settings.pairs)
    pairs = task.pairs
    clean, corrupted = tuple(p.clean for p in pairs), tuple(p.corrupted for p in pairs)
    sides = {
        "valid into invalid": (corrupted, clean, ids.this),
        "invalid into valid": (clean, corrupted, ids.no),
    }
    listed, places = with_random(context, sets, settings.draws)
    found: Result = {"n": len(pairs), "counts": counts, "window": settings.window}
    ends = {}
    for side, (into, source, wanted) in sides.items():
        values = context.values(source, _addresses(listed), last=settings.window)
        made = [make_ablation(context.model, x, "patch", values=values) for x in listed]
        seen = ablate(
            context.model,
            into,
            made,
            tokens=[ids.this, ids.no],
            where=settings.window,
            runs=context.runs(into, settings.window),
        )
        gap = seen.log_odds
        ends[side] = gap[0].mean()
        found[side] = {}
        for name, rows in places.items():
            flipped = seen.top[rows] == wanted
            found[side][name] = {
                "change": (gap[rows] - gap[0]).mean(1).tolist(),
                "flipped": plain(share_estimate(int(flipped[0].sum()), len(pairs))),
                "flipped_null": flipped[1:].mean(1).tolist(),
            }
    whole = ends["invalid into valid"] - ends["valid into invalid"]
    for side, sign in (("valid into invalid", 1), ("invalid into valid", -1)):
        for row in found[side].values():
            change = [sign * value / whole for value in row.pop("change")]
            row["effect"], row["effect_null"] = change[0], change[1:]
            row["p"] = null_of(change[0], np.array(change[1:])).p
    found["gap"] = float(whole)
    return found
