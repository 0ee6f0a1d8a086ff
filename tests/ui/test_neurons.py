"""The page Neurons: the ranking, one neuron, where it fires, and the search by word."""

from unittest.mock import Mock

import pytest
from streamlit.testing.v1 import AppTest

import interp
from interp.core.corpus import shipped_passages
from interp.neurons.firing import neuron_firing, strongest_texts
from interp.neurons.search import search_neurons
from interp.neurons.weights import neuron_tokens
from interp.overview import one_prompt
from interp.results.direction import keep_direction
from interp.ui.shared.prompts import EXAMPLE
from tests.pages import asked_on, downloads, named, opened, table_with

NEURONS = "interp/ui/views/neurons.py"
FOIL = "The Tokyo Tower is in the city of"


def looked_at(text: str = EXAMPLE, foil: str = "") -> AppTest:
    return asked_on(NEURONS, text, foil)


@pytest.mark.long
@pytest.mark.parametrize("by", ["attribution", "activation", "answer", "foil"])
def test_the_ranking_is_the_function_s(loaded, by) -> None:
    at = looked_at(foil=FOIL if by == "foil" else "")
    assert not at.error
    named(at.selectbox, "Ranked by").set_value(by).run()
    seen, foil = interp.look(loaded, EXAMPLE), interp.look(loaded, FOIL)
    expected = seen.neurons(20, by=by, foil=foil)
    table = table_with(at, "score")
    assert table["neuron"].tolist() == [str(one.component) for one in expected]
    assert table["score"].tolist() == pytest.approx([one.score for one in expected])
    assert "rank" in table["others of the layer, absolute"][0]
    assert {"CSV", "JSON"} <= downloads(at)


@pytest.mark.long
def test_the_parts_of_a_prompt_are_computed_once_for_all_pages(loaded, monkeypatch) -> None:
    asked_for = Mock(side_effect=one_prompt.logit_parts)
    monkeypatch.setattr(one_prompt, "logit_parts", asked_for)
    looked_at()
    first = asked_for.call_count
    assert first > 0
    at = looked_at()
    assert asked_for.call_count == first
    sums = [
        block.proto.body for block in at.get("html") if "what all parts add" in block.proto.body
    ]
    assert f"{interp.look(loaded, EXAMPLE).attribution().total:+.3f}" in sums[0]
    looked_at("The Louvre is in the city of")
    assert asked_for.call_count > first + 1


def test_without_a_foil_there_is_no_order_by_foil(loaded) -> None:
    assert "foil" not in str(named(looked_at().selectbox, "Ranked by").options)


@pytest.mark.long
def test_a_neuron_typed_by_keyboard_shows_what_it_reads_and_where_it_fires(loaded) -> None:
    at = looked_at()
    named(at.text_input, "Neuron").set_value("L25N100").run()
    assert at.subheader[0].value == "L25N100"
    assert at.query_params["neuron"] in ("L25N100", ["L25N100"])
    table = table_with(at, "part")
    found = neuron_tokens(loaded, "L25N100")
    assert table["part"].tolist() == ["gate reads", "up reads", "writes"]
    for row, part in zip(table["most"], (found.gate, found.up, found.writes), strict=True):
        assert part is not None
        assert row == " ".join(t.text.replace(" ", "␣").replace("\n", "↵") for t in part.promoted)
    (firing,) = neuron_firing(loaded, [EXAMPLE], "L25N100")
    strips = [block.proto.body for block in at.get("html") if "largest" in block.proto.body]
    assert len(strips) == 1
    for i, value in enumerate(firing.activation):
        assert f"token {i}: {value:+.3f}" in strips[0]
    named(at.toggle, "Also in the prompts").set_value(True).run()
    assert not at.exception
    assert len([block for block in at.get("html") if "largest" in block.proto.body]) == 9


@pytest.mark.long
def test_a_neuron_that_is_not_there_is_said(loaded) -> None:
    at = looked_at()
    named(at.text_input, "Neuron").set_value("L99N1").run()
    assert "99" in at.error[0].value
    assert at.dataframe


@pytest.mark.long
def test_the_search_is_the_function_s_and_a_wrong_word_is_said(loaded) -> None:
    at = looked_at()
    table = table_with(at, "rank of ␣Paris")
    expected = search_neurons(loaded, [" Paris"], k=20)
    assert table["neuron"].tolist() == [f"L{one.layer}N{one.index}" for one in expected]
    named(at.text_input, "Words").set_value(" two words").run()
    assert "token" in at.error[0].value


