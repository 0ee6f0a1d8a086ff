"""A change of weights tried on a task: every part is what its function gives alone."""

import pytest

from interp.core.errors import InterpError
from interp.deltas.after_change import survival
from interp.deltas.compression import compress
from interp.deltas.merging import merge
from interp.deltas.sizes import change_sizes, random_change
from interp.deltas.weight_trial import WeightTrial, try_weights
from interp.models.weight_delta import WeightDelta
from interp.tasks.registry import load_task


@pytest.fixture(scope="module")
def task(toy):
    return load_task("toy-induction", toy).first(8)


def test_every_part_is_what_its_function_gives(toy, task, tmp_path):
    delta, texts = compress(toy, "random", share=0.3), [pair.clean for pair in task.pairs][:3]
    seen = []
    found = try_weights(
        toy, delta, task, heads=["L1H2"], texts=texts, draws=3, seed=4,
        progress=lambda *given: seen.append(given),
    )  # fmt: skip
    alone = survival(toy, delta, task, heads=["L1H2"], texts=texts, draws=3, seed=4)
    assert found.survival == alone
    assert found.random == survival(toy, random_change(delta, seed=4), task, texts=texts)
    sizes = change_sizes(toy, delta)
    assert found.sizes.values.tolist() == sizes.values.tolist()
    assert found.shares == {}
    assert seen[-1] == (64, 64)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    kept = WeightTrial.load(found.save(tmp_path / "trial"))
    assert (kept.survival, kept.random) == (found.survival, found.random)
    assert kept.sizes.values.tolist() == sizes.values.tolist()
    assert kept.provenance == found.provenance
    assert "heads=['L1H2'], draws=3, seed=4" in kept.provenance.call


def test_a_merge_tells_its_overlap_too(toy, task):
    both = merge([compress(toy, "random", share=0.1, seed=seed) for seed in (0, 1)], "sum")
    found = try_weights(toy, both, task, draws=2)
    assert found.shares == both.shares()
    assert found.name == both.delta.name
    assert found.survival == survival(toy, both.delta, task, draws=2)


def test_another_base_is_refused(toy, task):
    with pytest.raises(InterpError, match="its base is"):
        try_weights(toy, WeightDelta(name="x", base="other"), task)
