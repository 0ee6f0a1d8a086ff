"""What a model must show before it is used: identities, site by site.

TransformerLens gives the right logits for many families in which some hook is silently not the
quantity its name says. So every site is put to the replacement identity: set it to its value on
another prompt, everywhere, and what is computed from it must become that prompt's. A site that
fails is not offered, and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.components import SITES
from interp.errors import InterpError
from interp.models.language_model import hook_name

if TYPE_CHECKING:
    from interp.models.language_model import Address, Batch, Hook, LanguageModel

VERSION = 1


def _reader(kept: dict[Address, Tensor], address: Address) -> Hook:
    def hook(value: Tensor, batch: Batch) -> Tensor:
        kept[address] = value.detach().clone()
        return value

    return hook


def _setter(new: Tensor) -> Hook:
    return lambda value, batch: new.to(value).clone()


def _run(
    model: LanguageModel,
    prompt: Sequence[int],
    read: Sequence[Address],
    write: dict[Address, Tensor] | None = None,
) -> tuple[dict[Address, Tensor], Tensor]:
    """One prompt: the sites read (after any writes), and the logits."""
    kept: dict[Address, Tensor] = {}
    hooks: dict[Address, list[Hook]] = {}
    for address, new in (write or {}).items():
        hooks.setdefault(address, []).append(_setter(new))
    for address in read:
        hooks.setdefault(address, []).append(_reader(kept, address))
    (_, logits), *_ = model.run([prompt], hooks=hooks)
    return kept, logits.detach()


def _off(left: Tensor, right: Tensor, scale: Tensor) -> float:
    """Largest difference, relative to the largest value the quantity takes."""
    return float((left - right).abs().max() / scale.abs().max().clamp(min=1e-30))


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing one thing may differ, relative to its largest value."""
    return 2e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4


def check_model(model: LanguageModel, reference: tuple[list[int], Tensor]) -> None:
    """Fill `model.sites` with what passes.

    `reference` is a prompt and the untouched Hugging Face model's logits on it.

    Raises:
        InterpError: weights with NaN, or logits that differ from the untouched model's.
    """
    tokens, expected = reference
    if not bool(torch.isfinite(expected).all()):
        raise InterpError(
            f"checking {model.name}",
            "its logits are not finite: the weights hold NaN or infinity",
            "load another copy of the weights",
        )
    limit = tolerance(model.dtype)
    other = [(token * 7 + 3) % model.d_vocab for token in tokens]
    _drop_missing(model)
    layer = model.n_layers // 2
    offered = [site for site, reason in model.sites.items() if reason is None]
    addresses = [(layer, site) for site in offered]
    with torch.no_grad():
        _, plain = _run(model, tokens, [])
        if (gap := _off(plain, expected, expected)) > limit:
            raise InterpError(
                f"checking {model.name}",
                f"logits through TransformerLens differ from Hugging Face's by {gap:.1e}",
                "this architecture is not bridged faithfully; it cannot be measured",
            )
        here, _ = _run(model, tokens, addresses)
        there, there_logits = _run(model, other, addresses)
        for address in set(addresses) - set(here):
            model.sites[address[1]] = "its TransformerLens hook never fires on this architecture"
            offered.remove(address[1])
        _check_identities(model, tokens, limit)
    for site in offered:
        if model.sites[site] is not None:
            continue
        for grad in (False, True):
            with torch.enable_grad() if grad else nullcontext():
                found = _replacement_gap(model, site, layer, tokens, here, there, there_logits)
            if found == float("inf"):
                model.sites[site] = "what follows from it cannot be read, so it cannot be checked"
                break
            if found > limit:
                when = "with gradients" if grad else "without gradients"
                model.sites[site] = (
                    f"replacing it does not give what follows from it ({when}, off by {found:.1e})"
                )
                break


