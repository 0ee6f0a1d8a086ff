"""Tests of a loaded model: its logits, and the replacement identity of every site.

For many families TransformerLens gives the right logits although some hook does not give the
quantity that its name says. So every site is tested with the replacement identity: if the site is
set everywhere to its value on another prompt, what the model computes from it must take its value
on that prompt. A site that fails is not offered, and the reason is kept. One layer of every kind is
tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.core.components import EXPERT_SITES, SITES
from interp.core.errors import InterpError
from interp.models.bridge import hook_name
from interp.models.engine_hooks import mixed
from interp.models.plain_sites import layer_module, plain_run

if TYPE_CHECKING:
    from interp.models.language_model import Address, Hook, LanguageModel

VERSION = 5
SHORT = 12
AFFORDABLE = 1e12
"""Limit on weights times tokens of the long prompt: a run of a few seconds on a few cores."""


def _run(
    model: LanguageModel,
    prompt: Sequence[int],
    read: Sequence[Address],
    write: dict[Address, Tensor] | None = None,
) -> tuple[dict[Address, Tensor], Tensor]:
    """Run one prompt; return the sites in `read`, after any replacements, and the logits."""
    kept: dict[Address, Tensor] = {}
    new = write or {}

    def hook(value: Tensor, address: Address) -> Tensor:
        if address in new:
            value = new[address].to(value).clone()
        if address in read:
            kept[address] = value.detach().clone()
        return value

    hooks: dict[Address, list[Hook]] = {
        address: [lambda value, batch, address=address: hook(value, address)]
        for address in (*new, *read)
    }
    (_, logits), *_ = model.run([prompt], hooks=hooks)
    return kept, logits.detach()


def _off(left: Tensor, right: Tensor, scale: Tensor) -> float:
    """The largest difference, relative to the largest absolute value of `scale`."""
    return float((left - right).abs().max() / scale.abs().max().clamp(min=1e-30))


def tolerance(dtype: torch.dtype) -> float:
    """Largest allowed difference of two computations, relative to the largest absolute value."""
    return 2e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4


def engine_tolerance(dtype: torch.dtype) -> float:
    """Largest allowed difference of a token's residual stream from Hugging Face's, over its norm.

    On the default model the difference is 2e-6 in float32, and 6e-2 in bfloat16, where rounding
    adds up over 30 layers. In half precision this test can only find wrong parts. Whether the
    linear maps are exactly the model's is tested when they are read (`interp.models.families`).
    """
    return 1.5e-1 if dtype in (torch.float16, torch.bfloat16) else 5e-5


def check_prompt(config: Any, weights: int) -> tuple[list[int], tuple[str, ...]]:
    """A prompt longer than every attention window and rotary switch of a model, and notes.

    Windows and switches that would need more than `AFFORDABLE`, or more positions than the model
    has, are not covered. A note names each of those that the model's prompts can exceed.
    """
    switch = rotary_switch(config)
    limit = getattr(config, "max_position_embeddings", None) or 10**9
    if switch is not None and switch[0] == "dynamic":
        limit = min(limit, switch[1])  # longer prompts are refused
    if limit < 2:
        raise InterpError(
            "a prompt for the check", f"max_position_embeddings is {limit}", "give 2 or more"
        )
    longest = min(limit, max(SHORT, int(AFFORDABLE / weights)))
    length, notes = min(SHORT, limit), []
    spans = {*_windows(config.to_dict())}
    if switch is not None:
        spans.add((f"{switch[0]} switch", switch[1]))
    for name, size in sorted(spans):
        reach = min(size + SHORT, limit)
        if size < reach <= longest:
            length = max(length, reach)
        elif size < limit:
            notes.append(
                f"its {name} of {size} tokens is longer than the check's prompt: longer prompts "
                "have not been compared with Hugging Face"
            )
    # Quadratic steps, so that no distance between neighbours repeats.
    return [(i * i * 31 + 5) % config.vocab_size for i in range(1, length + 1)], tuple(notes)


def rotary_switch(config: Any) -> tuple[str, int] | None:
    """(type, length) of a switch after which rotary angles depend on a pass's longest prompt."""
    rope = getattr(config, "rope_parameters", None) or {}
    for part in [rope, *(inner for inner in rope.values() if isinstance(inner, dict))]:
        if (kind := part.get("rope_type")) in ("longrope", "dynamic"):
            own = getattr(config, "original_max_position_embeddings", None)
            size = part.get("original_max_position_embeddings") or own
            return kind, int(size or config.max_position_embeddings)
    return None


