"""Sizes of a change of weights, against loops over the weights themselves."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.deltas.sizes import change_sizes, random_change
from interp.models.loading import plain_view
from interp.models.weight_delta import WeightDelta


@pytest.fixture
def change(toy):
    """A change of two tensors of the toy: one of layer 1, and the embedding."""
    names = [name for name, _ in plain_view(toy).named_parameters()]
    inside = next(name for name in names if ".1." in name and name.endswith("weight"))
    outside = next(name for name in names if not any(part.isdigit() for part in name.split(".")))
    held = dict(plain_view(toy).named_parameters())
    generator = torch.Generator().manual_seed(0)
    dense = {x: torch.randn(held[x].shape, generator=generator) for x in (inside, outside)}
    return WeightDelta(name="noise", base=toy.hash, dense=dense), inside, outside


def test_sizes_are_those_of_the_changed_weights(toy, change):
    delta, inside, outside = change
    old = {x: t.detach().double().clone() for x, t in plain_view(toy).named_parameters()}
    found = change_sizes(toy, delta)
    with delta.applied(toy):
        new = {x: t.detach().double().clone() for x, t in plain_view(toy).named_parameters()}
    part = inside.split(".1.")[1].rpartition(".")[0]
    assert found.parts == (part,)
    mine = [x for x in old if f".1.{part}." in x]
    moved, held = (sum(float(f(x).pow(2).sum()) for x in mine) for f in
                   (lambda x: new[x] - old[x], old.__getitem__))  # fmt: skip
    assert found.values[1, 0] == pytest.approx(np.sqrt(moved / held), rel=1e-4)
    assert (np.delete(found.values[:, 0], 1) == 0).all()
    expected = float((new[outside] - old[outside]).norm() / old[outside].norm())
    assert found.elsewhere == {outside: pytest.approx(expected, rel=1e-4)}
    every = [sum(float(x.pow(2).sum()) for x in xs)
             for xs in ([new[x] - old[x] for x in old], old.values())]  # fmt: skip
    assert found.whole == pytest.approx(np.sqrt(every[0] / every[1]), rel=1e-4)
    assert found.to_dataframe()["size"].tolist() == [
        *found.values[:, 0], *found.elsewhere.values()
    ]  # fmt: skip
    assert len(found.plot().data) == 2


def test_a_random_change_is_as_large_in_every_tensor_and_points_elsewhere(change):
    delta, *names = change
    one, other = random_change(delta), random_change(delta, seed=1)
    assert one.names == delta.names
    for name in names:
        mine, its = delta.difference(name), one.difference(name)
        assert float(its.norm()) == pytest.approx(float(mine.norm()), rel=1e-5)
        assert abs(float((its * mine).sum() / mine.norm() ** 2)) < 0.5
        assert not torch.equal(its, other.difference(name))
    assert torch.equal(one.dense[names[0]], random_change(delta).dense[names[0]])


def test_a_change_of_nothing_and_of_another_base(toy):
    nothing = change_sizes(toy, WeightDelta(name="nothing", base=toy.hash))
    assert (nothing.parts, nothing.elsewhere, nothing.whole) == ((), {}, 0)
    assert nothing.values.shape == (toy.n_layers, 0)
    with pytest.raises(InterpError, match="its base is"):
        change_sizes(toy, WeightDelta(name="x", base="other"))
