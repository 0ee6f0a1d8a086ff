"""What a neuron's weights read and write: against one token at a time."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.neurons.weights import neuron_tokens
from interp.runs.capture import run_with_cache


def test_every_token_of_a_neuron_is_that_of_its_weights(family):
    decoder = family.decoder
    if decoder is None:
        pytest.skip(str(family.engine_reason))
    layer, index = 1, family.d_mlp - 1
    block = decoder.blocks[layer]
    rows = {"gate": [], "up": []}
    for token in range(family.d_vocab):
        stream = run_with_cache(family, [(3, token)], sites=["resid_pre"], layers=[0])
        read = stream[0, "resid_pre"][0, 1]
        read = read if block.ln2 is None else block.ln2(read[None])[0]
        for name, part in (("gate", block.mlp.gate), ("up", block.mlp.up)):
            if part is not None:
                bias = 0 if part.bias is None else part.bias[index]
                rows[name].append(float(read @ part.weight[:, index] + bias))
    out = block.mlp.down.weight[index]
    for norm in (block.ln2_post, decoder.ln_final):
        if norm is not None:
            out = out - out.mean() if norm.centred and norm is decoder.ln_final else out
            out = out * norm.weight
    rows["writes"] = (decoder.unembed @ out).tolist()
    found = neuron_tokens(family, f"L{layer}N{index}", k=3)
    assert (found.up is None) == (block.mlp.up is None)
    for name, row in rows.items():
        if row:
            seen, values = getattr(found, name), np.sort(row)
            np.testing.assert_allclose(
                [t.value for t in seen.promoted], values[::-1][:3], atol=2e-5
            )
            np.testing.assert_allclose([t.value for t in seen.suppressed], values[:3], atol=2e-5)
            assert row[seen.promoted[0].token] == pytest.approx(values[-1], abs=2e-5)


def test_what_is_not_there_is_said(family_models):
    model = family_models["llama"]
    for layer, index in ((9, 0), (0, model.d_mlp), ("L0H0", None)):
        with pytest.raises(InterpError):
            neuron_tokens(model, layer, index)
    assert torch.is_grad_enabled()
