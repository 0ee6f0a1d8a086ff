"""The arguments that a function takes, with those of `**run: Unpack[Keywords]` one by one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def names_of(function: Callable[..., Any]) -> set[str]:
    """The names of a function's arguments."""
    names = set()
    for name, one in inspect.signature(function).parameters.items():
        unpacked = str(one.annotation).removeprefix("Unpack[").removesuffix("]")
        if one.kind is one.VAR_KEYWORD and unpacked != str(one.annotation):
            names |= set(inspect.unwrap(function).__globals__[unpacked].__annotations__)
        else:
            names.add(name)
    return names
