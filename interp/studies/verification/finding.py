"""Which heads? By patching pairs of texts, by every order, and how stable the answer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from interp.patching import activation_patching
from interp.paths import path_patching
from interp.studies.steps import Result
from interp.studies.verification.context import Context, verdict_task
from interp.studies.verification.intervening import (
    Zeroed,
    ablation_curve,
    greedy_order,
    smallest,
)

PLACES = ("t_ans", "t_paren")
LONGEST = 12
"""The most heads of a cumulative curve."""


def patching(context: Context) -> Result:
    """Exact activation patching on valid-invalid pairs, and paths from heads through MLPs.

    Heads (site z) at t_ans and t_paren together, in both directions; attention and MLP outputs
    layer by layer at each of the two; then path patching of every head into the inputs of the
    MLPs that matter most at t_paren, and from there to the logits.
    """
    model = context.model
    pairs, counts = verdict_task(context, context.find, context.settings.pairs)
    found: Result = {"n": len(pairs), "counts": counts}
    for direction in ("denoise", "noise"):
        scores = activation_patching(
            model, pairs, site="z", by=("layer", "head"), direction=direction, positions=PLACES
        )
        found[direction] = {
            "values": scores.values.tolist(),
            "top": [_ranked(x) for x in scores.top(12)],
        }
    for site in ("attn_out", "mlp_out"):
        scores = activation_patching(
            model, pairs, site=site, by=("layer", "position"), positions=PLACES
        )
        found[site] = scores.values.tolist()
    mlps = np.argsort(-np.array(found["mlp_out"])[:, 1])[:4].tolist()
    receivers = [f"L{layer}.mlp_out" for layer in sorted(mlps)]
    paths = path_patching(model, pairs, receivers=receivers, positions=PLACES)
    direct = path_patching(model, pairs, receivers=["logits"], positions=PLACES)
    for name, scores in (("paths", paths), ("direct", direct)):
        found[name] = {
            "values": scores.values.tolist(),
            "top": [_ranked(x) for x in scores.top(8)],
        }
    found["paths"]["receivers"] = receivers
    return found


def _ranked(entry: object) -> Result:
    return {key: getattr(entry, key) for key in ("label", "value", "stderr")}


def strongest(values: Sequence[Sequence[float]], k: int) -> list[str]:
    """Labels of the k heads of largest value in a (layer, head) table."""
    table = np.array(values)
    order = np.argsort(-table, axis=None, kind="stable")[:k]
    return ["L{}H{}".format(*np.unravel_index(place, table.shape)) for place in order]


def curves(context: Context, orders: Mapping[str, Sequence[str]]) -> Result:
    """The incremental ablation curve of every order, and the smallest set that disables.

    On the find samples every order is tried; the smallest set that makes at least 95 % of valid
    attempts "not" is taken there, and its whole curve measured again on the test samples, with
    random sets of the same layers at every size.
    """
    found: Result = {"find": {}}
    zeroed = Zeroed(context=context, samples=context.find)
    for name, order in orders.items():
        curve = ablation_curve(zeroed, list(order)[:LONGEST])
        found["find"][name] = {"curve": curve, "size": smallest(curve)}
    reached = {name: x["size"] for name, x in found["find"].items() if x["size"] is not None}
    best = (
        min(reached, key=lambda name: reached[name])
        if reached
        else max(
            found["find"], key=lambda name: found["find"][name]["curve"][-1]["disabled"]["mean"]
        )
    )
    size = reached.get(best, len(found["find"][best]["curve"]))
    order = list(orders[best])[: max(size + 2, min(LONGEST, len(orders[best])))]
    tested = ablation_curve(
        Zeroed(context=context, samples=context.test),
        order,
        draws=sorted({1, 2, 3, 4, 6, 8, size, len(order)}),
    )
    return found | {
        "order": best,
        "reached": best in reached,
        "chosen": order[:size],
        "test": tested,
    }


def stability(context: Context, candidates: Sequence[str], size: int, *, draws: int = 10) -> Result:
    """How often each head comes first when the find samples are drawn again.

    Greedy choice of `size` heads among the candidates (the strongest by patching, which stay the
    same), on bootstrap resamples of the valid find samples; and on the test samples, which share
    no problem with them.
    """
    rng = np.random.default_rng(context.settings.seed)
    n = int(context.find.valid.sum())
    zeroed = Zeroed(context=context, samples=context.find)
    counts = dict.fromkeys(candidates, 0)
    for _ in range(draws):
        for head in greedy_order(zeroed, candidates, size, drawn=rng.choice(n, n)):
            counts[head] += 1
    other = greedy_order(Zeroed(context=context, samples=context.test), candidates, size)
    return {"draws": draws, "size": size, "counts": counts, "on_test": other}
