"""Files under a URL: whole or absent, and what goes wrong said in our words."""

import os
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from interp.core import remote
from interp.core.errors import InterpError
from interp.core.files import cache_dir, store_root, write_atomically
from interp.core.records import read_sealed, write_sealed
from interp.core.remote import RemoteFile, at_hand, folder_at

FOLDER = RemoteFile("memory://bucket/one")


@pytest.fixture(autouse=True)
def empty():
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["file system", "object store"])
def kind(request, monkeypatch):
    """Memory as a file system, which can rename, and as an object store."""
    if request.param == "file system":
        monkeypatch.setattr(remote, "RENAMING", ("memory",))
    return request.param


def text(file):
    with at_hand(file) as path:
        return path.read_text()


def put(file, words):
    return write_atomically(file, lambda partial: partial.write_text(words))


def test_a_file_is_written_read_listed_and_removed(kind):
    for words in ("one", "another"):
        assert put(FOLDER / "a.json", words) == FOLDER / "a.json"
        assert text(FOLDER / "a.json") == words
    put(FOLDER / "b.json", "b")
    assert sorted(map(str, FOLDER.glob("*.json"))) == [f"{FOLDER}/a.json", f"{FOLDER}/b.json"]
    assert [Path(name).name for name in sorted(MemoryFileSystem.store)] == ["a.json", "b.json"]
    FOLDER.remove()
    assert FOLDER.glob("*") == []


def test_a_file_system_gets_another_name_first_and_an_object_store_the_whole(kind, monkeypatch):
    names, whole = [], MemoryFileSystem.put_file

    def seen(self, local, path, **options):
        names.append(Path(path).name)
        return whole(self, local, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", seen)
    put(FOLDER / "a.json", "one")
    hidden = names[0].startswith(".a.json.") and names[0].endswith(".part")
    assert hidden if kind == "file system" else names == ["a.json"]


def test_a_copy_that_breaks_off_leaves_the_old_file(monkeypatch):
    monkeypatch.setattr(remote, "RENAMING", ("memory",))
    put(FOLDER / "a.json", "old")

    def half(self, local, path, **options):
        self.pipe_file(path, b"ne")
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(MemoryFileSystem, "put_file", half)
    with pytest.raises(InterpError, match="a.json: ConnectionError: the line is dead; .*STORE"):
        put(FOLDER / "a.json", "new")
    assert text(FOLDER / "a.json") == "old"
    assert len(MemoryFileSystem.store) == 1


def test_a_file_system_that_does_not_rename_over_a_file(monkeypatch):
    """Such as that of Windows: the old file is removed first."""
    monkeypatch.setattr(remote, "RENAMING", ("memory",))
    move = MemoryFileSystem.mv

    def refusing(self, one, other, **options):
        if self.exists(other):
            raise FileExistsError(other)
        return move(self, one, other, **options)

    monkeypatch.setattr(MemoryFileSystem, "mv", refusing)
    for words in ("old", "new"):
        put(FOLDER / "a.json", words)
    assert text(FOLDER / "a.json") == "new"


@pytest.mark.parametrize("name", ["a.json", "a.safetensors"])
def test_sealed_files_are_checked_as_on_a_disk(kind, name, monkeypatch):
    file = FOLDER / name
    with pytest.raises(InterpError, match=f"loading {file}: no such file"):
        read_sealed(file, "kind", 1)
    write_sealed(file, "kind", 1, {"fact": 3}, key="k")
    assert read_sealed(file, "kind", 1, key="k")[0] == {"fact": 3}
    with pytest.raises(InterpError, match="its key is 'k', not 'other'"):
        read_sealed(file, "kind", 1, key="other")
    (stored,) = MemoryFileSystem.store.values()
    data = bytearray(stored.getvalue())
    data[data.index(b"fact")] ^= 1
    put(file, "")
    MemoryFileSystem().pipe_file("/bucket/one/" + name, bytes(data))
    with pytest.raises(InterpError, match="damaged or changed"):
        read_sealed(file, "kind", 1)

    def broken(*_, **__):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(MemoryFileSystem, "get_file", broken)
    with pytest.raises(InterpError, match="RuntimeError: no credentials"):
        read_sealed(file, "kind", 1)


def test_a_place_is_a_path_or_a_url_that_something_reads(tmp_path, monkeypatch):
    assert folder_at(str(tmp_path), "asked") == tmp_path
    assert folder_at(f"file://{tmp_path}", "asked") == tmp_path
    assert folder_at("memory://a/b", "asked") == RemoteFile("memory://a/b")
    with pytest.raises(InterpError, match="asked: Protocol not known: nothing; install"):
        folder_at("nothing://a", "asked")
    assert store_root() == cache_dir() == Path(os.environ["INTERP_CACHE"])
    monkeypatch.setenv("INTERP_STORE", f"file://{tmp_path}/store")
    assert (store_root(), cache_dir()) == (tmp_path / "store", tmp_path / "cache")


def test_the_cache_folder_is_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", f"file://{tmp_path}/cache")
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("INTERP_CACHE", "memory://bucket")
    with pytest.raises(InterpError, match="INTERP_CACHE=memory://bucket: .*models and locks"):
        cache_dir()
