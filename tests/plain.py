"""Hugging Face models read and changed by plain hooks on their own modules: the slow reference."""

from collections.abc import Callable, Mapping
from functools import partial
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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
    **dict.fromkeys(["falcon-40b", "falcon-11b"], {**_FALCON, "split": "groups"}),
    "falcon-rw": _FALCON,
    "mpt": {
        **_FALCON, "blocks": "transformer.blocks", "attn": "attn", "o": "attn.out_proj",
        "joint": "attn.Wqkv", "split": "rows", "mid": "norm_2", "mlp": "ffn",
        "pre": "ffn.up_proj", "post": "ffn.down_proj", "adds": ("mlp",),
    },
    "starcoder2": {**LLAMA, "pre": "mlp.c_fc", "post": "mlp.c_proj"},
    **dict.fromkeys(
        "stablelm olmo gemma cohere cohere2 smollm3 llama-longrope mixtral olmoe qwen2-moe "
        "ministral qwen3-moe gpt-oss deepseek-v2 deepseek-v3 qwen3-next recurrent-gemma".split(),
        LLAMA,
    ),
    "granite": {**LLAMA, "scale": 0.5},
    "llama4": {**LLAMA, "mlp": "feed_forward"},
}  # fmt: skip
_POSTNORM = {
    **LLAMA, "attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm",
    "mid": "pre_feedforward_layernorm",
}  # fmt: skip
_OLMO2 = {**_POSTNORM, "mid": "mlp"}
PARTS |= {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3"], LLAMA),
    **dict.fromkeys(["gemma2", "gemma3"], _POSTNORM),
    **dict.fromkeys(["olmo2", "olmo3"], _OLMO2),
    "gpt2": PARTS["bigcode"],
    "neox": _NEOX,
    "stablelm-parallel": LLAMA,
    "glm4": {
        **LLAMA, "attn": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm",
        "up": "mlp.gate_up_proj",
    },
}  # fmt: skip
PARTS["phi3-longrope"] = PARTS["phi3"]
PARTS["recurrent-gemma"] = {**LLAMA, "mid": "channel_pre_norm"}


Edit = Callable[[Tensor], Tensor | None]
"""Gives a new value of a site, or None to leave it as it is."""


