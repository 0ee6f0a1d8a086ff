"""Verdicts counted against the planted truth."""

import pytest

from interp.core.errors import InterpError
from interp.overview import verdict_trials
from interp.overview.verdict_trials import calibrate_verdicts


@pytest.fixture(scope="module")
def found():
    return calibrate_verdicts(models=6, prompts=(24,), seed=0)


def of(found, method):
    return [row for row in found.rows if row.method == method]


def test_what_is_exact_is_right_where_a_probe_is_not(found):
    assert found.models == 6
    assert 0 < found.without < 6
    (each,) = of(found, "exact patching, each head")
    (read,) = of(found, "probe of each head")
    assert each.recall.mean > 0.9
    assert each.decoys == 0
    assert each.precision.low > read.precision.high
    assert read.decoys > 0
    (three,) = of(found, "exact patching, 3 strongest heads")
    assert three.verdict.startswith("causal, on prompts that did not choose them")
    assert three.with_one.mean == 1
    assert three.precision.mean < 1  # three are named, whatever the number of carriers
    assert len(found.to_dataframe()) == len(found.rows)
    assert "6 models" in repr(found)


@pytest.mark.long
def test_the_same_seed_gives_the_same_counts():
    one, again, other = (calibrate_verdicts(models=2, prompts=(12,), seed=x) for x in (0, 0, 1))
    assert one == again != other


def test_claims_are_counted_against_carriers_and_decoys(monkeypatch):
    def asked(toy, sizes):
        """Names the carriers, the decoys, or an arbitrary head of a model without a carrier."""
        decoys = {head for head, role in toy.roles.items() if role == "decoy"}
        yield ("all true", 12), dict.fromkeys(toy.circuit, "sure")
        yield ("all decoys", 12), dict.fromkeys(decoys, "sure")
        yield ("nothing", 12), {}

    monkeypatch.setattr(verdict_trials, "_asked", asked)
    found = calibrate_verdicts(models=20, prompts=(12,), seed=3)
    true, wrong, silent = found.rows
    assert (true.precision.mean, true.recall.mean, true.decoys) == (1, 1, 0)
    assert (true.false_alarms.mean, true.with_one.mean) == (0, 1)
    assert (wrong.precision.mean, wrong.recall.mean, wrong.claims) == (0, 0, wrong.decoys)
    assert (wrong.false_alarms.mean, wrong.with_one.mean) == (1, 0)
    assert (silent.claims, silent.verdict, silent.false_alarms.mean) == (0, "none", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"models": 0}, "models"), ({"prompts": (4,)}, "ten pairs"), ({"prompts": ()}, "ten pairs")],
)
def test_what_cannot_be_judged_is_refused(arguments, said):
    with pytest.raises(InterpError, match=said):
        calibrate_verdicts(**{"models": 2, "prompts": (12,), **arguments})