def _drop_missing(model: LanguageModel) -> None:
    names = model.bridge.hook_dict
    for site in SITES:
        if site == "resid_mid" and model.parallel:
            model.sites[site] = "attention and MLP run in parallel: there is no resid_mid"
        elif site == "pre_linear" and not model.gated:
            model.sites[site] = "the MLP has no gate"
        elif hook_name(0, "attn_out" if site == "resid_mid" else site) not in names:
            model.sites[site] = "TransformerLens has no such hook for this architecture"


def _check_identities(model: LanguageModel, tokens: list[int], limit: float) -> None:
    """resid_pre + attn_out + mlp_out = resid_post at every layer, and patterns sum to one."""
    wanted = [
        (layer, site)
        for layer in range(model.n_layers)
        for site in ("resid_pre", "attn_out", "mlp_out", "resid_post", "pattern")
        if model.sites[site] is None
    ]
    kept, _ = _run(model, tokens, wanted)
    for layer in range(model.n_layers):
        if all((layer, s) in kept for s in ("resid_pre", "attn_out", "mlp_out", "resid_post")):
            total = sum(kept[layer, s] for s in ("resid_pre", "attn_out", "mlp_out"))
            post = kept[layer, "resid_post"]
            if (gap := _off(total, post, post)) > limit:  # type: ignore[arg-type]
                for site in ("attn_out", "mlp_out", "resid_mid"):
                    model.sites[site] = f"layer {layer} is not the sum of its parts ({gap:.1e})"
        if (layer, "pattern") in kept:
            rows = kept[layer, "pattern"].float().sum(-1)
            if (gap := float((rows - 1).abs().max())) > max(limit, 1e-3):
                model.sites["pattern"] = f"rows of layer {layer} sum to {1 + gap:.3f}"


def _replacement_gap(
    model: LanguageModel,
    site: str,
    layer: int,
    tokens: list[int],
    here: dict[Address, Tensor],
    there: dict[Address, Tensor],
    there_logits: Tensor,
) -> float:
    """How far replacing a site everywhere is from what must follow."""

    def a(name: str) -> Tensor:
        return here[layer, name]

    def b(name: str) -> Tensor:
        return there[layer, name]

    def after(write: list[str], read: str) -> Tensor:
        kept, _ = _run(model, tokens, [(layer, read)], {(layer, w): b(w) for w in write})
        return kept[layer, read]

    if site.startswith("resid"):
        _, logits = _run(model, tokens, [], {(layer, site): b(site)})
        return _off(logits, there_logits, there_logits)
    parts = ("resid_pre", "attn_out", "mlp_out")
    if site in parts and any((layer, s) not in here for s in (*parts, "resid_post")):
        return float("inf")
    if site in ("attn_out", "mlp_out"):
        rest = [s for s in parts if s != site]
        if site == "attn_out" and not model.parallel:
            # The MLP reads what attention wrote, so compare before it.
            mid = after([site], "resid_mid")
            return _off(mid, a("resid_pre") + b(site), mid)
        post = after([site], "resid_post")
        return _off(post, a(rest[0]) + a(rest[1]) + b(site), post)
    if site in ("v", "pattern"):
        if any((layer, s) not in here for s in ("v", "pattern", "z")):
            return float("inf")
        z = after([site], "z")
        expected = (
            _mixed(b("pattern"), a("v")) if site == "pattern" else _mixed(a("pattern"), b("v"))
        )
        return _off(z, expected, expected)
    follows = {
        "q": (["q", "k"], "pattern"),
        "k": (["q", "k"], "pattern"),
        "z": (["z"], "attn_out"),
        "pre": (["pre", "pre_linear"] if model.gated else ["pre"], "post"),
        "pre_linear": (["pre", "pre_linear"], "post"),
        "post": (["post"], "mlp_out"),
    }
    written, read = follows[site]
    if any((layer, s) not in here for s in (*written, read)):
        return float("inf")
    return _off(after(written, read), b(read), b(read))


def _mixed(pattern: Tensor, v: Tensor) -> Tensor:
    """Site z of a pattern and values: (batch, pos, head, d_head)."""
    v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
    return torch.einsum("bhqk,bkhd->bqhd", pattern.to(v), v)
