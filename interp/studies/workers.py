"""Steps of a study that do not depend on each other, computed by several processes."""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import torch

from interp.runs.workers import each


@dataclass(frozen=True, kw_only=True)
class StepWorkers:
    """Processes that compute steps of the study that `run` runs.

    `key` is of this run of the study: each process runs it once, up to the step that it is asked
    for, and goes on from there when it is asked for the next one. It keeps what it has computed on
    the way.
    """

    run: Callable[[], object]
    n: int
    key: str

    def compute(self, names: list[str]) -> Iterator[str]:
        """Compute and keep some steps; their names as they are done."""
        for i, _ in each(partial(_compute, self.run, self.key), names, workers=self.n):
            yield names[i]


WORKERS: ContextVar[StepWorkers | None] = ContextVar("step workers", default=None)
"""The processes that compute steps for this one, if there are any."""


@contextmanager
def step_workers(run: Callable[[], object], n: int) -> Iterator[None]:
    """While the body runs a study, n processes compute the steps that do not depend on each other.

    The study must be the one that `run` runs, in the same directory, which all processes can reach.
    Each process holds its own copy of the models and computes with one thread, so that results are
    the same for any number of processes.

    Args:
        run: is sent to the other processes.
        n: number of processes; 0 changes nothing.
    """
    token = WORKERS.set(StepWorkers(run=run, n=n, key=uuid.uuid4().hex) if n else None)
    try:
        yield
    finally:
        WORKERS.reset(token)
        _forget()  # one process computes in this one


class AskedStudy(threading.Thread):
    """A study in a process of `StepWorkers`: it computes the steps it is asked for and then waits.

    It runs in a thread of its own, because the study's code is in the middle of its steps when it
    waits. Steps are asked for in the order of the study; those before are read from the directory.
    """

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._run, self._next = run, ""
        self._asked: SimpleQueue[str | None] = SimpleQueue()
        self._answers: SimpleQueue[BaseException | None] = SimpleQueue()

    def run(self) -> None:
        """Run the study to its end; what goes wrong becomes an answer."""
        ASKED.set(self)
        torch.set_num_threads(1)  # holds for this thread only
        try:
            self._run()
            asked = self._next or self._asked.get()
            self._answers.put(LookupError(f"the study ended without a step {asked!r}"))
        except BaseException as error:
            self._answers.put(error)

    def compute(self, name: str) -> None:
        """Have a step computed and kept, and wait for it."""
        if not self.ident:
            self.start()
        self._asked.put(name)
        if (error := self._answers.get()) is not None:
            raise error

    def end(self) -> None:
        """End a study that waits."""
        self._asked.put(None)

    def serve(self, steps: Mapping[str, Callable[[], object]]) -> None:
        """Called by the study: compute what is asked for, until a later step is asked for."""
        while True:
            if not self._next:
                self._next = self._asked.get() or sys.exit()
            if self._next not in steps:
                return
            steps[self._next]()
            self._next = ""
            self._answers.put(None)


ASKED: ContextVar[AskedStudy | None] = ContextVar("asked study", default=None)
"""The study of this thread, in a process of `StepWorkers`."""

_STUDIES: dict[str, AskedStudy] = {}
"""The study of this process, by the key of its run."""


def _compute(run: Callable[[], object], key: str, name: str) -> None:
    """Compute and keep a step in this process."""
    if key not in _STUDIES:
        _forget()
        _STUDIES[key] = AskedStudy(run)
    try:
        _STUDIES[key].compute(name)
    except BaseException:
        _forget()
        raise


def _forget() -> None:
    for study in _STUDIES.values():
        study.end()
    _STUDIES.clear()
