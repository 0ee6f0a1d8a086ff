"""Singular directions: a decomposition, one change in two forms, and effects with their control."""

import numpy as np
import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.deltas.singular import scale_singular, singular_directions, singular_effects
from interp.heads.matrices import head_matrices
from interp.tasks.registry import load_task
from tests.families import random_task

PROMPTS = [(3, 4, 5, 6, 7), (5, 6, 7)]
DENSE = ["llama", "gpt2", "neox", "qwen3", "mistral"]


@pytest.mark.parametrize("name", DENSE)
def test_the_parts_add_up_to_the_map(family_models, name):
    model = family_models[name]
    found = singular_directions(model, "L1H2")
    made = head_matrices(model, 1)
    whole = made.v[2].double() @ made.o[2].double()
    assert len(found.values) == model.d_head
    torch.testing.assert_close(found.written @ found.written.T, torch.eye(model.d_head).double())
    # |M w_i| = s_i, and nothing is outside their span.
    lengths = (whole @ found.written.T).norm(dim=0)
    torch.testing.assert_close(lengths, torch.from_numpy(found.values), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(whole @ found.written.T @ found.written, whole, atol=1e-7, rtol=1e-5)
    mlp = singular_directions(model, "L1.mlp_out")
    down = model.decoder.blocks[1].mlp.down.weight.double()
    torch.testing.assert_close((down @ mlp.written.T).norm(dim=0), torch.from_numpy(mlp.values))
    assert mlp.shares.sum() == pytest.approx(1)
    assert list(found.to_dataframe().columns) == ["direction", "singular value", "share", "writes"]


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("part", ["L1H2", "L1.mlp_out"])
def test_the_change_and_the_weights_give_the_same_runs(family_models, name, part):
    model = family_models[name]
    factors = {0: 0.0, 3: 2.5}
    plain = model.last_logits(PROMPTS)
    change, delta = scale_singular(model, part, factors)
    with interp.intervene(model, change):
        changed = model.last_logits(PROMPTS)
    if name == "neox":  # queries, keys and values are joint there, the output is not
        assert "dense" in delta.names[0]
    with delta.applied(model):
        weights = model.last_logits(PROMPTS)
        scaled = singular_directions(model, part)
    torch.testing.assert_close(changed, weights, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(plain, weights, atol=1e-4)
    before = singular_directions(model, part).values
    expected = sorted([0.0, *before[1:3], 2.5 * before[3], *before[4:]], reverse=True)
    np.testing.assert_allclose(scaled.values, expected, atol=1e-5)


def test_all_removed_is_the_part_at_zero(family_models):
    model = family_models["llama"]
    size = len(singular_directions(model, "L1H2").values)
    change, _ = scale_singular(model, "L1H2", dict.fromkeys(range(size), 0.0))
    with interp.intervene(model, change):
        ours = model.last_logits(PROMPTS)
    with interp.intervene(model, interp.runs.zero("L1H2")):
        torch.testing.assert_close(ours, model.last_logits(PROMPTS), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", ["L1H2", "L0.mlp_out"])
def test_effects_are_those_of_hooked_runs(family_models, part):
    model, task = family_models["llama"], random_task()
    found = singular_effects(model, task, part, n=3, draws=5)
    encoded = task.encode(model)

    def metric():
        return task.metric(Logits(model.last_logits(encoded.clean)), encoded.targets).double()

    plain = metric()
    for i, effect in enumerate(found.effects):
        change, _ = scale_singular(model, part, {i: 0.0})
        with interp.intervene(model, change):
            assert effect.mean == pytest.approx(float((plain - metric()).mean()), abs=2e-5)
    assert len(found.nulls) == 3
    assert (
        all(null.draws == 5 for null in found.nulls) if hasattr(found.nulls[0], "draws") else True
    )
    assert list(found.to_dataframe()["direction"]) == [0, 1, 2]


def test_the_planted_head_carries_the_behaviour_and_another_does_not(toy):
    """Removing all directions of the induction head ends the behaviour; of another head, not."""
    task = load_task("toy-induction", toy).first(12)
    found = singular_effects(toy, task, "L1H2", n=8, draws=10)
    assert found.whole.mean > 0.5 * task.check(toy).clean.mean
    other = singular_effects(toy, task, "L1H0", n=1, draws=10)
    assert abs(other.whole.mean) < 0.2 * found.whole.mean


def test_refusals(family_models):
    model = family_models["llama"]
    for call, match in (
        (lambda: singular_directions(model, "L1N3"), "not a head"),
        (lambda: singular_directions(model, "L9H0"), "layer"),
        (lambda: singular_directions(family_models["gemma2"], "L1H0"), "a norm"),
        (lambda: singular_directions(family_models["mixtral"], "L1.mlp_out"), "experts"),
        (lambda: scale_singular(model, "L1H0", {99: 0.0}), "singular direction"),
        (lambda: scale_singular(model, "L1H0", {0: float("inf")}), "not finite"),
        (lambda: scale_singular(model, "L1H0", {}), "none"),
        (lambda: singular_effects(model, random_task(), "L1H0", n=99), "number of directions"),
    ):
        with pytest.raises(InterpError, match=match):
            call()
