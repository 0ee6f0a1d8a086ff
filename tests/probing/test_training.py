"""Probes: planted directions found, leaks and chance not mistaken for them."""

import math
import random
import warnings

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.core.folds import equal_rows, joined, stratified_folds
from interp.core.statistics import share_estimate
from interp.engine.stopping import Cancelled
from interp.models.loading import load_model
from interp.probing.probes import Probes, decision, measures, permuted_labels, probe_geometry
from interp.probing.training import (
    FitOptions,
    Optimiser,
    _softmax,
    evaluate_probes,
    head_outputs,
    probe_model,
    train_probes,
)
from interp.runs.capture import run_with_cache
from tests.conftest import REAL_CACHE
from tests.families import VOCABULARY


def planted(n=400, d=12, layers=4, first=2, share=0.5, shift=4.0, seed=0):
    """Noise of unequal scales and offsets; from layer `first` on valid rows are shifted."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.rand(n, generator=rng) < share
    direction = torch.nn.functional.normalize(torch.randn(d, generator=rng), dim=0)
    X = torch.randn(layers, n, d, generator=rng)
    X[first:] += shift * y[:, None] * direction
    return X, y, direction


def test_odd_arguments_are_refused_and_never_a_traceback():
    X, y = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), [0, 1] * 12
    table = {
        "y": ({}, [{}] * 24, None),
        "coordinates": (5, "layer", [("a", [0])], {"a": 0}),
        "source": (5, "x", ["a"]),
        "groups": ([[1]] * 24, [{}] * 24, np.zeros((24, 2))),
        "optimiser": ("adam", 5, [0]),
    }
    for name, odd in table.items():
        for value in odd:
            given = {"X": X, "y": y, "shuffles": 1, name: value}
            kind = "softmax" if name == "optimiser" else "logistic"
            with pytest.raises(InterpError):
                train_probes(**given, kind=kind)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_planted_direction_is_found_where_it_is(kind):
    X, y, direction = planted()
    if kind == "softmax":
        X = X - 2 * (torch.arange(4) >= 2)[:, None, None] * direction  # no bias to place it
    options = {"optimiser": Optimiser(lr=0.01, steps=250)} if kind == "softmax" else {}
    probes = train_probes(X, y, kind=kind, shuffles=3, **options)
    found = probes.heldout
    for low, high in zip(found.low, found.high, strict=True):
        assert (low[:2] < 0.5).all()
        assert (high[:2] > 0.5).all()
        assert (low[2:] > 0.88).all()
    assert (probes.directions[2:] @ direction.double() > 0.9).all()
    assert (probes.directions[:2] @ direction.double()).abs().max() < 0.7
    projected = probes.project(X)
    assert projected.shape == (4, 400)
    valid, invalid = projected[2:, y].mean(1), projected[2:, ~y].mean(1)
    assert (valid > 1).all()
    assert (invalid < -1).all()
    np.testing.assert_allclose(valid - invalid, 4, atol=0.5)


def test_logistic_is_scikit_learn_in_raw_coordinates():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y, _ = planted(shift=1.0, share=0.3)
    X = X * torch.logspace(-2, 2, 12) + torch.linspace(-30, 30, 12)
    X[..., 3] = 7.1  # a constant feature
    probes = train_probes(X, y, shuffles=1, regularisation=0.05)
    assert (probes.weights[:, 3] == 0).all()
    train = ~probes.test.numpy()
    for layer in range(4):
        reference = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=1 / (0.05 * train.sum()), class_weight="balanced"),
        ).fit(X[layer, train].double().numpy(), y[train])
        wanted = reference.decision_function(X[layer].double().numpy())
        scores = decision(X, probes.weights[None], probes.bias[None])[0, layer]
        np.testing.assert_allclose(scores, wanted, atol=1e-6)
        distance = scores / probes.weights[layer].norm()
        np.testing.assert_allclose(probes.project(X)[layer], distance, rtol=1e-9)
        right = (wanted > 0) == y.numpy()
        assert probes.heldout.accuracy[layer] == pytest.approx(right[~train].mean())


def test_measures_agree_with_scikit_learn_and_with_repeated_rows():
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, size=(2, 60)) * 1.0  # many ties
    y, weights = rng.random(60) < 0.3, rng.integers(0, 3, size=(4, 60))
    found = measures(
        torch.tensor(scores), torch.tensor(y), torch.tensor(weights, dtype=torch.float64)
    )
    for draw, weight in enumerate(weights):
        rows = np.repeat(np.arange(60), weight)
        for i in range(2):
            named, truth = scores[i, rows] > 0, y[rows]
            wanted = [
                (named == truth).mean(),
                balanced_accuracy_score(truth, named),
                roc_auc_score(truth, scores[i, rows]),
            ]
            np.testing.assert_allclose(found[draw, :, i], wanted, atol=1e-12)


def line(n=600, seed=0):
    """A probe that reads the one coordinate there is."""
    X = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed))
    return train_probes(X, X[:, 0] > 0, shuffles=1)


@pytest.mark.long
def test_auc_interval_covers_the_truth_only_with_the_groups():
    probe, truth, hits = line(), 0.5 * (1 + math.erf(1.0 / 2)), {True: 0, False: 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(40), 6)
        y = np.repeat(rng.random(40) < 0.5, 6)  # rows of a group share label and noise
        noise = np.sqrt(0.9) * rng.standard_normal(40)[group]
        x = noise + np.sqrt(0.1) * rng.standard_normal(240) + np.where(y, 1.0, 0.0)
        X = torch.tensor(x)[:, None]
        for grouped in hits:
            found = evaluate_probes(probe, X, y, groups=group if grouped else None)
            hits[grouped] += bool(found.low[2] <= truth <= found.high[2])
    assert hits[True] >= 34
    assert hits[False] <= 29


def test_perfect_separation_keeps_an_interval():
    X, y, _ = planted(shift=60.0, share=0.2)
    groups = [i // 4 for i in range(400)]
    found = train_probes(X, y, groups=groups, shuffles=2).heldout
    assert (found.values[:, 2:] == 1).all()
    held = found.n_valid + found.n_invalid
    assert float(found.low[0, 3]) == pytest.approx(share_estimate(held, held).low)
    assert (found.low[1:, 3] < 0.9).all()
    assert (found.low[1:, 3] > 0.5).all()


def test_leak_between_rows_of_a_group_is_closed():
    rng = torch.Generator().manual_seed(1)
    label = torch.rand(120, generator=rng) < 0.5
    rows = torch.randn(120, 60, generator=rng)
    groups = [i // 4 for i in range(480)]
    X, y = rows.repeat_interleave(4, 0), label.repeat_interleave(4)
    X = X + 0.01 * torch.randn(X.shape, generator=rng)  # alike, not equal
    grouped = train_probes(X, y, groups=groups, shuffles=20)
    trap = train_probes(X, y, shuffles=2)
    assert float(trap.heldout.accuracy) > 0.85
    assert float(grouped.heldout.low[2]) < 0.5 < float(grouped.heldout.high[2])
    test = grouped.test.numpy()
    assert not set(np.array(groups)[test]) & set(np.array(groups)[~test])
    mean, low, high = grouped.control("auc")
    assert low < 0.5 < high
    assert high - low > 0.15  # 30 groups are held out, not 120 rows
    assert low <= grouped.heldout.auc <= high


def test_unbalanced_classes():
    X, y, _ = planted(n=800, share=0.12, shift=2.5)
    probes = train_probes(X, y, shuffles=2)
    found = probes.heldout
    assert found.base_rate == pytest.approx(found.n_invalid / (found.n_valid + found.n_invalid))
    assert found.base_rate > 0.8
    assert (found.balanced_accuracy[2:] > 0.8).all()
    assert (found.balanced_accuracy[:2] - 0.5).abs().max() < 0.15
    share = y.double().mean()
    assert found.n_valid / probes.n_test == pytest.approx(float(share), abs=0.02)
    assert probes.train_valid + found.n_valid == int(y.sum())
    assert probes.n_train + probes.n_test == 800
    named = (probes.project(X) > 0)[2:]
    recalls = (named[:, y].double().mean(), (~named[:, ~y]).double().mean())
    assert abs(recalls[0] - recalls[1]) < 0.12


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_shuffled_control_is_at_chance_where_the_probe_is_not(kind):
    X, y, _ = planted(shift=8.0)
    X = X - X.mean(1, keepdim=True)
    options = {"optimiser": Optimiser(lr=0.01, steps=150)} if kind == "softmax" else {}
    probes = train_probes(X, y, kind=kind, shuffles=20, **options)
    assert probes.shuffled.shape == (20, 3, 4)
    for name in ("accuracy", "balanced_accuracy", "auc"):
        mean, low, high = probes.control(name)
        assert (mean - 0.5).abs().max() < 0.06
        assert (low < 0.5).all()
        assert (high < 0.75).all()
        assert (getattr(probes.heldout, name)[2:] > 0.97).all()
    with pytest.raises(InterpError, match="did you mean 'auc'"):
        probes.control("acu")


def test_permutations_keep_counts_sides_and_whole_groups():
    rng = np.random.default_rng(0)
    y, group = rng.random(200) < 0.3, np.arange(200) // 5
    test = stratified_folds(y, group, 4, 0, held_out=1) == 0
    mixed = permuted_labels(y, group, ~test, rng)
    assert (mixed != y).any()
    assert mixed[test].sum() == y[test].sum()
    assert mixed.sum() == y.sum()
    whole = np.repeat(rng.random(40) < 0.4, 5)
    mixed = permuted_labels(whole, group, ~test, rng).reshape(40, 5)
    assert (mixed == mixed[:, :1]).all()
    assert (mixed[:, 0] != whole[::5]).any()
    assert mixed[test[::5], 0].sum() == whole[test].sum() / 5


def repeated(n=60, d=80, times=4, seed=0):
    """Noise without a label to read, every row `times` over, up to the rounding of a batch."""
    random = torch.Generator().manual_seed(seed)
    X, y = torch.randn(3, n, d, generator=random), torch.rand(n, generator=random) < 0.5
    again = torch.cat([X] * times, 1)
    return again * (1 + 1e-6 * torch.randn(again.shape, generator=random)), torch.cat([y] * times)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_equal_rows_are_never_on_both_sides(kind):
    """Random labels on repeated rows: AUC 1 where a copy of each held-out row was fitted."""
    options = {"optimiser": Optimiser(lr=0.01, steps=100)} if kind == "softmax" else {}
    X, y = repeated()
    for groups in (None, [i % 7 + 7 * y[i] for i in range(240)]):
        probes = train_probes(X, y, kind=kind, groups=groups, shuffles=1, **options)
        sides = probes.test.reshape(4, 60)
        assert (sides == sides[:1]).all()
        assert (probes.heldout.auc < 0.85).all()
    assert train_probes(X, y, kind=kind, shuffles=1, **options).heldout.n_groups == 15
    with pytest.raises(InterpError, match="100 valid in 5 groups"):
        train_probes(*repeated(6, times=20), shuffles=1)


def test_equal_rows_count_once_in_an_interval():
    """Rows repeated nine times say no more than the rows themselves."""
    probe, rng = line(), np.random.default_rng(1)
    y = rng.random(40) < 0.5
    X = torch.tensor(rng.standard_normal(40) + 1.0 * y)[:, None].float()
    once = evaluate_probes(probe, X, y)
    often = evaluate_probes(probe, X.repeat(9, 1), np.tile(y, 9))
    assert often.n_groups == once.n_groups == 40
    torch.testing.assert_close(often.high[2] - often.low[2], once.high[2] - once.low[2])


def test_rows_are_joined_through_shared_labels():
    assert joined("abcab").tolist() == [0, 1, 2, 0, 1]
    assert joined("abca", "xyyz").tolist() == [0, 1, 1, 0]
    assert joined(np.arange(3), [(1, 2), (3,), (1, 2)]).tolist() == [0, 1, 0]
    with pytest.raises(InterpError, match="one group per row"):
        joined("abc", "xy")
    X = torch.randn(2, 5, 3)
    X[:, 3], X[0, 4] = X[:, 1], X[0, 0]
    assert equal_rows(X).tolist() == [0, 1, 2, 1, 3]  # equal in one layer alone: not equal
    assert equal_rows(torch.zeros(4, 2)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("dtype", "noise"), [("bfloat16", 2e-3), ("float16", 2e-4)])
def test_rows_that_differ_by_rounding_are_equal_in_half_precision(dtype, noise):
    rows = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    again = rows + noise * torch.randn(rows.shape, generator=random)
    X = torch.cat([rows, again]).to(getattr(torch, dtype))
    assert equal_rows(X).tolist() == [*range(20)] * 2
    assert equal_rows(X.float()).tolist() == [*range(40)]


def test_no_rows_are_refused():
    for X in (torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)):
        with pytest.raises(InterpError, match="equal rows"):
            equal_rows(X)


def test_split_depends_on_the_seed_alone():
    X, y, _ = planted()
    one, same, other = (train_probes(X, y, shuffles=1, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.weights, same.weights)
    assert torch.equal(one.shuffled, same.shuffled)
    assert not torch.equal(one.test, other.test)


def by_hand(X, y, start, steps, *, lr, decay, clear=True, betas=(0.9, 0.99)):
    """AdamW on the class-balanced cross-entropy, every derivative written out."""
    P, m, v, gradient = start.copy(), 0.0, 0.0, 0.0
    truth = np.stack([~y, y], 1).astype(float)
    c = np.where(y, len(y) / (2 * y.sum()), len(y) / (2 * (~y).sum()))
    for step in range(1, steps + 1):
        logits = X @ P
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        fresh = X.T @ (c[:, None] * (shares - truth)) / len(y)
        gradient = fresh if clear else gradient + fresh
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        P = P * (1 - lr * decay)
        rate = np.sqrt(v / (1 - betas[1] ** step)) + 1e-8
        P = P - lr * m / (1 - betas[0] ** step) / rate
    return P


def test_softmax_steps_are_those_of_a_loop_by_hand():
    X, y, _ = planted(n=80, shift=1.0, share=0.3)
    optimiser = Optimiser(lr=0.02, steps=25, batch_size=None)
    probes = train_probes(X, y, kind="softmax", shuffles=1, regularisation=0.1, optimiser=optimiser)
    train = ~probes.test.numpy()
    assert probes.columns is not None
    assert probes.initial is not None
    for layer in range(4):
        rows = X[layer].double().numpy()[train]
        start, labels = probes.initial[layer].numpy(), y.numpy()[train]
        options = {"lr": 0.02, "decay": 0.1}
        right = by_hand(rows, labels, start, 25, **options)
        np.testing.assert_allclose(probes.columns[layer], right, atol=2e-4)
        piled = by_hand(rows, labels, start, 25, **options, clear=False)
        assert np.abs(piled - right).max() > 0.05


@pytest.mark.long
def test_sum_of_columns_is_conserved_and_antipodality_is_forced():
    X, y, _ = planted(n=200, d=160)  # wide enough to fit permuted labels
    fast = Optimiser(lr=0.02, steps=400, batch_size=64)
    free = train_probes(X, y, kind="softmax", shuffles=4, regularisation=0, optimiser=fast)
    assert free.columns is not None
    assert free.initial is not None
    torch.testing.assert_close(free.columns.sum(-1), free.initial.sum(-1), atol=1e-4, rtol=0)
    assert (free.columns - free.initial).abs().max() > 0.1
    geometry = probe_geometry(free)
    p, q = free.columns.unbind(-1)
    cosine = (p * q).sum(-1) / (p.norm(dim=-1) * q.norm(dim=-1))
    torch.testing.assert_close(geometry.pair, cosine)
    torch.testing.assert_close(geometry.sum_norm, geometry.initial_sum_norm, rtol=1e-4, atol=0)
    assert geometry.decay == 1
    s, half = (p + q) / 2, (q - p) / 2
    a, b, dot = s.pow(2).sum(-1), half.pow(2).sum(-1), (s * half).sum(-1)
    torch.testing.assert_close(cosine, (a - b) / ((a + b) ** 2 - 4 * dot**2).sqrt())
    torch.testing.assert_close(geometry.pair_forced, (a - b) / (a + b))
    assert geometry.pair_initial.abs().max() < 0.5
    # As antipodal for permuted labels as for true ones, and in layers with nothing to read.
    assert (geometry.pair < -0.7).all()
    assert (geometry.pair_shuffled < -0.7).all()
    kept = train_probes(X, y, kind="softmax", shuffles=1, regularisation=0.5, optimiser=fast)
    shape = probe_geometry(kept)
    assert shape.decay == pytest.approx(0.99**400)
    ratio = shape.sum_norm / shape.initial_sum_norm
    np.testing.assert_allclose(ratio, shape.decay, rtol=1e-2)


def test_shuffled_pairs_are_those_of_the_shuffled_columns():
    X, y, _ = planted(n=80)
    probes = train_probes(X, y, kind="softmax", shuffles=2, optimiser=Optimiser(steps=30))
    random_ = np.random.default_rng(0)
    test, group = probes.test.numpy(), np.arange(80)
    runs = [y.numpy(), *(permuted_labels(y.numpy(), group, ~test, random_) for _ in range(2))]
    optimiser = Optimiser(steps=30)
    options = FitOptions(kind="softmax")
    every, _ = _softmax(X[:, ~test], np.stack(runs)[:, ~test], optimiser, options)
    wanted = torch.cosine_similarity(every[1:, ..., 0], every[1:, ..., 1], dim=-1)
    geometry = probe_geometry(probes)
    torch.testing.assert_close(geometry.pair_shuffled, wanted, atol=1e-5, rtol=0)


def test_geometry_of_directions_and_its_nulls():
    X, y, direction = planted(n=600, d=50, layers=5, first=2, shift=5.0)
    probes = train_probes(X, y, shuffles=3)
    geometry = probe_geometry(probes)
    unit = probes.weights / probes.weights.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(geometry.cosines, unit @ unit.T)
    torch.testing.assert_close(geometry.adjacent, torch.diagonal(unit @ unit.T, 1))
    assert (geometry.adjacent[2:] > 0.6).all()
    assert geometry.adjacent[:2].abs().max() < 0.5
    assert geometry.adjacent_shuffled.shape == (3, 4)
    assert geometry.adjacent_shuffled.abs().max() < 0.5
    assert geometry.pair is None
    pairs = torch.randn(2, 20000, 50, generator=torch.Generator().manual_seed(0))
    drawn = torch.cosine_similarity(pairs[0], pairs[1], dim=-1).abs()
    assert geometry.random_mean == pytest.approx(float(drawn.mean()), rel=0.02)
    assert geometry.random_mean == pytest.approx(math.sqrt(2 / (math.pi * 50)), rel=0.02)
    assert geometry.random_limit == pytest.approx(float(drawn.quantile(0.95)), rel=0.03)


def test_geometry_with_heads_and_without_leading_axes():
    X, y, _ = planted(n=120)
    heads = torch.stack([X, X.flip(0)], 1)
    geometry = probe_geometry(train_probes(heads, y, shuffles=2))
    assert geometry.cosines.shape == (8, 8)
    assert geometry.adjacent.shape == (3, 2)
    assert geometry.adjacent_shuffled.shape == (2, 3, 2)
    torch.testing.assert_close(geometry.adjacent[2, 0], geometry.cosines[4, 6])
    single = train_probes(X[3], y, shuffles=2)
    assert single.weights.shape == (12,)
    assert len(single.to_dataframe()) == 1
    assert probe_geometry(single).adjacent.shape == (0,)
    assert probe_geometry(single).cosines.shape == (1, 1)


def test_evaluation_on_fresh_rows():
    X, y, direction = planted()
    probes = train_probes(X, y, shuffles=1)
    rng = torch.Generator().manual_seed(9)
    fresh_y = torch.rand(300, generator=rng) < 0.5
    fresh = torch.randn(4, 300, 12, generator=rng) + 4 * fresh_y[:, None] * direction
    found = evaluate_probes(probes, fresh, fresh_y)
    assert (found.accuracy[2:] > 0.9).all()
    np.testing.assert_allclose(
        found.accuracy, ((probes.project(fresh) > 0) == fresh_y).double().mean(1)
    )
    backwards = evaluate_probes(probes, fresh, ~fresh_y)
    np.testing.assert_allclose(backwards.auc, 1 - found.auc)
    for bad, match in ((fresh[:2], "same layers"), (fresh[..., :5], "same layers")):
        with pytest.raises(InterpError, match=match):
            evaluate_probes(probes, bad, fresh_y)
    with pytest.raises(InterpError, match="300 valid, 0 invalid"):
        evaluate_probes(probes, fresh, torch.ones(300, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_saved_and_loaded(kind, tmp_path):
    X, y, _ = planted(n=100)
    options = {"optimiser": Optimiser(steps=20)} if kind == "softmax" else {}
    options |= {"coordinates": {"layer": (3, 5, 7, 9)}, "source": {"site": "z"}}
    probes = train_probes(X, y, kind=kind, shuffles=2, **options)
    probes.save(tmp_path / "probes")
    loaded = Probes.load(tmp_path / "probes.safetensors")
    for name in ("weights", "bias", "columns", "shuffled", "test"):
        mine, theirs = getattr(probes, name), getattr(loaded, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert loaded.coordinates == {"layer": (3, 5, 7, 9)}
    assert loaded.settings == probes.settings
    assert loaded.source == {"site": "z"}
    assert loaded.to_dataframe().equals(probes.to_dataframe())
    assert list(loaded.to_dataframe()["layer"]) == [3, 5, 7, 9]
    assert repr(loaded) == repr(probes)


def test_refusals():
    X, y, _ = planted(n=60)
    few = torch.arange(60) < 9
    one_group = ["a" if v else f"b{i}" for i, v in enumerate(y.tolist())]
    broken = X.clone()
    broken[0, 0, 0] = torch.nan
    cases = [
        ((X, few), {}, "9 valid in 9 groups, 51 invalid in 51 groups; give at least 10"),
        ((X, y), {"groups": one_group}, "valid in 1 groups"),
        ((X, y), {"groups": [1, 2]}, "2 groups: 60 examples"),
        ((X, y[:50]), {}, "60 examples"),
        ((X, y.long() + 1), {}, "one label per example: True or 1"),
        ((X, torch.ones(60, dtype=torch.bool)), {}, "60 valid, 0 invalid"),
        ((broken, y), {}, "not finite"),
        ((X.long(), y), {}, "check the axes"),
        ((X, y), {"kind": "softmac"}, "did you mean 'softmax'"),
        ((X, y), {"optimiser": Optimiser()}, "optimiser for softmax only"),
        ((X, y), {"shuffles": 0}, "no control"),
        ((X, y), {"regularisation": 0}, "give more than 0"),
        ((X, y), {"kind": "softmax", "regularisation": -1.0}, "give more than 0"),
        ((X, y), {"coordinates": {"layer": (1, 2)}}, "name each axis"),
    ]
    for positional, options, match in cases:
        with pytest.raises(InterpError, match=match):
            train_probes(*positional, **options)


# -- in a model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verifier():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(REAL_CACHE))
        return load_model("toy-verification")


def verdicts(model, n=240, seed=0):
    """Prompts of the toy, where target and result are, whether they agree."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        result = rng.randint(3, 8)
        target = result if i % 2 else result + rng.choice((-1, 1))
        fillers = [rng.sample(("so", "we", "then", "now"), rng.randint(0, 2)) for _ in range(2)]
        middle = ["target", str(target), ";", *fillers[1], "result", str(result), "("]
        tokens = model.tokenize(" ".join(["<bos>", *fillers[0], *middle])).tokens
        rows.append((tokens, target == result))
    return [tokens for tokens, _ in rows], [valid for _, valid in rows]


