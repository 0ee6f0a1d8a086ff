"""Splits of rows that keep equal rows, and rows that share a label, on one side."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError

ROUNDING = 1e-5
"""Rows closer than this share of their length are equal: batches of other sizes round otherwise.
Types of fewer bits round more: `ROUNDS` steps of theirs, where that is more."""

ROUNDS = 4


def joined(*labels: Iterable[Hashable]) -> np.ndarray:
    """(N,) the group of each row, numbered from 0 in order of appearance.

    Each argument gives one label per row. Rows that share a label in any of them are in one group,
    directly or through other rows.

    Raises:
        InterpError: lists of different lengths.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    lists = [x.tolist() if isinstance(x, Tensor | np.ndarray) else list(x) for x in labels]
    n = len(lists[0])
    if any(len(one) != n for one in lists):
        raise InterpError(
            "grouping rows",
            f"lists of {[len(one) for one in lists]} labels",
            "give one group per row",
        )
    number: dict[Hashable, int] = {}
    ends = [
        number.setdefault((place, name), n + len(number))
        for place, names in enumerate(lists)
        for name in names
    ]
    links = coo_array(
        (np.ones(len(ends)), (np.tile(np.arange(n), len(lists)), ends)),
        shape=(n + len(number),) * 2,
    )
    return connected_components(links, directed=False)[1][:n]


def equal_rows(X: Tensor) -> np.ndarray:
    """(N,) a number for each row of X (*leading, N, d), one number for rows that are equal.

    Equal at every leading place, up to `ROUNDING` of the rows' root mean square length there, all
    places together. Distances are compared in a random projection to 8 dimensions.

    Raises:
        InterpError: no rows, or no floating-point numbers.
    """
    from sklearn.cluster import DBSCAN

    if X.ndim < 2 or not X.numel() or not X.is_floating_point():
        found = f"{X.dtype} values of shape {tuple(X.shape)}"
        raise InterpError("equal rows", found, "give floating-point rows (*leading, N, d)")
    n, d = X.shape[-2:]
    random = torch.Generator().manual_seed(0)
    places = X.detach().cpu().reshape(-1, n, d)
    shadow, used = torch.zeros(n, 8, dtype=torch.float64), 0
    for rows in map(Tensor.double, places):
        turn = torch.randn(d, 8, dtype=torch.float64, generator=random) / 8**0.5
        length = rows.square().sum(1).mean().sqrt()
        if length > 0:
            shadow += rows @ turn / length
            used += 1
    reach = max(ROUNDING, ROUNDS * torch.finfo(X.dtype).eps) * max(used, 1) ** 0.5
    return DBSCAN(eps=reach, min_samples=1).fit(shadow.numpy()).labels_


def stratified_folds(
    labels: np.ndarray, group: np.ndarray, folds: int, seed: int, *, held_out: int | None = None
) -> np.ndarray:
    """(N,) the fold of each row: groups stay whole, and labels are spread evenly.

    Args:
        labels: (N,) bool.
        group: (N,) group numbers, such as those of `joined`.
        folds: at least 2.
        seed: of the split.
        held_out: how many of the folds, from the first, are held out in turn; all by default.

    Raises:
        InterpError: a label in fewer groups than folds, or a side of a split with one label only.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    held = [len(np.unique(group[labels == value])) for value in (True, False)]
    if folds < 2 or min(held) < folds:
        raise InterpError(
            f"{len(labels)} rows in {folds} folds",
            f"{held[0]} groups with True, {held[1]} with False (equal rows are one group)",
            "give at least two folds, and each class in at least as many groups as folds",
        )
    split = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    fold = np.full(len(labels), -1)
    for k, (_, out) in enumerate(split.split(np.zeros(len(labels)), labels, group)):
        fold[out] = k
    for k in range(folds if held_out is None else held_out):
        for side in (fold == k, fold != k):
            if len(np.unique(labels[side])) < 2:
                raise InterpError(
                    f"a split of {len(np.unique(group))} groups into {folds} folds",
                    f"fold {k}, or the others, has rows of one class",
                    "give more groups of each class, fewer folds or another seed",
                )
    return fold
