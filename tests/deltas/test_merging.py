"""Merging by rule, against loops over numbers."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.deltas.merging import merge
from interp.models.weight_delta import LowRank, WeightDelta


def drawn(seed: int, sparse: float = 0.0) -> WeightDelta:
    rng = np.random.default_rng(seed)
    dense = {}
    for name, shape in (("a", (5, 7)), ("b", (6,))):
        values = rng.normal(size=shape) * (rng.random(shape) >= sparse)
        dense[name] = torch.from_numpy(values).float()
    return WeightDelta(name=f"d{seed}", base="base", dense=dense)


def by_loops(deltas, rule, threshold=0.5, density=0.4):
    """Each number of tensor a, in plain Python."""
    tensors = [delta.difference("a").numpy() for delta in deltas]
    count, found = len(tensors), np.zeros((5, 7))
    size = found.size
    kept = [sorted(np.abs(t).ravel())[size - round(density * size)] for t in tensors]
    unique, shared = np.zeros(count), np.zeros(count)
    for i in range(5):
        for j in range(7):
            on = [t for t in range(count) if abs(tensors[t][i, j]) > threshold]
            for t in on:
                (unique if len(on) == 1 else shared)[t] += 1
    for i in range(5):
        for j in range(7):
            d = [t[i, j] for t in tensors]
            on = [t for t in range(count) if abs(d[t]) > threshold]
            if rule == "sum":
                found[i, j] = sum(d)
            elif rule == "mean":
                found[i, j] = sum(d) / count
            elif rule == "ties":
                left = [x if abs(x) >= kept[t] else 0 for t, x in enumerate(d)]
                same = [x for x in left if x * sum(left) > 0]
                found[i, j] = sum(same) / max(1, len(same))
            elif on:
                times = [1.0] * count
                if rule == "ram+" and len(on) == 1:
                    t = on[0]
                    times[t] = 1 + 0.1 * min(shared[t] / unique[t], 0.2)
                found[i, j] = sum(d[t] * times[t] for t in on) / len(on)
    return found


@pytest.mark.parametrize("rule", ["sum", "mean", "ties", "ram", "ram+"])
@pytest.mark.parametrize("count", [2, 3])
def test_rules_are_those_of_loops(rule, count):
    deltas = [drawn(seed, 0.4) for seed in range(count)]
    found = merge(deltas, rule, threshold=0.5, density=0.4).delta
    np.testing.assert_allclose(found.dense["a"], by_loops(deltas, rule), rtol=1e-5, atol=1e-6)
    twice = merge(deltas, rule, threshold=0.5, density=0.4, scale=2.0).delta
    torch.testing.assert_close(twice.dense["a"], 2 * found.dense["a"])


def test_dare_drops_and_keeps_the_mean():
    big = WeightDelta(name="x", base="base", dense={"a": torch.ones(400, 400)})
    found = merge([big, big], "dare", drop=0.9).delta.dense["a"]
    values, counts = np.unique(found.numpy().round(3), return_counts=True)
    assert values.tolist() == [0, 10, 20]
    np.testing.assert_allclose(counts / found.numel(), [0.81, 0.18, 0.01], atol=0.005)
    assert abs(float(found.mean()) - 2) < 0.05
    again = merge([big, big], "dare", drop=0.9).delta.dense["a"]
    assert torch.equal(found, again)
    assert not torch.equal(found, merge([big, big], "dare", drop=0.9, seed=1).delta.dense["a"])


def test_overlap_is_counted():
    one = WeightDelta(name="one", base="b", dense={"a": torch.tensor([1.0, 1.0, 0.0, 0.0])})
    two = WeightDelta(name="two", base="b", dense={"a": torch.tensor([0.0, 1.0, 1.0, 1e-6])})
    found = merge([one, two], "ram")
    shares = found.shares()
    assert shares["one"] == {"active": 0.5, "shared": 0.5, "unique": 0.5}
    assert shares["two"] == {"active": 0.5, "shared": 0.5, "unique": 0.5}
    assert found.delta.dense["a"].tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(found.cosines, [[1, 0.5], [0.5, 1]], atol=1e-6)
    assert list(found.to_dataframe()["delta"]) == ["one", "two"]
    assert "unique 0.500" in repr(found)


def test_a_tensor_that_one_delta_alone_changes():
    one = WeightDelta(name="one", base="b", dense={"a": torch.ones(2, 2)})
    low = LowRank(left=torch.ones(3, 1), right=torch.ones(1, 2), scale=3.0)
    two = WeightDelta(name="two", base="b", low_rank={"c": (low,)})
    found = merge([one, two], "ram").delta
    assert found.dense["a"].tolist() == [[1, 1], [1, 1]]
    assert found.dense["c"].tolist() == [[3, 3]] * 3
    assert merge([one, two], "mean").delta.dense["a"].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_where_all_are_active_ram_is_the_mean():
    deltas = [drawn(1), drawn(2), drawn(3)]
    left, right = (merge(deltas, rule, threshold=0).delta.dense for rule in ("ram", "mean"))
    torch.testing.assert_close(left["a"], right["a"])


def test_refusals():
    one = drawn(0)
    for options, match in (
        ({"rule": "median"}, "merging rule"),
        ({"density": 1.5}, "not a share"),
        ({"drop": 1.0}, "not a share"),
    ):
        with pytest.raises(InterpError, match=match):
            merge([one, one], **options)
    with pytest.raises(InterpError, match="too few"):
        merge([one])
    with pytest.raises(InterpError, match="its base is"):
        merge([one, WeightDelta(name="x", base="other")])
    with pytest.raises(InterpError, match="shapes"):
        merge([one, WeightDelta(name="x", base="base", dense={"a": torch.ones(2)})])
