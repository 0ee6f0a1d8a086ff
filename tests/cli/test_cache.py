"""`interp cache` says what the package's own functions say."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import interp
from interp.core.files import cache_dir
from interp.results.cached import cached_files
from interp.results.kept import kept_results
from interp.results.store import chunks_of
from tests.cli.test_main import run


@pytest.fixture(autouse=True)
def sweep(toy):
    """One sweep, and a part of a run that was stopped."""
    interp.activation_patching(toy, interp.load_task("toy-induction", toy, n=4))
    with chunks_of("stopped") as chunks:
        chunks.once(0, 1, lambda: np.zeros(1))
    (found,) = cache_dir().glob("results/*.safetensors")
    return found


def test_kinds_are_listed(tmp_path):
    out = run("cache", "--json", tmp_path / "all.json").splitlines()
    assert out[0].startswith(f"{len(cached_files())} files in {cache_dir()}, ")
    assert any(line.split()[:3] == ["sweep", "toy-induction", "1"] for line in out)
    assert any(line.split()[:4] == ["unfinished", "run", "left", "over"] for line in out)
    told = json.loads((tmp_path / "all.json").read_text())
    assert told == [asdict(one) for one in cached_files()]


def test_damage_is_found_and_pruned(sweep, monkeypatch):
    assert run("cache", "check").strip() == "2 files with a checksum, 0 damaged."
    sweep.write_bytes(sweep.read_bytes()[:-1])
    asked = []
    monkeypatch.setattr("typer.confirm", lambda text: asked.append(text))
    assert "2 to remove" in run("cache", "prune")
    assert len(asked) == 1
    assert sweep.exists()
    assert "Removed 2" in run("cache", "prune", "--yes")
    assert not sweep.exists()
    assert not list(cache_dir().glob("partial/*"))
    assert "0 to remove" in run("cache", "prune", "--yes")


def test_the_store_is_listed_beside_the_cache(toy, monkeypatch):
    monkeypatch.setenv("INTERP_STORE", "memory://listed")
    interp.activation_patching(toy, interp.load_task("toy-induction", toy, n=3))
    out = run("cache").splitlines()
    assert out[1].startswith("1 results and unfinished runs in memory://listed, ")
    (name,) = (one.name for one in kept_results() if one.place == "store")
    shown = run("runs", "show", name.rpartition("/")[2][:8])
    assert "activation_patching" in shown
    assert ["place", "store"] in [line.split() for line in shown.splitlines()]
    MemoryFileSystem.store.clear()
