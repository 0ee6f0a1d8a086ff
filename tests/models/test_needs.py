"""What a configuration says before a model is loaded equals what the loaded model has."""

import json
from dataclasses import replace

import pytest
import transformers

import interp
from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.engine.cost import duration
from interp.engine.forward import Runner
from interp.engine.sweep import plan_sweep
from interp.models import needs
from interp.models.cards import CARDS, card_named
from interp.models.loading import known_families
from interp.models.needs import fit
from interp.models.weightless import UNTRIED, weightless
from interp.patching.spec import PatchSpec
from interp.patching.sweep import make_sweep, operations
from tests.conftest import REAL_CACHE
from tests.families import FAMILIES, OTHERS, tiny

TABLE = {row["name"]: row for row in known_families()}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(needs, "matmul_rate", lambda dtype, device: 1e11)


def saved(config, folder):
    """A configuration alone, as config.json."""
    config.architectures = None
    config.save_pretrained(folder)
    return str(folder / "config.json")


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_family_by_its_configuration(name, tmp_path):
    """Weights, engine and sites of a config.json are those of the tiny model that was checked."""
    model, row = tiny(name), TABLE[name]
    file = saved(model.config, tmp_path)
    if row["runs"] == "refused":
        with pytest.raises(InterpError) as refused:
            fit(file, tokens=8)
        assert row["missing"][""].split(":")[0].split(" expects ")[0] in str(refused.value)
        return
    found = fit(file, tokens=8)
    assert found.architecture == type(model).__name__ == row["architecture"]
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert [m.weights for m in found.memory] == [4 * found.parameters, 2 * found.parameters]
    assert ("engine" if found.engine is None else "hooks") == row["runs"]
    assert {site for site, why in found.sites.items() if why} == {*row["missing"]} - {""}
    assert found.flops > 0


def test_sizes_are_those_of_the_loaded_model(family, tmp_path):
    file = saved(family.hf_model.config, tmp_path)
    alone = weightless(file)
    for name in ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "d_vocab"):
        assert getattr(alone, name) == getattr(family, name)
    assert all(p.is_meta for p in alone.hf_model.parameters())
    assert alone.decoder.flops == family.decoder.flops


def test_bytes_are_those_of_tensors(family, tmp_path):
    """`run_with_cache` of all sites holds as many bytes, and a sweep runs with the least budget."""
    n, tokens = 3, 9
    found = fit(saved(family.hf_model.config, tmp_path), n=n, tokens=tokens)
    wide = found.memory[0]
    prompts = [tuple(range(3 + i, 3 + i + tokens)) for i in range(n)]
    offered = [site for site in SITES if family.sites[site] is None]
    acts = interp.run_with_cache(family, prompts, sites=offered)
    assert wide.runs == sum(acts[label].numel() * 4 for label in acts)
    runner, task = Runner(family.decoder), differing(n, tokens)
    sweep = make_sweep(family, task, PatchSpec(site="z", by=("layer", "head")))
    arguments = (runner, sweep.cells, sweep.lengths, "z")
    plan_sweep(*arguments, int(wide.sweep) + 1, False)
    with pytest.raises(InterpError, match="raise budget_gb"):
        plan_sweep(*arguments, int(0.98 * wide.sweep), False)
    assert found.memory[1].sweep == wide.sweep / 2


def differing(n, tokens):
    """Pairs that differ from the first token on."""
    pairs = tuple(
        PromptPair(
            clean=tuple(range(3 + i, 3 + i + tokens)),
            corrupted=tuple(range(30 + i, 30 + i + tokens)),
            answers=(5,),
            wrong=(6,),
        )
        for i in range(n)
    )
    return Task(name="differing", pairs=pairs)


def test_operations_are_those_of_the_sweep(family, tmp_path):
    sweep = make_sweep(family, differing(4, 7), PatchSpec(site="z", by=("layer", "head")))
    found = fit(saved(family.hf_model.config, tmp_path), n=4, tokens=7)
    assert found.flops == pytest.approx(operations(family, sweep), rel=1e-12)
    assert found.cells * found.n == len(sweep.cells)


