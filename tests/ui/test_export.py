"""The Python that a page shows and its notebook give the page's number in an empty cache."""

import json

import pytest

import interp
from interp.models.toys.circuits import build_toy
from interp.ui.shared import export
from interp.ui.shared.prompts import EXAMPLE, AskedPrompt, keep
from tests.pages import charts, named, numbers, opened, table_with, wait

PATCHING = "interp/ui/views/patching.py"
ROWS = build_toy("toy-induction").pairs[:6]
PAIRS = tuple(
    interp.PromptPair(clean=c, corrupted=d, answers=(a,), wrong=(w,)) for c, d, a, w in ROWS
)
LONG = tuple(
    interp.PromptPair(clean=c, corrupted=d, answers=(f" {a} {w}",), wrong=(f" {w} {a}",))
    for c, d, a, w in ROWS
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


@pytest.mark.parametrize(
    ("pairs", "metric"),
    [(PAIRS, "logit_diff"), pytest.param(LONG, "log_prob_diff", marks=pytest.mark.long)],
)
def test_the_number_of_a_page_comes_out_of_its_notebook(
    tmp_path, monkeypatch, capsys, pairs, metric
) -> None:
    """A set of the user's own: its prompts travel in the notebook, answers of two tokens too."""
    task = interp.tasks.save_task(interp.Task(name="mine", pairs=pairs))
    at = wait(opened(PATCHING, model="toy-induction", task=task.name, n="5"), "Run", seconds=100)
    named(at.number_input, "Layer").set_value(1).run()
    named(at.number_input, "Head").set_value(2).run()
    effect = at.dataframe[0].value.set_index("component")["effect"]["L1H2"]
    text = export.notebook(at.code[0].value, "A number")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "empty"))
    space = run_cells(text)
    assert len(space["task"]) == 5
    assert space["task"].metric.name == metric
    assert space["scores"].estimate("L1H2").mean == pytest.approx(effect, abs=1e-6)
    assert f"{effect:.3f}" in capsys.readouterr().out


ANSWERS = {"answer": " San Salvador", "wrong": " San Jose"}


@pytest.mark.long
@pytest.mark.parametrize("page", ["look", "heads", "neurons"])
def test_the_python_of_a_longer_answer_gives_the_page_s_numbers(
    loaded, tmp_path, monkeypatch, page
) -> None:
    asked = AskedPrompt(EXAMPLE, **ANSWERS)
    keep(asked)
    link = {"model": loaded.name, "asked": asked.hash, "layer": "29", "reading": "layers"}
    at = opened(f"interp/ui/views/{page}.py", **link)
    assert not at.error
    (code,) = (block.value for block in at.code if "interp.look" in block.value)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("interp.load_model", lambda name, dtype: loaded)
    lines, space = code.splitlines(), {}
    exec("\n".join(lines[:-1]), space)  # noqa: S102
    if page == "neurons":
        shown = table_with(at, "adds, logits")
        ranking = next(line for line in lines if line.startswith("seen.neurons"))
        given = eval(ranking, space)  # noqa: S307
        assert shown["neuron"].tolist() == [str(one.component) for one in given]
        assert shown["adds, logits"].tolist() == pytest.approx([one.value for one in given])
        return
    given = eval(lines[-1], space)  # noqa: S307
    if page == "heads":
        assert numbers(charts(at)[0]["data"][0]["z"]) == pytest.approx(given, abs=1e-6)
        return
    shown = table_with(at, "adds, logits")
    parts = given["parts"][: len(shown)]
    assert given["difference"]["words"] == "␣San␣Salvador - ␣San␣Jose"
    assert shown["part"].tolist() == [part["part"] for part in parts]
    assert shown["adds, logits"].tolist() == pytest.approx([part["logits"] for part in parts])
