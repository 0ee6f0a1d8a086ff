"""`interp weights`."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from interp.cli.main import app
from interp.core.errors import InterpError
from interp.deltas.compression import compress
from interp.models.weight_delta import load_delta
from interp.studies.report.report import Report


@pytest.fixture(autouse=True)
def loaded(toy, monkeypatch):
    """The toy, whatever name is given."""
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype="float32": toy)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def saved(toy, tmp_path):
    """Two saved changes of the toy."""
    return [
        str(compress(toy, "random", share=share, seed=seed).save(tmp_path / f"delta{seed}"))
        for seed, share in enumerate((0.3, 0.4))
    ]


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_merge_says_the_overlap_and_saves(toy, saved, tmp_path):
    out, told = tmp_path / "merged.safetensors", tmp_path / "merge.json"
    said = run("weights", "merge", *saved, "--rule", "ram", "--out", out, "--json", told)
    assert "ram of 2 changes" in said
    assert "Saved as" in said
    written = json.loads(told.read_text())
    share = written["shares"]["random pruning of 0.3"]
    assert share["shared"] + share["unique"] == pytest.approx(1)
    assert load_delta(out, toy).names
    with pytest.raises(InterpError, match="merging rule"):
        run("weights", "merge", *saved, "--rule", "median")


def test_survive_and_compress_tell_before_and_after(saved, tmp_path):
    told = tmp_path / "survival.json"
    options = ("--task", "toy-induction", "--n", 8, "--heads", "L1H2", "--draws", 3)
    said = run("weights", "survive", saved[0], *options, "--json", told)
    written = json.loads(told.read_text())
    assert f"{written['after']['mean'] / written['before']['mean']:.0%} of the metric" in said
    assert written["heads_before"]["effect"]["mean"] == pytest.approx(1, abs=0.05)
    assert "random pruning of 0.3" in said
    again = run("weights", "compress", "random", "--share", 0.3, *options)
    assert again == said  # the same seed makes the same change


def test_singular_lists_directions(tmp_path):
    told = tmp_path / "singular.json"
    said = run(
        "weights", "singular", "L1H2", "--task", "toy-induction", "--n", 8, "--top", 3,
        "--draws", 2, "--json", told,
    )  # fmt: skip
    assert "L1H2 on toy-induction: the whole part carries" in said
    assert len(json.loads(told.read_text())) == 3


def test_report_asks_for_the_study_and_writes_its_report(monkeypatch, tmp_path):
    asked, place = [], "interp.studies.training."
    study = SimpleNamespace(directory=tmp_path, seconds={"where": 60.0})
    monkeypatch.setattr(
        f"{place}study.study_training", lambda model, **given: asked.append(given) or study
    )
    monkeypatch.setattr(f"{place}report.report.write_up", lambda study: Report(text="# Words\n"))
    said = run("weights", "report", "--n", 12, "--draws", 3)
    assert "from 1.0 minutes of computing" in said
    assert (tmp_path / "report.md").read_text() == "# Words\n"
    assert (asked[0]["settings"].n, asked[0]["settings"].draws) == (12, 3)


@pytest.mark.slow
@pytest.mark.long
def test_on_the_default_model(smollm, monkeypatch, tmp_path):
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype="float32": smollm)
    told = tmp_path / "out.json"
    said = run("weights", "recover", "refusal-smollm2", "--n", 2, "--json", told)
    assert "it leaves 0 weights with other bits" in said
    rows = json.loads(told.read_text())
    assert rows[0]["factor"] == 1
    assert all(row["weights_apart"] > 0 for row in rows[1:])
    left = [row["left"]["mean"] for row in rows]
    assert 0 == left[0] <= left[1] < left[2] < left[4]
    said = run(
        "weights", "survive", "refusal-smollm2", "--task", "ioi", "--n", 8, "--heads",
        "L23H3,L20H0", "--draws", 2,
    )  # fmt: skip
    assert "of the metric is left" in said
    assert "Jensen-Shannon" in said
