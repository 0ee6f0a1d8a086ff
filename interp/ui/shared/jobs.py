"""Long work in a thread that never touches Streamlit, and the panel that watches it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import streamlit as st

from interp.core.errors import InterpError
from interp.engine.cost import duration
from interp.ui.shared import widgets

PACED = 8
"""Chunks whose pace tells how long the rest takes."""


@dataclass(kw_only=True)
class Job:
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
def _jobs() -> dict[str, Job]:
    return {}


def find(key: str) -> Job | None:
    """The job of a result's key, running or ended."""
    return _jobs().get(key)


def forget(key: str) -> None:
    """Drop an ended job."""
    _jobs().pop(key, None)


def start(key: str, work: Callable[[Job], object], unit: str = "chunks") -> None:
    """Run `work(job)` in a thread, unless that key's job is already running; `unit` is counted."""
    running = find(key)
    if running is not None and running.state == "running":
        return
    job = _jobs()[key] = Job(unit=unit)

    def run() -> None:
        try:
            work(job)
            job.state = "done"
        except Exception as error:  # shown by the page that started it
            job.error = error
            stopped = job.cancel.is_set() and isinstance(error, InterpError)
            job.state = "cancelled" if stopped else "failed"

    threading.Thread(target=run, name=f"job-{key}", daemon=True).start()


def not_kept() -> None:
    """Say that a job ended well and that its result is not there."""
    st.error(
        "The run finished, but its result could not be kept. Is the cache full or read-only? "
        "The server's log says more.",
        icon=":material/save:",
    )


def watch(job: Job) -> None:
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
