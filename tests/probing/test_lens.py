"""The residual stream and directions read as tokens: against slow loops and the toys' key."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.models.loading import load_model, wrap
from interp.models.unembedding import unembed
from interp.neurons.search import search_neurons
from interp.probing.lens import logit_lens
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.tasks.registry import load_task
from tests.families import tiny

PROMPTS = [(5, 6, 7, 8, 9, 10), (11, 12, 13), (20, 21, 22, 23, 24), (30, 31), (40, 41, 42, 43)]
PLACES = [3, -1, 2, 0, 1]


@pytest.fixture(scope="module")
def verification():
    return load_model("toy-verification")


@pytest.fixture(scope="module")
def verdicts(verification):
    """Prompts of both classes up to the bracket, and their labels."""
    pairs = load_task("toy-verification", verification).pairs
    prompts = [pair.clean for pair in pairs] + [pair.corrupted for pair in pairs]
    return prompts, ["valid"] * len(pairs) + ["invalid"] * len(pairs)


def slow_probabilities(model, prompts, places, layer, site):
    """One prompt at a time, in numpy: (sample, token)."""
    rows = []
    for prompt, place in zip(prompts, places, strict=True):
        seen = run_with_cache(model, [prompt], sites=[site], layers=[layer])
        hidden = seen[layer, site][0, place]
        logits = model.decoder.logits(model.decoder.ln_final(hidden[None]))[0].double().numpy()
        rows.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
    return np.stack(rows)


@pytest.mark.parametrize("block", [1, 2**23])
def test_equals_a_loop_over_samples(family, monkeypatch, block):
    """Means within groups of unequal lengths and sizes, however samples are cut into blocks."""
    monkeypatch.setattr(import_module("interp.probing.lens"), "BLOCK", block)
    labels = ["a", "b", "a", "a", "b"]
    options = {"sites": ["resid_post", "resid_pre"], "layers": [0, 2], "k": 6, "words": [7, 50]}
    lens = logit_lens(family, PROMPTS, PLACES, groups=labels, **options)
    assert (lens.groups, lens.n, lens.layers) == (("a", "b"), (3, 2), (0, 2))
    assert lens.tokens == (8, 13, 22, 30, 41)
    for s, site in enumerate(lens.sites):
        for j, layer in enumerate(lens.layers):
            slow = slow_probabilities(family, PROMPTS, PLACES, layer, site)
            for word, token in enumerate((7, 50)):
                rank = [1 + sum(other > row[token] for other in row) for row in slow]
                np.testing.assert_allclose(
                    lens.word_probability[s, j, :, word], slow[:, token], atol=2e-6
                )
                assert lens.word_rank[s, j, :, word].tolist() == rank
            for g, group in enumerate(lens.groups):
                rows = slow[[i for i, label in enumerate(labels) if label == group]]
                best = np.sort(rows.mean(0))[::-1][:6]
                np.testing.assert_allclose(lens.top_mean[s, j, g], best, atol=2e-6)
                ids = lens.top_tokens[s, j, g].numpy()
                np.testing.assert_allclose(rows.mean(0)[ids], best, atol=2e-6)
                error = rows[:, ids].std(0, ddof=1) / np.sqrt(len(rows))
                np.testing.assert_allclose(lens.top_stderr[s, j, g], error, atol=2e-6)
                found = lens.probability(50, layer, site=site, group=group)
                assert found.mean == pytest.approx(rows[:, 50].mean(), abs=2e-6)
                assert found.n == len(rows)


def test_last_layer_is_the_model(family):
    """At resid_post of the last layer the lens is the next-token distribution, cap and all."""
    last = family.n_layers - 1
    lens = logit_lens(family, PROMPTS, PLACES, layers=[last], k=family.d_vocab)
    cut = [p[: place % len(p) + 1] for p, place in zip(PROMPTS, PLACES, strict=True)]
    own = family.last_logits(cut).double().softmax(-1).mean(0)
    assert sorted(lens.top_tokens[0, 0, 0].tolist()) == list(range(family.d_vocab))
    torch.testing.assert_close(
        lens.top_mean[0, 0, 0], own[lens.top_tokens[0, 0, 0]], atol=2e-6, rtol=1e-4
    )


def test_softcap_matters(family_models):
    """Without the cap the Gemma-2 lens would be another distribution: the last test can fail."""
    gemma = family_models["gemma2"]
    capped = replace(gemma.decoder, final_softcap=0.5)
    bare = replace(gemma.decoder, final_softcap=None)
    tops = [
        logit_lens(replace(gemma, decoder=decoder), PROMPTS, PLACES, layers=[2], k=1).top(2)[0]
        for decoder in (capped, bare)
    ]
    assert tops[0].value < 0.9 * tops[1].value


def test_mean_of_probabilities_not_probability_of_the_mean(verification, verdicts):
    """Half the prompts say "this", half "not": the softmax of their mean logits is far lower."""
    prompts, labels = verdicts
    lens = logit_lens(verification, prompts, "last", layers=[2], words=["this", "not"], k=2)
    rows = [verification.tokenize(prompt).tokens for prompt in prompts]
    logits = verification.last_logits(rows).double()
    this = verification.token_id("this")[0]
    expected = float(logits.softmax(-1).mean(0)[this])
    assert lens.probability("this", 2).mean == pytest.approx(expected, abs=1e-6)
    assert float(logits.mean(0).softmax(-1)[this]) < 0.7 * expected
    assert {token.text for token in lens.top(2)} == {"this", "not"}


def test_verdict_appears_where_it_is_written(verification, verdicts):
    """At the bracket the verdict is there after the mover (layer 2), and not before."""
    prompts, labels = verdicts
    lens = logit_lens(verification, prompts, "last", words=["this", "not"], groups=labels, k=3)
    assert lens.probability("this", 2, group="valid").low > 0.8
    assert lens.probability("not", 2, group="invalid").low > 0.8
    assert lens.rank("this", 2, group="valid").mean == 1
    assert lens.top(2, group="valid")[0].text == "this"
    for layer in (0, 1):
        before = [lens.probability("this", layer, group=group).mean for group in lens.groups]
        assert abs(before[0] - before[1]) < 0.02
    result = [len(prompt.split()) - 2 for prompt in prompts]
    at_result = logit_lens(verification, prompts, result, words=["this"], groups=labels)
    assert at_result.probability("this", 1, group="valid").low > 0.8
    assert at_result.probability("this", 0, group="valid").high < 0.5


def test_shuffled_labels_show_nothing(verification, verdicts):
    prompts, labels = verdicts
    shuffled = [str(number % 2) for number in range(len(labels))]
    lens = logit_lens(verification, prompts, "last", layers=[2], words=["this"], groups=shuffled)
    left, right = (lens.probability("this", 2, group=group) for group in ("0", "1"))
    assert left.low < right.mean < left.high


def test_lens_of_a_changed_run(verification, verdicts):
    prompts, labels = verdicts
    options = {"layers": [2], "words": ["this"], "groups": labels}
    with intervene(verification, [zero("L2H0")]):
        lens = logit_lens(verification, prompts, "last", **options)
    assert lens.probability("this", 2, group="valid").high < 0.5
    again = logit_lens(verification, prompts, "last", **options)
    assert again.probability("this", 2, group="valid").low > 0.8


def test_a_single_sample_has_no_error_bar(verification, verdicts):
    lens = logit_lens(verification, verdicts[0][:1], "last", words=["this"], k=2)
    assert torch.isinf(lens.top_stderr).all()
    assert lens.probability("this", 2).high == float("inf")


def test_repr_is_one_line(verification, verdicts):
    prompts, labels = verdicts
    lens = logit_lens(verification, prompts, "last", groups=labels)
    assert repr(lens) == (
        f"Lens(resid_post of layers 0 to {verification.n_layers - 1}, {len(prompts)} prompts, "
        "groups valid, invalid; read .top(layer), .to_dataframe() or .plot())"
    )


def test_frames(verification, verdicts):
    prompts, labels = verdicts
    lens = logit_lens(verification, prompts, "last", words=["this", 0], groups=labels, k=3)
    top, words = lens.to_dataframe(), lens.words_to_dataframe()
    assert len(top) == 3 * 2 * 3
    row = top.query("layer == 2 and group == 'valid' and place == 1").iloc[0]
    assert (row["text"], row["n"]) == ("this", labels.count("valid"))
    assert len(words) == 3 * 2 * 2
    row = words.query("layer == 2 and group == 'valid' and word == 'this'").iloc[0]
    assert row["rank"] == 1
    assert row["probability_low"] <= row["probability"] <= row["probability_high"]


@pytest.mark.parametrize("norm", [False, True])
def test_unembed_equals_a_loop(family, monkeypatch, norm):
    monkeypatch.setattr("interp.models.unembedding.BLOCK", 200)
    decoder = family.decoder
    vectors = torch.randn(7, family.d_model, generator=torch.Generator().manual_seed(1))
    found = unembed(family, vectors, k=4, norm=norm)
    assert len(found) == 7
    for vector, entry in zip(vectors, found, strict=True):
        read = vector
        if norm:
            read = vector - vector.mean() if decoder.ln_final.centred else vector
            read = read * decoder.ln_final.weight
        logits = [float(read @ row) for row in decoder.unembed]
        order = sorted(range(len(logits)), key=lambda token: logits[token])
        assert [token.token for token in entry.suppressed] == order[:4]
        assert [token.token for token in entry.promoted] == order[::-1][:4]
        for token in (*entry.promoted, *entry.suppressed):
            assert token.value == pytest.approx(logits[token.token], abs=1e-4)
            assert token.text == f"<{token.token}>"


def test_norm_is_not_idle(family_models):
    vectors = torch.randn(20, 32, generator=torch.Generator().manual_seed(2))
    bare, normed = (unembed(family_models["llama"], vectors, k=1, norm=n) for n in (False, True))
    assert bare != normed


def test_verdict_direction_reads_this_and_not(verification):
    value = verification.decoder.blocks[1].mlp.down.weight[3]
    (entry,) = unembed(verification, value, k=1)
    assert (entry.promoted[0].text, entry.suppressed[0].text) == ("this", "not")
    (entry,) = unembed(verification, -value, k=1)
    assert (entry.promoted[0].text, entry.suppressed[0].text) == ("not", "this")


def test_unembed_of_nothing(verification):
    assert unembed(verification, torch.zeros(0, verification.d_model)) == []


def slow_search(model, tokens, metric, sign):
    """(score, layer, index, ranks) of every neuron, one at a time, through the norms' modules."""
    decoder, found = model.decoder, []
    unembed = decoder.unembed.double()
    for layer, block in enumerate(decoder.blocks):
        for index, value in enumerate(block.mlp.down.weight.double()):
            for norm in (block.ln2_post, decoder.ln_final):
                if norm is not None:
                    value = value - value.mean() * norm.centred
                    value = value * norm.weight.double()
            logits = unembed @ value
            logits = logits - logits.mean()
            chosen = logits[tokens]
            if metric == "cosine":
                rows = unembed[tokens] - unembed.mean(0)
                chosen = chosen / (rows.norm(dim=1) * value.norm())
            score = float(chosen.mean())
            if metric == "zscore":
                score /= float(logits.std(correction=0))
            ranks = tuple(1 + int((sign * logits > sign * logits[t]).sum()) for t in tokens)
            found.append((score, layer, index, ranks))
    return found


