"""How far a step is, and about how long it still takes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class Pace:
    """Says a step's progress and the time left: once at its first unit, then now and then.

    `say` is passed on to `Steps`, so that a step's begin is seen; the object itself is a
    `Progress`, called with (done, total). Steps of less than `every` seconds get no line.
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
        """A line as it is; what is counted from now on belongs to it."""
        self._begin = self._said = self._ended = self._clock()
        self._done = self._total = 0
        self._say(line)

    def __call__(self, done: int, total: int) -> None:
        """Units done of all; fewer than before, or another total, begin a new count."""
        now = self._clock()
        if fresh := total != self._total or done < self._done:
            # The first count of a step began with it, another one when the last ended.
            self._begin = self._ended if self._total else self._begin
        self._done, self._total, self._ended = done, total, now
        left = (now - self._begin) / max(1, done) * (total - done)
        if left > self._every and (fresh or now - self._said >= self._every):
            self._said = now
            self._say(f"  {done} of {total}, about {shown(left)} left")


def shown(seconds: float) -> str:
    """Seconds, or minutes from two of them on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
