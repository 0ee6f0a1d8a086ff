"""Memory budgets, errors when memory runs out, and reuse of freed memory.

A sweep frees and allocates tensors of the same few sizes thousands of times. glibc returns such
memory to the system at once, and the page faults on the next allocation cost about a seventh of the
time. `keep_freed_memory` prevents this, on glibc only. It changes no result.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from interp.core.errors import InterpError
from interp.core.schema import BudgetGb, checked

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 2**20


P = ParamSpec("P")
R = TypeVar("R")
SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
"""Words in the error messages of allocators, in lower case."""


def budget_bytes(budget_gb: Any) -> int:
    """A memory budget given in GB (1e9 bytes), in bytes.

    Raises:
        InterpError: the budget is not a positive number, or is more than 1e9 GB.
    """
    return int(checked(BudgetGb, budget_gb, "budget_gb") * 1e9)


def says_too_little(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that running out of memory raises an `InterpError` with advice."""

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
                f"out of memory: {text.splitlines()[0][:200] if text else 'an allocation failed'}",
                "lower budget_gb (--budget), use fewer prompts or a smaller model, or free memory",
            ) from error

    return tried


@contextmanager
def no_collection() -> Iterator[None]:
    """Turn Python's garbage collector off inside, where many objects are made and none is freed."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@cache
def keep_freed_memory() -> None:
    """Let this process reuse freed blocks of up to 1 GiB from now on, as PyTorch does on a GPU."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 1024 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 2047 * _MIB)
