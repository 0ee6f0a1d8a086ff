"""Keeping freed memory with the process.

A sweep frees and allocates tensors of the same few sizes thousands of times. glibc hands such
memory back to the system at once, and the page faults of getting it again cost about a seventh
of the time. Nothing here changes a result; other platforms go without.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 2**20


@cache
def keep_freed_memory() -> None:
    """From now on, freed blocks of up to 1 GiB are reused by this process, as a GPU's are."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 1024 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 2047 * _MIB)
