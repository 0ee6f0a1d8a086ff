"""Strict checks of files, options and settings.

Rules are types (pydantic, strict, without unknown fields). Input that breaks a rule raises an
`InterpError`, which says where the error is, what was found and what to write.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    create_model,
)

from interp.core.components import whole
from interp.core.errors import InterpError, unknown


def _index(value: Any) -> Any:
    """Convert a whole number of another library to a Python int; return other values unchanged."""
    try:
        return whole(value)
    except TypeError:
        return value


def _plain(value: Any) -> Any:
    """Convert a number or boolean of another library to Python's; return other values unchanged."""
    return value.item() if getattr(value, "ndim", 1) == 0 and hasattr(value, "item") else value


T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
Count = Annotated[int, Field(ge=1, lt=2**63), BeforeValidator(_index)]
Whole = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_index)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Confidence = Annotated[float, Field(gt=0, lt=1)]
Seed = Whole
"""A seed of random numbers that both numpy and torch accept."""

Real = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_plain)]
"""A finite number of any library, but not a boolean."""

BudgetGb = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False), BeforeValidator(_plain)]
"""Memory in GB: a positive number of any library."""

Boolean = Annotated[bool, BeforeValidator(_plain)]
Unicode = Annotated[str, AfterValidator(lambda text: text.encode().decode())]
"""A text that can be encoded as UTF-8, without unpaired surrogates."""

Text = Annotated[str, Field(min_length=1)]
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def is_whole(text: str) -> bool:
    """Whether a text is a whole number of at most 18 ASCII digits, with an optional minus."""
    return re.fullmatch(r"-?[0-9]{1,18}", text) is not None


def whole_number(value: Any) -> Any:
    """The whole number that a text spells in ASCII digits. Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    if not is_whole(value):
        raise ValueError("not a whole number")
    return int(value)


Index = Annotated[int, Field(ge=-(2**63), lt=2**63), BeforeValidator(_index)]
"""A whole number of any library, but not a boolean."""

Number = Annotated[int, BeforeValidator(whole_number)]
"""A whole number written as text, as in a column of token ids."""

Ids = Annotated[
    tuple[Annotated[Number, Field(ge=0)], ...],
    Strict(False),
    Field(min_length=1),
    BeforeValidator(lambda value: (value,) if isinstance(value, str | int) else value),
]
"""Token ids; a single one counts as a list of one."""

_Several = Annotated[tuple[Annotated[Number, Field(ge=0)], ...], Strict(False), Field(min_length=1)]

AnswerIds = Annotated[
    tuple[Annotated[Number, Field(ge=0)] | _Several, ...],
    Strict(False),
    Field(min_length=1),
    BeforeValidator(lambda value: (value,) if isinstance(value, str | int) else value),
]
"""Answers as token ids: an id, or a list of ids for an answer of several tokens."""

Texts = Annotated[tuple[Text, ...], Strict(False), Field(min_length=1)]


class FileRow(BaseModel):
    """A record of a file. The description of a field says what to write there."""

    model_config = STRICT


@dataclass(frozen=True, kw_only=True)
class CheckedSettings:
    """A base for dataclasses of settings, whose values are checked against their annotations."""

    def __post_init__(self) -> None:
        for name, value in check_arguments(type(self), vars(self), "settings").items():
            object.__setattr__(self, name, value)


def checked(kind: Any, value: Any, asked: str, *, typed: bool = False) -> Any:
    """The value, if it fits a type. `typed` values come from the command line, as texts.

    Raises:
        InterpError: the value has another type or is out of range, or a field is unknown or
            missing.
    """
    if typed:
        value = _typed(kind, value)
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise _refused(error, value, asked, getattr(kind, "model_fields", {})) from error


def check_arguments(
    owner: Callable[..., Any], given: Mapping[str, Any], asked: str
) -> dict[str, Any]:
    """The given values, checked against the keyword arguments of a function or dataclass.

    Raises:
        InterpError: a name is unknown, or a value has the wrong type or is out of range.
    """
    found = checked(_arguments(owner), dict(given), asked)
    return {name: getattr(found, name) for name in given}


def as_prompt(value: Any, asked: str) -> str | tuple[int, ...]:
    """A prompt as a text or a tuple of token ids.

    Raises:
        InterpError: the value is neither, an id is not a whole number, or the text cannot be
            encoded as UTF-8.
    """
    if isinstance(value, str):
        return checked(Unicode, value, asked)
    try:
        if isinstance(value, bytes | dict):
            raise TypeError
        return tuple(map(whole, value))
    except (TypeError, RuntimeError) as error:
        found = f"{_SHORT.repr(value)}, neither a text nor whole numbers"
        raise InterpError(asked, found, "give a text, or a tuple of token ids") from error


def read_text(path: Path, asked: str) -> str:
    """The content of a UTF-8 text file, with or without a byte order mark.

    Raises:
        InterpError: the file is missing, cannot be read, or has another encoding.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        found = (getattr(error, "strerror", None) or str(error)).lower()
        raise InterpError(asked, found, "give a text file in UTF-8") from error


