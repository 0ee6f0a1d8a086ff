"""Cancelling a run before it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from interp.core.errors import InterpError

StopCheck = Callable[[], bool]

_ASKED: ContextVar[StopCheck] = ContextVar("cancelled", default=lambda: False)


class Cancelled(InterpError):
    """The caller cancelled a run."""


@contextmanager
def stoppable(cancelled: StopCheck) -> Iterator[None]:
    """Inside, the engine calls `cancelled` in every layer and stops if it returns True.

    The checks of surrounding blocks stay in force.
    """
    outer = _ASKED.get()
    token = _ASKED.set(lambda: outer() or cancelled())
    try:
        yield
    finally:
        _ASKED.reset(token)


def stop_if_asked() -> None:
    """Raise `Cancelled` if the caller of the current run has cancelled it."""
    if _ASKED.get()():
        raise Cancelled("the run", "cancelled", "run it again")
