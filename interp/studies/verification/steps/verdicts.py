"""The verdict under intervention: sets of components ablated or patched.

Each is compared with random ones like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from interp.core.components import Component
from interp.core.nulls import null_of
from interp.core.statistics import auc_estimate, auc_of, ratio_estimate
from interp.models.language_model import Address
from interp.runs.ablation_sets import AblatedSets
from interp.runs.change import Where
from interp.runs.kinds import AblationKind, make_ablation
from interp.runs.next_tokens import NextTokens, ablate
from interp.studies.steps import Result, mean_of, plain, share_of
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import Sets, VerdictContext, verdict_task

KINDS: tuple[AblationKind, ...] = ("zero", "mean", "resample")

NULL_PAIRS = 20
"""Valid samples, and as many invalid ones, on which each random set is run."""

SUFFICIENT_PAIRS = 16
"""Pairs in which each random set is patched."""

STOPS = ("\n\n",)
"""What ends a text that is continued."""


def replacements(
    context: VerdictContext,
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
    addresses = addresses_of(sets)
    last = 1 if where == "all" else int(where)
    found = context.values(context.find.tokens, addresses, last=last)
    if kind == "mean":
        return {at: value.mean(0, keepdim=True) for at, value in found.items()}
    rng = np.random.default_rng(context.settings.seed)
    donors = [np.flatnonzero(context.find.valid != label) for label in samples.valid]
    drawn = torch.tensor([int(rng.choice(choice)) for choice in donors])
    return {at: value[drawn] for at, value in found.items()}


def neurons_and_heads(sets: Sets) -> tuple[dict[str, Sequence[str]], dict[str, Sequence[str]]]:
    """The sets of neurons, and all other sets."""
    neurons = {name: labels for name, labels in sets.items() if "N" in labels[0]}
    return neurons, {name: labels for name, labels in sets.items() if name not in neurons}


def addresses_of(sets: Sequence[Sequence[str]]) -> list[Address]:
    """The layers and sites at which the components of some sets lie."""
    parts = [Component.parse(label) for labels in sets for label in labels]
    return list(dict.fromkeys((part.layer, part.site) for part in parts))


def verdict_effects(
    context: VerdictContext,
    samples: Samples,
    sets: Sets,
    *,
    kind: AblationKind = "zero",
    where: Where | None = None,
    null_pairs: int = NULL_PAIRS,
) -> Result:
    """What each set does to the verdict, and what random sets like it do.

    Discrimination and threshold are told apart. auc: how well log P(this) - log P(not) still
    separates valid from invalid samples, wherever the threshold lies (`auc_estimate`). shift,
    shift_invalid: mean change of this difference, in nats, on valid and on invalid samples. An
    ablation that shifts both classes alike moves the threshold and leaves the verdict in place.

    disabled: share of valid samples whose most likely next token becomes "not". invalid_kept:
    share of invalid samples that stay "not". kl: mean KL(plain || ablated) in nats on all samples.
    Each with its values over `draws` random sets, which are run on the first `null_pairs` valid and
    as many invalid samples. share, auc_share: shares of these sets, counting the set itself, that
    disable at least as much as the set, and that leave an AUC at most as high, on the same samples.
    """
    ids, valid = context.ids, samples.valid
    where = context.settings.window if where is None else where
    part = np.concatenate([np.flatnonzero(valid == side)[:null_pairs] for side in (True, False)])
    random = context.random_like(sets)
    every = [*sets.values(), *chain.from_iterable(random.values())]
    values = replacements(context, samples, every, kind, where)
    mine = under_sets(context, samples.tokens, every[: len(sets)], kind, where, values)
    some = samples.take(part)
    if values is not None:
        values = {at: x if len(x) == 1 else x[torch.from_numpy(part)] for at, x in values.items()}
    others = under_sets(context, some.tokens, every[len(sets) :], kind, where, values)
    measured, drawn = (measures(seen, ids.no) for seen in (mine, others))
    found: Result = {"kind": kind, "where": where, "n": len(samples), "sets": {}}
    first = 1
    for row, (name, labels) in enumerate(sets.items(), 1):
        rows = slice(first, first + len(random[name]))
        first = rows.stop
        groups = [part] * len(random[name])
        found["sets"][name] = effect_row(labels, valid, measured[row], list(drawn[rows]), groups)
    no = measured[0, :, 0]
    found["none"] = {
        "disabled": share_of(no[valid]),
        "invalid_kept": share_of(no[~valid]),
        "auc": plain(auc_estimate(measured[0, :, 1], valid)),
    }
    return found


def measures(seen: NextTokens, no: int) -> np.ndarray:
    """(1 + changes, samples, 4): whether the verdict is "not", log-odds, their change, and KL."""
    odds = seen.log_odds
    return np.stack([seen.top == no, odds, odds - odds[0], seen.kl], -1).astype(float)


def effect_row(
    labels: Sequence[str],
    valid: np.ndarray,
    seen: np.ndarray,
    drawn: Sequence[np.ndarray],
    groups: Sequence[np.ndarray],
) -> Result:
    """A row of `verdict_effects`.

    `seen`: the set's `measures`, (samples, 4). `drawn`: those of each random set, on the samples
    that `groups` names; the set is compared with it on the same samples, where its values
    are `own`.
    """
    no, odds, shift, kl = seen.T
    null = _on_groups(drawn, [valid[group] for group in groups])
    own = _on_groups([seen[group] for group in groups], [valid[group] for group in groups])
    draws = len(groups)
    return {
        "components": list(labels),
        "disabled": share_of(no[valid]),
        "invalid_kept": share_of(no[~valid]),
        "auc": plain(auc_estimate(odds, valid)),
        "shift": mean_of(shift[valid]),
        "shift_invalid": mean_of(shift[~valid]),
        "kl": float(kl.mean()),
        "draws": draws,
        "null_n": len(groups[0]) if draws else 0,
        "null": plain(null),
        "own": {name: own[name].tolist() for name in ("disabled", "auc")},
        "share": (1 + int((null["disabled"] >= own["disabled"]).sum())) / (1 + draws),
        "auc_share": (1 + int((null["auc"] <= own["auc"]).sum())) / (1 + draws),
    }


def _on_groups(
    measured: Sequence[np.ndarray], valid: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Means and the AUC of `measures` on groups of samples, one value a group each."""
    rows = [
        {
            "disabled": x[side, 0].mean(),
            "invalid_kept": x[~side, 0].mean(),
            "auc": auc_of(x[:, 1], side),
            "shift": x[side, 2].mean(),
            "shift_invalid": x[~side, 2].mean(),
            "kl": x[:, 3].mean(),
        }
        for x, side in zip(measured, valid, strict=True)
    ]
    names = ("disabled", "invalid_kept", "auc", "shift", "shift_invalid", "kl")
    return {name: np.array([row[name] for row in rows]) for name in names}


