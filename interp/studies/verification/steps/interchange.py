"""What sets of components carry: their values exchanged for those of a class of samples.

Zeroing asks what breaks without a set. Exchange asks what the set says: with the mean of the other
class it should turn the verdict, with the mean of the sample's own class, or with another sample of
that class, it should change nothing. A set that does all three carries the verdict and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, product

import numpy as np
import torch

from interp.core.nulls import null_of
from interp.models.language_model import Address
from interp.runs.next_tokens import ablate
from interp.studies.steps import Result, mean_of, share_of
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import Sets, VerdictContext
from interp.studies.verification.steps.verdicts import NULL_PAIRS, addresses_of, under_sets

EXCHANGES = ("other class's mean", "own class's mean", "another sample of its class")
OTHER, OWN, ANOTHER = EXCHANGES
"""What a set's values are replaced by, from the find samples at the same token."""

OTHER_SAMPLE = "another sample of the other class"
"""An exchange that the study leaves out: a single value, with all that it holds of its sample."""

SIDES = {"valid": True, "invalid": False}


def exchanged(
    context: VerdictContext,
    samples: Samples,
    addresses: Sequence[Address],
    exchange: str,
    window: int,
) -> dict[Address, torch.Tensor]:
    """The values of an exchange for every sample: (samples, window, ...) by address.

    They come from the find samples, which share no problem with the test samples.
    """
    find = context.find
    values = context.values(find.tokens, addresses, last=window)
    classes = torch.from_numpy(find.valid)
    side = torch.from_numpy(samples.valid)
    if exchange in (ANOTHER, OTHER_SAMPLE):
        rng = np.random.default_rng(context.settings.seed)
        labels = samples.valid if exchange == ANOTHER else ~samples.valid
        donors = [rng.choice(np.flatnonzero(find.valid == label)) for label in labels]
        return {at: value[donors] for at, value in values.items()}
    wanted = side if exchange == OWN else ~side
    means = {at: torch.stack([x[~classes].mean(0), x[classes].mean(0)]) for at, x in values.items()}
    return {at: value[wanted.long()] for at, value in means.items()}


def interchange(
    context: VerdictContext,
    sets: Sets,
    *,
    window: int | None = None,
    exchanges: Sequence[str] = EXCHANGES,
) -> Result:
    """What becomes of the verdict when each set's values are exchanged, class by class.

    For every exchange, on the valid and on the invalid test samples:

        effect  = mean(changed - plain) / (mean(plain, other class) - mean(plain, this class))
        flipped = share of samples whose most likely next token becomes the other verdict

    of log P(this) - log P(not). An effect of 1 makes the samples like the other class. With the
    other class's mean, an effect on invalid samples says that the set suffices for "this", and one
    on valid samples that it suffices for "not", by a value that holds nothing of the sample itself.
    `draws` random sets like each get the other class's mean, on the first `NULL_PAIRS` samples of
    each class. own: the set's effect on these samples; share: the share of random sets, counting
    the set, whose effect there is at least as large. window: how many last tokens are exchanged, by
    default as in the settings. exchanges: of `EXCHANGES`, and `OTHER_SAMPLE`; random sets are only
    drawn for the other class's mean.
    """
    test, window = context.test, window or context.settings.window
    random = context.random_like(sets) if OTHER in exchanges else dict.fromkeys(sets, [])
    mine, others = list(sets.values()), list(chain.from_iterable(random.values()))
    whole = context.runs(test.tokens, window)  # those of either class are taken from it
    plain = ablate(
        context.model, test.tokens, [], tokens=[context.ids.this, context.ids.no], runs=whole
    ).log_odds[0]
    gap = float(plain[test.valid].mean() - plain[~test.valid].mean())
    few = min(NULL_PAIRS, len(test) // 2)
    found: Result = {
        "n": len(test) // 2,
        "window": window,
        "null_n": few,
        "gap": gap,
        "sets": {name: {"components": list(x), "exchanges": {}} for name, x in sets.items()},
    }
    for exchange, (side, label) in product(exchanges, SIDES.items()):
        samples = test.take(np.flatnonzero(test.valid == label))
        drawn = others if exchange == OTHER else []
        values = exchanged(context, samples, addresses_of([*mine, *drawn]), exchange, window)
        moved, flipped = _moved(context, samples, mine, values, window, gap)
        null = flips = np.zeros((0, few))
        if drawn:
            some = {at: value[:few] for at, value in values.items()}
            null, flips = _moved(context, samples.take(range(few)), drawn, some, window, gap)
        first = 0
        for row, name in enumerate(sets):
            cell: Result = {"effect": mean_of(moved[row]), "flipped": share_of(flipped[row])}
            if drawn:
                rows = slice(first, first := first + len(random[name]))
                cell["null"] = null[rows].mean(1).tolist()
                cell["flipped_null"] = flips[rows].mean(1).tolist()
                cell["own"] = float(moved[row, :few].mean())
                cell["share"] = null_of(cell["own"], cell["null"]).share
            found["sets"][name]["exchanges"].setdefault(exchange, {})[side] = cell
    return found


def _moved(
    context: VerdictContext,
    samples: Samples,
    sets: Sequence[Sequence[str]],
    values: dict[Address, torch.Tensor],
    window: int,
    gap: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(sets, samples): the effect on samples of one class, and whether the verdict turned."""
    seen = under_sets(context, samples.tokens, sets, "patch", window, values)
    label = bool(samples.valid[0])
    turned = seen.top[1:] == (context.ids.no if label else context.ids.this)
    change = seen.log_odds[1:] - seen.log_odds[0]
    return (-change if label else change) / gap, turned
