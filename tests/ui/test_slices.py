"""Slices on Setup: the function's numbers, what is chosen of them, and the task that is kept."""

import pytest

import interp
from interp.tasks.saved import load_saved
from interp.ui.setup import slices_panel
from tests.pages import charts, downloads, named, numbers, opened, table_with

SETUP = {"model": "toy-induction", "task": "toy-induction", "n": "24"}
PAGE = "interp/ui/views/setup.py"


@pytest.fixture
def found():
    """What the page finds without a choice."""
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=24)
    return interp.probing.slice_prompts(model, task)


def members(at) -> list[int]:
    """The pairs of the slice that is read."""
    tables = (one.value for one in at.dataframe)
    return next(one["pair"].tolist() for one in tables if {"pair", "logit_diff"} <= {*one})


def test_slices_are_the_function_s_and_one_is_read(found) -> None:
    at = opened(PAGE, **SETUP)
    assert not [one for one in at.dataframe if "by state alone" in one.value]
    named(at.button, "Find slices").click().run()
    assert not at.exception
    assert not at.error
    shown, expected = table_with(at, "by state alone"), found.to_dataframe()
    assert shown["slice"].tolist() == expected["slice"].tolist()
    for column, name in (("p", "p"), ("by state alone", "alone"), ("logit_diff", "score")):
        assert shown[column].tolist() == pytest.approx(expected[name].tolist(), abs=1e-6)
    assert members(at) == found.members(0)
    drawn = numbers(charts(at)[-1]["data"][0]["x"])
    assert sorted(drawn) == pytest.approx(sorted(expected["score"]), abs=1e-6)
    assert {"CSV", "JSON", "Notebook"} <= downloads(at)
    code = next(one.value for one in at.code if "slice_prompts" in one.value)
    exec(code, again := {})
    assert again["found"].of.tolist() == found.of.tolist()


def test_how_slices_are_made_is_in_the_link(found) -> None:
    at = opened(PAGE, **SETUP, slice="1", layer="0", weigh="0.75", cut="0.1")
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=24)
    other = interp.probing.slice_prompts(model, task, layer=0, weight=0.75, cut=0.1)
    assert len(other.p) != len(found.p)
    assert table_with(at, "by state alone")["n"].tolist() == other.to_dataframe()["n"].tolist()
    assert members(at) == other.members(1)
    at = opened(PAGE, **SETUP, slice="99", cut="0.26")
    said = " ".join(one.value for one in at.warning).replace("\\", "")
    assert "slice=99" in said
    assert "cut=0.26" in said


def test_a_slice_without_what_is_left_out_is_kept_as_a_task(found) -> None:
    at = opened(PAGE, **SETUP, slice="0")
    first, *rest = found.members(0)
    named(at.multiselect, "Leave out").set_value([first]).run()
    named(at.text_input, "Name of the task").set_value("mine").run()
    named(at.button, "Keep as a task").click().run()
    assert not at.exception
    name = at.session_state["selection"].task
    assert name.startswith("mine-")
    kept = load_saved(name)
    task = interp.load_task("toy-induction", interp.load_model("toy-induction"), n=24)
    assert [p.clean for p in kept.pairs] == [task.pairs[i].clean for i in rest]
    assert at.session_state["selection"].n == len(rest)


def test_too_few_prompts_are_said_and_the_page_works_on() -> None:
    at = opened(PAGE, **{**SETUP, "n": "3"}, slice="0")
    assert "n from 4" in at.error[0].value
    assert not at.exception
    assert [one for one in at.subheader if one.value == "Model"]


def test_the_form_starts_with_what_the_function_does() -> None:
    """The page's own values are the function's defaults."""
    assert (slices_panel.CUT, slices_panel.WEIGHT, slices_panel.DRAWS) == ("0.25", "0.5", 200)
