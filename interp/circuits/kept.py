"""A result on disk: arrays as safetensors, the rest as JSON beside them, under checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import InterpError
from interp.files import content_key, file_sha256, write_atomically


def write_result(
    path: str | Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], form: int
) -> Path:
    """Write `path`.safetensors, then `path`.json with the facts, the format and checksums.

    Raises:
        InterpError: the files cannot be written.
    """
    from safetensors.numpy import save_file

    arrays_path, facts_path = _paths(path)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(arrays_path, lambda partial: save_file(whole, partial))
    sealed = dict(facts) | {"format": form, "sha256": file_sha256(arrays_path)}
    sealed["checksum"] = content_key(sealed)
    text = json.dumps(sealed, indent=1, ensure_ascii=False)
    write_atomically(facts_path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return arrays_path


def read_result(path: str | Path, form: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts that `write_result` wrote.

    Raises:
        InterpError: a file is missing, of another format, damaged or changed.
    """
    from safetensors.numpy import load_file

    arrays_path, facts_path = _paths(path)
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        if facts.pop("checksum") != content_key(facts):
            raise ValueError("a checksum is wrong")
        if facts.pop("format") != form:
            raise ValueError(f"it is not of format {form}")
        if facts.pop("sha256") != file_sha256(arrays_path):
            raise ValueError("a checksum is wrong")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InterpError(
            f"loading {arrays_path}",
            f"missing, damaged or changed: {error}",
            "delete it and run the measurement again",
        ) from error
    return load_file(arrays_path), facts


def _paths(path: str | Path) -> tuple[Path, Path]:
    stem = str(path).removesuffix(".safetensors").removesuffix(".json")
    return Path(f"{stem}.safetensors"), Path(f"{stem}.json")
