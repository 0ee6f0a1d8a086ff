"""Parts of Hugging Face modules as the engine's: linear maps, norms, activations, experts.

A part is read only if its module computes exactly the same: a plain linear map or norm of the
expected class, with nothing attached. Adapters, quantised weights and parametrisations are refused
with the reason.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.core.errors import InterpError
from interp.engine.architecture import Experts, Function, Linear, Norm

_PROBES = 8


def tensors_of(hf_model: Any) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the plain model, even behind a bridge."""
    held = (*hf_model.state_dict().items(), *hf_model.named_buffers())
    return {name.replace("._original_component", ""): tensor for name, tensor in held}


def read_linear(module: Any) -> Linear:
    """A plain `nn.Linear` or `Conv1D`, sharing its weight.

    Its class and attached hooks are checked. Then it is run on a few unit vectors: the result must
    be exactly the rows of its weight plus its bias, in every dtype. A weight without values (on the
    meta device) is not run.
    """
    from transformers.pytorch_utils import Conv1D

    _require_plain(module, isinstance(module, nn.Linear | Conv1D))
    weight = module.weight.detach() if isinstance(module, Conv1D) else module.weight.detach().T
    bias = module.bias.detach() if module.bias is not None else None
    if weight.is_meta:
        return Linear(weight=weight, bias=bias)
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


def read_norm(module: Any) -> Norm:
    """LayerNorm or RMSNorm; the Gemma families store weight - 1, OLMo-1 has no weight.

    StableLM keeps the norms of its heads in a list.
    """
    name = type(module).__name__
    if name.endswith("PerHead"):
        each = [read_norm(one) for one in module.norms]
        return replace(each[0], weight=torch.stack([one.weight for one in each]))
    known = isinstance(module, nn.LayerNorm) or name.endswith(("RMSNorm", "LayerNorm"))
    _require_plain(module, known)
    weight = getattr(module, "weight", None)
    weight = torch.ones(module.normalized_shape) if weight is None else weight.detach()
    if isinstance(module, nn.LayerNorm) or name.endswith("LayerNorm"):
        bias = getattr(module, "bias", None)
        eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", 1e-5)
        bias = None if bias is None else bias.detach()
        return Norm(weight=weight, bias=bias, eps=eps, centred=True)
    if name.startswith("Gemma"):
        weight = 1.0 + (weight if weight.dtype == torch.float64 else weight.float())
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(weight=weight, bias=None, eps=eps, centred=False)


def read_activation(module: Any) -> Function:
    """The activation function; the tanh approximation of GELU is computed in one fused call."""
    if type(module).__name__ in ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh"):
        return lambda x: F.gelu(x, approximate="tanh")
    return module


def read_experts(mlp: Any, config: Any) -> Experts:
    """A mixture of experts: the router's choice of experts, and the shared expert if it has one.

    `write` calls the model's own router. `weights` repeats its choice from given logits, which
    `interp.models.checks` compares.
    """
    router, experts = getattr(mlp, "router", None) or mlp.gate, mlp.experts
    shared, gate, k = getattr(mlp, "shared_expert", None), None, config.num_experts_per_tok
    own: Function = lambda x: x  # noqa: E731
    if shared is not None:
        gate, own = read_linear(mlp.shared_expert_gate), _shared_expert(shared)

    def write(x: Tensor) -> Tensor:
        _, weights, chosen = router(x)
        found = experts(x, chosen, weights)
        return found if gate is None else found + torch.sigmoid(gate(x)) * own(x)

    def logits(x: Tensor) -> Tensor:
        found = router(x)[0]
        return found if gate is None else torch.cat([found, gate(x)], -1)

    def weights(logits: Tensor) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        routed = wide if gate is None else wide[:, :-1]
        best, chosen = routed.softmax(-1).masked_fill(routed == -torch.inf, 0).topk(k)
        if getattr(router, "norm_topk_prob", True):
            best = best / best.sum(-1, keepdim=True).clamp(min=torch.finfo(best.dtype).tiny)
        found = torch.zeros_like(routed).scatter(-1, chosen, best)
        if gate is not None:
            found = torch.cat([found, wide[:, -1:].sigmoid()], -1)
        return found.to(logits.dtype)

    def each(x: Tensor, weights: Tensor) -> Tensor:
        found = x.new_zeros(*weights.shape, x.shape[-1])
        token, expert = (weights if gate is None else weights[:, :-1]).nonzero(as_tuple=True)
        if len(token):
            used = weights[token, expert, None]
            found[token, expert] = experts(x[token], expert[:, None], used)
        if gate is not None:
            found[:, -1] = weights[:, -1:] * own(x)
        return found

    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return Experts(
        write=write,
        router=logits,
        weights=weights,
        each=each,
        size=len(router.weight) + (gate is not None),
        shared=gate is not None,
        chosen=k,
        width=width * k,
    )


def _shared_expert(mlp: Any) -> Function:
    """What the expert that every token uses writes, before its own weight."""
    gate, up, down = (read_linear(x) for x in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    act = read_activation(mlp.act_fn)
    return lambda x: down(act(gate(x)) * up(x))
