"""Loading a model by name, and checking it before use."""

from __future__ import annotations

import json
import os
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.components import SITES
from interp.errors import InterpError, unknown
from interp.files import cache_dir, content_key, versions, write_atomically
from interp.models import embedded, organisms
from interp.models.language_model import LanguageModel
from interp.toys import TOYS


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A name that `load_model` knows without a model hub."""

    name: str
    kind: str
    description: str


def known_models() -> list[ModelEntry]:
    """The models that need no hub, the default first."""
    default = ModelEntry(
        name=embedded.NAME,
        kind="embedded",
        description="SmolLM2-135M-Instruct, dequantised Q4_1, from a PyPI wheel; the default",
    )
    toys = [
        ModelEntry(name=name, kind="toy", description="hand-built, with an answer key")
        for name in TOYS
    ]
    trained = [
        ModelEntry(
            name=name, kind="organism", description=organisms.describe(folder)["description"]
        )
        for name, folder in organisms.organisms().items()
    ]
    return [default, *trained, *toys]


def load_model(
    name: str = embedded.NAME,
    *,
    device: str | None = None,
    dtype: str = "float32",
    device_map: str | dict[str, Any] | None = None,
    check: bool = True,
) -> LanguageModel:
    """A causal language model by name, checked.

    Args:
        name: `smollm2-135m-instruct` (the embedded default), a shipped organism such as
            `countdown-smollm2`, a `toy-*` name, a local directory, or a Hugging Face id whose
            architecture TransformerLens bridges.
        device: "cpu", "cuda", "mps"; a GPU if there is one and None is given.
        dtype: "float32", "float64", "bfloat16" or "float16".
        device_map: as in transformers, for models larger than one GPU; such models run through
            hooks, without the fast engine.
        check: put every site to the replacement identity. The outcome is kept under the cache,
            so that only the first load of given weights pays for it.

    Raises:
        InterpError: an unknown name, a hub id that cannot be reached, weights with NaN, or an
            architecture whose hooked logits are not Hugging Face's.
    """
    import torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if dtype not in ("float32", "float64", "bfloat16", "float16"):
        raise InterpError(f"dtype {dtype!r}", "not a weight type", "use float32 or bfloat16")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InterpError(
            f"device {device!r}", str(error).splitlines()[0], "use one that this torch offers"
        ) from error
    kind: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if device_map is not None and (name in TOYS or name in organisms.organisms()):
        raise InterpError(f"device_map for {name}", "it fits on one device", "give device instead")
    if name in TOYS:
        hf_model, tokenizer, card = _load_toy(name)
        hf_model = hf_model.to(kind["dtype"])
    elif name.startswith("toy-"):
        raise unknown("toy", name, TOYS)
    elif name == embedded.NAME:
        hf_model, tokenizer = _load_pretrained(str(embedded.directory()), kind, device_map)
        card = embedded.CARD
    elif name in organisms.organisms():
        folder = organisms.organisms()[name]
        hf_model, tokenizer = organisms.load_organism(folder, attn_implementation="eager", **kind)
        card = organisms.card(folder)
    else:
        hf_model, tokenizer = _load_pretrained(name, kind, device_map)
        card = ""
    if device_map is None:
        hf_model = hf_model.to(device)
    return wrap(hf_model, tokenizer, name=name, card=card, check=check)


def wrap(
    hf_model: Any, tokenizer: Any = None, *, name: str, card: str = "", check: bool = True
) -> LanguageModel:
    """A `LanguageModel` around a Hugging Face causal language model, which it changes in place."""
    import torch

    from interp.models.architecture import read_architecture
    from interp.models.checks import VERSION, check_model
    from interp.models.language_model import build_bridge, fingerprint

    hf_model = hf_model.eval().requires_grad_(False)
    config = hf_model.config
    decoder, reason = None, None
    try:
        decoder = read_architecture(hf_model)
    except InterpError as error:
        reason = f"{error.asked}: {error.found}"
    if getattr(hf_model, "hf_device_map", None) and len(set(hf_model.hf_device_map.values())) > 1:
        decoder, reason = None, "the weights are spread over several devices"
    weights_hash = fingerprint(hf_model.state_dict(), config.to_dict())
    prompt = [(i * i * 31 + 5) % config.vocab_size for i in range(1, 8)]
    with torch.no_grad():
        device = next(hf_model.parameters()).device
        expected = hf_model(torch.tensor([prompt], device=device)).logits
    bridge = build_bridge(hf_model)
    cfg = bridge.cfg
    model = LanguageModel(
        name=name,
        bridge=bridge,
        tokenizer=tokenizer,
        decoder=decoder,
        hash=weights_hash,
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        n_kv_heads=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        d_model=cfg.d_model,
        d_head=cfg.d_head,
        d_mlp=decoder.d_mlp if decoder else cfg.d_mlp or 0,
        d_vocab=config.vocab_size,
        family=config.model_type,
        parallel=bool(decoder.blocks[0].parallel if decoder else cfg.parallel_attn_mlp),
        gated=bool(decoder.blocks[0].mlp.up if decoder else cfg.gated_mlp),
        post_norms=bool(
            decoder.blocks[0].ln1_post if decoder else hasattr(bridge.blocks[0], "ln1_post")
        ),
        engine_reason=reason,
        card=card,
    )
    if check:
        key = content_key([VERSION, weights_hash, versions(), str(device), decoder is not None])
        path = cache_dir() / "checks" / f"{key}.json"
        if (kept := _kept_check(path)) is not None:
            model.sites, misread = kept
        else:
            check_model(model, (prompt, expected))
            misread = check_engine(model, (prompt, expected))
            text = json.dumps([model.sites, misread])
            write_atomically(path, lambda partial: partial.write_text(text))
        if misread is not None:
            model.decoder, model.engine_reason = None, misread
    return model


def unwrapped(model: LanguageModel) -> Any:
    """A new Hugging Face model with the same weights, untouched by any bridge: `wrap` undone.

    Raises:
        InterpError: the weights or the configuration are no longer those that were loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from interp.models.language_model import fingerprint

    wrapped = model.bridge.original_model
    tensors = (*wrapped.state_dict().items(), *wrapped.named_buffers())
    held = {name.replace("._original_component", ""): tensor for name, tensor in tensors}
    options = {"dtype": model.dtype, "attn_implementation": "eager"}
    with torch.random.fork_rng(devices=[]):
        copy = AutoModelForCausalLM.from_config(deepcopy(wrapped.config), **options)
    copy.load_state_dict({name: held[name] for name in copy.state_dict()})
    for name, buffer in copy.named_buffers():
        buffer.data = held[name].clone()  # rotary frequencies follow neither state dict nor dtype
    copy = copy.to(model.device)
    if fingerprint(copy.state_dict(), copy.config.to_dict()) != model.hash:
        raise InterpError(
            f"copying {model.name}",
            "its weights or configuration are not those that were loaded",
            "load it again",
        )
    return copy


