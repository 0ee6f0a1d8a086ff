"""Directories, adapters, GGUF files and objects: the model that was named, or the true reason."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
import transformers as t
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from interp.core.errors import InterpError
from interp.models import checkpoints, checks
from interp.models.checkpoints import departures, read_checkpoint
from interp.models.loading import load_model, wrap
from tests.families import FAMILIES, OTHERS, VOCABULARY, tiny

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny Llama on disk: its folder, its configuration, its tensors."""
    folder = tmp_path_factory.mktemp("saved") / "llama"
    tiny("llama").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return folder, config, load_file(folder / "model.safetensors")


@pytest.fixture
def variant(saved, tmp_path):
    """Makes a folder like the saved one with something changed."""

    def make(tensors=None, *, raw=None, files=None, **config):
        tmp_path.joinpath("config.json").write_text(json.dumps({**saved[1], **config}))
        save_file(tensors or saved[2], tmp_path / "model.safetensors", metadata={"format": "pt"})
        if raw is not None:
            tmp_path.joinpath("model.safetensors").write_bytes(raw)
        for name, text in (files or {}).items():
            tmp_path.joinpath(name).write_text(text)
        return str(tmp_path)

    return make


def read(folder):
    return read_checkpoint(folder, dtype=torch.float32)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_stripped(prefix, saved, variant):
    model, _ = read(variant({prefix + name: tensor for name, tensor in saved[2].items()}))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[2][name])


def test_tensors_missing_left_over_or_of_another_shape_are_named(saved, variant):
    without = {name: x for name, x in saved[2].items() if "layers.1.mlp.up" not in name}
    with pytest.raises(InterpError, match=r"1 missing \(model.layers.1.mlp.up_proj.weight\)"):
        read(variant(without))
    with pytest.raises(InterpError, match=r"9 unexpected \(model.layers.2.input_layernorm"):
        read(variant(num_hidden_layers=2))
    with pytest.raises(InterpError, match="9 missing"):
        read(variant(num_hidden_layers=4))
    cut = {name: x[:40] if "1.mlp.up" in name else x for name, x in saved[2].items()}
    with pytest.raises(InterpError, match=r"1.mlp.up_proj.weight \(40, 32\) for \(48, 32\)"):
        read(variant(cut))
    renamed = {f"net.{name}": tensor for name, tensor in saved[2].items()}
    with pytest.raises(InterpError, match="missing.*unexpected"):
        read(variant(renamed))


@pytest.mark.parametrize(
    ("name", "layer", "buffers"),
    [
        ("gpt2", "transformer.h.0.attn", ["bias", "masked_bias"]),
        ("gpt-neo", "transformer.h.1.attn.attention", ["bias", "masked_bias"]),
        ("gptj", "transformer.h.0.attn", ["bias", "masked_bias"]),
        ("neox", "gpt_neox.layers.0.attention", ["bias", "masked_bias", "rotary_emb.inv_freq"]),
        ("llama", "model.layers.0.self_attn", ["rotary_emb.inv_freq"]),
    ],
)
def test_buffers_of_older_files_are_not_left_over(name, layer, buffers, tmp_path):
    """Masks and rotary frequencies; a bias of a layer that the model has not is unexpected."""
    model = tiny(name)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for buffer in buffers:
        tensors[f"{layer}.{buffer}"] = torch.ones(1, 1, 4, 4)
    save_file(tensors, path, metadata={"format": "pt"})
    assert torch.equal(logits(read(str(tmp_path))[0]), logits(model))
    tensors[f"{layer}.other.bias"] = torch.ones(4)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InterpError, match="1 unexpected"):
        read(str(tmp_path))


