"""Several processes on one study: every step once, and the same results."""

import os
import threading
from functools import partial
from multiprocessing import get_context
from time import sleep

import pytest
import torch
from filelock import FileLock

from interp.core.errors import InterpError
from interp.studies.steps import Steps
from interp.studies.workers import step_workers

NAMES = ("a", "b", "c", "d")


def study(directory, say=lambda line: None):
    step = Steps(directory=directory, key=["k"], say=say)
    made = []

    def compute(name, *used):
        made.append(name)
        with (directory / "log").open("a") as log:
            log.write(f"{name} {os.getpid()} {torch.get_num_threads()} {''.join(made)}\n")
        sleep(0.2)
        return {"name": name, "used": list(used)}

    first = step("first", partial(compute, "first"))
    found = step.all(*((name, partial(compute, name), first) for name in NAMES))
    last = step.all(*((x, partial(compute, x, *(y["name"] for y in found)), found) for x in "xy"))
    return step("end", partial(compute, "end"), last)


def rows_of(directory):
    return [line.split() for line in (directory / "log").read_text().splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("n", [0, 1, 2])
def test_each_step_is_computed_once_by_any_number_of_processes(tmp_path, n):
    lines = []
    run = partial(study, tmp_path)
    with step_workers(run, n):
        found = run(say=lines.append)
    assert found == {"name": "end", "used": []}
    rows = rows_of(tmp_path)
    assert sorted(row[0] for row in rows) == sorted(["first", *NAMES, "x", "y", "end"])
    shared = [row for row in rows if row[0] in (*NAMES, *"xy")]
    if n:
        assert {row[2] for row in shared} == {"1"}
        assert "x: 1 of 2 steps are done" in lines or "y: 1 of 2 steps are done" in lines
    assert (str(os.getpid()) in {row[1] for row in shared}) == (n < 2)
    before = (tmp_path / "log").read_text()
    with step_workers(run, n):
        assert run() == found
    assert (tmp_path / "log").read_text() == before


def test_a_process_keeps_what_it_computed_on_the_way(tmp_path):
    """A study goes on where it waited, so that its own memory is not lost between steps."""
    run = partial(study, tmp_path)
    with step_workers(run, 1):
        run()
    assert [row[3] for row in rows_of(tmp_path) if row[0] == "y"] == ["abcdxy"]


def failing(directory, say=lambda line: None):
    step = Steps(directory=directory, key=["k"], say=say)

    def refuse():
        raise InterpError("a", "b", "c")

    return step.all(("good", dict), ("bad", refuse))


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 2])
def test_an_error_of_a_step_is_raised_here(tmp_path, n):
    run = partial(failing, tmp_path)
    with step_workers(run, n), pytest.raises(InterpError, match="a: b; c"):
        run()


def another(directory, say=lambda line: None):
    return Steps(directory=directory, key=["k"], say=say)("first", dict)


def test_workers_of_another_study_are_an_error(tmp_path):
    with step_workers(partial(another, tmp_path), 1), pytest.raises(LookupError, match="'a'"):
        study(tmp_path)


def test_a_process_that_runs_the_same_study_waits_for_a_step(tmp_path):
    lines, taken = [], threading.Event()
    step = Steps(directory=tmp_path, key=["k"], say=lines.append)

    def hold():
        (tmp_path / "locks").mkdir()
        with FileLock(tmp_path / "locks" / "b.lock"):
            taken.set()
            sleep(0.3)

    threading.Thread(target=hold).start()
    taken.wait()
    step.all(*((name, partial(dict, name=name)) for name in "abc"))
    assert list(step.results) == ["a", "b", "c"]
    assert "b: another process computes it ..." in lines


@pytest.mark.long
def test_a_dead_process_leaves_no_lock(tmp_path):
    other = get_context("spawn").Process(target=study, args=(tmp_path,))
    other.start()
    while not (tmp_path / "log").exists() and other.is_alive():
        sleep(0.01)
    other.kill()
    other.join()
    assert study(tmp_path)["name"] == "end"
