"""The tuned lens: it predicts unseen texts, gains nothing where nothing is to gain, and resumes."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.engine.stopping import Cancelled
from interp.probing import tuned_lens
from interp.probing.lens_tests import lens_prediction
from interp.probing.tuned_lens import fit_tuned_lens, train_map
from interp.runs.capture import run_with_cache
from tests.words import WORDS, word_model

RANDOM = np.random.default_rng(0)
TEXTS = [" ".join(RANDOM.choice(WORDS, 10)) for _ in range(80)]
NEW = [" ".join(RANDOM.choice(WORDS, 10)) for _ in range(20)]
FAST = {"steps": 20, "skip": 1, "rate": 1e-3}


@pytest.fixture(scope="module")
def words():
    return word_model()


@pytest.fixture(scope="module")
def maps(words):
    return fit_tuned_lens(words, TEXTS, corpus="random words", **FAST)


def test_it_predicts_unseen_texts_better_than_the_logit_lens(words, maps):
    found = lens_prediction(words, NEW, maps)
    for layer in (0, 1):
        assert found.gain("kl", layer, "identity").high < 0
        assert found.gain("kl", layer, "shuffled layers").high < 0
        assert found.gain("explained", layer, "identity").low > 0


def test_nothing_is_learnt_where_nothing_is_written():
    """The partner: where later layers write nothing, the identity is chosen and kept."""
    model = word_model()
    for block in model.hf_model.model.layers[1:]:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    found = fit_tuned_lens(model, TEXTS[:20], layers=[0], **FAST)
    torch.testing.assert_close(found.matrices[0], torch.eye(32))
    torch.testing.assert_close(found.offsets[0], torch.zeros(32))


def test_a_half_is_trained_on_its_texts_alone(words, maps):
    """The odd texts' map, from states captured one text at a time; the lens is the mean."""
    rows = [words.tokenize(text).tokens for text in TEXTS[1::2]]
    states = {1: [], 2: []}
    for row in rows:
        seen = run_with_cache(words, [row], sites="resid_post", layers=[1, 2])
        for layer, some in states.items():
            some.append(seen[layer, "resid_post"][0, 1:])
    held = torch.cat([torch.full((len(r) - 1,), i % 5 == 4) for i, r in enumerate(rows)])
    slow = train_map(
        words.decoder, torch.cat(states[1]), torch.cat(states[2]), held,
        steps=20, batch=128, rate=1e-3, seed=0,
    )  # fmt: skip
    torch.testing.assert_close(maps.half(1).matrices[1], slow[:, :-1].float())
    torch.testing.assert_close(maps.half(1).offsets[1], slow[:, -1].float())
    torch.testing.assert_close(maps.matrices, maps.halves.mean(0))
    assert maps.n == (40, 40)


def test_training_adds_to_the_regression(words):
    """The KL on the texts that choose never rises by training."""
    bare = fit_tuned_lens(words, TEXTS, layers=[0], steps=0, skip=1)
    longer = fit_tuned_lens(words, TEXTS, layers=[0], steps=100, rate=1e-3, skip=1)
    before, after = (lens_prediction(words, NEW, one).estimate("kl", 0) for one in (bare, longer))
    assert after.mean < before.mean


def test_a_stopped_training_goes_on(words, maps, monkeypatch):
    done = []
    plain = tuned_lens.train_map

    def counted(*args, **options):
        if len(done) == 2:
            raise Cancelled("the run", "cancelled", "run it again")
        done.append(1)
        return plain(*args, **options)

    monkeypatch.setattr(tuned_lens, "train_map", counted)
    with pytest.raises(Cancelled):
        fit_tuned_lens(words, TEXTS, **FAST)
    monkeypatch.setattr(tuned_lens, "train_map", lambda *a, **o: done.append(1) or plain(*a, **o))
    again = fit_tuned_lens(words, TEXTS, **FAST)
    assert len(done) == 4
    assert torch.equal(again.matrices, maps.matrices)


def test_bad_input_is_refused(words):
    with pytest.raises(InterpError, match="9 texts of more than 1 tokens; give at least 10"):
        fit_tuned_lens(words, TEXTS[:9], **FAST)
    with pytest.raises(InterpError, match="rate"):
        fit_tuned_lens(words, TEXTS, rate=0.0)
    with pytest.raises(InterpError, match="layer"):
        fit_tuned_lens(words, TEXTS, layers=[2])
