"""Files with a checksum, and dataclasses saved in them.

A sealed file holds its kind, its format number, its key (in the cache, the hash of the request) and
a checksum of these and of all its data. Reading checks them all, so a flipped bit, a file under the
wrong name and a file of another version are detected.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.files import (
    Target,
    canonical_json,
    is_stream,
    json_text,
    spelled,
    write_atomically,
)
from interp.core.remote import RemoteFile, at_hand
from interp.core.schema import Brief

Arrays = Mapping[str, Any]
"""Either numpy arrays or torch tensors by name; a file holds only one of the two."""

NUMBER = "not finite"
"""JSON writes nan and infinities as an object whose only name is this."""


def write_sealed(
    path: Target,
    kind: str,
    form: int,
    facts: Any,
    arrays: Arrays | None = None,
    *,
    key: str | None = None,
) -> Target:
    """Write a sealed file: one of JSON if `path` ends in .json, else safetensors.

    `kind` says in one word what the file holds. `form` is the format number, raised when the
    content changes. `facts` are JSON values and numbers that are not finite; keys are read back as
    texts. A .json file holds no arrays. `key` is the key of a cache entry, None for other files.

    Raises:
        InterpError: the file cannot be written.
        TypeError: `facts` cannot be written as JSON.
    """
    facts = json.loads(json_text(spelled(facts, lambda name: {NUMBER: name})))  # keys are texts
    head = {"kind": kind, "format": form, "key": key, "facts": facts}
    text = json_text(head)
    if path.suffix == ".json":
        # Names keep their order in the file; the checksum does not depend on it.
        head = json.loads(text)
        checksum = sha256_of(canonical_json(head), {})
        told = json_text({**head, "checksum": checksum}, indent=1)
        data = told.encode("utf-8", "surrogatepass")
        return write_atomically(path, lambda partial: partial.write_bytes(data))
    whole: dict[str, Any] = {
        name: array.detach().cpu().contiguous()
        if isinstance(array, Tensor)
        else np.ascontiguousarray(array).reshape(array.shape)
        for name, array in (arrays or {}).items()
    }
    metadata = {"record": json.dumps(text), "checksum": sha256_of(text, whole)}
    save = save_tensors if any(isinstance(a, Tensor) for a in whole.values()) else save_file
    return write_atomically(path, lambda partial: save(whole, partial, metadata))


def read_sealed(
    path: Path | RemoteFile, kind: str, form: int, *, key: str | None = None, tensors: bool = False
) -> tuple[Any, dict[str, Any]]:
    """The facts and arrays of a sealed file of this kind, format and key (None accepts any key).

    With `tensors`, arrays are torch tensors, memory-mapped from the file, instead of numpy arrays.

    Raises:
        InterpError: the file is missing, damaged or changed, or has another kind, format or key.
    """
    head, arrays = _unsealed(path, tensors)
    seen = [head[name] for name in ("kind", "format", "key")]
    wanted = [kind, form, seen[2] if key is None else key]
    for name, one, other in zip(("kind", "format", "key"), seen, wanted, strict=True):
        if one != other:
            raise InterpError(
                f"loading {path} as {kind}",
                f"its {name} is {one!r}, not {other!r}",
                "give a file of this kind and version, or compute it again",
            )
    return head["facts"], arrays


def check_sealed(path: Path | RemoteFile) -> str:
    """The kind of a sealed file of any kind, after its checksum was compared with all its data.

    Raises:
        InterpError: the file is missing, damaged or changed, or no sealed file.
    """
    return str(_unsealed(path)[0]["kind"])


def _unsealed(
    path: Path | RemoteFile, tensors: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The head of a sealed file, with its facts as they were, and its arrays."""
    try:
        with at_hand(path) as file:
            head, arrays, checksum, text = _parts_of(file, tensors)
        if checksum != sha256_of(text, arrays):
            raise ValueError("a checksum is wrong")
        head = {name: head[name] for name in ("kind", "format", "key", "facts")}
        head["facts"] = _unspelled(head["facts"])
    except FileNotFoundError as error:
        raise InterpError(f"loading {path}", "no such file", "give the path of one") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InterpError(
            f"loading {path}",
            f"damaged or changed: {error}",
            "delete the file and compute it again",
        ) from error
    return head, arrays


def _parts_of(path: Path, tensors: bool) -> tuple[dict[str, Any], dict[str, Any], str, str]:
    """The head of a sealed file, its arrays, its checksum, and the text that it is of."""
    arrays: dict[str, Any] = {}
    if path.suffix == ".json":
        head = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
        checksum, text = head.pop("checksum"), canonical_json(head)
    else:
        with safe_open(path, framework="pt" if tensors else "numpy") as stream:
            metadata = stream.metadata()
            arrays = {name: stream.get_tensor(name) for name in [*stream.keys()]}  # noqa: SIM118
        checksum, text = metadata["checksum"], json.loads(metadata["record"])
        head = json.loads(text)
    return head, arrays, checksum, text


