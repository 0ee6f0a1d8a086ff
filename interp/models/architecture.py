"""The parts of a Hugging Face decoder under one set of names.

The only file that knows the module paths of other people's models. `read_architecture` takes an
untouched causal language model and returns a `Decoder`: embedding, blocks, final norm and
unembedding as small callables on flat tokens. `interp.engine` runs them; `interp.models.checks`
compares them with the model's own forward before anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.errors import InterpError

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """`x @ weight + bias`; `weight` has shape (d_in, d_out), as TransformerLens writes it."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x @ self.weight
        return torch.addmm(self.bias, x, self.weight)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """LayerNorm (`centred`) or RMSNorm over the last dimension."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool

    def __call__(self, x: Tensor) -> Tensor:
        shape = (x.shape[-1],)
        if self.centred:
            return F.layer_norm(x, shape, self.weight, self.bias, self.eps)
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return F.rms_norm(wide, shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """What `part`, a summand of `whole`, adds to the normalised `whole`, bias left out.

        The scale is that of `whole`: the shares of all summands add up to the norm's output.
        """
        if self.centred:
            part = part - part.mean(-1, keepdim=True)
            whole = whole - whole.mean(-1, keepdim=True)
        return part * torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One attention layer.

    `q`, `k`, `v` are the projections (the sites of those names), before q/k norms and rotary
    embedding; `o` maps the concatenated heads (site `z`) to d_model. `window` is the number of
    keys a query sees, itself included, where attention is local.
    """

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    n_heads: int
    n_kv_heads: int
    d_head: int
    scale: float
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    norm_over_heads: bool = False
    softcap: float | None = None
    window: int | None = None
    rotary: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """`down(act(gate(x)) * up(x))`, or `down(act(gate(x)))` where there is no `up`.

    Sites: `pre` is gate(x), `pre_linear` is up(x), `post` is the input of `down`.
    """

    gate: Linear
    up: Linear | None
    down: Linear
    act: Function


