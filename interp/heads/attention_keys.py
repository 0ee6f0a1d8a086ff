"""Which keys the measures of attention count on a prompt, and which keys are their control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.core.errors import unknown

ROLES = {
    "to previous token": "previous token",
    "to token after same token": "induction",
    "to same token": "duplicate token",
    "to first token": "first token",
    "to current token": "current token",
}
"""The measures that count keys, and what the field calls a head that attends to these."""

ENTROPY = "entropy"
"""The measure that counts no keys: mean over queries of - sum p ln p, in nats."""


def wanted_keys(tokens: Sequence[int], measure: str) -> np.ndarray:
    """(query, key) whether a key counts for a query of a prompt.

    "to previous token": the token before the query. "to first token": the prompt's first token.
    "to current token": the query itself. "to same token": earlier copies of the query's token.
    "to token after same token": what followed those copies (induction). The first token is no
    query of the first three, because it can attend to itself only.

    Raises:
        InterpError: an unknown measure.
    """
    if measure not in ROLES:
        raise unknown("measure of attention", measure, ROLES)
    ids = np.array(tokens)
    query, key = np.arange(len(ids))[:, None], np.arange(len(ids))[None]
    if measure == "to previous token":
        return key == query - 1
    if measure == "to first token":
        return (key == 0) & (query > 0)
    if measure == "to current token":
        return (key == query) & (query > 0)
    if measure == "to same token":
        return (ids[:, None] == ids) & (key < query)
    return (ids[:, None] == np.roll(ids, 1)) & (key > 0) & (key <= query)


def control_keys(wanted: np.ndarray, *, band: float = 2.0) -> np.ndarray:
    """(query, key) how often a key is expected in as many other keys of the query, drawn at random.

    For each wanted key one other visible key is drawn, at 1/band to band times its distance (plus
    1) to the query and not the first token, to which many heads attend by default (Xiao et al.
    2023, arXiv 2309.17453). If there is none, it is any other key but the first, or else any other.
    Instead of draws this is their mean, so that every row sums to the number of wanted keys.
    """
    weights = np.zeros(wanted.shape)
    keys = np.arange(len(wanted))
    for query, key in np.argwhere(wanted):
        others = ~wanted[query] & (keys <= query)
        ratio = (query - keys + 1) / (query - key + 1)
        later = others & (keys > 0)
        near = later & (ratio <= band) & (ratio >= 1 / band)
        drawn = next((some for some in (near, later, others) if some.any()), None)
        if drawn is not None:
            weights[query] += drawn / drawn.sum()
    return weights
