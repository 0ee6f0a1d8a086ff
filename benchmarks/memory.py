"""Measure the time and memory of a function."""

from __future__ import annotations

import ctypes
import gc
import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class PeakMemory:
    """The largest growth of resident memory inside the block, in bytes."""

    def __enter__(self) -> PeakMemory:
        # Memory that was freed before would otherwise hide new use.
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        self._stop, self.peak, self._start = threading.Event(), 0, _resident()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, _resident() - self._start)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(
    work: Callable[[], Any], *, seconds: float = 5.0, times: int = 5
) -> tuple[Any, dict[str, Any]]:
    """The result of a function, and its time and memory.

    `seconds` is the median of `runs`, the computing time of this process in each later call, which
    other processes hardly affect. `wall` is the median of the elapsed time. `cold_mb` is the
    largest growth of resident memory in the first call, `peak_mb` in the second. After the first
    call there are at most `times` further calls, and none once they have taken `seconds` in total.
    """
    with PeakMemory() as cold:
        result = work()
    with PeakMemory() as warm:
        runs = [_timed(work)]
    while sum(run.wall for run in runs) < seconds and len(runs) < times:
        runs.append(_timed(work))
    return result, {**_told(runs), "cold_mb": cold.peak / 1e6, "peak_mb": warm.peak / 1e6}


def repeat(work: Callable[[], Any], *, seconds: float = 5.0, times: int = 5) -> tuple[Any, dict]:
    """The result of the last of up to five calls, none begun after `seconds`, and what they took.

    `seconds`, `runs` and `wall` as in `measure`; `peak_mb` is the largest growth of resident memory
    in any call. For sweeps that take minutes, whose caller warms up on a part of the work.
    """
    runs: list[_Run] = []
    with PeakMemory() as memory:
        while not runs or (sum(run.wall for run in runs) < seconds and len(runs) < times):
            runs.append(_timed(work))
    return runs[-1].result, {**_told(runs), "peak_mb": memory.peak / 1e6}


@dataclass(frozen=True)
class _Run:
    """A result, the computing time of this process and the elapsed time in seconds."""

    result: Any
    seconds: float
    wall: float


def _told(runs: list[_Run]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(run.seconds for run in runs),
        "runs": [run.seconds for run in runs],
        "wall": statistics.median(run.wall for run in runs),
    }


def _timed(work: Callable[[], Any]) -> _Run:
    begun, wall = time.process_time(), time.perf_counter()
    result = work()
    return _Run(result, time.process_time() - begun, time.perf_counter() - wall)


def _resident() -> int:
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: the peak so far, in bytes
