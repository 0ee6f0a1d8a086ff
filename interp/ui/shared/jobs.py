"""Long work in a thread that never touches Streamlit, and the panel that watches it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import streamlit as st

from interp.core.errors import InterpError
from interp.engine.cost import duration
from interp.ui.shared import widgets

T = TypeVar("T")
PACED = 8
"""Chunks whose pace tells how long the rest takes."""


@dataclass(kw_only=True)
class BackgroundJob:
    """One piece of work: its progress, its end, and the way to stop it.

    `line` is what it said last; chunks of equal size are counted instead.
    """

    state: Literal["running", "done", "cancelled", "failed"] = "running"
    done: int = 0
    total: int = 0
    unit: str = "chunks"
    line: str = ""
    error: Exception | None = None
    ends: list[float] = field(default_factory=lambda: [time.monotonic()])
    cancel: threading.Event = field(default_factory=threading.Event)

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
            return "running the unpatched prompts …" if self.unit == "chunks" else "starting …"
        rest = "" if self.left is None else f" · about {duration(self.left)} left"
        return f"{self.done} of {self.total} {self.unit}{rest}"


@st.cache_resource(show_spinner=False)
def _jobs() -> dict[str, BackgroundJob]:
    return {}


def find(key: str) -> BackgroundJob | None:
    """The job of a result's key, running or ended."""
    return _jobs().get(key)


def start(key: str, work: Callable[[BackgroundJob], object], unit: str = "chunks") -> None:
    """Run `work(job)` in a thread, unless that key's job is already running; `unit` is counted."""
    running = find(key)
    if running is not None and running.state == "running":
        return
    job = _jobs()[key] = BackgroundJob(unit=unit)

    def run() -> None:
        try:
            work(job)
            job.state = "done"
        except Exception as error:  # shown by the page that started it
            job.error = error
            stopped = job.cancel.is_set() and isinstance(error, InterpError)
            job.state = "cancelled" if stopped else "failed"

    threading.Thread(target=run, name=f"job-{key}", daemon=True).start()


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
        stopped = f"Stopped after {job.done} of {job.total or '…'} {job.unit}. {kept}"
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
            on_click=job.cancel.set,
            disabled=job.cancel.is_set(),
            width="stretch",
        )

    panel()
