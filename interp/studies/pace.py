"""Progress of a step, and about how long it still takes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class Pace:
    """Says a step's progress and the time left, at its first unit and then every few seconds.

    Give `say` to `Steps`, so that the start of a step is noticed. The object itself is a
    `Progress`, called with (done, total). Steps shorter than `every` seconds get no line.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        every: float = 15.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._say, self._every, self._clock = say, every, clock
        self._begin = self._said = self._ended = clock()
        self._done = self._total = 0

    def say(self, line: str) -> None:
        """Say a line; units counted from now on belong to the step it names."""
        self._begin = self._said = self._ended = self._clock()
        self._done = self._total = 0
        self._say(line)

    def __call__(self, done: int, total: int) -> None:
        """Units done; fewer than before, or another total, begin a new count."""
        now = self._clock()
        if fresh := total != self._total or done < self._done:
            # The first count of a step began with the step, a later one when the last count ended.
            self._begin = self._ended if self._total else self._begin
        self._done, self._total, self._ended = done, total, now
        left = (now - self._begin) / max(1, done) * (total - done)
        if left > self._every and (fresh or now - self._said >= self._every):
            self._said = now
            self._say(f"  {done} of {total}, about {shown(left)} left")


def shown(seconds: float) -> str:
    """Seconds as text; from two minutes on, minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
