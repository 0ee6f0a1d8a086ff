"""The Jacobian lens against TransformerLens' own fit; halves, merging, resuming, refusals."""

import pytest
import torch

from interp.core.errors import InterpError
from interp.engine.forward import Runner
from interp.engine.jacobians import mean_jacobians
from interp.engine.stopping import Cancelled
from interp.probing import jacobian_lens
from interp.probing.jacobian_lens import fit_jacobian_lens
from interp.probing.lens_maps import merge_lenses
from tests.words import WORDS, word_model

TEXTS = [" ".join(WORDS[i : i + 9 + i % 3]) for i in range(6)]


@pytest.fixture(scope="module")
def words():
    return word_model()


@pytest.fixture(scope="module")
def maps(words):
    return fit_jacobian_lens(words, TEXTS, skip=3, corpus="words")


def test_equals_transformerlens(words, maps):
    from transformer_lens.tools.analysis import JacobianLens

    bridge = words.bridge
    bridge.to_tokens = lambda text: torch.tensor([words.tokenize(text).tokens])
    options = {"corpus": "words", "skip_first_positions": 3, "show_progress": False}
    theirs = JacobianLens.fit(bridge, TEXTS, **options)
    assert maps.layers == (0, 1) == tuple(theirs.source_layers)
    for place, layer in enumerate(maps.layers):
        torch.testing.assert_close(
            maps.matrices[place], theirs.jacobians[layer], atol=1e-5, rtol=1e-4
        )
    eye = torch.eye(words.d_model)
    assert (maps.matrices - eye).flatten(1).norm(dim=1).min() > 0.5  # it is not the logit lens


def test_halves_are_the_even_and_the_odd_texts(words, maps):
    assert maps.n == (3, 3)
    runner = Runner(words.decoder)
    each = [mean_jacobians(runner, words.tokenize(t).tokens, maps.layers, skip=3) for t in TEXTS]
    for i in (0, 1):
        slow = torch.stack(each[i::2]).double().mean(0).float()
        torch.testing.assert_close(maps.half(i).matrices, slow)
        assert maps.half(i).n == (3, 0)
    torch.testing.assert_close(maps.matrices, maps.halves.mean(0))
    a, b = maps.halves
    away = maps.matrices - torch.eye(words.d_model)
    assert maps.disagreement[1] == pytest.approx(float((a - b)[1].norm() / away[1].norm()))


def test_shards_merge_to_the_whole(words, maps):
    """Shards of two and four texts: each text counts once, and the halves are merged too."""
    shards = [fit_jacobian_lens(words, some, skip=3) for some in (TEXTS[:2], TEXTS[2:])]
    merged = merge_lenses(shards)
    assert merged.n == (3, 3)
    torch.testing.assert_close(merged.matrices, maps.matrices)
    torch.testing.assert_close(merged.halves, maps.halves)


def test_a_stopped_fit_goes_on(words, maps, monkeypatch):
    """Finished texts are read: they are not computed again, also in a longer list."""
    done = []
    plain = jacobian_lens.mean_jacobians

    def counted(*args, **options):
        done.append(args[1])
        return plain(*args, **options)

    monkeypatch.setattr(jacobian_lens, "mean_jacobians", counted)
    with pytest.raises(Cancelled):
        fit_jacobian_lens(words, TEXTS, skip=3, cancelled=lambda: len(done) == 4)
    assert len(done) >= 4
    before = len(done)
    again = fit_jacobian_lens(words, TEXTS, skip=3, keep=True)
    assert len(done) <= before + 3
    assert torch.equal(again.matrices, maps.matrices)
    done.clear()
    longer = fit_jacobian_lens(words, [*TEXTS, TEXTS[0]], skip=3)
    assert len(done) == 1
    assert longer.n == (4, 3)


def test_short_texts_are_left_out(words, maps):
    found = fit_jacobian_lens(words, [*TEXTS[:3], "waa wab", *TEXTS[3:]], skip=3)
    assert torch.equal(found.matrices, maps.matrices)


def test_layers_and_cuts(words, maps):
    one = fit_jacobian_lens(words, TEXTS, layers=[1], skip=3, max_tokens=7)
    cut = [words.tokenize(text).tokens[:7] for text in TEXTS]
    two = fit_jacobian_lens(words, cut, layers=[1], skip=3)
    assert torch.equal(one.matrices, two.matrices)
    assert not torch.allclose(one.matrices[0], maps.matrices[1])
    assert repr(one) == f"LensMaps(jacobian of {words.name}, layers 1, n=6 texts)"


def test_bad_input_is_refused(words, maps):
    with pytest.raises(InterpError, match="1 texts of at least 5 tokens"):
        fit_jacobian_lens(words, [TEXTS[0], "waa"], skip=3)
    with pytest.raises(InterpError, match=r"layer \[2\]"):
        fit_jacobian_lens(words, TEXTS, layers=[2])
    with pytest.raises(InterpError, match="skip"):
        fit_jacobian_lens(words, TEXTS, skip=-1)
    with pytest.raises(InterpError, match="another kind"):
        merge_lenses([])
    with pytest.raises(InterpError, match="another kind"):
        merge_lenses([maps.half(0)])
    other = fit_jacobian_lens(words, TEXTS, layers=[1], skip=3)
    with pytest.raises(InterpError, match="differ in layers"):
        merge_lenses([maps, other])