def test_tied_weights_and_buffers_are_not_missing(tmp_path):
    """Tied embeddings are written once, rotary frequencies never."""
    for name in ("gpt2", "gemma2"):
        model = tiny(name)
        model.save_pretrained(tmp_path / name)
        read_back, _ = read(str(tmp_path / name))
        assert torch.equal(logits(read_back), logits(model))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"raw": b""}, "weights file is damaged"),
        ({"raw": b"\xff" * 64}, "weights file is damaged"),
        ({"hidden_act": "gelo"}, "hidden_act 'gelo' in config.json is unknown"),
        ({"hidden_act": 7}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "nope", "rope_theta": 1e4}}, "rope_type 'nope'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "long_factor"),
        ({"rope_parameters": []}, "rope_parameters"),
        ({"num_hidden_layers": 0}, "unexpected"),
        ({"num_attention_heads": 0}, "ZeroDivision"),
        ({"num_attention_heads": 3}, "multiple"),
        ({"vocab_size": "x"}, "vocab_size"),
        ({"vocab_size": 96}, "97, 32"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"model_type": "nope"}, "nope"),
        ({"model_type": "t5"}, "encoder and a decoder"),
        ({"model_type": "clip"}, "not a causal language model"),
        ({"architectures": 7}, "int"),
        ({"pad_token_id": 1000}, "(?i)padding_idx"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "optimum"),
        ({"model_type": "x", "auto_map": {"AutoConfig": "x.Y"}}, "needs its own code"),
        ({"files": {"config.json": "{"}}, "not a valid JSON"),
        ({"files": {"config.json": "null"}}, "NoneType"),
        ({"files": {"config.json": "[]"}}, "model_type"),
        ({"files": {"tokenizer.json": "{}"}}, "the tokeniser of"),
        ({"files": {"tokenizer_config.json": "[]"}}, "the tokeniser of"),
        ({"files": {"vocab.json": "{}", "merges.txt": ""}}, "the tokeniser of"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_loaded_says_why(change, reason, variant, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked on stdin"))
    with pytest.raises(InterpError, match=reason):
        read(variant(**change))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.long
def test_any_entry_of_a_configuration_gives_a_model_or_an_error_in_words(data, saved):
    """No traceback, whatever an entry holds; never a model whose entry was nonsense."""
    folder, config, _ = saved
    key = data.draw(st.sampled_from(sorted(config)))
    value = data.draw(st.sampled_from([None, -1, 0, 1, 1.5, "x", [], {}, True]))
    with tempfile.TemporaryDirectory() as name:
        Path(name, "config.json").write_text(json.dumps({**config, key: value}))
        Path(name, "model.safetensors").symlink_to(folder / "model.safetensors")
        try:
            model = load_model(name, check=False)
        except InterpError:
            return
        tokens = model.last_logits([model.tokenize([5, 6]).tokens])
    assert tokens.shape == (1, VOCABULARY)


def test_truncated_weights(saved, variant):
    whole = (saved[0] / "model.safetensors").read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(InterpError, match="weights file is damaged"):
            read(variant(raw=whole[:size]))


def test_folders_without_parts(saved, tmp_path):
    with pytest.raises(InterpError, match="no config.json"):
        read(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(saved[1]))
    with pytest.raises(InterpError, match="no file named model.safetensors"):
        read(str(tmp_path))


def test_encoder_decoders_and_state_spaces_are_named(tmp_path):
    config = t.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    t.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(InterpError, match="T5ForConditionalGeneration has an encoder"):
        load_model(str(tmp_path))
    with pytest.raises(InterpError, match="T5ForConditionalGeneration has an encoder"):
        load_model(t.T5ForConditionalGeneration(config))
    mamba = t.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(InterpError, match="no attention heads"):
        load_model(t.MambaForCausalLM(mamba))
    with pytest.raises(InterpError, match="no layers"):
        load_model(t.LlamaForCausalLM(t.LlamaConfig(vocab_size=60, num_hidden_layers=0)))


def test_nan_in_a_weight_that_no_prompt_uses_is_refused():
    model = tiny("llama")
    model.model.embed_tokens.weight.data[0, 3] = torch.nan
    with pytest.raises(InterpError, match="model.embed_tokens.weight holds NaN"):
        wrap(model, name="broken")


# -- adapters --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(saved):
    """A LoRA adapter of the saved model on disk, and the logits PEFT gives with it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    base = t.AutoModelForCausalLM.from_pretrained(saved[0])
    adapted = get_peft_model(base, config).eval()
    folder = saved[0].parent / "adapter"
    adapted.save_pretrained(folder)
    return folder, logits(adapted)


def test_adapter_directory_is_base_and_adapter(saved, adapter):
    model, _ = read(str(adapter[0]))
    torch.testing.assert_close(logits(model), adapter[1], atol=1e-5, rtol=0)
    base, _ = read(str(saved[0]))
    assert (logits(base) - adapter[1]).abs().max() > 0.01
    loaded = load_model(str(adapter[0]))
    assert loaded.engine_reason is None
    found = loaded.last_logits([TOKENS[0].tolist()])
    torch.testing.assert_close(found, adapter[1][:, -1], atol=1e-5, rtol=0)


def test_adapter_is_merged_into_the_revision_it_names(adapter, tmp_path, monkeypatch):
    about = json.loads((adapter[0] / "adapter_config.json").read_text())
    about |= {"base_model_name_or_path": "someone/base", "revision": "v2"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    seen = []

    def from_pretrained(**source):
        seen.append(source)
        raise OSError("no hub here")

    monkeypatch.setattr(t.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(InterpError, match="not loaded from Hugging Face"):
        read(str(tmp_path))
    assert [source["revision"] for source in seen] == ["v2"]


def test_adapter_follows_the_device_map(adapter, monkeypatch):
    seen, whole = [], checkpoints._read_model
    monkeypatch.setattr(
        checkpoints, "_read_model", lambda *given: (seen.append(given[-1]), whole(*given))[1]
    )
    model, _ = read_checkpoint(str(adapter[0]), dtype=torch.float32, device_map={"": "cpu"})
    assert seen == [{"": "cpu"}]
    torch.testing.assert_close(logits(model), adapter[1], atol=1e-5, rtol=0)


def test_adapter_with_a_tensor_too_few_is_refused(adapter, tmp_path):
    tensors = load_file(adapter[0] / "adapter_model.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    about = (adapter[0] / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(about)
    with pytest.raises(InterpError, match="1 missing .*lora_A"):
        read(str(tmp_path))


def test_unmerged_adapters_never_reach_the_fast_engine(saved, adapter):
    """Injected by transformers they stay, through hooks; a PEFT model in memory is merged."""
    from peft import PeftModel

    injected = t.AutoModelForCausalLM.from_pretrained(adapter[0])
    model = wrap(injected, name="injected")
    assert "lora" in model.engine_reason
    found = model.last_logits([TOKENS[0].tolist()])
    torch.testing.assert_close(found, adapter[1][:, -1], atol=1e-5, rtol=0)
    base = t.AutoModelForCausalLM.from_pretrained(saved[0])
    merged = load_model(PeftModel.from_pretrained(base, str(adapter[0])))
    assert merged.engine_reason is None
    found = merged.last_logits([TOKENS[0].tolist()])
    torch.testing.assert_close(found, adapter[1][:, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_engine_sees_a_small_change_of_one_map(name, dtype):
    """A forward that adds a rank-1 change of 1e-3, in any dtype, takes the engine away."""
    model = tiny(name, dtype)
    body = model.transformer.h if name == "gpt2" else model.model.layers
    module = body[1].mlp.c_proj if name == "gpt2" else body[1].mlp.down_proj
    plain, weight = module.forward, module.weight.detach()
    left, right = torch.randn(48 if name == "llama" else 128), torch.randn(32)
    change = torch.outer(left, right)
    change = (change * 1e-3 * weight.float().norm() / change.norm()).to(dtype)

    class Changed(type(module)):
        def forward(self, x):
            return plain(x) + x @ change

    assert wrap(tiny(name, dtype), name="plain", check=False).decoder is not None
    Changed.__module__ = type(module).__module__  # as close to the plain class as it gets
    module.__class__ = Changed
    assert "on unit vectors" in wrap(model, name="x", check=False).engine_reason


def test_parametrised_maps_are_not_read():
    from torch.nn.utils.parametrizations import weight_norm

    normed = tiny("llama")
    weight_norm(normed.model.layers[0].mlp.up_proj)
    assert "not the plain module" in wrap(normed, name="x", check=False).engine_reason


def test_engine_check_looks_at_every_layer_and_token(monkeypatch):
    """A rotary base that is off changes later positions only, by little at the last layer."""
    from dataclasses import replace

    from interp.models import loading

    reader = loading.read_architecture

    def off(model):
        decoder = reader(model)
        first, *rest = decoder.blocks
        attn = replace(first.attn, scale=first.attn.scale * 1.01)
        return replace(decoder, blocks=(replace(first, attn=attn), *rest))

    monkeypatch.setattr(loading, "read_architecture", off)
    assert "residual stream before layer 1" in wrap(tiny("llama"), name="x").engine_reason


def test_engine_check_compares_in_blocks_of_rows(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    found, expected = torch.randn(2, 7, 5, generator=generator)
    whole = (found - expected).double().norm(dim=-1) / expected.double().norm(dim=-1)
    held, double = [], torch.Tensor.double
    monkeypatch.setattr(checks, "BLOCK", 10)
    monkeypatch.setattr(torch.Tensor, "double", lambda x: (held.append(x.numel()), double(x))[1])
    assert checks.row_gap(found, expected) == pytest.approx(float(whole.max()), rel=1e-6)
    assert max(held) == 10
    found[6, 2] = torch.nan
    assert checks.row_gap(found, expected) != checks.row_gap(found, expected)


# -- other sources ---------------------------------------------------------------------------


def test_model_in_memory(saved):
    given = tiny("llama")
    expected = logits(given)
    model = load_model(given)
    assert model.name == "LlamaForCausalLM"
    found = model.last_logits([TOKENS[0].tolist()])
    torch.testing.assert_close(found, expected[:, -1], atol=1e-5, rtol=0)
    assert model.hash == load_model(str(saved[0])).hash
    with pytest.raises(InterpError, match="used as it is"):
        load_model(tiny("llama"), dtype="bfloat16")


def add_five(module, inputs, out):
    return out + 5


@pytest.mark.parametrize("path", ["", "model", "model.layers.1", "model.layers.1.self_attn.v_proj"])
@pytest.mark.parametrize("attach", ["forward_hook", "forward_pre_hook", "full_backward_hook", ""])
def test_what_is_attached_to_a_model_in_memory_is_refused(path, attach):
    given = tiny("llama")
    module = given.get_submodule(path)
    if attach:
        handle = getattr(module, f"register_{attach}")(add_five)
    else:
        plain, module.forward = module.forward, lambda *args, **options: plain(*args, **options)
    with pytest.raises(InterpError, match=f"(?s){path or 'the model'} .*(hooks|forward of its)"):
        load_model(given)
    if attach:
        handle.remove()
        assert load_model(given).engine_reason is None


class Shifted(t.models.llama.modeling_llama.LlamaDecoderLayer):
    def forward(self, *args, **options):
        return super().forward(*args, **options) + 5


def as_subclass(model):
    model.model.layers[1].__class__ = Shifted


def with_other_frequencies(model):
    model.model.rotary_emb.inv_freq *= 0.5


def with_other_scale(model):
    model.model.layers[0].self_attn.scaling *= 3


def with_other_activation(model):
    model.model.layers[0].mlp.act_fn = torch.nn.GELU()


@pytest.mark.parametrize(
    "change", [as_subclass, with_other_frequencies, with_other_scale, with_other_activation]
)
def test_model_that_computes_something_else_has_another_hash_and_check(change, saved):
    """Same weights and configuration: neither its results nor its check are the plain model's."""
    plain, given = load_model(str(saved[0])), tiny("llama")
    change(given)
    expected = logits(given)[:, -1]
    model, prompt = load_model(given), [TOKENS[0].tolist()]
    assert model.hash != plain.hash
    torch.testing.assert_close(model.last_logits(prompt), expected, atol=1e-5, rtol=0)
    assert (plain.last_logits(prompt) - expected).abs().max() > 1e-3
    assert (model.decoder is None) == (change is as_subclass)
    assert load_model(str(saved[0])).engine_reason is None


@pytest.mark.long
def test_check_of_a_model_in_memory_is_not_kept(saved, monkeypatch):
    """A wrong outcome, kept, would take the engine from the model of the same weights."""
    with monkeypatch.context() as patch:
        patch.setattr("interp.models.loading.check_engine", lambda *a: "wrong")
        assert load_model(tiny("llama")).engine_reason == "wrong"
    assert load_model(str(saved[0])).engine_reason is None
    monkeypatch.setattr("interp.models.loading.check_engine", lambda *a: "wrong")
    assert load_model(str(saved[0])).engine_reason is None  # the kept one
    assert load_model(tiny("llama")).engine_reason == "wrong"


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "gemma3"])
def test_object_is_loaded_once(name):
    given = tiny(name)
    load_model(given)
    with pytest.raises(InterpError, match="loaded before"):
        load_model(given)


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_plain_models_depart_in_nothing(name):
    assert departures(tiny(name)) == []


