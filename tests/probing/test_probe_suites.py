"""The suite: each cell is one probe on the same sentences, and two equal models do not differ."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as t
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers import models as token_models

from interp.core.errors import InterpError
from interp.core.nulls import holm
from interp.models.loading import wrap
from interp.probing.class_probes import probe_classes
from interp.probing.output_signatures import output_signature
from interp.probing.probe_suites import ProbeSuite, averaged_embeddings, probe_suite
from interp.probing.sentence_tasks import SentenceTask, probe_sentences
from interp.runs.capture import run_with_cache
from tests.families import tiny

N = 80


def made(words, seed, equal=None):
    """A random Llama that reads these words; two of them may have one embedding."""
    vocabulary = {word: i for i, word in enumerate([*words, "<unk>"])}
    tokenizer = Tokenizer(token_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[.]"), "removed", invert=True)
    torch.manual_seed(seed)
    config = t.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64,
        initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = t.LlamaForCausalLM(config).eval()
    if equal is not None:
        table = model.model.embed_tokens.weight.data
        table[equal[1]] = table[equal[0]]
    fast = t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    return wrap(model, fast, name=f"words-{seed}-{equal}")


@pytest.fixture(scope="module")
def tasks():
    return [probe_sentences(name, n=N, test_share=0.5) for name in ("tense", "bigram_shift")]


@pytest.fixture(scope="module")
def models(tasks):
    words = sorted({w for one in tasks for x in one.sentences for w in x.text[:-1].split()} | {"."})
    return [made(words, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def suite(models, tasks):
    return probe_suite(models[0], against=models[1], tasks=tasks, layers=[0, 2], shuffles=4)


def test_a_cell_is_one_probe(suite, models, tasks):
    for one in tasks:
        texts, labels, test = zip(*((x.text, x.label, x.test) for x in one.sentences), strict=True)
        for model, found in zip(models, (suite.tasks, suite.base), strict=True):
            seen = run_with_cache(model, texts, sites="resid_post", layers=[0, 2], positions="last")
            for at, layer in enumerate((0, 2)):
                wanted = probe_classes(seen[layer, "resid_post"], labels, test=test, shuffles=4)
                states = found[one.name].states
                assert states.values[at] == pytest.approx(float(wanted.values), abs=0.051)
                assert (states.predicted[at] == wanted.predicted).mean() > 0.9
            outputs = output_signature(model, texts).vectors()
            wanted = probe_classes(outputs, labels, test=test, shuffles=4)
            assert (found[one.name].outputs.predicted == wanted.predicted).mean() > 0.9
            assert found[one.name].states.n_test == N / 2


def test_words_are_averaged_without_order(models, tasks):
    model, shifted = models[0], tasks[1]
    texts = [one.text for one in shifted.sentences[:6]]
    found = averaged_embeddings(model, texts)
    for row, text in zip(found, texts, strict=True):
        tokens = model.tokenize(text).tokens
        table = model.hf_model.get_input_embeddings().weight
        slow = sum(table[token].detach().double() for token in tokens) / len(tokens)
        torch.testing.assert_close(row, slow)
    mixed = " ".join(reversed(texts[0][:-1].split())) + "."
    torch.testing.assert_close(averaged_embeddings(model, [mixed])[0], found[0])


def test_differences_are_paired_and_corrected(suite, models, tasks):
    apart = suite.differences
    for name, found in apart.items():
        hits = [
            part[name].states.predicted == part[name].states.truth
            for part in (suite.tasks, suite.base)
        ]
        np.testing.assert_allclose(found.values, hits[0].mean(1) - hits[1].mean(1))
    assert list(suite.p_of_differences.values()) == holm([one.p_any for one in apart.values()])
    same = probe_suite(models[0], against=models[0], tasks=tasks[0], layers=[1], shuffles=1)
    assert same.differences["tense"].values.tolist() == [0.0]
    assert same.p_of_differences == {"tense": 1.0}


@pytest.mark.long
def test_a_model_that_lost_a_word_is_found_to_have_lost_it(models):
    """Layers that see a planted word read it; those of a model whose embeddings lack it do not."""
    task = probe_sentences("tense", n=400)
    marked = SentenceTask(
        name="marked",
        sentences=tuple(
            replace(x, label="they" if i % 2 else "it") for i, x in enumerate(task.sentences)
        ),
    )
    marked = replace(
        marked,
        sentences=tuple(replace(x, text=f"{x.text[:-1]} and {x.label}.") for x in marked.sentences),
    )
    words = sorted({w for x in marked.sentences for w in x.text[:-1].split()} | {"."})
    kept = made(words, 0)
    lost = made(words, 0, equal=(words.index("it"), words.index("they")))
    found = probe_suite(kept, against=lost, tasks=marked, shuffles=19)
    one, other = found.tasks["marked"], found.base["marked"]
    assert one.states.p_any == 1 / 20
    assert one.states.low.max() > 0.6
    assert other.states.p_any > 1 / 20
    assert found.differences["marked"].better.any()
    assert found.p_of_differences["marked"] < 0.05
    assert one.words.p_any == 1 / 20
    assert other.words.p_any > 1 / 20


def test_a_suite_is_saved_tabled_and_drawn(suite, tmp_path):
    back = ProbeSuite.load(suite.save(tmp_path / "suite"))
    assert (back.tasks["tense"].states.values == suite.tasks["tense"].states.values).all()
    table = suite.to_dataframe()
    assert len(table) == 4
    row = table[(table["task"] == "bigram_shift") & (table["layer"] == 2)].iloc[0]
    one = suite.tasks["bigram_shift"]
    assert row["accuracy"] == one.states.values[1]
    assert row["words"] == one.words.values
    assert row["beyond_outputs"] == pytest.approx(one.states.values[1] - one.outputs.values)
    assert row["difference"] == pytest.approx(
        one.states.values[1] - suite.base["bigram_shift"].states.values[1]
    )
    assert [trace.name for trace in suite.plot().data] == ["tense", "bigram_shift"]
    assert "tense" in repr(suite)


def test_progress_and_one_model(models, tasks):
    seen = []
    alone = probe_suite(
        models[0], tasks=tasks, layers=1, shuffles=1,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 2), (2, 2)]
    assert "difference" not in alone.to_dataframe()
    with pytest.raises(InterpError, match="against"):
        _ = alone.differences


def test_bad_input_is_refused(models, tasks):
    model = models[0]
    for given in (
        {"tasks": "syntax"},
        {"tasks": []},
        {"tasks": [tasks[0], tasks[0]]},
        {"tasks": 5},
        {"tasks": tasks, "layers": [3]},
        {"tasks": tasks, "folds": 4},
        {"tasks": tasks, "shuffles": 0},
        {"tasks": tasks, "kind": "forest"},
        {"tasks": "tense", "n": 3},
        {"tasks": tasks, "sentence_seed": -1.5},
        {"tasks": tasks, "against": "another"},
    ):
        with pytest.raises(InterpError):
            pytest.fail(f"{given} was accepted: {probe_suite(model, **given)}")
    with pytest.raises(InterpError, match="no tokeniser"):
        probe_suite(wrap(tiny("llama"), name="mute"), tasks=tasks, shuffles=1)
