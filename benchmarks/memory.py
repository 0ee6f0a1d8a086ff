"""How much memory something takes, and how long: what benchmarks measure."""

from __future__ import annotations

import ctypes
import gc
import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class PeakMemory:
    """How much resident memory grew at most inside the block, in bytes."""

    def __enter__(self) -> PeakMemory:
        # What was freed before must not hide what is used now.
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
    """The result of some work, and what it took: memory in a first call, time in later ones.

    `seconds` is the median of `runs`, each call's seconds of computing by this thread, in which
    other processes on the machine do not count; `wall` the median by the clock on the wall.
    `cold_mb` is what resident memory grew by at most in the first call, `peak_mb` in the second.
    There are up to `times` calls after the first, no more once they have taken `seconds` in all.
    """
    with PeakMemory() as cold:
        result = work()
    with PeakMemory() as warm:
        runs = [_timed(work)]
    while sum(wall for _, wall in runs) < seconds and len(runs) < times:
        runs.append(_timed(work))
    return result, {
        "seconds": statistics.median(run for run, _ in runs),
        "runs": [run for run, _ in runs],
        "wall": statistics.median(wall for _, wall in runs),
        "cold_mb": cold.peak / 1e6,
        "peak_mb": warm.peak / 1e6,
    }


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of computing by this thread, and by the clock on the wall."""
    begun, wall = time.thread_time(), time.perf_counter()
    work()
    return time.thread_time() - begun, time.perf_counter() - wall


def _resident() -> int:
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: the peak so far, in bytes
