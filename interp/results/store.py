"""The store of finished results by key, shared by notebooks, command line and app.

It is in the cache folder, or where `$INTERP_STORE` says; see `interp.core.files.store_root`.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from interp.core.errors import InterpError
from interp.core.files import DAY, cache_dir, store_root
from interp.core.remote import RemoteFile
from interp.engine.resume import NO_CHUNKS, Chunks
from interp.results.scores import Scores

ABANDONED = 30 * DAY
"""Seconds after which the chunks of an abandoned computation are removed."""


def result_path(key: str) -> Path | RemoteFile:
    """The file of the result with a key."""
    return store_root() / "results" / f"{key}.safetensors"


def stored(key: str | None) -> Scores | None:
    """The result with a key, or None if its file is missing or damaged (it is then replaced)."""
    if key is not None:
        with suppress(InterpError):
            return Scores.load(result_path(key), key=key)
    return None


def keep(key: str | None, scores: Scores, chunks: Chunks = NO_CHUNKS) -> None:
    """Save a finished result and remove its chunks. If saving fails, warn and keep the chunks."""
    if key is None:
        return
    try:
        scores.save(result_path(key), key=key)
    except InterpError as error:
        if chunks.error is None:
            warnings.warn(f"the result is not kept: {error}", stacklevel=3)
        return
    drop(chunks)


def chunks_so_far(key: str) -> Chunks:
    """The finished chunks of a computation, to be read only, while it runs or after it stopped."""
    return Chunks(folder=store_root() / "partial" / key, key=key)


@contextmanager
def chunks_of(key: str | None) -> Iterator[Chunks]:
    """A folder for the chunks of a computation, locked until the block ends; none without a key.

    No process removes a folder that another process uses. Under a URL there are no locks: each
    chunk is whole, and if two processes make the same computation, the first one to end removes
    the chunks of both.
    """
    if key is None:
        yield NO_CHUNKS
        return
    made = chunks_so_far(key)
    if isinstance(made.folder, RemoteFile):
        yield made
        return
    mine = None
    try:
        with _alone():
            _drop_abandoned()
            mine = _in_use(_partial() / key)
    except (OSError, NotImplementedError) as error:
        found = getattr(error, "strerror", None) or str(error)
        do = "set INTERP_CACHE to a folder you can write to"
        made.folder = None
        made.refuse(InterpError(f"using the cache {store_root()}", found, do))
    try:
        yield made
    finally:
        if mine is not None:
            with suppress(OSError), _alone():
                mine.release()
                Path(mine.lock_file).unlink(missing_ok=True)
                with suppress(OSError):
                    (_partial() / key).rmdir()  # works only if the folder is empty


def drop(chunks: Chunks) -> None:
    """Remove the chunks of a finished computation, unless another process also uses them."""
    if isinstance(chunks.folder, RemoteFile):
        with suppress(OSError):
            chunks.folder.remove()
    elif chunks.folder is not None:
        with suppress(OSError), _alone():
            if len(list(_users(chunks.folder))) < 2:
                shutil.rmtree(chunks.folder, ignore_errors=True)


def _partial() -> Path:
    root = store_root()
    return (cache_dir() if isinstance(root, RemoteFile) else root) / "partial"


def _alone() -> FileLock:
    """A lock that stops other processes from starting to use chunks and from removing any."""
    _partial().mkdir(parents=True, exist_ok=True)
    return FileLock(_partial().parent / ".partial.lock")


def _in_use(folder: Path) -> FileLock:
    """A lock in a folder of chunks, which is released at the latest when this process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        lock = FileLock(folder / f"in-use-{number}.lock", is_singleton=False)
        with suppress(Timeout):
            lock.acquire(blocking=False)
            return lock
        number += 1


def _users(folder: Path) -> Iterator[Path]:
    """The locks in a folder of chunks that are held."""
    for path in folder.glob("in-use-*.lock"):
        try:
            FileLock(path, is_singleton=False).acquire(blocking=False).lock.release()
        except Timeout:
            yield path


def used(folder: Path) -> bool:
    """Whether a process uses a folder of chunks."""
    return any(True for _ in _users(folder))


def remove_unused(folder: Path) -> bool:
    """Remove a folder of chunks; False if a process uses it.

    Raises:
        OSError: it cannot be removed.
    """
    with _alone():
        if free := not used(folder):
            shutil.rmtree(folder)
    return free


def _drop_abandoned() -> None:
    """Remove chunks that no process uses and that have not grown for a long time."""
    for folder in _partial().iterdir():
        with suppress(OSError):
            old = time.time() - folder.stat().st_mtime > ABANDONED
            if old and folder.is_dir() and not used(folder):
                shutil.rmtree(folder, ignore_errors=True)
