"""Work that is done once: finished chunks are kept in files and read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from interp.files import write_atomically


def once(
    folder: Path | None, number: int, size: int, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """A chunk's values: read from its file if that is whole, else computed and kept there."""
    if folder is None:
        return compute()
    path = folder / f"chunk-{number:06d}.safetensors"
    try:
        values = load_file(path)["values"]
        if len(values) == size:
            return values
    except (OSError, KeyError, SafetensorError):
        pass  # not there, or cut short: compute it and replace the file
    values = compute()
    write_atomically(path, lambda partial: save_file({"values": values}, partial))
    return values
