"""Long work in a process of its own, so that the pages stay usable, and the panel that watches it.

Work of a few seconds that needs no Cancel runs in a thread (`THREADS`), and the page shows it
`later`.

The work keeps its result on disk, where the page finds it by its key. Its process loads the model
again by its name, so a running job takes the model's memory a second time.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, Protocol, TypeVar

import streamlit as st

from interp.core.errors import InterpError
from interp.core.metrics import Metric, is_shipped, metric_named
from interp.engine.cost import duration
from interp.models.language_model import LanguageModel
from interp.ui.shared import offered, widgets

T = TypeVar("T")
GRACE = 0.5
"""Seconds that cancelled work has to stop by itself, before its process is ended."""
PATIENCE = 1.0
"""Seconds that a click on Cancel waits for the end, before it shows that the work is stopping."""
IMPORTED = (
    "transformers.models.llama.modeling_llama",
    "interp.models.families",
    "interp.ui.circuits.search",
    "interp.ui.studies.first_page",
)
"""What the process that jobs are forked from imports once."""
_CONTEXT: Any = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
THREADS = ThreadPoolExecutor(3, "later")
AT_ONCE, SOON = 0.2, 0.1
"""Seconds that a page waits for a thread, and seconds between two later looks."""
DRAWING = 3.0
"""Seconds in which a browser has drawn the first figures of a page."""
PACED = 8
"""Chunks whose pace tells how long the rest takes."""


@dataclass(kw_only=True)
class BackgroundJob:
    """One piece of work: its progress, its end, and the way to stop it.

    `line` is what it said last; chunks of equal size are counted instead. `part` is the last of the
    results that it gave before its end.
    """

    state: Literal["running", "done", "cancelled", "failed"] = "running"
    done: int = 0
    total: int = 0
    counted: str = "chunks"
    line: str = ""
    part: Any = None
    error: Exception | None = None
    ends: list[float] = field(default_factory=lambda: [time.monotonic()])
    cancel: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Cancel, and wait for the end a moment.

        Work that has not reported yet counts as ended at once: its process, which may still start,
        is ended before it has done anything.
        """
        self.cancel.set()
        if self.total or self.line:
            self.ended.wait(PATIENCE)
        elif self.state == "running":
            self.state = "cancelled"

    def progress(self, done: int, total: int) -> None:
        """Take note of finished chunks; with none done, what comes is timed from here."""
        now = time.monotonic()
        if done <= self.done:
            self.ends = []
        self.ends.append(now)
        self.done, self.total = done, total

    @property
    def left(self) -> float | None:
        """Seconds it will still take at the pace of its last chunks; None before the first.

        Chunks read back from an earlier run take no time: those far shorter than the longest of
        the last few do not count.
        """
        last = self.ends[-PACED - 1 :]
        took = [end - begin for begin, end in zip(last, last[1:], strict=False)]
        counted = [seconds for seconds in took if seconds > max(took) / 20]
        if not self.done or not counted:
            return None
        return sum(counted) / len(counted) * (self.total - self.done)

    @property
    def words(self) -> str:
        """Where it is, and how long it will still take."""
        if self.cancel.is_set():
            return "stopping after the current step …"
        if self.line:
            return self.line
        if not self.done:
            return "running the unpatched prompts …" if self.counted == "chunks" else "starting …"
        rest = "" if self.left is None else f" · about {duration(self.left)} left"
        return f"{self.done} of {self.total} {self.counted}{rest}"


@st.cache_resource(show_spinner=False)
def _jobs() -> dict[str, BackgroundJob]:
    return {}


def find(key: str) -> BackgroundJob | None:
    """The job of a result's key, running or ended."""
    return _jobs().get(key)


class Work(Protocol):
    """A function that can run long; `functools.partial` of a module's function can be one."""

    def __call__(self, *, progress: Any, cancelled: Callable[[], bool]) -> object:
        """Run; `progress` is a `Reporter`."""


@dataclass(frozen=True)
class Reporter:
    """How work tells the page what it has done: it is called with (done, total)."""

    connection: Connection

    def __call__(self, done: int, total: int) -> None:
        """Finished parts."""
        self.connection.send(("progress", (done, total)))

    def say(self, line: str) -> None:
        """What is done now, in words."""
        self.connection.send(("line", line))

    def show(self, part: Any) -> None:
        """What is known so far: plain numbers and texts, which a page shows."""
        self.connection.send(("part", part))


class _Pickler(ForkingPickler):
    """Writes the name of a model, or of a metric, in its place; the other process finds it."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, LanguageModel):
            return _load, (value.name, str(value.dtype).removeprefix("torch."), value.hash)
        if isinstance(value, Metric) and is_shipped(value):
            return metric_named, (value.name,)
        return NotImplemented


def _load(name: str, dtype: str, hash_: str) -> LanguageModel:
    model = offered.load(name, dtype)
    if model.hash != hash_:
        raise InterpError(
            f"running {name}", "its files have changed since it was loaded", "load it again"
        )
    return model


def prepare_soon() -> None:
    """`prepare` when the browser has drawn what the page sent: both need a processor."""
    timer = threading.Timer(DRAWING, prepare)
    timer.daemon = True
    timer.start()


def prepare() -> None:
    """Begin to import what jobs need, in a process that waits; a page calls it that offers one."""
    if _CONTEXT.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        _CONTEXT.set_forkserver_preload(list(IMPORTED))
        forkserver.ensure_running()


def start(key: str, work: Work, counted: str = "chunks") -> None:
    """Run `work` in a process, unless that key's job is running; its progress counts `counted`."""
    running = find(key)
    if running is not None and running.state == "running":
        return
    prepare()
    job = _jobs()[key] = BackgroundJob(counted=counted)
    packed = io.BytesIO()
    _Pickler(packed).dump(work)
    threading.Thread(
        target=_follow, args=(job, packed.getvalue()), name=f"job-{key}", daemon=True
    ).start()


