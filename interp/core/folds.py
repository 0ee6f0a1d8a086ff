"""Train/test splits that keep equal rows, and rows of one group, on the same side."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError

ROUNDING = 1e-5
"""Two rows count as equal if their distance is below this fraction of their length.

Equal inputs give slightly different rows in batches of different sizes, because rounding differs.
"""

ROUNDS = 4
"""In types with fewer bits, the fraction is this many steps of rounding, if that is larger."""


def joined(*labels: Iterable[Hashable]) -> np.ndarray:
    """(N,) the number of each row's group, from 0 in order of appearance.

    Each argument gives one label per row. Two rows are in one group if they share a label in any
    argument, or are linked by a chain of rows that do.

    Raises:
        InterpError: the lists have different lengths, or a label cannot be hashed.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    lists = [x.tolist() if isinstance(x, Tensor | np.ndarray) else list(x) for x in labels]
    n, lengths = len(lists[0]), [len(one) for one in lists]
    if {*lengths} != {n}:
        raise InterpError("grouping rows", f"lists of {lengths} labels", "give one group per row")
    if odd := [name for one in lists for name in one if not isinstance(name, Hashable)]:
        raise InterpError("grouping rows", f"the label {odd[0]!r:.60}", "give texts or numbers")
    number: dict[Hashable, int] = {}
    ends = [
        number.setdefault((place, name), n + len(number))
        for place, names in enumerate(lists)
        for name in names
    ]
    rows, size = np.tile(np.arange(n), len(lists)), n + len(number)
    links = coo_array((np.ones(len(ends)), (rows, ends)), shape=(size, size))
    return connected_components(links, directed=False)[1][:n]


def equal_rows(X: Tensor) -> np.ndarray:
    """(N,) a number for each row of X (*leading, N, d); equal rows have the same number.

    At each leading index, the distance of two rows is divided by the root mean square length of all
    rows there. Rows are equal if the root mean square of these distances over the leading indices
    is below `ROUNDING`. Distances are measured in a random projection to 8 dimensions.

    Raises:
        InterpError: X has no rows, or does not hold floating-point numbers.
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
    """(N,) the fold of each row. Groups stay whole, and each fold has a similar share of labels.

    `labels` are (N,) the class of each row: True and False, or any two or more others. `group` are
    (N,) group numbers, such as those from `joined`. There are at least 2 folds. `held_out` is how
    many of them, from the first one on, will be held out in turn; None stands for all. Only these
    splits are checked.

    Raises:
        InterpError: a label occurs in fewer groups than there are folds, or one side of a split
            lacks a label.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    classes = {True, False} if labels.dtype == bool else {*labels.tolist()}
    held = {one: len(np.unique(group[labels == one])) for one in sorted(classes, reverse=True)}
    if folds < 2 or len(held) < 2 or min(held.values()) < folds:
        counts = ", ".join(f"{n} have {one}" for one, n in [*held.items()][:5])
        raise InterpError(
            f"{len(labels)} rows in {folds} folds",
            f"of the groups, {counts} (equal rows are one group)",
            "use at least two folds, and give each class at least as many groups as folds",
        )
    split = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    fold = np.full(len(labels), -1)
    for k, (_, out) in enumerate(split.split(np.zeros(len(labels)), labels, group)):
        fold[out] = k
    for k in range(folds if held_out is None else held_out):
        for side in (fold == k, fold != k):
            if len(np.unique(labels[side])) < len(held):
                raise InterpError(
                    f"a split of {len(np.unique(group))} groups into {folds} folds",
                    f"fold {k}, or the rest, has no row of some class",
                    "give more groups of each class, use fewer folds, or try another seed",
                )
    return fold
