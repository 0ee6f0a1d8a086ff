"""Jobs run in a process of their own: what they report, how they stop, and how they may die."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest

import interp
from interp.core.errors import InterpError
from interp.ui.shared import jobs


def ended(key: str, work: jobs.Work, after: float | None = None) -> jobs.BackgroundJob:
    """The job of some work after its end; cancelled that long after its first report."""
    jobs.start(key, work)
    job = jobs.find(key)
    assert job is not None
    until = time.monotonic() + 60
    while job.state == "running":
        assert time.monotonic() < until
        if after is not None and job.done and not job.cancel.is_set():
            time.sleep(after)
            job.stop()
            until = time.monotonic() + jobs.GRACE + 5  # 5: a busy machine
        time.sleep(0.01)
    return job


def steps(pause: float, *, progress: jobs.Reporter, cancelled) -> None:
    """Work that stops where it is asked to."""
    for done in range(1, 200):
        progress.say(f"step {done} in {os.getpid()}")
        progress(done, 200)
        time.sleep(pause)
        if cancelled():
            raise InterpError("the steps", "cancelled", "run them again")


def deaf(*, progress: jobs.Reporter, cancelled) -> None:
    """Work that never asks whether it was cancelled."""
    progress(1, 2)
    time.sleep(50)


def broken(*, progress: jobs.Reporter, cancelled) -> None:
    """Work with a bug."""
    raise ZeroDivisionError("no such number")


def dying(*, progress: jobs.Reporter, cancelled) -> None:
    """Work whose process is killed, as by the system when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def named(model, task, *, progress: jobs.Reporter, cancelled) -> None:
    """Work that says which model and prompts it got, and whether the metric is the package's."""
    shipped = task.metric is interp.METRICS[task.metric.name]
    progress.say(f"{model.hash} {model.dtype} {task.hash} {shipped}")


def test_work_reports_from_another_process() -> None:
    job = ended("steps", partial(steps, 0.0))
    assert job.state == "done"
    assert (job.done, job.total) == (199, 200)
    assert job.line.startswith("step 199 in ")
    assert job.line != f"step 199 in {os.getpid()}"


@pytest.mark.parametrize("work", [partial(steps, 0.2), deaf], ids=["asks", "does not ask"])
def test_a_job_stops_soon_after_it_is_cancelled(work) -> None:
    job = ended("cancelled", work, after=0.1)
    assert job.state == "cancelled"


def test_work_that_has_not_reported_is_cancelled_at_once() -> None:
    jobs.start("starting", deaf)
    job = jobs.find("starting")
    assert job is not None
    job.stop()
    assert job.state == "cancelled"
    assert job.ended.wait(jobs.GRACE + 20)  # 20: the first job waits for imports
    assert (job.state, job.done) == ("cancelled", 0)


def test_a_bug_is_named() -> None:
    job = ended("broken", broken)
    assert job.state == "failed"
    assert str(job.error) == "ZeroDivisionError: no such number"


def test_a_process_that_dies_is_an_error_that_says_what_to_do() -> None:
    job = ended("dying", dying)
    assert job.state == "failed"
    assert isinstance(job.error, InterpError)
    assert "SIGKILL" in job.error.found
    assert "finished parts are kept" in job.error.do


def test_a_model_is_loaded_again_by_its_name() -> None:
    model = interp.load_model("toy-induction", dtype="float64")
    task = interp.load_task("toy-induction", model, n=4)
    job = ended("named", partial(named, model, task))
    assert job.line == f"{model.hash} torch.float64 {task.hash} True"


def test_a_model_whose_files_changed_is_refused() -> None:
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=4)
    model.hash = "0" * 64
    job = ended("changed", partial(named, model, task))
    assert job.state == "failed"
    assert "its files have changed" in str(job.error)
