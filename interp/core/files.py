"""Where results live, and how a file gets there whole or not at all."""

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
from typing import Any

from safetensors import SafetensorError

from interp.core.errors import InterpError

PART = ".part"
"""How the names of temporary files end."""

DAY = 86400.0


def cache_dir() -> Path:
    """The cache: `$INTERP_CACHE`, else `cache/` in the working directory. Safe to delete."""
    return Path(os.environ.get("INTERP_CACHE", "cache"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary path beside `path`, then rename it into place.

    Readers see the old file or the new one, never half of one; of two processes that write
    the same entry the last rename wins, and both wrote the same content. Temporary files that
    killed processes left in the directory are removed. A link stays a link; a stream (see
    `is_stream`) is written into.

    Raises:
        InterpError: the disk is full or the directory cannot be written; nothing is left behind.
    """
    if is_stream(path):
        return _write_into(path, write)
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.{_owner()}-{secrets.token_hex(4)}{PART}")
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
    """Whether a path is written into, not replaced: a pipe, a device or an open file's number.

    `/dev/stdout` and `/dev/fd/3` stay streams where the shell sends them to a file, which holds
    what was printed too.
    """
    return _descriptor(path) is not None or (
        path.exists() and not (path.is_file() or path.is_dir())
    )


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path such as `/dev/stdout` leads to."""
    for _ in range(40):  # as many links as Linux follows
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", os.path.realpath("/proc/self/fd")) and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _write_into(path: Path, write: Callable[[Path], object]) -> Path:
    """What `write` writes, copied into a stream, after what was printed."""
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


def not_written(path: Path, error: Exception) -> InterpError:
    """The error for a file that cannot be written."""
    found = getattr(error, "strerror", None) or str(error)
    do = "free some space or set INTERP_CACHE to a directory that can be written"
    return InterpError(f"writing {path}", found, do)


def require_writable(path: Path, *, folder: bool = False) -> None:
    """Refuse a place for a file (or a folder) that cannot be written; nothing is left there.

    Raises:
        InterpError: a folder where a file should be, or the other way round, or no permission.
    """
    target, number = Path(os.path.realpath(path)), _descriptor(path)
    try:
        if path.exists() and path.is_dir() != folder:
            raise OSError(None, f"it is {'no' if folder else 'a'} directory")
        if number is not None:
            os.write(number, b"")  # an error unless it is open for writing
            return
        if is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(None, "no permission")
            return
        near = next(one for one in (target, *target.parents) if one.exists())
        near = near.parent if near == target and not folder else near
        tempfile.TemporaryFile(dir=near).close()
    except OSError as error:
        raise not_written(path, error) from error


def _owner() -> str:
    """This process, in the name of a file: the machine it runs on, and its number there."""
    return f"{_machine()}-{os.getpid()}"


@cache
def _machine() -> str:
    """Where process numbers have a meaning: one start of one machine, and one container on it."""
    facts = [platform.node()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return content_key(facts)[:8]


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files whose writers are dead, or, of other machines, a day old."""
    for path in folder.glob(f".*{PART}"):
        machine, _, number = path.name.removesuffix(PART).rpartition(".")[2].partition("-")
        with suppress(OSError, ValueError):
            old = time.time() - path.stat().st_mtime > DAY
            if old or (machine == _machine() and not _alive(int(number.partition("-")[0]))):
                path.unlink()


def _alive(process: int) -> bool:
    """Whether a process of this machine runs; where that cannot be asked, True."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is another user's
    return True


def json_text(value: Any, **style: Any) -> str:
    """JSON as its standard has it, which knows finite numbers only.

    The others are written as the strings "NaN", "Infinity" and "-Infinity". All JSON of the
    package is written by it.
    """
    style = {"ensure_ascii": False, "allow_nan": False, **style}
    try:
        return json.dumps(value, **style)
    except ValueError:
        return json.dumps(spelled(value, str), **style)


def spelled(value: Any, spell: Callable[[str], Any]) -> Any:
    """A value with `spell("NaN")` and the like in place of the numbers that JSON does not know."""
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
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json_text(value, sort_keys=True, separators=(",", ":"))


def content_key(value: Any) -> str:
    """The first 20 hex digits of the sha256 of `value`'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of the packages a number depends on."""
    names = ("interp", "torch", "transformers", "transformer-lens", "numpy")
    return {name: version(name) for name in names}
