"""The difference of two sweeps, against a bootstrap and a simulation."""

from dataclasses import replace

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.results.comparison import compare_scores
from tests.results.test_scores import FROM, make


def pair(rng, *, n=40, shift=0.5):
    """Two sweeps whose effects share what differs between prompts."""
    shared, gaps = rng.normal(size=(n, 2, 3)), 2 + rng.normal(size=n) / 4
    one = make(shared + 1 + shift + rng.normal(size=(n, 2, 3)) / 5, clean=gaps)
    other = make(shared + 1 + rng.normal(size=(n, 2, 3)) / 5, clean=gaps)
    return one, other


def test_the_paired_error_equals_that_of_resampled_prompts() -> None:
    rng = np.random.default_rng(0)
    one, other = pair(rng)
    found = compare_scores(one, other)
    assert found.unpaired == ""
    assert found.values == pytest.approx(one.values - other.values)

    def drawn() -> np.ndarray:
        at = rng.integers(one.n, size=one.n)
        shares = [s.effects[at].mean(0) / s.clean[at].mean() for s in (one, other)]
        return shares[0] - shares[1]

    spread = np.std([drawn() for _ in range(2000)], axis=0)
    assert found.stderr == pytest.approx(spread, rel=0.12)
    apart = np.sqrt(one.stderr**2 + other.stderr**2)
    assert (found.stderr < apart / 2).all()


def test_other_prompts_are_not_paired_and_it_is_said() -> None:
    one, other = pair(np.random.default_rng(1))
    elsewhere = replace(other, provenance=replace(FROM, task_hash="other"))
    found = compare_scores(one, elsewhere)
    assert "of different tasks" in found.unpaired
    by_other = replace(other, metric="log_odds")
    assert compare_scores(one, by_other).unpaired.endswith("the other log_odds")
    assert found.stderr == pytest.approx(np.sqrt(one.stderr**2 + other.stderr**2))
    fewer = make(other.effects[:20], clean=other.clean[:20])
    assert compare_scores(one, fewer).unpaired == "40 and 20 prompts"


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_covers_the_difference(paired) -> None:
    inside = []
    for seed in range(200):
        one, other = pair(np.random.default_rng(seed), n=24)
        if not paired:
            _, other = pair(np.random.default_rng(1000 + seed), n=24)
            other = replace(other, provenance=replace(FROM, task_hash="other"))
        found = compare_scores(one, other)
        inside.append((found.low < 0.25) & (found.high > 0.25))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_other_components_or_units_are_refused() -> None:
    one, other = pair(np.random.default_rng(2))
    for strange in (
        make(np.ones((40, 2, 4))),
        replace(other, site="q"),
        replace(other, unit="metric"),
    ):
        with pytest.raises(InterpError, match="side by side"):
            compare_scores(one, strange)


def test_the_table_begins_with_the_largest_difference() -> None:
    one, other = pair(np.random.default_rng(3))
    frame = compare_scores(one, other).to_dataframe()
    sizes = frame["difference"].abs()
    assert sizes.is_monotonic_decreasing
    first = frame.iloc[0]
    assert first["difference"] == pytest.approx(
        one.values[one.index(first["component"])] - other.values[one.index(first["component"])]
    )
