"""Readings of one prompt equal the plain computations through hooks."""

import json
from contextlib import nullcontext
from dataclasses import replace
from html import escape

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.core.statistics import widened
from interp.models.loading import wrap
from interp.models.unembedding import unembed
from interp.neurons.firing import neuron_firing
from interp.overview.one_prompt import HEAD_METRICS, Look, look
from interp.plots.style import escaped
from interp.probing.lens import logit_lens
from interp.results.direction import Direction
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from tests.families import tiny

PROMPT = (5, 9, 2, 9, 11, 3)


@pytest.fixture
def seen(family) -> Look:
    if family.decoder is None:
        pytest.skip(str(family.engine_reason))
    return look(family, PROMPT)


@pytest.fixture
def dense(seen) -> Look:
    """Of a model whose MLPs have neurons."""
    if seen.run.model.sites["post"] is not None:
        pytest.skip(seen.run.model.sites["post"])
    return seen


def test_next_tokens_are_the_model_s(seen):
    expected = widened(seen.run.model.last_logits([PROMPT[:4]])[0]).softmax(-1).topk(5)
    found = seen.next_tokens(5, position=3)
    assert [token.token for token in found] == expected.indices.tolist()
    np.testing.assert_allclose([t.value for t in found], expected.values, rtol=1e-4)


