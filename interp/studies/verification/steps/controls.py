"""What sets of components do to other behaviour, and at the published tokens.

Runs changed at every token are slow. So every random set is run on only a few of the samples, and
the samples are dealt out in turn: many draws for the price of a few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from interp.core.statistics import auc_estimate
from interp.models.language_model import LanguageModel
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation
from interp.runs.losses import text_losses
from interp.runs.next_tokens import NextTokens, ablate
from interp.runs.stored_runs import keep_runs
from interp.studies.steps import Result, Results, mean_of, plain, share_of
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import RUNS_GB, Sets, VerdictContext
from interp.studies.verification.steps.verdicts import (
    effect_row,
    measures,
    neurons_and_heads,
    verdict_effects,
)

PAIRS, RESULTS = 10, 40
"""Pairs of a valid and an invalid sample, and results of sums, changed at every token."""

PLAIN_TEXT = (
    "The library opens at nine in the morning and closes at six in the evening. Visitors are "
    "asked to leave their bags at the front desk and to speak quietly in the reading room.",
    "Bread is made from flour, water, salt and yeast. The dough is kneaded until it is smooth, "
    "left in a warm place until it has doubled in size, and baked for about forty minutes.",
    "The river rises in the hills to the north and runs through three small towns before it "
    "reaches the sea. In spring, when the snow melts, it often floods the fields along its banks.",
    "She had never liked the old house, but her brother insisted that they spend the summer "
    "there. By the end of the first week she had changed her mind, and by the end of the month "
    "she did not want to leave.",
    "A good map shows not only where things are but also how far apart they are. Without a "
    "scale, two villages that lie an hour apart may look like neighbours.",
    "The committee met on Tuesday to discuss the new timetable. Most members agreed that the "
    "first train should leave earlier, but they could not agree on who would pay for it.",
    "Trees lose their leaves in autumn because the days grow shorter and colder. The green "
    "colour fades first, and the yellow and red that were there all along become visible.",
    "He repaired clocks for a living and could tell from the sound alone which part was worn. "
    "People brought him their watches from far away, and he rarely sent anyone home disappointed.",
)
"""Everyday English, written for this project: what an ablation does to text in general."""


Measure = Callable[[Sequence[int], Sequence[Sequence[str]]], np.ndarray]
"""(samples, sets of components) -> (sets, samples, measures), each set zeroed."""


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """A set on all samples, (samples, measures), and random sets like it, each on a group.

    random: (draws, samples, measures), nan for the samples that are not in the draw's group.
    """

    values: np.ndarray
    random: np.ndarray

    def means(self, measure: int, among: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Mean of each draw over its own samples, or those of them that `among` marks."""
        return np.nanmean(self.random[:, among, measure], 1)

    def beside(self, measure: int, among: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The set minus each draw, on the draw's samples."""
        mine = np.where(np.isnan(self.random), np.nan, self.values)
        return np.nanmean(mine[:, among, measure], 1) - self.means(measure, among)


def deal(
    context: VerdictContext, sets: Sets, groups: Sequence[Sequence[int]], measure: Measure
) -> dict[str, Dealt]:
    """Each set on all samples, and `draws` random sets like it, on one group of samples each.

    Groups are used in turn; together they hold samples 0, 1, ..., each once.
    """
    mine = measure(range(sum(map(len, groups))), list(sets.values()))
    drawn = context.random_like(sets)
    random = {name: np.full((len(drawn[name]), *mine.shape[1:]), np.nan) for name in sets}
    for number, group in enumerate(groups):
        here = [(name, i) for name in sets for i in range(number, len(drawn[name]), len(groups))]
        if here:
            seen = measure(group, [drawn[name][i] for name, i in here])
            for (name, i), values in zip(here, seen, strict=True):
                random[name][i, list(group)] = values
    return {
        name: Dealt(values=values, random=random[name])
        for name, values in zip(sets, mine, strict=True)
    }


def effects_published(context: VerdictContext, samples: Samples, sets: Sets) -> Result:
    """`verdict_effects` of zeroing at the published tokens: heads at all, neurons at the last.

    Each random set of heads is run on one pair of a valid and an invalid sample, each random set
    of neurons on all samples.
    """
    ids, valid = context.ids, samples.valid
    neurons, heads = neurons_and_heads(sets)
    half = len(samples) // 2
    zeroed = _zeroed_everywhere(context, samples.tokens, [ids.this, ids.no])

    def measure(some: Sequence[int], tried: Sequence[Sequence[str]]) -> np.ndarray:
        return measures(zeroed(some, tried), ids.no)[1:]

    plainly = zeroed(range(len(samples)), [])
    (no, odds, *_) = measures(plainly, ids.no)[0].T
    none = {
        "disabled": share_of(no[valid]),
        "invalid_kept": share_of(no[~valid]),
        "auc": plain(auc_estimate(odds, valid)),
    }
    rows: Results = {}
    if neurons:
        rows = verdict_effects(context, samples, neurons, where=1)["sets"]
    pairs = [[i, half + i] for i in range(half)]
    for name, x in deal(context, heads, pairs, measure).items() if heads else ():
        groups = [np.flatnonzero(~np.isnan(draw[:, 0])) for draw in x.random]
        drawn = [draw[group] for draw, group in zip(x.random, groups, strict=True)]
        rows[name] = effect_row(heads[name], valid, x.values, drawn, groups)
    return {
        "kind": "zero",
        "where": "all",
        "n": len(samples),
        "none": none,
        "sets": {
            name: rows[name] | {"where": "last" if name in neurons else "all"} for name in sets
        },
    }


def _zeroed_everywhere(
    context: VerdictContext, prompts: Sequence[tuple[int, ...]], tokens: Sequence[int]
) -> Callable[[Sequence[int], Sequence[Sequence[str]]], NextTokens]:
    """(some of the prompts, sets) -> their next tokens, plain and with each set zeroed everywhere.

    The prompts are run plain once.
    """
    runs = keep_runs(context.model, prompts, last=1, whole=True, budget_gb=RUNS_GB)

    def zeroed(some: Sequence[int], tried: Sequence[Sequence[str]]) -> NextTokens:
        return ablate(
            context.model,
            [prompts[i] for i in some],
            [make_ablation(context.model, labels) for labels in tried],
            tokens=tokens,
            where="all",
            runs=None if runs is None else runs.select(some),
        )

    return zeroed


def side_effects(context: VerdictContext, samples: Samples, sets: Sets) -> Result:
    """What each set, zeroed at every token, does to arithmetic and to plain English.

    arithmetic: share of results whose last digit the model still predicts as it wrote it. loss (if
    the tokeniser can write English): mean negative log-likelihood in nats a token on `PLAIN_TEXT`;
    its exponential is the perplexity. loss_change: what the set adds to it, text by text. Each is
    compared with random sets matched in kind, layers and count, each on two results and on one
    text; beside: the set minus a random one on the same results or text.
    """
    model = context.model
    prompts = [tokens[:-2] for tokens in samples.tokens]
    digits = np.array([tokens[-2] for tokens in samples.tokens])

    zeroed = _zeroed_everywhere(context, prompts, [context.ids.this])

    def right(some: Sequence[int], tried: Sequence[Sequence[str]]) -> np.ndarray:
        seen = zeroed(some, tried)
        return (seen.top[1:] == digits[list(some)])[..., None].astype(float)

    plainly = zeroed(range(len(samples)), []).top[0] == digits
    groups = [list(range(i, min(i + 2, len(samples)))) for i in range(0, len(samples), 2)]
    found: Result = {"n": len(samples), "none": {"arithmetic": share_of(plainly)}}
    for name, x in deal(context, sets, groups, right).items():
        found[name] = {
            "arithmetic": share_of(x.values[:, 0]),
            "arithmetic_null": x.means(0).tolist(),
            "arithmetic_beside": mean_of(x.beside(0)),
        }
    # The tokeniser of countdown-tiny cannot write plain English.
    if all("".join(model.strings(model.token_id(text))) == text for text in PLAIN_TEXT):
        for name, row in _english(context, sets).items():
            found[name] |= row
    return found


def _english(context: VerdictContext, sets: Sets) -> Results:
    """Losses on plain text, and what each set adds to them."""
    model = context.model
    before = np.array(plain_text_losses(model, ()))

    def more(some: Sequence[int], tried: Sequence[Sequence[str]]) -> np.ndarray:
        texts = [PLAIN_TEXT[i] for i in some]
        after = np.array([plain_text_losses(model, labels, texts) for labels in tried])
        return (after - before[list(some)])[..., None]

    found: Results = {"none": {"loss": mean_of(before)}}
    for name, x in deal(context, sets, [[i] for i in range(len(PLAIN_TEXT))], more).items():
        change = x.values[:, 0]
        found[name] = {
            "loss": mean_of(before + change),
            "loss_change": mean_of(change),
            "loss_change_null": x.means(0).tolist(),
            "loss_change_beside": mean_of(x.beside(0)),
        }
    return found


def plain_text_losses(
    model: LanguageModel, labels: Sequence[str], texts: Sequence[str] = PLAIN_TEXT
) -> list[float]:
    """Mean negative log-likelihood a token, in nats, of each text with a set zeroed everywhere."""
    with intervene(model, [make_ablation(model, labels)] if labels else []):
        return text_losses(model, texts).tolist()