@pytest.mark.long
def test_toy_verdict_is_read_where_the_circuit_puts_it(verifier):
    """The equality neuron (layer 1) writes it at the result, the mover (layer 2) at the "("."""
    prompts, labels = verdicts(verifier)
    result, bracket = [[len(p) - back for p in prompts] for back in (2, 1)]
    sites = ("resid_post", "mlp_out", "z")
    at_result = probe_model(verifier, prompts, result, labels, sites=sites, shuffles=5)
    at_bracket = probe_model(verifier, prompts, bracket, labels, sites=sites, shuffles=5)
    reading = at_result["resid_post"].heldout
    assert float(reading.auc[0]) < 0.75
    assert (reading.auc[1:] == 1).all()
    assert (reading.accuracy[1:] == 1).all()
    assert float(at_result["mlp_out"].heldout.auc[1]) == 1
    moved = at_bracket["resid_post"].heldout
    assert (moved.auc[:2] < 0.75).all()
    assert float(moved.auc[2]) == 1
    heads = at_bracket["z"]
    assert heads.weights.shape == (3, verifier.n_heads, verifier.d_head)
    assert list(heads.coordinates) == ["layer", "head"]
    assert float(heads.heldout.auc[2, 0]) == 1
    assert heads.source["site"] == "z"
    assert heads.source["model_hash"] == verifier.hash
    assert at_bracket["resid_post"].control("auc")[0].max() < 0.7
    ids = set(verifier.token_id("("))
    probe_model(verifier, prompts, bracket, labels, sites=["z"], shuffles=1, expect=ids)
    with pytest.raises(InterpError, match="at position"):
        probe_model(verifier, prompts, result, labels, expect=ids)