def zeroed_sets(context: VerdictContext, samples: Samples) -> AblatedSets:
    """The verdict on the valid samples among some, with sets of components zeroed."""
    return ablated_sets(context, samples, (), "zero")


def ablated_sets(
    context: VerdictContext, samples: Samples, labels: Sequence[str], kind: AblationKind
) -> AblatedSets:
    """As `zeroed_sets`, ablated in another way; the values come from the find samples."""
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


def under_sets(
    context: VerdictContext,
    prompts: tuple[tuple[int, ...], ...],
    sets: Sequence[Sequence[str]],
    kind: AblationKind,
    where: Where,
    values: dict[Address, torch.Tensor] | None,
) -> NextTokens:
    """The verdict of some runs, plain and under each set."""
    return ablate(
        context.model,
        prompts,
        [make_ablation(context.model, labels, kind, values=values) for labels in sets],
        tokens=[context.ids.this, context.ids.no],
        where=where,
        runs=context.runs(prompts, where),
    )


def sufficiency(context: VerdictContext, sets: Sets) -> Result:
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
    random, window = context.random_like(sets), settings.window
    mine, others = list(sets.values()), list(chain.from_iterable(random.values()))
    seen: dict[str, tuple[NextTokens, NextTokens]] = {}
    for side, (into, source, _) in sides.items():
        values = context.values(source, addresses_of([*mine, *others]), last=window)
        some = {at: value[:few] for at, value in values.items()}
        seen[side] = (
            under_sets(context, into, mine, "patch", window, values),
            under_sets(context, into[:few], others, "patch", window, some),
        )
    whole = seen["invalid into valid"][0].log_odds[0] - seen["valid into invalid"][0].log_odds[0]
    found: Result = {"n": n, "null_n": few, "counts": counts, "window": window}
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
                "flipped": share_of(flipped),
                "flipped_null": (drawn.top[1:][rows] == wanted).mean(1).tolist(),
            }
    return found | {"gap": float(whole.mean())}


def _effect(carried: np.ndarray, whole: np.ndarray) -> Result:
    """mean(carried) / mean(whole) and its 95 % interval over pairs."""
    found = ratio_estimate(carried, whole)
    return {"effect": found.mean, "effect_low": found.low, "effect_high": found.high}
