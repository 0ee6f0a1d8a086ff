"""Stopping a run that somebody no longer wants, within a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from interp.core.errors import InterpError

StopCheck = Callable[[], bool]

_ASKED: ContextVar[StopCheck] = ContextVar("cancelled", default=lambda: False)


class Cancelled(InterpError):
    """The caller stopped a run; what was finished is saved."""


@contextmanager
def stoppable(cancelled: StopCheck) -> Iterator[None]:
    """Inside, `cancelled` is asked in every layer that the engine runs."""
    token = _ASKED.set(cancelled)
    try:
        yield
    finally:
        _ASKED.reset(token)


def stop_if_asked() -> None:
    """Raise `Cancelled` where the caller of the run around wants it stopped."""
    if _ASKED.get()():
        raise Cancelled("the run", "stopped in between", "run it again: finished parts are kept")