@dataclass(frozen=True, kw_only=True)
class Block:
    """resid_mid = resid_pre + ln1_post(attn(ln1(resid_pre))); then the same with the MLP.

    With `parallel`, the MLP also reads resid_pre and there is no resid_mid. A norm the model
    does not have is None.
    """

    ln1: Norm | None
    attn: Attention
    ln1_post: Norm | None
    ln2: Norm | None
    mlp: Mlp
    ln2_post: Norm | None
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A causal decoder. `embed(tokens, positions)` gives resid_pre of layer 0."""

    family: str
    embed: Callable[[Tensor, Tensor], Tensor]
    rotary: Callable[[Tensor, str | None], tuple[Tensor, Tensor]] | None
    blocks: tuple[Block, ...]
    ln_final: Norm
    unembed: Tensor
    unembed_bias: Tensor | None
    final_softcap: float | None
    max_positions: int

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.unembed.shape[1]

    @property
    def d_vocab(self) -> int:
        """Number of tokens."""
        return self.unembed.shape[0]

    @property
    def d_mlp(self) -> int:
        """Number of neurons of an MLP layer."""
        return self.blocks[0].mlp.down.weight.shape[0]

    @property
    def flops(self) -> dict[str, float]:
        """Floating-point operations per token of a block's matrix products, attention left out."""
        attn, d = self.blocks[0].attn, self.d_model
        products = 3 if self.blocks[0].mlp.up is not None else 2
        return {
            "kv": 4.0 * d * attn.n_kv_heads * attn.d_head,
            "qo": 4.0 * d * attn.n_heads * attn.d_head,
            "mlp": 2.0 * d * self.d_mlp * products,
        }

    def logits(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of normalised final residuals, all of them or each row's own `tokens`."""
        if tokens is None:
            values = x @ self.unembed.T
            bias = self.unembed_bias
        else:
            values = torch.einsum("nd,nkd->nk", x, self.unembed[tokens])
            bias = None if self.unembed_bias is None else self.unembed_bias[tokens]
        if bias is not None:
            values = values + bias
        if self.final_softcap is not None:
            values = torch.tanh(values / self.final_softcap) * self.final_softcap
        return values


def read_architecture(model: nn.Module) -> Decoder:
    """The `Decoder` of a Hugging Face causal language model, sharing its weights.

    Call it before the model is wrapped: a bridge replaces submodules in place.

    Raises:
        InterpError: the architecture is not one of the families known here.
    """
    name = type(model).__name__
    if name not in _READERS:
        raise InterpError(
            f"a fast engine for {name}",
            "this architecture is not described in interp/models/architecture.py",
            f"known: {', '.join(sorted(_READERS))}; the hook loop still works (engine='hooks')",
        )
    return _READERS[name](model)


def _linear(module: Any) -> Linear:
    bias = module.bias.detach() if module.bias is not None else None
    return Linear(weight=module.weight.detach().T, bias=bias)


def _conv1d(module: Any) -> Linear:
    return Linear(weight=module.weight.detach(), bias=module.bias.detach())


def _norm(module: Any) -> Norm:
    """LayerNorm or RMSNorm; (1 + weight) for the Gemma families."""
    weight = module.weight.detach()
    if isinstance(module, nn.LayerNorm):
        return Norm(weight=weight, bias=module.bias.detach(), eps=module.eps, centred=True)
    if type(module).__name__.startswith("Gemma"):
        weight = 1.0 + (weight if weight.dtype == torch.float64 else weight.float())
    eps = getattr(module, "variance_epsilon", None) or module.eps
    return Norm(weight=weight, bias=None, eps=eps, centred=False)


def _activation(module: Any) -> Function:
    """The activation; the tanh form of GELU as one fused call."""
    if type(module).__name__ in ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh"):
        return lambda x: F.gelu(x, approximate="tanh")
    return module


def _read_llama_like(model: Any) -> Decoder:
    """Llama, Mistral, Qwen2, Qwen3, Gemma-2, Gemma-3 and OLMo-2: one layout, optional parts."""
    config, body = model.config, model.model
    layer_types = getattr(config, "layer_types", None) or [None] * len(body.layers)
    per_type = type(body.rotary_emb).__name__.startswith("Gemma3")
    blocks = []
    for layer, kind in zip(body.layers, layer_types, strict=True):
        attn, mlp = layer.self_attn, layer.mlp
        q_norm = getattr(attn, "q_norm", None)
        k_norm = getattr(attn, "k_norm", None)
        window = getattr(attn, "sliding_window", None)
        if kind is None:
            window = getattr(config, "sliding_window", None) if window is None else window
        ln1 = getattr(layer, "input_layernorm", None)
        post_norms = hasattr(layer, "post_feedforward_layernorm")
        if not post_norms:
            ln1_post, ln2, ln2_post = None, layer.post_attention_layernorm, None
        else:
            ln1_post, ln2_post = layer.post_attention_layernorm, layer.post_feedforward_layernorm
            ln2 = getattr(layer, "pre_feedforward_layernorm", None)
        blocks.append(
            Block(
                ln1=_norm(ln1) if ln1 is not None else None,
                attn=Attention(
                    q=_linear(attn.q_proj),
                    k=_linear(attn.k_proj),
                    v=_linear(attn.v_proj),
                    o=_linear(attn.o_proj),
                    n_heads=config.num_attention_heads,
                    n_kv_heads=config.num_key_value_heads,
                    d_head=attn.head_dim,
                    scale=attn.scaling,
                    q_norm=_norm(q_norm) if q_norm is not None else None,
                    k_norm=_norm(k_norm) if k_norm is not None else None,
                    norm_over_heads=q_norm is not None and q_norm.weight.numel() != attn.head_dim,
                    softcap=getattr(attn, "attn_logit_softcapping", None),
                    window=window,
                    rotary=kind if per_type else None,
                ),
                ln1_post=_norm(ln1_post) if ln1_post is not None else None,
                ln2=_norm(ln2) if ln2 is not None else None,
                mlp=Mlp(
                    gate=_linear(mlp.gate_proj),
                    up=_linear(mlp.up_proj),
                    down=_linear(mlp.down_proj),
                    act=_activation(mlp.act_fn),
                ),
                ln2_post=_norm(ln2_post) if ln2_post is not None else None,
            )
        )
    embedding, rotary = body.embed_tokens, body.rotary_emb
    probe = embedding.weight

    def angles(positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        extra = {} if kind is None else {"layer_type": kind}
        cos, sin = rotary(probe, positions[None], **extra)
        return cos[0], sin[0]

    return Decoder(
        family=config.model_type,
        embed=lambda tokens, positions: embedding(tokens),
        rotary=angles,
        blocks=tuple(blocks),
        ln_final=_norm(body.norm),
        unembed=model.lm_head.weight.detach(),
        unembed_bias=None,
        final_softcap=getattr(config, "final_logit_softcapping", None),
        max_positions=config.max_position_embeddings,
    )


def _read_gpt2(model: Any) -> Decoder:
    config, body = model.config, model.transformer
    d_head = config.hidden_size // config.num_attention_heads
    blocks = []
    for layer in body.h:
        attn, mlp = layer.attn, layer.mlp
        weights = attn.c_attn.weight.detach().chunk(3, dim=1)
        biases = attn.c_attn.bias.detach().chunk(3)
        q, k, v = (Linear(weight=w, bias=b) for w, b in zip(weights, biases, strict=True))
        blocks.append(
            Block(
                ln1=_norm(layer.ln_1),
                attn=Attention(
                    q=q,
                    k=k,
                    v=v,
                    o=_conv1d(attn.c_proj),
                    n_heads=config.num_attention_heads,
                    n_kv_heads=config.num_attention_heads,
                    d_head=d_head,
                    scale=attn.scaling,
                ),
                ln1_post=None,
                ln2=_norm(layer.ln_2),
                mlp=Mlp(
                    gate=_conv1d(mlp.c_fc),
                    up=None,
                    down=_conv1d(mlp.c_proj),
                    act=_activation(mlp.act),
                ),
                ln2_post=None,
            )
        )
    tokens_in, positions_in = body.wte, body.wpe
    return Decoder(
        family=config.model_type,
        embed=lambda tokens, positions: tokens_in(tokens) + positions_in(positions),
        rotary=None,
        blocks=tuple(blocks),
        ln_final=_norm(body.ln_f),
        unembed=model.lm_head.weight.detach(),
        unembed_bias=None,
        final_softcap=None,
        max_positions=config.max_position_embeddings,
    )


def _read_neox(model: Any) -> Decoder:
    config, body = model.config, model.gpt_neox
    heads = config.num_attention_heads
    d_head = config.hidden_size // heads
    blocks = []
    for layer in body.layers:
        attn, mlp = layer.attention, layer.mlp
        joint = attn.query_key_value
        weight = joint.weight.detach().view(heads, 3, d_head, -1)
        bias = joint.bias.detach().view(heads, 3, d_head) if joint.bias is not None else None
        q, k, v = (
            Linear(
                weight=weight[:, part].reshape(heads * d_head, -1).T,
                bias=None if bias is None else bias[:, part].reshape(-1),
            )
            for part in range(3)
        )
        blocks.append(
            Block(
                ln1=_norm(layer.input_layernorm),
                attn=Attention(
                    q=q,
                    k=k,
                    v=v,
                    o=_linear(attn.dense),
                    n_heads=heads,
                    n_kv_heads=heads,
                    d_head=d_head,
                    scale=attn.scaling,
                ),
                ln1_post=None,
                ln2=_norm(layer.post_attention_layernorm),
                mlp=Mlp(
                    gate=_linear(mlp.dense_h_to_4h),
                    up=None,
                    down=_linear(mlp.dense_4h_to_h),
                    act=_activation(mlp.act),
                ),
                ln2_post=None,
                parallel=config.use_parallel_residual,
            )
        )
    embedding, rotary = body.embed_in, body.rotary_emb

    def angles(positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        cos, sin = rotary(embedding.weight, positions[None])
        return cos[0], sin[0]

    return Decoder(
        family=config.model_type,
        embed=lambda tokens, positions: embedding(tokens),
        rotary=angles,
        blocks=tuple(blocks),
        ln_final=_norm(body.final_layer_norm),
        unembed=model.get_output_embeddings().weight.detach(),
        unembed_bias=None,
        final_softcap=None,
        max_positions=config.max_position_embeddings,
    )


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