def model_hash(model: LanguageModel) -> str:
    """sha256 of a model's weights and configuration, as used in every key and every result."""
    return model.hash


def check_engine(model: LanguageModel, reference: tuple[list[int], Any]) -> str | None:
    """Why the fast engine cannot be used: its logits are not Hugging Face's. None if they are."""
    import torch

    from interp.engine.forward import Runner
    from interp.engine.restart import baseline, final_hidden
    from interp.models.checks import tolerance

    if model.decoder is None:
        return None
    prompt, expected = reference
    try:
        with torch.no_grad():
            runner = Runner(model.decoder)
            hidden = final_hidden(runner, baseline(runner, [prompt]))
            logits = model.decoder.logits(hidden)
    except RuntimeError as error:
        return f"the engine fails on it: {str(error).splitlines()[0]}"
    off = float((logits - expected[:, -1]).abs().max() / expected.abs().max())
    if off <= tolerance(model.dtype):
        return None
    return f"the engine's logits differ from Hugging Face's by {off:.1e}"


def _kept_check(path: Path) -> tuple[dict[str, str | None], str | None] | None:
    """The outcome of an earlier check of the same weights, versions and device."""
    try:
        sites, reason = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    whole = isinstance(sites, dict) and set(sites) == set(SITES)
    return (sites, reason) if whole else None


def _load_pretrained(name: str, kind: dict[str, Any], device_map: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    extra = {} if device_map is None else {"device_map": device_map}
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, attn_implementation="eager", **kind, **extra
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    if Path(name).is_dir() and not any(Path(name).glob("*token*")):
        return model, None  # transformers would make up an empty tokeniser
    try:
        return model, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):
        return model, None


def _not_loaded(name: str, error: Exception) -> InterpError:
    """What to do about a name that gave no model."""
    first = str(error).strip().splitlines()[0]
    if Path(name).is_dir():
        return InterpError(
            f"loading {name!r}", first, "the directory needs config.json and safetensors weights"
        )
    nameless = unknown("model", name, [entry.name for entry in known_models()])
    return InterpError(
        f"loading {name!r}",
        f"not a local directory, and the model hub gave nothing ({first})",
        f"{nameless.do}; for a hub id connect once (and unset HF_HUB_OFFLINE), or give the path "
        "of a local copy",
    )


def _load_toy(name: str) -> tuple[Any, Any, str]:
    from transformers import AutoTokenizer

    from interp.toys import build_toy, save_tokenizer

    toy = build_toy(name)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(toy, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    roles = "\n".join(f"- {label}: {role}" for label, role in sorted(toy.roles.items()))
    return toy.model, tokenizer, f"# {name}\n\n{toy.description}\n\n{roles}\n"


__all__ = ["LanguageModel", "ModelEntry", "known_models", "load_model", "unwrapped", "wrap"]
