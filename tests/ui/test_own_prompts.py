"""Prompts of the user's own, on the setup page: typed, uploaded, marked, kept and loaded."""

import json
import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

import interp
from interp.cli.main import app as command_line
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.tasks.saved import saved_path
from interp.ui.setup.own_prompts import read_upload
from tests.pages import named, opened, wait

SETUP = "interp/ui/views/setup.py"
CSV = (
    "clean,corrupted,answers,wrong\n"
    "The capital of France is,The capital of Italy is, Paris, Rome\n"
    "The capital of Spain is,The capital of Japan is, Madrid, Tokyo\n"
)


@pytest.fixture
def page(smollm, monkeypatch) -> AppTest:
    """The page with the form, before any model is chosen; the default one is loaded already."""
    monkeypatch.setattr("interp.load_model", lambda name, dtype: smollm)
    return source(opened(SETUP), "Type a pair")


def source(at: AppTest, name: str) -> AppTest:
    named(at.button_group, "Where").set_value(name).run()
    assert not at.exception
    return at


def strips(at: AppTest) -> list[str]:
    """Every token strip as the tokens of its chips."""
    html = [block.proto.body for block in at.get("html")]
    return ["|".join(re.findall(r'title="token \d+"[^>]*>([^<]*)<', body)) for body in html]


def kept(at: AppTest) -> Task:
    return interp.load_task(at.query_params["task"], n=512)


def test_an_answer_of_several_tokens_is_measured_whole(page, smollm) -> None:
    named(page.text_area, "Clean").set_value("The capital of India is")
    named(page.text_area, "Corrupted").set_value("The capital of Italy is")
    named(page.text_input, "Answer").set_value(" New Delhi").run()
    assert any("log_prob_diff, in nats" in one.value for one in page.caption)
    named(page.button, "Start a new set").click().run()
    assert not page.exception
    assert not page.error
    line = next(code.value for code in page.code if "in Python" in code.value).splitlines()[1]
    space = {"interp": interp, "model": smollm}
    exec(line, space)  # noqa: S102
    expected = space["task"].check(smollm).clean.mean
    shown = next(one for one in page.metric if one.label.startswith("log_prob_diff, clean"))
    assert float(shown.value) == pytest.approx(expected, abs=5e-4)


@pytest.mark.long
def test_a_typed_pair_is_aligned_kept_and_shown_as_the_task(page) -> None:
    assert any("␣France|␣Italy" in strip for strip in strips(page))
    named(page.button, "Start a new set").click().run()
    assert not page.exception
    assert not page.error
    pair = kept(page).pairs[0]
    assert (pair.clean, pair.answers, pair.wrong) == (
        "The capital of France is", (" Paris",), (" Rome",)
    )  # fmt: skip
    assert page.metric[0].value == "1.000"  # the model says Paris
    assert kept(page).name in page.code[0].value
    assert "France" not in str(dict(page.query_params))
    page.text_area(key="own-Clean prompt").set_value("The capital of Spain is")
    page.text_input(key="own-Answer").set_value(" Madrid").run()
    named(page.button, "Add it to own-").click().run()
    assert [pair.answers[0] for pair in kept(page).pairs] == [" Paris", " Madrid"]
    named(page.button, "Remove pair 0").click().run()
    assert [pair.answers[0] for pair in kept(page).pairs] == [" Madrid"]


@pytest.mark.long
def test_a_pair_goes_in_the_chat_template_to_patching(page, smollm) -> None:
    pair = "What is the capital of France?", "What is the capital of Italy?"
    for label, text in zip(("Clean prompt", "Corrupted prompt"), pair, strict=True):
        page.text_area(key=f"own-{label}").set_value(text)
    page.text_input(key="own-Answer").set_value("The")
    page.text_input(key="own-Wrong answer").set_value("I").run()
    assert not any(
        "<|im_start|>" in strip.replace("&lt;", "<").replace("&gt;", ">") for strip in strips(page)
    )
    named(page.toggle, "Chat template").set_value(True).run()
    assert not page.error
    assert any("im_start" in strip for strip in strips(page))
    named(page.button, "Start a new set").click().run()
    assert not page.exception
    rows = interp.models.chat_prompts(smollm, list(pair)).rows
    encoded = kept(page).encode(smollm)
    assert (encoded.clean[0], encoded.corrupted[0]) == rows
    link = {field: page.query_params[field] for field in ("model", "task", "n")}
    at = opened(
        "interp/ui/views/patching.py", **link, by="position", site="resid_pre", unit="metric"
    )
    assert not at.error
    assert named(at.button, "Run")
    code = interp.load_task(link["task"]).source
    assert link["task"] in code


@pytest.mark.parametrize(
    ("label", "text", "words"),
    [
        ("Wrong answer", " Paris", "no token in both"),
        ("Name", "../up", "not a name"),
    ],
)
def test_what_does_not_fit_is_said(page, label, text, words) -> None:
    key = "own-name" if label == "Name" else f"own-{label}"
    page.text_input(key=key).set_value(text).run()
    if label == "Name":
        named(page.button, "Start a new set").click().run()
    assert words in page.error[0].value.replace("\\", "")
    page.text_input(key=key).set_value("own" if label == "Name" else " London").run()
    assert not page.error


