"""Where a neuron fires in a corpus: beside every text run by itself."""

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.neurons.firing import BATCH, neuron_firing, strongest_texts

NEURON = "L1N3"


def test_the_strongest_texts_are_those_of_all_texts_run_one_by_one(family_models):
    model, random = family_models["llama"], np.random.default_rng(0)
    sizes = random.integers(2, 7, 2 * BATCH + 3)
    corpus = [tuple(map(int, random.integers(1, 9, size))) for size in sizes]
    found = strongest_texts(model, NEURON, corpus, k=4)
    every = [neuron_firing(model, [text], NEURON)[0].activation for text in corpus]
    peaks = [float(np.abs(values[1:]).max()) for values in every]
    order = sorted(range(len(corpus)), key=lambda i: -peaks[i])[:4]
    want = [peaks[i] for i in order]
    assert [float(np.abs(x.activation[1:]).max()) for x in found.texts] == pytest.approx(want)
    for number, text in zip(found.numbers, found.texts, strict=True):
        assert text.activation == pytest.approx(every[number], abs=1e-6)
    assert found.n == len(corpus)
    flat = np.abs(np.concatenate([values[1:] for values in every]))
    assert found.usual == pytest.approx(np.quantile(flat, (0.5, 0.99)), abs=1e-6)
    assert f"n={len(corpus)} texts" in repr(found)


def test_no_texts_no_neuron_and_no_k_are_refused(family_models):
    model = family_models["llama"]
    with pytest.raises(InterpError, match="the corpus is empty"):
        strongest_texts(model, NEURON, [])
    with pytest.raises(InterpError):
        strongest_texts(model, "L99N0", [(1, 2)])
    with pytest.raises(InterpError, match="strongest texts"):
        strongest_texts(model, NEURON, [(1, 2)], k=0)