def _windows(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The sizes of attention windows in a configuration, by name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _windows(value)
        elif str(name).endswith(("window", "window_size", "chunk_size")) and type(value) is int:
            yield name, value


def check_model(model: LanguageModel, reference: tuple[list[int], Tensor]) -> None:
    """Test a model and set `model.sites`, `model.ragged` and `model.d_mlp` from the results.

    `reference` is a prompt and the logits of the unwrapped Hugging Face model on it.

    Raises:
        InterpError: the weights hold NaN or infinity, or the logits differ from those of the
            unwrapped model.
    """
    (tokens, expected), asked = reference, f"checking {model.name}"
    if not bool(torch.isfinite(expected).all()):
        found = "its logits are not finite: the weights hold NaN or infinity"
        raise InterpError(asked, found, "load another copy of the weights")
    limit = tolerance(model.dtype)
    _drop_missing(model)
    with torch.no_grad():
        _, plain = _run(model, tokens, [])
        if (gap := _off(plain, expected, expected)) > limit:
            through = "TransformerLens" if model.unbridged is None else "the fast engine"
            found = f"logits through {through} differ from Hugging Face's by {gap:z.1e}"
            do = f"{through} does not run this architecture correctly; use another model"
            raise InterpError(asked, found, do)
        _check_padding(model, tokens[:SHORT], limit)
        tokens = tokens[:SHORT]
        other = [(token * 7 + 3) % model.d_vocab for token in tokens]
        layers = _kinds(model)
        addresses = [(layer, site) for layer in layers for site in _offered(model)]
        here, _ = _run(model, tokens, addresses)
        for _, site in sorted(set(addresses) - set(here)):
            model.sites[site] = "its TransformerLens hook never fires on this architecture"
        _check_shapes(model, here)
        _check_identities(model, tokens, limit)
        there, there_logits = _run(model, other, [at for at in here if model.sites[at[1]] is None])
    here = {at: here[at] for at in there}
    for site in _offered(model):
        for layer in layers:
            for grad in (False, True):
                if model.sites[site] is not None:
                    continue
                with torch.enable_grad() if grad else nullcontext():
                    found = _replacement_gap(model, site, layer, tokens, here, there, there_logits)
                reason = None
                if found == float("inf"):
                    reason = "what follows from it cannot be read, so it cannot be checked"
                elif not found <= limit:
                    when = f"{'with' if grad else 'without'} gradients, off by {found:.1e}"
                    reason = f"replacing it does not give what follows from it ({when})"
                model.sites[site] = reason


def _offered(model: LanguageModel) -> list[str]:
    return [site for site, reason in model.sites.items() if reason is None]


def _kinds(model: LanguageModel) -> list[int]:
    """One layer of each kind, told by its modules' names and classes and its type of attention."""
    types = getattr(model.hf_model.config, "layer_types", None)
    found: dict[Any, int] = {}
    for layer in sorted(range(model.n_layers), key=lambda i: abs(i - model.n_layers // 2)):
        block = _layer(model, layer)
        names = tuple((name, type(module).__name__) for name, module in block.named_modules())
        found.setdefault((names, types[layer] if types else None), layer)
    return sorted(found.values())


def _check_padding(model: LanguageModel, tokens: list[int], limit: float) -> None:
    """Set `model.ragged` to False if padding changes the logits."""
    rows = [tokens, tokens[: len(tokens) // 2]]
    alone = torch.cat([model.last_logits([row]) for row in rows])
    for side in ("left", "right"):
        together = model.last_logits(rows, padding_side=side)
        if not _off(together, alone, alone) <= limit:
            model.ragged = False


def _check_shapes(model: LanguageModel, here: dict[Address, Tensor]) -> None:
    """Test the shapes of head and neuron sites, and set `model.d_mlp`."""
    heads = {"q": model.n_heads, "z": model.n_heads, "k": model.n_kv_heads, "v": model.n_kv_heads}
    widths = {value.shape[-1] for (_, site), value in here.items() if site == "post"}
    if len(widths) == 1 and not _has_experts(model, 0):
        model.d_mlp = widths.pop()
    for (layer, site), value in here.items():
        shape = tuple(value.shape[2:])
        if site in heads and shape != (heads[site], model.d_head):
            model.sites[site] = f"its shape {shape} is not {(heads[site], model.d_head)}"
        elif site in ("pre", "pre_linear", "post"):
            written = here.get((layer, "mlp_out"))
            if _has_experts(model, layer):
                model.sites[site] = "the MLP is a mixture of experts: it has no one set of neurons"
            elif shape != (model.d_mlp,):
                model.sites[site] = f"layers differ in their number of neurons ({shape[0]})"
            elif written is not None and torch.equal(value, written):
                model.sites[site] = "its TransformerLens hook is on the MLP's output"


def _has_experts(model: LanguageModel, layer: int) -> bool:
    return any("expert" in name for name, _ in _layer(model, layer).named_modules())


def _layer(model: LanguageModel, layer: int) -> Any:
    if model.unbridged is None:
        return model.bridge.blocks[layer]
    return layer_module(model.hf_model, layer)


def _drop_missing(model: LanguageModel) -> None:
    names = model.bridge.hook_dict if model.unbridged is None else None
    if not model.n_experts:
        reason = "the MLP is not a mixture of experts"
        if any(_has_experts(model, layer) for layer in range(model.n_layers)):
            reason = "layers differ in their experts"
            if model.decoder is None:
                reason = "only the fast engine reads experts, and it does not run this model"
        model.sites |= dict.fromkeys(EXPERT_SITES, reason)
    for site in SITES.keys() - EXPERT_SITES:
        hook = "attn_out" if site == "resid_mid" else site
        each = range(0 if names is None else model.n_layers)
        absent = [i for i in each if hook_name(i, hook) not in (names or ())]
        if site == "resid_mid" and model.parallel:
            model.sites[site] = "attention and MLP run in parallel: there is no resid_mid"
        elif site == "pre_linear" and not model.gated:
            model.sites[site] = "the MLP has no gate"
        elif absent:
            at = "" if len(absent) == model.n_layers else f", at layer {absent[0]}"
            model.sites[site] = f"TransformerLens has no such hook for this architecture{at}"


def _check_identities(model: LanguageModel, tokens: list[int], limit: float) -> None:
    """Test that each layer is the sum of its parts, and that pattern rows sum to at most 1."""
    wanted = [
        (layer, site)
        for layer in range(model.n_layers)
        for site in ("resid_pre", "attn_out", "expert_out", "mlp_out", "resid_post", "pattern")
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
        if (layer, "expert_out") in kept and (layer, "mlp_out") in kept and not model.post_norms:
            written = kept[layer, "mlp_out"]
            if (gap := _off(kept[layer, "expert_out"].sum(2), written, written)) > limit:
                for site in EXPERT_SITES:
                    model.sites[site] = f"layer {layer} is not the sum of its experts ({gap:.1e})"
        if (layer, "pattern") in kept:
            # Rows sum to less than 1 if an attention sink that is not a token takes a share.
            most = float(kept[layer, "pattern"].float().sum(-1).max())
            if most > 1 + max(limit, 1e-3):
                model.sites["pattern"] = f"a row of layer {layer} sums to {most:z.3f}"


def _replacement_gap(
    model: LanguageModel,
    site: str,
    layer: int,
    tokens: list[int],
    here: dict[Address, Tensor],
    there: dict[Address, Tensor],
    there_logits: Tensor,
) -> float:
    """The error of the replacement identity; infinity if it cannot be computed."""

    def after(written: list[str], read: str) -> Tensor:
        write = {(layer, name): there[layer, name] for name in written}
        return _run(model, tokens, [(layer, read)], write)[0][layer, read]

    if site.startswith("resid"):
        _, logits = _run(model, tokens, [], {(layer, site): there[layer, site]})
        return _off(logits, there_logits, there_logits)
    parts = ["resid_pre", "attn_out", "mlp_out"]
    follows = {
        "q": (["q", "k"], "pattern"),
        "k": (["q", "k"], "pattern"),
        "v": (["v", "pattern"], "z"),
        "pattern": (["v", "pattern"], "z"),
        "z": (["z"], "attn_out"),
        "attn_out": (parts, "resid_post"),
        "pre": (["pre", "pre_linear"] if model.gated else ["pre"], "post"),
        "pre_linear": (["pre", "pre_linear"], "post"),
        "post": (["post"], "mlp_out"),
        "router": (["router"], "expert_out"),
        "expert_out": (["expert_out"], "mlp_out"),
        "mlp_out": (parts, "resid_post"),
    }
    causes, read = follows[site]
    if any((layer, name) not in here for name in (*causes, read)):
        return float("inf")
    values = {name: (there if name == site else here)[layer, name] for name in causes}
    if site in ("v", "pattern"):
        z = mixed(values["pattern"], values["v"])
        return _off(after([site], "z"), z, z)
    if site == "attn_out" and not model.parallel:
        # The MLP reads attention's output, so compare before the MLP.
        mid = after([site], "resid_mid")
        return _off(mid, values["resid_pre"] + values[site], mid)
    if site in parts:
        post = after([site], "resid_post")
        first, second = (values[name] for name in parts if name != site)
        return _off(post, first + second + values[site], post)
    expected = there[layer, read]
    if site == "router":  # the other prompt's logits choose the other prompt's experts
        found = after(causes, read)
        return float(((found != 0).any(-1) != (expected != 0).any(-1)).any())
    return _off(after(causes, read), expected, expected)


def check_plain(model: LanguageModel, tokens: list[int]) -> None:
    """Compare sites with plain hooks on the Hugging Face modules, and set `model.sites`.

    For a model that TransformerLens cannot run. Sites are read at every layer and replaced at one
    layer of every kind; then the logits must agree. Sites of experts, which no module holds, are
    tested by `check_model` alone: they add up to mlp_out.
    """
    tokens, limit = tokens[:SHORT], tolerance(model.dtype)
    other = [(token * 7 + 3) % model.d_vocab for token in tokens]
    here, there = (_plain(model, row) for row in (tokens, other))
    offered = [site for site in _offered(model) if site not in EXPERT_SITES]
    every = [(layer, site) for layer in range(model.n_layers) for site in offered]
    with torch.no_grad():
        found, _ = _run(model, tokens, every)
        for layer, site in every:
            if (layer, site) not in here:
                model.sites[site] = "no module of transformers holds it, so it cannot be checked"
                continue
            plain = here[layer, site].reshape(found[layer, site].shape)
            if not (gap := _off(found[layer, site], plain, plain)) <= limit:
                model.sites[site] = f"transformers has another value there (off by {gap:z.1e})"
        for layer, site in ((at, name) for at in _kinds(model) for name in _offered(model)):
            if site in EXPERT_SITES:
                continue
            new = there[layer, site].reshape(found[layer, site].shape)
            logits = _run(model, tokens, [], {(layer, site): new})[1]
            value, at = new, site
            if site == "resid_mid":
                value, at = new - here[layer, "resid_pre"], "attn_out"
            elif site == "pattern":
                v = here[layer, "v"].view(1, len(tokens), model.n_kv_heads, model.d_head)
                value, at = mixed(new, v), "z"
            plain = plain_run(model.hf_model, tokens, (layer, at, value))[1]
            if not (gap := _off(logits, plain, plain)) <= limit:
                model.sites[site] = f"replacing it gives other logits in transformers ({gap:z.1e})"


def _plain(model: LanguageModel, tokens: list[int]) -> dict[Address, Tensor]:
    """Sites of a prompt by plain hooks; resid_mid is the sum that it is by definition."""
    seen = plain_run(model.hf_model, tokens)[0]
    for layer in range(model.n_layers):
        if (layer, "attn_out") in seen:
            seen[layer, "resid_mid"] = seen[layer, "resid_pre"] + seen[layer, "attn_out"]
    return seen


BLOCK = 2**24
"""How many numbers of each side `row_gap` converts to float64 at a time."""


def row_gap(found: Any, expected: Any) -> float:
    """Largest |found - expected| / |expected| over the rows of (rows, width); NaN if any is NaN."""
    rows = max(1, BLOCK // expected.shape[-1])
    gaps, sizes = [], []
    for own, theirs in zip(found.split(rows), expected.split(rows), strict=True):
        own, theirs = own.cpu().double(), theirs.cpu().double()  # MPS has no float64
        gaps.append((own - theirs).norm(dim=-1))
        sizes.append(theirs.norm(dim=-1))
    size = torch.cat(sizes)  # a row close to zero holds only rounding errors
    return float((torch.cat(gaps) / size.clamp(min=max(1e-3 * float(size.max()), 1e-30))).max())
