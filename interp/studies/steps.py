"""Steps of a study. Each is computed once and kept on disk; asked again, it is read back.

Processes that run the same study share its steps. A step that is being computed is locked (the lock
ends with its process); the other processes read its result once it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from filelock import FileLock, Timeout

from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.core.nulls import Null, SelectionTest
from interp.core.records import read_sealed, write_sealed
from interp.core.statistics import Estimate

FORM = 2

Result = dict[str, Any]
"""Plain JSON: what a step found, and what the report is written from."""

Job = tuple[str, Callable[[], Result], *tuple[Any, ...]]
"""The name of a step, how it is computed, and the results of other steps it depends on."""


def plain(record: Estimate | Null | SelectionTest) -> Result:
    """An estimate, a null or a test as plain JSON."""
    return asdict(record)


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

    def all(self, *jobs: Job) -> list[Result]:
        """Results of steps that do not depend on each other, in the order given.

        Steps that another process is computing are skipped and collected at the end. `results`
        holds them in this order, whichever ended first.
        """
        left = []
        for name, compute, *inputs in jobs:
            try:
                with self._lock(name).acquire(blocking=False):
                    self._made(name, compute, *inputs)
            except Timeout:
                left.append((name, compute, *inputs))
        for job in left:
            self(*job)
        for name, *_ in jobs:
            self.results[name] = self.results.pop(name)
        return [self.results[name] for name, *_ in jobs]

    def _lock(self, name: str) -> FileLock:
        directory = self.directory / "locks"
        directory.mkdir(parents=True, exist_ok=True)
        return FileLock(directory / f"{name}.lock")

    def _made(self, name: str, compute: Callable[[], Result], *inputs: Any) -> Result:
        path = self.directory / f"{name}.json"
        key = content_key([*self.key, name, *inputs])
        with suppress(InterpError):  # missing, damaged, or of another key
            kept = read_step(path, key=key)
            self.seconds[name], self.results[name] = kept["seconds"], kept["result"]
            self.say(f"{name}: kept")
            return self.results[name]
        self.say(f"{name} ...")
        begin = monotonic()
        result = compute()
        self.seconds[name] = round(monotonic() - begin, 1)
        try:
            write_step(path, result, key=key, of=self.of, seconds=self.seconds[name])
        except TypeError as error:
            raise InterpError(f"keeping step {name}", str(error), "give plain JSON") from error
        self.results[name] = read_step(path, key=key)["result"]
        self.say(f"{name}: {self.seconds[name]:.0f} s")
        return self.results[name]


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
