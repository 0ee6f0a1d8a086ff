"""An estimate against exact effects, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.patching import activation_patching, calibrate
from tests.families import random_task
from tests.results.test_scores import make


@pytest.fixture
def exact(family_models):
    task = random_task()
    return activation_patching(family_models["llama"], task, cache=False, unit="metric")


def test_a_scaled_estimate_has_its_slope_and_misses_nothing(exact) -> None:
    found = calibrate(replace(exact, effects=exact.effects * 0.5), exact, k=3)
    assert found.slope == pytest.approx(0.5)
    assert found.correlation == pytest.approx(1)
    assert found.slope_interval == pytest.approx((0.5, 0.5))
    assert found.missed == ()
    assert (found.n, found.cells) == (exact.n, exact.values.size)


def test_what_the_estimate_misses_is_named(exact) -> None:
    strongest = np.unravel_index(np.abs(exact.values).argmax(), exact.values.shape)
    effects = exact.effects.copy()
    effects[:, *strongest] = 0
    found = calibrate(replace(exact, effects=effects), exact, k=1)
    assert found.missed == (exact.label([int(i) for i in strongest]),)
    x, y = exact.values.ravel(), replace(exact, effects=effects).values.ravel()
    assert found.slope == pytest.approx(np.polyfit(x, y, 1)[0])
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_the_first_prompts_are_compared(exact) -> None:
    first = replace(
        exact, effects=exact.effects[:3] * 2, clean=exact.clean[:3], corrupted=exact.corrupted[:3]
    )
    found = calibrate(first, exact)
    assert found.n == 3
    assert found.slope == pytest.approx(2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clean": 3.0}, "other metrics"),
        ({"unit": "gap"}, "units"),
        ({"effects": 0.0}, "do not vary"),
    ],
)
def test_what_cannot_be_compared_is_refused(exact, changes, words) -> None:
    new = {
        name: value if isinstance(value, str) else getattr(exact, name) * value
        for name, value in changes.items()
    }
    with pytest.raises(InterpError, match=words):
        calibrate(replace(exact, **new), exact)


def test_one_prompt_has_no_interval(exact) -> None:
    one = replace(
        exact, effects=exact.effects[:1] / 2, clean=exact.clean[:1], corrupted=exact.corrupted[:1]
    )
    found = calibrate(one, exact)
    assert found.slope == pytest.approx(0.5)
    assert found.slope_interval == (-np.inf, np.inf)
    assert found.correlation_interval == (-1, 1)


@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_the_intervals_cover_the_values_over_many_prompts(n, shared) -> None:
    fixed = np.random.default_rng(99)
    true, odd = fixed.normal(size=(6, 6)), fixed.normal(size=(6, 6)) * 0.3
    wanted = 0.7 * true + odd
    truth = (
        np.corrcoef(true.ravel(), wanted.ravel())[0, 1],
        np.polyfit(true.ravel(), wanted.ravel(), 1)[0],
    )
    inside = []
    for seed in range(150):
        scale, noise = (np.random.default_rng([seed, i]) for i in range(2))
        effects, other = (
            mean * scale.normal(1, 0.4, (n, 1, 1)) + noise.normal(0, 0.3, (n, 6, 6))
            for mean in (true, wanted)
        )
        found = calibrate(make(0.7 * effects + odd if shared else other), make(effects))
        ends = (found.correlation_interval, found.slope_interval)
        inside.append([low <= t <= high for t, (low, high) in zip(truth, ends, strict=True)])
    assert np.mean(inside, axis=0) == pytest.approx(0.95, abs=0.07)


def test_fewer_exact_prompts_and_other_cells_are_refused(exact) -> None:
    fewer = replace(
        exact, effects=exact.effects[:2], clean=exact.clean[:2], corrupted=exact.corrupted[:2]
    )
    with pytest.raises(InterpError, match="prompts, with other metrics"):
        calibrate(exact, fewer)
    layers = {"axes": ("layer",), "coordinates": {"layer": exact.coordinates["layer"]}}
    with pytest.raises(InterpError, match="different axes"):
        calibrate(replace(exact, effects=exact.effects.sum(2), **layers), exact)
