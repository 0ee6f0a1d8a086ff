"""`interp probes`: what it prints and writes is what the function returns."""

import json

import pytest
from typer.testing import CliRunner

from interp.cli.main import app
from interp.core.errors import InterpError
from interp.probing.probe_suites import probe_suite
from interp.probing.sentence_tasks import probe_sentences
from tests.words import word_model


def test_probes(tmp_path, monkeypatch):
    models, out = {str(seed): word_model(seed=seed) for seed in (0, 1)}, tmp_path / "probes.json"
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype: models[name])
    monkeypatch.setenv("COLUMNS", "200")
    arguments = "probes 0 --against 1 --tasks tense --n 70 --layers 0,2 --shuffles 2".split()
    result = CliRunner().invoke(app, [*arguments, "--json", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    task = probe_sentences("tense", n=70)
    found = probe_suite(models["0"], against=models["1"], tasks=task, layers=[0, 2], shuffles=2)
    table = found.to_dataframe()
    written = json.loads(out.read_text())
    for row, kept in zip(table.to_dict("records"), written, strict=True):
        assert kept == pytest.approx(row)
    assert "of 1 tasks a layer reads more than the averaged embeddings" in result.output
    assert "Against words-1-None" in result.output
    assert f"{table['accuracy'][1]:.3f}" in result.output


def test_unknown_tasks_are_refused(monkeypatch):
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype: None)
    with pytest.raises(InterpError, match="tree_depth"):
        CliRunner().invoke(app, ["probes", "--tasks", "syntax"], catch_exceptions=False)
