"""Every file of the cache and the store: what it is, if it is whole, what nothing needs any more.

Sealed files have a checksum. Prompts and tasks that a user typed, models and reports have none here
(the default model's files are checked whenever it is loaded).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from interp.core.errors import InterpError
from interp.core.files import PART, cache_dir, is_abandoned, not_written, store_root
from interp.core.records import check_sealed, head_of
from interp.core.remote import RemoteFile
from interp.core.run_options import Progress
from interp.results.kept import (
    KINDS,
    KeptFile,
    KeptPlace,
    head_of_stored,
    kept_files,
    model_of,
    stored_files,
)
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
    "paces": "measured speed",
    "notes": "note",
    "studies": "study",
    "prompts": "typed prompt",
    "tasks": "saved task",
    "models": "model",
}
"""What lies in a folder of the cache, in words."""

SEALED = (
    "results", "circuits", "activations", "heads", "scans", "joint", "directions", "checks",
    "paces", "notes",
)  # fmt: skip
"""Folders in which every file is sealed, as are the steps of studies."""

STORED = ("results", "partial")
"""Folders that the store has."""

REMADE = ("results", "activations", "heads", "scans", "joint", "checks", "paces")
"""Folders whose files are computed again when they are missing."""


@dataclass(frozen=True, kw_only=True)
class CachedFile:
    """A file of the cache or the store, or the folder of a run that has not ended.

    Attributes:
        name: its path under the cache folder or the store.
        place: "cache", or "store" if it lies where `$INTERP_STORE` says.
        kind: what it is, in words.
        model: of a result, the model's name; "" for other files.
        size: bytes.
        made: when it was written last, in seconds since 1970.
        state: see `State`; `damaged` is only found by `check_cache`.
    """

    name: str
    place: KeptPlace
    kind: str
    model: str
    size: int
    made: float
    state: State

    @property
    def path(self) -> Path | RemoteFile:
        """Where it is."""
        return (store_root() if self.place == "store" else cache_dir()) / self.name

    @property
    def sealed(self) -> bool:
        """Whether it has a checksum."""
        top, ending = self.name.partition("/")[0], Path(self.name).suffix
        step = top == "studies" and ending in (".json", ".safetensors")
        return self.state in ("kept", "damaged") and (step or top in SEALED)

    @property
    def removable(self) -> bool:
        """Whether `prune_cache` removes it: left over, or damaged and computed again when asked."""
        top = self.name.partition("/")[0]
        again = top in REMADE or (top == "circuits" and Path(self.name).parent.name == top)
        return self.state == "left over" or (self.state == "damaged" and again)


def cached_files() -> list[CachedFile]:
    """Every file in the cache folder and the store, by name. Only heads of results are read.

    A run that was stopped, or that a process is at, is one entry, `partial/...`. Under a URL there
    are no locks, so nobody can tell these two apart: both are `kept`.

    Raises:
        InterpError: the store cannot be reached.
    """
    here, there = cache_dir(), store_root()
    found = _files_of(here, "cache", sorted(here.iterdir()) if here.is_dir() else [])
    if isinstance(there, RemoteFile):
        return found + _files_under_url()
    if there != here:
        folders = [there / name for name in STORED if (there / name).is_dir()]
        found += _files_of(there, "store", folders)
    return found


def _files_of(root: Path, place: KeptPlace, tops: Iterable[Path]) -> list[CachedFile]:
    found = []
    for top in tops:
        if top.name == "partial":
            found += (_run(folder, place) for folder in sorted(top.iterdir()) if folder.is_dir())
        elif not top.is_symlink():
            files = sorted(top.rglob("*")) if top.is_dir() else [top]
            files = [path for path in files if path.is_file() and not path.is_symlink()]
            found += (_file(path, root, place) for path in files)
    return found


def _files_under_url() -> list[CachedFile]:
    """The results and the unfinished runs of a store under a URL."""
    found = [
        CachedFile(
            name=f"{one.name}{one.path.suffix}",
            place="store",
            kind=FOLDERS["results"],
            model=model_of(head[1]) if (head := _head(one)) else "",
            size=one.size,
            made=one.made,
            state="kept",
        )
        for one in kept_files()
        if one.place == "store"
    ]
    runs: dict[str, list[tuple[int, float]]] = {}
    for name, facts in stored_files("partial/*/chunk-*").items():
        runs.setdefault(name.rpartition("/")[0], []).append(facts)
    for name, parts in sorted(runs.items()):
        sizes, times = zip(*parts, strict=True)
        found.append(
            CachedFile(
                name=name,
                place="store",
                kind=f"unfinished run, {len(parts)} parts",
                model="",
                size=sum(sizes),
                made=max(times),
                state="kept",
            )
        )
    return found


def _head(file: KeptFile) -> tuple[str, dict[str, Any]] | None:
    """The head of a file under a URL; None of one that is no sealed file."""
    with suppress(InterpError):
        return head_of_stored(file)
    return None


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
            if isinstance(one.path, RemoteFile) or one.path.exists():
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
        path, gone = one.path, True
        try:
            if isinstance(path, RemoteFile):
                path.remove()
            elif one.name.startswith("partial/"):
                gone = remove_unused(path)
            else:
                with _unlocked(path) as gone:
                    if gone:
                        path.unlink(missing_ok=True)
        except OSError as error:
            raise not_written(path, error) from error
        if gone:
            removed.append(one)
    return removed


def _run(folder: Path, place: KeptPlace) -> CachedFile:
    """The finished parts of a run that has not ended."""
    files = [path for path in folder.iterdir() if path.is_file()]
    parts = sum(path.name.startswith("chunk-") for path in files)
    return CachedFile(
        name=f"partial/{folder.name}",
        place=place,
        kind=f"unfinished run, {parts} parts",
        model="",
        size=sum(path.stat().st_size for path in files),
        made=folder.stat().st_mtime,
        state="in use" if used(folder) else "left over",
    )


def _file(path: Path, root: Path, place: KeptPlace) -> CachedFile:
    name = path.relative_to(root)
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
        name=str(name),
        place=place,
        kind=kind,
        model=model,
        size=stat.st_size,
        made=stat.st_mtime,
        state=state,
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
