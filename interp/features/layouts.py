"""Dictionaries in files: the layouts of SAELens, Gemma Scope and circuit-tracer, and our own.

Names and rules are those of the public repositories jbloomAus/SAELens (`sae_lens/saes`,
`sae_lens/loading`), google/gemma-scope (the model cards) and safety-research/circuit-tracer
(`circuit_tracer/transcoder/single_layer_transcoder.py`).
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from interp.core.errors import InterpError, unknown
from interp.features.dictionary import Dictionary
from interp.models.language_model import LanguageModel

HOOKS = {
    **{f"hook_{site}": site for site in "resid_pre resid_mid resid_post attn_out mlp_out".split()},
    "attn.hook_z": "z",
    "mlp.hook_post": "post",
    "mlp.hook_in": "mlp_in",
    "ln2.hook_normalized": "mlp_normed",
    "mlp.hook_out": "mlp_out",
    "hook_mlp_in": "resid_mid",
}
"""Hooks that a configuration names, as sites. A hook behind a norm is one of a model whose norms'
weights are folded away, as TransformerLens did by default."""

GEMMA_SCOPE = {
    "res": ("resid_post", "resid_post"),
    "mlp": ("mlp_out", "mlp_out"),
    "att": ("z", "z"),
    "transcoders": ("mlp_normed", "mlp_out"),
}
"""What the dictionaries of a Gemma Scope repository, such as gemma-scope-2b-pt-res, read and write.
Its transcoders read the MLP's norm without its weight."""


def load_dictionary(
    path: str | Path,
    model: LanguageModel,
    *,
    layer: int | None = None,
    read: str | None = None,
    written: str | None = None,
) -> Dictionary:
    """Read an SAE or a transcoder from files on this machine, and check that it fits a model.

    | layout | path |
    |---|---|
    | our own | the file that `Dictionary.save` wrote |
    | SAELens | the folder of cfg.json and sae_weights.safetensors |
    | Gemma Scope | params.npz |
    | circuit-tracer | the folder of config.yaml and layer_0.safetensors, ..., and a `layer` |

    The three public layouts do not hold a hash of the model: their `model_hash` is "". What they
    were trained on may differ from the model in what TransformerLens folds into the weights, such
    as a centred residual stream; `dictionary_card` shows whether a dictionary fits.

    Args:
        path: the file or folder.
        model: the model it is used on.
        layer: the layer, if the files do not say it.
        read: the site that is read, instead of what the files say; see `Dictionary`.
        written: the site that is written, likewise.

    Raises:
        InterpError: no such path, an unknown layout, a damaged file, an activation or a
            normalisation that is not supported (gated, cross-layer), a site or layer that nothing
            says, or a dictionary that does not fit the model.
    """
    path, asked = Path(path), f"the dictionary {path}"
    given = {"layer": layer, "read": read, "written": written}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        made = _read(path, model, given, asked)
    except (
        OSError, ValueError, KeyError, TypeError, SafetensorError, yaml.YAMLError,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        found = f"damaged, or of another layout: {error!r:.200}"
        raise InterpError(asked, found, "give a whole file of a known layout") from error
    made.require_model(model)
    return made


def _read(path: Path, model: LanguageModel, given: dict[str, Any], asked: str) -> Dictionary:
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise InterpError(asked, "no such file or folder", "give a path on this machine")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as stream:
            if "record" in (stream.metadata() or {}):
                return Dictionary.load(path)
    if path.suffix == ".npz":
        return _gemma_scope(path, given, asked)
    if (folder / "cfg.json").is_file():
        return _saelens(folder, given, asked)
    if (folder / "config.yaml").is_file():
        return _circuit_tracer(path, folder, model, given, asked)
    raise InterpError(
        asked,
        "neither cfg.json, config.yaml, params.npz nor a file of Dictionary.save",
        "give one of these, or make a Dictionary from the weights",
    )


def _saelens(folder: Path, given: dict[str, Any], asked: str) -> Dictionary:
    """The keys are W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_enc, b_dec, and threshold."""
    said = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    said |= {**(said.get("metadata") or {}), **(said.get("meta") or {})}
    weights = _wide(load_file(folder / "sae_weights.safetensors"))
    architecture = said.get("architecture", "standard")
    act = said.get("activation_fn") or said.get("activation_fn_str") or "relu"
    scaling = weights.pop("scaling_factor", None)
    for what, value, fine in (
        ("activation", act, ("relu", "topk")),
        ("architecture", architecture, tuple(_ARCHITECTURES)),
        ("normalize_activations", said.get("normalize_activations"), (None, False, "none")),
        ("hook_head_index", said.get("hook_head_index"), (None,)),
        ("scaling_factor", scaling is not None and bool((scaling != 1).any()), (False,)),
    ):
        if value not in fine:
            found = f"{what} is {value!r}, which is not read"
            raise InterpError(asked, found, f"fold it into the weights; known are {fine}")
    kind = _ARCHITECTURES[architecture]
    if kind == "relu" and act == "topk":
        kind = "topk"
    k = said.get("k") or (said.get("activation_fn_kwargs") or {}).get("k")
    if said.get("rescale_acts_by_decoder_norm"):
        # Activations are scaled by the norms of the decoder's rows before the choice.
        norms = weights["W_dec"].norm(dim=-1)
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norms, weights["b_enc"] * norms
        weights["W_dec"] = weights["W_dec"] / norms[:, None]
    if "topk_threshold" in weights:
        weights["threshold"] = weights["topk_threshold"].expand_as(weights["b_enc"]).clone()
    hook = said.get("hook_name") or said.get("hook_point")
    layer, read = _site(hook, asked)
    _, written = _site(said.get("hook_name_out") or hook, asked)
    layer = said.get("hook_layer", said.get("hook_point_layer", layer))
    transcodes = "transcoder" in architecture
    if transcodes and not said.get("hook_name_out"):
        written = None
    return _made(
        weights,
        {"layer": layer, "read": read, "written": written} | given,
        asked,
        kind=kind,
        k=int(k) if kind == "topk" and k else None,
        centred=bool(said.get("apply_b_dec_to_input", True)) and not transcodes,
        skip=weights["W_skip"].T if "W_skip" in weights else None,
        name=folder.name,
        model=str(said.get("model_name") or ""),
    )


_ARCHITECTURES: Mapping[str, Any] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "batch_topk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
}


