"""The benchmark of lenses: equal values are timed, unequal ones are refused."""

import pytest

from benchmarks import lenses
from interp.core.errors import InterpError
from tests.words import word_model


def test_equal_values_are_timed_and_others_refused(monkeypatch):
    model, said = word_model(), []
    monkeypatch.setattr(lenses, "load_model", lambda name: model)
    found = lenses.bench_lens("words", layer=0, tokens=24, log=said.append)
    assert (found["tokens"], found["layers"]) == (24, 2)
    assert found["largest_difference"] < 1e-5
    assert "times ours" in said[1]
    plain = lenses.mean_jacobians
    monkeypatch.setattr(lenses, "mean_jacobians", lambda *a, **o: 1.01 * plain(*a, **o))
    with pytest.raises(InterpError, match="differ by"):
        lenses.bench_lens("words", layer=0, tokens=24, log=said.append)
