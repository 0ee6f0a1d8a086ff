"""Read the parts of a `Decoder` from the modules of each model family.

Only this file knows the module names of Hugging Face models. A part is read only if its module
computes exactly the same: a plain linear map or norm of the expected class, with nothing attached.
Adapters, quantised weights and parametrisations are refused with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.core.errors import InterpError
from interp.engine.architecture import Attention, Block, Decoder, Function, Linear, Mlp, Norm


def read_architecture(model: nn.Module) -> Decoder:
    """The `Decoder` of a Hugging Face causal language model, sharing its weights.

    Call it before the model is wrapped, because a bridge replaces submodules in place.

    Raises:
        InterpError: the architecture is not one of the families known here, or a module is not of
            the expected plain class.
    """
    name = type(model).__name__
    if name not in _READERS:
        raise InterpError(
            f"a fast engine for {name}",
            "this architecture is not described in interp/models/families.py",
            f"use one of {', '.join(sorted(_READERS))}, or the hook loop (engine='hooks')",
        )
    return _READERS[name](model)


_PROBES = 8


def _linear(module: Any) -> Linear:
    """A plain `nn.Linear` or `Conv1D`, sharing its weight.

    Its class and attached hooks are checked. Then it is run on a few unit vectors: the result must
    be exactly the rows of its weight plus its bias, in every dtype.
    """
    from transformers.pytorch_utils import Conv1D

    _require_plain(module, isinstance(module, nn.Linear | Conv1D))
    weight = module.weight.detach() if isinstance(module, Conv1D) else module.weight.detach().T
    bias = module.bias.detach() if module.bias is not None else None
    rows = torch.linspace(0, len(weight) - 1, min(_PROBES, len(weight))).long().to(weight.device)
    units = torch.zeros(len(rows), len(weight), dtype=weight.dtype, device=weight.device)
    units[torch.arange(len(rows), device=weight.device), rows] = 1
    expected = weight[rows] if bias is None else weight[rows] + bias
    with torch.no_grad():
        if not torch.equal(module(units), expected):
            raise InterpError(
                f"a fast engine with a {type(module).__name__}",
                "its output on unit vectors is not exactly its weight's rows plus its bias",
                "load plain weights, and turn reduced precision (TF32) off",
            )
    return Linear(weight=weight, bias=bias)


def _require_plain(module: Any, known: bool) -> None:
    """Refuse a module of another class, or with something attached that changes its output."""
    kind = type(module)
    own = not kind.__module__.startswith(("torch.nn.modules.", "transformers."))
    if not known or own or _attached(module):
        raise InterpError(
            f"a fast engine with a {kind.__module__}.{kind.__name__}",
            "it is not the plain module of its family",
            "merge adapters, load plain weights, or use engine='hooks'",
        )


def _attached(module: Any) -> str:
    """What is attached to a module and changes its output or gradient; "" if nothing is."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    for kind in kinds:
        if getattr(module, f"_{kind}"):
            return kind.replace("_", " ")
    return "a patched forward" if "forward" in vars(module) else ""


def refuse_attached(model: nn.Module, name: str) -> None:
    """Refuse a model that computes something other than its classes do, or was loaded before.

    The hooks that accelerate adds to a model on several devices are allowed.

    Raises:
        InterpError: a module has hooks or a patched `forward`, or belongs to a bridge.
    """
    bridged = sys.modules.get("transformer_lens.model_bridge.generalized_components.base")
    for path, module in model.named_modules():
        if bridged is not None and isinstance(module, bridged.GeneralizedComponent):
            raise InterpError(
                f"loading {name}",
                "this object was loaded before, which changed it",
                "use the LanguageModel from that call, or load a new object",
            )
        if hasattr(module, "_hf_hook"):
            continue
        if found := _attached(module):
            raise InterpError(
                f"loading {name}",
                f"{path or 'the model'} ({type(module).__name__}) has {found}",
                "remove them first; pass hooks for a LanguageModel to intervene()",
            )


def _norm(module: Any) -> Norm:
    """LayerNorm or RMSNorm; the Gemma families store weight - 1."""
    name = type(module).__name__
    _require_plain(module, isinstance(module, nn.LayerNorm) or name.endswith("RMSNorm"))
    weight = module.weight.detach()
    if isinstance(module, nn.LayerNorm):
        bias = module.bias.detach() if module.bias is not None else None
        return Norm(weight=weight, bias=bias, eps=module.eps, centred=True)
    if name.startswith("Gemma"):
        weight = 1.0 + (weight if weight.dtype == torch.float64 else weight.float())
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(weight=weight, bias=None, eps=eps, centred=False)


def _norm_of(layer: Any, name: str) -> Norm | None:
    """The norm of a layer with that name; None if the layer has none."""
    module = getattr(layer, name, None)
    return None if module is None else _norm(module)


def _activation(module: Any) -> Function:
    """The activation function; the tanh approximation of GELU is computed in one fused call."""
    if type(module).__name__ in ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh"):
        return lambda x: F.gelu(x, approximate="tanh")
    return module