def test_unequal_prompts_are_aligned_and_it_is_said_what_to_do(page) -> None:
    page.text_area(key="own-Corrupted prompt").set_value("The capital of Liechtenstein is").run()
    said = page.warning[0].value.replace("\\", "")
    assert "has 5 tokens, the corrupted prompt 8" in said
    assert "␣France** (1)" in said
    assert "of as many tokens" in said
    assert not [button for button in page.button if button.label.startswith("Start a new set")]
    strip = next(strip for strip in strips(page) if "Liech" in strip or "␣Lie" in strip)
    assert strip.endswith("␣is|␣is")  # the equal ends stand one above the other


@pytest.mark.long
def test_an_uploaded_file_becomes_the_task_and_its_positions_are_clicked(page) -> None:
    source(page, "Upload a file")
    page.get("file_uploader")[0].set_value(("My capitals.csv", CSV.encode(), "text/csv")).run()
    assert any("␣France|␣Italy" in strip for strip in strips(page))
    named(page.button, "Use these 2 pairs").click().run()
    assert not page.error
    assert kept(page).name.startswith("my-capitals-")
    assert len(kept(page)) == 2
    named(page.text_input, "Named position").set_value("country").run()
    named(page.button_group, "Token of country").set_value(3).run()
    assert not page.exception
    assert [dict(pair.positions) for pair in kept(page).pairs] == [
        {"country": (" France", 0)}, {"country": (" Spain", 0)},
    ]  # fmt: skip
    named(page.toggle, "In every pair").set_value(False).run()
    named(page.button_group, "Token of country").set_value(1).run()
    assert [pair.positions["country"][0] for pair in kept(page).pairs] == [" capital", " Spain"]
    named(page.text_input, "Named position").set_value("last").run()
    named(page.button_group, "Token of last").set_value(1).run()
    assert "reserved" in page.warning[0].value


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"clean,wrong\nx,y\n", "no answers"),
        ("a.csv", b"clean,answers,colour\nx,y,z\n", "colour"),
        ("a.csv", b"clean;answers\nx;y\n", "separated by"),
        ("a.csv", "clean,answers\nx,\u00e9\n".encode("utf-16"), "UTF-8"),
        ("a.jsonl", b'{"clean": "x"', "not JSON"),
        ("a.jsonl", b"", "no prompts"),
        ("a.txt", b"clean,answers\nx,y\n", "suffix .txt"),
        ("a.csv", b"x" * 1_000_001, "1000001 bytes"),
    ],
)
def test_a_bad_file_is_refused_with_what_to_do(name, content, words) -> None:
    with pytest.raises(InterpError) as error:
        read_upload(name, content)
    said = str(error.value)
    assert words in said
    assert "/tmp" not in said
    assert error.value.do


@pytest.mark.long
def test_another_visitor_finds_a_set_only_by_its_name(page, smollm) -> None:
    named(page.button, "Start a new set").click().run()
    name = kept(page).name
    other = opened(SETUP, model="smollm2-135m-instruct", task="ioi", n="4")
    assert name not in str([box.options for box in other.selectbox])
    wrong = opened(SETUP, model="smollm2-135m-instruct", task="own-" + "0" * 16)
    assert "not saved in this cache" in wrong.error[0].value
    link = {field: page.query_params[field] for field in ("model", "task", "n")}
    assert "France" in str(strips(opened(SETUP, **link)))


@pytest.mark.long
def test_the_command_line_and_a_notebook_give_the_map_of_the_app(page, tmp_path, monkeypatch):
    named(page.button, "Start a new set").click().run()
    name = kept(page).name
    link = {field: page.query_params[field] for field in ("model", "task", "n")}
    at = wait(opened("interp/ui/views/patching.py", **link, by="layer"), "Run", seconds=600)
    shown = at.dataframe[0].value.set_index("component")["effect"].to_dict()
    assert "seed None" not in " ".join(html.proto.body for html in at.get("html"))
    for task in (name, str(saved_path(name))):
        out = tmp_path / "map.json"
        arguments = ["patch", "--task", task, "--by", "layer", "--json", str(out)]
        result = CliRunner().invoke(command_line, arguments)
        assert result.exit_code == 0, result.output
        found = json.loads(out.read_text())
        values = {f"L{i}.z": value for i, value in enumerate(found["values"])}
        assert shown == {label: pytest.approx(values[label], abs=1e-9) for label in shown}
    model = interp.load_model("smollm2-135m-instruct", dtype="float32")
    task = interp.load_task(name, model)
    scores = interp.activation_patching(model, task, by=("layer",), cache=False)
    assert shown == {label: pytest.approx(scores.estimate(label).mean, abs=1e-5) for label in shown}
    assert Path(saved_path(name)).is_file()
