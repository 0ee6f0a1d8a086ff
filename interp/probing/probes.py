"""`Probes`: trained linear probes, their accuracy, and the geometry of their directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from interp.core.errors import InterpError, unknown
from interp.core.records import Record
from interp.core.run_options import Progress, never
from interp.core.schema import Brief
from interp.core.statistics import bootstrap_weights, share_estimate
from interp.engine.stopping import stop_if_asked
from interp.plots.tables import Tabled
from interp.results.keys import values_key
from interp.results.store import chunks_of, drop
from interp.runs.parts import in_order
from interp.runs.workers import each

if TYPE_CHECKING:
    import pandas as pd

ProbeKind = Literal["logistic", "softmax"]
FORM = 1
"""Of the kept fits of a call that was stopped."""

MEASURES = ("accuracy", "balanced_accuracy", "auc")

DRAWS = 1000
"""Number of bootstrap draws for an interval."""


@dataclass(frozen=True, kw_only=True)
class ProbeMetrics(Brief):
    """How well probes classify examples that they were not fitted to.

    Attributes:
        values: (3, *leading) accuracy, balanced accuracy (the mean of the two classes' accuracies)
            and AUC (probability that a valid example scores above an invalid one, ties half).
        low, high: (3, *leading) ends of the 95 % intervals. Accuracy: Wilson, with rows taken as
            independent. The others: bootstrap over groups. At values of 0 or 1 a bootstrap has no
            width, and the interval is Wilson's with the number of groups of the rarer class as n.
        n_valid, n_invalid, n_groups: number of examples of each class, and of groups.
    """

    values: Tensor
    low: Tensor
    high: Tensor
    n_valid: int
    n_invalid: int
    n_groups: int

    @property
    def accuracy(self) -> Tensor:
        return self.values[0]

    @property
    def balanced_accuracy(self) -> Tensor:
        return self.values[1]

    @property
    def auc(self) -> Tensor:
        return self.values[2]

    @property
    def base_rate(self) -> float:
        """The accuracy of always predicting the more frequent class."""
        return max(self.n_valid, self.n_invalid) / (self.n_valid + self.n_invalid)


@dataclass(frozen=True, kw_only=True)
class Probes(Tabled, Record):
    """One probe per leading index. `weights . x + bias > 0` means "valid", for x as captured.

    Attributes:
        kind: "logistic" or "softmax".
        weights: (*leading, d) the direction of valid examples; for softmax P_valid - P_invalid.
        bias: (*leading); 0 for softmax.
        columns, initial: (*leading, d, 2) softmax columns (invalid, valid) after and before
            training; None for logistic probes.
        test: (N,) bool: held-out examples.
        heldout: the measures on held-out examples.
        shuffled: (shuffles, 3, *leading) the control: the measures of probes trained on permuted
            labels, on permuted held-out labels.
        shuffled_weights: (shuffles, *leading, d) the weights of the control probes. All leading
            indices share each permutation, and all shuffles share the initialisation.
        train_valid, train_invalid: number of training examples of each class.
        coordinates: the labels of every leading axis, in order.
        settings: options of the fit, including the seed.
        source: model, model_hash and site, if known.
    """

    kind: ProbeKind
    weights: Tensor
    bias: Tensor
    columns: Tensor | None = None
    initial: Tensor | None = None
    test: Tensor
    heldout: ProbeMetrics
    shuffled: Tensor
    shuffled_weights: Tensor
    train_valid: int
    train_invalid: int
    coordinates: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, Any]
    source: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        size = " x ".join(f"{len(v)} {k}s" for k, v in self.coordinates.items()) or "one probe"
        best = float(self.heldout.balanced_accuracy.max())
        return (
            f"Probes({self.kind}, {size}, d={self.weights.shape[-1]}, n_train={self.n_train}, "
            f"n_test={self.n_test}, best balanced accuracy {best:z.3f})"
        )

    @property
    def n_train(self) -> int:
        return self.train_valid + self.train_invalid

    @property
    def n_test(self) -> int:
        return self.heldout.n_valid + self.heldout.n_invalid

    @property
    def directions(self) -> Tensor:
        """(*leading, d) unit vectors towards valid."""
        return F.normalize(self.weights, dim=-1, eps=1e-30)

    def control(self, measure: str = "auc") -> tuple[Tensor, Tensor, Tensor]:
        """Mean and 95 % range, each (*leading), of a measure over the control probes."""
        if measure not in MEASURES:
            raise unknown("measure", measure, MEASURES)
        found = self.shuffled[:, MEASURES.index(measure)]
        return found.mean(0), found.quantile(0.025, dim=0), found.quantile(0.975, dim=0)

    def project(self, X: Tensor) -> Tensor:
        """(*leading, N) signed distance (w . x + b) / |w| of X (*leading, N, d); valid is positive.

        In the unit of X. Without a bias it is the scalar projection on the direction.

        Raises:
            InterpError: another shape than the probes'.
        """
        norms = self.weights.double().norm(dim=-1, keepdim=True).clamp(min=1e-30)
        return decision(X, self.weights[None], self.bias[None])[0] / norms

    def to_dataframe(self) -> pd.DataFrame:
        """One row per probe: coordinates, held-out measures with intervals, control, and counts."""
        import pandas as pd

        cells = np.ndindex(*(len(labels) for labels in self.coordinates.values()))
        named = [*self.coordinates.items()]
        table = pd.DataFrame(
            [{name: labels[i] for (name, labels), i in zip(named, at, strict=True)} for at in cells]
        )
        found = self.heldout
        for i, name in enumerate(MEASURES):
            parts = (found.values[i], found.low[i], found.high[i], *self.control(name))
            labels = (name, f"{name}_low", f"{name}_high", f"shuffled_{name}")
            labels += (f"shuffled_{name}_low", f"shuffled_{name}_high")
            for label, part in zip(labels, parts, strict=True):
                table[label] = part.flatten().numpy()
        for name in ("base_rate", "n_valid", "n_invalid", "n_groups"):
            table[name] = getattr(found, name)
        return table.assign(
            n_train=self.n_train,
            n_test=self.n_test,
            train_valid=self.train_valid,
            train_invalid=self.train_invalid,
        )


@dataclass(frozen=True, kw_only=True)
class ProbeGeometry(Brief):
    """Cosines between probe directions and, for softmax probes, between their two columns.

    Attributes:
        cosines: (M, M) between all directions, leading axes flattened.
        adjacent: (layers - 1, ...) cosine of each direction with that of the next layer.
        adjacent_shuffled: (shuffles, layers - 1, ...) the same for control probes: the effect of
            the distribution of the activations alone.
        random_mean, random_limit: mean and 95 % quantile of |cosine| of two random directions.
        pair: (*leading) cos(P_invalid, P_valid).
        pair_forced: (*leading) the cosine that columns with these norms of sum and difference have
            if the two are orthogonal.
        pair_shuffled: (shuffles, *leading) `pair` of the control probes.
        pair_initial: (*leading) `pair` before training.
        sum_norm, initial_sum_norm: (*leading) |P_invalid + P_valid| after and before training.
        difference_norm: (*leading) |P_valid - P_invalid|.
        decay: the factor by which weight decay alone shrinks sum_norm.

    `pair` and all later attributes are None for logistic probes.
    """

    cosines: Tensor
    adjacent: Tensor
    adjacent_shuffled: Tensor
    random_mean: float
    random_limit: float
    pair: Tensor | None = None
    pair_forced: Tensor | None = None
    pair_shuffled: Tensor | None = None
    pair_initial: Tensor | None = None
    sum_norm: Tensor | None = None
    initial_sum_norm: Tensor | None = None
    difference_norm: Tensor | None = None
    decay: float | None = None


def probe_geometry(probes: Probes) -> ProbeGeometry:
    """Cosines of directions across layers, and how opposite softmax columns had to become.

    With S = (P_valid + P_invalid) / 2 and D = (P_valid - P_invalid) / 2,

        cos(P_invalid, P_valid) = (|S|^2 - |D|^2) / sqrt((|S|^2 + |D|^2)^2 - 4 (S . D)^2)

    For a softmax over two classes dL/dP_invalid = -dL/dP_valid, for any data. So AdamW changes only
    D, and S only decays: S_t = (1 - lr weight_decay)^t S_0. The cosine approaches -1 as D grows,
    for any labels. A cosine near -1 means that the weights have left their initialisation, not that
    the data contain two opposite directions. `pair_shuffled` is the control. (Permuted labels are
    easy to fit if d is not far below the number of rows.)

    Random directions in d dimensions have cos^2 ~ Beta(1/2, (d - 1)/2) and mean |cos| of about
    sqrt(2 / (pi d)). Leading axis 0 must be the layers.

    Source: a control of Lee et al. 2025, arXiv 2504.14379.
    """
    from scipy import special, stats

    directions = probes.directions.double()
    d = directions.shape[-1]
    flat = directions.reshape(-1, d)
    log_mean = special.gammaln(d / 2) - special.gammaln((d + 1) / 2) - np.log(np.pi) / 2
    layers = directions if directions.ndim > 1 else directions[None]
    control = F.normalize(probes.shuffled_weights.double(), dim=-1, eps=1e-30)
    control = control if directions.ndim > 1 else control[:, None]
    common: dict[str, Any] = {
        "cosines": flat @ flat.T,
        "adjacent": (layers[1:] * layers[:-1]).sum(-1),
        "adjacent_shuffled": (control[:, 1:] * control[:, :-1]).sum(-1),
        "random_mean": float(np.exp(log_mean)),
        "random_limit": float(np.sqrt(stats.beta.ppf(0.95, 0.5, (d - 1) / 2))) if d > 1 else 1.0,
    }
    if probes.columns is None or probes.initial is None:
        return ProbeGeometry(**common)
    columns, initial = probes.columns.double(), probes.initial.double()
    total, gap = columns.sum(-1), columns[..., 1] - columns[..., 0]
    s, r = total.norm(dim=-1), gap.norm(dim=-1)
    # All runs share the initialisation and so the sum: control columns are (sum -+ difference) / 2.
    others = probes.shuffled_weights.double()
    return ProbeGeometry(
        **common,
        pair=_cosine(columns[..., 0], columns[..., 1]),
        pair_forced=(s**2 - r**2) / (s**2 + r**2),
        pair_shuffled=_cosine(total - others, total + others),
        pair_initial=_cosine(initial[..., 0], initial[..., 1]),
        sum_norm=s,
        initial_sum_norm=initial.sum(-1).norm(dim=-1),
        difference_norm=r,
        decay=(1 - probes.settings["lr"] * probes.settings["regularisation"])
        ** probes.settings["steps"],
    )


def decision(X: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """(runs, *leading, N) decision values w . x + b of X (*leading, N, d), in float64.

    Args:
        X: (*leading, N, d).
        weights: (runs, *leading, d).
        bias: (runs, *leading).

    Raises:
        InterpError: X has other leading axes or another width than the weights.
    """
    leading, d = weights.shape[1:-1], weights.shape[-1]
    if X.shape[:-2] != leading or X.shape[-1] != d or X.ndim != len(leading) + 2:
        raise InterpError(
            f"activations of shape {tuple(X.shape)}",
            f"probes of shape {(*leading, d)}",
            "give (*leading, N, d), the same layers in the same order",
        )
    flat, many = X.detach().cpu().reshape(-1, *X.shape[-2:]), weights.reshape(len(weights), -1, d)
    each = [rows.double() @ many[:, i].double().T for i, rows in enumerate(flat)]
    scores = torch.stack(each).movedim(-1, 0).reshape(len(weights), *X.shape[:-1])
    return scores + bias.double()[..., None]


def measures(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Accuracy, balanced accuracy and AUC of scores (*leading, n), for (draw, n) row weights.

    Returns:
        (draw, 3, *leading); nan if a draw lacks a class.
    """
    valid, invalid = weights * labels, weights * ~labels
    n_valid, n_invalid = valid.sum(1), invalid.sum(1)
    found = []
    for row in scores.reshape(-1, scores.shape[-1]).contiguous():
        right = ((row > 0) == labels).double()
        ranked, order = row.sort()
        below = F.pad(invalid[:, order].cumsum(1), (1, 0))
        less = torch.searchsorted(ranked, row)
        most = torch.searchsorted(ranked, row, right=True)
        beaten = (below[:, less] + below[:, most]) / 2
        balanced = ((valid @ right) / n_valid + (invalid @ right) / n_invalid) / 2
        auc = (valid * beaten).sum(1) / (n_valid * n_invalid)
        found.append(torch.stack([weights @ right / weights.sum(1), balanced, auc], 1))
    return torch.stack(found, -1).reshape(len(weights), 3, *scores.shape[:-1])


def measures_once(scores: Tensor, labels: np.ndarray) -> Tensor:
    """(3, *leading) measures of scores (*leading, n), every row counted once."""
    once = torch.ones(1, len(labels), dtype=torch.float64)
    return measures(scores, torch.from_numpy(labels), once)[0]


def evaluation(scores: Tensor, y: np.ndarray, group: np.ndarray, seed: int) -> ProbeMetrics:
    """The measures of scores (*leading, n), with their intervals."""
    n_groups, labels = len(np.unique(group)), torch.from_numpy(y)
    drawn = bootstrap_weights(len(y), DRAWS, seed=seed, groups=group.tolist())
    values = measures_once(scores, y)
    resampled = measures(scores, labels, torch.from_numpy(drawn).double())
    low, high = (resampled.nanquantile(q, dim=0) for q in (0.025, 0.975))
    rarer = min(len(np.unique(group[y])), len(np.unique(group[~y])))
    least = share_estimate(rarer, rarer).low
    low[1:][values[1:] == 1], high[1:][values[1:] == 0] = least, 1 - least
    if n_groups == 1:
        low[1:], high[1:] = 0.0, 1.0
    wilson = [share_estimate(round(v * len(y)), len(y)) for v in values[0].flatten().tolist()]
    low[0] = torch.tensor([w.low for w in wilson]).reshape(low[0].shape)
    high[0] = torch.tensor([w.high for w in wilson]).reshape(high[0].shape)
    return ProbeMetrics(
        values=values,
        low=low,
        high=high,
        n_valid=int(y.sum()),
        n_invalid=int((~y).sum()),
        n_groups=n_groups,
    )


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=-1, eps=1e-30)


