"""Two sets of prompts: the probes, the direction and the texts are those of plain loops."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.overview.two_sets import contrast
from interp.ui.views.directions import EXAMPLE

FIRST, SECOND = ((str(text)).splitlines() for text in (EXAMPLE.prompt, EXAMPLE.foil))


@pytest.fixture(scope="module")
def found(smollm):
    return contrast(smollm, FIRST, SECOND)


@pytest.mark.long
@pytest.mark.slow
def test_the_direction_is_the_difference_of_means_of_plain_states(smollm, found) -> None:
    hf, layer = smollm.hf_model, 14

    def mean(texts):
        rows = [smollm.tokenize(text).tokens for text in texts]
        with torch.no_grad():
            states = [
                hf(torch.tensor([row]), output_hidden_states=True).hidden_states[layer + 1][0, -1]
                for row in rows
            ]
        return torch.stack(states).double().mean(0)

    want = mean(FIRST) - mean(SECOND)
    assert torch.allclose(found.direction(layer).vector, want, atol=1e-3 * float(want.norm()))
    row = found.to_dataframe().set_index("layer").loc[layer]
    assert row["length"] == pytest.approx(float(want.norm()), rel=1e-3)
    cosine = torch.cosine_similarity(want, found.probes.weights[layer].double(), dim=0)
    assert row["cosine"] == pytest.approx(float(cosine), abs=1e-3)


@pytest.mark.long
@pytest.mark.slow
def test_later_layers_tell_the_sets_apart_and_shuffled_labels_do_not(found) -> None:
    table = found.to_dataframe()
    assert table["auc"].max() == 1.0
    assert abs(table["shuffled_auc"].mean() - 0.5) < 0.15
    assert (table["n_test"] >= 6).all()


@pytest.mark.long
@pytest.mark.slow
def test_texts_are_those_of_a_hook_that_adds_the_direction(smollm, found) -> None:
    layer, strength, prompt = 14, 2.0, "I went to the town and the day was"
    made = found.texts(prompt, layer, strength, max_new_tokens=6)
    assert set(made) == {"plain", "steered", "random direction"}
    vector = strength * found.direction(layer).vector.float()
    handle = smollm.hf_model.model.layers[layer].register_forward_hook(
        lambda module, inputs, output: (
            (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector
        )
    )
    tokens = list(smollm.tokenize(prompt).tokens)
    try:
        with torch.no_grad():
            for _ in range(6):
                tokens.append(int(smollm.hf_model(torch.tensor([tokens])).logits[0, -1].argmax()))
    finally:
        handle.remove()
    assert list(made["steered"].tokens) == tokens[-6:]
    assert made["plain"].tokens == interp.generate(smollm, [prompt], 6)[0].tokens


def test_sets_that_are_small_or_share_a_text_are_refused() -> None:
    model = interp.load_model("toy-induction")
    for first, second, words in (
        (["a"] * 20, ["b"] * 20, "1 and 1 different texts"),
        ([f"a {i}" for i in range(12)], ["a 1", *map(str, range(12))], "1 of them in both"),
    ):
        with pytest.raises(InterpError, match=words):
            contrast(model, first, second)
