"""Every site that a tiny random model of each family offers, against plain hooks on its modules."""

import json
from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from interp.core.errors import InterpError
from interp.engine.forward import Runner
from interp.engine.layout import Layout
from interp.models import checks
from interp.models.families import read_architecture
from interp.models.loading import FAMILY_TABLE, known_families, load_model
from interp.runs.hooks import intervene
from interp.runs.kinds import exclude, zero
from tests.families import EXPERTS, FAMILIES, LONGROPE, OTHERS, record, tiny, wrapped

TOKENS = [5, 36, 30, 44, 20, 61, 7, 81, 13]
OTHER = [9, 12, 77, 3, 52, 8, 41, 66, 30]
LAYER = 1
LLAMA = {
    "blocks": "model.layers", "attn": "self_attn", "o": "self_attn.o_proj",
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "mid": "post_attention_layernorm", "mlp": "mlp", "pre": "mlp.gate_proj",
    "pre_linear": "mlp.up_proj", "post": "mlp.down_proj",
}  # fmt: skip
_UNGATED = {"pre": "mlp.fc1", "post": "mlp.fc2", "pre_linear": None}
_OPT = {
    **LLAMA, "blocks": "model.decoder.layers", "o": "self_attn.out_proj",
    "mid": "final_layer_norm", "mlp": "fc2", "pre": "fc1", "post": "fc2", "pre_linear": None,
}  # fmt: skip
_NEOX = {
    "blocks": "gpt_neox.layers", "attn": "attention", "o": "attention.dense",
    "joint": "attention.query_key_value", "split": "heads", "mid": "post_attention_layernorm",
    "mlp": "mlp", "pre": "mlp.dense_h_to_4h", "post": "mlp.dense_4h_to_h",
}  # fmt: skip
_FALCON = {
    **_NEOX, "blocks": "transformer.h", "attn": "self_attention", "o": "self_attention.dense",
    "joint": "self_attention.query_key_value",
}  # fmt: skip
_GPTJ = {
    **LLAMA, "blocks": "transformer.h", "attn": "attn", "o": "attn.out_proj", "q": "attn.q_proj",
    "k": "attn.k_proj", "v": "attn.v_proj", "pre": "mlp.fc_in", "post": "mlp.fc_out",
}  # fmt: skip
PARTS = {
    "phi": {**LLAMA, **_UNGATED, "o": "self_attn.dense"},
    "phi3": {
        **LLAMA, "joint": "self_attn.qkv_proj", "split": "rows", "up": "mlp.gate_up_proj",
        "mid": "post_attention_layernorm",
    },
    "opt": _OPT,
    "opt-350m": _OPT,
    "gpt-neo": {
        **LLAMA, "blocks": "transformer.h", "attn": "attn", "o": "attn.attention.out_proj",
        "q": "attn.attention.q_proj", "k": "attn.attention.k_proj", "v": "attn.attention.v_proj",
        "mid": "ln_2", "pre": "mlp.c_fc", "post": "mlp.c_proj",
    },
    "gptj": _GPTJ,
    "neox-serial": _NEOX,
    "neox-no-bias": _NEOX,
    "bigcode": {
        "blocks": "transformer.h", "attn": "attn", "o": "attn.c_proj", "joint": "attn.c_attn",
        "split": "rows", "mid": "ln_2", "mlp": "mlp", "pre": "mlp.c_fc", "post": "mlp.c_proj",
    },
    "bloom": {**_FALCON, "adds": ("attn", "mlp")},
    "falcon-7b": {**_FALCON, "split": "rows"},
    "falcon-rw": _FALCON,
    "mpt": {
        **_FALCON, "blocks": "transformer.blocks", "attn": "attn", "o": "attn.out_proj",
        "joint": "attn.Wqkv", "split": "rows", "mid": "norm_2", "mlp": "ffn",
        "pre": "ffn.up_proj", "post": "ffn.down_proj", "adds": ("mlp",),
    },
    "starcoder2": {**LLAMA, "pre": "mlp.c_fc", "post": "mlp.c_proj"},
    **dict.fromkeys(
        "stablelm olmo gemma cohere cohere2 smollm3 llama-longrope mixtral olmoe qwen2-moe "
        "qwen3-moe gpt-oss deepseek-v3 qwen3-next recurrent-gemma".split(),
        LLAMA,
    ),
    "granite": {**LLAMA, "scale": 0.5},
}  # fmt: skip
PARTS["phi3-longrope"] = PARTS["phi3"]
PARTS["recurrent-gemma"] = {**LLAMA, "mid": "channel_pre_norm"}


@cache
def loaded(name):
    """A model, or why it is refused."""
    return wrapped(name)