def json_value(text: str, asked: str, *, numbers: bool = True) -> Any:
    """The value of a JSON text. Without `numbers`, numbers stay texts, as written.

    Raises:
        InterpError: the text is not JSON, holds NaN or infinity, repeats a key, or is nested too
            deeply.
    """
    options: dict[str, Any] = {} if numbers else {"parse_int": str, "parse_float": str}
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, **options)
    except RecursionError as error:
        raise InterpError(asked, "nested too deeply", "write plain objects and lists") from error
    except ValueError as error:
        found = f"not JSON: {str(error).splitlines()[0]}"
        raise InterpError(asked, found, "write one JSON object") from error


def read_rows(
    path: Path, kind: str, asked: str, *, header: Callable[[list[str], str], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a file (kind jsonl or csv), each with its line ("FILE, line 3").

    Numbers stay texts, as written. Empty cells of a CSV file are omitted. `header(columns, place)`
    may refuse the columns of a CSV file.

    Raises:
        InterpError: the file cannot be read, or a line is not a record; see `json_value`.
    """
    text = read_text(path, asked)
    if kind == "csv":
        yield from _csv_rows(path, text, header)
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at U+2028
        if line.strip():
            place = f"{path}, line {number}"
            row = json_value(line, place, numbers=False)
            if not isinstance(row, dict):
                raise InterpError(place, f"{_SHORT.repr(row)} is not an object", "write {...}")
            yield place, row


def _csv_rows(
    path: Path, text: str, header: Callable[[list[str], str], None] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    head: list[str] = []
    while True:
        place = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InterpError(place, str(error), "write it as CSV, or as JSONL") from error
        if not cells:
            continue
        if not head:
            head = cells
            if "" in head or len(set(head)) < len(head):
                found = f"the columns {_SHORT.repr(head)}"
                raise InterpError(place, found, "give each column a different name")
            for mark in ";\t":
                if len(head) == 1 and mark in head[0]:
                    found = f"fields separated by {mark!r}"
                    raise InterpError(place, found, "separate them with commas")
            if header is not None:
                header(head, place)
        elif len(cells) != len(head):
            raise InterpError(
                place,
                f"{len(cells)} fields, but the header has {len(head)}",
                'quote fields that contain commas: "a, b"',
            )
        else:
            yield place, {name: cell for name, cell in zip(head, cells, strict=True) if cell}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a repeated key")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=None if hasattr(kind, "model_config") else STRICT)


@cache
def _arguments(owner: Callable[..., Any]) -> type[BaseModel]:
    hints = get_type_hints(owner, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if one.default is Parameter.empty else one.default)
        for name, one in signature(owner).parameters.items()
        if one.kind is Parameter.KEYWORD_ONLY
    }
    return create_model("Arguments", __config__=STRICT, **fields)


def _typed(kind: Any, text: str) -> Any:
    """The number a text spells for a numeric type: an int in ASCII digits, or a Python float."""
    base = getattr(kind, "__origin__", kind)
    if base is int and is_whole(text):
        return int(text)
    with suppress(ValueError):
        return float(text) if base is float and text.isascii() else text
    return text


def _refused(
    error: ValidationError, value: Any, asked: str, fields: Mapping[str, Any]
) -> InterpError:
    """The first error that pydantic found, as an `InterpError`."""
    first, *others = error.errors(include_url=False)
    where = [str(part) for part in first["loc"][:1]]
    name = where[0] if where else ""
    if first["type"] == "extra_forbidden":
        return unknown(f"{asked}: field", name, fields)
    if first["type"] == "missing":
        return InterpError(asked, f"no {name}", f"give {', '.join(fields)}" if fields else "add it")
    found = value[name] if name and isinstance(value, Mapping) else value
    if first["type"] == "literal_error" and isinstance(found, str):
        return unknown(
            f"{asked}: {name}", found, re.findall(r"'([^']*)'", first.get("ctx", {})["expected"])
        )
    shown = f"{name} is {_SHORT.repr(found)}" if name else _SHORT.repr(found)
    if first["type"] == "string_unicode" or "surrogates" in first["msg"]:
        shown += ", with an unpaired surrogate"
    described = fields[name].description if name in fields else None
    # A value of a union type has one error for each member.
    alike = [first, *(one for one in others if one["loc"][:1] == first["loc"][:1])]
    wanted = " or ".join(dict.fromkeys(_wanted(one["msg"]) for one in alike))
    return InterpError(asked, shown, f"write {described or wanted}")


def _wanted(message: str) -> str:
    """What to write, from pydantic's message."""
    if "surrogates" in message or "unicode" in message:
        return "text in UTF-8"
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    message = message.replace("a valid integer", "a whole number")
    message = message.replace("a valid string", "a text")
    return re.sub(r"^(greater|less) than", r"a value \1 than", message)


class Brief:
    """A dataclass whose repr is one line, unless it has its own; see `_brief`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in vars(cls):  # the one that `dataclass` would make prints all numbers
            cls.__repr__ = _brief


def _brief(self: Any) -> str:
    """One line: tensors and arrays by their shapes, other values shortened."""
    shown = []
    for one in fields(self):
        value = getattr(self, one.name)
        shape = getattr(value, "shape", None)
        words = _SHORT.repr(value) if shape is None else str(tuple(shape))
        shown.append(f"{one.name}={words if len(words) < 60 else words[:57] + '...'}")
    return f"{type(self).__name__}({', '.join(shown)})"
