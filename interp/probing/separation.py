"""How well classes of states separate: silhouettes, centroid distances, cross-validated probes.

All measured in the full dimension, not in a two-dimensional projection.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Flags, flags_of, listed
from interp.core.errors import InterpError
from interp.core.folds import equal_rows, joined, stratified_folds
from interp.core.schema import Brief
from interp.core.statistics import standard_error
from interp.plots.tables import Tabled
from interp.probing.probes import (
    ProbeMetrics,
    decision,
    evaluation,
    logistic_probes,
    measures_once,
    permuted_labels,
)


@dataclass(frozen=True, kw_only=True)
class Separation(Tabled):
    """How well K classes of N rows separate, for every leading index, such as a layer.

    Attributes:
        classes: names of the classes, sorted.
        counts: number of rows of each class.
        silhouettes: (*leading, N) in [-1, 1]; 0 for the only row of a class.
        centroids: (*leading, K, K) distances between the class means.
        within: (*leading) mean distance of a row to the mean of its own class.
        between: (*leading) mean of `centroids` over pairs of classes.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    silhouettes: np.ndarray
    centroids: np.ndarray
    within: np.ndarray
    between: np.ndarray

    @property
    def silhouette(self) -> np.ndarray:
        """(*leading) mean of `silhouettes`."""
        return self.silhouettes.mean(-1)

    @property
    def stderr(self) -> np.ndarray:
        """(*leading) standard error of `silhouette` over rows."""
        return standard_error(np.moveaxis(self.silhouettes, -1, 0))

    @property
    def ratio(self) -> np.ndarray:
        """(*leading) within / between: below 1 if classes are narrower than their distance."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.within / self.between

    def to_dataframe(self) -> Any:
        """One row per leading index, flattened."""
        import pandas as pd

        columns = ("silhouette", "stderr", "within", "between", "ratio")
        table = pd.DataFrame({name: np.ravel(getattr(self, name)) for name in columns})
        return table.assign(n=sum(self.counts))


def separation(X: Tensor | np.ndarray, labels: Sequence[Hashable]) -> Separation:
    """Silhouettes and centroid distances of labelled states, in their full dimension.

        s_i = (b_i - a_i) / max(a_i, b_i)

    a is the mean Euclidean distance of row i to the other rows of its class, b the smallest mean
    distance to the rows of another class. Takes N^2 distances per leading index.

    Args:
        X: (*leading, N, d) states.
        labels: (N,) the class of each row, named by `str`.

    Raises:
        InterpError: shapes that do not fit, values that are not finite, fewer than two classes, or
            as many classes as rows.

    Source: Rousseeuw 1987; arXiv 2603.27518 for refused and answered prompts.
    """
    labels = listed(labels)
    states = _states(X, len(labels))
    classes, of = np.unique(np.array([str(label) for label in labels]), return_inverse=True)
    counts = np.bincount(of)
    if not 1 < len(classes) < len(of):
        raise InterpError(
            f"the separation of {len(of)} rows",
            f"{len(classes)} classes",
            "give at least two classes, and fewer classes than rows",
        )
    flat = states.reshape(-1, *states.shape[-2:])
    scores = np.zeros(flat.shape[:2])
    distances = np.zeros((len(flat), len(classes), len(classes)))
    spread = np.zeros(len(flat))
    member = np.eye(len(classes))[of]
    for i, rows in enumerate(flat):
        centroids = torch.from_numpy(member.T @ rows / counts[:, None])
        distances[i] = torch.cdist(centroids, centroids).numpy()
        spread[i] = np.linalg.norm(rows - centroids.numpy()[of], axis=1).mean()
        scores[i] = _silhouettes(torch.from_numpy(rows), member, of, counts)
    pairs = np.triu_indices(len(classes), 1)
    leading = states.shape[:-2]
    return Separation(
        classes=tuple(classes.tolist()),
        counts=tuple(counts.tolist()),
        silhouettes=scores.reshape(*leading, -1),
        centroids=distances.reshape(*leading, *distances.shape[1:]),
        within=spread.reshape(leading),
        between=distances[:, *pairs].mean(-1).reshape(leading),
    )


def _silhouettes(
    rows: Tensor, member: np.ndarray, of: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    exact = "donot_use_mm_for_euclid_dist"
    sums = torch.cdist(rows, rows, compute_mode=exact).numpy() @ member
    each = np.arange(len(of))
    own = sums[each, of] / np.maximum(counts[of] - 1, 1)
    others = sums / counts
    others[each, of] = np.inf
    nearest = others.min(1)
    largest = np.maximum(own, nearest)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(largest > 0, (nearest - own) / largest, 0.0)
    return np.where(counts[of] > 1, found, 0.0)


@dataclass(frozen=True, kw_only=True)
class CrossValidated(Brief):
    """Logistic probes, one per fold and leading index. Every row is scored once, when held out.

    Attributes:
        scores: (*leading, N) w . x + b of the probe that was not fitted to the row; above 0 means
            True.
        fold: (N,) the fold in which each row was held out.
        heldout: measures of all these scores together, see `interp.probing.probes.ProbeMetrics`.
        fold_auc: (folds, *leading) AUC within each held-out fold.
        shuffled: (shuffles, 3, *leading) the control: accuracy, balanced accuracy and AUC with
            labels permuted within each fold (between whole groups if no group has both labels).
        weights, bias: (folds, *leading, d) and (folds, *leading), in the coordinates of X.
        fitted: mean number of rows that a probe was fitted to.
    """

    scores: Tensor
    fold: np.ndarray
    heldout: ProbeMetrics
    fold_auc: Tensor
    shuffled: Tensor
    weights: Tensor
    bias: Tensor
    fitted: int


def probe_cv(
    X: Tensor | np.ndarray,
    y: Flags,
    *,
    groups: Iterable[Hashable] | None = None,
    folds: int = 5,
    shuffles: int = 20,
    regularisation: float = 0.01,
    seed: int = 0,
) -> CrossValidated:
    """Cross-validated logistic probes: every row is scored by a probe not fitted to its group.

    The logistic probe of `interp.probing.training.train_probes` is fitted once per stratified fold,
    to all other folds, with features standardised on these rows and balanced classes. Held-out
    scores of all folds are pooled, and intervals resample groups. A probe shows that classes
    differ, not why: if the classes come from different tasks, it may detect the task.

    Args:
        X: (*leading, N, d) states.
        y: (N,) labels, True or 1, and False or 0.
        groups: one label per row for rows that belong together, such as a base text. Groups are
            never split. By default every row is a group. Equal rows are always in one group.
        folds: number of folds, at least 2.
        shuffles: number of control runs, each through all folds; 0 for none.
        regularisation: scikit-learn's C is 1 / (n_fitted * regularisation).
        seed: seed of the split, the permutations and the bootstrap.

    Raises:
        InterpError: shapes that do not fit, values that are not finite, a class in fewer than
            `folds` groups, or a fold without both classes.
    """
    labels = flags_of(y, X.shape[-2])
    states = _states(X, len(labels))
    equal = equal_rows(torch.as_tensor(X))
    group = joined(equal) if groups is None else joined(groups, equal)
    fold = stratified_folds(labels, group, folds, seed)
    random = np.random.default_rng(seed)
    mixed = [permuted_labels(labels, group, fold, random) for _ in range(shuffles)]
    runs = np.stack([labels, *mixed])
    flat = torch.from_numpy(states.reshape(-1, *states.shape[-2:]))
    fits = [
        logistic_probes(flat[:, fold != k], runs[:, fold != k], regularisation)
        for k in range(folds)
    ]
    weights, bias = (torch.stack(parts, 1) for parts in zip(*fits, strict=True))
    leading, n = states.shape[:-2], len(labels)
    scores = torch.zeros(len(runs), len(flat), n, dtype=torch.float64)
    for k in range(folds):
        out = torch.from_numpy(fold == k)
        scores[:, :, out] = decision(flat[:, out], weights[:, k], bias[:, k])
    pooled = scores.reshape(len(runs), *leading, n)
    tested = zip(pooled[1:], runs[1:], strict=True)
    controls = [measures_once(one, run)[None] for one, run in tested]
    return CrossValidated(
        scores=pooled[0],
        fold=fold,
        heldout=evaluation(pooled[0], labels, group, seed),
        fold_auc=torch.stack(
            [measures_once(pooled[0][..., fold == k], labels[fold == k])[2] for k in range(folds)]
        ),
        shuffled=torch.cat([torch.zeros(0, 3, *leading, dtype=torch.float64), *controls]),
        weights=weights[0].reshape(folds, *leading, -1),
        bias=bias[0].reshape(folds, *leading),
        fitted=round(n * (folds - 1) / folds),
    )


def _states(X: Tensor | np.ndarray, n: int) -> np.ndarray:
    """(*leading, N, d) float64."""
    states = X.detach().cpu().double().numpy() if isinstance(X, Tensor) else X.astype(np.float64)
    if states.ndim < 2 or states.shape[-2] != n or not np.isfinite(states).all():
        raise InterpError(
            f"states of shape {states.shape}",
            f"{n} labels, or values that are not finite",
            "give (*leading, N, d) and one label per row",
        )
    return states
