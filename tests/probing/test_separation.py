"""Silhouettes, centroids and cross-validated probes on planted clusters, and against references."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, silhouette_samples

from interp.core.errors import InterpError
from interp.probing.separation import probe_cv, separation
from interp.probing.training import train_probes

SIZES = {"a": 20, "b": 30, "c": 25}


def clusters(apart=(0.0, 3.0, 12.0), d=16, seed=0):
    """Three classes of unit noise, at the corners of a triangle whose side grows by layer."""
    rng = np.random.default_rng(seed)
    labels = [name for name, n in SIZES.items() for _ in range(n)]
    corners = np.eye(3, d) / math.sqrt(2)
    noise = rng.standard_normal((len(apart), len(labels), d))
    at = corners[[*SIZES].index("a") + np.array(["abc".index(x) for x in labels])]
    return noise + np.array(apart)[:, None, None] * at, labels


def test_silhouettes_are_scikit_learn_s_and_distances_a_loop_s():
    X, labels = clusters()
    found = separation(torch.from_numpy(X).float(), labels)
    assert (found.classes, found.counts) == (("a", "b", "c"), (20, 30, 25))
    for layer, rows in enumerate(X.astype(np.float32).astype(np.float64)):
        expected = silhouette_samples(rows, labels)
        np.testing.assert_allclose(found.silhouettes[layer], expected, atol=1e-9)
        assert found.silhouette[layer] == pytest.approx(expected.mean())
        assert found.stderr[layer] == pytest.approx(expected.std(ddof=1) / math.sqrt(75))
        means = {x: rows[[y == x for y in labels]].mean(0) for x in "abc"}
        own = [np.linalg.norm(row - means[x]) for row, x in zip(rows, labels, strict=True)]
        assert found.within[layer] == pytest.approx(np.mean(own))
        pairs = [np.linalg.norm(means[x] - means[y]) for x, y in ("ab", "ac", "bc")]
        assert found.between[layer] == pytest.approx(np.mean(pairs))
        assert found.centroids[layer, 0, 2] == pytest.approx(pairs[1])
    assert found.to_dataframe().n.tolist() == [75, 75, 75]


def test_planted_distances_are_found():
    found = separation(*clusters(apart=(0.0, 3.0, 12.0, 60.0)))
    assert abs(found.silhouette[0]) < 0.02
    assert (np.diff(found.silhouette) > 0.05).all()
    assert found.silhouette[-1] > 0.85
    assert found.between[2:] == pytest.approx([12, 60], rel=0.05)
    assert found.within == pytest.approx(4, rel=0.1)  # about sqrt(16), whatever the distance
    assert found.ratio[0] > 2
    assert found.ratio[-1] < 0.1
    # Other labels on the same rows: nothing.
    X, labels = clusters(apart=(60.0,))
    mixed = np.random.default_rng(1).permutation(labels)
    assert abs(separation(X, mixed).silhouette[0]) < 0.1


def test_a_class_of_one_row_and_equal_rows():
    X, labels = clusters(apart=(12.0,))
    labels[0] = "alone"
    found = separation(X, labels)
    np.testing.assert_allclose(found.silhouettes[0], silhouette_samples(X[0], labels), atol=1e-9)
    assert found.silhouettes[0, 0] == 0
    same = separation(np.ones((4, 3)), ["x", "x", "y", "y"])
    assert same.silhouette == 0
    assert math.isnan(same.ratio)
    for labels in (["x"] * 4, ["x", "y", "z", "w"], ["x", "y"]):
        with pytest.raises(InterpError, match=r"classes|labels"):
            separation(np.ones((4, 3)), labels)
    with pytest.raises(InterpError, match="not finite"):
        separation(np.full((2, 3), math.nan), ["x", "y"])


# -- probes over all folds -----------------------------------------------------------------------


def planted(n=160, d=10, per_group=4, shift=(0.0, 4.0), seed=0):
    """Rows in groups that share an offset; True rows are shifted along one direction by layer."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.4
    groups = np.arange(n) // per_group
    offset = 2 * rng.standard_normal((n // per_group, d))[groups]
    direction = np.eye(d)[0]
    noise = rng.standard_normal((len(shift), n, d))
    return noise + offset + np.array(shift)[:, None, None] * y[:, None] * direction, y, groups


def test_every_row_is_judged_once_by_a_probe_that_has_not_seen_its_group():
    X, y, groups = planted()
    found = probe_cv(X, y, groups=groups, folds=4, shuffles=3)
    assert sorted(set(found.fold)) == [0, 1, 2, 3]
    for k in range(4):
        out = found.fold == k
        assert not set(groups[out]) & set(groups[~out])
        again = torch.from_numpy(X[:, out]) @ found.weights[k][..., None]
        again = again[..., 0] + found.bias[k][:, None]
        torch.testing.assert_close(found.scores[:, out], again)
        for layer in range(2):
            expected = roc_auc_score(y[out], found.scores[layer, out])
            assert float(found.fold_auc[k, layer]) == pytest.approx(expected)
    for layer in range(2):
        expected = roc_auc_score(y, found.scores[layer])
        assert float(found.heldout.auc[layer]) == pytest.approx(expected)
    held = found.heldout
    assert (held.n_valid + held.n_invalid, held.n_groups) == (160, 40)
    assert found.shuffled.shape == (3, 3, 2)
    assert found.fitted == 120
    # The first fold is what one held-out fold of the same seed gives.
    one = train_probes(torch.from_numpy(X), torch.from_numpy(y), groups=groups, folds=4, shuffles=1)
    assert (one.test.numpy() == (found.fold == 0)).all()
    torch.testing.assert_close(found.weights[0], one.weights, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.fold_auc[0], one.heldout.auc)


def test_planted_classes_are_told_apart_where_they_are():
    X, y, groups = planted()
    found = probe_cv(X, y, groups=groups, folds=4, shuffles=8)
    auc, low, high = found.heldout.auc, found.heldout.low[2], found.heldout.high[2]
    assert low[0] < 0.5 < high[0]
    assert low[1] > 0.75
    assert auc[1] > found.shuffled[:, 2, 1].max() + 0.2
    assert found.shuffled[:, 2].mean() == pytest.approx(0.5, abs=0.07)
    assert (found.weights[:, 1].argmax(-1) == 0).all()


def test_a_group_s_own_mark_is_no_evidence():
    """Labels that follow groups whose offsets tell nothing of new groups: chance, not a leak."""
    X, _, groups = planted(d=40, shift=(0.0,))
    y = np.random.default_rng(2).random(40)[groups] < 0.5
    found = probe_cv(X, y, groups=groups, folds=4, shuffles=4)
    leaking = probe_cv(X, y, folds=4, shuffles=0)
    assert float(found.heldout.auc) < 0.7 < float(leaking.heldout.auc)
    assert leaking.shuffled.shape == (0, 3, 1)


def test_a_repeated_row_is_judged_by_a_probe_that_has_not_seen_it():
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((60, 80)), rng.random(60) < 0.5
    found = probe_cv(np.tile(X, (4, 1)), np.tile(y, 4), folds=4, shuffles=0)
    assert (found.fold.reshape(4, 60) == found.fold[:60]).all()
    assert float(found.heldout.auc) < 0.75
    assert found.heldout.n_groups == 60


def test_what_cannot_be_split_is_refused():
    X, y, groups = planted()
    with pytest.raises(InterpError, match="at least as many groups as folds"):
        probe_cv(X, y, groups=groups // 20, folds=4)
    with pytest.raises(InterpError, match="one group per row"):
        probe_cv(X, y, groups=groups[1:])
    with pytest.raises(InterpError, match="True or 1"):
        probe_cv(X, y.astype(int) + 1)
    with pytest.raises(InterpError, match=r"shape \(160,\)"):
        probe_cv(X[:, 1:], y)
    with pytest.raises(InterpError, match="0 have False"):
        probe_cv(X, np.ones(160, dtype=bool))
