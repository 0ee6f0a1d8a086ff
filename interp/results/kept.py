"""The results kept in the cache and the store: what they are, notes on them, and deleting them.

They are listed from the heads of their files, without reading the numbers. A result is named by its
file under the cache folder, such as `results/0b5174db2054304fb901`. Where `$INTERP_STORE` is set,
sweeps under it are named in the same way; notes stay in the cache folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.files import cache_dir, content_key, not_written, store_root
from interp.core.records import head_of, read_sealed, shapes_of, write_sealed
from interp.core.remote import RemoteFile
from interp.core.schema import Unicode, checked
from interp.results.scores import Scores

KeptPlace = Literal["cache", "store"]

KINDS = {
    "Scores": "sweep",
    "Findings": "edge scores",
    "CircuitEvaluation": "circuit evaluation",
    "NarrowedCurve": "circuit by token",
    "Circuit": "saved circuit",
    "head samples": "head measures",
    "scan of a prompt": "scan",
    "_Named": "direction",
    "Probes": "probes",
    "WeightTrial": "change of weights",
}
"""The kinds of records that are listed, in words. A study is called "study of ..."."""

SWEEPS = "results"
"""The folder of results, in the cache and in the store."""

PLACES = (
    "results/*.safetensors",
    "circuits/*.safetensors",
    "circuits/kept/*.safetensors",
    "heads/*.safetensors",
    "scans/*.json",
    "directions/*.safetensors",
    "probes/*.safetensors",
    "weights/*.safetensors",
)
STUDIES = "studies/*/study.json"
REPORTS = ("report.md", "report.html", "figures/*.svg", "figures/*.png", "locks/*.lock")
"""What a study's folder holds beside its sealed steps."""

NOTE = 1
LONGEST = 2000
"""Characters of a note."""


@dataclass(frozen=True, kw_only=True)
class KeptResult:
    """A kept result, and where it comes from ("" for what its file does not say).

    Attributes:
        name: its path under the cache folder or the store, without suffix; of a study, its folder's
            path.
        place: "cache", or "store" if it lies where `$INTERP_STORE` says.
        kind: one of `KINDS`, or "study of ...".
        about: what was measured, in a few words.
        n: number of prompts or pairs; None for what its file does not say.
        model, model_hash, dtype, task, call: as in `interp.core.records.Provenance`.
        made: when its file was written last, in seconds since 1970.
        size: bytes, of all files of a study together.
        note: what a user wrote about it.
    """

    name: str
    place: KeptPlace
    kind: str
    about: str
    n: int | None
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
            "n": "" if self.n is None else str(self.n),
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


@dataclass(frozen=True)
class KeptFile:
    """The file of a result; of a study, its `study.json`."""

    path: Path | RemoteFile
    name: str
    place: KeptPlace
    size: int
    made: float


def kept_results() -> list[KeptResult]:
    """The results in the cache folder and in the store, newest first: see `KINDS`.

    Files of another kind, damaged ones and half-written ones are left out.

    Raises:
        InterpError: the store cannot be reached.
    """
    found = [one for one in map(_described, kept_files()) if one is not None]
    # A direction says the hash of its model, and other results what that model is called.
    names = {one.model_hash: one.model for one in found if one.model and one.model_hash}
    found = [
        one if one.model else replace(one, model=names.get(one.model_hash, "")) for one in found
    ]
    return sorted(found, key=lambda one: -one.made)


def kept_files() -> list[KeptFile]:
    """The files that `kept_results` describes. Of two sweeps of one name, the store's is read.

    Raises:
        InterpError: the store cannot be reached.
    """
    root, found = cache_dir(), {}
    for path in (path for place in (*PLACES, STUDIES) for path in root.glob(place)):
        with suppress(OSError):  # deleted in the meantime
            inside, stat = path.relative_to(root), path.stat()
            name = str(inside.parent if _is_study(path) else inside.with_suffix(""))
            found[name] = KeptFile(path, name, "cache", stat.st_size, stat.st_mtime)
    for name, (size, made) in stored_files(f"{SWEEPS}/*.safetensors").items():
        path = store_root() / name
        name = name.removesuffix(".safetensors")
        found[name] = KeptFile(path, name, "store", size, made)
    return [one for one in found.values() if not one.path.name.startswith(".")]


