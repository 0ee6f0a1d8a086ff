"""The README's example runs on the real model and prints what the README shows."""

import re

import pytest

from tests import ROOT

README = (ROOT / "README.md").read_text()
NUMBER = r"[-+]?\d+\.\d+"


@pytest.mark.slow
def test_examples(smollm, capsys, monkeypatch):
    examples = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.S)
    assert len(examples) == 2
    assert len([line for line in examples[0][0].splitlines() if line.strip()]) <= 12
    monkeypatch.setattr("interp.models.loading.load_model", lambda name: smollm)
    names: dict[str, object] = {}
    for code, shown in examples:
        exec(compile(code, "README.md", "exec"), names)
        printed = capsys.readouterr().out
        assert re.sub(NUMBER, "#", printed) == re.sub(NUMBER, "#", shown)
        pairs = zip(re.findall(NUMBER, printed), re.findall(NUMBER, shown), strict=True)
        for found, expected in pairs:
            assert float(found) == pytest.approx(float(expected), abs=0.02)


def test_every_command_of_the_readme_exists():
    from typer.testing import CliRunner

    from interp.cli.main import app

    for line in re.findall(r"^    interp (.*?)(?:#.*)?$", README, re.M):
        words = line.split()
        command = words[:2] if words[0] in ("bench", "circuit", "study") else words[:1]
        helped = CliRunner().invoke(app, [*command, "--help"])
        assert helped.exit_code == 0
        for option in (word for word in words if word.startswith("--")):
            assert option in helped.output, f"interp {line}"


def test_pictures_exist():
    for path in re.findall(r"\]\((docs/.*?)\)", README):
        assert (ROOT / path).exists()
