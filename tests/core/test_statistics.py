"""The area under the ROC curve, bootstraps, and shares corrected for the rows of a table."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm
from sklearn.metrics import roc_auc_score

from interp.core.errors import InterpError
from interp.core.nulls import holm, max_t_shares
from interp.core.statistics import auc_estimate, bootstrap_estimate


def test_auc_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    labels = rng.random(60) < 0.4
    scores = rng.integers(0, 5, 60) + labels
    found = auc_estimate(scores, labels)
    assert found.mean == pytest.approx(roc_auc_score(labels, scores))
    assert found.low < found.mean < found.high
    flipped = auc_estimate(-scores, labels)
    assert (flipped.low, flipped.high) == pytest.approx((1 - found.high, 1 - found.low))


@pytest.mark.parametrize("true", [0.5, 0.7, 0.95])
def test_the_interval_of_an_auc_covers_the_truth(true):
    rng, n, draws = np.random.default_rng(0), 30, 400
    labels = np.arange(2 * n) < n
    apart = np.sqrt(2) * norm.ppf(true) * labels
    found = [auc_estimate(rng.standard_normal(2 * n) + apart, labels) for _ in range(draws)]
    covered = np.mean([one.low <= true <= one.high for one in found])
    assert 0.92 <= covered <= 0.99


def test_a_perfect_auc_has_an_interval():
    labels = np.arange(10) >= 5
    for scores, bound in ((np.arange(10), 1.0), (-np.arange(10), 0.0)):
        found = auc_estimate(scores, labels)
        assert found.mean == bound
        assert found.high - found.low > 0.2
    with pytest.raises(InterpError, match="5 positives and 0 negatives"):
        auc_estimate(np.arange(5), np.ones(5))


def test_a_row_with_fewer_draws_keeps_its_own_share():
    rng = np.random.default_rng(0)
    strong, few, weak = max_t_shares(
        [9.0, 5.0, 0.5], [rng.random(40), rng.random(10), rng.random(40)]
    )
    assert strong == pytest.approx(1 / 41)
    assert few == pytest.approx(1 / 11)  # the least that its own draws allow
    assert weak > 0.5
    with pytest.raises(InterpError, match="draws"):
        max_t_shares([1.0, 2.0], [[0.1], []])


def test_holm_s_correction_by_hand():
    # 4 x 0.01, 3 x 0.02, 2 x 0.03 and 1 x 0.9, in the given order.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_bootstrap_is_that_of_scipy():
    values = np.random.default_rng(2).exponential(size=25)
    found = bootstrap_estimate(values, draws=4000)
    drawn = bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=0.03)
    flat = bootstrap_estimate(np.full(5, 0.5))
    assert (flat.low, flat.mean, flat.high, flat.n) == (0.5, 0.5, 0.5, 5)
    with pytest.raises(InterpError, match="no values"):
        bootstrap_estimate([])
