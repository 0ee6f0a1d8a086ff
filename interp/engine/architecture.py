"""The parts of a Hugging Face decoder, with the same names for every model family.

A `Decoder` holds the embedding, blocks, final norm and unembedding as functions of flat tokens: the
tokens of all prompts in one axis. `interp.models.families` builds it from a Hugging Face model,
`interp.engine` runs it, and `interp.models.checks` compares it with the model's own forward pass
before anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from interp.core.errors import InterpError

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """`x @ weight + bias`, with `weight` of shape (d_in, d_out), as in TransformerLens."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x @ self.weight
        return torch.addmm(self.bias, x, self.weight)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """LayerNorm (`centred`) or RMSNorm over the last dimension.

    A query or key norm may have a weight for each head, (heads, d_head).
    """

    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool

    def __call__(self, x: Tensor) -> Tensor:
        shape, each = (x.shape[-1],), self.weight.dim() > 1
        if self.centred and not each and self.weight.dtype == x.dtype:
            return F.layer_norm(x, shape, self.weight, self.bias, self.eps)
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        weight = self.weight.to(wide.dtype)
        bias = None if self.bias is None else self.bias.to(wide.dtype)
        if not self.centred:
            found = F.rms_norm(wide, shape, None if each else weight, self.eps)
        else:
            found = F.layer_norm(wide, shape, None if each else weight, bias, self.eps)
        return (found * weight if each else found).to(x.dtype)

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """The contribution of `part`, one summand of `whole`, to the norm of `whole`.

            share = centre(part) / scale(whole) * weight

        The bias is not included. The shares of all summands add up to the norm's output without
        its bias.
        """
        if self.centred:
            part = part - part.mean(-1, keepdim=True)
            whole = whole - whole.mean(-1, keepdim=True)
        return part * torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight

    def reader(self, whole: Tensor, direction: Tensor) -> Tensor:
        """The vector r with part . r = share(part, whole) . direction, for every part of `whole`.

        All are (..., d_model); r is float64.
        """
        whole, direction = whole.double(), direction.to(whole.device).double()
        if self.centred:
            whole = whole - whole.mean(-1, keepdim=True)
        scale = torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + self.eps)
        found = direction * self.weight.to(whole) * scale
        return found - found.mean(-1, keepdim=True) if self.centred else found


@dataclass(frozen=True, kw_only=True)
class Scale:
    """x * factor, in the place of a norm behind attention or the MLP (Granite)."""

    factor: float
    bias: None = None
    centred: bool = False

    @property
    def weight(self) -> Tensor:
        """The factor, as the weight of a norm."""
        return torch.tensor(self.factor)

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """See `Norm.share`."""
        return part * self.factor

    def reader(self, whole: Tensor, direction: Tensor) -> Tensor:
        """See `Norm.reader`."""
        return direction.to(whole.device).double() * self.factor


def normed(norm: Norm | Scale | None, x: Tensor) -> Tensor:
    """The norm's output, or `x` itself if the model does not have this norm."""
    return x if norm is None else norm(x)