class Plain:
    """A Hugging Face model read and changed by hooks on its own modules, at one layer."""

    def __init__(self, name, model):
        self.hf, self.parts = tiny(name), PARTS[name]
        self.heads, self.kv, self.width = model.n_heads, model.n_kv_heads, model.d_head
        self.parallel, self.mixture = model.parallel, model.sites["router"] is None
        self.block = self.hf.get_submodule(self.parts["blocks"])[LAYER]
        self.scale = self.parts.get("scale", 1.0)

    def run(self, tokens, change=None):
        """(sites, logits); `change` is a site and its new value."""
        seen, handles = {}, []

        def at(path, side, function):
            """Calls function(value) -> new value or None at a module's input or output."""
            module = self.block if path == "" else self.block.get_submodule(path)

            def inward(module, args, kwargs):
                name = None if args else "hidden_states"
                new = function(args[0] if args else kwargs[name])
                if new is None:
                    return None
                return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

            def outward(module, args, out):
                new = function(out[0] if isinstance(out, tuple) else out)
                if new is None:
                    return None
                return (new, *out[1:]) if isinstance(out, tuple) else new

            if side == "in":
                handles.append(module.register_forward_pre_hook(inward, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(outward))

        def site(name, path, side, get=lambda x: x, put=lambda x, new: new.reshape(x.shape)):
            def function(x):
                if change is not None and change[0] == name:
                    x = put(x, change[1])
                    seen[name] = get(x)
                    return x
                seen[name] = get(x)
                return None

            at(path, side, function)

        parts = self.parts
        site("resid_pre", "", "in")
        for part, name in (("attn", "attn_out"), ("mlp", "mlp_out")):
            base = {"attn": "resid_pre", "mlp": "resid_mid"}[part]
            if part in parts.get("adds", ()):  # the module itself adds the residual stream
                site(
                    name, parts[part], "out",
                    lambda x, base=base: x - seen[base], lambda x, new, base=base: seen[base] + new,
                )  # fmt: skip
            elif part in parts and self._has(parts[part]):
                site(
                    name, parts[part], "out",
                    lambda x: x * self.scale, lambda x, new: (new / self.scale).reshape(x.shape),
                )  # fmt: skip
        if not self.parallel:
            at(parts["mid"], "in", lambda x: seen.__setitem__("resid_mid", x))
        if "joint" in parts:
            for which in "qkv":
                site(which, parts["joint"], "out", *self._slices(which))
        else:
            for which, heads in (("q", self.heads), ("k", self.kv), ("v", self.kv)):
                if self._has(parts[which]):
                    site(
                        which, parts[which], "out",
                        lambda x, heads=heads: x.unflatten(-1, (heads, -1)),
                        lambda x, new: new.flatten(-2),
                    )  # fmt: skip
        if self._has(parts["o"]):
            site("z", parts["o"], "in", lambda x: x.unflatten(-1, (self.heads, -1)),
                 lambda x, new: new.flatten(-2))  # fmt: skip
        if "up" in parts:
            width = self.block.get_submodule(parts["post"]).in_features
            for name, half in (("pre", slice(0, width)), ("pre_linear", slice(width, None))):
                site(name, parts["up"], "out", lambda x, half=half: x[..., half],
                     lambda x, new, half=half: _with(x, half, new))  # fmt: skip
        else:
            for name in ("pre", "pre_linear"):
                if parts.get(name) and self._has(parts[name]):
                    site(name, parts[name], "out")
        if self._has(parts["post"]):
            site("post", parts["post"], "in")
        site("resid_post", "", "out")
        if self.mixture:
            self.block.mlp.forward = lambda x: self._experts(x, seen, *(change or ("", None)))
        try:
            with torch.no_grad():
                out = self.hf(torch.tensor([tokens]), output_attentions=True, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        if getattr(out, "attentions", None):
            patterns = [pattern for pattern in out.attentions if pattern is not None]
            if len(patterns) > LAYER:
                seen["pattern"] = patterns[LAYER]
        return seen, out.logits

    def _has(self, path):
        return path is not None and any(name == path for name, _ in self.block.named_modules())

    def _experts(self, x, seen, changed, new):
        """A mixture of experts, token by token and expert by expert."""
        mlp, x = self.block.mlp, x[0]
        router, shared = getattr(mlp, "router", None) or mlp.gate, hasattr(mlp, "shared_expert")
        logits = F.linear(x, router.weight, getattr(router, "bias", None))
        if shared:
            logits = torch.cat([logits, mlp.shared_expert_gate(x)], -1)
        if changed == "router":
            logits = new[0]
        n = len(router.weight)
        with mock.patch.object(F, "linear", return_value=logits[:, :n]):
            _, weights, chosen = router(x)
        each = x.new_zeros(len(x), logits.shape[1], x.shape[1])
        for token, slot in np.ndindex(*chosen.shape):
            at = slice(token, token + 1), slice(slot, slot + 1)
            each[token, chosen[token, slot]] = mlp.experts(x[at[0]], chosen[at], weights[at])[0]
        if shared:
            each[:, n] = torch.sigmoid(logits[:, n:]) * mlp.shared_expert(x)
        if changed == "expert_out":
            each = new[0]
        seen["router"], seen["expert_out"] = logits[None], each[None]
        written = each.sum(1)[None]
        return (written, weights) if hasattr(mlp, "router") else written

    def _slices(self, which):
        number = "qkv".index(which)
        if self.parts["split"] == "heads":  # q, k and v of a head lie together
            shape = (self.heads, 3, self.width)

            def put(x, new):
                shaped = x.unflatten(-1, shape).clone()
                shaped[..., number, :] = new
                return shaped.flatten(-3)

            return (lambda x: x.unflatten(-1, shape)[..., number, :]), put
        starts = [0, self.heads, self.heads + self.kv, self.heads + 2 * self.kv]
        part = slice(starts[number] * self.width, starts[number + 1] * self.width)
        return (
            lambda x: x[..., part].unflatten(-1, (-1, self.width)),
            lambda x, new: _with(x, part, new.flatten(-2)),
        )


def _with(x, part, new):
    changed = x.clone()
    changed[..., part] = new
    return changed


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def swapped(model, site, values):
    """Logits of TOKENS with a site set to other values, through our hooks."""
    return checks._run(model, TOKENS, [], {(LAYER, site): values})[1]


@pytest.mark.parametrize("name", [name for name in PARTS if name != "falcon-rw"])
@pytest.mark.filterwarnings("ignore:A hook on")
def test_every_offered_site_is_what_plain_hooks_see_and_change(name):
    model = loaded(name)
    plain = Plain(name, model)
    offered = [site for site, why in model.sites.items() if why is None]
    (here, logits), (there, _) = plain.run(TOKENS), plain.run(OTHER)
    found, own_logits = checks._run(model, TOKENS, [(LAYER, site) for site in offered])
    close(own_logits, logits)
    for site in offered:
        assert site in here, f"no plain hook for {site}"
        close(found[LAYER, site], here[site].reshape(found[LAYER, site].shape))
        if site == "resid_mid":
            change = ("attn_out", there[site].view_as(here["resid_pre"]) - here["resid_pre"])
        elif site == "pattern":
            v = here["v"].repeat_interleave(model.n_heads // model.n_kv_heads, dim=2)
            change = ("z", torch.einsum("bhqk,bkhd->bqhd", there["pattern"], v))
        else:
            change = (site, there[site])
        new = plain.run(TOKENS, change)[1]
        assert (new - logits).abs().max() > 1e-4
        values = there[site].reshape(found[LAYER, site].shape)
        close(swapped(model, site, values), new)


@pytest.mark.parametrize("name", EXPERTS)
def test_removed_and_excluded_experts_are_those_of_plain_runs(name):
    """For every expert: zero keeps the routing weights, exclude makes the router choose anew.

    Without an expert that no token uses, only routers whose weights do not add up to 1 change.
    """
    model = loaded(name)
    plain = Plain(name, model)
    here, logits = plain.run(TOKENS)
    used = []
    for number in range(model.n_experts):
        rest, allowed = here["expert_out"].clone(), here["router"].clone()
        rest[:, :, number], allowed[:, :, number] = 0, -torch.inf
        _, removed = plain.run(TOKENS, ("expert_out", rest))
        without, excluded = plain.run(TOKENS, ("router", allowed))
        assert not without["expert_out"][:, :, number].any()
        for make, expected in ((zero, removed), (exclude, excluded)):
            with intervene(model, make(f"L{LAYER}E{number}")):
                close(model.last_logits([TOKENS]), expected[:, -1])
        used.append(bool(here["expert_out"][:, :, number].any()))
        shared = model.decoder.blocks[LAYER].mlp.shared and number == model.n_experts - 1
        chooses = not shared and (used[-1] or name in ("olmoe", "qwen2-moe"))
        assert ((removed - excluded).abs().max() > 1e-4) == chooses
        assert ((removed - logits).abs().max() > 1e-4) == used[-1]
    assert sum(used) > 2


def test_layers_without_experts_have_no_expert_sites():
    """Experts in some layers only are no components; the rest of the model is."""
    config = FAMILIES["qwen3-moe"]()
    config.mlp_only_layers = [0]
    model = load_model(transformers.AutoModelForCausalLM.from_config(config))
    assert model.n_experts == 0
    assert model.sites["expert_out"] == "layers differ in their experts"
    assert loaded("gpt2").sites["router"] == "the MLP is not a mixture of experts"
    for label, message in (("L1E0", "layers differ"), ("L1.router", "layers differ")):
        with pytest.raises(InterpError, match=message), intervene(model, zero(label)):
            pass


@pytest.mark.parametrize("name", OTHERS)
def test_table_of_families_is_what_they_are(name):
    rows = {row["name"]: row for row in known_families()}
    assert list(rows) == [*FAMILIES, *OTHERS]
    assert rows[name] == record(name, loaded(name))


def test_table_of_engine_families(family_models):
    rows = {row["name"]: row for row in known_families()}
    for name in FAMILIES:
        assert rows[name] == record(name, family_models[name])
        assert rows[name]["runs"] == "engine"
    assert json.loads(FAMILY_TABLE.read_text())["families"] == known_families()


def test_refused_families_say_why():
    refused = {
        row["name"]: row["missing"][""] for row in known_families() if row["runs"] == "refused"
    }
    assert set(refused) == {"falcon-40b", "falcon-rw", "ministral", "mamba"}
    assert "no attention heads" in refused["mamba"]
    assert "TransformerLens fails on it" in refused["falcon-40b"]
    assert "TransformerLens fails on it" in refused["ministral"]


def test_eager_attention_adds_the_bias_of_falcon_twice():
    """The reason why it is refused; the engine agrees with the attention that adds it once."""
    import transformers as t

    eager = tiny("falcon-rw")
    plain = t.AutoModelForCausalLM.from_config(OTHERS["falcon-rw"](), attn_implementation="sdpa")
    plain.load_state_dict(eager.state_dict())
    decoder, layout = read_architecture(eager), Layout.of_prompts([TOKENS])
    runner = Runner(decoder)
    with torch.no_grad():
        x = runner.embed([TOKENS], layout)
        for layer in range(len(decoder.blocks)):
            x = runner.block(layer, x, layout)
        own = decoder.logits(decoder.ln_final(x))
        once, twice = (model.eval()(torch.tensor([TOKENS])).logits[0] for model in (plain, eager))
    close(own, once)
    assert (twice - once).abs().max() > 0.01


@pytest.mark.parametrize(
    "name", ["phi3-longrope", "llama-longrope", "recurrent-gemma", "opt", "mpt"]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_mixed_lengths_give_what_each_prompt_gives_alone(name, side):
    """Longrope's angles depend on a pass's longest prompt, RecurrentGemma's state on padding."""
    model, reference = loaded(name), tiny(name)
    prompts = [tuple((7 * i + n) % 90 + 3 for i in range(n)) for n in (5, 12, 30, 16, 17, 6)]
    with torch.no_grad():
        expected = torch.stack([reference(torch.tensor([p])).logits[0, -1] for p in prompts])
    close(model.last_logits(prompts, padding_side=side), expected)


def test_longrope_has_no_fast_engine_and_says_so():
    model = loaded("llama-longrope")
    assert "depend on the length" in model.engine_reason
    assert "run separately" in repr(model)


def test_dynamic_rotary_refuses_what_depends_on_earlier_runs():
    import transformers as t

    config = OTHERS["llama-longrope"]()
    config = t.LlamaConfig(
        **{**config.to_dict(), "rope_parameters": {
            "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0,
            "original_max_position_embeddings": LONGROPE["original_max_position_embeddings"],
        }}
    )  # fmt: skip
    model = load_model(t.LlamaForCausalLM(config))
    assert model.tokenize([5] * 16)
    with pytest.raises(InterpError, match="between 1 and 16"):
        model.tokenize([5] * 17)


@pytest.mark.parametrize("name", ["opt", "gptj", "bigcode", "gpt-neo", "bloom"])
def test_prompts_too_long_or_empty(name):
    model = loaded(name)
    with pytest.raises(InterpError, match=r"0 tokens; write (between 1 and 64|at least 1)"):
        model.tokenize([])
    if name != "bloom":
        assert model.last_logits([model.tokenize([5] * 64).tokens]).shape == (1, model.d_vocab)
        with pytest.raises(InterpError, match="between 1 and 64"):
            model.tokenize([5] * 65)


@pytest.mark.parametrize(
    ("name", "length", "noted"),
    [
        ("mistral", 16, 0),
        ("gemma3", 16, 0),
        ("phi3-longrope", 28, 0),
        ("starcoder2", 20, 0),
        ("gpt-neo", 20, 0),
    ],
)
def test_check_prompt_reaches_past_windows_and_switches(name, length, noted):
    config = {**FAMILIES, **OTHERS}[name]()
    tokens, notes = checks.check_prompt(config, 10**5)
    assert len(tokens) == length
    assert len(notes) == noted


def test_windows_too_long_to_check_are_said():
    config = FAMILIES["mistral"]()
    config.sliding_window, config.max_position_embeddings = 4096, 32768
    tokens, notes = checks.check_prompt(config, 7 * 10**9)
    assert len(tokens) < 4096
    assert "sliding_window of 4096" in notes[0]
    assert len(checks.check_prompt(config, 10**8)[0]) > 4096
