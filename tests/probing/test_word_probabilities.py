"""Probabilities of word sets: toys, a softmax by hand, interventions, refusals."""

import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from interp.core.errors import InterpError
from interp.models.loading import load_model, wrap
from interp.probing.word_probabilities import WORD_PAIRS, paired_word_probs
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.tasks.registry import load_task
from tests.families import tiny


@pytest.fixture(scope="module")
def switch():
    return load_model("toy-or")


@pytest.fixture(scope="module")
def speller():
    """A tiny llama that spells: letters and space, "no" and " Yes" whole; token 0 unknown."""
    tokens = ["<unk>", "Ġ", "y", "e", "s", "n", "o", "Y", "N", "no", "No", "Ye", "Yes", "ĠYes"]
    merges = [("n", "o"), ("N", "o"), ("Y", "e"), ("Ye", "s"), ("Ġ", "Yes")]
    bpe = BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    return wrap(tiny("llama"), fast, name="speller", check=False), tokens


def test_a_toy_says_yes_where_a_status_is_on(switch):
    """Correct and incorrect prompts alike; the toy's logits are 5 and 0, within a softmax."""
    task = load_task("toy-or")
    on = paired_word_probs(switch, task)
    off = paired_word_probs(switch, [pair.corrupted for pair in task.pairs])
    assert on.n == off.n == len(task)
    assert (on.share_positive > 0.95).all()
    assert (off.share_positive < 0.05).all()
    np.testing.assert_allclose(on.share_positive, 1 / (1 + math.exp(-5)), atol=0.01)


def test_against_a_softmax_by_hand(switch):
    prompts = [pair.clean for pair in load_task("toy-or").pairs[:5]]
    found = paired_word_probs(switch, prompts, ("yes", "lamp"), ("no",))
    vocabulary = switch.tokenizer.get_vocab()
    for i, prompt in enumerate(prompts):
        logits = switch.last_logits([switch.tokenize(prompt).tokens])[0].tolist()
        total = sum(math.exp(x) for x in logits)
        plus = sum(math.exp(logits[vocabulary[word]]) for word in ("yes", "lamp")) / total
        minus = math.exp(logits[vocabulary["no"]]) / total
        assert found.p_positive[i] == pytest.approx(plus, rel=1e-5)
        assert found.p_negative[i] == pytest.approx(minus, rel=1e-5)
        assert found.share_positive[i] == pytest.approx(plus / (plus + minus), rel=1e-5)
        assert found.mass[i] == pytest.approx(plus + minus, rel=1e-5)


def test_a_token_counts_once_however_it_is_spelled(switch):
    """This tokeniser drops spaces: "yes" and " yes" are one token."""
    prompts = ["<bos> lamp on ; fan on ; answer:"]
    with_variants = paired_word_probs(switch, prompts)
    plain = paired_word_probs(switch, prompts, variants=False)
    assert set(with_variants.positive_tokens) == {"yes", " yes"}
    assert with_variants.p_positive == plain.p_positive
    assert with_variants.dropped == ("Yes", " Yes", "No", " No")
    assert plain.dropped == ()
    twice = paired_word_probs(switch, prompts, ("yes", "yes"))
    assert twice.p_positive == plain.p_positive


def test_spellings_of_several_tokens_are_dropped_and_listed(speller):
    model, tokens = speller
    found = paired_word_probs(model, [(5, 6, 7), (8, 9)])
    at = {token.replace("Ġ", " "): i for i, token in enumerate(tokens)}
    assert found.positive_tokens == {"Yes": at["Yes"], " Yes": at[" Yes"]}
    assert found.negative_tokens == {"no": at["no"], "No": at["No"]}
    assert found.dropped == ("yes", " yes", " no", " No")
    p = model.last_logits([(5, 6, 7), (8, 9)]).double().softmax(-1)
    np.testing.assert_allclose(found.p_positive, (p[:, at["Yes"]] + p[:, at[" Yes"]]).numpy())
    np.testing.assert_allclose(found.p_negative, (p[:, at["no"]] + p[:, at["No"]]).numpy())


def test_before_and_after_an_intervention(switch):
    """Either detector suffices; without both the toy no longer says yes."""
    prompts = [pair.clean for pair in load_task("toy-or").pairs]
    before = paired_word_probs(switch, prompts)
    with intervene(switch, [zero("L0H1")]):
        one = paired_word_probs(switch, prompts)
    with intervene(switch, [zero("L0H1"), zero("L0H2")]) as report:
        both = paired_word_probs(switch, prompts)
    after = paired_word_probs(switch, prompts)
    assert report.fired[0].tokens > 0
    assert (one.share_positive > 0.9).all()
    assert (both.share_positive < 0.1).all()
    np.testing.assert_array_equal(before.share_positive, after.share_positive)


def test_means_are_over_all_prompts(switch):
    prompts = [p for pair in load_task("toy-or").pairs for p in (pair.clean, pair.corrupted)]
    found = paired_word_probs(switch, prompts)
    assert found.n == len(prompts)
    mean = found.means["share_positive"]
    assert mean.n == len(prompts)
    assert mean.mean == pytest.approx(found.share_positive.mean())
    expected = found.share_positive.std(ddof=1) / math.sqrt(len(prompts))
    assert found.stderr["share_positive"] == pytest.approx(expected)
    assert set(found.means) == set(found.stderr)
    table = found.to_dataframe()
    assert len(table) == len(prompts)
    np.testing.assert_array_equal(table.p_negative, found.p_negative)
    one = paired_word_probs(switch, prompts[:1])
    assert math.isnan(one.stderr["mass"])
    assert one.means["mass"].high == math.inf


def test_shares_survive_masses_that_underflow(switch, monkeypatch):
    logits = torch.zeros(1, switch.d_vocab)
    logits[0, 0] = 5000
    logits[0, switch.token_id("yes")[0]] = math.log(3)
    monkeypatch.setattr(type(switch), "last_logits", lambda *args, **options: logits)
    found = paired_word_probs(switch, ["<bos>"])
    assert found.mass == 0
    assert found.share_positive == pytest.approx(0.75)


def test_published_pairs():
    assert len(WORD_PAIRS) == len({word for pair in WORD_PAIRS for word in pair}) / 2 == 12
    assert WORD_PAIRS[0] == ("yes", "no")


def test_refusals(switch, speller):
    prompt = ["<bos> lamp on"]
    refused = [
        ((prompt, ("yes",), ("yes",)), "in both"),
        ((prompt, (), ("no",)), "empty"),
        (([], ("yes",), ("no",)), "no prompts"),
        ((prompt, ("yes",), ("banana",)), "none of.*banana"),
    ]
    for arguments, message in refused:
        with pytest.raises(InterpError, match=message):
            paired_word_probs(switch, *arguments)
    with pytest.raises(InterpError, match="'yes' in speller"):
        paired_word_probs(speller[0], [(5, 6)], variants=False)
    with pytest.raises(InterpError, match="no tokeniser"):
        paired_word_probs(wrap(tiny("llama"), name="mute", check=False), [(5, 6)])
    broken = wrap(tiny("llama"), speller[0].tokenizer, name="broken", check=False)
    broken.decoder.unembed.fill_(math.nan)
    with pytest.raises(InterpError, match="not finite"):
        paired_word_probs(broken, [(5, 6)])
