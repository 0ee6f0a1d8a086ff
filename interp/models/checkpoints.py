"""Read a causal language model from a directory, a GGUF file or a Hugging Face id.

transformers fills tensors that are missing in the files with random numbers and ignores tensors
that the model does not use; it only logs both. Here both are errors, as is anything else that would
make the model in memory differ from the one that was named.
"""

from __future__ import annotations

import json
import re
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from interp.core.errors import InterpError, unknown
from interp.core.files import content_key

WRAPPERS = {r"^module\.": "", r"(^|\.)_orig_mod\.": r"\1"}
"""Prefixes that DataParallel and torch.compile add to tensor names, and their replacements."""

_BUFFERS = r"(^|\.)(attn|attention|self_attention)\.(masked_)?bias$|rotary_emb\.inv_freq$"
"""Causal masks and rotary frequencies: older files hold them, but the configuration gives them."""

_TEXT_CLASSES = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}
_TOKENISER_FILES = ("*token*", "vocab.*", "merges.txt", "*.model")


def read_checkpoint(
    name: str,
    *,
    dtype: Any,
    device_map: Any = None,
    revision: str | None = None,
    known: Collection[str] = (),
) -> tuple[Any, Any]:
    """The Hugging Face model, with every tensor from the files, and its tokeniser if it has one.

    `name` is a directory (of a model or of a PEFT adapter), a GGUF file or a Hugging Face id. Names
    of tensors may begin with `module.` or `_orig_mod.`. An adapter is merged into its base in
    float32. Code that comes with a model is never run. `known` are names of other models, from
    which the error for a misspelt name suggests the nearest.

    Raises:
        InterpError: there is no such model, or it is not a causal language model; files are
            missing, damaged or do not fit the configuration (the message names the tensors); the
            weights need a library that is not installed; or the tokeniser cannot be read.
    """
    source = _source(name, revision)
    try:
        with _quiet():
            if (Path(name) / "adapter_config.json").exists():
                return _with_adapter(Path(name), dtype, device_map)
            model = _read_model(name, source, dtype, device_map)
    except InterpError:
        raise
    except Exception as error:
        raise _not_loaded(name, error, known) from error
    return text_model(model), _read_tokenizer(name, source)


def read_config(
    name: str, *, revision: str | None = None, known: Collection[str] = ()
) -> tuple[Any, Any]:
    """The configuration of a causal language model, and its tokeniser if it has one.

    No weights are read. `name` is as in `read_checkpoint`, or a config.json. For an adapter they
    are those of its base.

    Raises:
        InterpError: as in `read_checkpoint`, as far as the configuration tells.
    """
    folder, source = Path(name), _source(name, revision)
    try:
        with _quiet():
            if (folder / "adapter_config.json").exists():
                about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
                base, before = about["base_model_name_or_path"], about.get("revision")
                return read_config(base, revision=before, known=known)
            config = _causal_config(name, source)
    except InterpError:
        raise
    except Exception as error:
        raise _not_loaded(name, error, known) from error
    alone = folder.is_file() and "gguf_file" not in source
    return config, None if alone else _read_tokenizer(name, source)


