"""Memory: what to do where there is too little, and keeping what was freed with the process.

A sweep frees and allocates tensors of the same few sizes thousands of times. glibc hands such
memory back to the system at once, and the page faults of getting it again cost about a seventh
of the time. Nothing here changes a result; other platforms go without.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import Field

from interp.core.errors import InterpError
from interp.core.schema import Positive, checked

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 2**20


P = ParamSpec("P")
R = TypeVar("R")
SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
"""What the errors of an allocator say, in lower case."""


BudgetGb = Annotated[Positive, Field(le=1e9)]


def budget_bytes(budget_gb: Any) -> int:
    """A memory budget given in GB (1e9 bytes), in bytes.

    Raises:
        InterpError: it is no positive number, or more than 1e9 GB.
    """
    plain = budget_gb.item() if hasattr(budget_gb, "item") else budget_gb  # a number of numpy
    return int(checked(BudgetGb, plain, "budget_gb") * 1e9)


def says_too_little(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with an `InterpError` that says what to do where memory runs out."""

    @wraps(function)
    def tried(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            text = str(error)
            if not isinstance(error, MemoryError) and not any(s in text.lower() for s in SIGNS):
                raise
            raise InterpError(
                function.__name__,
                f"out of memory: {text.splitlines()[0][:200] if text else 'no more is given'}",
                "lower budget_gb (--budget), take fewer prompts or a smaller model, or free memory",
            ) from error

    return tried


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector is off inside: of many new objects that stay, it finds none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@cache
def keep_freed_memory() -> None:
    """From now on, freed blocks of up to 1 GiB are reused by this process, as a GPU's are."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 1024 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 2047 * _MIB)
