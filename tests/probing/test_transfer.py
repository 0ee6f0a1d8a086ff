"""From one vocabulary to another: planted maps, slow references, shuffled pairs."""

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from interp.core.errors import InterpError
from interp.models.loading import load_model, wrap
from interp.probing.transfer import embedding_map, shared_tokens, transfer_probes

VOCABULARY = 400


def words(order):
    """A tokeniser whose token i is the word w<order[i]>."""
    table = {f"w{number}": i for i, number in enumerate(order)}
    tokenizer = Tokenizer(WordLevel(table, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def llama(width, layers, seed, order=range(VOCABULARY), unembed=None, tokenizer=None):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(order), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=16, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.lm_head.weight.data = torch.randn(len(order), width) if unembed is None else unembed
    return wrap(model, tokenizer or words(order), name=f"llama-{seed}", check=False)


@pytest.fixture(scope="module")
def source():
    return llama(12, 3, 0)


@pytest.fixture(scope="module")
def planted(source):
    """The map, and a target with another order of tokens whose rows it gives."""
    truth = torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
    order = np.random.default_rng(0).permutation(VOCABULARY)
    return truth, llama(20, 5, 1, order, source.decoder.unembed[order] @ truth)


def test_a_planted_map_is_recovered_through_another_token_order(source, planted):
    truth, target = planted
    found = embedding_map(source, target, ridge=1e-6)
    torch.testing.assert_close(found.matrix, truth.double(), atol=1e-4, rtol=0)
    assert (found.n_shared, found.n_train, found.n_held_out) == (400, 360, 40)
    assert found.r2.mean == pytest.approx(1, abs=1e-6)
    assert found.cosine.mean == pytest.approx(1, abs=1e-6)
    assert found.cosine.n == found.r2.n == 40
    assert found.shuffled_r2.mean < 0.05
    assert abs(found.shuffled_cosine.mean) < 0.2
    assert "400 shared" in str(found)


def test_unrelated_models_have_no_map(source):
    """The control: rows drawn independently are not predicted on held-out tokens."""
    found = embedding_map(source, llama(20, 5, 2))
    assert found.r2.mean < 0.05
    assert found.r2.mean == pytest.approx(found.shuffled_r2.mean, abs=0.1)


def test_against_ridge_by_augmented_least_squares(source):
    """T minimises |A T - B|^2 + ridge |T|^2: least squares with sqrt(ridge) I stacked under A."""
    target = llama(20, 5, 3)
    found = embedding_map(source, target, ridge=7.0, n_tokens=50, held_out=0.25, seed=4)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(4))
    test, train = order[:100], order[100:150]
    a, b = source.decoder.unembed.double(), target.decoder.unembed.double()
    stacked = torch.cat([a[train], 7.0**0.5 * torch.eye(12, dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, torch.cat([b[train], torch.zeros(12, 20)])).solution
    torch.testing.assert_close(found.matrix, expected)
    off = (b[test] - a[test] @ expected).pow(2).sum()
    spread = (b[test] - b[train].mean(0)).pow(2).sum()
    assert found.r2.mean == pytest.approx(float(1 - off / spread))
    cosines = torch.cosine_similarity(a[test] @ expected, b[test], dim=1)
    assert found.cosine.mean == pytest.approx(float(cosines.mean()))
    assert (found.n_train, found.n_held_out, found.ridge, found.seed) == (50, 100, 7.0, 4)


def test_blocks_of_rows_change_nothing(source, planted, monkeypatch):
    whole = embedding_map(source, planted[1])
    monkeypatch.setattr("interp.probing.transfer.ROWS", 7)
    pieces = embedding_map(source, planted[1])
    torch.testing.assert_close(pieces.matrix, whole.matrix)
    assert pieces.r2.mean == pytest.approx(whole.r2.mean)
    assert pieces.shuffled_cosine.mean == pytest.approx(whole.shuffled_cosine.mean)


def test_only_shared_words_count(source):
    """A quarter of the words are the target's too; a wrong pairing by id would not fit."""
    truth = torch.randn(12, 8, generator=torch.Generator().manual_seed(2))
    order = [*range(300, 700)]
    rows = torch.randn(400, 8)
    rows[:100] = source.decoder.unembed[300:] @ truth
    target = llama(8, 2, 4, order, rows)
    pairs = shared_tokens(source, target)
    assert pairs.tolist() == [[300 + i, i] for i in range(100)]
    found = embedding_map(source, target, ridge=1e-6)
    assert found.n_shared == 100
    torch.testing.assert_close(found.matrix, truth.double(), atol=1e-4, rtol=0)


def spaced(mark, extra=()):
    """A byte-level ("Ġ") or a metaspace ("▁") tokeniser over single letters, with and without."""
    tokens = [x for letter in "abcdefgh" for x in (letter, mark + letter)] + [mark, *extra]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.decoder = decoders.ByteLevel() if mark == "Ġ" else decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer), tokens


def test_leading_spaces_match_across_conventions():
    # Ã and © are bytes; alone neither is a character, so both read as the replacement sign.
    (left, tokens), (right, others) = spaced("Ġ", ("Ã", "©")), spaced("▁", ("é", "�"))
    one = llama(4, 1, 5, range(len(tokens)), tokenizer=left)
    two = llama(4, 1, 6, range(len(others)), tokenizer=right)
    found = {(tokens[i], others[j]) for i, j in shared_tokens(one, two).tolist()}
    letters = {(m + x, n + x) for x in "abcdefgh" for m, n in (("", ""), ("Ġ", "▁"))}
    assert found == letters | {("Ġ", "▁")}
    # One vocabulary: the two bytes count as well.
    assert len(shared_tokens(one, one)) == len(tokens)


def test_padding_rows_are_not_tokens(source):
    padded = llama(20, 1, 7, range(450), tokenizer=words(range(VOCABULARY)))
    assert len(shared_tokens(source, padded)) == VOCABULARY


def test_probes_follow_the_planted_map(source, planted):
    truth, target = planted
    probes = torch.randn(3, 12, generator=torch.Generator().manual_seed(3))
    found = transfer_probes(probes, embedding_map(source, target, ridge=1e-6))
    assert found.layers == (0, 1, 3)  # int(p * 5 / 3)
    expected = (probes @ truth).double()
    torch.testing.assert_close(
        found.directions, expected / expected.norm(dim=1, keepdim=True), atol=1e-4, rtol=0
    )


def test_layers_as_published_and_into_a_shallower_model(source, planted):
    embedding = embedding_map(source, planted[1])
    probes = torch.ones(3, 12)
    assert transfer_probes(probes, embedding, 2).layers == (0, 0, 1)
    deep = embedding_map(llama(12, 36, 8), planted[1])
    found = transfer_probes(torch.ones(36, 12), deep, 48)
    assert found.layers == tuple(int(p * 48 / 36) for p in range(36))
    assert found.directions.shape == (36, 20)


def test_refusals(source, planted):
    target = planted[1]
    for options in (
        {"ridge": 0.0}, {"ridge": float("nan")}, {"held_out": 1.0}, {"held_out": 0.0},
        {"n_tokens": 361}, {"n_tokens": 1},
    ):  # fmt: skip
        with pytest.raises(InterpError):
            embedding_map(source, target, **options)
    strange = llama(4, 1, 9, range(900, 950))
    with pytest.raises(InterpError, match="0 of 400 and 50"):
        embedding_map(source, strange)
    mute = llama(12, 1, 10)
    mute.tokenizer = None
    with pytest.raises(InterpError, match="no tokeniser"):
        embedding_map(source, mute)
    embedding = embedding_map(source, target)
    for probes in (torch.ones(12), torch.ones(2, 12), torch.ones(3, 20)):
        with pytest.raises(InterpError, match="3 layers of width 12"):
            transfer_probes(probes, embedding)
    zero = torch.ones(3, 12)
    zero[1] = 0
    zero[2, 0] = float("nan")
    with pytest.raises(InterpError, match=r"layers \[1, 2\]"):
        transfer_probes(zero, embedding)
    with pytest.raises(InterpError, match="0 layers"):
        transfer_probes(torch.ones(3, 12), embedding, 0)


def test_toys_with_some_words_in_common():
    left, right = load_model("toy-or", check=False), load_model("toy-verification", check=False)
    pairs = shared_tokens(left, right).tolist()
    assert {left.strings([i])[0] for i, _ in pairs} == {right.strings([j])[0] for _, j in pairs}
    assert len(pairs) >= 8  # <bos>, <unk>, ";" and the fillers, of other ids
    assert any(i != j for i, j in pairs)


def test_tokens_with_equal_rows_are_not_fitted_and_held_out():
    """Random maps are seen through copies of their rows: 400 tokens, 40 different ones."""
    rows = [torch.randn(40, 60), torch.randn(40, 72)]
    models = [llama(x.shape[1], 1, i, unembed=x.repeat(10, 1)) for i, x in enumerate(rows)]
    found = embedding_map(*models)
    assert (found.n_shared, found.n_train, found.n_held_out) == (40, 36, 4)


def test_unembedding_without_a_decoder(source, planted):
    """A model the engine cannot read gives the same rows through its bridge."""
    blind = llama(12, 3, 0)
    blind.decoder = None
    expected = embedding_map(source, planted[1]).matrix
    torch.testing.assert_close(embedding_map(blind, planted[1]).matrix, expected)