def stored_files(pattern: str) -> dict[str, tuple[int, float]]:
    """Path under the store -> bytes, and when it was written; none where it is the cache folder.

    Raises:
        InterpError: the store cannot be reached.
    """
    root, found = store_root(), {}
    if root == cache_dir():
        return {}
    if isinstance(root, RemoteFile):
        try:
            return root.listed(pattern)
        except OSError as error:
            do = "check INTERP_STORE and what its server needs, or unset it"
            raise InterpError(f"listing {root}", str(error.strerror or error), do) from error
    for path in root.glob(pattern):
        with suppress(OSError):
            stat = path.stat()
            found[str(path.relative_to(root))] = stat.st_size, stat.st_mtime
    return found


@reads_arguments
def find_result(name: str) -> KeptResult:
    """The kept result of a name.

    Raises:
        InterpError: there is none.
    """
    return _found(name)[0]


@reads_arguments
def kept_scores(name: str) -> Scores:
    """The scores of a kept sweep.

    Raises:
        InterpError: there is no such result, it is of another kind, or its file is damaged.
    """
    found, path = _found(name)
    if found.kind != "sweep":
        raise InterpError(f"the effects of {name}", f"a {found.kind}", "name a sweep")
    return Scores.load(path)


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
    if isinstance(path, RemoteFile):
        try:
            path.remove()
        except OSError as error:
            raise not_written(path, error) from error
        _note_path(name).unlink(missing_ok=True)
        return
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


def _found(name: str) -> tuple[KeptResult, Path | RemoteFile]:
    """A kept result and its file; the name is compared with those of the files that are there."""
    for file in kept_files():
        if file.name == name and (found := _described(file)) is not None:
            return found, file.path
    raise InterpError(
        f"the kept result {name!r:.80}",
        "it is not in the cache folder or the store: it was deleted, or kept on another machine",
        "choose one of kept_results(), or compute it again",
    )


@lru_cache(maxsize=4096)
def head_of_stored(file: KeptFile) -> tuple[str, dict[str, Any]]:
    """The head of a file under a URL, which is copied here to be read: once, until it changes."""
    return head_of(file.path)


def _is_study(path: Path) -> bool:
    return path.name == "study.json"


def _described(file: KeptFile) -> KeptResult | None:
    """What the head of a file says; None for a file of another kind, or one that is gone."""
    path = file.path
    try:
        kind, facts = head_of_stored(file) if isinstance(path, RemoteFile) else head_of(path)
        local = path if isinstance(path, Path) else None
        study = kind.removeprefix("study ") if local is not None and _is_study(local) else ""
        if kind not in KINDS and not study:
            return None
        files = _files_of_study(local.parent) if study and local is not None else []
        origin = facts | {"task": study} if study else _origin(kind, facts)
        names = ("model", "model_hash", "dtype", "task", "call")
        return KeptResult(
            name=file.name,
            place=file.place,
            kind=f"study of {study}" if study else KINDS[kind],
            about=_about(kind, facts),
            n=_count(kind, facts, path),
            made=file.made,
            size=file.size + sum(one.stat().st_size for one in files),
            note=_note(file.name),
            **{name: str(origin.get(name) or "") for name in names},
        )
    except (InterpError, OSError):
        return None


def _origin(kind: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a result comes from, as far as its file says."""
    if kind == "_Named":
        return next(iter(facts["directions"].values()))
    if kind == "Probes":
        return facts["source"]
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
    if kind == "Probes":
        axes = " × ".join(f"{len(labels)} {name}s" for name, labels in facts["coordinates"].items())
        return f"{facts['kind']} probes of {facts['source'].get('site', 'arrays')}, {axes or 'one'}"
    named = facts if kind != "CircuitEvaluation" else facts["itself"]["circuits"][0]
    return str(named.get("name") or named.get("method") or "")


def _count(kind: str, facts: Mapping[str, Any], path: Path | RemoteFile) -> int | None:
    """How many prompts or pairs a result is over."""
    if kind == "Scores":
        return shapes_of(path)["clean"][0]
    if kind == "head samples":
        return max(shape[0] for shape in shapes_of(path).values())
    if kind == "Probes":
        held = facts["heldout"]
        counts = (facts["train_valid"], facts["train_invalid"], held["n_valid"], held["n_invalid"])
        return sum(counts)
    if kind == "scan of a prompt":
        return 1
    return _first_n(facts)


def _first_n(facts: Any) -> int | None:
    """The first n in the facts of a record, which may hold other records."""
    if isinstance(facts, Mapping) and isinstance(facts.get("n"), int):
        return facts["n"]
    inner = facts.values() if isinstance(facts, Mapping) else facts
    if isinstance(inner, str) or not isinstance(inner, Iterable):
        return None
    return next((n for n in map(_first_n, inner) if n is not None), None)


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
