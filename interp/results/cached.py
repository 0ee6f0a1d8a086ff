"""Every file in the cache folder: what it is, whether it is whole, and what nothing needs any more.

Sealed files have a checksum. Prompts and tasks that a user typed, models and reports have none here
(the default model's files are checked whenever it is loaded).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from interp.core.errors import InterpError
from interp.core.files import PART, cache_dir, is_abandoned, not_written
from interp.core.records import check_sealed, head_of
from interp.core.run_options import Progress
from interp.results.kept import KINDS, model_of
from interp.results.store import remove_unused, used

State = Literal["kept", "in use", "left over", "damaged"]
"""`left over`: nothing needs it. A stopped run is too, but the same call goes on from its parts."""

FOLDERS = {
    "results": "sweep",
    "circuits": "circuit",
    "activations": "activations",
    "heads": "measures of heads",
    "scans": "scan of a prompt",
    "joint": "joint effect",
    "directions": "direction",
    "checks": "check of a model",
    "notes": "note",
    "studies": "study",
    "prompts": "typed prompt",
    "tasks": "saved task",
    "models": "model",
}
"""What lies in a folder of the cache, in words."""

SEALED = (
    "results", "circuits", "activations", "heads", "scans", "joint", "directions", "checks",
    "notes",
)  # fmt: skip
"""Folders in which every file is sealed, as are the steps of studies."""

REMADE = ("results", "activations", "heads", "scans", "joint", "checks")
"""Folders whose files are computed again when they are missing."""


@dataclass(frozen=True, kw_only=True)
class CachedFile:
    """A file of the cache, or the folder of a run that has not ended.

    Attributes:
        name: its path under the cache folder.
        kind: what it is, in words.
        model: of a result, the model's name; "" for other files.
        size: bytes.
        made: when it was written last, in seconds since 1970.
        state: see `State`; `damaged` is only found by `check_cache`.
    """

    name: str
    kind: str
    model: str
    size: int
    made: float
    state: State

    @property
    def path(self) -> Path:
        """Where it is."""
        return cache_dir() / self.name

    @property
    def sealed(self) -> bool:
        """Whether it has a checksum."""
        top, ending = self.name.partition("/")[0], self.path.suffix
        step = top == "studies" and ending in (".json", ".safetensors")
        return self.state in ("kept", "damaged") and (step or top in SEALED)

    @property
    def removable(self) -> bool:
        """Whether `prune_cache` removes it: left over, or damaged and computed again when asked."""
        top = self.name.partition("/")[0]
        again = top in REMADE or (top == "circuits" and self.path.parent.name == top)
        return self.state == "left over" or (self.state == "damaged" and again)


def cached_files() -> list[CachedFile]:
    """Every file in the cache folder, by name. Nothing is read but the heads of results.

    A run that was stopped, or that a process is at, is one entry, `partial/...`.
    """
    root, found = cache_dir(), []
    for top in sorted(root.iterdir()) if root.is_dir() else ():
        if top.name == "partial":
            found += (_run(folder) for folder in sorted(top.iterdir()) if folder.is_dir())
        elif not top.is_symlink():
            files = sorted(top.rglob("*")) if top.is_dir() else [top]
            found += (_file(path) for path in files if path.is_file() and not path.is_symlink())
    return found


def check_cache(progress: Progress | None = None) -> list[CachedFile]:
    """Read every sealed file whole; those whose checksum is wrong, or that cannot be read.

    Args:
        progress: called with (files read, files to read).
    """
    files = [one for one in cached_files() if one.sealed]
    damaged = []
    for number, one in enumerate(files, start=1):
        try:
            check_sealed(one.path)
        except InterpError:
            if one.path.exists():
                damaged.append(replace(one, state="damaged"))
        if progress is not None:
            progress(number, len(files))
    return damaged


def prune_cache(files: Iterable[CachedFile]) -> list[CachedFile]:
    """Remove those of some files that are `removable` and still unused; the removed ones.

    Args:
        files: of `cached_files` or `check_cache`.

    Raises:
        InterpError: a file cannot be removed.
    """
    removed = []
    for one in files:
        if not one.removable:
            continue
        try:
            if one.name.startswith("partial/"):
                gone = remove_unused(one.path)
            else:
                with _unlocked(one.path) as gone:
                    if gone:
                        one.path.unlink(missing_ok=True)
        except OSError as error:
            raise not_written(one.path, error) from error
        if gone:
            removed.append(one)
    return removed


def _run(folder: Path) -> CachedFile:
    """The finished parts of a run that has not ended."""
    files = [path for path in folder.iterdir() if path.is_file()]
    parts = sum(path.name.startswith("chunk-") for path in files)
    return CachedFile(
        name=f"partial/{folder.name}",
        kind=f"unfinished run, {parts} parts",
        model="",
        size=sum(path.stat().st_size for path in files),
        made=folder.stat().st_mtime,
        state="in use" if used(folder) else "left over",
    )


def _file(path: Path) -> CachedFile:
    name = path.relative_to(cache_dir())
    top = name.parts[0]
    kind, model, state = FOLDERS.get(top, "other file"), "", "kept"
    if path.name.endswith(PART):
        kind, state = "temporary file", "left over" if is_abandoned(path) else "in use"
    elif path.suffix == ".lock":
        kind = "lock"
        if path.parent.name == "locks" and top == "studies":
            with _unlocked(path) as free:
                state = "left over" if free else "in use"
    else:
        with suppress(InterpError):
            record, facts = head_of(path)
            kind, model = KINDS.get(record, kind), model_of(facts)
    stat = path.stat()
    return CachedFile(
        name=str(name), kind=kind, model=model, size=stat.st_size, made=stat.st_mtime, state=state
    )


@contextmanager
def _unlocked(path: Path) -> Iterator[bool]:
    """Whether no process holds a lock file, which this one then does; True of other files."""
    lock = FileLock(path, is_singleton=False) if path.suffix == ".lock" else None
    try:
        if lock is not None:
            lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if lock is not None:
            lock.release()
