"""Probes of several classes, of numbers, and with a hidden layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np
from torch import Tensor

from interp.core.arguments import Flags, flags_of, listed, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.folds import equal_rows, joined, stratified_folds
from interp.core.run_options import Progress, never
from interp.core.schema import Count, Positive, Seed, checked
from interp.engine.stopping import stop_if_asked, stoppable
from interp.probing.held_out_probes import HeldOutProbes, gained, interval, whole
from interp.probing.probes import permuted_labels
from interp.probing.training import FEWEST, group_numbers_of, named_axes

HeldOutKind = Literal["linear", "mlp"]

EPOCHS = 200
"""Most passes over the rows in which a hidden layer is trained."""


class ClassFitKeywords(TypedDict, total=False):
    """Keywords of `probe_classes` and `probe_values`; see `ClassFitOptions`."""

    kind: HeldOutKind
    folds: int
    shuffles: int
    regularisation: float
    hidden: int
    seed: int
    progress: Progress | None
    cancelled: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class ClassFitOptions:
    """How probes of classes or numbers are fitted, by scikit-learn.

    Attributes:
        kind: "linear" or "mlp", a network with one hidden layer of rectified units.
        folds: number of folds; 1 / folds of the rows are held out.
        shuffles: number of control runs.
        regularisation: C is 1 / (n_train * regularisation) for linear probes of classes, and the
            penalty is n_train * regularisation for those of numbers. For "mlp" it is alpha.
        hidden: number of hidden units of "mlp".
        seed: seed of the split, the permutations and the initialisation.
        progress: called with (cells fitted, cells in total).
        cancelled: asked before every fit; fitting stops when it returns True.

    Raises:
        InterpError: an unknown kind, or an option out of range.
    """

    kind: HeldOutKind = "linear"
    folds: int = 4
    shuffles: int = 20
    regularisation: float = 0.01
    hidden: int = 64
    seed: int = 0
    progress: Progress | None = None
    cancelled: Callable[[], bool] = never

    def __post_init__(self) -> None:
        if self.kind not in get_args(HeldOutKind):
            raise unknown("kind of probe", self.kind, get_args(HeldOutKind))
        for name in ("folds", "shuffles", "hidden"):
            checked(Count, getattr(self, name), name)
        checked(Positive, self.regularisation, "regularisation")
        checked(Seed, self.seed, "seed")

    def estimator(self, n: int, classes: bool) -> Any:
        """scikit-learn's estimator, which standardises by the rows that it is fitted to."""
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        size = n * self.regularisation
        if self.kind == "mlp":
            net = MLPClassifier if classes else MLPRegressor
            options = {"alpha": self.regularisation, "max_iter": EPOCHS, "random_state": self.seed}
            last = net(hidden_layer_sizes=(self.hidden,), **options)
        elif classes:
            last = LogisticRegression(C=1 / size, class_weight="balanced", max_iter=2000)
        else:
            last = Ridge(alpha=size)
        return make_pipeline(StandardScaler(), last)


@reads_arguments
def probe_classes(
    X: Tensor,
    labels: Sequence[Hashable],
    *,
    groups: Iterable[Hashable] | None = None,
    test: Flags | None = None,
    coordinates: Mapping[str, Sequence[int]] | None = None,
    source: Mapping[str, str] | None = None,
    **fit: Unpack[ClassFitKeywords],
) -> HeldOutProbes:
    """How well two or more classes are read from activations, with a linear or a deeper probe.

        linear:  mean_i c_i CE(softmax(W x_i + b), y_i) + regularisation / 2 |W|^2
        mlp:     mean_i CE(softmax(V relu(W x_i + b) + a), y_i) + alpha / (2 n) (|W|^2 + |V|^2)

    Features are standardised with the fitted rows. c balances the classes of linear probes; those
    with a hidden layer are not balanced. One of `folds` stratified folds is held out; groups, and
    rows that are equal, are never split. The control repeats this `shuffles` times with labels
    permuted, separately among fitted and held-out rows (between whole groups if no group has two
    labels). If the labels have nothing to do with X, `HeldOutProbes.p` is valid at every level.

    A hidden layer can compute what no later layer of the model does: that an "mlp" reads a label
    says less about the model than that a linear probe does.

    Args:
        X: (*leading, N, d) activations of any float type.
        labels: (N,) the class of each row, named by `str`.
        groups: one label per row for rows that belong together; by default every row is a group.
        test: (N,) the rows that are held out, in place of a fold, such as those of another probe.
            Nothing is regrouped then: whoever gives it answers for leaks.
        coordinates: names and labels of the leading axes; by default layer, head, axis2, ...
        source: facts stored with the result.
        fit: kind, folds, shuffles, regularisation, hidden, seed, progress and cancelled; see
            `ClassFitOptions`.

    Raises:
        InterpError: shapes that do not fit, values that are not finite, fewer than two classes,
            fewer than 10 rows of a class, a class that one side of the split lacks, or an option
            out of range.

    Sources: Hewitt and Liang 2019 (arXiv 1909.03368) for the control; scikit-learn for the fits.
    """
    names = [str(one) for one in listed(labels)]
    classes, of, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.min() < FEWEST:
        shown = ", ".join(f"{n} of {one}" for one, n in zip(classes[:8], counts, strict=False))
        do = f"give at least {FEWEST} rows of each of two or more classes"
        raise InterpError(f"probes of {len(classes)} classes", shown, do)
    options = ClassFitOptions(**fit)
    return _probed(X, of, tuple(classes.tolist()), groups, test, coordinates, source, options)