def test_the_lens_is_the_same_by_token_and_by_call(seen):
    """Look's, the call on one prompt, and the call on each token by itself."""
    model, lens, n = seen.run.model, seen.lens, len(PROMPT)
    answer = [seen.attribution().answer, seen.attribution().wrong]
    called = logit_lens(model, PROMPT, k=10, words=answer)
    assert lens.prompt == called.prompt == model.tokenize(PROMPT).strings
    assert lens.groups == called.groups == tuple(map(str, range(n)))
    for name in ("top_mean", "word_probability", "word_rank"):
        torch.testing.assert_close(getattr(lens, name), getattr(called, name), rtol=1e-4, atol=1e-6)
    for place in range(n):
        alone = logit_lens(model, [PROMPT], place, k=10, words=answer)
        torch.testing.assert_close(
            called.top_mean[:, :, place], alone.top_mean[:, :, 0], rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(called.word_rank[:, :, place], alone.word_rank[:, :, 0])
        assert called.top(1, group=str(place))[0].token == alone.top(1)[0].token
    assert called.top(1)[0] == called.top(1, group=str(n - 1))[0]
    table, words = called.plot(columns=slice(1, 4)).data[:2]
    assert np.shape(table.z) == (model.n_layers, 3)
    assert words.text[0] == escaped(called.texts[0][1])
    assert escape(called.texts[-1][-1]) in lens._repr_html_()
    assert len(repr(lens)) < 200


def test_head_attention_by_hand(family_models):
    model = family_models["llama"]
    seen = look(model, PROMPT)
    patterns = run_with_cache(model, [PROMPT], sites=["pattern"])
    pattern = patterns[1, "pattern"][0, :, 1].double().numpy()  # (query, key)
    np.testing.assert_allclose(seen.pattern(1, 1), pattern, atol=1e-6)
    previous = np.mean([pattern[q, q - 1] for q in range(1, 6)])
    entropy = np.mean([-(row[row > 0] * np.log(row[row > 0])).sum() for row in pattern])
    expected = {
        "to chosen token": pattern[5, 2],
        "to previous token": previous,
        "to first token": pattern[1:, 0].mean(),
        "to current token": np.diag(pattern)[1:].mean(),
        "to same token": pattern[3, 1],
        "to token after same token": pattern[3, 2],
        "entropy": entropy,
    }
    assert {*expected} == {*HEAD_METRICS}
    for metric, value in expected.items():
        assert seen.head_attention(metric, token=2)[1, 1] == pytest.approx(value, abs=1e-6)
    chosen = seen.head_attention(token=1, position=4)[1, 1]
    assert chosen == pytest.approx(pattern[4, 1], abs=1e-6)


def test_neurons_add_what_their_output_adds(dense):
    model = dense.run.model
    hidden = {}
    for neuron in dense.neurons(4):
        layer, index = neuron.component.layer, neuron.component.index
        acts = run_with_cache(model, [PROMPT], sites=["post"], layers=[layer], positions="last")
        assert neuron.activation == pytest.approx(float(acts[layer, "post"][0, index]), abs=1e-5)
        hidden[neuron.component] = neuron.value
        if model.decoder.blocks[layer].ln2_post is None:
            weights = model.decoder.blocks[layer].mlp.down.weight[index]
            (alone,) = unembed(model, weights, k=5, norm=True)
            for found, expected in (
                (neuron.writes.promoted, alone.promoted),
                (neuron.writes.suppressed, alone.suppressed),
            ):
                assert [token.token for token in found] == [token.token for token in expected]
    sizes = [abs(value) for value in hidden.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_norms_and_json(seen):
    model = seen.run.model
    sites = run_with_cache(model, [PROMPT], sites=["resid_pre", "resid_post"])
    expected = [sites[layer, "resid_pre"][0].norm(dim=-1) for layer in range(model.n_layers)]
    expected.append(sites[model.n_layers - 1, "resid_post"][0].norm(dim=-1))
    np.testing.assert_allclose(seen.norms, torch.stack(expected), rtol=1e-4)
    found = json.loads(json.dumps(seen.to_dict()))
    assert found["difference"]["sum_of_parts"] == pytest.approx(
        found["difference"]["logits"], abs=1e-4
    )
    assert len(repr(seen)) < 250
    assert "probability" in seen._repr_html_()


def test_a_neuron_alone_in_its_layer_has_no_null() -> None:
    hf = tiny("llama")
    for layer in hf.model.layers:
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            part.weight = torch.nn.Parameter(part.weight[:1])
        layer.mlp.down_proj.weight = torch.nn.Parameter(layer.mlp.down_proj.weight[:, :1])
    hf.config.intermediate_size = 1
    model = wrap(hf, name="one-neuron")
    found = look(model, PROMPT)
    assert [one.null for one in found.neurons(2)] == [None, None]
    assert len(found.to_dict()["neurons"]) == model.n_layers


def test_bad_input_is_refused(family_models):
    model = family_models["llama"]
    with pytest.raises(InterpError, match="metric of attention 'to last'"):
        look(model, PROMPT).head_attention("to last")
    with pytest.raises(InterpError, match="no token of this prompt has one"):
        look(model, (5, 9, 2)).head_attention("to same token")
    with pytest.raises(InterpError, match="layer"):
        look(model, PROMPT).pattern(99, 0)
    with pytest.raises(InterpError):
        look(model, ())


def direction_of(model, layer: int) -> Direction:
    """A direction of random numbers."""
    generator = torch.Generator().manual_seed(layer)
    vector = torch.randn(model.d_model, generator=generator, dtype=torch.float64)
    return Direction(
        vector=vector, kind="behaviour", site="resid_post", layer=layer, position=-1, sign=1,
        n=(2, 2), model_hash=model.hash,
    )  # fmt: skip


def test_orders_of_neurons_by_hand(dense):
    model, decoder = dense.run.model, dense.run.decoder
    foil = look(model, (4, 5, 9))
    parts, direction = dense.attribution(position=3), direction_of(model, 1)
    unembed_rows = decoder.unembed.double()
    answer = (unembed_rows[parts.answer] - unembed_rows[parts.wrong]) * decoder.ln_final.weight
    acts, other = (
        run_with_cache(model, [prompt], sites=["post", "resid_post"])
        for prompt in (PROMPT, (4, 5, 9))
    )
    for layer in range(model.n_layers):
        block = decoder.blocks[layer]
        out = block.mlp.down.weight.double()
        out = out if block.ln2_post is None else out * block.ln2_post.weight
        moved = acts[layer, "resid_post"][0, 3] - other[layer, "resid_post"][0, 0]
        expected = {
            "activation": acts[layer, "post"][0, 3].double(),
            "answer": torch.cosine_similarity(out, answer[None].double(), dim=-1),
            "foil": torch.cosine_similarity(out, moved[None].double(), dim=-1),
            "direction": torch.cosine_similarity(out, direction.vector[None], dim=-1),
        }
        for by, values in expected.items():
            found = dense.neurons(
                model.d_mlp * model.n_layers, position=3, by=by, foil=foil, direction=direction
            )
            sizes = [abs(one.score) for one in found]
            assert sizes == sorted(sizes, reverse=True)
            for one in found:
                if one.component.layer == layer:
                    assert one.score == pytest.approx(float(values[one.component.index]), abs=1e-5)
                    assert one.null.draws == model.d_mlp - 1


def test_neurons_by_what_is_not_there_are_refused(family_models):
    seen = look(family_models["llama"], PROMPT)
    for by in ("foil", "size", "direction"):
        with pytest.raises(InterpError):
            seen.neurons(by=by)
    other = replace(direction_of(seen.run.model, 0), model_hash="of another model")
    with pytest.raises(InterpError, match="model"):
        seen.neurons(by="direction", direction=other)


def test_a_long_prompt_is_refused_before_its_patterns_fill_the_memory(family_models, monkeypatch):
    seen = look(family_models["llama"], PROMPT)
    monkeypatch.setattr("interp.overview.one_prompt.MOST_GB", 4 * 6 * 6 * 4 / 1e9)
    with pytest.raises(InterpError, match="6 tokens"):
        _ = seen.patterns
    assert seen.pattern(0, 0).shape == (6, 6)


@pytest.mark.parametrize("changed", [False, True])
def test_a_neuron_fires_as_through_hooks(family, changed):
    if family.sites["post"] is not None:
        pytest.skip(family.sites["post"])
    with intervene(family, zero("L0H0")) if changed else nullcontext():
        found = look(family, PROMPT).firing("L1N3")
        (expected,) = neuron_firing(family, [PROMPT], "L1N3")
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.activation, expected.activation, atol=1e-5)
    np.testing.assert_allclose(found.gate, expected.gate, atol=1e-5)
    assert (found.up is None) == (expected.up is None)
    if found.up is not None:
        np.testing.assert_allclose(found.up, expected.up, atol=1e-5)
