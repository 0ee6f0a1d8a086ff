"""A model built from its configuration alone: tensors have shapes and no values."""

from __future__ import annotations

from typing import Any

import torch

from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.core.files import cache_dir, content_key
from interp.models import embedded, registry
from interp.models.checkpoints import read_config
from interp.models.language_model import LanguageModel
from interp.models.loading import fast_engine, known_families, sizes, transformer
from interp.models.registry import known_models
from interp.models.toys.circuits import TOYS, build_toy

UNTRIED = "no model like it was tried: loading it tells which sites it offers"


def weightless(name: str, *, revision: str | None = None) -> LanguageModel:
    """The model that `load_model` would load by this name, on the meta device.

    Its sizes, its tokeniser and its `Decoder` can be read, but it cannot be run. `name` is as in
    `load_model`, or a config.json. Sites are not checked: they are those of the tiny model of the
    family that was tried (`tried`).

    Raises:
        InterpError: no such configuration, or `load_model` would refuse it.
    """
    from transformers import AutoModelForCausalLM

    config, tokenizer = _configuration(str(name), revision)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    built = transformer(built.eval().requires_grad_(False), str(name))
    decoder, reason = fast_engine(built)
    config = built.config
    runs = "hooks" if decoder is None else "engine"
    family = tried(
        type(built).__name__, runs, None if decoder is None else decoder.blocks[0].parallel
    )
    if family is not None and family["runs"] == "refused":
        do = "use another; `interp models` lists families"
        raise InterpError(f"loading {name}", family["missing"][""], do)
    sites = dict.fromkeys(SITES) | ({} if family is None else family["missing"])
    model = LanguageModel(
        name=str(name),
        hf_model=built,
        tokenizer=tokenizer,
        decoder=decoder,
        hash=content_key(config.to_dict()),
        **(_sizes_of(config) if decoder is None else sizes(decoder)),
        d_vocab=config.vocab_size,
        family=config.model_type,
        engine_reason=reason,
        max_positions=getattr(config, "max_position_embeddings", None),
    )
    model.sites = {site: sites[site] for site in SITES}
    if family is None:
        model.notes += (UNTRIED,)
    elif (note := sites.get("")) is not None:
        model.notes += (note,)
    refused = [row for row in _rows(type(built).__name__) if row["runs"] == "refused"]
    model.notes += tuple(
        f"a model of its architecture was refused ({row['name']}): {row['missing']['']}"
        for row in refused
    )
    if (packed := getattr(config, "quantization_config", None)) is not None:
        kind = packed.get("quant_method") if isinstance(packed, dict) else type(packed).__name__
        model.notes += (f"its files are quantised ({kind}): sizes are those of plain weights",)
    return model


def tried(architecture: str, runs: str, parallel: bool | None) -> dict[str, Any] | None:
    """The tiny model of an architecture that was tried and runs in this way, if there is one.

    A row of `known_families`. `parallel` says whether attention and MLP read the same stream; None
    for unknown. A row that was refused is given if every model of the architecture was.
    """
    rows = _rows(architecture)
    if rows and all(row["runs"] == "refused" for row in rows):
        return rows[0]
    for row in rows:
        alike = parallel is None or ("resid_mid" in row["missing"]) == parallel
        if row["runs"] == runs and alike:
            return row
    return None


def _rows(architecture: str) -> list[dict[str, Any]]:
    return [row for row in known_families() if row["architecture"] == architecture]


def _configuration(name: str, revision: str | None) -> tuple[Any, Any]:
    """The configuration and the tokeniser by a name of `load_model`."""
    if name in TOYS:
        return build_toy(name).model.config, None
    if (folder := registry.organisms().get(name)) is not None:
        name = registry.describe(folder)["base"] or str(folder)
    if name == embedded.NAME:
        kept = cache_dir() / "models" / name
        name = str(kept if (kept / "config.json").exists() else embedded.directory())
    known = [entry.name for entry in known_models()]
    return read_config(name, revision=revision, known=known)


def _sizes_of(config: Any) -> dict[str, Any]:
    """The sizes of a model that the engine does not read, as its configuration names them."""
    heads = config.num_attention_heads
    return {
        "n_layers": config.num_hidden_layers,
        "n_heads": heads,
        "n_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "d_model": config.hidden_size,
        "d_head": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "d_mlp": getattr(config, "intermediate_size", None) or 0,
        "parallel": False,
        "gated": False,
        "post_norms": False,
    }
