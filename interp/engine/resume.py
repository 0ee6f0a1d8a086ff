"""Work that is done once: finished chunks are kept in files and read back."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.core.records import read_sealed, write_sealed

FORM = 1


@dataclass(kw_only=True)
class Chunks:
    """Finished parts of one computation, each in a file of its own.

    folder: where they are; None keeps none. key: of the whole computation. error: why no more are
    kept, once a file could not be written.
    """

    folder: Path | None = None
    key: str = ""
    error: InterpError | None = None

    @property
    def some(self) -> bool:
        """Whether any are there."""
        return self.folder is not None and any(self.folder.glob("chunk-*"))

    def once(
        self, number: int, size: int, compute: Callable[[], np.ndarray], *, of: Any = None
    ) -> np.ndarray:
        """A chunk's values: read from its file if that is sound, else computed and kept there.

        Args:
            number: of the chunk.
            size: how many values it has along the first axis.
            compute: what gives them.
            of: an array that says what the chunk is made of, such as its cells.
        """
        if self.folder is None:
            return compute()
        made_of = None if of is None else hashlib.sha256(np.ascontiguousarray(of).data).hexdigest()
        key = content_key([self.key, number, size, made_of])
        path = self.folder / f"chunk-{number:06d}.safetensors"
        try:
            return read_sealed(path, "chunk", FORM, key=key)[1]["values"]
        except InterpError:
            values = compute()  # not there, or not sound: it is replaced
        if self.error is None:
            try:
                write_sealed(path, "chunk", FORM, {}, {"values": values}, key=key)
            except InterpError as error:
                self.refuse(error)
        return values

    def refuse(self, error: InterpError) -> None:
        """Keep no more chunks, and say so once: the computation goes on without."""
        self.error = error
        warnings.warn(f"finished parts are not kept: {error}", stacklevel=4)


NO_CHUNKS = Chunks()
"""Nothing is kept."""
