"""Encoding and decoding equal slow loops; what does not fit is refused."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.features.activations import feature_activations, view_feature
from interp.features.dictionary import Dictionary
from interp.runs.capture import run_with_cache
from tests.families import random_task, tiny
from tests.features.made import random_dictionary

PROMPTS = [(5, 6, 7, 8), (9, 10, 11)]

KINDS = {
    "relu": {},
    "topk": {"kind": "topk", "k": 3},
    "jumprelu": {"kind": "jumprelu", "threshold": torch.linspace(-0.1, 0.5, 40)},
    "batch_topk": {"kind": "batch_topk", "threshold": torch.full((40,), 0.3)},
    "signed topk": {"kind": "topk", "k": 30, "signed": True},
    "signed jumprelu": {"kind": "jumprelu", "threshold": torch.full((40,), -0.5), "signed": True},
    "centred": {"centred": True},
}


def slow(dictionary, x):
    """Every feature of one token by itself."""
    d = dictionary
    pre = []
    for i in range(d.size):
        total = float(d.b_enc[i])
        for j in range(len(x)):
            total += (float(x[j]) - (float(d.b_dec[j]) if d.centred else 0)) * float(d.W_enc[j, i])
        pre.append(total)
    found = []
    for i, value in enumerate(pre):
        if d.kind == "topk":
            active = sum(other > value for other in pre) < d.k
        elif d.kind == "relu":
            active = value > 0
        else:
            active = value > float(d.threshold[i])
        found.append(value if active and (value > 0 or d.signed) else 0.0)
    return found


@pytest.mark.parametrize("name", list(KINDS))
def test_encode_equals_a_loop(family_models, name):
    dictionary = random_dictionary(family_models["llama"], **KINDS[name])
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    right = torch.tensor([slow(dictionary, row) for row in x])
    assert 0 < (right != 0).sum() < right.numel()
    if "signed" in name:
        assert (right < 0).any()
    torch.testing.assert_close(dictionary.encode(x), right, atol=1e-5, rtol=1e-5)


def test_decode_adds_rows_bias_and_skip(family_models):
    skip = torch.randn(32, 32)
    dictionary = random_dictionary(family_models["llama"], skip=skip)
    x, features = torch.randn(2, 32), torch.zeros(2, 40)
    features[0, 3], features[1, 7] = 2.0, -1.0
    right = torch.stack([2 * dictionary.W_dec[3], -dictionary.W_dec[7]]) + dictionary.b_dec
    torch.testing.assert_close(dictionary.decode(features, x), right + x @ skip)
    torch.testing.assert_close(replace(dictionary, skip=None).decode(features), right)
    with pytest.raises(InterpError, match="linear skip"):
        dictionary.decode(features)


def test_saved_and_loaded_it_is_the_same(family_models, tmp_path):
    model = family_models["llama"]
    made = random_dictionary(model, **KINDS["jumprelu"], model_hash=model.hash, name="mine")
    found = interp.features.load_dictionary(made.save(tmp_path / "mine"), model)
    assert repr(found) == repr(made)
    assert (found.model_hash, found.name, found.k, found.skip) == (model.hash, "mine", None, None)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        assert torch.equal(getattr(found, name), getattr(made, name))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"kind": "gated"}, "kind of dictionary"),
        ({"read": "nowhere"}, "site read"),
        ({"read": "pattern"}, "site read"),
        ({"written": "q"}, "site written"),
        ({"b_enc": torch.zeros(3)}, "b_enc"),
        ({"W_dec": torch.full((40, 32), torch.nan)}, "not finite"),
        ({"kind": "topk"}, "give k"),
        ({"kind": "topk", "k": 41}, "k=41"),
        ({"kind": "jumprelu"}, "give threshold"),
        ({"skip": torch.zeros(3, 3)}, "skip"),
    ],
)
def test_what_makes_no_dictionary_is_refused(family_models, changed, match):
    with pytest.raises(InterpError, match=match):
        replace(random_dictionary(family_models["llama"]), **changed)


def test_a_model_that_it_does_not_fit_is_refused(family_models):
    llama, neox = family_models["llama"], family_models["neox"]
    own = random_dictionary(llama, model_hash=llama.hash)
    own.require_model(llama)
    wrong = [
        (own, family_models["qwen2"], "made for"),
        (replace(own, layer=9), llama, "layer"),
        (random_dictionary(llama, "resid_mid"), neox, "resid_mid"),
        (random_dictionary(llama, "resid_post", "post"), llama, "post has 48"),
    ]
    for dictionary, model, match in wrong:
        with pytest.raises(InterpError, match=match):
            dictionary.require_model(model)
    for call in (feature_activations, interp.features.dictionary_card):
        with pytest.raises(InterpError, match="made for"):
            call(family_models["qwen2"], PROMPTS, own)
    for call in (interp.features.feature_attribution, interp.features.feature_patching):
        with pytest.raises(InterpError, match="made for"):
            call(family_models["qwen2"], random_task(), own)


MLP = {
    "gpt2": "transformer.h.1.mlp",
    "neox": "gpt_neox.layers.1.mlp",
    "llama": "model.layers.1.mlp",
    "gemma2": "model.layers.1.mlp",
    "olmo2": "model.layers.1.mlp",
}


plain = cache(tiny)
"""The same random model, as Hugging Face makes it."""


def mlp_input(model, name, tokens):
    """What the Hugging Face module of the MLP is given."""
    found, hf = [], plain(name, model.dtype)
    module = hf.get_submodule(MLP[name])
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0][0]))
    with torch.no_grad():
        hf(torch.tensor([tokens]))
    handle.remove()
    return found[0]


@pytest.mark.parametrize("name", list(MLP))
def test_activations_are_those_of_what_is_read(family_models, name):
    model = family_models[name]
    for read in ("resid_post", "z", "mlp_in"):
        written = "mlp_out" if read == "mlp_in" else read
        dictionary = random_dictionary(model, read, written, **KINDS["topk"])
        dense = np.zeros((2, 4, 40))
        for prompt, tokens in enumerate(PROMPTS):
            if read == "mlp_in":
                x = mlp_input(model, name, tokens)
            else:
                x = run_with_cache(model, tokens, sites=read)[1, read][0].flatten(1)
            dense[prompt, : len(tokens)] = [slow(dictionary, row) for row in x]
        found = feature_activations(model, PROMPTS, dictionary)
        mine = np.zeros_like(dense)
        mine[found.prompts, found.positions, found.features] = found.values
        assert (found.values != 0).all()
        np.testing.assert_allclose(mine, dense, atol=1e-4)
        best = np.unravel_index(dense.argmax(), dense.shape)
        top = found.top(2)
        assert top[0].feature == best[2]
        assert top[0].value == pytest.approx(dense.max(), abs=1e-4)
        assert top[0].share == pytest.approx((dense[..., best[2]] > 0).sum() / 7)
        token = found.of(int(best[2]), 1)[0]
        assert (token.prompt, token.position) == (best[0], best[1])
        assert len(found.to_dataframe()) == (dense > 0).any((0, 1)).sum()


def test_the_norm_is_read_without_its_weight_too(family_models):
    """A layer norm's output is its value without the weight, times the weight, plus the bias."""
    for name, path in (
        ("gpt2", "transformer.h.1.ln_2"),
        ("llama", "model.layers.1.post_attention_layernorm"),
    ):
        model = family_models[name]
        norm = plain(name).get_submodule(path)
        seen = run_with_cache(model, PROMPTS[0], sites="resid_mid")[1, "resid_mid"][0]
        bare, whole = (
            random_dictionary(model, read, "mlp_out").what_is_read(model.decoder, seen)
            for read in ("mlp_normed", "mlp_in")
        )
        bias = getattr(norm, "bias", None)
        again = bare * norm.weight + (0 if bias is None else bias)
        torch.testing.assert_close(again, whole, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(bare, whole, atol=0.01)


def test_a_view_shows_the_tokens_that_are_written(family_models):
    model = family_models["llama"]
    dictionary = random_dictionary(model)
    hf = plain("llama")
    head = hf.lm_head.weight
    row = dictionary.W_dec[7] * hf.model.norm.weight
    shown = view_feature(model, dictionary, 7, PROMPTS, k=3)
    right = (head @ row).topk(3)
    assert [token.token for token in shown.writes.promoted] == right.indices.tolist()
    assert shown.fires == feature_activations(model, PROMPTS, dictionary).of(7, 3)
    assert "L1F7" in repr(shown)
    z = random_dictionary(model, "z")
    written = hf.model.layers[1].self_attn.o_proj.weight @ z.W_dec[7]
    right = (head @ (written * hf.model.norm.weight)).topk(3)
    assert [token.token for token in view_feature(model, z, 7, k=3).writes.promoted] == (
        right.indices.tolist()
    )
    with pytest.raises(InterpError, match="feature"):
        view_feature(model, dictionary, 40)
    with pytest.raises(InterpError, match="no prompts"):
        feature_activations(model, [], dictionary)


def test_a_dictionary_of_neurons_writes_no_tokens(family_models):
    model = family_models["llama"]
    neurons = Dictionary(
        W_enc=torch.randn(48, 5), b_enc=torch.zeros(5), W_dec=torch.randn(5, 48),
        b_dec=torch.zeros(48), layer=1, read="post", written="post",
    )  # fmt: skip
    with pytest.raises(InterpError, match="not written to the residual stream"):
        view_feature(model, neurons, 0)
