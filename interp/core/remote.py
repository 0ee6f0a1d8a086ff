"""Files under a URL, such as those of a bucket or of another machine's disk (fsspec)."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from interp.core.errors import InterpError

RENAMING = ("sftp", "ssh", "smb", "hdfs", "webhdfs", "webdav")
"""Protocols of file systems: a file is visible while it is written, and a new name is given at
once. In the other ones, those of object stores, a file appears when all of it is there."""


@dataclass(frozen=True)
class RemoteFile:
    """A file or a folder under a URL; it need not exist.

    What goes wrong is an `OSError`, whatever the file system raises, as with a `Path`.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemoteFile:
        return RemoteFile(f"{self.url.rstrip('/')}/{name}")

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.url).suffix

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    def glob(self, pattern: str) -> list[RemoteFile]:
        """The files in this folder whose names have a pattern; none if there is no folder."""
        return [self / name for name in self.listed(pattern)]

    def listed(self, pattern: str) -> dict[str, tuple[int, float]]:
        """Path under this folder -> bytes, and when it was written last, in seconds since 1970.

        The time is 0 where the file system does not say it.
        """
        with self._reached() as (system, path):
            system.invalidate_cache()
            found = system.glob(f"{path}/{pattern}", detail=True)
        depth = pattern.count("/") + 1
        return {
            "/".join(PurePosixPath(one).parts[-depth:]): (int(facts.get("size") or 0), _time(facts))
            for one, facts in found.items()
        }

    def fetch(self, to: Path) -> None:
        """Copy the file to this machine."""
        with self._reached() as (system, path):
            system.get_file(path, str(to))

    def publish(self, whole: Path) -> None:
        """Copy a file of this machine here. Readers see the old file or the new one, never a part.

        File systems get it under another name and then rename it; see `RENAMING`.
        """
        with self._reached() as (system, path):
            if self._protocol not in RENAMING:
                system.put_file(str(whole), path)
                return
            folder, _, name = path.rpartition("/")
            partial = f"{folder}/.{name}.{secrets.token_hex(4)}.part"
            system.makedirs(folder, exist_ok=True)
            try:
                system.put_file(str(whole), partial)
                try:
                    system.mv(partial, path)
                except Exception:  # some do not rename to the name of a file that exists
                    system.rm_file(path)
                    system.mv(partial, path)
            finally:
                with suppress(Exception):
                    if system.exists(partial):
                        system.rm_file(partial)

    def remove(self) -> None:
        """Remove a folder and what is in it."""
        with self._reached() as (system, path):
            system.rm(path, recursive=True)

    @property
    def _protocol(self) -> str:
        return self.url.partition("://")[0]

    @contextmanager
    def _reached(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path in it."""
        try:
            yield fsspec.url_to_fs(self.url)
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise OSError(None, f"{type(error).__name__}: {error}") from error


def _time(facts: Mapping[str, Any]) -> float:
    """When a file was written last, by what its file system says of it."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        found = facts.get(name)
        with suppress(ValueError):
            found = datetime.fromisoformat(found) if isinstance(found, str) else found
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, int | float):
            return float(found)
    return 0.0


def folder_at(place: str, asked: str) -> Path | RemoteFile:
    """The folder at a path or a URL. `file://` is a path.

    Raises:
        InterpError: nothing reads such URLs here, or a package is missing.
    """
    protocol, found, path = place.partition("://")
    if not found:
        return Path(place)
    if protocol in ("file", "local"):
        return Path(path)
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        do = "install the package that reads such URLs, or give a folder or another URL"
        raise InterpError(asked, str(error), do) from error
    return RemoteFile(place)


@contextmanager
def at_hand(path: Path | RemoteFile) -> Iterator[Path]:
    """A file of this machine with the content: a path itself, or a copy that is then removed.

    Raises:
        OSError: there is no such file, or it cannot be copied.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"copy{path.suffix}"
        path.fetch(copy)
        yield copy
