"""What is written to be read back: sealed files, and dataclasses that are kept in one.

A sealed file holds what kind of thing it is, its format, the key it is kept under (in the cache:
what was asked) and a checksum of all that and of every number. Reading compares them all: a flipped
bit, a file under another's name and one of another version are noticed.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.files import canonical_json, is_stream, json_text, spelled, write_atomically

Arrays = Mapping[str, Any]
"""Numpy arrays by name, or torch tensors; not both in one file."""

NUMBER = "not finite"
"""The one name in an object that stands for a number that JSON does not know."""


def write_sealed(
    path: Path,
    kind: str,
    form: int,
    facts: Any,
    arrays: Arrays | None = None,
    *,
    key: str | None = None,
) -> Path:
    """Write a sealed file: one of JSON where `path` ends in .json, else safetensors.

    Args:
        path: where.
        kind: what it is, in a word.
        form: the number of its format; to be raised when what is written changes.
        facts: plain JSON, and numbers that are not finite. Keys are read back as texts, whole
            numbers too.
        arrays: numbers in bulk; not in a file of JSON.
        key: what it is kept under; None for a file that a user names.

    Raises:
        InterpError: the file cannot be written.
        TypeError: facts that are no JSON.
    """
    facts = json.loads(json_text(spelled(facts, lambda name: {NUMBER: name})))  # keys are texts
    head = {"kind": kind, "format": form, "key": key, "facts": facts}
    text = json_text(head)
    if path.suffix == ".json":
        # Names stay in their order, which the checksum does not look at.
        head = json.loads(text)
        checksum = sha256_of(canonical_json(head), {})
        told = json_text({**head, "checksum": checksum}, indent=1)
        data = told.encode("utf-8", "surrogatepass")
        return write_atomically(path, lambda partial: partial.write_bytes(data))
    whole = {name: _contiguous(array) for name, array in (arrays or {}).items()}
    metadata = {"record": json.dumps(text), "checksum": sha256_of(text, whole)}
    save = save_tensors if any(isinstance(a, Tensor) for a in whole.values()) else save_file
    return write_atomically(path, lambda partial: save(whole, partial, metadata))


def read_sealed(
    path: Path, kind: str, form: int, *, key: str | None = None, tensors: bool = False
) -> tuple[Any, dict[str, Any]]:
    """The facts and arrays of a sealed file.

    Args:
        path: where it is.
        kind: what it must be.
        form: the format it must have.
        key: the key it must have been kept under, if there is one.
        tensors: give torch tensors, mapped from the file, instead of numpy arrays.

    Raises:
        InterpError: missing, damaged or changed, or of another kind, format or key.
    """
    arrays: dict[str, Any] = {}
    try:
        if path.suffix == ".json":
            head = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
            checksum, text = head.pop("checksum"), canonical_json(head)
        else:
            with safe_open(path, framework="pt" if tensors else "numpy") as stream:
                metadata = stream.metadata()
                arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            checksum, text = metadata["checksum"], json.loads(metadata["record"])
            head = json.loads(text)
        if checksum != sha256_of(text, arrays):
            raise ValueError("a checksum is wrong")
        seen = [head[name] for name in ("kind", "format", "key")]
        facts = _unspelled(head["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InterpError(
            f"loading {path}",
            f"missing, damaged or changed: {error}",
            "delete it and make it again",
        ) from error
    wanted = [kind, form, seen[2] if key is None else key]
    for name, one, other in zip(("kind", "format", "key"), seen, wanted, strict=True):
        if one != other:
            raise InterpError(
                f"loading {path} as {kind}",
                f"its {name} is {one!r}, not {other!r}",
                "give a file of that kind and version, or make it again",
            )
    return facts, arrays


def sha256_of(text: str, arrays: Arrays) -> str:
    """The sha256 of a text and of arrays: names, types, shapes and bytes."""
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


def _contiguous(array: Any) -> Any:
    if isinstance(array, Tensor):
        return array.detach().cpu().contiguous()
    return np.ascontiguousarray(array).reshape(array.shape)


def _unspelled(value: Any) -> Any:
    """Facts as they were given: with the numbers that JSON does not know."""
    if isinstance(value, dict):
        if value.keys() == {NUMBER}:
            return float(value[NUMBER])
        return {name: _unspelled(one) for name, one in value.items()}
    return [_unspelled(one) for one in value] if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number comes from."""

    model: str
    model_hash: str
    dtype: str
    task: str
    task_hash: str
    seed: int | None
    versions: Mapping[str, str]
    commit: str | None
    call: str


class Record:
    """A dataclass that is saved field by field, dataclasses in its fields too.

    Fields may be numbers, words, arrays, tensors, other dataclasses, tuples and mappings of these,
    or None. `FORM` is the number of its format.
    """

    FORM: ClassVar[int] = 1

    def save(self, path: str | Path, *, key: str | None = None) -> Path:
        """Write one sealed file, `path`.safetensors.

        Args:
            path: where, with or without its ending.
            key: what it is kept under in a cache; `load` can ask for it.

        Raises:
            InterpError: the file cannot be written.
        """
        arrays: dict[str, np.ndarray] = {}
        facts = _told(self, "", arrays, {})
        return write_sealed(place_of(path), type(self).__name__, self.FORM, facts, arrays, key=key)

    @classmethod
    def load(cls, path: str | Path, *, key: str | None = None) -> Self:
        """Read what `save` wrote.

        Raises:
            InterpError: a file is missing, of another kind, version or key, damaged or changed.
        """
        facts, arrays = read_sealed(place_of(path), cls.__name__, cls.FORM, key=key)
        return _read(cls, facts, arrays)


def place_of(path: str | Path) -> Path:
    """Where `Record.save` writes: `path`.safetensors, or into a stream of that name."""
    if is_stream(Path(path)):
        return Path(path)
    return Path(f"{str(path).removesuffix('.safetensors')}.safetensors")


def _told(value: Any, name: str, arrays: dict[str, np.ndarray], seen: dict[int, str]) -> Any:
    """A value as JSON; arrays go into `arrays` by the way to them, each of them once."""
    if isinstance(value, np.ndarray | Tensor):
        if id(value) not in seen:
            seen[id(value)] = name
            arrays[name] = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
        return seen[id(value)]

    def inner(one: Any, at: object) -> Any:
        return _told(one, f"{name}.{at}".removeprefix("."), arrays, seen)

    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: inner(getattr(value, field.name), field.name) for field in _kept(value)}
    if isinstance(value, tuple | list):
        return [inner(one, place) for place, one in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: inner(one, key) for key, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _kept(value: Any) -> list[Any]:
    return [field for field in fields(value) if field.init]


def _read(kind: Any, value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value of a field of that type."""
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
