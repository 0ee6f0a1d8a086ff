"""The notebooks run as they are, on small models, and were kept with what they gave."""

import json

import matplotlib as mpl
import pytest

from tests import ROOT

FOLDER = ROOT / "experiments" / "notebooks"
SMALL = {
    "from-transformerlens": 'MODEL, HEAD, NEURON = "toy-induction", (1, 2), (0, 3)\n'
    'CLEAN, OTHER = "<bos> b h f g d i c a b", "<bos> g h f b d i c a b"\n'
    'RIGHT, WRONG = "h", "d"',
    "circuits": 'MODEL, TASK, N, EDGES = "toy-induction", "toy-induction", 16, 12',
    "refusals": 'MODEL, N, MOST = "refusal-tiny", 6, 100',
    "verification": 'MODEL, BASE, N = "countdown-tiny", "countdown-tiny", 72',
    "weights": 'MODEL, TASK, N = "toy-induction", "toy-induction", 16\n'
    'HEADS, CHANGES = ["L1H2"], ["random", "magnitude"]',
}


def cells(name: str) -> list[dict]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]


def test_every_notebook_is_tried():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_it_runs_on_a_small_model(name, capsys):
    mpl.use("agg")
    space: dict = {}
    for cell in cells(name):
        if cell["cell_type"] == "code":
            given = "parameters" in cell["metadata"].get("tags", ())
            lines = [line for line in cell["source"] if not line.startswith("%")]
            source = SMALL[name] if given else "".join(lines)
            exec(compile(source, f"{name}.ipynb", "exec"), space)  # noqa: S102
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", SMALL)
def test_it_was_kept_whole_and_in_order(name):
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {out["output_type"] for cell in code for out in cell["outputs"]}
    assert "error" not in kinds
    assert sum(bool(cell["outputs"]) for cell in code) >= len(code) / 2
    lines = [line for cell in code for line in cell["source"]]
    asked = sum(line.startswith(("interval_lines(", "head_map(")) for line in lines)
    outputs = [out.get("data", {}) for cell in code for out in cell["outputs"]]
    assert sum("image/png" in data for data in outputs) == asked
