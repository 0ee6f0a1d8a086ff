"""`interp vectors`: what it prints and writes is what the function returns."""

import json

import pytest
from typer.testing import CliRunner

from interp.cli.main import app
from interp.core.errors import InterpError
from interp.steering.vector_transfer import transfer_matrix
from tests.words import OTHER, TASK, word_model


def test_vectors(tmp_path, monkeypatch):
    model, out = word_model(), tmp_path / "vectors.json"
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype: model)
    monkeypatch.setattr("interp.tasks.word_pairs.word_tasks", lambda names, model: (TASK, OTHER))
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["vectors", "words", "--from", "examples,bare", "--examples", "3", "--draws", "2"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "Vectors of 2 tasks on words-0-None" in result.output
    for said in ("permuted answers", "other tasks", "on tiny", "2 tasks", "instruction"):
        assert said in result.output
    expected = transfer_matrix(model, (TASK, OTHER), ("examples", "bare"), examples=3, draws=2)
    assert json.loads(out.read_text()) == json.loads(json.dumps(expected.to_json()))


def test_unknown_tasks_are_refused(monkeypatch):
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype: None)
    with pytest.raises(InterpError, match="capital"):
        CliRunner().invoke(app, ["vectors", "--tasks", "capitals"], catch_exceptions=False)