def _gemma_scope(path: Path, given: dict[str, Any], asked: str) -> Dictionary:
    """The keys are W_enc (d, features), W_dec (features, d), b_enc, b_dec and threshold."""
    with np.load(path) as stored:
        weights = {name.replace("w_", "W_"): torch.from_numpy(stored[name]) for name in stored}
    layer = re.search(r"layer_(\d+)", str(path))
    kind = re.search(r"(gemma-scope-[\w-]+)-(res|mlp|att|transcoders)\b", str(path))
    read, written = GEMMA_SCOPE[kind[2]] if kind else (None, None)
    if kind is None and (site := given.get("read") or given.get("written")):
        read = written = site  # an SAE, unless both are given
    said = {"layer": int(layer[1]) if layer else None, "read": read, "written": written}
    return _made(_wide(weights), said | given, asked, kind="jumprelu", name=path.parent.name)


def _circuit_tracer(
    path: Path, folder: Path, model: LanguageModel, given: dict[str, Any], asked: str
) -> Dictionary:
    """One file a layer, with the keys W_enc and W_dec (features, d), b_enc and b_dec.

    Some have W_skip (d_out, d_in) and activation_function.threshold too.
    """
    said = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if (kind := said.get("model_kind", "transcoder_set")) != "transcoder_set":
        raise InterpError(asked, f"model_kind {kind}", "give transcoders of one layer each")
    if path.is_dir():
        if "layer" not in given:
            raise InterpError(asked, "one file for each layer", "give layer= as well")
        path = folder / f"layer_{given['layer']}.safetensors"
    number = re.search(r"layer_(\d+)", path.name)
    weights = _wide(load_file(path))
    output = said["feature_output_hook"]
    blocks = () if model.decoder is None or "written" in given else model.decoder.blocks
    if output == "mlp.hook_out" and any(block.ln2_post is not None for block in blocks):
        found = "it writes mlp.hook_out, before a norm that this model has behind its MLP"
        raise InterpError(asked, found, "use the model that it was trained on")
    threshold = weights.pop("activation_function.threshold", None)
    named = said.get("activation") or ("relu" if threshold is None else "jumprelu")
    if named not in ("relu", "topk", "jumprelu"):
        raise unknown("activation", named, ("relu", "topk", "jumprelu"))
    weights["W_enc"] = weights["W_enc"].T
    if threshold is not None:
        weights["threshold"] = threshold
    return _made(
        weights,
        {
            "layer": int(number[1]) if number else None,
            "read": _site(said["feature_input_hook"], asked)[1],
            "written": _site(output, asked)[1],
        }
        | given,
        asked,
        kind=named,
        k=said.get("k") if named == "topk" else None,
        signed=named != "relu",
        skip=weights["W_skip"].T if "W_skip" in weights else None,
        name=folder.name,
        model=str(said.get("model_name") or ""),
    )


def _site(hook: object, asked: str) -> tuple[int | None, str | None]:
    """The layer and the site of a hook such as blocks.5.hook_resid_pre; None if it has none."""
    if hook is None:
        return None, None
    block = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)", str(hook))
    if block is None or block[2] not in HOOKS:
        raise unknown(f"hook of {asked}", hook, HOOKS)
    return None if block[1] is None else int(block[1]), HOOKS[block[2]]


def _made(
    weights: Mapping[str, Tensor], place: Mapping[str, Any], asked: str, *, kind: Any, **facts: Any
) -> Dictionary:
    """A dictionary of the weights that files hold under the usual names."""
    unsaid = [name for name in ("layer", "read", "written") if place.get(name) is None]
    if unsaid:
        do = f"give {' and '.join(f'{name}=' for name in unsaid)}"
        raise InterpError(asked, f"its files do not say the {' and '.join(unsaid)}", do)
    tensors = {name: weights[name].contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if (skip := facts.get("skip")) is not None:
        facts["skip"] = skip.contiguous()
    needs = kind in ("jumprelu", "batch_topk")
    threshold = weights.get("threshold") if needs else None
    return Dictionary(**tensors, **place, kind=kind, threshold=threshold, **facts)


def _wide(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in float32."""
    return {name: value.float() for name, value in weights.items()}