def test_revision_is_for_the_hub(saved):
    for name in (str(saved[0]), "toy-or"):
        with pytest.raises(InterpError, match="revision"):
            load_model(name, revision="main")
    with pytest.raises(InterpError, match="not loaded from Hugging Face"):
        load_model("someone/some-model", revision="v2")


def test_gguf_file(saved, tmp_path):
    import gguf

    _, config, tensors = saved
    path = tmp_path / "tiny.gguf"
    out = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
        "head_count": "num_attention_heads", "head_count_kv": "num_key_value_heads",
        "layer_norm_rms_eps": "rms_norm_eps", "vocab_size": "vocab_size",
    }.items():  # fmt: skip
        getattr(out, f"add_{key}")(config[value])
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(8)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(["a", "b", "ab", *(f"t{i}" for i in range(VOCABULARY - 3))])
    out.add_token_merges(["a b"])
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for layer in range(3):
        for ours, theirs in {
            "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
            "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
            "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        }.items():  # fmt: skip
            names[f"model.layers.{layer}.{ours}"] = f"blk.{layer}.{theirs}"
    for ours, theirs in names.items():
        x = tensors[f"{ours}.weight"]
        if theirs.endswith(("attn_q", "attn_k")):  # llama.cpp's order of rotary pairs
            x = x.unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(0, 2)
        out.add_tensor(f"{theirs}.weight", x.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    model = load_model(str(path))
    assert model.engine_reason is None
    assert model.token_id("ab") == (2,)
    found = model.last_logits([TOKENS[0].tolist()])
    torch.testing.assert_close(found, logits(tiny("llama"))[:, -1], atol=1e-5, rtol=0)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InterpError, match="tiny.gguf"):
        load_model(str(path))


def test_gpt2_vocabulary_and_merges(tmp_path):
    tiny("gpt2").save_pretrained(tmp_path)
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    model = load_model(str(tmp_path))
    assert model.tokenize("abba").tokens == (2, 1, 0)


def test_gemma3_multimodal_gives_its_text_model(tmp_path):
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 48, "max_position_embeddings": 64, "sliding_window": 4,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    ids = {"boi_token_index": 90, "eoi_token_index": 91, "image_token_index": 92}
    config = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **ids)
    whole = t.Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    expected = logits(whole)[:, -1]
    for model in (load_model(str(tmp_path)), load_model(whole)):
        assert model.engine_reason is None
        found = model.last_logits([TOKENS[0].tolist()])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# -- special tokens --------------------------------------------------------------------------


