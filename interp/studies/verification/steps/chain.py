"""The chain of heads behind a verdict: traced backwards from the MLPs that write it.

The last stage holds the MLPs whose output at t_paren carries the verdict. Each earlier stage holds
the heads with the strongest direct paths into the stage after it, by exact path patching. Where
each head attends says what it reads. The exchange of class means along the chain
(`interp.studies.verification.steps.interchange`) says whether a stage carries the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from interp.core.components import Component
from interp.heads.attention import attention_to
from interp.models.language_model import LanguageModel
from interp.patching.path import path_patching
from interp.results.scores import Scores
from interp.runs.stored_runs import keep_runs
from interp.studies.formatting import place
from interp.studies.steps import Result, mean_of
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import RUNS_GB, WIDEST, VerdictContext
from interp.studies.verification.steps.finding_heads import tested_map

PLACES = ("t_first", "t_ans", "t_paren")
"""The first and last digit of the result, and " (" after it."""

WINDOW = WIDEST
"""The last tokens that hold them, for results of two digits."""

STAGES, WIDEST, LEAST = 4, 3, 0.05
"""The most stages of heads, the most heads of a stage, and the least effect of a head in one."""

READ = 40
"""Samples in which the attention of the heads is read."""


def chain(context: VerdictContext, writers: Sequence[str]) -> Result:
    """Stages of heads, the last first, each traced from the inputs of the one after it.

    A stage's heads are the `WIDEST` with the largest path effects into its receivers, at the
    `PLACES` together, of at least `LEAST` of the gap with an interval above 0; a head belongs to
    one stage. `writers` are the receivers of the first. The receivers of a further stage are the
    queries, keys and values of the heads found before. effects: (layer, head) fractions of the gap.
    null: see `Scores.null`. reads: the token to which a head attends most, see `_reads`. The search
    ends where no head qualifies.
    """
    model, task = context.model, context.pairs[0]
    stages: list[Result] = []
    receivers, seen = list(writers), set[str]()
    while receivers and len(stages) < STAGES:
        scores = path_patching(
            model, task, receivers=receivers, positions=PLACES, runs=context.pair_runs
        )
        heads = _strongest(scores, seen)
        if not heads:
            break
        stages.append(
            {
                "receivers": receivers,
                "heads": [row | {"reads": _reads(context, row["label"])} for row in heads],
                **tested_map(scores, WIDEST, context.settings.seed),
            }
        )
        seen |= {row["label"] for row in heads}
        receivers = [part for row in heads for part in _inputs(model, row["label"])]
    return {"n": len(task), "writers": list(writers), "places": PLACES, "stages": stages}


def _strongest(scores: Scores, seen: set[str]) -> list[Result]:
    """The heads of a stage, those of later stages left out."""
    low, high = scores.interval()
    rows = []
    for entry in scores.top(WIDEST + len(seen)):
        at = scores.index(entry.label)
        if entry.label not in seen and entry.value >= LEAST and low[at] > 0:
            rows.append(
                {
                    "label": entry.label,
                    "value": entry.value,
                    "low": float(low[at]),
                    "high": float(high[at]),
                }
            )
    return rows[:WIDEST]


def _inputs(model: LanguageModel, label: str) -> list[str]:
    """A head's queries, and the keys and values it reads, as receivers of path patching."""
    part = Component.parse(label)
    shared = (part.index or 0) * model.n_kv_heads // model.n_heads
    at = f"L{part.layer}"
    return [f"{at}H{part.index}.q", f"{at}KV{shared}.k", f"{at}KV{shared}.v"]


def _reads(context: VerdictContext, label: str) -> Result:
    """Where a head attends most: from which of `PLACES`, to what, and how much.

    The keys are the target's last digit in the question, its first digit there, and the result's
    own digits. The mean and its interval are over find samples; other: the mean attention to as
    many other tokens at like distances.
    """
    best: Result = {}
    layer, head = place(label)
    for (query, key), found in _attention(context).items():
        mean = mean_of(found.samples[:, layer, head])
        if not best or mean["mean"] > best["mean"]:
            other = float(np.nanmean(found.control[:, layer, head]))
            best = {"query": query, "key": key, **mean, "other": other}
    return best


def _attention(context: VerdictContext) -> dict[tuple[str, str], Any]:
    """The attention of every head from each place to each key, of the find samples."""

    def compute() -> dict[tuple[str, str], Any]:
        find = context.find.take(range(min(READ, len(context.find))))
        places = positions_of(find)
        widths = [a - f for f, a in zip(places["t_first"], places["t_ans"], strict=True)]
        ones = [ends[:1] for ends in find.asked]
        keys = {
            "the target's last digit": ones,
            "the target's first digit": [
                [end[0] - w] if end and w else [] for end, w in zip(ones, widths, strict=True)
            ],
            "the result's first digit": [[at] for at in places["t_first"]],
            "the result's last digit": [[at] for at in places["t_ans"]],
        }
        runs = keep_runs(context.model, find.tokens, last=max(widths) + 2, budget_gb=RUNS_GB)
        found = {}
        for (query, at), (key, wanted) in product(places.items(), keys.items()):
            earlier = [[k for k in ks if k < q] for q, ks in zip(at, wanted, strict=True)]
            if any(earlier):
                found[query, key] = attention_to(
                    context.model, find.tokens, at, earlier, drop_empty=True,
                    seed=context.settings.seed, runs=runs,
                )  # fmt: skip
        return found

    return context.once("the chain's attention", compute)


def positions_of(samples: Samples) -> dict[str, list[int]]:
    """The positions of `PLACES` in each text."""
    digits = [len(str(abs(written))) for written in samples.written.tolist()]
    return {
        "t_first": [at - n + 1 for at, n in zip(samples.t_ans, digits, strict=True)],
        "t_ans": samples.t_ans,
        "t_paren": samples.t_paren,
    }
