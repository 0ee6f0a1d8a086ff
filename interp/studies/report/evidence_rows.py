"""Rows of an evidence card from the plain results of a study's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from interp.core.statistics import Estimate, range_of_draws
from interp.overview.evidence_card import EvidenceRow
from interp.studies.formatting import estimate
from interp.studies.steps import Result


def row(
    family: str,
    name: str,
    value: Result,
    null: Result | Sequence[float] | None = None,
    *,
    least: float = 0.0,
    p: float | None = None,
    held_out: bool = True,
) -> EvidenceRow:
    """A row of a plain estimate.

    null: the values of random draws, or their mean, low and high. least: what the interval has to
    exceed as well, such as chance.
    """
    found = estimate(value)
    assert found is not None
    about, above = "", least
    if null is not None:
        if isinstance(null, Mapping):
            mean, low, high = (float(null[end]) for end in ("mean", "low", "high"))
        else:
            mean, (low, high) = float(np.mean(null)), range_of_draws(np.asarray(null))
        about, above = f"{mean:z.3f} [{low:z.3f}, {high:z.3f}]", max(least, high)
    return EvidenceRow(
        family=family, name=name, value=found, null=about, above=above, p=p, held_out=held_out
    )


def selection_row(family: str, name: str, test: Result) -> EvidenceRow:
    """A row of a selection's test: the chosen cells on the prompts that did not choose them."""
    p = float(test["flips"]["p"])
    return row(family, f"{name}, top {test['k']} heads", test["unseen"], test, p=p)


def probe_row(name: str, probes: Result, measure: str, shuffled: float, n: int) -> EvidenceRow:
    """A row of the best of some probes beside the best of as many of shuffled labels."""
    best = int(np.argmax(probes[measure]))
    ends = {end: float(probes[end][best]) for end in ("low", "high")}
    found = Estimate(mean=float(probes[measure][best]), n=n, **ends)
    return EvidenceRow(
        family="representational",
        name=f"{name}, best of {len(probes[measure])} layers",
        value=found,
        null=f"at most {shuffled:z.3f}",
        above=max(0.5, shuffled),
        held_out=True,
    )
