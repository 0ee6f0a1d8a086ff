"""Texts under intervention: what the model writes once its verdict is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from interp.core.nulls import null_of
from interp.runs.change import Where
from interp.runs.generation import generate_each
from interp.runs.kinds import AblationKind, make_ablation
from interp.studies.steps import Result, plain
from interp.studies.verification.outcomes import Rule, outcomes
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import Sets, VerdictContext
from interp.studies.verification.steps.verdicts import STOPS, neurons_and_heads, replacements

TEXTS, EACH = 50, 10
"""Valid attempts the model continues from, and how many of them each random set is run on."""

PUBLISHED_TEXTS = 6
"""Valid attempts continued at the published tokens; heads are changed at every token there."""


def intervention_table(
    context: VerdictContext,
    samples: Samples,
    sets: Sets,
    *,
    kind: AblationKind = "zero",
    where: Where | None = None,
    max_new_tokens: int = 80,
    draws: int | None = None,
) -> Result:
    """What the model writes at a valid attempt with each set ablated, by class of outcome.

    Every text is cut at t_ans, so that the model writes " (" itself. The set is ablated for the
    token after every " (" only; all other tokens follow the plain run. The row "none" is the plain
    model.

    `draws` random sets like each set are run on `EACH` texts each, dealt out in turn; a random set
    that does not change the text costs almost nothing. `random` pools all their texts,
    `random_each` is the share of success of every one. share: the share of random sets, counting
    the set itself, with at least as much success on their texts as the set has on all.
    """
    where = context.settings.window if where is None else where
    chosen, drawn = samples.take(np.flatnonzero(samples.valid)), context.random_like(sets, draws)
    written: dict[str, list[str]] = {name: [] for name in ("none", *sets)}
    control: dict[str, list[str]] = {name: [] for name in written}
    success: dict[str, list[float]] = {name: [] for name in written}
    groups = np.array_split(np.arange(len(chosen)), max(1, len(chosen) // EACH))
    for number, group in enumerate(groups):
        random = [(name, labels) for name in sets for labels in drawn[name][number :: len(groups)]]
        listed = [*sets.values(), *(labels for _, labels in random)]
        texts = _written(context, chosen.take(group), listed, kind, where, max_new_tokens)
        for name, mine in zip(written, texts, strict=False):
            written[name] += mine
        for (name, _), mine in zip(random, texts[1 + len(sets) :], strict=True):
            control[name] += mine
            success[name].append(outcomes(mine)["success"].mean)
    rows = {}
    for name, texts in written.items():
        each, mine = success[name], outcomes(texts)["success"].mean
        rows[name] = {
            "components": list(sets.get(name, ())),
            "outcomes": {rule: outcomes(texts, rule) for rule in get_args(Rule)},
            "random": outcomes(control[name]) if each else None,
            "random_each": each,
            "draws": len(each),
            "share": null_of(mine, np.array(each)).share if each else None,
            "examples": texts[:3],
        }
    about = {"kind": kind, "where": where, "n": len(chosen), "each": min(map(len, groups))}
    return plain(about | {"max_new_tokens": max_new_tokens, "rows": rows})


def published_protocol(context: VerdictContext, samples: Samples, sets: Sets) -> Result:
    """`intervention_table` at the published tokens: heads zeroed at all, neurons at the last."""
    found, rows = Result(), Result()
    for some, where in zip(neurons_and_heads(sets), (1, "all"), strict=True):
        if some:
            found = intervention_table(context, samples, some, where=where, draws=0)
            rows |= found["rows"]
    return found | {"where": "published", "rows": {name: rows[name] for name in ("none", *sets)}}


def _written(
    context: VerdictContext,
    samples: Samples,
    sets: Sequence[Sequence[str]],
    kind: AblationKind,
    where: Where,
    max_new_tokens: int,
) -> list[list[str]]:
    """The plain model's texts, and those under each set."""
    made = []
    for labels in sets:
        values = replacements(context, samples, [labels], kind, where)
        made.append(make_ablation(context.model, labels, kind, values=values))
    texts = generate_each(
        context.model,
        [tokens[:-1] for tokens in samples.tokens],
        [None, *made],
        max_new_tokens=max_new_tokens,
        trigger=context.ids.paren,
        where=where,
        stop=STOPS,
        # Random sets hardly differ from the plain text, so all of a group run together.
        rows=len(samples) * (2 + len(made)),
    )
    return [[text.text for text in mine] for mine in texts]
