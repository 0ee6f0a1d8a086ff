"""Mean Jacobians against autograd on the whole graph, position by position."""

import pytest
import torch
from torch.autograd.functional import jacobian

from interp.engine.forward import Runner
from interp.engine.jacobians import mean_jacobians
from interp.engine.layout import Layout

TOKENS = (5, 6, 7, 8, 9, 10, 11, 12)


def slow(model, layer, skip):
    """The whole Jacobian of the last state, all positions with all, then its sums and means."""
    runner, layout = Runner(model.decoder), Layout.of_prompts([TOKENS])
    with torch.no_grad():
        x = runner.embed([TOKENS], layout)
        for place in range(layer + 1):
            x = runner.block(place, x, layout)

    def rest(state):
        for place in range(layer + 1, model.n_layers):
            state = runner.block(place, state, layout)
        return state

    whole = jacobian(rest, x)  # (target, out, source, in)
    valid = range(skip, len(TOKENS) - 1)
    return sum(whole[t, :, s] for s in valid for t in valid if t >= s) / len(valid)


@pytest.mark.parametrize("skip", [0, 2, 5])
def test_equals_the_whole_jacobian(family, skip):
    """Windows, post-norms and parallel blocks; an unequal last batch; prefixes short and long."""
    found = mean_jacobians(Runner(family.decoder), TOKENS, [0, 1], skip=skip, rows=5)
    for place, layer in enumerate((0, 1)):
        torch.testing.assert_close(found[place], slow(family, layer, skip), atol=2e-5, rtol=1e-4)


def test_the_last_layer_is_the_identity(family_models):
    model = family_models["llama"]
    found = mean_jacobians(Runner(model.decoder), TOKENS, [2, 1], skip=1)
    torch.testing.assert_close(found[0], torch.eye(model.d_model))
    assert (found[1] - torch.eye(model.d_model)).abs().max() > 0.01


def test_batches_change_nothing(family_models):
    runner = Runner(family_models["gemma2"].decoder)
    one, many = (mean_jacobians(runner, TOKENS, [0], skip=3, rows=rows) for rows in (1, 32))
    torch.testing.assert_close(one, many, atol=1e-6, rtol=1e-5)