class Plain:
    """A Hugging Face model whose sites are read and changed by hooks on its own modules.

    One prompt at a time, without padding. Every value keeps the batch axis: (1, position, ...).
    """

    def __init__(self, name, hf, model):
        self.hf, self.parts = hf, PARTS[name]
        self.heads, self.kv, self.width = model.n_heads, model.n_kv_heads, model.d_head
        self.parallel, self.mixture = model.parallel, model.sites["router"] is None
        self.blocks = hf.get_submodule(self.parts["blocks"])
        self.scale = self.parts.get("scale", 1.0)

    def run(self, tokens, edits: Mapping[tuple[int, str], Edit] | None = None, *, grad=False):
        """({(layer, site): value}, logits), with some sites changed.

        Instead of resid_mid, attn_out is changed; `pattern` is read only, and only at the end.
        With `grad`, `self.raw` holds the modules' own tensors, for gradients with respect to them.
        """
        self.seen, self.raw, self.edits, handles = {}, {}, dict(edits or {}), []
        self.grad = grad
        for layer, block in enumerate(self.blocks):
            for module, kind, hook in self._hooks(layer, block):
                if kind == "in":
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(hook))
            if self.mixture:
                block.mlp.forward = partial(self._experts, layer, block.mlp)
        try:
            with torch.set_grad_enabled(grad):
                out = self.hf(torch.tensor([tokens]), output_attentions=True, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
            for block in self.blocks if self.mixture else ():
                del block.mlp.forward
        for layer, pattern in enumerate(getattr(out, "attentions", None) or ()):
            if pattern is not None:
                self.seen[layer, "pattern"] = pattern
        return self.seen, out.logits

    def _hooks(self, layer, block):
        """The module, the side and the hook of every site of a block."""
        parts, found = self.parts, []
        modules = dict(block.named_modules())

        def at(path, side, function):
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

            found.append((modules[path], side, inward if side == "in" else outward))

        def site(name, path, side, get_=lambda x: x, put=lambda x, new: new.reshape(x.shape)):
            def get(x):
                return x_[None] if (x_ := get_(x)).dim() == 2 else x_  # OPT's MLP has no batch axis

            def function(x):
                value = get(x)
                edit = self.edits.get((layer, name))
                new = None if edit is None else edit(value)
                if new is not None:
                    x = put(x, new.to(x.dtype))
                    value = get(x)
                self.seen[layer, name], self.raw[layer, name] = value, (x, get, put)
                if self.grad:
                    return x.clone()  # Falcon adds to it in place
                return None if new is None else x

            at(path, side, function)

        site("resid_pre", "", "in")
        for part, name in (("attn", "attn_out"), ("mlp", "mlp_out")):
            base = layer, {"attn": "resid_pre", "mlp": "resid_mid"}[part]
            if part in parts.get("adds", ()):  # the module itself adds the residual stream
                site(
                    name, parts[part], "out", lambda x, base=base: x - self.seen[base],
                    lambda x, new, base=base: self.seen[base] + new,
                )  # fmt: skip
            elif part in parts and parts[part] in modules:
                site(
                    name, parts[part], "out", lambda x: x * self.scale,
                    lambda x, new: (new / self.scale).reshape(x.shape),
                )  # fmt: skip
        if not self.parallel:
            keep = lambda x: self.seen.__setitem__((layer, "resid_mid"), x)  # noqa: E731
            at(parts["mid"], "in", keep)
        if "joint" in parts:
            for which in "qkv":
                site(which, parts["joint"], "out", *self._slices(which))
        else:
            for which, heads in (("q", self.heads), ("k", self.kv), ("v", self.kv)):
                if parts[which] in modules:
                    site(
                        which, parts[which], "out",
                        lambda x, heads=heads: x.unflatten(-1, (heads, -1)),
                        lambda x, new: new.flatten(-2),
                    )  # fmt: skip
        if parts["o"] in modules:
            site("z", parts["o"], "in", lambda x: x.unflatten(-1, (self.heads, -1)),
                 lambda x, new: new.flatten(-2))  # fmt: skip
        if "up" in parts:
            width = modules[parts["post"]].in_features
            for name, half in (("pre", slice(0, width)), ("pre_linear", slice(width, None))):
                site(name, parts["up"], "out", lambda x, half=half: x[..., half],
                     lambda x, new, half=half: _with(x, half, new))  # fmt: skip
        else:
            for name in ("pre", "pre_linear"):
                if parts.get(name) in modules:
                    site(name, parts[name], "out")
        if parts["post"] in modules:
            site("post", parts["post"], "in")
        site("resid_post", "", "out")
        return found

    def _experts(self, layer, mlp, x):
        """A mixture of experts, token by token and expert by expert."""
        x = x[0]
        router, shared = getattr(mlp, "router", None) or mlp.gate, hasattr(mlp, "shared_expert")
        logits = F.linear(x, router.weight, getattr(router, "bias", None))
        if shared:
            logits = torch.cat([logits, mlp.shared_expert_gate(x)], -1)
        logits = self._edited(layer, "router", logits[None])[0]
        n = len(router.weight)
        with mock.patch.object(F, "linear", return_value=logits[:, :n]):
            _, weights, chosen = router(x)
        each = x.new_zeros(len(x), logits.shape[1], x.shape[1])
        for token, slot in np.ndindex(*chosen.shape):
            at = slice(token, token + 1), slice(slot, slot + 1)
            each[token, chosen[token, slot]] = mlp.experts(x[at[0]], chosen[at], weights[at])[0]
        if shared:
            each[:, n] = torch.sigmoid(logits[:, n:]) * mlp.shared_expert(x)
        written = self._edited(layer, "expert_out", each[None]).sum(2)
        return (written, weights) if hasattr(mlp, "router") else written

    def _edited(self, layer, name, value):
        edit = self.edits.get((layer, name))
        new = None if edit is None else edit(value)
        self.seen[layer, name] = value if new is None else new
        return self.seen[layer, name]

    def _slices(self, which):
        number = "qkv".index(which)
        if self.parts["split"] == "heads":  # q, k and v of a head lie together
            shape = (self.heads, 3, self.width)

            def put(x, new):
                shaped = x.unflatten(-1, shape).clone()
                shaped[..., number, :] = new
                return shaped.flatten(-3)

            return (lambda x: x.unflatten(-1, shape)[..., number, :]), put
        if self.parts["split"] == "groups":  # queries that share a key and value lie with them
            shape = (self.kv, self.heads // self.kv + 2, self.width)
            part = (slice(0, -2), slice(-2, -1), slice(-1, None))[number]

            def regrouped(x, new):
                shaped = x.unflatten(-1, shape).clone()
                shaped[..., part, :] = new.reshape(shaped[..., part, :].shape)
                return shaped.flatten(-3)

            return (lambda x: x.unflatten(-1, shape)[..., part, :].flatten(-3, -2)), regrouped
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
