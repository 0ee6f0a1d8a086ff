"""The results kept in the cache: what they are, notes on them, and deleting them.

They are listed from the heads of their files, without reading the numbers. A result is named by its
file under the cache folder, such as `results/0b5174db2054304fb901`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.files import cache_dir, content_key, not_written
from interp.core.records import head_of, read_sealed, write_sealed
from interp.core.schema import Unicode, checked

KINDS = {
    "Scores": "sweep",
    "Findings": "edge scores",
    "CircuitEvaluation": "circuit evaluation",
    "NarrowedCurve": "circuit by token",
    "Circuit": "saved circuit",
    "head samples": "head measures",
    "scan of a prompt": "scan",
    "_Named": "direction",
}
"""The kinds of records that are listed, in words. A study is called "study of ..."."""

PLACES = (
    "results/*.safetensors",
    "circuits/*.safetensors",
    "circuits/kept/*.safetensors",
    "heads/*.safetensors",
    "scans/*.json",
    "directions/*.safetensors",
)
STUDIES = "studies/*/study.json"
REPORTS = ("report.md", "report.html", "figures/*.svg", "figures/*.png", "locks/*.lock")
"""What a study's folder holds beside its sealed steps."""

NOTE = 1
LONGEST = 2000
"""Characters of a note."""


@dataclass(frozen=True, kw_only=True)
class KeptResult:
    """A result in the cache, and where it comes from ("" for what its file does not say).

    Attributes:
        name: its path under the cache folder, without suffix; of a study, its folder's path.
        kind: one of `KINDS`, or "study of ...".
        about: what was measured, in a few words.
        model, model_hash, dtype, task, call: as in `interp.core.records.Provenance`.
        made: when its file was written last, in seconds since 1970.
        size: bytes, of all files of a study together.
        note: what a user wrote about it.
    """

    name: str
    kind: str
    about: str
    model: str
    model_hash: str
    dtype: str
    task: str
    call: str
    made: float
    size: int
    note: str

    def row(self) -> dict[str, str]:
        """What a list says of it, by the name of the column."""
        return {
            "when": f"{datetime.fromtimestamp(self.made):%Y-%m-%d %H:%M}",
            "kind": self.kind,
            "model": self.model,
            "task": self.task,
            "what": self.about,
            "note": self.note,
            "size": size_in_words(self.size),
        }

    def has(self, words: str) -> bool:
        """Whether all these words are in its `row`, in any capitals."""
        said = " ".join(self.row().values()).lower()
        return all(word in said for word in words.lower().split())


def size_in_words(size: int) -> str:
    """Bytes as kilobytes or megabytes."""
    return f"{size / 1e6:z.1f} MB" if size >= 1e6 else f"{size / 1e3:z.1f} kB"


def kept_results() -> list[KeptResult]:
    """The results in the cache folder, newest first: see `KINDS`.

    Files of another kind, damaged ones and half-written ones are left out.
    """
    found = [one for one in map(_described, kept_files()) if one is not None]
    # A direction says the hash of its model, and other results what that model is called.
    names = {one.model_hash: one.model for one in found if one.model and one.model_hash}
    found = [
        one if one.model else replace(one, model=names.get(one.model_hash, "")) for one in found
    ]
    return sorted(found, key=lambda one: -one.made)


def kept_files() -> list[Path]:
    """The files that `kept_results` describes: one of each result, of a study its `study.json`."""
    found = (path for place in (*PLACES, STUDIES) for path in cache_dir().glob(place))
    return [path for path in found if not path.name.startswith(".")]


@reads_arguments
def find_result(name: str) -> KeptResult:
    """The kept result of a name.

    Raises:
        InterpError: there is none.
    """
    return _found(name)[0]


@reads_arguments
def note_result(name: str, text: str) -> None:
    """Keep a note on a result, in place of an earlier one; "" removes it.

    Raises:
        InterpError: there is no such result, the text has over 2,000 characters or is no Unicode,
            or it cannot be written.
    """
    found, _ = _found(name)
    text = checked(Unicode, text, f"a note on {name}")
    if len(text) > LONGEST:
        asked = f"a note on {name}"
        raise InterpError(asked, f"{len(text)} characters", f"write at most {LONGEST}")
    if not text.strip():
        _note_path(found.name).unlink(missing_ok=True)
        return
    write_sealed(_note_path(found.name), "note", NOTE, {"of": found.name, "text": text})


