"""Read the parts of a `Decoder` from the modules of each model family.

Only this file knows the module names of Hugging Face models; `interp.models.modules` reads the
modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from interp.core.errors import InterpError
from interp.engine.architecture import (
    Attention,
    Block,
    Decoder,
    Experts,
    Linear,
    Mlp,
    Norm,
    Rotation,
    Scale,
)
from interp.models.modules import read_activation, read_experts, read_linear, read_norm


def read_architecture(model: nn.Module) -> Decoder:
    """The `Decoder` of a Hugging Face causal language model, sharing its weights.

    Call it before the model is wrapped, because a bridge replaces submodules in place.

    Raises:
        InterpError: the architecture is not one of the families known here, or a module is not of
            the expected plain class.
    """
    name = type(model).__name__
    if name not in FAMILIES:
        raise InterpError(
            f"a fast engine for {name}",
            "this architecture is not described in interp/models/families.py",
            f"use one of {', '.join(sorted({*FAMILIES} - {*OUTSIDE}))}, or the hook loop "
            "(engine='hooks')",
        )
    return _Reader(FAMILIES[name], model).decoder()


Angles = Callable[[Tensor, str | None], tuple[Tensor, Tensor]]
Alibi = Callable[[Any, int, torch.dtype], Tensor]


def _angles(model: Any, body: Any) -> Angles:
    """Cosines and sines from the body's rotary module, of a layer type if it has several."""
    module, like = body.rotary_emb, model.get_output_embeddings().weight
    several = "layer_type" in signature(module.forward).parameters

    def angles(positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        extra = {"layer_type": kind} if several else {}
        cos, sin = module(like, positions[None], **extra)
        return cos[0], sin[0]

    return angles


def _angles_twice(model: Any, body: Any) -> Angles:
    """Each angle for two neighbouring dimensions (GLM), whose module gives them for two halves."""
    halves = _angles(model, body)

    def angles(positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        cos, sin = (x.chunk(2, -1)[0].repeat_interleave(2, -1) for x in halves(positions, kind))
        return cos, sin

    return angles


def _angles_half(model: Any, body: Any) -> Angles:
    """Each angle for both halves (GPT-OSS), whose module gives them once."""
    once = _angles(model, body)

    def angles(positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        cos, sin = (torch.cat([x, x], -1) for x in once(positions, kind))
        return cos, sin

    return angles


def _angles_gptj(model: Any, body: Any) -> Angles:
    """From the table that every GPT-J layer holds, for as many positions as the model takes."""
    table = body.h[0].attn.embed_positions

    def angles(positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        held = table[positions.clamp(max=len(table) - 1)]
        sin, cos = (x.repeat_interleave(2, -1) for x in held.chunk(2, -1))
        return cos, sin

    return angles


def _window(config: Any, attn: Any, kind: str | None) -> int | None:
    """The attention's own window, or that of the configuration if layers have no types."""
    own = getattr(attn, "sliding_window", None)
    return getattr(config, "sliding_window", None) if kind is None and own is None else own


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the parts of a family are, and what it does that their names do not say.

    Names are dotted paths: of the body from the model; of the layers, the embedding, a norm behind
    it (`embed_norm`), learned positions (`places`) and the final norm from the body; of norms,
    attention and MLP from a layer; of all else from these. A part that is absent is None. "a|b" is
    the first of two norms that is there. If queries, keys and values (or gate and up) are one map,
    `qkv` (`gate_up`) is its name, and `split(attention, joint)` takes its weight or bias,
    (width, ...), apart.

    rotary: the rotary angles, if it has them. rotation: see `Rotation`. scale: what multiplies the
    scores. window: the keys a query sees, from the configuration, the attention and the layer's
    type. bias: ALiBi, if the configuration has it. parallel: whether the MLP reads what attention
    reads; without a norm of its own it takes that of attention. times: factors of the embedding,
    of what blocks write and of the logits. refuse: why a configuration is not read.
    """

    body: str = "model"
    layers: str = "layers"
    embed: str = "embed_tokens"
    embed_norm: str = ""
    places: str = ""
    final: str = "norm"
    ln1: str = "input_layernorm"
    ln1_post: str = ""
    ln2: str = "post_attention_layernorm"
    ln2_post: str = ""
    attn: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    qkv: str = ""
    split: Callable[[Any, Tensor], Sequence[Tensor]] = lambda attn, joint: joint.chunk(3)
    o: str = "o_proj"
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"
    mlp: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    gate_up: str = ""
    down: str = "down_proj"
    act: str = "act_fn"
    rotary: Callable[[Any, Any], Angles] | None = _angles
    rotation: Callable[[Any], Rotation] = lambda attn: "half"
    scale: Callable[[Any], float] = lambda attn: attn.scaling
    window: Callable[[Any, Any, str | None], int | None] = _window
    bias: Callable[[Any], Alibi | None] = lambda config: None
    parallel: Callable[[Any], bool] = lambda config: False
    times: Callable[[Any], tuple[float, float, float]] = lambda config: (1.0, 1.0, 1.0)
    refuse: Callable[[Any], str] = lambda config: ""


def part_at(module: Any, path: str) -> Any:
    """The part at a dotted path, None if it is absent; the module itself for ""."""
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
    return module


class _Reader:
    """Reads a model by the description of its family."""

    def __init__(self, family: Family, model: Any) -> None:
        self.family, self.model, self.config = family, model, model.config
        if why := family.refuse(model.config):
            name = type(model).__name__
            raise InterpError(f"a fast engine for this {name}", why, "use engine='hooks'")
        self.body = part_at(model, family.body)
        self.entered, self.written, self.read_out = family.times(model.config)

    def decoder(self) -> Decoder:
        """The whole decoder."""
        family, config, layers = self.family, self.config, part_at(self.body, self.family.layers)
        kinds = getattr(config, "layer_types", None) or [None] * len(layers)
        unembed = read_linear(self.model.get_output_embeddings())
        final = self.norm(self.body, "final")
        assert final is not None
        return Decoder(
            family=config.model_type,
            embed=self.embed(),
            rotary=None if family.rotary is None else family.rotary(self.model, self.body),
            blocks=tuple(map(self.block, layers, kinds)),
            ln_final=_multiplied(final, self.read_out),
            unembed=unembed.weight.T,
            unembed_bias=unembed.bias,
            final_softcap=getattr(config, "final_logit_softcapping", None),
            max_positions=getattr(config, "max_position_embeddings", None) or ANY_LENGTH,
        )

    def embed(self) -> Callable[[Tensor, Tensor], Tensor]:
        """From tokens and positions to resid_pre of layer 0."""
        family, factor = self.family, self.entered
        words, norm = part_at(self.body, family.embed), self.norm(self.body, "embed_norm")
        places = part_at(self.body, family.places) if family.places else None

        def embed(tokens: Tensor, positions: Tensor) -> Tensor:
            found = words(tokens) if factor == 1 else words(tokens) * factor
            if places is not None:
                found = found + places.weight[positions + getattr(places, "offset", 0)]
            return found if norm is None else norm(found)

        return embed

    def norm(self, module: Any, part: str) -> Norm | None:
        """A norm by its field in `Family`."""
        paths = filter(None, getattr(self.family, part).split("|"))
        found = next((x for path in paths if (x := part_at(module, path)) is not None), None)
        return None if found is None else read_norm(found)

    def block(self, layer: Any, kind: str | None) -> Block:
        """A layer, of a type if layers have types."""
        ln1, ln2 = self.norm(layer, "ln1"), self.norm(layer, "ln2")
        parallel = self.family.parallel(self.config)
        scale = None if self.written == 1 else Scale(factor=self.written)
        return Block(
            ln1=ln1,
            attn=self.attention(part_at(layer, self.family.attn), kind),
            ln1_post=self.norm(layer, "ln1_post") or scale,
            ln2=ln1 if parallel and ln2 is None else ln2,
            mlp=self.mlp(part_at(layer, self.family.mlp)),
            ln2_post=self.norm(layer, "ln2_post") or scale,
            parallel=parallel,
        )

    def attention(self, attn: Any, kind: str | None) -> Attention:
        """The attention of a layer."""
        family, config = self.family, self.config
        heads = config.num_attention_heads
        width = getattr(attn, "head_dim", None) or config.hidden_size // heads
        if family.qkv:
            q, k, v = self.parts(part_at(attn, family.qkv), partial(family.split, attn))
        else:
            q, k, v = (read_linear(part_at(attn, name)) for name in (family.q, family.k, family.v))
        q_norm, sinks = self.norm(attn, "q_norm"), getattr(attn, "sinks", None)
        over = q_norm is not None and q_norm.weight.dim() == 1 and q_norm.weight.numel() != width
        return Attention(
            q=q,
            k=k,
            v=v,
            o=read_linear(part_at(attn, family.o)),
            n_heads=heads,
            n_kv_heads=k.weight.shape[1] // width,
            d_head=width,
            scale=family.scale(attn),
            q_norm=q_norm,
            k_norm=self.norm(attn, "k_norm"),
            norm_over_heads=over,
            softcap=getattr(attn, "attn_logit_softcapping", None),
            window=family.window(config, attn, kind),
            rotary=kind,
            rotation=family.rotation(attn),
            bias=partial(self.bias, alibi) if (alibi := family.bias(config)) else None,
            sinks=None if sinks is None else sinks.detach(),
        )

    def bias(self, alibi: Alibi, positions: Tensor) -> Tensor:
        """(heads, keys) ALiBi's bias of keys at these positions."""
        dtype, size = self.model.dtype, int(positions.max()) + 1
        table = alibi(self.config, size, dtype).view(-1, size)
        return table.to(positions.device, dtype)[:, positions]

    def mlp(self, mlp: Any) -> Mlp | Experts:
        """The MLP of a layer, or its experts."""
        family = self.family
        if hasattr(mlp, "experts"):
            return read_experts(mlp, self.config)
        if family.gate_up:
            gate, up = self.parts(part_at(mlp, family.gate_up), lambda joint: joint.chunk(2))
        else:
            gate, up = read_linear(part_at(mlp, family.gate)), None
            if family.up:
                up = read_linear(part_at(mlp, family.up))
        down = read_linear(part_at(mlp, family.down))
        return Mlp(gate=gate, up=up, down=down, act=read_activation(part_at(mlp, family.act)))

    def parts(self, joint: Any, split: Callable[[Tensor], Sequence[Tensor]]) -> list[Linear]:
        """The maps that one joint map holds, as views of its weight where they are contiguous."""
        whole = read_linear(joint)
        weights = split(whole.weight.T)
        biases = [None] * len(weights) if whole.bias is None else split(whole.bias)
        return [
            Linear(weight=weight.T, bias=bias) for weight, bias in zip(weights, biases, strict=True)
        ]


ANY_LENGTH = 2**20
"""The longest prompt of a model whose positions have no end."""


def _multiplied(norm: Norm, factor: float) -> Norm:
    """A norm whose output is multiplied, in float32 or wider."""
    if factor == 1:
        return norm
    wide = norm.weight if norm.weight.dtype == torch.float64 else norm.weight.float()
    return replace(
        norm, weight=wide * factor, bias=None if norm.bias is None else norm.bias * factor
    )


# -- joint maps: (attention, (width, ...)) -> queries, keys, values -----------------------------


def _by_size(attn: Any, joint: Tensor) -> Sequence[Tensor]:
    """All queries, all keys, all values (Phi-3, GPT-BigCode)."""
    kv = getattr(attn, "kv_dim", None) or attn.config.num_key_value_heads * attn.head_dim
    return joint.split([len(joint) - 2 * kv, kv, kv])


def _by_head(attn: Any, joint: Tensor) -> Sequence[Tensor]:
    """Query, key and value of each head in turn (GPT-NeoX, BLOOM)."""
    width = getattr(attn, "head_size", None) or attn.head_dim
    return [part.flatten(0, 1) for part in joint.unflatten(0, (-1, 3, width)).unbind(1)]


def _by_group(attn: Any, joint: Tensor) -> Sequence[Tensor]:
    """Queries that share a key/value head, its key and its value (Falcon)."""
    if not (attn.new_decoder_architecture or attn.multi_query):
        return _by_head(attn, joint)
    groups = attn.num_kv_heads
    parts = joint.unflatten(0, (groups, -1, attn.head_dim))
    return [part.flatten(0, 2) for part in (parts[:, :-2], parts[:, -2:-1], parts[:, -1:])]


# -- ALiBi: (configuration, keys, dtype) -> (heads, keys), as transformers computes it ---------


def _alibi_bloom(config: Any, size: int, dtype: torch.dtype) -> Tensor:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    return build_alibi_tensor(
        torch.ones(1, size, dtype=torch.long), config.num_attention_heads, dtype
    )


def _alibi_falcon(config: Any, size: int, dtype: torch.dtype) -> Tensor:
    """Falcon adds it before the scores are scaled."""
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    scale = (config.hidden_size // config.num_attention_heads) ** -0.5
    return (
        build_alibi_tensor(torch.ones(1, size, dtype=torch.long), config.num_attention_heads, dtype)
        * scale
    )


def _alibi_mpt(config: Any, size: int, dtype: torch.dtype) -> Tensor:
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    return build_mpt_alibi_tensor(config.num_attention_heads, size)


# -- the families ------------------------------------------------------------------------------


def _interleaved(attn: Any) -> Rotation:
    return "interleaved"


LLAMA = Family()
SANDWICHED = replace(
    LLAMA,
    ln1_post="post_attention_layernorm",
    ln2="pre_feedforward_layernorm",
    ln2_post="post_feedforward_layernorm",
)
"""Norms before and behind attention and MLP (Gemma-2 and 3), or behind alone (OLMo-2 and 3)."""

COHERE = replace(LLAMA, ln2="", parallel=lambda config: True, rotation=_interleaved,
                 times=lambda config: (1.0, 1.0, config.logit_scale))  # fmt: skip
PLAIN = replace(LLAMA, gate="fc1", up="", down="fc2", act="activation_fn")
"""An MLP without a gate."""

GPT2 = replace(
    LLAMA, body="transformer", layers="h", embed="wte", places="wpe", final="ln_f", ln1="ln_1",
    ln2="ln_2", attn="attn", qkv="c_attn", o="c_proj", gate="c_fc", up="", down="c_proj", act="act",
    rotary=None,
)  # fmt: skip
BLOOM = replace(
    GPT2, embed="word_embeddings", embed_norm="word_embeddings_layernorm", places="",
    ln1="input_layernorm", ln2="post_attention_layernorm", attn="self_attention",
    qkv="query_key_value", split=_by_head, o="dense", gate="dense_h_to_4h", down="dense_4h_to_h",
    act="gelu_impl", bias=lambda config: _alibi_bloom, scale=lambda attn: attn.inv_norm_factor,
    refuse=lambda config: (
        "its residual connection is behind the norm"
        if config.apply_residual_connection_post_layernorm
        else "its weights were trained in parts that are added in another order"
        if config.pretraining_tp > 1 and config.slow_but_exact
        else ""
    ),
)  # fmt: skip
FALCON = replace(
    BLOOM, embed_norm="", ln1="ln_attn|input_layernorm", ln2="ln_mlp|post_attention_layernorm",
    split=_by_group, act="act", rotary=_angles,
    bias=lambda config: _alibi_falcon if config.alibi else None,
    rotation=lambda attn: "none" if attn.config.alibi else "half",
    parallel=lambda config: config.new_decoder_architecture or config.parallel_attn,
    refuse=lambda config: "",
)  # fmt: skip
LATENT = "its keys and values come from a latent, with keys wider than values"
CHUNKED = "its experts weight what they read, and some of its layers scale queries by position"
CLIPPED = "it limits queries, keys and values (clip_qkv)"

OUTSIDE = dict.fromkeys(("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), LATENT)
OUTSIDE |= {"Llama4ForCausalLM": CHUNKED}
"""Families whose parts plain hooks find, and why the fast engine runs none of their models."""

FAMILIES = {
    **{name: replace(LLAMA, refuse=lambda config, why=why: why) for name, why in OUTSIDE.items()},
    "BloomForCausalLM": BLOOM,
    "Cohere2ForCausalLM": replace(
        COHERE, rotation=lambda attn: "none" if attn.sliding_window is None else "interleaved"
    ),
    "CohereForCausalLM": COHERE,
    "FalconForCausalLM": FALCON,
    "GPT2LMHeadModel": GPT2,
    "GPTBigCodeForCausalLM": replace(GPT2, split=_by_size),
    "GPTJForCausalLM": replace(
        GPT2, places="", ln2="", qkv="", o="out_proj", gate="fc_in", down="fc_out",
        parallel=lambda config: True, rotary=_angles_gptj, rotation=_interleaved,
        scale=lambda attn: 1 / attn.scale_attn,
    ),
    "GPTNeoForCausalLM": replace(
        GPT2, attn="attn.attention", qkv="", o="out_proj", scale=lambda attn: 1.0,
        window=lambda config, attn, kind: (
            config.window_size if attn.attention_type == "local" else None
        ),
    ),
    "GPTNeoXForCausalLM": replace(
        LLAMA, body="gpt_neox", embed="embed_in", final="final_layer_norm", attn="attention",
        qkv="query_key_value", split=_by_head, o="dense", gate="dense_h_to_4h", up="",
        down="dense_4h_to_h", act="act", parallel=lambda config: config.use_parallel_residual,
    ),
    "Gemma2ForCausalLM": SANDWICHED,
    "Gemma3ForCausalLM": SANDWICHED,
    "GemmaForCausalLM": LLAMA,
    "Glm4ForCausalLM": replace(
        LLAMA, ln1_post="post_self_attn_layernorm", ln2_post="post_mlp_layernorm",
        gate_up="gate_up_proj", act="activation_fn", rotary=_angles_twice, rotation=_interleaved,
    ),
    "GptOssForCausalLM": replace(LLAMA, rotary=_angles_half),
    "GraniteForCausalLM": replace(
        LLAMA,
        times=lambda config: (
            config.embedding_multiplier, config.residual_multiplier, 1 / config.logits_scaling
        ),
    ),
    "LlamaForCausalLM": LLAMA,
    "MinistralForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "MixtralForCausalLM": LLAMA,
    "MptForCausalLM": replace(
        GPT2, layers="blocks", places="", final="norm_f", ln1="norm_1", ln2="norm_2", qkv="Wqkv",
        o="out_proj", mlp="ffn", gate="up_proj", down="down_proj", 
        bias=lambda config: _alibi_mpt if config.attn_config.alibi else None,
        scale=lambda attn: attn.softmax_scale,
        refuse=lambda config: CLIPPED if config.attn_config.clip_qkv else "",
    ),
    "OPTForCausalLM": replace(
        PLAIN, body="model.decoder", places="embed_positions", final="final_layer_norm",
        ln1="self_attn_layer_norm", ln2="final_layer_norm", o="out_proj", mlp="", rotary=None,
        refuse=lambda config: (
            "" if config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size
            else "its norms are behind the residual connections, or its embeddings are projected"
        ),
    ),
    "Olmo2ForCausalLM": SANDWICHED,
    "Olmo3ForCausalLM": SANDWICHED,
    "OlmoForCausalLM": replace(LLAMA, refuse=lambda config: CLIPPED if config.clip_qkv else ""),
    "OlmoeForCausalLM": replace(LLAMA, refuse=lambda config: CLIPPED if config.clip_qkv else ""),
    "Phi3ForCausalLM": replace(
        LLAMA, qkv="qkv_proj", split=_by_size, gate_up="gate_up_proj", act="activation_fn"
    ),
    "PhiForCausalLM": replace(
        PLAIN, final="final_layernorm", o="dense", ln2="", q_norm="q_layernorm",
        k_norm="k_layernorm", parallel=lambda config: True,
    ),
    "Qwen2ForCausalLM": LLAMA,
    "Qwen2MoeForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "Qwen3MoeForCausalLM": LLAMA,
    "SmolLM3ForCausalLM": replace(LLAMA, rotation=lambda attn: "half" if attn.use_rope else "none"),
    "StableLmForCausalLM": replace(
        LLAMA, q_norm="q_layernorm", k_norm="k_layernorm",
        parallel=lambda config: config.use_parallel_residual,
    ),
    "Starcoder2ForCausalLM": replace(LLAMA, gate="c_fc", up="", down="c_proj", act="act"),
}  # fmt: skip
"""The families that are described, by the name of their class in transformers."""
