"""`interp look`, `interp scan` and `interp corrupt` print what the functions return."""

import json

import pytest
from typer.testing import CliRunner

import interp
from interp.cli.main import app
from interp.core.errors import InterpError
from interp.tasks.corruptions import corrupt

PROMPT = "The capital of France is"


@pytest.fixture
def run(smollm, monkeypatch):
    """A command's output, on the model that is already loaded."""
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype="float32": smollm)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        found = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    return call


def test_look_says_what_follows_and_who_writes_it(run, smollm, tmp_path):
    said = run("look", PROMPT, "--top", "3", "--json", str(tmp_path / "look.json"))
    seen = interp.look(smollm, PROMPT)
    kept = json.loads((tmp_path / "look.json").read_text())
    assert "continues these 5 tokens with ␣Paris" in said
    assert seen.attribution().top(1)[0].label in said
    assert str(seen.neurons(1)[0].component) in said
    assert "add up to" in said
    assert kept["next_tokens"][0]["text"] == " Paris"
    assert kept["difference"]["logits"] == pytest.approx(seen.attribution().logit_difference)


def test_look_explains_the_token_asked_for(run):
    assert "␣Rome - ␣Paris is -" in run("look", PROMPT, "--answer", " Rome", "--wrong", " Paris")


@pytest.mark.long
def test_scan_ranks_what_is_confirmed(run, smollm, tmp_path):
    foil = "The capital of Italy is"
    said = run(
        "scan",
        PROMPT,
        "--foil",
        foil,
        "--top",
        "3",
        "--draws",
        "4",
        "--json",
        str(tmp_path / "s.json"),
    )
    kept = json.loads((tmp_path / "s.json").read_text())
    found = interp.scan(smollm, PROMPT, foil, k=3, draws=4)
    assert "The foil changes ␣France -> ␣Italy." in said
    assert [one["component"] for one in kept["findings"]] == [str(f.component) for f in found.found]
    assert all(one["component"] in said for one in kept["findings"])
    assert "n = 1" in said
    assert "of 4 heads nearby" in said


def test_bad_input_is_one_message(run):
    with pytest.raises(InterpError, match="as many tokens"):
        run("scan", PROMPT, "--foil", "The capital of the Ivory Coast is now")
    with pytest.raises(InterpError, match="answer ' Paris Rome'"):
        run("look", PROMPT, "--answer", " Paris Rome", "--wrong", " Rome")


def test_corrupt_prints_both_prompts_and_where_they_differ(run, smollm, tmp_path):
    given = ("--kind", "entity", "--target", "France", "--words", "Liechtenstein|Italy")
    path = tmp_path / "made.json"
    out = run("corrupt", PROMPT, *given, "--json", str(path))
    made = corrupt(smollm, PROMPT, "entity", target="France", words=["Liechtenstein", "Italy"])
    told = json.loads(path.read_text())
    assert told == {
        "clean": PROMPT,
        "corrupted": "The capital of Italy is",
        "differ": list(made.differ),
    }
    assert "1 of 5 tokens differ" in out
    assert made.corrupted in out
