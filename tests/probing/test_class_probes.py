"""Probes of classes and numbers: scikit-learn's numbers, planted truths, and nothing from noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score

from interp.core.errors import InterpError
from interp.core.folds import stratified_folds
from interp.core.statistics import share_estimate
from interp.engine.stopping import Cancelled
from interp.probing.class_probes import ClassFitOptions, probe_classes, probe_values
from interp.probing.held_out_probes import HeldOutProbes
from interp.probing.probes import permuted_labels

NAMES = ("ash", "birch", "cedar")


def planted(n=240, d=8, shift=3.0, seed=0):
    """Three classes in one of two layers: each shifts the rows along an axis of its own."""
    rng = torch.Generator().manual_seed(seed)
    of = torch.randint(3, (n,), generator=rng)
    X = torch.randn(2, n, d, generator=rng)
    X[1, torch.arange(n), of] += shift
    return X, [NAMES[k] for k in of.tolist()]


def test_linear_probes_are_those_of_scikit_learn():
    X, labels = planted(shift=1.5)
    X = X * torch.logspace(-2, 2, 8) - 20
    probes = probe_classes(X, labels, shuffles=2, regularisation=0.03)
    test, y = probes.test, np.array(labels)
    for layer in range(2):
        rows = X[layer].double().numpy()
        mean, sd = rows[~test].mean(0), rows[~test].std(0)
        fit = LogisticRegression(
            C=1 / (0.03 * (~test).sum()), class_weight="balanced", max_iter=2000
        ).fit((rows[~test] - mean) / sd, y[~test])
        said = fit.predict((rows[test] - mean) / sd)
        assert [probes.classes[k] for k in probes.predicted[layer]] == said.tolist()
        assert probes.values[layer] == accuracy_score(y[test], said)
        assert probes.balanced[layer] == pytest.approx(balanced_accuracy_score(y[test], said))
        right = round(probes.values[layer] * test.sum())
        wilson = share_estimate(right, int(test.sum()))
        assert (probes.low[layer], probes.high[layer]) == (wilson.low, wilson.high)
    values, counts = np.unique(y[~test], return_counts=True)
    assert probes.baseline == (y[test] == values[counts.argmax()]).mean()


def test_r2_is_that_of_ridge_regression():
    X, _ = planted()
    y = 5 + 2 * X[1, :, 0].double().numpy() + np.random.default_rng(0).standard_normal(240)
    probes = probe_values(X, y, shuffles=20, regularisation=0.1)
    test = probes.test
    for layer in range(2):
        rows = X[layer].double().numpy()
        mean, sd = rows[~test].mean(0), rows[~test].std(0)
        fit = Ridge(alpha=0.1 * (~test).sum()).fit((rows[~test] - mean) / sd, y[~test])
        said = fit.predict((rows[test] - mean) / sd)
        np.testing.assert_allclose(probes.predicted[layer], said, rtol=1e-9)
        total = ((y[test] - y[~test].mean()) ** 2).sum()
        wanted = 1 - ((y[test] - said) ** 2).sum() / total
        assert probes.values[layer] == pytest.approx(wanted)
        assert wanted == pytest.approx(r2_score(y[test], said), abs=0.05)  # another mean
    assert probes.low[1] > 0.6
    assert probes.low[0] < 0 < probes.high[0] + 0.1
    assert probes.p[1] == 1 / 21
    assert probes.p[0] > 0.05
    assert probes.baseline == 0


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.long
def test_planted_classes_are_found_where_they_are(kind):
    X, labels = planted(n=400)
    probes = probe_classes(X, labels, kind=kind, shuffles=9, hidden=16)
    assert probes.low[1] > 0.75
    assert probes.low[0] < 1 / 3 < probes.high[0]
    assert probes.p[1] == probes.p_any == 1 / 10
    assert probes.p[0] > 1 / 10
    assert (np.abs(probes.shuffled.mean(0) - 1 / 3) < 0.08).all()
    again = probe_classes(X, labels, kind=kind, shuffles=1, hidden=16)
    assert (again.predicted == probes.predicted).all()


def test_a_hidden_layer_reads_what_no_line_separates():
    X = torch.randn(1, 400, 2, generator=torch.Generator().manual_seed(0))
    labels = (X[0, :, 0] * X[0, :, 1] > 0).tolist()
    line, net = (probe_classes(X, labels, kind=kind, shuffles=1) for kind in ("linear", "mlp"))
    assert line.low[0] < 0.5
    assert net.low[0] > 0.75
    assert net.minus(line).better.all()
    assert not line.minus(net).better.any()
    y = (X[0, :, 0] * X[0, :, 1]).tolist()
    line, net = (probe_values(X, y, kind=kind, shuffles=1) for kind in ("linear", "mlp"))
    assert line.values[0] < 0.1
    assert net.low[0] > 0.5


@pytest.mark.long
def test_p_is_uniform_where_there_is_nothing_to_read():
    found = {"classes": [], "numbers": []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        X = torch.from_numpy(rng.standard_normal((60, 1)))
        labels = rng.permutation(np.repeat([0, 1, 2], 20))
        found["classes"].append(probe_classes(X, labels, shuffles=9, seed=seed).p_any)
        numbers = probe_values(X, rng.standard_normal(60), shuffles=9, seed=seed)
        found["numbers"].append(numbers.p_any)
    for name, p in found.items():
        assert np.mean(np.array(p) <= 0.1) <= 0.2, name
        assert np.mean(np.array(p) <= 0.5) <= 0.66, name
    # Numbers have no ties: their p is uniform on 1/10 to 10/10, and not only valid.
    counts = np.bincount(np.ceil(np.array(found["numbers"]) * 5 - 1e-9).astype(int), minlength=6)
    assert stats.chisquare(counts[1:]).pvalue > 0.01


def test_rows_of_a_group_are_never_split_and_widen_the_interval():
    rng = torch.Generator().manual_seed(1)
    of = torch.randint(3, (60,), generator=rng)
    rows = torch.randn(60, 40, generator=rng)
    X = rows.repeat_interleave(5, 0) + 0.01 * torch.randn(300, 40, generator=rng)
    labels, groups = of.repeat_interleave(5).tolist(), [i // 5 for i in range(300)]
    grouped = probe_classes(X, labels, groups=groups, shuffles=19)
    trap = probe_classes(X, labels, shuffles=19)
    assert trap.values > 0.9  # the leak that groups close
    assert grouped.low < 1 / 3 < grouped.high
    assert grouped.p > 0.05
    assert not {*np.array(groups)[grouped.test]} & {*np.array(groups)[~grouped.test]}
    per_row = share_estimate(round(float(grouped.values) * grouped.n_test), grouped.n_test)
    assert grouped.high - grouped.low > 1.5 * (per_row.high - per_row.low)
    equal = probe_classes(rows.repeat_interleave(5, 0), labels, shuffles=1)
    assert len(np.unique(equal.groups)) == equal.n_test / 5


def test_labels_are_permuted_between_groups_only_if_they_are_of_groups():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 3)
    part = np.zeros(60, dtype=bool)
    whole = np.repeat(rng.integers(4, size=20), 3)
    mixed = permuted_labels(whole, group, part, rng).reshape(20, 3)
    assert (mixed == mixed[:, :1]).all()
    assert (np.sort(mixed[:, 0]) == np.sort(whole[::3])).all()
    apart = whole.copy()
    apart[0] = (apart[0] + 1) % 4
    free = permuted_labels(apart, group, part, rng)
    assert (np.sort(free) == np.sort(apart)).all()
    assert (free.reshape(20, 3) != free.reshape(20, 3)[:, :1]).any()


def test_folds_of_three_classes_hold_each_class():
    rng = np.random.default_rng(0)
    labels, group = rng.permutation(np.repeat([0, 1, 2], [60, 30, 30])), np.arange(120) // 2
    fold = stratified_folds(labels, group, 4, 0)
    assert (fold[::2] == fold[1::2]).all()
    counts = np.array([np.bincount(labels[fold == k], minlength=3) for k in range(4)])
    assert (np.abs(counts - [15, 7.5, 7.5]) <= 4).all()
    with pytest.raises(InterpError, match="of the groups, 1 have 2"):
        stratified_folds(np.array([0, 1] * 30 + [2, 2]), np.arange(62) // 2, 4, 0)
    with pytest.raises(InterpError, match="in 4 folds"):
        stratified_folds(np.zeros(40, dtype=int), np.arange(40), 4, 0)


def test_a_difference_is_paired_by_row():
    X, labels = planted(n=400, shift=1.0)
    one = probe_classes(X, labels, shuffles=1)
    other = probe_classes(X.flip(-1)[..., :6], labels, shuffles=1, test=one.test)
    found = one.minus(other)
    hits = (one.predicted == one.truth).astype(float) - (other.predicted == other.truth)
    np.testing.assert_allclose(found.values, hits.mean(1))
    sd = hits.std(1, ddof=1) / np.sqrt(one.n_test)
    np.testing.assert_allclose(found.high - found.low, 2 * 1.984 * sd, rtol=0.02)
    for layer in range(2):
        plus, minus = (hits[layer] > 0).sum(), (hits[layer] < 0).sum()
        mcnemar = stats.binomtest(int(plus), int(plus + minus)).pvalue
        assert found.p[layer] == pytest.approx(mcnemar, abs=0.03)
    assert found.p_any >= found.p.min() - 1e-9
    back = other.minus(one)
    np.testing.assert_allclose(back.values, -found.values)
    np.testing.assert_allclose(back.p, found.p)
    assert not one.minus(one).better.any()
    assert one.minus(one).p_any == 1


@pytest.mark.long
def test_p_of_a_difference_is_uniform_for_equal_probes():
    """Two probes with independent errors of one size; numbers have no ties, classes have."""
    X, labels = planted(n=320)
    numbers = probe_values(X, np.arange(320.0), shuffles=1)
    classes = probe_classes(X, labels, shuffles=1)
    found = {"R2": [], "accuracy": []}
    for seed in range(300):
        rng = np.random.default_rng(seed)
        one, other = (
            replace(numbers, predicted=numbers.truth + rng.standard_normal((2, 80)))
            for _ in range(2)
        )
        found["R2"].append(one.minus(other, seed=seed).p_any)
        one, other = (
            replace(classes, predicted=(classes.truth + (rng.random((2, 80)) < 0.3)) % 3)
            for _ in range(2)
        )
        found["accuracy"].append(one.minus(other, seed=seed).p_any)
    assert stats.kstest(found["R2"], "uniform").pvalue > 0.01
    for name, p in found.items():
        assert np.mean(np.array(p) <= 0.05) <= 0.08, name
        assert np.mean(np.array(p) <= 0.5) > 0.3, name


def test_probes_are_saved_tabled_and_reported(tmp_path):
    X, labels = planted()
    seen = []
    probes = probe_classes(
        X, labels, shuffles=2, coordinates={"layer": [3, 7]}, source={"site": "z"},
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 2), (2, 2)]
    back = HeldOutProbes.load(probes.save(tmp_path / "probes"))
    assert (back.predicted == probes.predicted).all()
    assert back.source == {"site": "z"}
    table = probes.to_dataframe()
    assert table["layer"].tolist() == [3, 7]
    np.testing.assert_allclose(table["accuracy"], probes.values)
    assert f"best accuracy {probes.values.max():.3f}" in repr(probes)
    assert len(probe_classes(X[0], labels, shuffles=1).to_dataframe()) == 1
    with pytest.raises(Cancelled):
        probe_classes(X, labels, cancelled=lambda: True)


def test_bad_input_is_refused():
    X, labels = planted(n=60)
    numbers = np.arange(60.0)
    one = probe_classes(X, labels, shuffles=1)
    calls = (
        lambda: probe_classes(X, labels[:-1]),
        lambda: probe_classes(X, ["one"] * 60),
        lambda: probe_classes(X, [*labels[:-1], "rare"]),
        lambda: probe_classes(X * float("nan"), labels),
        lambda: probe_classes(X.long(), labels),
        lambda: probe_classes(X[0, 0], labels),
        lambda: probe_classes(X, labels, kind="forest"),
        lambda: probe_classes(X, labels, folds=1),
        lambda: probe_classes(X, labels, shuffles=0),
        lambda: probe_classes(X, labels, hidden=0),
        lambda: probe_classes(X, labels, regularisation=0),
        lambda: probe_classes(X, labels, seed=-1),
        lambda: probe_classes(X, labels, groups=[1] * 60),
        lambda: probe_classes(X, labels, groups=[1] * 59),
        lambda: probe_classes(X, labels, test=[True] * 60),
        lambda: probe_classes(X, labels, test=[x == "ash" for x in labels]),
        lambda: probe_classes(X, labels, coordinates={"layer": [1]}),
        lambda: probe_classes(5, labels),
        lambda: probe_values(X, ["a"] * 60),
        lambda: probe_values(X, [1.0] * 60),
        lambda: probe_values(X, numbers * np.nan),
        lambda: probe_values(X, numbers[:-1]),
        lambda: probe_values(X, numbers, shuffles=1).balanced,
        lambda: one.minus(probe_classes(X, labels, shuffles=1, seed=1)),
        lambda: one.minus(probe_values(X, numbers, shuffles=1, test=one.test)),
        lambda: one.minus(probe_classes(X[:1], labels, shuffles=1, test=one.test)),
        lambda: ClassFitOptions(kind="linear", folds=0),
    )
    for i, call in enumerate(calls):
        with pytest.raises(InterpError):
            pytest.fail(f"call {i} was accepted: {call()!r:.80}")