def _source(name: str, revision: str | None) -> dict[str, Any]:
    """Where transformers finds a model, as its keywords."""
    source: dict[str, Any] = {"pretrained_model_name_or_path": name, "trust_remote_code": False}
    if revision is not None:
        if Path(name).exists():
            raise InterpError(f"revision {revision!r}", f"{name!r} is on disk", "omit it")
        source["revision"] = revision
    if name.endswith(".gguf"):
        path = Path(name)
        source |= {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return source


def attach_adapter(base: Any, folder: Path) -> Any:
    """A model with the PEFT adapter of a folder, which changes the model's modules in place.

    Raises:
        InterpError: the adapter has missing or unexpected tensors, or cannot be merged.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        held = set(file.keys())
    with warnings.catch_warnings():  # peft looks for the base's files, which it does not need here
        warnings.filterwarnings("ignore", "Could not find a config file")
        adapted: Any = PeftModel.from_pretrained(base, str(folder))
        wanted = set(get_peft_model_state_dict(adapted))
    refuse_unmatched(folder.name, wanted - held, held - wanted)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = type(adapted.active_peft_config).__name__
        raise InterpError(
            f"the adapter {folder.name}", f"{kind} cannot be merged", "use a LoRA adapter"
        )
    return adapted


def merge_adapter(base: Any, folder: Path, dtype: Any) -> Any:
    """Merge the PEFT adapter of a folder into a model, W + (alpha / r) B A, and cast to `dtype`.

    Raises:
        InterpError: as in `attach_adapter`.
    """
    return attach_adapter(base, folder).merge_and_unload().to(dtype)


def text_model(model: Any) -> Any:
    """The text part of a multimodal model, sharing its weights; other models are returned as is.

    Raises:
        InterpError: the model is multimodal, and its text part is not known here.
    """
    import torch
    import transformers

    config, name = model.config, type(model).__name__
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text_config is config:
        return model
    if name not in _TEXT_CLASSES:
        raise InterpError(
            f"a language model from {name}",
            "it is multimodal, and its text part is not known here",
            f"load only its text model, or one of {', '.join(_TEXT_CLASSES)}",
        )
    with torch.device("meta"):
        text = getattr(transformers, _TEXT_CLASSES[name])(text_config)
    text.model, text.lm_head = model.model.language_model, model.lm_head
    text.generation_config = model.generation_config
    return text.eval()


def departures(model: Any) -> list[str]:
    """How a model, apart from its weights, differs from a new one of its class and configuration.

    The comparison covers the modules' classes, plain attributes and buffers. A class that is not
    from torch or transformers cannot be identified by its name, so it counts as different in every
    call.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    plain: dict[str, Any] = {}
    if _known(type(model)):
        with torch.random.fork_rng(devices=[]), no_init_weights(), init_empty_weights():
            plain = dict(type(model)(deepcopy(model.config)).named_modules())
    found = []
    for name, module in model.named_modules():
        kind, other = type(module), plain.pop(name, None)
        if not _known(kind):
            found.append(f"{name} {kind.__module__}.{kind.__name__} {uuid.uuid4().hex}")
        elif type(other) is not kind:
            found.append(f"{name} {kind.__module__}.{kind.__name__}")
        given, right = _attributes(module), {} if other is None else _attributes(other)
        found += [f"{name}.{key} {given[key]!r}" for key in given if given[key] != right.get(key)]
        found += [f"{name}.{key} absent" for key in right.keys() - given]
        buffers = {} if other is None else other._buffers
        for key, value in module._buffers.items():
            if value is not None and not _same(value, buffers.get(key)):
                found.append(f"{name}.{key} {content_key([str(value.dtype), value.tolist()])}")
    return sorted(found) + [f"{name} absent" for name in sorted(plain)]


def _known(kind: Any) -> bool:
    """Whether a class and its forward method come from torch or transformers."""
    origins = (kind.__module__, kind.forward.__module__)
    return all(origin.startswith(("torch.", "transformers.")) for origin in origins)


def _attributes(module: Any) -> dict[str, Any]:
    """A module's attributes that are numbers, texts, booleans or tuples."""
    passing = ("training", "gradient_checkpointing", "name_or_path")
    return {
        name: value
        for name, value in vars(module).items()
        if name[0] != "_" and name not in passing and isinstance(value, int | float | str | tuple)
    }


def _same(buffer: Any, other: Any) -> bool:
    """Whether two buffers agree up to rounding on different devices."""
    import torch

    if other is None or other.is_meta or buffer.shape != other.shape:
        return False
    if not buffer.is_floating_point():
        return torch.equal(buffer.cpu(), other.cpu())
    return torch.allclose(buffer.cpu().double(), other.cpu().double(), rtol=1e-6, atol=0)


def refuse_unmatched(
    name: str, missing: Collection[str], left_over: Collection[str], shapes: Collection[str] = ()
) -> None:
    """Refuse weights whose tensors are not exactly those of the configuration.

    Raises:
        InterpError: tensors are missing, unexpected or of another shape; the message names the
            first of them.
    """
    kinds = {"missing": missing, "unexpected": left_over, "of another shape": shapes}
    found = []
    for kind, names in kinds.items():
        if names:
            first = sorted(names)
            more = f" and {len(first) - 4} more" if len(first) > 4 else ""
            found.append(f"{len(first)} {kind} ({', '.join(first[:4])}{more})")
    if found:
        raise InterpError(
            f"the tensors of {name!r}",
            "; ".join(found),
            "the weights do not belong to this configuration: load an intact copy of both",
        )


def _causal_config(name: str, source: Mapping[str, Any]) -> Any:
    """The configuration of a model that predicts the next token."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = AutoConfig.from_pretrained(**source)
    kind = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    if getattr(config, "is_encoder_decoder", False) or type(config) not in (
        MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        shape = "an encoder and a decoder" if config.is_encoder_decoder else "another task"
        raise InterpError(
            f"loading {name!r}",
            f"{kind} has {shape}, so it is not a causal language model",
            "give a decoder that predicts the next token, such as Llama, Qwen or GPT-2",
        )
    return config


def _read_model(name: str, source: Mapping[str, Any], dtype: Any, device_map: Any) -> Any:
    from transformers import AutoModelForCausalLM

    _causal_config(name, source)
    options = {} if device_map is None else {"device_map": device_map}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **source,
        dtype=dtype,
        attn_implementation="eager",
        key_mapping=WRAPPERS,
        ignore_mismatched_sizes=True,  # reported below with their names
        output_loading_info=True,
        **options,
    )
    model, report = loaded
    shapes = [
        f"{tensor} {tuple(held)} for {tuple(wanted)}"
        for tensor, held, wanted in report["mismatched_keys"]
    ]
    held = {re.sub(r"\d+", "N", tensor) for tensor, _ in model.named_parameters()}
    left_over = [
        tensor
        for tensor in report["unexpected_keys"]
        if not re.search(_BUFFERS, tensor)
        or any(own.endswith(re.sub(r"\d+", "N", tensor)) for own in held)
    ]
    refuse_unmatched(name, report["missing_keys"], left_over, shapes)
    return model


def _with_adapter(folder: Path, dtype: Any, device_map: Any) -> tuple[Any, Any]:
    import torch

    about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base, tokenizer = read_checkpoint(
        about["base_model_name_or_path"],
        dtype=torch.float32,
        device_map=device_map,
        revision=about.get("revision"),
    )
    own = _read_tokenizer(str(folder), {"pretrained_model_name_or_path": str(folder)})
    return merge_adapter(base, folder, dtype), own or tokenizer


def _read_tokenizer(name: str, source: Mapping[str, Any]) -> Any:
    """The tokeniser of a model; None if a directory has no tokeniser files."""
    from transformers import AutoTokenizer

    folder = Path(name)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENISER_FILES):
        return None  # transformers would create an empty tokeniser
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(**source)
        if len(tokenizer.get_vocab()) > len(tokenizer.all_special_tokens):
            return tokenizer
        found, cause = "it has only special tokens", None
    except Exception as error:
        if isinstance(error, OSError) and not folder.exists():
            return None  # a Hugging Face id without a tokeniser
        found, cause = _words(error), error
    do = "correct its files, or delete them and give token ids"
    raise InterpError(f"the tokeniser of {name!r}", found, do) from cause


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and log messages of transformers."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _not_loaded(name: str, error: Exception, known: Collection[str]) -> InterpError:
    """Why a model could not be loaded, and what to do."""
    asked, found, path = f"loading {name!r}", _words(error), Path(name)
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        return InterpError(asked, "no such folder", "give the path of a model's folder or file")
    if isinstance(error, OSError) and not path.exists():
        return InterpError(
            asked,
            f"not on this machine, and not loaded from Hugging Face ({found})",
            f"{unknown('model', name, known).do}; for a Hugging Face id, connect once (and unset "
            "HF_HUB_OFFLINE), or give the path of a local copy",
        )
    if path.is_dir() and not (path / "config.json").exists():
        found, do = "it has no config.json", "the directory needs config.json and weights"
    elif isinstance(error, ImportError):
        do = "install the package named above, or load weights that do not need it"
    elif "trust_remote_code" in str(error):
        found = "it needs its own code, which is never run here"
        do = "load a model whose architecture is part of transformers"
    elif type(error).__name__ == "SafetensorError" or isinstance(error, EOFError):
        found, do = f"a weights file is damaged: {found}", "copy or download it again"
    elif isinstance(error, KeyError) and (entries := _entries(path, error.args[0])):
        found, do = f"{entries} in config.json is unknown", "use a value that transformers has"
    else:
        do = "compare config.json and the weights with an intact copy"
    return InterpError(asked, found, do)


def _entries(folder: Path, value: Any) -> str:
    """The entries of config.json with a given value, such as hidden_act 'gelu'."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    inner = [part for part in config.values() if isinstance(part, dict)]
    found = {key for part in (config, *inner) for key, held in part.items() if held == value}
    return ", ".join(f"{key} {value!r}" for key in sorted(found))


def _words(error: Exception) -> str:
    """The message of an error, on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or "no reason given"
    kind = "" if isinstance(error, OSError | ImportError) else f"{type(error).__name__}: "
    return kind + (text if len(text) <= 300 else f"{text[:297]}...")
