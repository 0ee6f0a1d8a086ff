"""The Python that a page shows and its notebook give the page's number in an empty cache."""

import json

import pytest

import interp
from interp.models.toys.circuits import build_toy
from interp.ui.shared import export
from tests.pages import named, opened, wait

PATCHING = "interp/ui/views/patching.py"
PAIRS = tuple(
    interp.PromptPair(clean=c, corrupted=d, answers=(a,), wrong=(w,))
    for c, d, a, w in build_toy("toy-induction").pairs[:6]
)


def run_cells(text: str) -> dict:
    """What a notebook's cells leave, run one after the other."""
    space: dict = {}
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "code":
            exec(compile(cell["source"], "cell", "exec"), space)  # noqa: S102
    return space


def test_a_notebook_is_valid_and_runs() -> None:
    text = export.notebook("a = 2\n\n\nb = a + 1\nc = '«'\n", "A title")
    pytest.importorskip("nbformat").validate(json.loads(text))
    kinds = [cell["cell_type"] for cell in json.loads(text)["cells"]]
    assert kinds == ["markdown", "code", "code"]
    assert run_cells(text)["b"] == 3


def test_the_number_of_a_page_comes_out_of_its_notebook(tmp_path, monkeypatch, capsys) -> None:
    """A set of the user's own: its prompts travel in the notebook."""
    task = interp.tasks.save_task(interp.Task(name="mine", pairs=PAIRS))
    at = wait(opened(PATCHING, model="toy-induction", task=task.name, n="5"), "Run", seconds=100)
    named(at.number_input, "Layer").set_value(1).run()
    named(at.number_input, "Head").set_value(2).run()
    effect = at.dataframe[0].value.set_index("component")["effect"]["L1H2"]
    text = export.notebook(at.code[0].value, "A number")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "empty"))
    space = run_cells(text)
    assert len(space["task"]) == 5
    assert space["scores"].estimate("L1H2").mean == pytest.approx(effect, abs=1e-6)
    assert f"{effect:.3f}" in capsys.readouterr().out
