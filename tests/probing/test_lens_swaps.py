"""Swaps of words along a lens: against single hooked runs, a planted effect, and chance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.probing.lens_changes import swap_words
from interp.probing.lens_maps import identity_lens, lens_controls
from interp.probing.lens_swaps import SwapCase, known_cases, swap_answers
from tests.words import WORDS, jacobian_lens, word_model

CASES = [
    SwapCase(
        prompt=f"waa {WORDS[i]} wab",
        source=f" {WORDS[i]}",
        target=f" {WORDS[i + 1]}",
        answer=f" {WORDS[i + 10]}",
        wanted=f" {WORDS[i + 11]}",
    )
    for i in range(2, 8)
]


@pytest.fixture(scope="module")
def words():
    return word_model()


@pytest.fixture(scope="module")
def maps(words):
    halves = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(1))
    return jacobian_lens(words, halves, texts=2)


@pytest.mark.parametrize("gauge", ["raw", "centred"])
def test_equals_single_runs(words, maps, gauge):
    """The lens and every lens that controls it, one case and one layer at a time, by hooks."""
    found = swap_answers(words, CASES[:3], maps, gauge=gauge, strength=1.5)
    used = {"jacobian": maps, **lens_controls(maps, words)}
    assert found.lenses == (*used, "another word", "random directions")

    def odds(case):
        logits = words.last_logits([case.prompt])[0].double().log_softmax(-1)
        wanted, answer = (words.single_token(word) for word in (case.wanted, case.answer))
        return float(logits[wanted] - logits[answer]), int(logits.argmax()) == wanted

    for i, case in enumerate(CASES[:3]):
        plain, _ = odds(case)
        for name, lens in used.items():
            for j, layer in enumerate((0, 1)):
                options = {"layers": layer, "gauge": gauge, "strength": 1.5}
                swap = swap_words(words, lens, case.source, case.target, **options)
                with interp.intervene(words, [swap]):
                    changed, turned = odds(case)
                row = found.lenses.index(name)
                assert found.moved[row, j, i] == pytest.approx(changed - plain, abs=1e-5)
                assert found.turned[row, j, i] == turned


def test_a_planted_word_is_swapped():
    """A model that repeats its last token: at its last layer a swap of the words turns it."""
    model = word_model()
    for block in model.hf_model.model.layers:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    model.hf_model.lm_head.weight.data.copy_(model.hf_model.model.embed_tokens.weight.data)
    model = replace(model)
    cases = [
        SwapCase(prompt=f"waa {a}", source=f" {a}", target=f" {b}", answer=f" {a}", wanted=f" {b}")
        for a, b in zip(WORDS[2:8], WORDS[3:9], strict=True)
    ]
    found = swap_answers(model, cases, identity_lens(model, [1]))
    assert found.share(1).mean == 1
    assert found.estimate(1).low > 5
    for control in ("another word", "random directions"):
        assert found.share(1, control).mean == 0
        assert found.gain(1, control).low > 2


def test_random_lenses_turn_nothing(words, maps):
    """The partner: along a random lens nothing is found beyond random directions."""
    found = swap_answers(words, CASES, maps)
    for layer in found.layers:
        gain = found.gain(layer, "random directions")
        assert gain.low < 0 < gain.high
    assert found.turned[0].sum() <= 1


def test_cases_that_the_model_knows(words):
    """Kept are pairs of single tokens whose answer is the likeliest one."""
    best = words.last_logits([f"waa {word}" for word in WORDS]).argmax(-1).tolist()
    said = [words.strings([token])[0].strip() for token in best]
    pairs = [(word, answer) for word, answer in zip(WORDS, said, strict=True)]
    spaced = [f" {a}" == words.strings([b])[0] for (_, a), b in zip(pairs, best, strict=True)]
    right = [pair for pair, fits in zip(pairs, spaced, strict=True) if fits]
    assert len({answer for _, answer in right}) > 1
    wrong = [(WORDS[0], "waa wab"), (WORDS[1], WORDS[39] if said[1] != WORDS[39] else WORDS[38])]
    found = known_cases(words, "waa {}", [*wrong, *right])
    assert {case.answer for case in found} <= {f" {answer}" for _, answer in right}
    for case in found:
        assert case.wanted != case.answer
        assert case.prompt == f"waa{case.source}"
        assert case.target != case.source


def test_frames_and_figures(words, maps):
    found = swap_answers(words, CASES, maps)
    assert len(found.to_dataframe()) == 7 * 2
    assert {t.name for t in found.plot().data} >= {*found.lenses}
    assert repr(found).startswith("LensSwaps(jacobian, centred gauge, n=6 cases; most at layer ")
    assert "\n" not in repr(found)


def test_bad_input_is_refused(words, maps):
    with pytest.raises(InterpError, match="1 cases"):
        swap_answers(words, CASES[:1], maps)
    with pytest.raises(InterpError, match="one of its words"):
        swap_answers(words, [CASES[0], CASES[0]], maps)
    with pytest.raises(InterpError, match="it was fitted on"):
        swap_answers(words, CASES, replace(maps, model_hash="0" * 64))
    with pytest.raises(InterpError, match="no place for the word"):
        known_cases(words, "waa", [("waa", "wab")])
    with pytest.raises(InterpError, match="0 of 1 pairs"):
        known_cases(words, "waa {}", [("xx", "yy")])
    found = swap_answers(words, CASES[:3], maps)
    with pytest.raises(InterpError, match="lens layer"):
        found.estimate(2)
    with pytest.raises(InterpError, match="lens 'none'"):
        found.gain(1, "none")
    assert np.isfinite(found.moved).all()
