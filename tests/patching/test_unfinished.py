"""The kept runs of an unfinished sweep, against the finished one."""

from dataclasses import replace

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.engine import sweep
from interp.patching import activation_patching, attribution_patching, unfinished_sweep
from tests.families import random_task


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"direction": "noise", "by": ("layer", "position"), "positions": ("first", "last")},
        {"positions": ("last",)},
        {"by": ("layer", "position"), "positions": "all"},
    ],
)
def test_kept_runs_replace_the_estimate_one_by_one(family_models, monkeypatch, arguments):
    arguments |= {"unit": "metric"}  # random models need not tell prompts apart
    monkeypatch.setattr(sweep, "CPU_TILE", 8)
    model, task = family_models["llama"], random_task((9, 9, 9, 9))
    estimate = attribution_patching(model, task.first(2), **arguments)
    so_far = unfinished_sweep(model, task, **arguments)
    mixed, counts = so_far.into(estimate)
    assert mixed is estimate
    assert not counts.any()
    exact = activation_patching(model, task, cache=False, **arguments)
    shares = []

    def look(done: int, total: int) -> None:
        mixed, counts = so_far.into(estimate)
        measured = np.isclose(mixed.effects, exact.effects, atol=2e-6)
        guessed = np.isclose(mixed.effects, estimate.effects.mean(0))
        assert (measured | guessed).all()
        assert (measured.sum(0) >= counts).all()
        assert ((~guessed).sum(0) <= counts).all()
        np.testing.assert_allclose(mixed.clean, exact.clean, atol=1e-5)
        np.testing.assert_allclose(mixed.corrupted, exact.corrupted, atol=1e-5)
        assert mixed.extra.get("tokens") == exact.extra.get("tokens")
        shares.append(counts.mean() / len(task))

    activation_patching(model, task, progress=look, **arguments)
    assert len(shares) >= 3
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(set(shares)) >= 3


def test_a_model_without_the_fast_engine_keeps_nothing_to_read(family_models) -> None:
    model = replace(family_models["llama"], decoder=None, engine_reason="none")
    with pytest.raises(InterpError, match="unfinished"):
        unfinished_sweep(model, random_task())