def _decoder(
    model: Any,
    blocks: list[Block],
    ln_final: Any,
    embed: Callable[[Tensor, Tensor], Tensor],
    rotary: Any = None,
) -> Decoder:
    """The `Decoder` with these blocks. `rotary` is the module of the rotary embedding."""
    head, config = model.get_output_embeddings(), model.config

    def angles(positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        extra = {} if kind is None else {"layer_type": kind}
        cos, sin = rotary(head.weight, positions[None], **extra)
        return cos[0], sin[0]

    return Decoder(
        family=config.model_type,
        embed=embed,
        rotary=None if rotary is None else angles,
        blocks=tuple(blocks),
        ln_final=_norm(ln_final),
        unembed=_linear(head).weight.T,
        final_softcap=getattr(config, "final_logit_softcapping", None),
        max_positions=config.max_position_embeddings,
    )


def _read_llama_like(model: Any) -> Decoder:
    """Llama, Mistral, Qwen2, Qwen3, Gemma-2, Gemma-3 and OLMo-2 have one layout."""
    config, body = model.config, model.model
    layer_types = getattr(config, "layer_types", None) or [None] * len(body.layers)
    per_type = type(body.rotary_emb).__name__.startswith("Gemma3")
    blocks = []
    for layer, kind in zip(body.layers, layer_types, strict=True):
        attn, mlp = layer.self_attn, layer.mlp
        q_norm = _norm_of(attn, "q_norm")
        window = getattr(attn, "sliding_window", None)
        if kind is None and window is None:
            window = getattr(config, "sliding_window", None)
        norms = {"ln2": "post_attention_layernorm"}
        if hasattr(layer, "post_feedforward_layernorm"):
            norms = {
                "ln1_post": "post_attention_layernorm",
                "ln2": "pre_feedforward_layernorm",
                "ln2_post": "post_feedforward_layernorm",
            }
        others: dict[str, Any] = {part: _norm_of(layer, name) for part, name in norms.items()}
        blocks.append(
            Block(
                ln1=_norm_of(layer, "input_layernorm"),
                attn=Attention(
                    q=_linear(attn.q_proj),
                    k=_linear(attn.k_proj),
                    v=_linear(attn.v_proj),
                    o=_linear(attn.o_proj),
                    n_heads=config.num_attention_heads,
                    n_kv_heads=config.num_key_value_heads,
                    d_head=attn.head_dim,
                    scale=attn.scaling,
                    q_norm=q_norm,
                    k_norm=_norm_of(attn, "k_norm"),
                    norm_over_heads=q_norm is not None and q_norm.weight.numel() != attn.head_dim,
                    softcap=getattr(attn, "attn_logit_softcapping", None),
                    window=window,
                    rotary=kind if per_type else None,
                ),
                mlp=Mlp(
                    gate=_linear(mlp.gate_proj),
                    up=_linear(mlp.up_proj),
                    down=_linear(mlp.down_proj),
                    act=_activation(mlp.act_fn),
                ),
                **others,
            )
        )
    embedding = body.embed_tokens
    return _decoder(model, blocks, body.norm, lambda tokens, _: embedding(tokens), body.rotary_emb)


def _plain_block(
    config: Any, attn: Any, qkv: list[Linear], out: Any, norms: tuple[Any, Any], mlp: Mlp
) -> Block:
    """A block in which every head has its own keys and values, and both norms exist."""
    q, k, v = qkv
    heads = config.num_attention_heads
    return Block(
        ln1=_norm(norms[0]),
        attn=Attention(
            q=q,
            k=k,
            v=v,
            o=_linear(out),
            n_heads=heads,
            n_kv_heads=heads,
            d_head=config.hidden_size // heads,
            scale=attn.scaling,
        ),
        ln2=_norm(norms[1]),
        mlp=mlp,
        parallel=getattr(config, "use_parallel_residual", False),
    )


def _read_gpt2(model: Any) -> Decoder:
    config, body = model.config, model.transformer
    blocks = []
    for layer in body.h:
        joint, mlp = _linear(layer.attn.c_attn), layer.mlp
        assert joint.bias is not None
        parts = zip(joint.weight.chunk(3, dim=1), joint.bias.chunk(3), strict=True)
        qkv = [Linear(weight=weight, bias=bias) for weight, bias in parts]
        own = Mlp(gate=_linear(mlp.c_fc), down=_linear(mlp.c_proj), act=_activation(mlp.act))
        norms = layer.ln_1, layer.ln_2
        blocks.append(_plain_block(config, layer.attn, qkv, layer.attn.c_proj, norms, own))
    words, places = body.wte, body.wpe
    return _decoder(model, blocks, body.ln_f, lambda tokens, at: words(tokens) + places(at))


def _read_neox(model: Any) -> Decoder:
    config, body = model.config, model.gpt_neox
    heads = config.num_attention_heads
    blocks = []
    for layer in body.layers:
        attn, mlp = layer.attention, layer.mlp
        joint = _linear(attn.query_key_value)
        weight = joint.weight.T.view(heads, 3, config.hidden_size // heads, -1)
        bias = joint.bias.view(heads, 3, -1) if joint.bias is not None else None
        qkv = [
            Linear(
                weight=weight[:, part].flatten(0, 1).T,
                bias=None if bias is None else bias[:, part].reshape(-1),
            )
            for part in range(3)
        ]
        into, out = _linear(mlp.dense_h_to_4h), _linear(mlp.dense_4h_to_h)
        own = Mlp(gate=into, down=out, act=_activation(mlp.act))
        norms = layer.input_layernorm, layer.post_attention_layernorm
        blocks.append(_plain_block(config, attn, qkv, attn.dense, norms, own))
    words, final = body.embed_in, body.final_layer_norm
    return _decoder(model, blocks, final, lambda tokens, _: words(tokens), body.rotary_emb)


_READERS: dict[str, Callable[[Any], Decoder]] = {
    "GPT2LMHeadModel": _read_gpt2,
    "GPTNeoXForCausalLM": _read_neox,
    **dict.fromkeys(
        [
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
            "Gemma2ForCausalLM",
            "Gemma3ForCausalLM",
            "Olmo2ForCausalLM",
        ],
        _read_llama_like,
    ),
}
