"""Where results live, and how a file gets there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
