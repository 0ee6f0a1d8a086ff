"""Several processes on one study: every step once, and all of them in every process."""

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
from interp.studies.workers import sharing

NAMES = ("a", "b", "c", "d")


def study(directory, say=lambda line: None):
    step = Steps(directory=directory, key=["k"], say=say)

    def compute(name, *used):
        with (directory / "log").open("a") as log:
            log.write(f"{name} {os.getpid()} {torch.get_num_threads()}\n")
        sleep(0.3)
        return {"name": name, "used": list(used)}

    first = step("first", partial(compute, "first"))
    found = step.all(*((name, partial(compute, name), first) for name in NAMES))
    return step("last", partial(compute, "last", *(x["name"] for x in found)), *found)


def refused(directory, say=lambda line: None):
    with (directory / "log").open("a") as log:
        log.write("asked\n")
    raise InterpError("a", "b", "c")


@pytest.fixture
def two_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr("interp.studies.workers._cores", lambda: 2)
    yield
    torch.set_num_threads(before)


def test_two_processes_share_the_steps(tmp_path, two_threads):
    run, lines = partial(study, tmp_path), []
    with sharing(run, 2):
        sleep(3)  # the other one starts meanwhile, and takes the first step
        found = run(say=lines.append)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    assert found == {"name": "last", "used": list(NAMES)}
    rows = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(row[0] for row in rows) == sorted(["first", "last", *NAMES])
    assert {row[2] for row in rows} == {"1"}
    assert study(tmp_path) == found


def test_a_second_process_joins_and_no_step_is_computed_twice(tmp_path):
    context = get_context("spawn")
    other = context.Process(target=study, args=(tmp_path,))
    other.start()
    while not (tmp_path / "a.json").exists() and other.is_alive():
        sleep(0.01)
    found = study(tmp_path)
    other.join()
    rows = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(row[0] for row in rows) == sorted(["first", "last", *NAMES])
    assert len({row[1] for row in rows}) == 2
    assert found == {"name": "last", "used": list(NAMES)}


def test_a_step_another_is_at_comes_last_and_results_are_in_the_order_asked_for(tmp_path):
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
    assert [line[0] for line in lines] == ["a", "a", "c", "c", "b", "b", "b"]
    assert lines[4] == "b: another process computes it ..."


def test_a_dead_process_leaves_no_lock(tmp_path):
    context = get_context("spawn")
    other = context.Process(target=study, args=(tmp_path,))
    other.start()
    while not (tmp_path / "log").exists() and other.is_alive():
        sleep(0.01)
    other.kill()
    other.join()
    assert study(tmp_path)["name"] == "last"


def holding(directory):
    with FileLock(directory / "held"):
        (directory / "begun").touch()
        sleep(600)


def shared_and_waiting(directory):
    with sharing(partial(holding, directory), 2):
        sleep(600)


def test_workers_end_with_a_study_that_is_killed(tmp_path):
    study_process = get_context("spawn").Process(target=shared_and_waiting, args=(tmp_path,))
    study_process.start()
    while not (tmp_path / "begun").exists() and study_process.is_alive():
        sleep(0.01)
    study_process.kill()
    study_process.join()
    with FileLock(tmp_path / "held", timeout=20):
        assert (tmp_path / "begun").exists()


def test_one_process_or_a_refusal_changes_nothing(tmp_path):
    with sharing(partial(refused, tmp_path), 1):
        pass
    assert not (tmp_path / "log").exists()
    with pytest.raises(InterpError), sharing(partial(refused, tmp_path), 2):
        refused(tmp_path)
