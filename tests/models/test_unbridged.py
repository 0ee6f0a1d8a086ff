"""Models that TransformerLens cannot run: their hooks, their checks and what is refused."""

from dataclasses import replace

import pytest
import torch

from interp.core.errors import InterpError
from interp.models import checks, loading
from interp.models.bridge import build_bridge
from interp.models.loading import load_model, wrap
from tests.families import UNBRIDGED, tiny

PROMPTS = [(5, 36, 30, 44, 20, 61, 7), (9, 12, 77), (3, 52, 8, 41, 66)]


def test_the_families_are_those_that_transformer_lens_refuses(family_models):
    for name in UNBRIDGED:
        model = family_models[name]
        with pytest.raises(InterpError, match="TransformerLens fails on it"):
            _ = model.bridge
        assert "TransformerLens cannot run it" in repr(model)
    assert family_models["llama"].unbridged is None


@pytest.mark.parametrize("name", UNBRIDGED)
def test_a_bridge_that_fails_leaves_the_model_as_it_was(name):
    model, other = tiny(name), tiny(name)
    with pytest.raises(InterpError):
        build_bridge(model)
    parts = [(path, type(part)) for path, part in model.named_modules()]
    assert parts == [(path, type(part)) for path, part in other.named_modules()]
    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, other(tokens).logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "name", ["gpt2", "neox", "mistral", "gemma2", "bloom", "gpt-oss", "qwen2-moe"]
)
def test_hooks_in_the_engine_equal_those_of_transformer_lens(family_models, name, side):
    """Every site read and changed, in prompts of several lengths, and its gradient."""
    bridged = family_models[name]
    model = replace(bridged, unbridged="for this test")
    offered = [site for site, why in bridged.sites.items() if why is None]

    def run(one, site, scale):
        """Sites of layer 1 after one is changed, logits, and the gradient of that change."""
        seen, factor = {}, torch.tensor(scale, requires_grad=True)

        def hook(value, batch, name):
            if name == site:  # more for some dimensions, because a norm may follow
                axis = 1 if name == "pattern" else -1
                ramp = torch.linspace(0, 1, value.shape[axis])
                shape = (-1, 1, 1) if name == "pattern" else (-1,)
                value = value * (1 + factor * ramp.view(shape))
            rows = enumerate(zip(batch.first.tolist(), batch.lengths.tolist(), strict=True))
            seen[name] = [
                value[row, :, at : at + n, at : at + n]
                if name == "pattern"
                else value[row, at : at + n]
                for row, (at, n) in rows
            ]
            return value

        hooks = {(1, part): [lambda x, b, part=part: hook(x, b, part)] for part in offered}
        (batch, logits), *rest = one.run(PROMPTS, hooks=hooks, padding_side=side)
        assert not rest
        ends = [batch.column(row, int(n) - 1) for row, n in enumerate(batch.lengths)]
        last = logits[torch.arange(len(ends)), ends]
        grad = torch.autograd.grad(last.square().sum(), factor)[0]
        return {at: torch.cat([row.flatten() for row in x]) for at, x in seen.items()}, last, grad

    plain, batch_order = bridged.last_logits(PROMPTS), [1, 2, 0]
    for site in offered:
        (ours, own, rate), (theirs, expected, other) = (run(m, site, 0.5) for m in (model, bridged))
        for part in offered:
            torch.testing.assert_close(ours[part], theirs[part], atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(own, expected, atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(rate, other, atol=1e-3, rtol=1e-3)
        assert (own - plain[batch_order]).abs().max() > 1e-4
    torch.testing.assert_close(model.last_logits(PROMPTS), plain, atol=5e-5, rtol=1e-4)


def test_a_site_that_is_not_the_modules_is_not_offered(family_models):
    """Values twice as large and an output map half as large: only v and z are others."""
    model = family_models["ministral"]
    blocks = []
    for block in model.decoder.blocks:
        v, o = block.attn.v, block.attn.o
        v, o = replace(v, weight=v.weight * 2), replace(o, weight=o.weight / 2)
        blocks.append(replace(block, attn=replace(block.attn, v=v, o=o)))
    sites = dict(model.sites)
    wrong = replace(model, sites=sites, decoder=replace(model.decoder, blocks=tuple(blocks)))
    checks.check_plain(wrong, list(PROMPTS[0]))
    changed = {site for site in sites if sites[site] != model.sites[site]}
    assert changed == {"v", "z"}
    assert "transformers has another value there" in sites["v"]


def test_a_model_that_neither_runs_is_refused(monkeypatch):
    read = loading.fast_engine
    monkeypatch.setattr(
        loading, "fast_engine", lambda hf: (replace(read(hf)[0], final_softcap=1), None)
    )
    with pytest.raises(InterpError, match=r"Unsupported architecture.*logits differ from"):
        wrap(tiny("ministral"), name="wrong")
    monkeypatch.setattr(loading, "fast_engine", lambda hf: (None, "not known"))
    with pytest.raises(InterpError, match="Unsupported architecture"):
        wrap(tiny("ministral"), name="unknown")


def test_the_kept_check_says_that_there_is_no_bridge(tmp_path, monkeypatch):
    tiny("ministral").save_pretrained(tmp_path / "model")
    first = load_model(str(tmp_path / "model"))
    made = []
    monkeypatch.setattr(loading, "build_bridge", made.append)
    second = load_model(str(tmp_path / "model"))
    assert made == []
    assert second.unbridged == first.unbridged
    assert second.sites == first.sites
    assert torch.equal(second.last_logits(PROMPTS), first.last_logits(PROMPTS))
