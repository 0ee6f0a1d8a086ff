"""The files of the cache: what they are, the damaged ones, and what is removed."""

import os
import subprocess
import time

import numpy as np
import pytest
from filelock import FileLock

import interp
from interp.circuits.discovery.find import Finder
from interp.core.files import DAY, PART, _machine, cache_dir
from interp.results.cached import cached_files, check_cache, prune_cache
from interp.results.kept import kept_results, note_result
from interp.results.store import chunks_of
from interp.studies.steps import Steps
from tests.heads.test_direct_attribution import direction_of


@pytest.fixture(autouse=True)
def filled(toy):
    """A cache with a sweep, a note, activations, a circuit, a direction, a prompt and a step."""
    task = interp.load_task("toy-induction", toy, n=4)
    interp.activation_patching(toy, task)
    interp.find_circuit(toy, task, Finder(method="EAP"))
    interp.run_with_cache(toy, task, sites=["z"], positions="last", to_disk=True)
    note_result(kept_results()[0].name, "a note")
    interp.results.keep_direction("mine", direction_of(toy, 0))
    Steps(directory=cache_dir() / "studies" / "reuse-a", key=["k"])("one", lambda: {"x": 1})
    (cache_dir() / "tasks").mkdir()
    (cache_dir() / "tasks" / "typed.jsonl").write_text("{}")


def stop_a_run(key):
    with chunks_of(key) as chunks:
        chunks.once(0, 3, lambda: np.zeros(3))


def states():
    return {one.name: one.state for one in cached_files() if one.state != "kept"}


def test_every_file_is_listed_with_its_kind_and_model(toy):
    (cache_dir() / "stray.txt").write_text("x")
    files = cached_files()
    on_disk = [path for path in cache_dir().rglob("*") if path.is_file()]
    assert {one.path for one in files} == set(on_disk)
    assert sum(one.size for one in files) == sum(path.stat().st_size for path in on_disk)
    kinds = {(one.kind, one.model) for one in files}
    assert kinds >= {("sweep", toy.name), ("edge scores", toy.name), ("activations", "")}
    assert kinds >= {("direction", ""), ("note", ""), ("study", ""), ("saved task", "")}
    assert {one.kind for one in files if not one.sealed} == {"saved task", "other file", "lock"}


def test_every_damaged_file_is_found_and_none_that_is_whole():
    assert not check_cache()
    sealed = [one for one in cached_files() if one.sealed]
    assert len(sealed) == 7
    for one in sealed:
        whole = one.path.read_bytes()
        for wrong in (whole[:-3], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b""):
            one.path.write_bytes(wrong)
            assert [found.name for found in check_cache()] == [one.name]
        one.path.write_bytes(whole)
    for one in sealed:
        one.path.write_bytes(b"{")
    assert len(check_cache()) == 7
    gone = {one.kind for one in prune_cache(check_cache())}
    # The others nobody could make again.
    assert gone == {"sweep", "circuit", "activations", "measured speed"}
    assert len(check_cache()) == 3


def test_what_is_left_over_goes_and_what_is_used_stays():
    ended = subprocess.Popen(["true"])
    ended.wait()
    results, alive = cache_dir() / "results", [one.path for one in cached_files()]
    dead = results / f".x.json.{_machine()}-{ended.pid}-0a{PART}"
    mine = results / f".y.json.{_machine()}-{os.getpid()}-0a{PART}"
    old = results / f".z.json.00000000-1-0a{PART}"
    for path in (dead, mine, old):
        path.write_text("half")
    os.utime(old, (0, time.time() - 2 * DAY))
    stop_a_run("stopped")
    with chunks_of("used"), FileLock(cache_dir() / "studies/reuse-a/locks/two.lock"):
        found = states()
        lock = "studies/reuse-a/locks/"
        assert found == {
            f"results/{dead.name}": "left over", f"results/{mine.name}": "in use",
            f"results/{old.name}": "left over", "partial/stopped": "left over",
            "partial/used": "in use", f"{lock}one.lock": "left over", f"{lock}two.lock": "in use",
        }  # fmt: skip
        removed = prune_cache(cached_files())
        assert {one.name for one in removed} == {
            name for name, state in found.items() if state == "left over"
        }
        assert states() == {name: state for name, state in found.items() if state == "in use"}
    mine.unlink()
    assert all(path.exists() for path in alive if path.suffix != ".lock")
    assert not prune_cache(one for one in cached_files() if one.state == "kept")


def test_a_run_that_goes_on_before_its_parts_are_removed_keeps_them():
    """Listed as left over, then taken up by another process."""
    stop_a_run("k")
    listed = [one for one in cached_files() if one.name == "partial/k"]
    with chunks_of("k") as chunks:
        assert not prune_cache(listed)
        chunks.once(0, 3, lambda: pytest.fail("it is there"))
    assert prune_cache(listed) == listed != []


def test_an_empty_or_absent_cache_has_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "none"))
    assert cached_files() == check_cache() == []
