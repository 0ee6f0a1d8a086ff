"""TransformerLens' wrapper is made when hooks need it, and a model is the same before and after."""

import subprocess
import sys

import pytest
import torch

from interp.core.errors import InterpError
from interp.models import loading
from interp.models.loading import _sizes_of, load_model, sizes
from interp.runs.capture import run_with_cache
from tests.families import random_task


def test_sizes_are_those_of_transformer_lens(family):
    """The sizes read from the weights equal those in TransformerLens' configuration."""
    if family.decoder is None:
        pytest.skip(str(family.engine_reason))
    assert family.n_experts == 0
    known = {"d_mlp": family.d_mlp, "n_experts": 0}
    assert sizes(family.decoder) == _sizes_of(family.bridge) | known


def test_a_checked_model_is_loaded_without_hooks(monkeypatch):
    """The second load reads the kept check; the engine runs before any bridge is made."""
    made = []
    build = loading.build_bridge
    first = load_model("toy-induction")
    monkeypatch.setattr(
        "interp.models.loading.build_bridge", lambda hf: made.append(hf) or build(hf)
    )
    monkeypatch.setattr(
        "interp.models.language_model.build_bridge", lambda hf: made.append(hf) or build(hf)
    )
    second = load_model("toy-induction")
    assert second._bridge is None
    assert made == []
    tokens = [(0, 1, 2, 1)]
    hooked = second.last_logits(tokens)
    assert made == [second.hf_model]
    torch.testing.assert_close(hooked, first.last_logits(tokens))
    assert second.bridge.tokenizer is second.tokenizer
    seen = run_with_cache(second, tokens, sites=["z"])
    assert seen.logits.shape == hooked.shape


def test_training_mode_is_seen_with_and_without_a_bridge(family_models):
    model = family_models["gpt2"]
    for name in ("bridge", "hf_model"):
        getattr(model, name).train()
        try:
            with pytest.raises(InterpError, match=rf"training mode; call model\.{name}\.eval"):
                random_task().check(model)
        finally:
            getattr(model, name).eval()


@pytest.mark.long
def test_the_engine_needs_no_transformer_lens():
    """A model whose check is kept is loaded and patched without importing TransformerLens."""
    code = (
        "import sys, interp; model = interp.load_model('toy-induction');"
        "interp.activation_patching(model, interp.load_task('toy-induction', model));"
        "print('transformer_lens' in sys.modules)"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
        ).stdout.strip()
        for _ in range(2)
    ]
    assert printed == ["True", "False"]


def test_a_copy_is_equal_before_and_after_the_bridge():
    model = load_model("toy-induction")
    again = load_model("toy-induction")
    assert again._bridge is None
    before = loading.unwrapped(again).state_dict()
    assert again.bridge is not None
    after = loading.unwrapped(again).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.hash == again.hash