def _run(environment: Mapping[str, str], connection: Connection, stop: Any) -> None:
    """In the process of a job: run the work, and say how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the server, which ends this
    os.environ.clear()
    os.environ.update(environment)
    try:
        connection.recv()(progress=Reporter(connection), cancelled=stop.is_set)
        connection.send(("done", None))
    except InterpError as error:
        connection.send(("error", error))
    except Exception as error:  # shown by the page that started it, and whole in the server's log
        traceback.print_exc()
        connection.send(("error", RuntimeError(f"{type(error).__name__}: {error}")))


def _follow(job: BackgroundJob, work: bytes) -> None:
    """In a thread of the server: start a job's process, and note what it says until it ends."""
    connection, theirs = _CONTEXT.Pipe()
    stop = _CONTEXT.Event()
    arguments = (dict(os.environ), theirs, stop)
    process = _CONTEXT.Process(target=_run, args=arguments, daemon=True)
    process.start()
    theirs.close()
    connection.send_bytes(work)
    end: tuple[str, Any] | None = None
    limit = float("inf")
    while end is None:
        if job.cancel.is_set() and not stop.is_set():
            stop.set()
            limit = time.monotonic() + (GRACE if job.state == "running" else 0)
        if time.monotonic() > limit:
            process.terminate()
        try:
            if not connection.poll(0.1):
                continue
            kind, value = connection.recv()
        except (EOFError, OSError):
            process.join()
            end = ("error", _died(process.exitcode))
            break
        if kind == "progress":
            job.progress(*value)
        elif kind == "line":
            job.line = value
        elif kind == "part":
            job.part = value
        else:
            end = (kind, value)
    job.error = end[1]
    stopped = job.cancel.is_set() and isinstance(job.error, InterpError)
    job.state = "done" if end[0] == "done" else "cancelled" if stopped else "failed"
    job.ended.set()
    process.join()


def _died(code: int | None) -> InterpError:
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return InterpError(
        "the work of this page",
        f"its process ended early ({name}); SIGKILL often means that the memory ran out",
        "run it again, with fewer prompts if memory is short; finished parts are kept",
    )


def later(found: Future[T], words: str) -> T | None:
    """What a thread computes, or its error; until it is there, None, and the page says `words`.

    A page that computed it itself would not answer a click before its end.
    """
    if wait([found], AT_ONCE).done:
        return found.result()
    st.session_state[widgets.AWAITED] = found

    @st.fragment(run_every=SOON)
    def panel() -> None:
        if found.done():
            st.rerun()
        st.caption(words)

    panel()
    return None


def result(
    key: str,
    load: Callable[[str], T | None],
    ready: Callable[[], None],
    *,
    title: str = "",
    kept: str = "",
) -> T | None:
    """The result of a key; without one, under `title`, its job's progress or what starts the job.

    `ready` draws what starts the job, below how an earlier one ended; `kept` says what is kept of
    one that was stopped.
    """
    found = load(key)
    if found is None:
        if title:
            st.header(title, anchor=False)
        _panel(key, ready, kept)
    else:
        _jobs().pop(key, None)
    return found


def _panel(key: str, ready: Callable[[], None], kept: str) -> None:
    job = find(key)
    if job is not None and job.state == "running":
        watch(job)
        return
    if job is not None and job.state == "failed" and job.error is not None:
        widgets.show_error(job.error)
    if job is not None and job.state == "done":
        st.error(
            "The run finished, but its result could not be kept. Is the cache full or read-only? "
            "The server's log says more.",
            icon=":material/save:",
        )
    if job is not None and job.state == "cancelled":
        after = f"after {job.done} of {job.total}" if job.total else "before the first of its"
        stopped = f"Stopped {after} {job.counted}. {kept}"
        st.info(stopped, icon=":material/pause:")
    ready()


def watch(job: BackgroundJob) -> None:
    """A progress bar with a cancel button; it reruns the page when the job ends.

    Where the job says what it does, at every step too: the page shows what steps have found.
    """
    seen = job.done

    @st.fragment(run_every=0.5)
    def panel() -> None:
        if job.state != "running" or (job.line and job.done != seen):
            st.rerun()
        bar, button = st.columns([5, 1], vertical_alignment="center")
        bar.progress(job.done / job.total if job.total else 0.0, text=widgets.plain(job.words))
        button.button(
            "Cancel",
            key="cancel",
            icon=":material/stop_circle:",
            on_click=job.stop,
            disabled=job.cancel.is_set(),
            width="stretch",
        )

    panel()