@reads_arguments
def probe_values(
    X: Tensor,
    values: Sequence[float],
    *,
    groups: Iterable[Hashable] | None = None,
    test: Flags | None = None,
    coordinates: Mapping[str, Sequence[int]] | None = None,
    source: Mapping[str, str] | None = None,
    **fit: Unpack[ClassFitKeywords],
) -> HeldOutProbes:
    """How well a number is read from activations: R2 on held-out rows.

        R2 = 1 - sum_i (y_i - f(x_i))^2 / sum_i (y_i - m)^2,   m the mean of the fitted rows

    f is ridge regression on standardised features, or a network with one hidden layer; numbers are
    standardised for the network. R2 is 0 for the constant m, and below 0 for what is worse. Folds
    are stratified by the median.

    Args:
        X: (*leading, N, d) activations of any float type.
        values: (N,) finite numbers.
        groups: as in `probe_classes`.
        test: as in `probe_classes`.
        coordinates: as in `probe_classes`.
        source: as in `probe_classes`.
        fit: as in `probe_classes`.

    Raises:
        InterpError: as in `probe_classes`, numbers that are not finite, or all equal.
    """
    try:
        numbers = np.asarray(listed(values), dtype=float)
    except (TypeError, ValueError) as error:
        raise InterpError("probes of numbers", str(error), "give one number per row") from error
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or len({*numbers.tolist()}) < 2:
        found = f"shape {numbers.shape}, {len({*numbers.ravel().tolist()})} different values"
        do = "give one finite number per row, and not the same one"
        raise InterpError("probes of numbers", found, do)
    options = ClassFitOptions(**fit)
    return _probed(X, numbers, (), groups, test, coordinates, source, options)


def _probed(
    X: Tensor,
    truth: np.ndarray,
    classes: tuple[str, ...],
    groups: Iterable[Hashable] | None,
    test: Flags | None,
    coordinates: Mapping[str, Sequence[int]] | None,
    source: Mapping[str, str] | None,
    options: ClassFitOptions,
) -> HeldOutProbes:
    """Split, fit and evaluate a probe at every leading index, for the labels and permutations."""
    n = len(truth)
    if X.ndim < 2 or X.shape[-2] != n or not X.is_floating_point() or not X.isfinite().all():
        raise InterpError(
            f"{X.dtype} activations of shape {tuple(X.shape)}",
            f"{n} labels, or values that are not finite",
            "give (*leading, N, d) and one label per row",
        )
    X = X.detach().cpu()
    group = group_numbers_of(groups, n)
    if test is None:
        group = joined(group, equal_rows(X))
        strata = truth if classes else truth > np.median(truth)
        held = stratified_folds(strata, group, options.folds, options.seed, held_out=1) == 0
    else:
        held = flags_of(test, n)
        sides = [len(np.unique(truth[side])) for side in (held, ~held)]
        if min(sides) < (len(classes) or 2):
            found = f"{sides[0]} held out, {sides[1]} fitted"
            raise InterpError("different labels on both sides of a split", found, "give others")
    random = np.random.default_rng(options.seed)
    mixed = [permuted_labels(truth, group, ~held, random) for _ in range(options.shuffles)]
    runs, leading = np.stack([truth, *mixed]), X.shape[:-2]
    flat = X.reshape(-1, *X.shape[-2:])
    predicted = np.zeros((len(runs), len(flat), int(held.sum())), dtype=truth.dtype)
    with stoppable(options.cancelled):
        for i, rows in enumerate(flat):
            states = rows.double().numpy()
            for run, labels in enumerate(runs):
                stop_if_asked()
                predicted[run, i] = _predicted(states, labels, held, bool(classes), options)
            if options.progress is not None:
                options.progress(i + 1, len(flat))
    predicted = predicted.reshape(len(runs), *leading, -1)
    centre = 0.0 if classes else float(truth[~held].mean())
    parts = [
        gained(one, labels[held], bool(classes), centre)
        for one, labels in zip(predicted, runs, strict=True)
    ]
    sums = [whole(labels[held], bool(classes), centre).sum() for labels in runs]
    of = whole(truth[held], bool(classes), centre)
    low, high = interval(parts[0], of, group[held], bool(classes))
    usual = np.bincount(truth[~held]).argmax() if classes else None
    return HeldOutProbes(
        kind=options.kind,
        measure="accuracy" if classes else "R2",
        classes=classes,
        test=held,
        groups=group[held],
        truth=truth[held],
        predicted=predicted[0],
        values=np.asarray(parts[0].sum(-1) / of.sum()),
        low=low,
        high=high,
        baseline=0.0 if usual is None else float((truth[held] == usual).mean()),
        centre=centre,
        shuffled=np.stack([one.sum(-1) / by for one, by in zip(parts, sums, strict=True)][1:]),
        n_train=int((~held).sum()),
        coordinates=named_axes(coordinates, leading),
        settings={
            "folds": options.folds if test is None else None,
            "regularisation": options.regularisation,
            "hidden": options.hidden if options.kind == "mlp" else None,
            "seed": options.seed,
        },
        source=dict(source or {}),
    )


def _predicted(
    states: np.ndarray, labels: np.ndarray, held: np.ndarray, classes: bool, fit: ClassFitOptions
) -> np.ndarray:
    """The predictions for held-out rows of an estimator fitted to the others."""
    from sklearn.exceptions import ConvergenceWarning

    known = labels[~held]
    shift, scale = (0, 1) if classes else (known.mean(), known.std() or 1.0)
    estimator = fit.estimator(len(known), classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is fixed
        target = known if classes else (known - shift) / scale
        estimator.fit(states[~held], target)
    found = estimator.predict(states[held])
    return found if classes else found * scale + shift
