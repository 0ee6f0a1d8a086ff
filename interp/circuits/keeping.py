"""Results as files: whatever a dataclass of numbers, names and arrays holds, and back."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

import numpy as np

from interp.errors import InterpError
from interp.files import read_result, write_result

FORMAT = 1


class Kept:
    """A dataclass that is written and read field by field, dataclasses in its fields too.

    Fields may be numbers, words, arrays, other dataclasses, tuples and mappings of these, or None.
    """

    def save(self, path: str | Path) -> Path:
        """Write `path`.safetensors with the arrays and `path`.json with the rest."""
        arrays: dict[str, np.ndarray] = {}
        facts = {"kind": type(self).__name__, "value": _told(self, "", arrays)}
        return write_result(path, arrays, facts, FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InterpError: a file is missing, of another version, damaged or changed, or what it holds
                is something else.
        """
        arrays, facts = read_result(path, FORMAT)
        if facts.get("kind") != cls.__name__:
            found = facts.get("kind", "of another kind")
            raise InterpError(
                f"loading {path} as {cls.__name__}", f"it is {found}", "use its class"
            )
        return _read(cls, facts["value"], arrays)


def _told(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON; arrays go into `arrays` by the way to them."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return name
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _told(getattr(value, field.name), f"{name}.{field.name}".strip("."), arrays)
            for field in fields(value)
        }
    if isinstance(value, tuple | list):
        return [_told(one, f"{name}.{place}", arrays) for place, one in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: _told(one, f"{name}.{key}", arrays) for key, one in value.items()}
    if isinstance(value, float | np.floating):  # JSON has no nan
        return float(value) if math.isfinite(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _read(kind: Any, value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value of a field of that type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        if value is None:
            return None
        (kind,) = (one for one in inner if one is not type(None))
        return _read(kind, value, arrays)
    if kind is np.ndarray:
        return arrays[value]
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        made = {field.name: field for field in fields(kind)}
        return kind(**{n: _read(hints[n], one, arrays) for n, one in value.items() if n in made})
    if origin is tuple:
        every = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_read(one, item, arrays) for one, item in zip(every, value, strict=True))
    if origin in (dict, Mapping):
        return {key: _read(inner[1], one, arrays) for key, one in value.items()}
    return float(value) if kind is float else value
