"""Models trained for this project and shipped with it: small weights, each with a card.

An organism is a directory of `interp/weights`: a whole small model, or a LoRA adapter on the
embedded default. `organism.json` says which, and pins the hash of the base weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.core.errors import InterpError
from interp.models.checkpoints import merge_adapter, read_checkpoint
from interp.models.embedded import NAME, directory

WEIGHTS = Path(__file__).parent.parent / "weights"


def organisms() -> dict[str, Path]:
    """The shipped organisms by name."""
    return {path.parent.name: path.parent for path in sorted(WEIGHTS.glob("*/organism.json"))}


def describe(folder: Path) -> dict[str, Any]:
    """What `organism.json` says: description, base (None: a whole model), base_hash."""
    return json.loads((folder / "organism.json").read_text(encoding="utf-8"))


def base_of(name: str) -> str | None:
    """The model a shipped adapter was trained from; None for any other name."""
    folder = organisms().get(name)
    return None if folder is None else describe(folder)["base"]


def card(folder: Path) -> str:
    """The organism's card."""
    return (folder / "README.md").read_text(encoding="utf-8")


def load_organism(folder: Path, *, dtype: Any) -> tuple[Any, Any]:
    """The Hugging Face model, its adapter merged in, and the tokeniser.

    The adapter is merged in float32, W + (alpha / r) B A, and the result cast to the dtype asked
    for.

    Raises:
        InterpError: the base weights are not those the adapter was trained on.
    """
    about = describe(folder)
    if about["base"] is None:
        return read_checkpoint(str(folder), dtype=dtype)
    return _merged(folder, about, dtype)


def source(about: dict[str, Any]) -> Path:
    """Where an adapter's base model lies.

    Raises:
        InterpError: a base this version does not have.
    """
    if about["base"] != NAME:
        raise InterpError(f"the base {about['base']!r}", "not an embedded model", f"known: {NAME}")
    return directory()


def _merged(folder: Path, about: dict[str, Any], dtype: Any) -> tuple[Any, Any]:
    import torch

    from interp.models.language_model import fingerprint

    base, tokenizer = read_checkpoint(str(source(about)), dtype=torch.float32)
    found = fingerprint(base.state_dict(), base.config.to_dict())
    if found != about["base_hash"]:
        raise InterpError(
            f"the base weights of {folder.name}",
            f"hash {found[:16]}, the adapter was trained on {about['base_hash'][:16]}",
            f"delete the cached {about['base']} and let it be built again",
        )
    return merge_adapter(base, folder, dtype), tokenizer