def tokenizer(pattern: str, template: str | None = None):
    """A word-level tokeniser that puts `<s>` and `</s>` where the pattern says."""
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "fox": 5}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=pattern, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=template
    )


@pytest.mark.parametrize(
    ("pattern", "before"), [("<s> $A </s>", (0,)), ("$A </s>", ()), ("<s> $A", (0,)), ("$A", ())]
)
def test_one_bos_and_no_eos(pattern, before):
    model = wrap(tiny("llama"), tokenizer(pattern), name="x", check=False)
    assert model.tokenize("red fox").tokens == (*before, 4, 5)
    prompt = model.tokenize("<s>red fox")
    assert prompt.tokens == (0, 4, 5)
    assert prompt.spans[-1] == (7, 10)
    assert any("</s>" in note for note in model.notes) == pattern.endswith("</s>")
    assert ("</s>" in repr(model)) == pattern.endswith("</s>")


def test_chat_template_text_keeps_one_bos():
    template = "<s>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    made = tokenizer("<s> $A", template)
    text = made.apply_chat_template([{"role": "user", "content": "red fox"}], tokenize=False)
    model = wrap(tiny("llama"), made, name="x", check=False)
    assert model.tokenize(text).tokens == (0, 4, 5)
    assert any("one copy" in note for note in model.notes)