@pytest.mark.parametrize("metric", ["zscore", "cosine", "dot"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
def test_search_equals_a_loop(family_models, name, metric, sign):
    """Post-norms included: W_U (w * v) is what the neuron adds, up to a positive factor."""
    model = family_models[name]
    found = search_neurons(model, [5, 60], k=60, sign=sign, metric=metric)
    slow = sorted(slow_search(model, [5, 60], metric, sign), key=lambda entry: -sign * entry[0])
    assert [(n.layer, n.index, n.ranks) for n in found] == [entry[1:] for entry in slow[:60]]
    scores = [entry[0] for entry in slow[:60]]
    assert [n.score for n in found] == pytest.approx(scores, abs=1e-4)


def test_what_raises_all_tokens_alike_is_no_score():
    """A neuron along the mean of the unembedding writes no word in particular."""
    model = wrap(tiny("llama"), name="common")
    unembed = model.decoder.unembed
    weight, down = model.decoder.ln_final.weight, model.decoder.blocks[1].mlp.down.weight
    with torch.no_grad():
        unembed += 2.0
        down[7] = 100 * unembed.mean(0) / weight
    for metric in ("zscore", "cosine", "dot"):
        found = search_neurons(model, 5, k=model.n_layers * model.d_mlp, metric=metric)
        place = [(n.layer, n.index) for n in found].index((1, 7))
        assert place > 10
        assert found[0].ranks[0] < 40
    assert search_neurons(model, 5, k=3)[0].ranks[0] <= 3


@pytest.mark.long
@pytest.mark.slow
def test_the_first_neurons_for_paris_write_it(smollm):
    """Not so without centring: there the first two have it at ranks 42,383 and 42,757."""
    found = search_neurons(smollm, " Paris", k=6)
    assert max(n.ranks[0] for n in found) < smollm.d_vocab / 100
    assert found == search_neurons(smollm, [" Paris"], k=6)


def test_equality_neuron_is_found_by_its_word(verification):
    this = search_neurons(verification, "this", k=2)
    assert (this[0].layer, this[0].index, this[0].ranks) == (1, 3, (1,))
    against = search_neurons(verification, ["not"], k=1, sign=-1)[0]
    assert (against.layer, against.index, against.ranks) == (1, 3, (1,))
    assert against.score < -0.5
    elsewhere = search_neurons(verification, ["this"], k=1, layers=[0, 2])[0]
    assert elsewhere.layer != 1


def test_search_refuses(verification):
    for options in ({"k": 0}, {"k": 25}, {"sign": 2}):
        with pytest.raises(InterpError, match="k up to their number"):
            search_neurons(verification, ["this"], **options)
    with pytest.raises(InterpError, match="give words"):
        search_neurons(verification, [])
    with pytest.raises(InterpError, match="cosine"):
        search_neurons(verification, ["this"], metric="cosin")
    with pytest.raises(InterpError, match="one token"):
        search_neurons(verification, ["this not"])


def test_bad_input_is_refused(verification, family_models):
    texts = ["<bos> target 3 ; result 3 (", "<bos> target 4 ; result 3 ("]
    with pytest.raises(InterpError, match="states of the stream"):
        logit_lens(verification, texts, "last", sites=["mlp_out"])
    with pytest.raises(InterpError, match="no sites"):
        logit_lens(verification, texts, "last", sites=[])
    with pytest.raises(InterpError, match="one for each prompt"):
        logit_lens(verification, texts, [-1, -1, -1])
    with pytest.raises(InterpError, match="inside the prompt"):
        logit_lens(verification, texts, [2, 70])
    with pytest.raises(InterpError, match="one label per prompt"):
        logit_lens(verification, texts, "last", groups=["a"])
    with pytest.raises(InterpError, match="2 tokens"):
        logit_lens(verification, texts, "last", words=["this not"])
    with pytest.raises(InterpError, match="tokens 0 to"):
        logit_lens(verification, texts, "last", words=[10_000])
    with pytest.raises(InterpError, match="choose a smaller k"):
        logit_lens(verification, texts, "last", k=0)
    with pytest.raises(InterpError, match="no prompts"):
        logit_lens(verification, [], "last")
    with pytest.raises(InterpError, match="no tokeniser"):
        logit_lens(family_models["llama"], PROMPTS, PLACES, words=["this"])
    with pytest.raises(InterpError, match="no resid_mid"):
        logit_lens(family_models["neox"], PROMPTS, PLACES, sites=["resid_mid"])
    lens = logit_lens(verification, texts, "last", layers=[2], groups=[True, False], words=["this"])
    with pytest.raises(InterpError, match="name one"):
        lens.top(2)
    with pytest.raises(InterpError, match="lens layer"):
        lens.top(1, group="True")
    with pytest.raises(InterpError, match="watched word"):
        lens.rank("not", 2, group="True")
    with pytest.raises(InterpError, match="d_model 64"):
        unembed(verification, torch.zeros(2, 5))
    with pytest.raises(InterpError, match="not finite"):
        unembed(verification, torch.full((64,), float("nan")))


def test_unknown_parts_are_refused_with_the_reason(verification):
    opaque = replace(verification, decoder=None, engine_reason="spread over several devices")
    with pytest.raises(InterpError, match="spread over several devices"):
        logit_lens(opaque, ["<bos> ("], "last")
    with pytest.raises(InterpError, match="spread over several devices"):
        unembed(opaque, torch.zeros(1, 64))
