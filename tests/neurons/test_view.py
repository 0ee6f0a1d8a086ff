"""A neuron looked at: its weights as tokens, and where it fires."""

import pytest

from interp.core.errors import InterpError
from interp.neurons.view import view_neuron
from interp.neurons.weights import neuron_tokens
from interp.runs.capture import run_with_cache

PROMPTS = [(5, 6, 7), (11, 12)]


def test_it_fires_where_its_activation_is(family):
    view = view_neuron(family, "L1N3", PROMPTS, k=5)
    seen = run_with_cache(family, PROMPTS, sites="post")["L1N3"]
    expected = [float(seen[i, p]) for i, row in enumerate(PROMPTS) for p in range(len(row))]
    assert [one.value for one in view.fires] == sorted(expected, key=abs, reverse=True)
    first = view.fires[0]
    assert first.value == float(seen[first.prompt, first.position])
    assert first.text == family.strings(PROMPTS[first.prompt])[first.position]
    assert view.tokens == neuron_tokens(family, 1, 3, k=5)
    gated = family.decoder.blocks[1].mlp.up is not None
    assert view.to_dataframe().shape == (5, 6 if gated else 4)
    assert "L1N3 reads" in view._repr_html_()
    assert len(view.plot().data[0].x) == 10


def test_without_prompts_it_shows_the_weights_alone(family_models):
    assert view_neuron(family_models["llama"], "L1N3").fires == []
    with pytest.raises(InterpError, match="neurons"):
        view_neuron(family_models["llama"], "L1N9999")
    with pytest.raises(InterpError, match="neurons such as"):
        view_neuron(family_models["llama"], "L1H1")