@reads_arguments
def delete_result(name: str) -> None:
    """Delete a kept result and its note. Of a study's folder, other files stay.

    Only what `kept_results` lists can be deleted, so the name cannot lead to another file.

    Raises:
        InterpError: there is no such result, a process is computing a step of the study, or a file
            cannot be deleted.
    """
    _, path = _found(name)
    folder = path.parent
    files = [*_files_of_study(folder), path] if _is_study(path) else [path]
    locks = [FileLock(lock) for lock in files if lock.suffix == ".lock"]
    try:
        for lock in locks:
            lock.acquire(blocking=False)
        for file in files:
            file.unlink(missing_ok=True)
    except Timeout as error:
        asked, found = f"deleting {name}", "a process is computing a step of it"
        raise InterpError(asked, found, "wait until it has ended, or stop it") from error
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        for lock in locks:
            lock.release()
    if _is_study(path):
        for empty in (folder / "locks", folder / "figures", folder):
            with suppress(OSError):  # another file lies there
                empty.rmdir()
    _note_path(name).unlink(missing_ok=True)


def _found(name: str) -> tuple[KeptResult, Path]:
    """A kept result and its file; the name is compared with those of the files that are there."""
    for path in kept_files():
        if _name(path) == name and (found := _described(path)) is not None:
            return found, path
    raise InterpError(
        f"the kept result {name!r:.80}",
        "it is not in the cache folder: it was deleted, or kept on another machine",
        "choose one of kept_results(), or compute it again",
    )


def _name(path: Path) -> str:
    path = path.relative_to(cache_dir())
    return str(path.parent if _is_study(path) else path.with_suffix(""))


def _is_study(path: Path) -> bool:
    return path.name == "study.json"


def _described(path: Path) -> KeptResult | None:
    """What the head of a file says; None for a file of another kind, or one that is gone."""
    try:
        kind, facts = head_of(path)
        stat = path.stat()
        study = kind.removeprefix("study ") if _is_study(path) else ""
        if kind not in KINDS and not study:
            return None
        files = _files_of_study(path.parent) if study else []
        origin = facts | {"task": study} if study else _origin(kind, facts)
        names = ("model", "model_hash", "dtype", "task", "call")
        return KeptResult(
            name=_name(path),
            kind=f"study of {study}" if study else KINDS[kind],
            about=_about(kind, facts),
            made=stat.st_mtime,
            size=stat.st_size + sum(file.stat().st_size for file in files),
            note=_note(_name(path)),
            **{name: str(origin.get(name) or "") for name in names},
        )
    except (InterpError, OSError):
        return None


def _origin(kind: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a result comes from, as far as its file says."""
    if kind == "_Named":
        return next(iter(facts["directions"].values()))
    return _provenance(facts) or {}


def _about(kind: str, facts: Mapping[str, Any]) -> str:
    if kind == "Scores":
        axes = " × ".join(facts["axes"])
        return f"{facts['method']}, {facts['site']} by {axes}, {facts['direction']}"
    if kind.startswith("study"):
        settings = facts["settings"]
        return ", ".join(f"{name} {settings[name]}" for name in ("n", "draws") if name in settings)
    if kind == "head samples":
        return "attention and direct attribution of every head"
    if kind == "scan of a prompt":
        return str(facts["found"]["difference"])
    if kind == "_Named":
        held = facts["directions"]
        return ", ".join(f"{name}: L{one['layer']}.{one['site']}" for name, one in held.items())
    named = facts if kind != "CircuitEvaluation" else facts["itself"]["circuits"][0]
    return str(named.get("name") or named.get("method") or "")


def model_of(facts: Any) -> str:
    """The name of the model in the facts of a record; "" if they do not say."""
    facts = _provenance(facts) or (facts if isinstance(facts, Mapping) else {})
    return str(facts.get("model") or "")


def _provenance(facts: Any) -> Mapping[str, Any] | None:
    """The first provenance in the facts of a record, which may hold other records."""
    inner: Iterator[Any] = iter(facts if isinstance(facts, list) else ())
    if isinstance(facts, Mapping):
        if isinstance(facts.get("provenance"), Mapping):
            return facts["provenance"]
        inner = iter(facts.values())
    return next(filter(None, map(_provenance, inner)), None)


def _files_of_study(folder: Path) -> list[Path]:
    """The files of a study's folder that interp wrote: steps, reports, figures, locks."""
    found = [path for name in REPORTS for path in folder.glob(name)]
    for path in folder.glob("[!.]*.json"):
        with suppress(InterpError):
            if head_of(path)[0].startswith("step "):
                found.append(path)
    return found


def _note_path(name: str) -> Path:
    return cache_dir() / "notes" / f"{content_key(name)}.json"


def _note(name: str) -> str:
    with suppress(InterpError):
        return str(read_sealed(_note_path(name), "note", NOTE)[0]["text"])
    return ""
