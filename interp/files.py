"""Where results live, and how a file gets there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from interp.errors import InterpError


def cache_dir() -> Path:
    """The cache: `$INTERP_CACHE`, else `cache/` in the working directory. Safe to delete."""
    return Path(os.environ.get("INTERP_CACHE", "cache"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary path beside `path`, then rename it into place.

    Readers see the old file or the new one, never half of one; of two processes that write
    the same entry the last rename wins, and both wrote the same content.

    Raises:
        InterpError: the disk is full or the directory cannot be written; nothing is left behind.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
        os.close(handle)
        partial = Path(name)
        write(partial)
        partial.chmod(0o644)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise InterpError(
            f"writing {path}",
            getattr(error, "strerror", None) or str(error),
            "free some space or set INTERP_CACHE to a directory that can be written",
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return path


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_key(value: Any) -> str:
    """The first 20 hex digits of the sha256 of `value`'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of the packages a number depends on."""
    names = ("interp", "torch", "transformers", "transformer-lens", "numpy")
    return {name: version(name) for name in names}


def write_result(
    path: str | Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], form: int
) -> Path:
    """A result on disk: `path`.safetensors, then `path`.json with the facts and checksums.

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
