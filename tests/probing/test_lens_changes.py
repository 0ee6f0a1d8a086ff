"""Swaps, steering and ablation along a lens: equal to TransformerLens' hooks, and to a loop."""

from dataclasses import replace

import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.core.nulls import turned_directions
from interp.probing.lens_changes import ablate_words, lens_vectors, steer_to_word, swap_words
from interp.probing.lens_maps import LensMaps, identity_lens
from interp.runs.capture import run_with_cache
from tests.words import WORDS, word_model

TEXTS = ["waa wab wac", "wba wbb wbc wbd"]
A, B = f" {WORDS[3]}", f" {WORDS[20]}"


@pytest.fixture(scope="module")
def words():
    return word_model()


@pytest.fixture(scope="module")
def maps(words):
    drawn = torch.Generator().manual_seed(1)
    return LensMaps(
        kind="jacobian",
        model=words.name,
        model_hash=words.hash,
        layers=(0, 1),
        matrices=torch.randn(2, 32, 32, generator=drawn),
        n=(3, 0),
    )


def changed_logits(model, change):
    with interp.intervene(model, [change]):
        return model.last_logits(TEXTS)


@pytest.mark.parametrize("kind", ["swap", "ablate"])
def test_equals_transformerlens(words, maps, kind):
    """In the raw gauge, at one layer and at two."""
    from transformer_lens.tools.analysis import JacobianLens

    theirs = JacobianLens(dict(zip((0, 1), maps.matrices, strict=True)), n_prompts=3, d_model=32)
    ids = [words.single_token(word) for word in (A, B)]
    for layers in ([1], [0, 1]):
        if kind == "swap":
            change = swap_words(words, maps, A, B, layers=layers, strength=1.5, gauge="raw")
            hooks = theirs.swap_hooks(words.bridge, *ids, layers, alpha=1.5)
        else:
            change = ablate_words(words, maps, [A, B], layers=layers, gauge="raw")
            hooks = theirs.ablation_hooks(words.bridge, ids, layers)
        for text, ours in zip(TEXTS, changed_logits(words, change), strict=True):
            tokens = torch.tensor([words.tokenize(text).tokens])
            logits = words.bridge.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
            torch.testing.assert_close(ours, logits.to(ours), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gauge", ["raw", "centred"])
def test_vectors_are_gradients_of_what_is_read(words, maps, gauge):
    """Raw: of the product with W_U. Centred: of the logit less the mean logit, after the norm's
    weight."""
    decoder = words.decoder
    h = torch.randn(32, dtype=torch.float64, requires_grad=True)
    mapped = maps.matrices[1].double() @ h
    if gauge == "centred":
        mapped = mapped * decoder.ln_final.weight
    logits = decoder.unembed @ mapped
    if gauge == "centred":
        logits = logits - logits.mean()
    logits[words.single_token(A)].backward()
    found = lens_vectors(words, maps, A, 1, gauge=gauge)
    torch.testing.assert_close(found[0], h.grad)


def test_coordinates_are_exchanged(words, maps):
    """The coordinates along both vectors change places; what is orthogonal to both stays."""
    vectors = lens_vectors(words, maps, [A, B], 1)
    plain = run_with_cache(words, TEXTS[:1], sites="resid_post", layers=[1])
    with interp.intervene(words, [swap_words(words, maps, A, B, layers=1)]):
        changed = run_with_cache(words, TEXTS[:1], sites="resid_post", layers=[1])
    before, after = (seen[1, "resid_post"][0].double() for seen in (plain, changed))
    c, d = ((torch.linalg.lstsq(vectors.T, x.T).solution) for x in (before, after))
    torch.testing.assert_close(d, c.flip(0))
    rest = [x - (vectors.T @ y).T for x, y in ((before, c), (after, d))]
    torch.testing.assert_close(*rest)
    assert (after - before).norm() > 0.01 * before.norm()


def test_a_second_swap_undoes_the_first(words, maps):
    swap = swap_words(words, maps, A, B, layers=1)
    torch.testing.assert_close(changed_logits(words, swap + swap), words.last_logits(TEXTS))
    assert not torch.allclose(changed_logits(words, swap), words.last_logits(TEXTS))


def test_a_word_swapped_to_itself_in_halves_is_found_nowhere(words, maps):
    """Strength 0 changes nothing, for a swap and for steering."""
    for change in (
        swap_words(words, maps, A, B, strength=0.0),
        steer_to_word(words, maps, A, strength=0.0),
    ):
        torch.testing.assert_close(changed_logits(words, change), words.last_logits(TEXTS))


def test_steering_raises_the_word_it_steers_to(words):
    """Along the identity at the last layer the word's own logit rises; a random direction of the
    same length raises it less."""
    lens, token = identity_lens(words, [2]), words.single_token(A)
    plain = words.last_logits(TEXTS).log_softmax(-1)[:, token]
    steered = changed_logits(words, steer_to_word(words, lens, A)).log_softmax(-1)[:, token]
    assert bool((steered > plain + 1).all())
    vector = lens_vectors(words, lens, A, 2)
    for seed in range(5):
        turned = next(turned_directions(vector, 1, seed=seed))[0]
        change = interp.runs.add("L2.resid_post", turned / turned.norm(), coefficient=3.0)
        other = changed_logits(words, change).log_softmax(-1)[:, token]
        assert bool((other < steered).all())


def test_ablation_leaves_no_coordinate(words, maps):
    with interp.intervene(words, [ablate_words(words, maps, [A, B], layers=[1])]):
        seen = run_with_cache(words, TEXTS[:1], sites="resid_post", layers=[1])
    left = seen[1, "resid_post"][0].double() @ lens_vectors(words, maps, [A, B], 1).T
    assert left.abs().max() < 1e-5
    one = changed_logits(words, ablate_words(words, maps, A, layers=[1]))
    twice = changed_logits(words, ablate_words(words, maps, [A, A], layers=[1]))
    torch.testing.assert_close(one, twice)


@pytest.mark.parametrize("make", [swap_words, steer_to_word, ablate_words])
def test_hooks_engine_and_generation_agree(words, maps, make):
    """The change is made token by token, so that the fast engine and generation can make it."""
    change = make(words, maps, A, B) if make is swap_words else make(words, maps, A)
    hooked = changed_logits(words, change).softmax(-1)
    found = interp.ablate(words, TEXTS, [change], tokens=[7])
    torch.testing.assert_close(torch.from_numpy(found.probabilities[1, :, 0]), hooked[:, 7])
    fast = interp.generate(words, TEXTS, 3, change=change)
    with interp.intervene(words, [change]):
        slow = interp.generate(words, TEXTS, 3)
    assert [one.tokens for one in fast] == [one.tokens for one in slow]


def test_bad_input_is_refused(words, maps):
    with pytest.raises(InterpError, match="one token; give two words"):
        swap_words(words, maps, A, A)
    with pytest.raises(InterpError, match="gauge"):
        lens_vectors(words, maps, A, 1, gauge="mean")
    with pytest.raises(InterpError, match="fitted at layers"):
        swap_words(words, maps, A, B, layers=2)
    with pytest.raises(InterpError, match="no layers"):
        steer_to_word(words, maps, A, layers=[])
    with pytest.raises(InterpError, match="no words"):
        ablate_words(words, maps, [])
    with pytest.raises(InterpError, match="it was fitted on"):
        swap_words(words, replace(maps, model_hash="0" * 64), A, B)
    flat = replace(maps, matrices=torch.ones(2, 32, 32))
    with pytest.raises(InterpError, match="parallel"):
        swap_words(words, flat, A, B, layers=1)
    with pytest.raises(InterpError, match="length 0"):
        steer_to_word(words, replace(maps, matrices=torch.zeros(2, 32, 32)), A)
    with pytest.raises(InterpError, match="tokens in"):
        steer_to_word(words, maps, "waa wab")
