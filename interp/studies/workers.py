"""Run one study with several processes that share its steps through the disk."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from interp.core.errors import InterpError


@contextmanager
def sharing(run: Callable[[], object], n: int) -> Iterator[None]:
    """While the body runs, n - 1 more processes call `run`; all share the cores equally.

    The body does the same study in the same directory: a step that one process is computing is
    left to it (`Steps`). Every process holds its own copy of the models.

    Args:
        run: must be picklable, to reach another process.
        n: processes, this one included; 1 changes nothing.
    """
    if n < 2:
        yield
        return
    before = torch.get_num_threads()
    threads = max(1, _cores() // n)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_work, args=(run, threads), daemon=True) for _ in range(n - 1)]
    for process in others:
        process.start()
    torch.set_num_threads(threads)
    try:
        yield
        for process in others:  # all steps are kept: they only read them
            process.join(timeout=60)
    finally:
        torch.set_num_threads(before)
        for process in others:
            process.terminate()
            process.join()


def _work(run: Callable[[], object], threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with suppress(InterpError):  # the first process raises the same one
        run()


def _end_with_parent() -> None:
    """End this process when its parent ends, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cores() -> int:
    found = getattr(os, "sched_getaffinity", None)
    return len(found(0)) if found else os.cpu_count() or 1
