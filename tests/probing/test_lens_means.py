"""A centred lens is right on average; where a state moves, it moves as before."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.probing.lens_maps import identity_lens
from interp.probing.lens_means import centre_lens
from interp.probing.lens_tests import lens_prediction
from interp.runs.capture import run_with_cache
from tests.words import WORDS, jacobian_lens, word_model

RANDOM = np.random.default_rng(0)
TEXTS = [" ".join(RANDOM.choice(WORDS, 8 + i % 4)) for i in range(12)]


@pytest.fixture(scope="module")
def words():
    return word_model()


@pytest.fixture(scope="module")
def maps(words):
    halves = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    return jacobian_lens(words, halves)


def test_the_mean_state_is_taken_to_the_mean_of_the_last_layer(words, maps):
    """One text at a time; for the lens and each half."""
    states = {0: [], 1: [], 2: []}
    for text in TEXTS:
        seen = run_with_cache(words, [text], sites="resid_post")
        for layer, some in states.items():
            some.append(seen[layer, "resid_post"][0, 2:])
    means = {layer: torch.cat(some).mean(0) for layer, some in states.items()}
    found = centre_lens(words, maps, TEXTS, skip=2)
    for one in (found, found.half(0), found.half(1)):
        for layer in (0, 1):
            mapped = one.apply(layer, means[layer])
            torch.testing.assert_close(mapped, means[2], atol=1e-5, rtol=1e-4)
    assert found.note == "centred"
    assert torch.equal(found.matrices, maps.matrices)


def test_what_is_predicted_of_later_writes_is_the_same(words, maps):
    """Only the reading changes: later writes are measured without their mean."""
    found = lens_prediction(words, TEXTS, maps, others={"c": centre_lens(words, maps, TEXTS)})
    for layer in (0, 1):
        plain, centred = (found.estimate("explained", layer, x) for x in ("jacobian", "c"))
        assert centred.mean == pytest.approx(plain.mean, abs=1e-4)
        assert found.estimate("kl", layer, "c").mean != found.estimate("kl", layer).mean


def test_nothing_is_added_where_nothing_is_written():
    """The partner: without later writes the identity is right already."""
    model = word_model()
    for block in model.hf_model.model.layers[1:]:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    same = centre_lens(model, identity_lens(model, [0]), TEXTS)
    torch.testing.assert_close(same.offsets, torch.zeros(1, 32), atol=1e-6, rtol=0)


def test_bad_input_is_refused(words, maps):
    with pytest.raises(InterpError, match="no text of more than 30 tokens"):
        centre_lens(words, maps, TEXTS, skip=30)
    with pytest.raises(InterpError, match="it was fitted on"):
        centre_lens(words, replace(maps, model_hash="0" * 64), TEXTS)
