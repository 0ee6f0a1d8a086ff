"""The first looks at a prompt, recomputed with plain Hugging Face Transformers and hooks alone."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import interp
from interp.models.loading import wrap
from tests.families import tiny

ROW, FOIL = (5, 9, 2, 7, 11, 3), (5, 9, 4, 7, 11, 3)


def parts_of(hf):
    """The modules of a Llama or a GPT-2 by one set of names."""
    if hasattr(hf, "transformer"):
        inner = hf.transformer
        outs = [(block.attn.c_proj, block.mlp.c_proj) for block in inner.h]
        heads = hf.config.n_head
        return SimpleNamespace(blocks=inner.h, norm=inner.ln_f, outs=outs, heads=heads)
    inner = hf.model
    outs = [(block.self_attn.o_proj, block.mlp.down_proj) for block in inner.layers]
    heads = hf.config.num_attention_heads
    return SimpleNamespace(blocks=inner.layers, norm=inner.norm, outs=outs, heads=heads)


@contextmanager
def hooks(*given):
    """Hooks on modules, removed at the end: (module, function of its input or output, which)."""
    handles = []
    for module, function, which in given:
        if which == "in":
            made = module.register_forward_pre_hook(lambda m, args, f=function: f(args[0]))
        else:
            made = module.register_forward_hook(lambda m, args, out, f=function: f(out))
        handles.append(made)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(hf, row):
    """Logits, and by layer: z (token, head, d_head), the MLP's output, the stream behind it."""
    named, seen = parts_of(hf), SimpleNamespace(z=[], mlp=[], after=[])

    def keep(where, pick=lambda value: value):
        return lambda value: where.append(pick(value)[0].clone()) and None

    first = keep(seen.after, lambda out: out[0] if isinstance(out, tuple) else out)
    with hooks(
        *((out, keep(seen.z), "in") for out, _ in named.outs),
        *((out, keep(seen.mlp), "out") for _, out in named.outs),
        *((block, first, "out") for block in named.blocks),
    ):
        seen.logits = hf(torch.tensor([row])).logits[0]
    seen.z = [z.unflatten(-1, (named.heads, -1)) for z in seen.z]
    return seen


def written(hf, layer, z):
    """(head, d_model) what each head writes: its z times its rows of the output projection."""
    weight = parts_of(hf).outs[layer][0].weight
    rows = weight if hasattr(hf, "transformer") else weight.T
    return torch.einsum("hd,hdm->hm", z, rows.unflatten(0, z.shape))


@torch.no_grad()
def attribution(hf, row, answer, wrong):
    """((layer, head), (layer,)) heads' and MLPs' shares of the logit difference, by autograd.

    Each is a directional derivative of the final norm with its scale held at the run's own.
    """
    named, seen = parts_of(hf), run(hf, row)
    whole, norm = seen.after[-1][-1].double(), named.norm
    centred = isinstance(norm, torch.nn.LayerNorm)
    eps = norm.eps if centred else norm.variance_epsilon
    spread = whole - whole.mean() if centred else whole
    scale = (spread.pow(2).mean() + eps).rsqrt()
    unembed = hf.get_output_embeddings().weight.double()
    direction = (unembed[answer] - unembed[wrong]) * norm.weight.double() * scale

    def share(part):
        part = part.double()
        return ((part - part.mean(-1, keepdim=True) if centred else part) @ direction).numpy()

    layers = range(len(named.blocks))
    heads = np.stack([share(written(hf, at, seen.z[at][-1])) for at in layers])
    return heads, np.stack([share(seen.mlp[at][-1]) for at in layers])


@torch.no_grad()
def patched(hf, row, layer, head, z):
    """The logits after the last token with one head's z (token, d_head) replaced, by one run."""
    named = parts_of(hf)

    def put(value):
        value = value.unflatten(-1, (named.heads, -1)).clone()
        value[0, :, head] = z
        return (value.flatten(-2),)

    with hooks((named.outs[layer][0], put, "in")):
        return hf(torch.tensor([row])).logits[0, -1].double()


def check(model, hf, row, foil, *, answer, wrong, atol):
    """Every number of `look`, `direct_attribution`, the lens and `scan` against plain runs."""
    named, seen, other = parts_of(hf), run(hf, row), run(hf, foil)
    looked = interp.look(model, row, answer, wrong)
    probability = seen.logits[-1].double().softmax(-1)
    for token in looked.next_tokens(5):
        assert token.value == pytest.approx(float(probability[token.token]), abs=atol)
    assert interp.top_tokens(model, row, 1)[0].token == int(probability.argmax())

    lens = interp.logit_lens(model, row, words=answer)
    head_of = hf.get_output_embeddings()
    for layer, stream in enumerate(seen.after):
        with torch.no_grad():
            read = head_of(named.norm(stream)).double().softmax(-1)
        watched, top = lens.word_probability[0, layer, :, 0], lens.top_mean[0, layer, :, 0]
        np.testing.assert_allclose(watched, read[:, answer], atol=atol)
        np.testing.assert_allclose(top, read.max(-1).values, atol=atol)
        np.testing.assert_allclose(looked.norms[layer + 1], stream.norm(dim=-1), rtol=1e-3)

    heads, mlps = attribution(hf, row, answer, wrong)
    parts = interp.direct_attribution(model, row, answer, wrong)
    np.testing.assert_allclose(parts.heads, heads, atol=atol)
    np.testing.assert_allclose(parts.mlps, mlps, atol=atol)
    difference = float(seen.logits[-1, answer] - seen.logits[-1, wrong])
    assert parts.total == pytest.approx(difference, abs=10 * atol)

    found = interp.scan(model, row, foil, answer=answer, wrong=wrong, k=4, draws=2)
    base = float(other.logits[-1, answer] - other.logits[-1, wrong])
    assert found.clean == pytest.approx(difference, abs=10 * atol)
    assert found.corrupted == pytest.approx(base, abs=10 * atol)
    tried = [one for one in found.found if one.component.site == "z"]
    for one in tried:
        layer, head = one.component.layer, one.component.index
        logits = patched(hf, foil, layer, head, seen.z[layer][:, head])
        gained = float(logits[answer] - logits[wrong]) - base
        assert one.exact == pytest.approx(gained, abs=10 * atol)
    return tried


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_tiny_model_by_plain_hooks(name):
    hf = tiny(name)
    tried = check(wrap(hf, name=name), tiny(name), ROW, FOIL, answer=4, wrong=8, atol=2e-5)
    assert tried


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_default_model_by_plain_hooks(smollm):
    rows = [
        smollm.tokenize(text).tokens
        for text in ("The capital of France is", "The capital of Italy is")
    ]
    answer, wrong = map(smollm.single_token, (" Paris", " Rome"))
    tried = check(smollm, smollm.hf_model, *rows, answer=answer, wrong=wrong, atol=1e-3)
    assert tried
    assert smollm.bridge.to_tokens("The capital of France is")[0].tolist() == list(rows[0])
