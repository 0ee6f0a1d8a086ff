"""Files in each public layout are read as their own rule says; others are refused."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.nn import functional as F

from interp.core.errors import InterpError
from interp.features.layouts import load_dictionary

WIDTH, SIZE, K = 32, 20, 4


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X = drawn(5, WIDTH, seed=9)


def weights(transposed=False):
    enc = drawn(WIDTH, SIZE) / 4
    return {
        "W_enc": enc.T.contiguous() if transposed else enc,
        "b_enc": drawn(SIZE) / 4,
        "W_dec": drawn(SIZE, WIDTH),
        "b_dec": drawn(WIDTH) / 4,
    }


def saelens(folder, cfg, **more):
    """The folder that SAELens writes."""
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({**weights(), **more}, folder / "sae_weights.safetensors")
    return folder


def tracer(folder, said=None, layers=(1,), **more):
    """The folder of transcoders that circuit-tracer reads."""
    folder.mkdir(exist_ok=True)
    said = {
        "model_name": "org/tiny", "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out",
    } | (said or {})  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(said))
    for layer in layers:
        save_file({**weights(transposed=True), **more}, folder / f"layer_{layer}.safetensors")
    return folder


def pre(centred=False):
    w = weights()
    return (X - centred * w["b_dec"]) @ w["W_enc"] + w["b_enc"]


def largest(values, k):
    """The k largest of each row, the others 0, one row at a time."""
    out = torch.zeros_like(values)
    for row, found in zip(values, out, strict=True):
        for place in sorted(range(len(row)), key=lambda i: -float(row[i]))[:k]:
            found[place] = row[place]
    return out


THRESHOLD = torch.linspace(0.0, 0.6, SIZE)
META = {"hook_name": "blocks.1.hook_resid_pre", "model_name": "tiny"}
ROWS = weights()["W_dec"].norm(dim=1)

SAELENS = {
    "version 6": (
        {"architecture": "standard", "apply_b_dec_to_input": True, "metadata": META},
        {},
        lambda: F.relu(pre(centred=True)),
    ),
    "meta": (
        {"architecture": "standard", "apply_b_dec_to_input": False, "meta": META},
        {"scaling_factor": torch.ones(SIZE)},
        lambda: F.relu(pre()),
    ),
    "before version 6": (
        {
            "hook_point": "blocks.1.hook_resid_pre", "hook_point_layer": 1,
            "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
            "normalize_activations": False,
        },
        {},
        lambda: F.relu(largest(pre(centred=True), K)),
    ),
    "top-k": (
        {"architecture": "topk", "k": K, "apply_b_dec_to_input": False, "metadata": META},
        {},
        lambda: F.relu(largest(pre(), K)),
    ),
    "top-k, scaled by rows": (
        {
            "architecture": "topk", "k": K, "apply_b_dec_to_input": False, "metadata": META,
            "rescale_acts_by_decoder_norm": True,
        },
        {},
        lambda: F.relu(largest(pre() * ROWS, K)),
    ),
    "jumprelu": (
        {"architecture": "jumprelu", "apply_b_dec_to_input": False, "metadata": META},
        {"threshold": THRESHOLD},
        lambda: torch.where(pre() > THRESHOLD, F.relu(pre()), 0),
    ),
    "batch top-k": (
        {"architecture": "batchtopk", "k": 3.5, "apply_b_dec_to_input": False, "metadata": META},
        {"topk_threshold": torch.tensor(0.3)},
        lambda: torch.where(pre() > 0.3, pre(), 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SAELENS))
def test_saelens(family_models, tmp_path, name):
    cfg, more, right = SAELENS[name]
    found = load_dictionary(saelens(tmp_path / "sae", cfg, **more), family_models["llama"])
    assert (found.layer, found.read, found.written) == (1, "resid_pre", "resid_pre")
    assert found.model_hash == ""
    assert 0 < (right() != 0).sum() < right().numel()
    features = found.encode(X)
    torch.testing.assert_close(features, right(), atol=1e-5, rtol=1e-5)
    own = weights()["W_dec"] / (ROWS[:, None] if "scaled" in name else 1)
    again = right() @ own + weights()["b_dec"]
    torch.testing.assert_close(found.decode(features), again, atol=1e-4, rtol=1e-5)


def test_saelens_transcoders(family_models, tmp_path):
    model = family_models["llama"]
    hooks = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
    cfg = {"architecture": "skip_transcoder", "metadata": hooks}
    skip = drawn(WIDTH, WIDTH, seed=3)
    found = load_dictionary(saelens(tmp_path / "one", cfg, W_skip=skip), model)
    assert (found.layer, found.read, found.written) == (1, "mlp_normed", "mlp_out")
    features = F.relu(pre())
    torch.testing.assert_close(found.encode(X), features)
    right = torch.stack([skip @ x for x in X]) + features @ weights()["W_dec"] + weights()["b_dec"]
    torch.testing.assert_close(found.decode(features, X), right, atol=1e-4, rtol=1e-5)
    del hooks["hook_name_out"]
    folder = saelens(tmp_path / "two", cfg, W_skip=skip)
    with pytest.raises(InterpError, match="give written="):
        load_dictionary(folder, model)
    assert load_dictionary(folder, model, written="mlp_out").written == "mlp_out"


@pytest.mark.parametrize("lower", [False, True])
def test_gemma_scope(family_models, tmp_path, lower):
    """Keys W_enc or w_enc; the repository and the layer are in the path."""
    model = family_models["gemma2"]
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_1" / "width_20" / "average_l0_3"
    folder.mkdir(parents=True)
    arrays = {name: value.numpy() for name, value in weights().items()}
    arrays["threshold"] = THRESHOLD.numpy()
    names = {n: n.replace("W_", "w_") if lower else n for n in arrays}
    np.savez(folder / "params.npz", **{names[n]: value for n, value in arrays.items()})
    found = load_dictionary(folder / "params.npz", model)
    assert (found.layer, found.read, found.written) == (1, "resid_post", "resid_post")
    right = torch.where(pre() > THRESHOLD, F.relu(pre()), 0)
    torch.testing.assert_close(found.encode(X), right)
    aside = tmp_path / "params.npz"
    aside.write_bytes((folder / "params.npz").read_bytes())
    with pytest.raises(InterpError, match="do not say the layer and read and written"):
        load_dictionary(aside, model)
    made = load_dictionary(aside, model, layer=2, read="attn_out")
    assert (made.layer, made.read, made.written) == (2, "attn_out", "attn_out")


CIRCUIT_TRACER = {
    "relu": ({}, {}, lambda: F.relu(pre())),
    "jumprelu": (
        {}, {"activation_function.threshold": THRESHOLD - 0.3},
        lambda: torch.where(pre() > THRESHOLD - 0.3, pre(), 0),
    ),
    "topk": ({"activation": "topk", "k": 15}, {}, lambda: largest(pre(), 15)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CIRCUIT_TRACER))
def test_circuit_tracer(family_models, tmp_path, name):
    said, more, right = CIRCUIT_TRACER[name]
    model = family_models["llama"]
    skip = drawn(WIDTH, WIDTH, seed=3)
    folder = tracer(tmp_path / "set", said, layers=(0, 1), **more, W_skip=skip)
    found = load_dictionary(folder, model, layer=1)
    assert (found.layer, found.read, found.written) == (1, "mlp_in", "mlp_out")
    assert found.model == "org/tiny"
    torch.testing.assert_close(found.encode(X), right(), atol=1e-5, rtol=1e-5)
    if name != "relu":
        assert (right() < 0).any()
    linear = torch.stack([skip @ x for x in X])
    again = right() @ weights()["W_dec"] + weights()["b_dec"] + linear
    torch.testing.assert_close(found.decode(found.encode(X), X), again, atol=1e-4, rtol=1e-5)
    single = load_dictionary(folder / "layer_0.safetensors", model)
    assert single.layer == 0
    with pytest.raises(InterpError, match="give layer="):
        load_dictionary(folder, model)


def test_what_cannot_be_read_is_refused(family_models, tmp_path):
    model = family_models["llama"]
    plain = {"architecture": "standard", "metadata": META}

    def bad(name, cfg, **more):
        return saelens(tmp_path / name, {**plain, **cfg}, **more)

    empty = tmp_path / "empty"
    empty.mkdir()
    torn = tmp_path / "torn.npz"
    torn.write_bytes(b"PK\x03\x04 no archive")
    odd = bad("odd", {"metadata": {"hook_name": "blocks.1.hook_nothing"}})
    cut = bad("cut", {})
    (cut / "sae_weights.safetensors").write_bytes(b"1234567890")
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    (lacking / "cfg.json").write_text(json.dumps(plain))
    save_file({"W_enc": drawn(WIDTH, SIZE)}, lacking / "sae_weights.safetensors")
    wide = bad("wide", {"metadata": {"hook_name": "blocks.1.mlp.hook_post"}})
    deep = bad("deep", {"metadata": {"hook_name": "blocks.7.hook_resid_pre"}})
    for path, match in (
        (tmp_path / "none", "no such file"),
        (empty, "neither cfg.json"),
        (torn, "damaged"),
        (cut, "damaged"),
        (lacking, "damaged"),
        (bad("gated", {"architecture": "gated"}), "architecture is 'gated'"),
        (bad("tanh", {"activation_fn": "tanh-relu"}), "activation is 'tanh-relu'"),
        (bad("norm", {"normalize_activations": "layer_norm"}), "normalize_activations"),
        (bad("head", {"metadata": {**META, "hook_head_index": 3}}), "hook_head_index is 3"),
        (bad("scaled", {}, scaling_factor=torch.full((SIZE,), 2.0)), "scaling_factor"),
        (bad("bare", {"architecture": "jumprelu"}), "give threshold"),
        (odd, "hook of"),
        (wide, "post has 48"),
        (deep, "layer"),
        (tracer(tmp_path / "cross", {"model_kind": "cross_layer_transcoder"}), "cross_layer"),
        (tracer(tmp_path / "gelu", {"activation": "gelu"}) / "layer_1.safetensors", "activation"),
    ):
        with pytest.raises(InterpError, match=match):
            load_dictionary(path, model)


def test_an_output_before_a_norm_is_refused(family_models, tmp_path):
    """mlp.hook_out is mlp_out only in a model that has no norm behind its MLP."""
    path = tracer(tmp_path / "set") / "layer_1.safetensors"
    with pytest.raises(InterpError, match="before a norm"):
        load_dictionary(path, family_models["gemma2"])
    assert load_dictionary(path, family_models["gemma2"], written="mlp_out").written == "mlp_out"
