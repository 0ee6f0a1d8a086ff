"""Finished chunks of a computation, kept in files so that a stopped one can be resumed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.core.records import read_sealed, write_sealed
from interp.core.remote import RemoteFile

FORM = 1


@dataclass(kw_only=True)
class Chunks:
    """The finished chunks of one computation, each in its own file.

    Attributes:
        folder: the folder of the files, or its URL; None keeps no chunks.
        key: key of the whole computation.
        error: set when a file could not be written; no more chunks are kept then.
    """

    folder: Path | RemoteFile | None = None
    key: str = ""
    error: InterpError | None = None

    @property
    def some(self) -> bool:
        """Whether any finished chunk exists."""
        return self.folder is not None and any(self.folder.glob("chunk-*"))

    def once(
        self, number: int, size: int, compute: Callable[[], np.ndarray], *, of: Any = None
    ) -> np.ndarray:
        """The values of a chunk: read from its file, or computed and written to it.

        A file that is damaged or belongs to another computation is replaced.

        Args:
            number: number of the chunk.
            size: number of values along the first axis.
            compute: computes the values.
            of: an array that identifies the content of the chunk, such as its cells.
        """
        if self.folder is None:
            return compute()
        if (found := self.kept(number, size, of=of)) is not None:
            return found
        values = compute()
        if self.error is None:
            path, key = self._place(number, size, of)
            try:
                write_sealed(path, "chunk", FORM, {}, {"values": values}, key=key)
            except InterpError as error:
                self.refuse(error)
        return values

    def kept(self, number: int, size: int, *, of: Any = None) -> np.ndarray | None:
        """The values of a finished chunk; None if its file is missing or not valid."""
        if self.folder is None:
            return None
        path, key = self._place(number, size, of)
        with suppress(InterpError):
            return read_sealed(path, "chunk", FORM, key=key)[1]["values"]
        return None

    def _place(self, number: int, size: int, of: Any) -> tuple[Path | RemoteFile, str]:
        """The file of a chunk, and the key of its content."""
        assert self.folder is not None
        made_of = None if of is None else hashlib.sha256(np.ascontiguousarray(of).data).hexdigest()
        key = content_key([self.key, number, size, made_of])
        return self.folder / f"chunk-{number:06d}.safetensors", key

    def refuse(self, error: InterpError) -> None:
        """Stop keeping chunks, with one warning; the computation continues."""
        self.error = error
        warnings.warn(f"finished chunks are not kept: {error}", stacklevel=4)


NO_CHUNKS = Chunks()
"""Keeps no chunks."""
