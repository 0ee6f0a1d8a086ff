"""OV and QK matrices, copying and composition: against runs, dense matrices and random draws."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.engine.forward import Runner
from interp.heads.composition import KINDS, head_composition
from interp.heads.copying import copying_scores
from interp.heads.matrices import head_directions, head_matrices, sized
from interp.models.loading import load_model, wrap
from interp.runs.capture import run_with_cache
from tests.families import tiny

TOKENS = (5, 9, 2, 7, 31)


def sized_stream(model, layer=0, tokens=TOKENS):
    """The embedded tokens divided by their size, in float64."""
    decoder = model.decoder
    stream = decoder.embed(torch.tensor(tokens), torch.arange(len(tokens)))
    norm = sized(decoder.blocks[layer].ln1)
    return (stream if norm is None else norm(stream)).double()


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_scores_of_a_run_are_those_of_qk_at_each_distance(family_models, name):
    """Attention of layer 0 is the softmax of x QK y, with the key as far back as it is."""
    model = family_models[name]
    x = sized_stream(model)
    pattern = run_with_cache(model, TOKENS, sites=["pattern"])[0, "pattern"][0].double()
    query = len(TOKENS) - 1
    scores = []
    for key in range(len(TOKENS)):
        made = head_matrices(model, 0, distance=query - key)
        scores.append(
            torch.einsum("d,hde,hfe,f->h", x[query], made.q.double(), made.k.double(), x[key])
        )
    window = model.decoder.blocks[0].attn.window or len(TOKENS)
    scores = torch.stack(scores, 1)[:, -window:]
    torch.testing.assert_close(scores.softmax(1), pattern[query, :, -window:], atol=1e-6, rtol=0)


def test_a_layer_writes_what_ov_makes_of_its_attention(family_models):
    model = family_models["llama"]
    seen = run_with_cache(model, TOKENS, sites=["pattern", "attn_out"], layers=[0])
    made, x = head_matrices(model, 0), sized_stream(model)
    pattern = seen[0, "pattern"][0].double()
    written = torch.einsum("qhk,kd,hde,hef->qf", pattern, x, made.v.double(), made.o.double())
    torch.testing.assert_close(written, seen[0, "attn_out"][0].double(), atol=1e-6, rtol=0)


def test_norms_are_inside_the_matrices(family):
    """x QK y times the sizes of a query and a key is their score, without biases."""
    decoder, layer = family.decoder, 1
    block = decoder.blocks[layer]
    attn = block.attn
    x, runner = sized_stream(family, layer), Runner(decoder)
    made = head_matrices(family, layer)
    biased = block.ln1 is not None and block.ln1.bias is not None
    read = x if block.ln1 is None else x * block.ln1.weight
    found = torch.einsum("qd,hde,hfe,kf->hqk", x, made.q.double(), made.k.double(), x)

    def heads(which, norm):
        weight = getattr(attn, which).weight.double()
        raw = (read @ weight).unflatten(1, (-1, attn.d_head))
        if norm is not None:
            flat = raw.flatten(1) if attn.norm_over_heads else raw
            size = flat.square().mean(-1, keepdim=True).add(norm.eps).sqrt()
            raw = (norm(flat) * size).view_as(raw)
        return runner.turned(attn, raw, torch.zeros(len(raw), dtype=torch.long))

    q, k = heads("q", attn.q_norm), heads("k", attn.k_norm)
    k = k.repeat_interleave(attn.n_heads // attn.n_kv_heads, 1)
    expected = attn.scale * torch.einsum("qhd,khd->hqk", q, k)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert biased == (family.decoder.ln_final.bias is not None)


def test_directions_are_the_svd_of_the_dense_matrix(family):
    layer, head = 1, family.n_heads - 1
    made, k = head_matrices(family, layer, distance=3), 4
    for matrix in ("OV", "QK"):
        left, right = made.factors(matrix)
        _, values, w = torch.linalg.svd(left[head].double() @ right[head].double())
        found = head_directions(family, layer, head, matrix, n=2, k=k, distance=3)
        np.testing.assert_allclose([one.value for one in found], values[:2], rtol=1e-5)
        shares = values.square() / values.square().sum()
        np.testing.assert_allclose([one.share for one in found], shares[:2], rtol=1e-5)
        if matrix == "OV":
            final = family.decoder.ln_final
            row = w[0] - w[0].mean() if final.centred else w[0]
            logits = family.decoder.unembed.double() @ (row * final.weight)
        else:
            stream = family.decoder.embed(
                torch.arange(family.d_vocab), torch.ones(family.d_vocab, dtype=torch.long)
            )
            norm = sized(family.decoder.blocks[layer].ln1)
            logits = (stream if norm is None else norm(stream)).double() @ w[0]
        either = [logits.topk(k).values, (-logits).topk(k).values]  # the sign is free
        seen = [token.value for token in found[0].other.promoted]
        assert any(np.allclose(seen, values, atol=1e-4) for values in either)


# -- copying ---------------------------------------------------------------------------------


def test_copying_is_that_of_the_vocabulary_by_vocabulary_matrix(family):
    decoder = family.decoder
    found = copying_scores(family, draws=2)
    ids = torch.arange(family.d_vocab)
    stream = decoder.embed(ids, torch.ones_like(ids))
    unembed = decoder.unembed.double() * decoder.ln_final.weight
    if decoder.ln_final.centred:
        unembed = unembed - unembed.mean(1, keepdim=True)
    for layer, block in enumerate(decoder.blocks):
        norm = sized(block.ln1)
        read = (stream if norm is None else norm(stream)).double()
        made = head_matrices(family, layer)
        for head in range(family.n_heads):
            whole = read @ made.v[head].double() @ made.o[head].double() @ unembed.T
            values = torch.linalg.eigvals(whole)
            expected = float(values.real.sum() / values.abs().sum())
            assert found.values[layer, head] == pytest.approx(expected, abs=1e-4)


def test_a_copying_head_and_its_opposite(family_models):
    """O is the transpose of U^T E V, so that all eigenvalues are positive."""
    model, raw = family_models["llama"], tiny("llama")
    decoder, kept = model.decoder, copying_scores(model)
    ids = torch.arange(model.d_vocab)
    with torch.no_grad():
        read = sized(decoder.blocks[1].ln1)(decoder.embed(ids, torch.ones_like(ids)))
        both = (decoder.unembed * decoder.ln_final.weight).T @ read
        out = (both @ head_matrices(model, 1).v[0]).T.clone()
        d = model.d_head
        weight = raw.model.layers[1].self_attn.o_proj.weight
        weight[:, :d], weight[:, d : 2 * d] = out.T, -out.T
    found = copying_scores(wrap(raw, name="copier"))
    assert found.values[1, 0] == pytest.approx(1, abs=1e-4)
    assert found.values[1, 1] == pytest.approx(-1, abs=1e-4)
    assert found.high[1] < 1
    assert np.mean((kept.values < kept.low[:, None]) | (kept.values > kept.high[:, None])) < 0.35
    assert "most: L1H0 1.000" in repr(found)
    assert found.to_dataframe()["copying"].max() == pytest.approx(1, abs=1e-4)


# -- composition -----------------------------------------------------------------------------


def test_composition_is_that_of_the_dense_matrices(family):
    found = head_composition(family, distance=2)
    made = [head_matrices(family, layer, distance=2) for layer in range(family.n_layers)]
    norm = torch.linalg.matrix_norm
    for a, h, b, g in np.ndindex(found.values.shape[1:]):
        if a >= b:
            assert np.isnan(found.values[:, a, h, b, g]).all()
            continue
        ov = (made[a].v[h] @ made[a].o[h]).double()
        qk = (made[b].q[g] @ made[b].k[g].T).double()
        reads = {"q": qk, "k": qk.T, "v": (made[b].v[g] @ made[b].o[g]).double()}
        for at, kind in enumerate(KINDS):
            expected = float(norm(ov @ reads[kind]) / norm(ov) / norm(reads[kind]))
            assert found.values[at, a, h, b, g] == pytest.approx(expected, rel=1e-4)


def test_the_chance_of_composition_is_that_of_random_rotations(family_models):
    """Mean and deviation of the squared score are exact: compared with 4,000 rotations."""
    model = family_models["llama"]
    found, d = head_composition(model), model.d_model
    ov, qk = head_matrices(model, 0), head_matrices(model, 1)
    one = torch.linalg.svdvals((ov.v[1] @ ov.o[1]).double())
    two = torch.linalg.svdvals((qk.q[2] @ qk.k[2].T).double())
    one, two = (values / values.norm() for values in (one, two))
    random = torch.Generator().manual_seed(0)
    q, r = torch.linalg.qr(torch.randn(4000, d, d, generator=random, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    drawn = (one[:, None] * q * two).square().sum((1, 2)).numpy()
    assert found.chance**2 == pytest.approx(drawn.mean(), rel=0.02)
    score, z = found.values[0, 0, 1, 1, 2], found.z[0, 0, 1, 1, 2]
    assert (score**2 - 1 / d) / z == pytest.approx(drawn.std(), rel=0.05)


def test_random_heads_do_not_compose(family_models):
    z = head_composition(family_models["llama"]).z
    assert abs(np.nanmean(z)) < 0.3
    assert 0.7 < np.nanstd(z) < 1.4


def test_the_induction_head_of_the_toy_reads_the_previous_token_head():
    found = head_composition(load_model("toy-induction"))
    into = found.values[KINDS.index("k"), 0, :, 1, 2]
    assert int(into.argmax()) == 1
    assert into[1] > 5 * np.delete(into, 1).max()
    assert "random heads 0.125" in repr(found)
    table = found.to_dataframe()
    assert len(table) == 3 * 4 * 4
    row = table.query("sender == 'L0H1' and receiver == 'L1H2' and kind == 'k'")
    assert row["score"].item() == pytest.approx(into[1])
    assert found.plot("k").data[0].z[6][1] == pytest.approx(into[1])
    with pytest.raises(InterpError, match="write q, k or v"):
        found.plot("z")


def test_what_is_not_there_is_said(family_models):
    model = family_models["llama"]
    for wrong in ((9, 0), (0, 99), (0, 0, "OQ")):
        with pytest.raises(InterpError):
            head_directions(model, *wrong)
    for wrong in ({"n": 0}, {"n": 99}, {"k": 0}, {"distance": -1}):
        with pytest.raises(InterpError):
            head_directions(model, 0, 0, **wrong)
    with pytest.raises(InterpError, match="draws"):
        copying_scores(model, draws=0)
