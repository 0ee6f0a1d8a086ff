"""Fitted scales of singular values: their gradients by hand, a planted scale, and no answer."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.deltas.pair_losses import encoded_pairs, pair_losses
from interp.deltas.singular import scale_singular, singular_directions
from interp.deltas.singular_fit import fit_singular
from interp.models.loading import plain_view, unwrapped, wrap


def pairs(step):
    """A b ... a, and b: what the toy's induction head continues, once for every letter."""
    letters = "abcdefghi"
    rows = [(letters[i], letters[(i + step) % 9], letters[i - 3]) for i in range(9)]
    return [(f"{a} {b} {c} {a}", f" {b}") for a, b, c in rows]


TRAIN, HELD = pairs(1), pairs(2)


def loss_of(model, rows):
    with torch.no_grad():
        return pair_losses(plain_view(model), encoded_pairs(model, rows, "read"), model.device)


def test_losses_are_those_of_one_text_at_a_time(toy):
    rows = [*TRAIN[:2], ("a b", " c d e"), ("a b c d e f", " g")]
    for found, (text, more) in zip(loss_of(toy, rows), rows, strict=True):
        before, after = toy.tokenize(text).tokens, toy.token_id(more)
        with torch.no_grad():
            logits = plain_view(toy)(torch.tensor([[*before, *after]])).logits[0].log_softmax(-1)
        each = [-logits[len(before) + i - 1, token] for i, token in enumerate(after)]
        assert float(found) == pytest.approx(float(torch.stack(each).mean()), abs=1e-5)


@pytest.mark.parametrize("part", ["L1H2", "L0.mlp_out"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_first_step_goes_against_the_gradient(family_models, name, part):
    """Adam's first step moves every scale by the rate; the sign is that of a finite difference."""
    model = family_models[name]
    train = [((3, 4, 5), (7,)), ((5, 6), (8,)), ((9, 8, 7), (11,))]
    found = fit_singular(
        model, [part], train, [((4, 4), (7,)), ((6, 7), (8,))], n=4, steps=1, rate=1e-3, batch=3
    )
    steps = found.scales[part] - 1
    np.testing.assert_allclose(np.abs(steps), 1e-3, rtol=0.05)
    for i, step in enumerate(steps):
        apart = []
        for factor in (0.9, 1.1):
            with scale_singular(model, part, {i: factor})[1].applied(model):
                apart.append(float(loss_of(model, train).double().mean()))
        assert np.sign(step) == -np.sign(apart[1] - apart[0])
    _, by_hand = scale_singular(model, part, dict(enumerate(found.scales[part])))
    for key in by_hand.names:
        torch.testing.assert_close(
            found.delta.difference(key), by_hand.difference(key), atol=1e-7, rtol=1e-3
        )
    assert found.course[0] == pytest.approx(float(loss_of(model, train).mean()), abs=1e-5)
    assert len(found.to_dataframe()) == 4


def damaged(toy, factor):
    """The toy with the singular values of its induction head scaled."""
    size = len(singular_directions(toy, "L1H2").values)
    _, delta = scale_singular(toy, "L1H2", dict.fromkeys(range(size), factor))
    with delta.applied(toy):
        copy = unwrapped(toy)
    return wrap(copy, toy.tokenizer, name="damaged", check=False)


@pytest.mark.long
def test_a_planted_damage_is_repaired_and_wrong_answers_repair_nothing(toy):
    model = damaged(toy, 0.1)
    before = model.hash
    found = fit_singular(model, ["L1H2"], TRAIN, HELD, steps=60, rate=0.1)
    assert model.hash == before
    assert found.change.high < 0
    assert found.beyond_shuffled.high < 0
    assert found.scales["L1H2"][:5].mean() > 1.5
    with found.delta.applied(model):
        assert float(loss_of(model, HELD).mean()) == pytest.approx(
            found.before.mean + found.change.mean, abs=1e-4
        )


def test_what_cannot_be_learnt_is_no_better_than_the_shuffle(toy):
    """A head that does nothing for the task, scaled: the fit has nothing to gain."""
    found = fit_singular(toy, ["L1H0"], TRAIN, HELD, steps=10, rate=0.1)
    assert abs(found.change.mean) < 1e-3
    assert abs(found.beyond_shuffled.mean) < 1e-3
    assert abs(found.beyond_random.mean) < 1e-3


def test_two_heads_of_a_layer_share_a_tensor(toy):
    found = fit_singular(toy, ["L1H2", "L1H1", "L0.mlp_out"], TRAIN, HELD, n=3, steps=2)
    assert sum(len(x) for x in found.delta.low_rank.values()) == 3
    assert len(found.delta.names) == 2
    seen = []
    fit_singular(toy, ["L1H2"], TRAIN, HELD, n=3, steps=2, progress=lambda *at: seen.append(at))
    assert seen[0] == (1, 6)
    assert seen[-1] == (6, 6)


def test_refusals(toy):
    for parts, train, held, options, match in (
        ([], TRAIN, HELD, {}, "no parts"),
        (["L1H2", "L1H2"], TRAIN, HELD, {}, "twice"),
        (["L0N1"], TRAIN, HELD, {}, "not a head"),
        (["L1H2"], [], HELD, {}, "none"),
        (["L1H2"], TRAIN, [], {}, "none"),
        (["L1H2"], TRAIN, TRAIN[:1], {}, "give others"),
        (["L1H2"], [("a b", " c"), ("c d", " c")], HELD, {}, "all equal"),
        (["L1H2"], TRAIN, HELD, {"steps": 0}, "numbers, steps"),
        (["L1H2"], TRAIN, HELD, {"rate": 0.0}, "learning rate"),
    ):
        with pytest.raises(InterpError, match=match):
            fit_singular(toy, parts, train, held, **options)
