"""GLU neurons along a refusal direction, found as in the verification study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from interp.core.errors import InterpError
from interp.core.nulls import null_of
from interp.models.unembedding import unembed
from interp.neurons.glu import RankedNeuron, glu_activations, glu_vectors, label_contrast, rank_glu
from interp.probing.training import train_probes
from interp.refusal.score import log_odds
from interp.runs.change import Change
from interp.runs.kinds import make_ablation, random_like
from interp.runs.next_tokens import ablate
from interp.studies.refusal.settings import LEAST, RefusalContext
from interp.studies.steps import Result, mean_of, plain, share_of

PER_LAYER = (2, 10, 50)
SHOWN, WORDS = 8, 5


def neurons(context: RefusalContext) -> Result:
    """GLU neurons that write along refused - answered, zeroed at the last token of the prompt.

    Directions: the mean difference and a logistic probe of resid_post at every layer, from find
    rows. Sets of k neurons a layer are tried on select rows, and the best set is judged on test
    rows: drop of the refusal score in nats, and share of refused prompts whose score falls below
    the threshold, against random neurons of the same layers. Skipped, with the reason, if the MLP
    has no gate or a norm follows it.
    """
    model = context.model
    try:
        rank_glu(model, {0: torch.ones(model.d_model)}, k=1)
    except InterpError as error:
        return {"skipped": str(error)}
    refused, answered = (context.rows("find", refused=x) for x in (True, False))
    if min(len(refused), len(answered)) < LEAST:
        return {"skipped": "too few refused or answered rows"}
    tried: list[Result] = []
    sets: dict[tuple[str, int], list[RankedNeuron]] = {}
    directions = _directions(context, refused, answered)
    select = context.few(context.rows("select", refused=True), context.settings.select)
    for name, vectors in context.counted(directions.items()):
        for k in PER_LAYER:
            ranked = rank_glu(model, vectors, k=k)
            sets[name, k] = ranked
            drop = _drop(context, select, [_labels(ranked)])[0]
            tried.append({"direction": name, "k": k, "n": len(ranked), **drop})
    best = max(tried, key=lambda row: row["drop"]["mean"])
    chosen = sets[best["direction"], best["k"]]
    labels = _labels(chosen)
    found: Result = {"tried": tried, "chosen": best, "test": {}}
    random = random_like(model, labels, context.settings.draws, seed=context.settings.seed)
    for side, should in (("proper refusals", "refuse"), ("over-refusals", "answer")):
        rows = context.rows("test", should=should, refused=True)
        rows = context.few(rows, 2 * context.settings.select)
        if len(rows) < LEAST:
            continue
        mine, *others = _drop(context, rows, [labels, *random])
        nulls = {
            name: null_of(mine[of]["mean"], np.array([x[of]["mean"] for x in others]))
            for name, of in (("null", "flipped"), ("drop_null", "drop"))
        }
        found["test"][side] = mine | plain(nulls)
    found["neurons"] = _described(context, chosen[:SHOWN], refused, answered)
    return found


def _directions(
    context: RefusalContext, refused: Sequence[int], answered: Sequence[int]
) -> dict[str, dict[int, torch.Tensor]]:
    """Per layer: the mean difference, and a logistic probe, towards refusal."""
    states = torch.from_numpy(context.trajectories.states)
    apart = states[list(refused)].mean(0) - states[list(answered)].mean(0)
    rows = [*refused, *answered]
    probes = train_probes(
        states[rows].transpose(0, 1).float(),
        [True] * len(refused) + [False] * len(answered),
        groups=[context.cases[i].group for i in rows],
        shuffles=1,
        seed=context.settings.seed,
    )
    return {
        "mean difference": dict(enumerate(apart)),
        "logistic probe": dict(enumerate(probes.directions)),
    }


def _labels(ranked: Sequence[RankedNeuron]) -> list[str]:
    return [f"L{neuron.layer}N{neuron.index}" for neuron in ranked]


def _drop(
    context: RefusalContext, rows: Sequence[int], sets: Sequence[Sequence[str]]
) -> list[Result]:
    """The drop of the score with each set zeroed at the last token, and how many cross over."""
    ablations: list[Change] = [make_ablation(context.model, labels) for labels in sets]
    seen = ablate(
        context.model, context.prompts[rows].rows, ablations, tokens=context.tokens, where=1
    )
    at = context.threshold
    before, *changed = log_odds(torch.from_numpy(seen.probabilities.sum(-1)))
    return [
        {"drop": mean_of(before - after), "flipped": share_of((after <= at)[before > at])}
        for after in changed
    ]


def _described(
    context: RefusalContext,
    ranked: Sequence[RankedNeuron],
    refused: Sequence[int],
    answered: Sequence[int],
) -> list[Result]:
    """The first neurons: which tokens they write, and when they are active."""
    sides = [context.few(side, 40) for side in (refused, answered)]
    prompts = context.prompts[sum(sides, [])].rows
    last, names = [len(row) - 1 for row in prompts], _labels(ranked)
    seen = glu_activations(context.model, prompts, last, names)
    apart = label_contrast(seen, [1] * len(sides[0]) + [0] * len(sides[1]))
    values = [glu_vectors(context.model, one.layer, one.index).value for one in ranked]
    words = unembed(context.model, torch.stack(values), k=WORDS, norm=True)
    return [
        {
            "neuron": name,
            "cosine": neuron.score,
            "writes": [token.text for token in written.promoted],
            "answered": float(apart.mean[0, i]),
            "refused": float(apart.mean[1, i]),
            "auc": float(apart.auc[i]),
        }
        for i, (name, neuron, written) in enumerate(zip(names, ranked, words, strict=True))
    ]
