"""Parts of some work, done by several processes: the same numbers, whatever happens to one."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from interp.core.errors import InterpError
from interp.engine.stopping import Cancelled
from interp.models.loading import load_model
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.runs.workers import ray_cluster, spread

TOKENS = [(0, 3, 4, 5), (0, 6, 7, 8, 9), (0, 9, 3)]


def last(model, tokens):
    """The last logits of some tokens, with the number of threads they were computed by."""
    return model.last_logits([tokens])[0], torch.get_num_threads()


def test_units_come_back_in_order_and_with_the_same_bits(toy):
    seen = []
    one = spread(last, toy, TOKENS, workers=1)
    two = spread(last, toy, TOKENS, workers=2, progress=lambda *at: seen.append(at))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    for (alone, _), (shared, threads), tokens in zip(one, two, TOKENS, strict=True):
        assert torch.equal(alone, shared)
        assert threads == 1
        assert torch.allclose(shared, toy.last_logits([tokens])[0], atol=1e-5)


@pytest.mark.long
def test_a_unit_whose_process_is_killed_is_done_again(toy, tmp_path):
    mark = tmp_path / "killed"

    def work(model, part):
        if part == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return part * 10, os.getpid()

    found = spread(work, toy, range(5), workers=2)
    assert mark.exists()
    assert [value for value, _ in found] == [0, 10, 20, 30, 40]
    assert os.getpid() not in {pid for _, pid in found}


@pytest.mark.long
def test_a_unit_that_always_kills_its_process_is_given_up(toy):
    with pytest.raises(InterpError, match="died 3 times, with 1 parts left.*use fewer"):
        spread(lambda model, part: os.kill(os.getpid(), signal.SIGKILL), toy, [0], workers=2)


@pytest.mark.long
def test_errors_of_the_work_are_raised_as_they_are(toy):
    def refuse(model, part):
        raise InterpError("asked", "found", "do")

    with pytest.raises(InterpError, match="asked: found; do"):
        spread(refuse, toy, [0], workers=2)
    with pytest.raises(ZeroDivisionError):
        spread(lambda model, part: 1 / part, toy, [0], workers=2)


def test_cancelling_stops_between_units(toy, tmp_path):
    def work(model, part):
        (tmp_path / str(part)).touch()

    with pytest.raises(Cancelled, match="stopped after 1 of 50 parts"):
        spread(work, toy, range(50), workers=1, cancelled=lambda: True)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.long
def test_what_other_processes_cannot_have_is_refused(toy, family_models):
    with pytest.raises(InterpError, match="workers: 0"):
        spread(last, toy, TOKENS, workers=0)
    with pytest.raises(InterpError, match="in other processes: it cannot be loaded by its name"):
        spread(last, family_models["llama"], TOKENS, workers=2)
    with intervene(toy, zero("L0H0")), pytest.raises(InterpError, match="inside intervene"):
        spread(last, toy, TOKENS, workers=2)


@pytest.mark.long
def test_other_weights_of_the_same_name_are_refused(toy):
    changed = load_model("toy-induction")
    changed.hash = "0" * 64
    with pytest.raises(InterpError, match="other weights have this name there"):
        spread(last, changed, TOKENS, workers=2)


@pytest.mark.long
def test_processes_end_with_a_program_that_is_killed(tmp_path):
    code = f"""
import os, sys, time
from pathlib import Path
from interp.runs.workers import each

def hold(part):
    Path({str(tmp_path)!r}, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    list(each(hold, [0, 1], workers=2))
"""
    (tmp_path / "held.py").write_text(code)
    program = subprocess.Popen([sys.executable, tmp_path / "held.py"], cwd=Path.cwd())
    while len(list(tmp_path.glob("[0-9]*"))) < 2 and program.poll() is None:
        time.sleep(0.05)
    assert program.poll() is None
    program.kill()
    program.wait()
    for pid in map(int, (path.name for path in tmp_path.glob("[0-9]*"))):
        end = time.monotonic() + 60
        while _lives(pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert not _lives(pid)


def _lives(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.long
def test_a_ray_cluster_gives_the_same_bits_and_survives_a_kill(toy, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    mark = tmp_path / "killed"

    def work(model, part):
        if part == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return last(model, TOKENS[part])[0]

    mark.touch()
    one = spread(work, toy, range(3), workers=1)
    mark.unlink()
    with ExitStack() as stack:
        try:
            stack.enter_context(ray_cluster("local"))
        except InterpError as error:  # on a machine without a free core
            pytest.skip(str(error))
        found = spread(work, toy, range(3), workers=2)
    assert mark.exists()
    assert all(torch.equal(a, b) for a, b in zip(one, found, strict=True))


def test_no_cluster_at_an_address_is_an_error():
    pytest.importorskip("ray")
    with (
        pytest.raises(InterpError, match="the cluster 'nowhere'.*ray start"),
        ray_cluster("nowhere"),
    ):
        pass
