"""`interp heads atlas` and `interp strongest`."""

import json

import pytest
from typer.testing import CliRunner

from interp.cli.main import app
from interp.core.errors import InterpError

TEXTS = "<bos> a b c d a b c d\n<bos> h g f h g f e\n"


@pytest.fixture(autouse=True)
def loaded(toy, monkeypatch):
    """The toy, whatever name is given."""
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype: toy)
    monkeypatch.setenv("COLUMNS", "160")


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_atlas(tmp_path):
    texts, out = tmp_path / "texts.txt", tmp_path / "atlas.json"
    texts.write_text(TEXTS)
    said = run("heads", "atlas", "toy-induction", "--texts", texts, "--json", out)
    assert "1 previous token; 1 induction" in said
    assert "repeated (n=24)" in said
    assert "text (n=2)" in said
    written = json.loads(out.read_text())
    assert written["named"]["repeated"]["induction"] == ["L1H2"]
    assert len(written["heads"]) == 8
    assert {"value", "low", "high", "chance", "excess", "n"} <= {*written["strongest"][0]}


def test_strongest(tmp_path):
    texts, out = tmp_path / "texts.jsonl", tmp_path / "out.json"
    lines = [json.dumps({"text": text}) for text in TEXTS.splitlines()]
    texts.write_text("\n".join(lines))
    arguments = ("--texts", texts, "--top", 2, "--json", out)
    said = run("strongest", "L1H2", *arguments)
    assert "over 17 tokens of 2 texts" in said
    first, second = json.loads(out.read_text())
    assert first["value"] >= second["value"]
    assert first["attention"] > 0.9


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InterpError, match="no such file"):
        run("strongest", "L1H2", "--texts", tmp_path / "none")
