"""How a measurement is run: memory, progress, cancelling, cache and engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self, TypedDict, get_args

from interp.core.errors import unknown
from interp.core.schema import BudgetGb, checked

Engine = Literal["auto", "fast", "hooks"]
"""The fast engine, one hooked forward pass per cell, or the fast engine if the model has one."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def never() -> bool:
    """The `cancelled` of a call that nothing cancels."""
    return False


class RunKeywords(TypedDict, total=False):
    """Keywords for memory, progress and cancelling: `**run: Unpack[RunKeywords]`.

    A function that can run long takes them only if its signature names them.
    """

    budget_gb: float
    progress: Progress | None
    cancelled: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that change the time and memory of a measurement, but not its result.

    Attributes:
        budget_gb: memory for stored runs and for runs in flight.
        progress: called with (parts done, parts in total).
        cancelled: asked before every part; the measurement stops when it returns True.
        cache: read a stored result, and store a new one.
        engine: which engine runs the model.

    Raises:
        InterpError: a budget that is not a positive number, or an unknown engine.
    """

    budget_gb: float = 1.0
    progress: Progress | None = None
    cancelled: Callable[[], bool] = never
    cache: bool = False
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        checked(BudgetGb, self.budget_gb, "budget_gb")
        if self.engine not in get_args(Engine):
            raise unknown("engine", self.engine, get_args(Engine))

    @property
    def quiet(self) -> Self:
        """These options for another process: nobody is told of progress, nobody cancels."""
        return replace(self, progress=None, cancelled=never)