def permuted_labels(
    labels: np.ndarray, group: np.ndarray, part: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Labels permuted within each part: between groups if no group has two labels, else rows."""
    pairs = {*zip(group.tolist(), labels.tolist(), strict=True)}
    whole, mixed = len(pairs) == len(np.unique(group)), labels.copy()
    for one in np.unique(part):
        rows = np.flatnonzero(part == one)
        _, first, back = np.unique(group[rows], return_index=True, return_inverse=True)
        each = labels[rows][first] if whole else labels[rows]
        mixed[rows] = random.permutation(each)[back if whole else slice(None)]
    return mixed


def logistic_probes(
    X: Tensor,
    runs: np.ndarray,
    regularisation: float,
    progress: Progress | None = None,
    *,
    workers: int = 0,
    cancelled: Callable[[], bool] = never,
) -> tuple[Tensor, Tensor]:
    """Weights (run, *leading, d) and biases (run, *leading) of probes fitted to labels (run, n).

    With `workers`, processes share the leading indices, and finished fits are kept until the end.
    """
    leading, (n, d) = X.shape[:-2], X.shape[-2:]
    flat = X.reshape(-1, n, d)
    work = partial(_fits, runs=runs, regularisation=regularisation)
    if workers:
        parts = [rows.to(torch.promote_types(rows.dtype, torch.float32)).numpy() for rows in flat]
        asked = [parts, runs, regularisation]
        do = partial(each, work, workers=workers, progress=progress, cancelled=cancelled)
        with chunks_of(values_key("probes", FORM, asked)) as chunks:
            found = list(in_order(parts, do, chunks=chunks))
            drop(chunks)
    else:
        found = []
        for rows in flat:
            found.append(work(rows.double().numpy()))
            if progress is not None:
                progress(len(found), len(flat))
    fits = torch.from_numpy(np.stack(found, 1))
    shape = (len(runs), *leading)
    return fits[..., :-1].reshape(*shape, d), fits[..., -1].reshape(shape)


def _fits(rows: np.ndarray, *, runs: np.ndarray, regularisation: float) -> np.ndarray:
    """(runs, d + 1): weights and bias of a probe on rows (n, d) for each run of labels."""
    from sklearn.linear_model import LogisticRegression

    raw = rows.astype(np.float64)
    mean, scale = raw.mean(0), raw.std(0)
    scale[scale <= 1e-6 * np.abs(mean)] = np.inf  # constant up to rounding
    standard = (raw - mean) / scale
    found = np.zeros((len(runs), raw.shape[1] + 1))
    for fit, labels in zip(found, runs, strict=True):
        stop_if_asked()
        model = LogisticRegression(
            C=1 / (len(raw) * regularisation), class_weight="balanced", max_iter=2000
        ).fit(standard, labels)
        fit[:-1] = model.coef_[0] / scale
        fit[-1] = model.intercept_[0] - fit[:-1] @ mean
    return found
