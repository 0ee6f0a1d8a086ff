"""`interp lens` and `interp fit-lens`: what they print and write is what the functions return."""

import json

import pytest
import torch
from typer.testing import CliRunner

from interp.cli.main import app
from interp.core.errors import InterpError
from interp.probing import lens_files
from interp.probing.jacobian_lens import fit_jacobian_lens
from interp.probing.lens_files import CompactLens, load_public_lens
from interp.probing.lens_maps import LensMaps
from interp.probing.lens_readings import read_lens
from interp.probing.tuned_lens import fit_tuned_lens
from tests.words import WORDS, word_model

TEXTS = [" ".join(WORDS[i : i + 10]) for i in range(12)]


@pytest.fixture
def words(monkeypatch, tmp_path):
    model = word_model()
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype: model)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return model


def run(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_fit_and_read(words, tmp_path):
    out = tmp_path / "lens.safetensors"
    shown = run("fit-lens", out, "--texts", tmp_path / "texts.txt", "--skip", 3)
    assert "LensMaps(jacobian of words-0-None, layers 0, 1, n=12 texts)" in shown
    assert "halves disagree" in shown
    maps, expected = LensMaps.load(out), fit_jacobian_lens(words, TEXTS, skip=3)
    assert torch.equal(maps.matrices, expected.matrices)
    json_file = tmp_path / "read.json"
    shown = run("lens", "waa wab", "--lens", out, "--words", " waa, wac", "--json", json_file)
    for said in ("identity", "shuffled layers", "half 1", "Probability of ␣waa", "␣wac"):
        assert said in shown
    read = read_lens(words, "waa wab", maps, "last", words=[" waa", " wac"])
    rows = json.loads(json_file.read_text())
    table = read.words_to_dataframe()
    assert [row["probability"] for row in rows] == pytest.approx([*table["probability"]])


def test_public_and_tuned(words, tmp_path):
    texts, public = tmp_path / "texts.txt", tmp_path / "x_jacobian_lens.pt"
    run("fit-lens", public, "--texts", texts, "--skip", 3, "--layers", "1")
    assert load_public_lens(public, words).layers == (1,)
    assert "layers 1, n=12 texts" in run("lens", "waa wab", "--lens", public)
    tuned = tmp_path / "tuned.safetensors"
    run("fit-lens", tuned, "--kind", "tuned", "--texts", texts, "--skip", 1, "--steps", 5)
    expected = fit_tuned_lens(words, TEXTS, steps=5, skip=1)
    assert torch.equal(LensMaps.load(tuned).matrices, expected.matrices)


def test_what_ships_is_the_default(words, tmp_path, monkeypatch):
    monkeypatch.setattr(lens_files, "SHIPPED", tmp_path)
    maps = fit_jacobian_lens(words, TEXTS, skip=3)
    CompactLens.of(maps).save(tmp_path / "lens-words" / "lens")
    assert "jacobian of words-0-None" in run("lens", "waa wab")


def test_bad_input_is_refused(words, tmp_path):
    with pytest.raises(InterpError, match="a lens for words-0-None"):
        run("lens", "waa wab")
    with pytest.raises(InterpError, match="kind of lens"):
        run("fit-lens", tmp_path / "x", "--kind", "logit")
    with pytest.raises(InterpError, match="holds Jacobian lenses"):
        run("fit-lens", tmp_path / "x.pt", "--kind", "tuned")
    with pytest.raises(InterpError, match="no such file"):
        run("lens", "waa wab", "--lens", tmp_path / "none.safetensors")
