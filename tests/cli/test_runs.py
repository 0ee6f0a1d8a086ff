"""`interp runs` says what the package's own list and comparison say."""

import json
from dataclasses import asdict

import pytest

import interp
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.core.records import write_sealed
from interp.results.comparison import compare_scores
from interp.results.kept import find_result, kept_results
from interp.results.scores import Scores
from tests.cli.test_main import run


@pytest.fixture(autouse=True)
def sweeps(toy, tmp_path, monkeypatch) -> list[str]:
    """Two kept sweeps in a cache of their own, the older one first."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    task, names = interp.load_task("toy-induction", toy, n=8), []
    for direction in ("denoise", "noise"):
        interp.activation_patching(toy, task, direction=direction)
        names += {one.name for one in kept_results()} - set(names)
    return names


def short(name: str) -> str:
    return name.rpartition("/")[2][:8]


def test_the_list_is_the_packages(sweeps, tmp_path):
    folder = cache_dir() / "studies" / "reuse-abc"
    about = {"model": "m", "model_hash": "h", "settings": {"n": 4, "draws": 2}}
    write_sealed(folder / "study.json", "study reuse", 1, about)
    out = run("runs", "--json", tmp_path / "kept.json").splitlines()
    assert out[0] == "3 kept results."
    assert out[1].split() == ["name", "when", "kind", "model", "task", "what", "n", "note", "size"]
    for line, one in zip(out[2:], kept_results(), strict=True):
        assert all(word in line for word in (one.name, *one.row().values()))
    assert json.loads((tmp_path / "kept.json").read_text()) == [asdict(x) for x in kept_results()]
    assert len(run("runs", "--words", "DENOISE sweep").splitlines()) == 3
    assert run("runs", "--words", "nothing").strip() == "No such result is kept."


def test_a_result_is_shown_with_its_python_and_its_strongest(sweeps, tmp_path):
    out = run("runs", "show", short(sweeps[0]), "--top", 2, "--json", tmp_path / "one.json")
    assert f"name   {sweeps[0]}" in " ".join(out.split("\n")).replace("     ", "   ")
    assert find_result(sweeps[0]).call in out
    scores = Scores.load(cache_dir() / sweeps[0])
    told = json.loads((tmp_path / "one.json").read_text())
    assert told["values"] == scores.values.tolist()
    assert [row["component"] for row in told["top"]] == [one.label for one in scores.top(2)]


def test_a_result_is_noted_and_deleted_by_how_its_name_begins(sweeps, monkeypatch):
    run("runs", "note", short(sweeps[0]), "the good one")
    assert find_result(sweeps[0]).note == "the good one"
    monkeypatch.setattr("typer.confirm", lambda text: False)
    run("runs", "delete", short(sweeps[0]))
    assert len(kept_results()) == 2
    assert "Deleted" in run("runs", "delete", sweeps[0], "--yes")
    assert [one.name for one in kept_results()] == sweeps[1:]


def test_two_sweeps_are_compared_as_the_package_compares_them(sweeps, tmp_path):
    out = run("runs", "compare", *map(short, sweeps), "--top", 3, "--json", tmp_path / "two.json")
    found = compare_scores(*(Scores.load(cache_dir() / name) for name in sweeps))
    rows = found.to_dataframe().to_dict("records")
    assert found.in_words() in out.splitlines()[0]
    assert [line.split()[0] for line in out.splitlines()[2:]] == [x["component"] for x in rows[:3]]
    assert json.loads((tmp_path / "two.json").read_text()) == rows


def test_a_name_that_is_not_there_or_not_one_is_refused(sweeps):
    for words, found in (
        (("show", "nothing"), "not in the cache folder"),
        (("show", ""), "several begin so"),
        (("compare", "studies/x", sweeps[0]), "not in the cache folder"),
    ):
        with pytest.raises(InterpError, match=found):
            run("runs", *words)