def head_of(path: Path | RemoteFile) -> tuple[str, dict[str, Any]]:
    """The kind and the facts of a sealed file. Neither its arrays nor its checksum are read.

    Raises:
        InterpError: the file is missing, or no sealed file.
    """
    try:
        with at_hand(path) as file:
            if file.suffix == ".json":
                head = json.loads(file.read_bytes().decode("utf-8", "surrogatepass"))
            else:
                with safe_open(file, framework="numpy") as stream:
                    head = json.loads(json.loads(stream.metadata()["record"]))
        return str(head["kind"]), dict(head["facts"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        do = "delete the file and compute it again"
        raise InterpError(f"the head of {path}", str(error), do) from error


def shapes_of(path: Path | RemoteFile) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in a sealed file, by name. The arrays are not read.

    Raises:
        InterpError: the file is missing, or no safetensors file.
    """
    try:
        with at_hand(path) as file, safe_open(file, framework="numpy") as stream:
            return {name: tuple(stream.get_slice(name).get_shape()) for name in [*stream.keys()]}
    except (OSError, SafetensorError) as error:
        do = "delete the file and compute it again"
        raise InterpError(f"the arrays of {path}", str(error), do) from error


def sha256_of(text: str, arrays: Arrays) -> str:
    """The sha256 of a text and of the names, types, shapes and bytes of arrays."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(arrays):
        array = arrays[name]
        kind = str(array.dtype).removeprefix("torch.")
        digest.update(f"\n{name} {kind} {tuple(array.shape)}\n".encode())
        flat = array.reshape(-1)
        digest.update(
            flat.view(torch.uint8).numpy().data
            if isinstance(flat, Tensor)
            else flat.view(np.uint8).data
        )
    return digest.hexdigest()


def _unspelled(value: Any) -> Any:
    """Facts with nan and infinities restored."""
    if isinstance(value, dict):
        if value.keys() == {NUMBER}:
            return float(value[NUMBER])
        return {name: _unspelled(one) for name, one in value.items()}
    return [_unspelled(one) for one in value] if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a result comes from: model, task, seed, versions, commit and the call."""

    model: str
    model_hash: str
    dtype: str
    task: str
    task_hash: str
    seed: int | None
    versions: Mapping[str, str]
    commit: str | None
    call: str


class Record(Brief):
    """A base for dataclasses that are saved field by field.

    Fields may be numbers, texts, arrays, tensors, other dataclasses, tuples and mappings of these,
    or None. `FORM` is the format number of the file.
    """

    FORM: ClassVar[int] = 1

    @overload
    def save(self, path: str | Path, *, key: str | None = None) -> Path: ...
    @overload
    def save(self, path: RemoteFile, *, key: str | None = None) -> RemoteFile: ...
    @overload
    def save(self, path: Path | RemoteFile, *, key: str | None = None) -> Path | RemoteFile: ...
    def save(self, path: str | Path | RemoteFile, *, key: str | None = None) -> Path | RemoteFile:
        """Write one sealed file, `path`.safetensors, whose `key` (of a cache entry) `load` checks.

        Raises:
            InterpError: the file cannot be written.
        """
        arrays: dict[str, np.ndarray] = {}
        facts = _told(self, "", arrays, {})
        kind, place = type(self).__name__, _place(path)
        return write_sealed(place, kind, self.FORM, facts, arrays, key=key)

    @classmethod
    def load(cls, path: str | Path | RemoteFile, *, key: str | None = None) -> Self:
        """Read what `save` wrote.

        Raises:
            InterpError: the file is missing, damaged, changed, or of another kind, version or key.
        """
        facts, arrays = read_sealed(_place(path), cls.__name__, cls.FORM, key=key)
        return _read(cls, facts, arrays)


def _place(path: str | Path | RemoteFile) -> Path | RemoteFile:
    return path if isinstance(path, RemoteFile) else place_of(path)


def place_of(path: str | Path) -> Path:
    """The file that `Record.save` writes: `path`.safetensors, or `path` if it is a stream."""
    if is_stream(Path(path)):
        return Path(path)
    return Path(f"{str(path).removesuffix('.safetensors')}.safetensors")


def _told(value: Any, name: str, arrays: dict[str, np.ndarray], seen: dict[int, str]) -> Any:
    """A value as JSON. Arrays are added to `arrays` under their path of fields, each only once."""
    if isinstance(value, np.ndarray | Tensor):
        if id(value) not in seen:
            seen[id(value)] = name
            arrays[name] = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
        return seen[id(value)]

    def inner(one: Any, at: object) -> Any:
        return _told(one, f"{name}.{at}".removeprefix("."), arrays, seen)

    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        return {name: inner(getattr(value, name), name) for name in names}
    if isinstance(value, tuple | list):
        return [inner(one, place) for place, one in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: inner(one, key) for key, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _read(kind: Any, value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value of a field whose type is `kind`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        choices = [one for one in inner if one is not type(None)]
        return value if value is None or len(choices) > 1 else _read(choices[0], value, arrays)
    if kind is np.ndarray:
        return arrays[value]
    if kind is Tensor:
        return torch.from_numpy(arrays[value])
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _read(hints[name], one, arrays) for name, one in value.items()})
    if origin is tuple:
        every = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_read(one, item, arrays) for one, item in zip(every, value, strict=True))
    if origin in (dict, Mapping):
        return {key: _read(inner[1], one, arrays) for key, one in value.items()}
    return value
