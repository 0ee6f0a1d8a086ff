"""Pruning and rounding, against loops over rows."""

import pytest
import torch
from torch import nn

from interp.core.errors import InterpError
from interp.deltas.compression import compress
from interp.models.loading import plain_view

TEXTS = [(3, 4, 5, 6, 7), (5, 6, 7, 9)]


def rows_after(model, delta, name):
    """(outputs, inputs) weights of a map after the change."""
    module = plain_view(model).get_submodule(name)
    weight = module.weight.double()
    changed = weight + (
        delta.difference(f"{name}.weight") if f"{name}.weight" in delta.names else 0
    )
    return (weight, changed) if isinstance(module, nn.Linear) else (weight.T, changed.T)


def inputs_of(model, name):
    """(tokens, inputs) what a map reads, text by text, by a hook of its own."""
    view, found = plain_view(model), []
    hook = view.get_submodule(name).register_forward_hook(
        lambda module, given, out: found.append(given[0].flatten(0, -2))
    )
    for text in TEXTS:
        view(torch.tensor([text]))
    hook.remove()
    return torch.cat(found).double()


MAPS = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}


@pytest.mark.parametrize("family_name", list(MAPS))
@pytest.mark.parametrize("how", ["magnitude", "wanda", "random"])
def test_pruning_zeroes_the_lowest_scores_of_every_row(family_models, family_name, how):
    model, name = family_models[family_name], MAPS[family_name]
    delta = compress(model, how, share=0.25, texts=TEXTS)
    old, new = rows_after(model, delta, name)
    lengths = inputs_of(model, name).pow(2).sum(0).sqrt()
    for before, after in zip(old, new, strict=True):
        gone = (after == 0).nonzero().flatten().tolist()
        assert len(gone) == round(0.25 * len(before))
        assert torch.equal(after[after != 0], before[after != 0])
        scores = before.abs() * (lengths if how == "wanda" else 1)
        lowest = scores.argsort()[: len(gone)].sort().values.tolist()
        assert (gone == lowest) == (how != "random")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [None, 8])
def test_rounding_takes_each_group_to_its_grid(family_models, bits, group):
    model, name = family_models["llama"], MAPS["llama"]
    delta = compress(model, "round", bits=bits, group=group)
    old, new = rows_after(model, delta, name)
    size, top = group or old.shape[1], 2 ** (bits - 1) - 1
    for before, after in zip(old, new, strict=True):
        for start in range(0, len(before), size):
            part = before[start : start + size].tolist()
            step = max(map(abs, part)) / top
            grid = [round(x / step) * step for x in part]
            torch.testing.assert_close(
                after[start : start + size], torch.tensor(grid, dtype=torch.float64), atol=1e-7,
                rtol=1e-6,
            )  # fmt: skip


def test_what_is_changed(family_models):
    model = family_models["llama"]
    delta = compress(model, "magnitude", share=0.5)
    assert all(".layers." in name and name.endswith(".weight") for name in delta.names)
    assert not any("norm" in name for name in delta.names)
    assert len(delta.names) == 7 * model.n_layers
    assert compress(model, "magnitude", share=0.0).names == ()
    plain = model.last_logits(TEXTS)
    with delta.applied(model):
        assert not torch.allclose(model.last_logits(TEXTS), plain)
    fine, coarse = (
        sum(float(d.difference(n).pow(2).sum()) for n in d.names)
        for d in (compress(model, "round", bits=8), compress(model, "round", bits=4))
    )
    assert fine < coarse / 100


def test_random_pruning_has_the_size_and_a_seed(family_models):
    model = family_models["llama"]
    one, same, other = (compress(model, "random", share=0.5, seed=s) for s in (0, 0, 1))
    assert one.hash == same.hash != other.hash


def test_refusals(family_models):
    model = family_models["llama"]
    for options, match in (
        ({"how": "lottery"}, "compression"),
        ({"how": "wanda", "share": 1.5}, "not a share"),
        ({"how": "round", "bits": 1}, "bits"),
        ({"how": "round", "group": 7}, "groups of 7"),
        ({"how": "wanda", "texts": []}, "no texts"),
    ):
        with pytest.raises(InterpError, match=match):
            compress(model, **options)
