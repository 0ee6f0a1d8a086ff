"""Sweeps shared by several processes equal those of one."""

from dataclasses import replace

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.core.metrics import metric_named
from interp.core.run_options import RunOptions
from interp.engine.resume import Chunks
from interp.engine.stopping import Cancelled
from interp.patching.activation import activation_patching
from interp.patching.attribution import atp_star, attribution_patching
from interp.patching.joint import joint_patching
from interp.patching.path import path_patching
from interp.runs.parts import PART, by_parts
from interp.tasks.registry import load_task


@pytest.fixture(scope="module")
def task(toy):
    return load_task("toy-induction", toy).first(2 * PART + 1)


SWEEPS = [
    {},
    {
        "site": "resid_pre",
        "by": ("layer", "position"),
        "positions": ["first", "last"],
        "unit": "metric",
        "source": "zero",
        "direction": "noise",
    },
    {"site": "attn_out", "by": ("layer",), "source": "zero", "direction": "noise"},
    {"engine": "hooks", "layers": [1], "positions": "last"},
    {"positions": [-1, -2, -3, -1, -2, -3, -1, -2, -3]},
]


@pytest.mark.long
@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_shared_sweep_equals_one_of_a_single_process(toy, task, sweep):
    alone = activation_patching(toy, task, cache=False, **sweep)
    one, two = (activation_patching(toy, task, cache=False, workers=n, **sweep) for n in (1, 2))
    assert one.effects.tobytes() == two.effects.tobytes()
    assert one.clean.tobytes() == two.clean.tobytes()
    for name in ("effects", "clean", "corrupted"):
        assert np.allclose(getattr(one, name), getattr(alone, name), atol=1e-4)
    assert np.abs(alone.effects).max() > 0.01
    assert (two.axes, two.coordinates, two.unit) == (alone.axes, alone.coordinates, alone.unit)
    assert two.provenance.call == alone.provenance.call


def test_a_mean_over_reference_prompts_is_shared_too(toy, task):
    rest = load_task("toy-induction", toy).without(task)
    sweep = {"source": "mean", "reference": rest, "cache": False}
    alone, two = (activation_patching(toy, task, **sweep, workers=n) for n in (0, 2))
    assert np.allclose(alone.effects, two.effects, atol=1e-4)


PATHS = [
    {"receivers": ["logits"]},
    {"receivers": ["L1.q", "L1.k", "L1.v"], "positions": [-2, -3, -4, -2, -3, -4, -2, -3, -4]},
]


@pytest.mark.parametrize("paths", PATHS)
def test_shared_path_patching_has_the_same_bits(toy, task, paths):
    alone, one, two = (path_patching(toy, task, cache=False, workers=n, **paths) for n in (0, 1, 2))
    assert one.effects.tobytes() == two.effects.tobytes()
    assert np.allclose(alone.effects, one.effects, atol=1e-5)
    assert np.abs(alone.effects).max() > 0.01


def test_a_stopped_shared_sweep_goes_on_from_its_parts(toy, task):
    seen = []
    with pytest.raises(Cancelled, match="stopped after 1 of 3 parts"):
        activation_patching(toy, task, workers=1, cancelled=lambda: True)
    done = activation_patching(toy, task, workers=1, progress=lambda *at: seen.append(at))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert np.allclose(done.effects, activation_patching(toy, task, cache=False).effects, atol=1e-4)


def test_a_part_of_another_computation_is_not_used(toy, task, tmp_path):
    def work(model, part):
        return np.full((len(part[0]), 1), float(len(part[0])))

    counts = []
    for key in "ab":
        counts.append([])
        options = RunOptions(progress=lambda *at: counts[-1].append(at))
        chunks = Chunks(folder=tmp_path, key=key)
        made = by_parts(work, toy, task, workers=1, options=options, chunks=chunks)
        found = np.concatenate(list(made))
        assert found[:, 0].tolist() == [PART] * 2 * PART + [1]
    assert [count[-1] for count in counts] == [(3, 3), (3, 3)]


def test_a_gap_of_nothing_is_refused_with_processes_too(toy, task):
    same = replace(task, pairs=tuple(replace(pair, corrupted=pair.clean) for pair in task.pairs))
    for n in (0, 1):
        with pytest.raises(InterpError, match="fraction of the clean-corrupted gap"):
            activation_patching(toy, same, workers=n, cache=False)
    with pytest.raises(InterpError, match="workers: -1"):
        activation_patching(toy, task, workers=-1)


ESTIMATES = [
    (attribution_patching, {}),
    (attribution_patching, {"site": "resid_pre", "by": ("layer",), "unit": "metric"}),
    (attribution_patching, {"positions": [-1, -2, -3] * 3, "layers": [1], "components": [0, 1]}),
    (atp_star, {"site": "k"}),
]


@pytest.mark.parametrize(("estimate", "sweep"), ESTIMATES)
def test_a_shared_estimate_equals_one_of_a_single_process(toy, task, estimate, sweep):
    alone, one, two = (estimate(toy, task, workers=n, **sweep) for n in (0, 1, 2))
    assert one.effects.tobytes() == two.effects.tobytes()
    for name in ("effects", "clean", "corrupted"):
        left, right = getattr(one, name), getattr(alone, name)
        assert np.allclose(left, right, rtol=0, atol=1e-3 * np.abs(right).max())
    assert np.ptp(alone.effects) > 1e-6  # the toy is saturated: a gradient is small
    assert one.extra["passes"] == two.extra["passes"]
    assert two.extra["passes"]["batches"] == 3 * alone.extra["passes"]["batches"]
    assert two.provenance.call == alone.provenance.call


def test_a_shared_estimate_refuses_what_a_single_process_refuses(toy, task):
    saturated = replace(task, metric=metric_named("kl"))
    for n in (0, 1):
        with pytest.raises(InterpError, match="its gradient there is zero"):
            attribution_patching(toy, saturated, direction="noise", workers=n)
    with pytest.raises(InterpError, match="workers: -1"):
        attribution_patching(toy, task, workers=-1)


@pytest.mark.parametrize("unit", ["gap", "metric"])
def test_sets_and_their_null_are_shared(toy, task, unit):
    options = {"draws": 5, "unit": unit, "direction": "noise"}
    alone, one, two = (joint_patching(toy, task, ["L1H2"], workers=n, **options) for n in (0, 1, 2))
    assert one == two
    assert one.effect.mean == pytest.approx(alone.effect.mean, abs=1e-5)
    assert one.null.mean == pytest.approx(alone.null.mean, abs=1e-5)
    assert abs(one.effect.mean) > 0.1


def test_a_stopped_estimate_goes_on_from_its_parts(toy, task):
    seen = []
    with pytest.raises(Cancelled, match="stopped after 1 of 3 parts"):
        attribution_patching(toy, task, workers=1, cancelled=lambda: True)
    done = attribution_patching(toy, task, workers=1, progress=lambda *at: seen.append(at))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    again = attribution_patching(toy, task, workers=1, progress=lambda *at: seen.append(at))
    assert seen[3:] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert again.effects.tobytes() == done.effects.tobytes()