@pytest.mark.long
def test_an_empty_prompt_is_said_and_the_search_works_on(loaded) -> None:
    at = looked_at("")
    assert "0 tokens" in at.error[0].value
    assert len(table_with(at, "rank of ␣Paris")) == 20


def test_firing_is_that_of_a_run_of_each_prompt(family) -> None:
    if family.decoder is None:
        pytest.skip(str(family.engine_reason))
    prompts = [(5, 9, 2, 9), (4, 3)]
    for one, prompt in zip(neuron_firing(family, prompts, "L1N2"), prompts, strict=True):
        sites = [site for site in ("pre", "pre_linear", "post") if not family.sites[site]]
        seen = interp.run_with_cache(family, [prompt], sites=sites, layers=[1])
        assert one.activation == pytest.approx(seen[1, "post"][0, :, 2].numpy(), abs=1e-5)
        assert one.gate == pytest.approx(seen[1, "pre"][0, :, 2].numpy(), abs=1e-5)
        assert (one.up is None) == ("pre_linear" not in sites)
        assert len(one.tokens) == len(prompt)


@pytest.mark.long
def test_the_neurons_of_one_layer_are_ranked_alone(loaded) -> None:
    at = looked_at()
    named(at.selectbox, "Neurons of").set_value(24).run()
    link = dict(at.query_params)
    expected = interp.look(loaded, EXAMPLE).neurons(20, layer=24)
    assert {one.component.layer for one in expected} == {24}
    for visit in (at, opened(NEURONS, **link)):
        assert table_with(visit, "score")["neuron"].tolist() == [
            str(one.component) for one in expected
        ]
    every = interp.look(loaded, EXAMPLE).neurons(loaded.n_layers * loaded.d_mlp)
    of_layer = [one for one in every if one.component.layer == 24][:20]
    assert [one.component for one in of_layer] == [one.component for one in expected]


@pytest.mark.long
def test_the_words_of_a_search_are_in_the_link(loaded) -> None:
    at = looked_at()
    named(at.text_input, "Words").set_value(" London").run()
    named(at.button_group, "Neurons that").set_value("write against them").run()
    again = opened(NEURONS, **dict(at.query_params))
    found = search_neurons(loaded, [" London"], k=20, sign=-1)
    shown = [f"L{one.layer}N{one.index}" for one in found]
    for visit in (at, again):
        assert table_with(visit, "against")["neuron"].tolist()[:20] == shown
    named(again.text_input, "Words").set_value("").run()
    assert "searched" not in again.query_params
    assert not again.error


@pytest.mark.long
def test_neurons_are_ranked_along_a_kept_direction(loaded) -> None:
    mood = interp.mean_difference(loaded, [EXAMPLE], [FOIL], layer=15)
    keep_direction("mood", mood)
    at = looked_at()
    named(at.selectbox, "Ranked by").set_value("direction mood").run()
    assert not at.error
    expected = interp.look(loaded, EXAMPLE).neurons(20, by="direction", direction=mood)
    table = table_with(at, "score")
    assert table["neuron"].tolist() == [str(one.component) for one in expected]
    assert table["score"].tolist() == pytest.approx([one.score for one in expected])
    exec(at.code[-1].value.replace("interp.load_model", "(lambda *a, **b: loaded)"),
         {"loaded": loaded})  # fmt: skip  # noqa: S102


@pytest.mark.long
def test_the_texts_in_which_a_neuron_fires_most_are_the_function_s(loaded, monkeypatch) -> None:
    few = tuple(shipped_passages()[:6])
    monkeypatch.setattr("interp.neurons.firing.shipped_passages", lambda: few)
    at = looked_at()
    named(at.text_input, "Neuron").set_value("L25N100").run()
    named(at.toggle, "Texts in which").set_value(True).run()
    assert not at.exception
    found = strongest_texts(loaded, "L25N100", few)
    strips = [block.proto.body for block in at.get("html") if "passage" in block.proto.body]
    assert [f"passage {n} " in x for n, x in zip(found.numbers, strips, strict=True)] == [True] * 5
    for one, strip in zip(found.texts, strips, strict=True):
        assert f"token 1: {one.activation[1]:+z.3f}" in strip
    assert any("of 6 short passages" in caption.value for caption in at.caption)