Rotation = Literal["half", "interleaved", "none"]
"""How the rotary embedding pairs dimensions: i with i + width / 2, or 2 i with 2 i + 1."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One attention layer.

    `q`, `k` and `v` compute the sites of those names, before the q/k norms and the rotary
    embedding. `o` maps the concatenated heads (site `z`) to d_model. `scale` multiplies the scores,
    and `softcap` c replaces a score s by c tanh(s / c). With `norm_over_heads`, the q/k norms act
    on all heads together. In local attention, `window` is the number of keys a query sees,
    including its own token. `rotary` names the kind of rotary embedding, if there are several.
    `bias(positions)`, (heads, keys), is added to the scores of keys at these positions (ALiBi).
    `sinks` holds a score for each head that takes its share of the attention and writes nothing
    (GPT-OSS), so that a row of the pattern sums to less than 1.
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
    rotation: Rotation = "half"
    bias: Function | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether torch's fused attention computes it."""
        return self.softcap is None and self.sinks is None

    @property
    def W_O(self) -> Tensor:
        """(head, d_head, d_model) the rows of `o.weight` that belong to each head."""
        return self.o.weight.view(self.n_heads, self.d_head, -1)

    def head_outputs(self, z: Tensor) -> Tensor:
        """(head, token, d_model) what each head writes, z_h W_O^h, from z (token, head, d_head).

        The sum over heads is the attention output without `o.bias`, which belongs to no head. If a
        post-norm follows (Gemma-2, OLMo-2), this is the norm's input.
        """
        weight = self.W_O
        return torch.bmm(z.to(weight).transpose(0, 1), weight)


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """`down(act(gate(x)) * up(x))`, or `down(act(gate(x)))` if `up` is None.

    Site `pre` is gate(x), `pre_linear` is up(x), and `post` is the input of `down`.
    """

    gate: Linear
    up: Linear | None = None
    down: Linear
    act: Function


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts: what it writes, (tokens, d_model), from what it reads.

        write(x) = sum over experts e of  weight_e(x) expert_e(x)

    `router(x)` is (tokens, size), a logit for each expert. `weights(logits)` are the routing
    weights, 0 for experts that are not chosen: a logit of minus infinity forbids an expert.
    `each(x, weights)`, (tokens, size, d_model), is what each expert writes. The last of the `size`
    experts is `shared` if the model has a shared one: it is never left out, and its logit is that
    of its own gate. A token uses `chosen` of the others. There is no one set of neurons; `width` is
    the number that a token uses.
    """

    write: Function
    router: Function
    weights: Function
    each: Callable[[Tensor, Tensor], Tensor]
    size: int
    shared: bool
    chosen: int
    width: int

    @property
    def routed(self) -> int:
        """The number of experts that the router chooses from."""
        return self.size - self.shared


@dataclass(frozen=True, kw_only=True)
class Block:
    """One layer of the decoder.

        resid_mid = resid_pre + ln1_post(attn(ln1(resid_pre)))
        resid_post = resid_mid + ln2_post(mlp(ln2(resid_mid)))

    With `parallel`, the MLP reads resid_pre too, and there is no resid_mid. Norms that the model
    does not have are None.
    """

    ln1: Norm | None
    attn: Attention
    ln1_post: Norm | Scale | None = None
    ln2: Norm | None
    mlp: Mlp | Experts
    ln2_post: Norm | Scale | None = None
    parallel: bool = False

    @property
    def neurons(self) -> Mlp:
        """The MLP, for what reads its neurons or its weights.

        Raises:
            InterpError: it is a mixture of experts.
        """
        if isinstance(self.mlp, Experts):
            found = "it is a mixture of experts, without one set of neurons"
            raise InterpError("the neurons of an MLP", found, "use its experts, or mlp_out")
        return self.mlp

    def head_reader(self, z: Tensor, direction: Tensor) -> Tensor:
        """(token, d_model) reads a head's output along a direction of the stream, in float64.

        A norm behind attention is linearised at its own input, from z (token, head, d_head).
        """
        if self.ln1_post is None:
            return direction.double()
        whole = self.attn.o(z.to(self.attn.o.weight).flatten(1))
        return self.ln1_post.reader(whole.to(direction.device), direction)

    def head_values(self, z: Tensor, direction: Tensor) -> Tensor:
        """(token, head) what each head adds to the stream along a direction (token, d_model).

        In float64. The sum over heads, with the biases behind them, is attn_out . direction.
        """
        written = self.attn.head_outputs(z).to(direction.device).double()
        return torch.einsum("htd,td->th", written, self.head_reader(z, direction))


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A causal decoder.

    `embed(tokens, positions)` gives resid_pre of layer 0. `rotary(positions, kind)` gives the
    cosines and sines of the rotary embedding. `unembed` is (d_vocab, d_model); a few families have
    a bias there. `max_positions` is the longest prompt the model takes.
    """

    family: str
    embed: Callable[[Tensor, Tensor], Tensor]
    rotary: Callable[[Tensor, str | None], tuple[Tensor, Tensor]] | None
    blocks: tuple[Block, ...]
    ln_final: Norm
    unembed: Tensor
    unembed_bias: Tensor | None = None
    final_softcap: float | None = None
    max_positions: int

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.unembed.shape[1]

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary."""
        return self.unembed.shape[0]

    @property
    def d_mlp(self) -> int:
        """Number of neurons in an MLP layer; with experts, of those that a token uses."""
        mlp = self.blocks[0].mlp
        return mlp.width if isinstance(mlp, Experts) else mlp.down.weight.shape[0]

    @property
    def n_experts(self) -> int:
        """Experts of a layer, with a shared one; 0 unless every layer is a mixture of as many."""
        sizes = {x.mlp.size if isinstance(x.mlp, Experts) else 0 for x in self.blocks}
        return sizes.pop() if len(sizes) == 1 else 0

    @property
    def flops(self) -> dict[str, float]:
        """Floating-point operations per token of a block's projections and MLP, by part."""
        attn, d = self.blocks[0].attn, self.d_model
        mlp = self.blocks[0].mlp
        products = 3 if isinstance(mlp, Experts) or mlp.up is not None else 2
        return {
            "kv": 4.0 * d * attn.n_kv_heads * attn.d_head,
            "qo": 4.0 * d * attn.n_heads * attn.d_head,
            "mlp": 2.0 * d * self.d_mlp * products,
        }

    def head_logits(self, layer: int, head: int, z: Tensor, final: Tensor) -> Tensor:
        """(d_vocab,) what a head adds to each logit at a token, before a soft cap.

        From z (head, d_head) of its layer and the final residual stream (d_model,) there, at which
        the norms on the way are linearised.
        """
        block = self.blocks[layer]
        share = block.attn.head_outputs(z[None])[head, 0]
        if block.ln1_post is not None:
            share = block.ln1_post.share(share, block.attn.o(z.to(share).flatten()[None])[0])
        return self.unembed @ self.ln_final.share(share, final.to(share))

    def logits(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of normalised final residuals: of all tokens, or of each row's `tokens`."""
        if tokens is None:
            values = F.linear(x, self.unembed, self.unembed_bias)
        else:
            values = torch.einsum("nd,nkd->nk", x, self.unembed[tokens])
            if self.unembed_bias is not None:
                values = values + self.unembed_bias[tokens]
        if self.final_softcap is not None:
            values = torch.tanh(values / self.final_softcap) * self.final_softcap
        return values
