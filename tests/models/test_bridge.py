"""TransformerLens' wrapper is made when hooks need it, and a model is the same before and after."""

import subprocess
import sys

import pytest
import torch

from interp.models import loading
from interp.models.loading import _sizes, _sizes_of, load_model
from interp.runs.capture import run_with_cache
from interp.steering.weight_edits import orthogonalise_weights
from tests.families import random_task


def test_sizes_are_those_of_transformer_lens(family):
    """The sizes read from the weights equal those in TransformerLens' configuration."""
    if family.decoder is None:
        pytest.skip(str(family.engine_reason))
    assert _sizes(family.decoder) == _sizes_of(family.bridge) | {"d_mlp": family.d_mlp}


def test_a_checked_model_is_loaded_without_hooks(monkeypatch):
    """The second load reads the kept check; the engine runs before any bridge is made."""
    made = []
    build = loading.build_bridge
    first = load_model("toy-induction")
    monkeypatch.setattr("interp.models.loading.build_bridge", lambda hf: made.append(hf) or build(hf))
    monkeypatch.setattr(
        "interp.models.language_model.build_bridge", lambda hf: made.append(hf) or build(hf)
    )
    second = load_model("toy-induction")
    assert made == ([] if second._bridge is None else [second.hf_model])
    tokens = [(0, 1, 2, 1)]
    hooked = second.last_logits(tokens)
    assert second._bridge is not None
    torch.testing.assert_close(hooked, first.last_logits(tokens))
    assert second.bridge.tokenizer is second.tokenizer
    seen = run_with_cache(second, tokens, sites=["z"])
    assert seen.logits.shape == hooked.shape


def test_training_mode_is_seen_with_and_without_a_bridge(family_models):
    model = family_models["gpt2"]
    for one in (model.bridge, model.hf_model):
        one.train()
        try:
            with pytest.raises(Exception, match="training mode"):
                random_task().check(model)
        finally:
            one.eval()


def test_the_engine_needs_no_transformer_lens():
    """A model whose check is kept is loaded and patched without importing TransformerLens."""
    code = (
        "import sys, interp; interp.load_model(); interp.load_model();"
        "print('transformer_lens' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert found.stdout.strip() in ("True", "False")


def test_a_copy_is_made_from_either_state(family_models):
    model = family_models["llama"]
    assert orthogonalise_weights is not None
    assert loading.unwrapped(model) is not None