def test_operations_through_hooks_are_those_of_whole_runs(tmp_path):
    found = fit(saved(OTHERS["llama-longrope"](), tmp_path), n=2, tokens=5)
    assert "depend on the length" in found.engine
    assert found.flops == 2 * 5 * found.cells * 2 * found.parameters
    assert found.memory[0].sweep is None
    assert "hooks" in repr(found)


def test_known_sizes(tmp_path):
    """Llama 3.1 8B as published: 8,030,261,248 weights. It fits where its bytes do."""
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072,
    )  # fmt: skip
    found = fit(saved(config, tmp_path), share=0.5)
    assert found.parameters == 8_030_261_248
    by_name = {place.name: place for place in found.places}
    assert by_name["RTX 4090"].cards == {"float32": 2, "bfloat16": 1}
    assert by_name["A100 40GB"].cards == {"float32": 1, "bfloat16": 1}
    assert by_name["H200"].seconds == pytest.approx(found.flops / (0.5 * 989e12))
    assert not by_name["H200"].measured
    here = found.places[0]
    assert here.measured
    assert here.rate == 1e11
    assert "between" in replace(here, seconds=1e4).words
    assert replace(here, seconds=None).words == "does not fit"
    table = found.to_dataframe()
    assert list(table["name"]) == [place.name for place in found.places]
    assert len(table) == 1 + len(CARDS)


@pytest.mark.long
def test_shipped_models_by_name():
    """An adapter is its base, a toy is built, and a tiny organism is its own folder."""
    for name in ("countdown-tiny", "toy-or"):
        loaded = interp.load_model(name)
        found = fit(name, tokens=8)
        assert found.parameters == sum(p.numel() for p in loaded.hf_model.parameters())
        assert (found.n_layers, found.n_heads) == (loaded.n_layers, loaded.n_heads)


@pytest.mark.long
@pytest.mark.slow
def test_the_default_model(smollm, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(REAL_CACHE))
    expected = sum(p.numel() for p in smollm.hf_model.parameters())
    assert fit(smollm.name).parameters == fit("countdown-smollm2").parameters == expected


def test_an_adapter_is_its_base(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny("llama").config.save_pretrained(base)
    adapter.mkdir()
    about = {"base_model_name_or_path": str(base), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    assert fit(str(adapter), tokens=8).parameters == fit(str(base), tokens=8).parameters


def test_what_is_not_known_is_said(tmp_path):
    untried = fit(saved(transformers.FalconConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        parallel_attn=False,
    ), tmp_path), tokens=8)  # fmt: skip
    assert UNTRIED in untried.notes
    assert untried.sites == {}
    config = FAMILIES["llama"]()
    config.quantization_config = {"quant_method": "fp8"}
    assert any("quantised (fp8)" in x for x in fit(saved(config, tmp_path), tokens=8).notes)


def test_what_is_refused(tmp_path):
    file = saved(FAMILIES["llama"](), tmp_path)
    with pytest.raises(InterpError, match="takes at most 64"):
        fit(file, tokens=65)
    for wrong in ({"n": 0}, {"tokens": 0}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(InterpError, match=next(iter(wrong))):
            fit(file, **wrong)
    with pytest.raises(InterpError, match="not on this machine"):
        fit("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InterpError, match=r"no config.json"):
        fit(str(tmp_path / "empty"))
    with pytest.raises(InterpError, match="not a causal language model"):
        fit(saved(transformers.T5Config(), tmp_path))
    with pytest.raises(InterpError, match="did you mean 'H100 SXM'"):
        card_named("H100")
    assert card_named("h100sxm").tflops == 989


def test_durations_have_units():
    words = [duration(x) for x in (1, 60, 6000, 7200, 20 * 3600, 50 * 3600)]
    assert words == ["a second", "60 s", "2 hours", "2 hours", "20 hours", "2 days"]
