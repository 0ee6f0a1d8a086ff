"""Texts under intervention, and what the same interventions do to everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import torch

from interp.ablation import Kind, Where, ablate, make_ablation, random_like
from interp.capture import text_losses
from interp.generation import generate_each
from interp.interventions import intervene
from interp.metrics import mean_estimate, share_estimate
from interp.models.language_model import LanguageModel
from interp.studies.steps import Result, plain
from interp.studies.verification.context import Context
from interp.studies.verification.intervening import replacements, with_random
from interp.studies.verification.outcomes import Outcome, Rule, outcomes
from interp.studies.verification.samples import Samples

STOPS = ("\n\n",)
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


def intervention_table(
    context: Context,
    samples: Samples,
    sets: Mapping[str, Sequence[str]],
    *,
    kind: Kind = "zero",
    where: Where | None = None,
    max_new_tokens: int = 80,
    random: int = 1,
) -> Result:
    """What the model writes at a valid attempt with each set ablated, class by class.

    Every text is cut at t_ans, so that the model writes " (" itself; the set is ablated for the
    token after every " (", all other tokens are the plain run's. `random` matched random sets a
    row are pooled. The row "none" is the plain model.
    """
    settings, model = context.settings, context.model
    where = settings.window if where is None else where
    chosen = samples.take(np.flatnonzero(samples.valid))
    prompts = [tokens[:-1] for tokens in chosen.tokens]
    paren = context.ids.paren
    rows: Result = {}

    drawn = {
        name: random_like(model, labels, random, seed=settings.seed)
        for name, labels in sets.items()
    }
    listed = [labels for name in sets for labels in (sets[name], *drawn[name])]
    made = [
        make_ablation(
            model, labels, kind, values=replacements(context, chosen, [labels], kind, where)
        )
        for labels in listed
    ]
    written = generate_each(
        model,
        prompts,
        [None, *made],
        max_new_tokens=max_new_tokens,
        trigger=paren,
        where=where,
        stop=STOPS,
    )
    found = iter([[text.text for text in texts] for texts in written])
    for name, labels in {"none": (), **sets}.items():
        texts = next(found)
        control = [text for _ in drawn.get(name, ()) for text in next(found)]
        rows[name] = {
            "components": list(labels),
            "outcomes": {rule: _shares(texts, rule) for rule in get_args(Rule)},
            "random": _shares(control, "interp-1") if control else None,
            "examples": texts[:3],
        }
    return {
        "kind": kind,
        "where": where,
        "n": len(prompts),
        "max_new_tokens": max_new_tokens,
        "random_sets": random,
        "rows": rows,
    }


def _shares(texts: Sequence[str], rule: Rule) -> dict[str, dict[str, float]]:
    found = outcomes(texts, rule)
    return {name: plain(found.share(name)) for name in get_args(Outcome)}


def side_effects(
    context: Context, samples: Samples, sets: Mapping[str, Sequence[str]], *, draws: int = 10
) -> Result:
    """What each set, zeroed at every token, does to arithmetic and to plain English.

    arithmetic: share of results whose last digit, behind the others, the model still predicts as
    it wrote it. loss (where the tokeniser can write English): mean negative log-likelihood in
    nats a token on `PLAIN_TEXT`; its exponential is the perplexity. loss_change: what the set adds
    to it, text by text. Each against random sets matched in layers and count (five for the loss).
    """
    model = context.model
    prompts = [tokens[:-2] for tokens in samples.tokens]
    digits = np.array([tokens[-2] for tokens in samples.tokens])
    listed, places = with_random(context, sets, draws)
    made = [make_ablation(model, labels) for labels in listed]
    seen = ablate(model, prompts, made, tokens=[context.ids.this], where="all")
    right = seen.top == digits
    found: Result = {"n": len(samples)}
    found["none"] = {"arithmetic": plain(share_estimate(int(right[0].sum()), len(samples)))}
    for name, rows in places.items():
        shares = right[rows].mean(1)
        found[name] = {
            "arithmetic": plain(share_estimate(int(right[rows][0].sum()), len(samples))),
            "arithmetic_null": shares[1:].tolist(),
        }
    if _knows_english(model):
        before = torch.tensor(plain_text_losses(model, ()))
        found["none"]["loss"] = plain(mean_estimate(before))
        for name, rows in places.items():
            mine, *drawn = listed[rows.start - 1 : rows.stop - 1]
            after = torch.tensor(plain_text_losses(model, mine))
            random = torch.tensor([plain_text_losses(model, labels) for labels in drawn[:5]])
            found[name] |= {
                "loss": plain(mean_estimate(after)),
                "loss_change": plain(mean_estimate(after - before)),
                "loss_null": random.mean(1).tolist(),
                "loss_change_null": (random - before).mean(1).tolist(),
            }
    return found


def _knows_english(model: LanguageModel) -> bool:
    """Whether the tokeniser can write plain text at all (that of countdown-tiny cannot)."""
    return all("".join(model.strings(model.token_id(text))) == text for text in PLAIN_TEXT)


def plain_text_losses(
    model: LanguageModel, labels: Sequence[str], texts: Sequence[str] = PLAIN_TEXT
) -> list[float]:
    """Mean negative log-likelihood a token, in nats, of each text with a set zeroed throughout."""
    lengths = [len(model.tokenize(text).tokens) for text in texts]
    made = make_ablation(model, labels).interventions(lengths, "all") if labels else []
    with intervene(model, made):
        return text_losses(model, texts).tolist()
