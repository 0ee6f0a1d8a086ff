"""`interp slices`: what it prints, writes and keeps is what the function returns."""

import json
import math
import re

import pytest
from typer.testing import CliRunner

import interp
from interp.cli.main import app
from interp.models.loading import wrap
from interp.probing.slices import slice_prompts
from tests.families import random_task, tiny


def test_slices(tmp_path, monkeypatch):
    model, task, out = wrap(tiny("llama"), name="tiny", check=False), random_task(), tmp_path / "s"
    monkeypatch.setattr("interp.cli.terminal.load", lambda name, dtype: model)
    monkeypatch.setattr("interp.cli.terminal.make_task", lambda *_: task)
    monkeypatch.setenv("COLUMNS", "200")
    arguments = "slices --layer 1 --draws 5 --cut 0.2 --keep 0 --json".split()
    result = CliRunner().invoke(app, [*arguments, str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = slice_prompts(model, task, layer=1, draws=5, cut=0.2)
    rows = found.to_dataframe().to_dict("records")
    for row, written in zip(rows, json.loads(out.read_text()), strict=True):
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        assert {name: written[name] for name in finite} == pytest.approx(finite)
    assert f"{len(rows)} slices of {len(task)} prompts" in result.output
    name = re.search(r"the task (slice-0-[0-9a-f]{16})", result.output).group(1)
    assert interp.load_task(name).pairs == tuple(task.pairs[i] for i in found.members(0))
