"""Steps of a study. Each is computed once and kept on disk; asked again, it is read back.

A step that is being computed is locked; the lock ends with its process. Another process that runs
the same study waits and reads the result, and the study is not deleted meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.core.records import read_sealed, write_sealed
from interp.core.statistics import mean_estimate, share_estimate
from interp.studies.workers import ASKED, WORKERS

FORM = 2

Result = dict[str, Any]
"""Plain JSON: what a step found, and what the report is written from."""

Results = dict[str, Result]
"""The results of several steps, by name."""

Rows = list[Result]
"""Rows with the same keys."""

StepJob = tuple[str, Callable[[], Result], *tuple[Any, ...]]
"""The name of a step, how it is computed, and the results of other steps it depends on."""


def plain(value: Any) -> Any:
    """A value as plain JSON: records as mappings, tuples, arrays and tensors as lists."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value


def share_of(hits: ArrayLike) -> Result:
    """The share of hits among booleans, with Wilson's interval, as plain JSON."""
    hits = np.asarray(hits, dtype=bool)
    return asdict(share_estimate(int(hits.sum()), hits.size))


def mean_of(values: Tensor | np.ndarray) -> Result:
    """The mean of some values with its interval, as plain JSON."""
    return asdict(mean_estimate(values))


def tuples(row: Result) -> Result:
    """A row of JSON with its lists as tuples, as frozen dataclasses hold them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


@dataclass(kw_only=True)
class Steps:
    """A directory of step results, valid for one key (model, settings and code version).

    `results` holds what each step gave, `seconds` what it took when it was computed.
    """

    directory: Path
    key: list[Any]
    say: Callable[[str], None] = lambda line: None
    results: dict[str, Result] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def of(self) -> str:
        """The fingerprint of the key, written into every result."""
        return content_key(self.key)

    def __call__(self, name: str, compute: Callable[[], Result], *inputs: Any) -> Result:
        """The step's result, read from the directory if it is kept there under the same key.

        `inputs` are what this step depends on, such as results of other steps; part of its key.

        Raises:
            InterpError: the result holds what JSON cannot.
        """
        lock = self._lock(name)
        with suppress(Timeout):
            lock.acquire(blocking=False)
        if not lock.is_locked:
            self.say(f"{name}: another process computes it ...")
            lock.acquire()
        try:
            return self._made(name, compute, *inputs)
        finally:
            lock.release()

    def all(self, *jobs: StepJob) -> list[Result]:
        """Results of steps that do not depend on each other, in the order given.

        Inside `interp.studies.workers.step_workers`, other processes compute those that are not
        kept.
        """
        if (asked := ASKED.get()) is not None:
            asked.serve({job[0]: partial(self, *job) for job in jobs})
        elif (workers := WORKERS.get()) is not None:
            left = [name for name, _, *inputs in jobs if self._kept(name, *inputs) is None]
            for done, name in enumerate(workers.compute(left), 1):
                self.say(f"{name}: {done} of {len(left)} steps are done")
        return [self(*job) for job in jobs]

    def _lock(self, name: str) -> FileLock:
        (locks := self.directory / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{name}.lock")

    def _place(self, name: str, *inputs: Any) -> tuple[Path, str]:
        """The file of a step, and its key."""
        return self.directory / f"{name}.json", content_key([*self.key, name, *inputs])

    def _kept(self, name: str, *inputs: Any) -> Result | None:
        """What `read_step` gives; None if the step is missing, damaged, or of another key."""
        path, key = self._place(name, *inputs)
        with suppress(InterpError):
            return read_step(path, key=key)
        return None

    def _made(self, name: str, compute: Callable[[], Result], *inputs: Any) -> Result:
        if (kept := self._kept(name, *inputs)) is not None:
            self.seconds[name], self.results[name] = kept["seconds"], kept["result"]
            self.say(f"{name}: kept")
            return self.results[name]
        path, key = self._place(name, *inputs)
        self.say(f"{name} ...")
        begin = monotonic()
        result = compute()
        self.seconds[name] = round(monotonic() - begin, 1)
        try:
            write_step(path, result, key=key, of=self.of, seconds=self.seconds[name])
        except TypeError as error:
            raise InterpError(f"keeping step {name}", str(error), "give plain JSON") from error
        self.results[name] = read_step(path, key=key)["result"]
        self.say(f"{name}: {self.seconds[name]:z.0f} s")
        return self.results[name]


class Pace:
    """Says a step's progress and the time left, at its first part and then every few seconds.

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
        """Say a line; parts counted from now on belong to the step it names."""
        self._begin = self._said = self._ended = self._clock()
        self._done = self._total = 0
        self._say(line)

    def __call__(self, done: int, total: int) -> None:
        """Parts done; fewer than before, or another total, begin a new count."""
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
    return f"{seconds:z.0f} s" if seconds < 120 else f"{seconds / 60:z.0f} minutes"


def read_results(directory: Path, of: str) -> tuple[dict[str, Result], dict[str, float]]:
    """Results and seconds of the steps in a directory that were made under a key, by name."""
    every: dict[str, Result] = {}
    for path in sorted(directory.glob("[!.]*.json")):
        with suppress(InterpError):  # another file, or damaged
            every[path.stem] = read_step(path)
    kept = {name: found for name, found in every.items() if found["of"] == of}
    return (
        {name: found["result"] for name, found in kept.items()},
        {name: found["seconds"] for name, found in kept.items()},
    )


def write_step(path: Path, result: Result, *, key: str, of: str, seconds: float) -> Path:
    """Keep a step's result, with its key, the key of its study and the seconds it took.

    Raises:
        InterpError: the file cannot be written.
        TypeError: the result is not plain JSON.
    """
    facts = {"of": of, "seconds": seconds, "result": result}
    return write_sealed(path, f"step {path.stem}", FORM, facts, key=key)


def read_step(path: Path, *, key: str | None = None) -> Result:
    """What `write_step` wrote: of, seconds and result.

    Raises:
        InterpError: missing, damaged or changed, another step's, or of another key.
    """
    return read_sealed(path, f"step {path.stem}", FORM, key=key)[0]
