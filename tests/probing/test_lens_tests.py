"""How well a lens predicts the output: against a slow loop, a perfect lens, and chance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.probing.lens_maps import LensMaps, identity_lens
from interp.probing.lens_tests import lens_prediction
from interp.probing.tuned_lens import train_map
from interp.runs.capture import run_with_cache
from tests.words import WORDS, jacobian_lens, word_model

RANDOM = np.random.default_rng(0)
TEXTS = [" ".join(RANDOM.choice(WORDS, 8 + i % 4)) for i in range(12)]


@pytest.fixture(scope="module")
def words():
    return word_model()


@pytest.fixture(scope="module")
def maps(words):
    drawn = torch.Generator().manual_seed(0)
    halves = torch.eye(32) + 0.05 * torch.randn(2, 2, 32, 32, generator=drawn)
    return jacobian_lens(words, halves)


def test_equals_a_loop(words, maps):
    """Every measure, one token at a time, with logits in place of the metric of the stream."""
    texts, decoder = TEXTS[:4], words.decoder
    found = lens_prediction(words, texts, maps, skip=2)
    assert found.lenses == ("jacobian", "identity", "shuffled layers", "half 1", "half 2")
    used = {"jacobian": maps, "identity": identity_lens(words, [0, 1]), "half 2": maps.half(1)}
    rows = [words.tokenize(text).tokens for text in texts]
    seen = run_with_cache(words, rows, sites="resid_post")
    for name, lens in used.items():
        for j, layer in enumerate((0, 1)):
            kl, same, own, read, of = [], [], [], [], []
            for i, row in enumerate(rows):
                for t in range(2, len(row)):
                    h, last = (seen[at, "resid_post"][i, t].double() for at in (layer, 2))
                    mapped = lens.matrices[j].double() @ h
                    p, q = (
                        decoder.logits(decoder.ln_final(x[None]))[0].softmax(-1)
                        for x in (last, mapped)
                    )
                    kl.append(float((p * (p / q).log()).sum()))
                    same.append(float(p.argmax() == q.argmax()))
                    own.append(decoder.unembed @ (decoder.ln_final.weight * (last - h)))
                    read.append(decoder.unembed @ (decoder.ln_final.weight * (mapped - h)))
                    of.append(i)
            of, own, read = np.array(of), torch.stack(own), torch.stack(read)
            own, read = own - own.mean(0), read - read.mean(0)
            written, left = own.var(1, correction=0), (own - read).var(1, correction=0)
            row = found.lenses.index(name)
            mean = [np.mean(np.array(kl)[of == i]) for i in range(4)]
            np.testing.assert_allclose(found.kl[row, j], mean, rtol=1e-5, atol=1e-7)
            mean = [np.mean(np.array(same)[of == i]) for i in range(4)]
            np.testing.assert_allclose(found.agreement[row, j], mean)
            expected = 1 - float(left.sum() / written.sum())
            assert found.estimate("explained", layer, name).mean == pytest.approx(
                expected, abs=1e-5
            )


def test_the_identity_explains_nothing(words, maps):
    found = lens_prediction(words, TEXTS, maps)
    for layer in (0, 1):
        none = found.estimate("explained", layer, "identity")
        assert (none.mean, none.low, none.high) == pytest.approx((0, 0, 0), abs=1e-9)
        gain = found.gain("explained", layer, "identity")
        assert gain.mean == pytest.approx(found.estimate("explained", layer).mean)


def test_layers_that_write_nothing_are_predicted_by_the_identity():
    """A planted truth: without later writes the logit lens is exact, and any other lens is not."""
    model = word_model()
    for block in model.hf_model.model.layers[1:]:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    drawn = torch.eye(32) + 0.3 * torch.randn(1, 32, 32)
    maps = LensMaps(
        kind="jacobian", model=model.name, model_hash=model.hash, layers=(0,), matrices=drawn
    )
    found = lens_prediction(model, TEXTS, maps)
    exact = found.estimate("kl", 0, "identity")
    assert abs(exact.mean) < 1e-9
    assert found.estimate("agreement", 0, "identity").mean == 1
    assert found.gain("kl", 0, "identity").low > 0


def test_random_maps_gain_nothing(words):
    """The partner: maps at random around the identity predict no later writes."""
    drawn = torch.Generator().manual_seed(5)
    maps = LensMaps(
        kind="jacobian",
        model=words.name,
        model_hash=words.hash,
        layers=(0, 1),
        matrices=torch.eye(32) + 0.2 * torch.randn(2, 32, 32, generator=drawn),
    )
    found = lens_prediction(words, TEXTS, maps)
    for layer in (0, 1):
        assert found.gain("explained", layer, "identity").mean < 0.02
        assert found.gain("kl", layer, "identity").low > -0.05


def test_a_planted_affine_map_is_learnt(words):
    """States that an affine map takes to the last ones: training finds it; shuffled it does not."""
    drawn = torch.Generator().manual_seed(2)
    before = torch.randn(400, 32, generator=drawn, dtype=torch.float64)
    matrix = torch.eye(32) + 0.3 * torch.randn(32, 32, generator=drawn)
    offset = torch.randn(32, generator=drawn)
    final = before @ matrix.double().T + offset
    held = torch.arange(400) % 5 == 0
    options = {"steps": 20, "batch": 64, "rate": 1e-4, "seed": 0}
    found = train_map(words.decoder, before, final, held, **options)
    torch.testing.assert_close(found[:, :-1], matrix.to(found), atol=0.02, rtol=0)
    torch.testing.assert_close(found[:, -1], offset.to(found), atol=0.02, rtol=0)
    order = torch.randperm(400, generator=drawn)
    none = train_map(words.decoder, before, final[order], held, **options)
    away = [float((m[:, :-1] - torch.eye(32)).norm()) for m in (found, none)]
    assert away[0] > 1
    assert float((none[:, :-1] - matrix).norm()) > 10 * float((found[:, :-1] - matrix).norm())


def test_frames_and_figures(words, maps):
    found = lens_prediction(words, TEXTS, maps, others={"twice": replace(maps, note="x")})
    assert found.lenses[-1] == "twice"
    table = found.to_dataframe()
    assert len(table) == 6 * 2 * 3
    assert {*table["measure"]} == {"kl", "agreement", "explained"}
    assert {t.name for t in found.plot("agreement").data} >= {*found.lenses}
    assert repr(found).startswith("LensPrediction(jacobian, 2 layers, n=12 texts; layer 1: KL ")
    assert len(repr(found)) < 140


def test_bad_input_is_refused(words, maps):
    with pytest.raises(InterpError, match="no text of more than 30 tokens"):
        lens_prediction(words, TEXTS, maps, skip=30)
    with pytest.raises(InterpError, match="it was fitted on"):
        lens_prediction(words, TEXTS, replace(maps, model_hash="0" * 64))
    with pytest.raises(InterpError, match="fitted at layers 1"):
        lens_prediction(words, TEXTS, maps, others={"one": identity_lens(words, [1])})
    found = lens_prediction(words, TEXTS[:2], maps)
    for wrong in (("loss", 0), ("kl", 2), ("kl", 0, "none")):
        with pytest.raises(InterpError):
            found.estimate(*wrong)
