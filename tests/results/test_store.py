"""Results and parts in a store: a folder, or under a URL."""

import time

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from interp.core.errors import InterpError
from interp.core.files import cache_dir, store_root
from interp.engine.stopping import Cancelled
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from interp.results.cached import cached_files, check_cache, prune_cache
from interp.results.kept import (
    delete_result,
    find_result,
    kept_results,
    kept_scores,
    note_result,
)
from interp.results.store import chunks_of, result_path
from interp.tasks.registry import load_task


@pytest.fixture(params=["folder", "file://", "memory://"])
def place(request, tmp_path, monkeypatch):
    """A store that is not the cache folder, in three kinds."""
    path = "bucket" if request.param == "memory://" else tmp_path / "store"
    monkeypatch.setenv("INTERP_STORE", f"{request.param.removeprefix('folder')}{path}")
    yield store_root()
    MemoryFileSystem.store.clear()


@pytest.fixture
def task(toy):
    return load_task("toy-induction", toy).first(9)


def names(folder, pattern):
    return sorted(str(one).rpartition("/")[2] for one in folder.glob(pattern))


def test_a_sweep_is_read_from_the_store(toy, task, place):
    counts = []
    first = activation_patching(toy, task, progress=lambda *at: counts.append(at))
    assert counts
    (name,) = names(place / "results", "*.safetensors")
    assert result_path(name.removesuffix(".safetensors")) == place / "results" / name
    del counts[:]
    again = activation_patching(toy, task, progress=lambda *at: counts.append(at))
    assert not counts
    assert again.effects.tobytes() == first.effects.tobytes()
    assert not (cache_dir() / "results").exists()
    assert not names(place / "partial", "*/*")


@pytest.mark.long
@pytest.mark.parametrize("measure", [activation_patching, attribution_patching])
@pytest.mark.parametrize("n", [1, 2])
def test_a_stopped_call_goes_on_from_the_store(toy, task, place, measure, n):
    counts = []
    with pytest.raises(Cancelled):
        measure(toy, task, workers=n, cancelled=lambda: any(place.glob("partial/*/chunk-*")))
    kept = len(names(place / "partial", "*/chunk-*"))
    assert 0 < kept < 3
    done = measure(toy, task, workers=n, progress=lambda *at: counts.append(at))
    assert counts[-1] == (3 - kept, 3 - kept)
    assert not names(place / "partial", "*/chunk-*")
    assert np.allclose(done.effects, measure(toy, task).effects, atol=1e-4)


def test_a_damaged_result_is_computed_again(toy, task, monkeypatch):
    monkeypatch.setenv("INTERP_STORE", "memory://bucket")
    first = activation_patching(toy, task)
    (name,) = MemoryFileSystem.store
    MemoryFileSystem().pipe_file(name, b"half")
    counts = []
    again = activation_patching(toy, task, progress=lambda *at: counts.append(at))
    assert counts
    assert again.effects.tobytes() == first.effects.tobytes()
    MemoryFileSystem.store.clear()


def test_a_store_that_cannot_be_written_is_said_and_changes_nothing(toy, task, monkeypatch):
    monkeypatch.setenv("INTERP_STORE", "memory://bucket")

    def refused(*_, **__):
        raise PermissionError("read only")

    monkeypatch.setattr(MemoryFileSystem, "put_file", refused)
    with pytest.warns(UserWarning, match="not kept: .*PermissionError: read only; .*INTERP_STORE"):
        found = activation_patching(toy, task)
    assert np.array_equal(found.effects, activation_patching(toy, task, cache=False).effects)


def test_a_store_that_nothing_reads_is_refused_before_the_sweep(toy, task, monkeypatch):
    monkeypatch.setenv("INTERP_STORE", "nothing://bucket")
    counts = []
    with pytest.raises(InterpError, match="INTERP_STORE=nothing"):
        activation_patching(toy, task, progress=lambda *at: counts.append(at))
    assert not counts


def stop_a_run():
    with chunks_of("stopped") as chunks:
        for number in range(2):
            chunks.once(number, 3, lambda: np.zeros(3))


def in_store():
    return {one.name: one for one in cached_files() if one.place == "store"}


def test_what_lies_in_the_store_is_listed_opened_and_deleted(toy, task, place):
    scores = activation_patching(toy, task)
    stop_a_run()
    (one,) = kept_results()
    assert (one.place, one.kind, one.model, one.task) == ("store", "sweep", toy.name, task.name)
    assert abs(one.made - time.time()) < 60
    assert kept_scores(one.name).effects.tobytes() == scores.effects.tobytes()
    note_result(one.name, "a note")
    assert find_result(one.name).note == "a note"
    files = in_store()
    assert {(x.kind, x.model) for x in files.values()} >= {
        ("sweep", toy.name),
        ("unfinished run, 2 parts", ""),
    }
    assert files[f"{one.name}.safetensors"].size == one.size > 1000
    assert not check_cache()
    delete_result(one.name)
    assert kept_results() == []
    assert not names(place / "results", "*.safetensors")
    assert names(place / "partial", "*/chunk-*")


def test_without_a_store_of_its_own_everything_is_in_the_cache(toy, task):
    activation_patching(toy, task)
    stop_a_run()
    assert {one.place for one in (*kept_results(), *cached_files())} == {"cache"}


def test_of_two_sweeps_of_one_name_the_one_that_is_read_is_listed(toy, task, monkeypatch):
    activation_patching(toy, task)
    monkeypatch.setenv("INTERP_STORE", "memory://bucket")
    assert [one.place for one in kept_results()] == ["cache"]
    activation_patching(toy, task)
    assert [one.place for one in kept_results()] == ["store"]
    MemoryFileSystem.store.clear()


def test_damage_in_a_bucket_is_found_and_pruned(toy, task, monkeypatch):
    monkeypatch.setenv("INTERP_STORE", "memory://bucket")
    activation_patching(toy, task)
    (name,) = MemoryFileSystem.store
    assert not check_cache()
    MemoryFileSystem().pipe_file(name, b"half")
    assert kept_results() == []
    damaged = check_cache()
    assert [(one.place, one.state) for one in damaged] == [("store", "damaged")]
    assert prune_cache(damaged) == damaged
    assert not MemoryFileSystem.store


def test_a_store_that_cannot_be_reached_is_said(monkeypatch):
    monkeypatch.setenv("INTERP_STORE", "memory://bucket")

    def refused(*_, **__):
        raise PermissionError("no key")

    monkeypatch.setattr(MemoryFileSystem, "glob", refused)
    for listed in (kept_results, cached_files):
        with pytest.raises(InterpError, match="listing memory://bucket: .*no key"):
            listed()
