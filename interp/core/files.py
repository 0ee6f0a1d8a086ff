"""The cache folder, atomic writes, and JSON and hashes of values."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from interp.core.errors import InterpError
from interp.core.remote import RemoteFile, folder_at

Target = TypeVar("Target", bound=Path | RemoteFile)
"""A file to write."""

PART = ".part"
"""Suffix of temporary files."""

DAY = 86400.0


def cache_dir() -> Path:
    """The cache folder: `$INTERP_CACHE`, or `cache/` in the working directory. Safe to delete.

    Raises:
        InterpError: it is a URL that is no path of this machine.
    """
    asked = f"INTERP_CACHE={os.environ.get('INTERP_CACHE', 'cache')}"
    folder = folder_at(asked.partition("=")[2], asked)
    if isinstance(folder, RemoteFile):
        found = "the cache holds models and locks, which a URL cannot hold"
        raise InterpError(asked, found, "give a folder, and the URL as INTERP_STORE")
    return folder


def store_root() -> Path | RemoteFile:
    """Where results and parts of sweeps are kept: `$INTERP_STORE`, else the cache folder.

    A folder, or a URL that fsspec reads and writes, such as that of a bucket.

    Raises:
        InterpError: nothing reads such URLs here.
    """
    place = os.environ.get("INTERP_STORE")
    return folder_at(place, f"INTERP_STORE={place}") if place else cache_dir()


def write_atomically(path: Target, write: Callable[[Path], object]) -> Target:
    """Call `write` with a temporary path beside `path`, then rename the new file to `path`.

    Readers see the old file or the whole new one, never a part. If two processes write the same
    cache entry, the last rename wins; both files have the same content. Temporary files left in the
    folder by killed processes are removed. If `path` is a symbolic link, its target is replaced. If
    it is a stream (see `is_stream`), the content is written into it. For a file under a URL, see
    `RemoteFile.publish`.

    Raises:
        InterpError: the disk is full or the folder cannot be written. No temporary file remains.
    """
    if isinstance(path, RemoteFile):
        _write_remote(path, write)
        return path
    return _write_here(path, write)  # type: ignore[return-value]


def _write_here(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file on this machine."""
    if is_stream(path):
        return _write_into(path, write)
    path = Path(os.path.realpath(path))
    owner = f"{_machine()}-{os.getpid()}"
    partial = path.with_name(f".{path.name}.{owner}-{secrets.token_hex(4)}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        write(partial)
        partial.chmod(0o644)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def is_stream(path: Path) -> bool:
    """Whether a path is a pipe, a device or an open file, to be written into and not replaced.

    `/dev/stdout` and `/dev/fd/3` are streams even if the shell redirects them to a file: that file
    also holds what was printed.
    """
    return _descriptor(path) is not None or (
        path.exists() and not (path.is_file() or path.is_dir())
    )


def _descriptor(path: Path) -> int | None:
    """The descriptor of the open file that a path such as `/dev/stdout` names, or None."""
    for _ in range(40):  # Linux follows at most 40 links
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", os.path.realpath("/proc/self/fd")) and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _write_into(path: Path, write: Callable[[Path], object]) -> Path:
    """Copy what `write` writes into a stream, after everything printed so far."""
    number = _descriptor(path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / path.name
            write(whole)
            sys.stdout.flush()
            with path.open("wb") if number is None else os.fdopen(os.dup(number), "wb") as stream:
                stream.write(whole.read_bytes())
    except OSError as error:
        raise not_written(path, error) from error
    return path


def _write_remote(path: RemoteFile, write: Callable[[Path], object]) -> None:
    """Write a file on this machine, then copy it."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / f"whole{path.suffix}"
            write(whole)
            path.publish(whole)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error) from error


def not_written(path: Path | RemoteFile, error: Exception) -> InterpError:
    """The error for a file that could not be written."""
    found = getattr(error, "strerror", None) or str(error)
    do = "free disk space, or set INTERP_CACHE to a folder you can write to"
    if isinstance(path, RemoteFile):
        do = "check that you may write there, or set INTERP_STORE to another place"
    return InterpError(f"writing {path}", found, do)


def require_writable(path: Path, *, folder: bool = False) -> None:
    """Refuse a path at which no file (or folder, with `folder`) can be written.

    Nothing is created.

    Raises:
        InterpError: the path is a folder instead of a file, or a file instead of a folder, or
            permission is missing.
    """
    target, number = Path(os.path.realpath(path)), _descriptor(path)
    try:
        if path.exists() and path.is_dir() != folder:
            raise OSError(None, f"it is {'not ' * folder}a folder")
        if number is not None:
            os.write(number, b"")  # fails unless it is open for writing
            return
        if is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(None, "no permission")
            return
        folders = [target, *target.parents] if folder else target.parents
        tempfile.TemporaryFile(dir=next(one for one in folders if one.exists())).close()
    except OSError as error:
        raise not_written(path, error) from error


@cache
def _machine() -> str:
    """Hash of the boot and the container in which this process number is valid."""
    facts = [platform.node()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return content_key(facts)[:8]


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that nothing will finish."""
    for path in folder.glob(f".*{PART}"):
        with suppress(OSError):
            if is_abandoned(path):
                path.unlink()


def is_abandoned(path: Path) -> bool:
    """Whether a temporary file is older than a day, or its process has ended.

    Raises:
        OSError: it is gone.
    """
    machine, _, number = path.name.removesuffix(PART).rpartition(".")[2].partition("-")
    if time.time() - path.stat().st_mtime > DAY:
        return True
    process = number.partition("-")[0]
    return machine == _machine() and process.isdecimal() and not _alive(int(process))


def _alive(process: int) -> bool:
    """Whether a process of this machine runs; True if this cannot be found out."""
    try:
        if os.name == "posix":
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it belongs to another user
    return True


def json_text(value: Any, **style: Any) -> str:
    """Standard JSON, which has finite numbers only.

    Other numbers become the strings "NaN", "Infinity" and "-Infinity". The whole package writes
    JSON with this function.
    """
    style = {"ensure_ascii": False, "allow_nan": False, **style}
    try:
        return json.dumps(value, **style)
    except ValueError:
        return json.dumps(spelled(value, str), **style)


def spelled(value: Any, spell: Callable[[str], Any]) -> Any:
    """A value in which each number that JSON lacks is replaced, e.g. by `spell("NaN")`."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # a numpy number or array
    if isinstance(value, float) and not math.isfinite(value):
        return spell("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {name: spelled(one, spell) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(one, spell) for one in value]
    return value


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal texts."""
    return json_text(value, sort_keys=True, separators=(",", ":"))


def content_key(value: Any) -> str:
    """The first 20 hex digits of the sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """The sha256 of a file, which is read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    names = ("interp", "torch", "transformers", "transformer-lens", "numpy")
    return {name: version(name) for name in names}
