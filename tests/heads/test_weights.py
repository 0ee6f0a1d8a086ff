"""What a head's weights do with tokens: against hooked runs of each token, one at a time."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.heads.weights import head_tokens
from interp.runs.capture import run_with_cache

TOKENS = (5, 9, 2)


def alone(model, token):
    """Sites of layer 0 at position 1 of a prompt that has the token there."""
    seen = run_with_cache(model, [(3, token)], sites=["q", "k", "v"], layers=[0])
    return [seen[0, site][0, 1] for site in ("q", "k", "v")]


def by_hand(model, head):
    """OV (token, vocabulary) and QK (token, vocabulary) of layer 0, from hooked runs."""
    decoder = model.decoder
    block, attn = decoder.blocks[0], decoder.blocks[0].attn
    kv = head * model.n_kv_heads // model.n_heads
    ov, qk = np.zeros((2, len(TOKENS), model.d_vocab))

    def normed(heads, norm):
        if norm is None:
            return heads
        return norm(heads.flatten()).view_as(heads) if attn.norm_over_heads else norm(heads)

    keys = [normed(alone(model, s)[1], attn.k_norm)[kv] for s in range(model.d_vocab)]
    for i, token in enumerate(TOKENS):
        q, _, v = alone(model, token)
        q = normed(q, attn.q_norm)[head]
        out = v[kv] @ attn.o.weight[head * attn.d_head : (head + 1) * attn.d_head]
        if block.ln1_post is not None:
            out = out * block.ln1_post.weight
        if decoder.ln_final.centred:
            out = out - out.mean()
        ov[i] = (decoder.unembed @ (out * decoder.ln_final.weight)).numpy()
        qk[i] = [attn.scale * float(q @ k) for k in keys]
    return ov, qk


def test_every_head_token_is_that_of_a_hooked_run(family):
    if family.decoder is None:
        pytest.skip(str(family.engine_reason))
    head = family.n_heads - 1
    ov, qk = by_hand(family, head)
    found = head_tokens(family, 0, head, TOKENS, k=4)
    assert [one.token for one in found] == list(TOKENS)
    for one, rows in zip(found, zip(ov, qk, strict=True), strict=True):
        for seen, row in zip((one.writes, one.seeks), rows, strict=True):
            high, low = np.sort(row)[::-1][:4], np.sort(row)[:4]
            np.testing.assert_allclose([t.value for t in seen.promoted], high, atol=2e-5)
            np.testing.assert_allclose([t.value for t in seen.suppressed], low, atol=2e-5)
            for token in (*seen.promoted, *seen.suppressed):
                assert row[token.token] == pytest.approx(token.value, abs=2e-5)


def test_a_planted_head_copies_what_it_reads(toy):
    """Head L1H2 of the toy attends to a token and writes that same token."""
    found = head_tokens(toy, 1, 2, list(range(4, 10)), k=1)
    assert [one.writes.promoted[0].token for one in found] == list(range(4, 10))


def test_a_later_layer_reads_through_its_own_norm(family_models):
    model = family_models["llama"]
    decoder = model.decoder
    (one,) = head_tokens(model, 1, 0, 7, k=1)
    stream = decoder.embed(torch.tensor([7]), torch.tensor([1]))
    attn = decoder.blocks[1].attn
    out = attn.v(decoder.blocks[1].ln1(stream))[0, : attn.d_head] @ attn.W_O[0]
    logits = decoder.unembed @ (out * decoder.ln_final.weight)
    assert one.writes.promoted[0].value == pytest.approx(float(logits.max()), abs=1e-5)


@pytest.mark.parametrize("asked", [(9, 0, 1, 1), (0, 99, 1, 1), (0, 0, 10**6, 1), (0, 0, 1, 0)])
def test_what_is_not_there_is_said(family_models, asked):
    layer, head, token, k = asked
    with pytest.raises(InterpError):
        head_tokens(family_models["llama"], layer, head, token, k=k)
