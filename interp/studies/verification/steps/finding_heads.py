"""Which heads carry the verdict: by patching and ablation; and which neurons they feed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd

from interp.core.errors import InterpError
from interp.neurons.from_heads import head_glu_scores
from interp.neurons.glu import rank_glu
from interp.neurons.silencing import activation_delta
from interp.patching.activation import activation_patching
from interp.patching.path import path_patching
from interp.results.scores import Scores
from interp.runs.ablation_sets import (
    ENOUGH,
    AblatedSets,
    AblationCurve,
    ablation_curve,
    greedy_order,
    smallest_sets,
    smallest_size,
)
from interp.studies.steps import Result, plain, share_of
from interp.studies.verification.settings import Sets, VerdictContext
from interp.studies.verification.steps.readouts import glu_sets, label, upper_half
from interp.studies.verification.steps.verdicts import KINDS, ablated_sets, zeroed_sets

RANDOM_SETS = 5
"""Random sets for every set tried; the chosen set gets `draws` of them on test samples."""

PLACES = ("t_ans", "t_paren")
LONGEST, GREEDY = 12, 6
"""The most heads of a cumulative curve, and of one grown greedily."""

SEARCHED, LISTED = 2, 10
"""All sets of up to `SEARCHED` heads are tried; at most `LISTED` found ones are measured again."""

PAIRS_GB = 4.0
"""Enough for the runs of all pairs of the default model; in parts they would run twice."""

STRONGEST, BAND = 6, 2
"""How many heads of a map are tested against random ones, and within how many layers."""

SCORED, BEST = 200, 50
"""The GLU vectors that the published head score averages over, and how many a layer compete."""

READ, READ_NULL = 16, 4
"""Valid samples on which neurons are read without the heads, and without each random set."""

PUBLISHED = "diag"
"""The head score that was published."""


def patching(context: VerdictContext) -> Result:
    """Exact activation patching on valid-invalid pairs.

    Heads (site z) at t_ans and t_paren together, in both directions; attention and MLP outputs
    layer by layer at each of the two. The strongest heads of every map are tested
    (`Scores.null`), unless there are too few pairs.
    """
    pairs, counts = context.pairs
    patched = partial(
        activation_patching, context.model, pairs, positions=PLACES, budget_gb=PAIRS_GB
    )
    found: Result = {"n": len(pairs), "counts": counts}
    for direction in ("denoise", "noise"):
        scores = patched(site="z", by=("layer", "head"), direction=direction)
        found[direction] = tested_map(scores, 12, context.settings.seed)
    for site in ("attn_out", "mlp_out"):
        found[site] = patched(site=site, by=("layer", "position")).values.tolist()
    return found


def paths(context: VerdictContext, receivers: Sequence[str]) -> Result:
    """Path patching of every head at t_ans and t_paren into some receivers, with its test."""
    model, task = context.model, context.pairs[0]
    scores = path_patching(
        model, task, receivers=receivers, positions=PLACES, runs=context.pair_runs
    )
    return tested_map(scores, 8, context.settings.seed) | {"receivers": list(receivers)}


def strongest_mlps(effects: Sequence[Sequence[float]], k: int = 4) -> list[str]:
    """The MLPs whose restored output at t_paren recovers the verdict most, by layer."""
    return [f"L{layer}.mlp_out" for layer in sorted(np.argsort(-np.array(effects)[:, 1])[:k])]


def tested_map(scores: Scores, k: int, seed: int) -> Result:
    """Effects of all heads, the k strongest, and the test of the first `STRONGEST`, as JSON."""
    null = None
    with suppress(InterpError):  # too few pairs to halve, or too few heads
        null = plain(scores.null(STRONGEST, band=BAND, seed=seed))
    low, high = scores.interval()
    return {
        "values": scores.values.tolist(),
        "top": [
            {
                **{key: getattr(entry, key) for key in ("label", "value", "stderr")},
                "low": float(low[scores.index(entry.label)]),
                "high": float(high[scores.index(entry.label)]),
            }
            for entry in scores.top(k)
        ],
        "null": null,
        "null_of": [STRONGEST, BAND],
    }


def glu_choice(context: VerdictContext) -> Result:
    """Which direction, and how many GLU vectors a layer, lower the verdict most.

    For every direction of `VerdictContext.directions` and every `top_k`: both GLU sets zeroed on
    the valid find samples. disabled: share judged "not"; log_odds: mean of log P(this) - log
    P(not). The direction and size that lower it most are used from here on, and measured on the
    test samples.
    """
    zeroed = zeroed_sets(context, context.find)
    rows = []
    for direction in context.directions:
        for k in context.settings.top_k:
            sets, both = glu_sets(context, direction, k)
            valid = [label(neuron) for neuron in sets["GLU_Valid"]]
            drawn = context.random_like({"both": both}, RANDOM_SETS)["both"]
            no, odds = (x.mean(1) for x in zeroed([valid, both, *drawn]))
            places = {"GLU_Valid": 0, "both": 1, "random": slice(2, None)}
            shown = {
                name: {"disabled": float(no[at].mean()), "log_odds": float(odds[at].mean())}
                for name, at in places.items()
            }
            rows.append({"direction": direction, "k": k, "neurons": len(both), **shown})
    best = min(rows, key=lambda row: row["both"]["log_odds"])
    n = int(context.find.valid.sum())
    return {"rows": rows, "direction": best["direction"], "k": best["k"], "n": n}


def strongest(values: Sequence[Sequence[float]], k: int) -> list[str]:
    """Labels of the k heads of largest value in a (layer, head) table."""
    table = np.array(values)
    order = np.argsort(-table, axis=None, kind="stable")[:k]
    return ["L{}H{}".format(*np.unravel_index(place, table.shape)) for place in order]


def smallest(context: VerdictContext, candidates: Sequence[str]) -> Result:
    """All sets of the smallest size, up to `SEARCHED` candidates, that disable the verdict.

    Every set is tried on the find samples; those found are measured on the test samples, under
    every kind of ablation. most: the size at which the search ended. alone: the same for every
    single head of the model, candidate or not. A head that disables when zeroed alone, and that
    patching does not find, breaks the run rather than carrying the verdict.
    """
    zeroed = zeroed_sets(context, context.find)
    found = smallest_sets(zeroed, candidates, most=SEARCHED)
    model = context.model
    heads = [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    no, _ = zeroed([[head] for head in heads])
    alone = [(head,) for head, row in zip(heads, no, strict=True) if row.mean() >= ENOUGH]
    most = len(found[0]) if found else SEARCHED
    return {
        "candidates": len(candidates),
        "most": most,
        "tried": sum(comb(len(candidates), size) for size in range(1, most + 1)),
        "sets": _under_every_kind(context, found[:LISTED]),
        "found": len(found),
        "alone": _under_every_kind(context, alone),
        "heads": len(heads),
    }


def _under_every_kind(context: VerdictContext, sets: Sequence[Sequence[str]]) -> list[Result]:
    """Shares of valid test samples judged "not" with each set ablated, a row a set."""
    rows: list[Result] = [{"heads": list(heads)} for heads in sets]
    labels = [head for heads in sets for head in heads]
    for kind in KINDS if sets else ():
        no, _ = ablated_sets(context, context.test, labels, kind)(sets)
        for row, disabled in zip(rows, no, strict=True):
            row[kind] = share_of(disabled)
    return rows


def curves(context: VerdictContext, orders: Sets) -> Result:
    """The incremental ablation curve of every order, and the smallest set that disables.

    Every order is tried on the find samples. The smallest set that makes at least 95 % of valid
    attempts "not" there is chosen, and its whole curve is measured again on the test samples, with
    random sets of the same layers at some sizes.
    """
    found: Result = {"find": {}}
    zeroed = zeroed_sets(context, context.find)
    shares: dict[str, list[float]] = {}
    for name, order in orders.items():
        curve = ablation_curve(zeroed, list(order)[:LONGEST])
        shares[name] = [share.mean for share in curve.disabled]
        found["find"][name] = {"curve": _points(curve), "size": curve.smallest}
    best, size = _smallest_of(shares)
    order = list(orders[best])[: max(size + 2, min(LONGEST, len(orders[best])))]
    sizes = {1, 2, 4, 8, size, len(order)}
    tested = ablation_curve(
        zeroed_sets(context, context.test),
        order,
        draws=context.settings.draws,
        sizes={some for some in sizes if some <= len(order)},
        seed=context.settings.seed,
    )
    return found | {
        "order": best,
        "reached": found["find"][best]["size"] is not None,
        "chosen": order[:size],
        "test": _points(tested),
    }


def _points(curve: AblationCurve) -> list[Result]:
    """A curve as plain JSON, one row for each size; with random sets if they were drawn."""
    rows = enumerate(zip(curve.order, curve.disabled, curve.log_odds, strict=True), 1)
    return [
        {"size": size, "added": added, "disabled": plain(share), "log_odds": odds.mean}
        | ({"null": curve.null[size].tolist()} if size in curve.null else {})
        for size, (added, share, odds) in rows
    ]


def _smallest_of(shares: Mapping[str, Sequence[float]]) -> tuple[str, int]:
    """The order that disables with the fewest heads (the first named of several), and how many.

    If none does, the order that disables most with all its heads.
    """
    sizes = [(size, name) for name, x in shares.items() if (size := smallest_size(x)) is not None]
    if sizes:
        size, best = min(sizes, key=lambda pair: pair[0])
        return best, size
    best = max(shares, key=lambda name: shares[name][-1])
    return best, len(shares[best])


def stability(
    context: VerdictContext, orders: Sets, strong: Sequence[str], draws: int = 10
) -> Result:
    """Which sets the same procedure chooses on resampled find samples.

    The choice of `curves`, with a greedy order and a search of its own each time, on bootstrap
    resamples of the valid find samples; and on the test samples, which share no problem with them.
    The order by patching stays the same.
    """
    rng = np.random.default_rng(context.settings.seed)

    def choose(zeroed: AblatedSets, drawn: np.ndarray) -> list[str]:
        fresh = {
            "greedy": greedy_order(zeroed, strong, GREEDY, drawn=drawn),
            "search": next(iter(smallest_sets(zeroed, strong, most=SEARCHED, drawn=drawn)), ()),
        }
        tried = {
            name: list(order)[:LONGEST] for name, order in {**orders, **fresh}.items() if order
        }
        shares = {}
        for name, order in tried.items():
            no, _ = zeroed([order[:size] for size in range(1, len(order) + 1)])
            shares[name] = no[:, drawn].mean(1).tolist()
        best, size = _smallest_of(shares)
        return sorted(tried[best][:size])

    n = int(context.find.valid.sum())
    find = zeroed_sets(context, context.find)
    sets = [choose(find, rng.choice(n, n)) for _ in range(draws)]
    test = zeroed_sets(context, context.test)
    return {
        "draws": draws,
        "sets": Counter(" ".join(heads) for heads in sets),
        "counts": Counter(head for heads in sets for head in heads),
        "on_test": choose(test, np.arange(int(context.test.valid.sum()))),
    }


def score_set(context: VerdictContext) -> list[str]:
    """The GLU vectors of the published head score, the strongest first.

    For every layer of the upper half, take the `BEST` neurons of each layer up to it whose value
    vectors lie most along the softmax probe of that layer. Pooled by cosine, each neuron once, the
    first `SCORED` are used. The ablated sets use the probe of a neuron's own layer instead.

    Source: ajyl/self_verification (mech_interp).
    """
    ranked = rank_glu(
        context.model,
        context.directions["softmax"],
        layers=upper_half(context.model),
        mode="all_below",
        k=min(BEST, context.model.d_mlp),
    )
    return [label(neuron) for neuron in ranked[:SCORED]]


def head_scores(context: VerdictContext, heads: Sequence[str], neurons: Sequence[str]) -> Result:
    """How much heads feed GLU neurons, by three scores.

    The released diagonal, the true OV product, and the contribution of real head outputs (valid
    minus invalid) at t_paren. The scores of the neurons of `score_set`, as published, have the
    name of the mode; those of the given neurons (GLU_Valid) have ", GLU_Valid" after it.
    """
    sets = {"": score_set(context), ", GLU_Valid": list(neurons)}
    samples, found = context.find, Result()
    on_samples = {
        "prompts": samples.tokens,
        "positions": samples.t_paren,
        "labels": samples.valid,
        "runs": context.runs(samples.tokens),
    }
    for name, neurons in sets.items():
        for mode in ("diag", "ov", "activation"):
            options = on_samples if mode == "activation" else {}
            scores = head_glu_scores(context.model, heads, neurons, mode=mode, **options)
            found[mode + name] = {
                "heads": list(scores.heads),
                "neurons": len(neurons),
                "values": scores.head_values.tolist(),
                "stderr": scores.head_stderr.tolist(),
                "order": [head for head, _, _ in scores.ranking()],
            }
    return found


def communication(
    context: VerdictContext, scores: Result, chosen: Sequence[str], neurons: Sequence[str]
) -> Result:
    """Whether the scores agree, and which neurons fall silent without the chosen heads.

    The heads are zeroed at every token of at most `READ` valid test samples. The neurons are read
    at t_ans, as published (on one sample there), and at t_paren. The random sets, matched in
    layers and count, are run on the first `READ_NULL` of these samples, and compared with the
    chosen heads on the same samples.
    """
    ranks = pd.DataFrame({mode: x["values"] for mode, x in scores.items()}).corr(method="spearman")
    modes = [mode for mode in scores if "," not in mode]
    pairs = [*combinations(modes, 2)]
    pairs += [(mode.split(",")[0], mode) for mode in scores if mode not in modes]
    agreement = {f"{a} and {b}": float(ranks.loc[a].loc[b]) for a, b in pairs}
    samples = context.test
    valid = np.flatnonzero(samples.valid)[:READ]
    found: Result = {
        "agreement": agreement,
        "ablated": list(chosen),
        "n": len(valid),
        "n_null": len(valid[:READ_NULL]),
        "neurons": list(neurons),
        "at": {},
    }
    for place, positions in (("t_ans", samples.t_ans), ("t_paren", samples.t_paren)):
        whole, null = (
            activation_delta(
                context.model,
                [samples.tokens[i] for i in some],
                [positions[i] for i in some],
                neurons,
                chosen,
                draws=draws,
                seed=context.settings.seed,
            )
            for some, draws in ((valid, 0), (valid[:READ_NULL], context.settings.draws))
        )
        found["at"][place] = {
            "before": whole.before.mean(0),
            "after": whole.after.mean(0),
            "total": whole.total,
            "null": null.null,
            "silenced": whole.total_silenced,
            "silenced_null": null.null_silenced,
        }
    return plain(found)