def test_head_outputs_add_up_to_attention(family_models):
    rng = random.Random(0)
    rows = [tuple(rng.randrange(3, VOCABULARY) for _ in range(7)) for _ in range(3)]
    for name in ("gpt2", "neox", "qwen2", "qwen3", "mistral"):
        model = family_models[name]
        seen = run_with_cache(model, rows, sites=["z", "attn_out"], positions="last")
        for layer in range(model.n_layers):
            each = head_outputs(model, seen[layer, "z"], layer)
            assert each.shape == (3, model.n_heads, model.d_model)
            bias = model.decoder.blocks[layer].attn.o.bias
            whole = each.sum(1) + (0 if bias is None else bias)
            torch.testing.assert_close(whole, seen[layer, "attn_out"], atol=1e-4, rtol=1e-4)
    with pytest.raises(InterpError, match="4 heads of width 8"):
        head_outputs(family_models["qwen2"], torch.zeros(3, 2, 8), 0)
    with pytest.raises(InterpError, match="layers 0 to 2"):
        head_outputs(family_models["qwen2"], torch.zeros(3, 4, 8), 3)


def test_probe_model_captures_the_named_token(family_models):
    """Ragged prompts, positions inside: the same as training on a whole run's activations."""
    model, rng = family_models["qwen2"], random.Random(3)
    rows, where, labels = [], [], []
    for i in range(60):
        rows.append(tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(4, 9))))
        where.append(rng.randrange(len(rows[-1])))
        labels.append(i % 3 == 0)
    sites, groups = ("resid_post", "z", "k", "post"), [i // 2 for i in range(60)]
    options = {"groups": groups, "shuffles": 1, "seed": 4}
    found = probe_model(model, rows, where, labels, sites=sites, layers=[0, 2], **options)
    seen = run_with_cache(model, rows, sites=sites, positions=where)
    for site in sites:
        X = torch.stack([seen[layer, site] for layer in (0, 2)])
        direct = train_probes(X.movedim(1, -2), labels, **options)
        torch.testing.assert_close(found[site].weights, direct.weights, atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(found[site].heldout.auc, direct.heldout.auc, atol=0.02, rtol=0)
        assert found[site].coordinates["layer"] == (0, 2)
    assert found["k"].coordinates["kv_head"] == (0, 1)
    assert found["post"].weights.shape == (2, model.d_mlp)


def test_probe_model_refuses(verifier):
    prompts, labels = verdicts(verifier, n=40)
    last = [len(p) - 1 for p in prompts]
    nothing = [False] * 40
    cases = [
        ((prompts, last[:5], labels), {}, "5 for 40 prompts"),
        ((prompts, last, labels[:5]), {}, "one label per example"),
        ((prompts, [*last[:-1], 99], labels), {}, "position 99 of prompt 39"),
        ((prompts, [-99, *last[1:]], labels), {}, "position -99 of prompt 0"),
        ((prompts, last, nothing), {}, "0 valid in 0 groups"),
        ((prompts, last, labels), {"groups": [i % 3 for i in range(40)]}, "in 3 groups"),
        ((prompts, last, labels), {"sites": ["pattern"]}, "choose other sites"),
        ((prompts, last, labels), {"sites": ["zz"]}, "no such name"),
        ((prompts, last, labels), {"layers": [7]}, "layers 0 to 2"),
    ]
    for positional, options, match in cases:
        with pytest.raises(InterpError, match=match):
            probe_model(verifier, *positional, **options)


def test_no_warning_on_ordinary_data():
    X, y, _ = planted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_probes(X, y, shuffles=2)


def planted_layers(leading=(2, 3), n=60, d=5):
    """Activations in which a label is planted more strongly in later layers, and the labels."""
    random = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2 == 0
    X = torch.randn(*leading, n, d, generator=random)
    X[..., 0] += torch.linspace(0.5, 2, leading[0])[:, None, None] * (2 * y.float() - 1)
    return X, y.tolist()


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shared_probes_have_the_same_bits(dtype):
    X, y = planted_layers()
    alone, one, two = (train_probes(X.to(dtype), y, shuffles=2, workers=n) for n in (0, 1, 2))
    for name in ("weights", "bias", "shuffled_weights", "shuffled"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        torch.testing.assert_close(getattr(two, name), getattr(alone, name), rtol=1e-5, atol=1e-6)
    assert float(alone.weights.std()) > 0.1


def test_stopped_probes_go_on_from_those_that_were_fitted():
    X, y = planted_layers()
    counts = []
    with pytest.raises(Cancelled, match="stopped after 1 of 6 parts"):
        train_probes(X, y, shuffles=1, workers=1, cancelled=fitted)
    done = train_probes(X, y, shuffles=1, workers=1, progress=lambda *at: counts.append(at))
    assert counts[0] == (0, 5)
    assert torch.equal(done.weights, train_probes(X, y, shuffles=1, workers=1).weights)
    train_probes(X, y, shuffles=1, workers=1, seed=1, progress=lambda *at: counts.append(at))
    assert counts[-1] == (6, 6)


def fitted():
    """Whether a fit is kept: it stops training after the first one."""
    return any(cache_dir().glob("partial/*/chunk-*"))


def test_softmax_probes_are_not_shared():
    X, y = planted_layers()
    with pytest.raises(InterpError, match="they are trained together, step by step"):
        train_probes(X, y, kind="softmax", workers=2)
    with pytest.raises(InterpError, match="workers: -1"):
        train_probes(X, y, workers=-1)
