"""The verdict under intervention: sets of components ablated or patched, directions added.

Each is compared with random ones like it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from interp.core.components import Component
from interp.core.nulls import null_of, turned_directions
from interp.core.statistics import ratio_estimate
from interp.models.language_model import Address
from interp.runs.ablation_sets import AblatedSets
from interp.runs.change import Where
from interp.runs.kinds import AblationKind, make_ablation
from interp.runs.next_tokens import NextTokens, ablate
from interp.steering.at_trigger import steer_at_trigger, vector_steering
from interp.studies.steps import Result, mean_of, plain, share_of
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import Sets, VerdictContext, verdict_task

KINDS: tuple[AblationKind, ...] = ("zero", "mean", "resample")

NULL_PAIRS = 20
"""Valid samples, and as many invalid ones, on which each random set is run."""

SUFFICIENT_PAIRS = 16
"""Pairs in which each random set is patched."""

SCALES = (0.05, 0.1, 0.2, 0.4)
"""Doses, as shares of the mean length of the stream at t_paren in the layers steered."""

SIGNS = {"this": 1, "not": -1}
"""The wanted verdict, and the sign with which a direction towards valid is added."""

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
    addresses = _addresses(sets)
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


def _addresses(sets: Sequence[Sequence[str]]) -> list[Address]:
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

    disabled: share of valid samples whose most likely next token becomes "not". invalid_kept:
    share of invalid samples that stay "not"; an ablation that flips these breaks the verdict rather
    than disabling it. shift: mean change of logit(this) - logit(not), by log-probabilities, on
    valid samples. kl: mean KL(plain || ablated) in nats on all samples. Each with its values over
    `draws` random sets, which are run on the first `null_pairs` valid and as many invalid samples.
    share: share of these sets, counting the set itself, that disable at least as much as the set on
    the same samples.
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
    (no, shift), (random_no, random_shift) = (
        (seen.top == ids.no, seen.log_odds - seen.log_odds[0]) for seen in (mine, others)
    )
    found: Result = {"kind": kind, "where": where, "n": len(samples), "sets": {}}
    first = 1
    for row, (name, labels) in enumerate(sets.items(), 1):
        rows = slice(first, first + len(random[name]))
        first = rows.stop
        disabled = random_no[rows][:, some.valid].mean(1)
        null = {
            "disabled": disabled,
            "invalid_kept": random_no[rows][:, ~some.valid].mean(1),
            "shift": random_shift[rows][:, some.valid].mean(1),
            "kl": others.kl[rows].mean(1),
        }
        share = null_of(float(no[row][part][some.valid].mean()), disabled).share
        found["sets"][name] = effect_row(
            labels, valid, (no[row], shift[row], mine.kl[row]), null, len(part), share
        )
    found["none"] = {"disabled": share_of(no[0][valid]), "invalid_kept": share_of(no[0][~valid])}
    return found


def effect_row(
    labels: Sequence[str],
    valid: np.ndarray,
    seen: tuple[np.ndarray, np.ndarray, np.ndarray],
    null: Mapping[str, Any],
    null_n: int,
    share: float,
) -> Result:
    """A row of `verdict_effects`.

    `seen`: for each sample whether the verdict is "not", the shift, and the KL. `null`: the values
    of the random sets, each run on `null_n` samples.
    """
    no, shift, kl = seen
    return {
        "components": list(labels),
        "disabled": share_of(no[valid]),
        "invalid_kept": share_of(no[~valid]),
        "shift": mean_of(shift[valid]),
        "kl": float(kl.mean()),
        "draws": len(null["disabled"]),
        "null_n": null_n,
        "null": plain(null),
        "share": share,
    }


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
        values = context.values(source, _addresses([*mine, *others]), last=window)
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


def steering(context: VerdictContext) -> Result:
    """Verdicts changed by a direction added at t_paren, in the last third of the layers.

        x_l <- x_l + sign * scale * length * d_l / |d_l|

    For every direction of the context and every dose of `SCALES`: the share of invalid test
    samples judged "this" (sign +), of valid ones judged "not" (sign -), and of samples given
    neither. null: the same share with all layers' directions turned together at random
    (`turned_directions`), `draws` times, on the first `NULL_PAIRS` samples; share: the share of
    draws as large as the direction's own on the same samples. chosen: for each verdict the row
    that changes most find samples, with the weakest such dose; `text` uses that of "this".

    Departs from the paper, which adds 20 times the unit vector of its softmax probe at t_ans and
    shows three texts.
    """
    model, settings = context.model, context.settings
    layers = range(2 * model.n_layers // 3, model.n_layers)
    states = context.states["resid_post"][list(layers), :, 1].double()
    length = float(states.norm(dim=-1).mean())
    rows = []
    for name, vectors in context.directions.items():
        random = list(turned_directions(vectors, settings.draws, seed=settings.seed))
        for scale in SCALES:
            row: Result = {"direction": name, "scale": scale}
            for word, sign in SIGNS.items():
                size = sign * scale * length
                found = _turned(context, context.find, word, [vectors], size, layers)
                own = _turned(context, context.test, word, [vectors], size, layers)
                null = _turned(context, context.test, word, random, size, layers, NULL_PAIRS)
                here, shares = own["turned"][0], null["turned"].mean(1)
                row[word] = {
                    **share_of(here),
                    "neither": float(own["neither"].mean()),
                    "find": float(found["turned"].mean()),
                    "null": shares.tolist(),
                    "share": null_of(float(here[:NULL_PAIRS].mean()), shares).share,
                }
            rows.append(row)
    chosen = {
        word: rows.index(max(rows, key=lambda row, word=word: (row[word]["find"], -row["scale"])))
        for word in SIGNS
    }
    best = rows[chosen["this"]]
    vectors, scale = context.directions[best["direction"]], best["scale"] * length
    return {
        "rows": rows,
        "layers": [layers.start, layers.stop - 1],
        "length": length,
        "null_n": min(NULL_PAIRS, len(context.test) // 2),
        "chosen": chosen,
        "text": _text(context, vectors, scale, layers),
    }


def _turned(
    context: VerdictContext,
    samples: Samples,
    word: str,
    directions: Sequence[torch.Tensor],
    scale: float,
    layers: Sequence[int],
    most: int | None = None,
) -> dict[str, np.ndarray]:
    """Whether each verdict becomes the other, or neither, under each direction."""
    ids = context.ids
    wanted = {"this": ids.this, "not": ids.no}[word]
    context.runs(samples.tokens, 1)  # holds the runs of either side
    some = samples.take(np.flatnonzero(samples.valid == (word == "not"))[:most])
    made = [vector_steering(context.model, d, scale=scale, layers=layers) for d in directions]
    seen = ablate(
        context.model, some.tokens, made, tokens=[ids.this, ids.no], where=1,
        runs=context.runs(some.tokens, 1),
    )  # fmt: skip
    top = seen.top[1:]
    return {"turned": top == wanted, "neither": ~np.isin(top, [ids.this, ids.no])}


def _text(
    context: VerdictContext, vectors: torch.Tensor, scale: float, layers: Sequence[int]
) -> dict[str, str]:
    """What follows the first invalid test sample's result, plain and steered behind it."""
    invalid = context.test.take(np.flatnonzero(~context.test.valid)[:1])
    prompt = invalid.tokens[0][:-1]
    made = steer_at_trigger(
        context.model, [prompt], vectors, scale=scale, max_new_tokens=80, layers=layers,
        trigger=context.ids.paren, where=1, stop=STOPS,
    )  # fmt: skip
    line = "".join(context.model.strings(prompt)).rpartition("\n")[2]
    return {"before": line, "plain": made.plain[0].text, "steered": made.steered[0].text}
