"""The list of kept results: what it says, notes, and what deleting may touch."""

from pathlib import Path

import pytest

import interp
from interp.circuits.discovery.find import Finder
from interp.circuits.files.saved import save_circuit
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.core.records import write_sealed
from interp.results.kept import delete_result, find_result, kept_results, note_result
from interp.studies.steps import Steps


@pytest.fixture
def sweep(toy) -> str:
    """The name of a kept sweep."""
    interp.activation_patching(toy, interp.load_task("toy-induction", toy, n=4))
    return kept_results()[0].name


@pytest.fixture
def study() -> Path:
    """The folder of a study with one step, and a file that is not interp's."""
    folder = cache_dir() / "studies" / "reuse-abc"
    about = {"model": "m", "model_hash": "h", "settings": {"n": 4, "draws": 2}}
    write_sealed(folder / "study.json", "study reuse", 1, about)
    Steps(directory=folder, key=["k"])("overlap", lambda: {"n": 1})
    (folder / "mine.json").write_text("{}")
    return folder


def test_each_kind_is_listed_with_where_it_comes_from(toy, sweep, study) -> None:
    task = interp.load_task("toy-induction", toy, n=4)
    finder = Finder(method="EAP")
    made = interp.find_circuit(toy, task, finder).circuit(4, name="mine")
    save_circuit(made)
    found = {one.kind: one for one in kept_results()}
    assert set(found) == {"sweep", "edge scores", "saved circuit", "study of reuse"}
    patched = found["sweep"]
    assert (patched.model, patched.model_hash) == ("toy-induction", toy.hash)
    assert (patched.task, patched.dtype) == ("toy-induction", "float32")
    assert patched.about == "activation patching, z by layer × head, denoise"
    assert "interp.activation_patching(model, task, site='z'" in patched.call
    assert {one.n for one in found.values()} == {4, None}
    assert found["saved circuit"].n is None
    path = cache_dir() / f"{patched.name}.safetensors"
    assert (patched.size, patched.made) == (path.stat().st_size, path.stat().st_mtime)
    assert found["edge scores"].about == "EAP"
    assert found["saved circuit"].about == "mine"
    assert found["study of reuse"].about == "n 4, draws 2"
    assert found["study of reuse"].name == "studies/reuse-abc"


def test_damaged_and_foreign_files_are_left_out(sweep) -> None:
    folder = cache_dir() / "results"
    (folder / "broken.safetensors").write_bytes(b"no")
    (folder / ".half.safetensors").write_bytes(b"no")
    write_sealed(folder / "other.safetensors", "CompactLens", 1, {})
    assert [one.name for one in kept_results()] == [sweep]


def test_a_note_stays_until_it_is_emptied(sweep) -> None:
    note_result(sweep, "the good one: ü")
    assert find_result(sweep).note == "the good one: ü"
    note_result(sweep, " ")
    assert find_result(sweep).note == ""
    with pytest.raises(InterpError, match="2001 characters"):
        note_result(sweep, "x" * 2001)
    with pytest.raises(InterpError, match="not in the cache folder"):
        note_result("results/none", "lost")


def test_deleting_removes_the_result_and_its_note(sweep) -> None:
    note_result(sweep, "old")
    delete_result(sweep)
    assert kept_results() == []
    assert not list((cache_dir() / "notes").iterdir())
    with pytest.raises(InterpError, match="it was deleted"):
        delete_result(sweep)


def test_only_listed_results_can_be_deleted(sweep, study, tmp_path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes((cache_dir() / f"{sweep}.safetensors").read_bytes())
    for name in ("../other", str(other.with_suffix("")), "studies", "", ".", f"{sweep}/../../x"):
        with pytest.raises(InterpError):
            delete_result(name)
    assert other.exists()
    delete_result("studies/reuse-abc")
    assert [path.name for path in study.iterdir()] == ["mine.json"]
    assert [one.name for one in kept_results()] == [sweep]


def test_a_study_that_is_being_computed_is_not_deleted(study) -> None:
    steps = Steps(directory=study, key=["k"])

    def compute() -> dict[str, int]:
        with pytest.raises(InterpError, match="computing a step"):
            delete_result("studies/reuse-abc")
        return {"n": 2}

    steps("other", compute)
    assert (study / "overlap.json").exists()
