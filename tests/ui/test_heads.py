"""The page Heads: every measure of every head, on one prompt and on a set, and one head."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import interp
from interp.heads.weights import head_tokens
from interp.overview.prompt_set import DIRECT, head_samples
from interp.plots.heatmaps import pattern_thumbnails
from interp.plots.style import visible
from interp.ui.prompts.head_maps import CHOSEN, MEASURES
from interp.ui.prompts.head_weights import pairs
from interp.ui.shared.prompts import EXAMPLE, AskedPrompt, keep
from tests.pages import asked_on, charts, downloads, named, numbers, opened, table_with, wait

HEADS = "interp/ui/views/heads.py"
TWICE = "The cat saw the dog and the cat"
LONG = " ".join(["one two three"] * 40)


def looked_at(text: str = EXAMPLE, foil: str = "") -> AppTest:
    return asked_on(HEADS, text, foil)


def measured(at: AppTest, measure: str) -> np.ndarray:
    named(at.selectbox, "Measure").set_value(measure).run()
    assert not at.exception
    return numbers(charts(at)[0]["data"][0]["z"])


def test_an_example_runs_at_one_click_and_every_measure_is_the_function_s(loaded) -> None:
    at = opened(HEADS)
    assert named(at.text_area, "Prompt").value == EXAMPLE
    assert "What it does not show" in at.markdown[0].value
    seen = interp.look(loaded, TWICE)
    at = looked_at(TWICE)
    assert not at.error
    assert numbers(charts(at)[0]["data"][0]["z"]) == pytest.approx(seen.attribution().heads)
    for measure in MEASURES:
        if measure not in (DIRECT, CHOSEN):
            expected = seen.head_attention(measure)
            assert measured(at, measure) == pytest.approx(expected, abs=1e-6)
    assert {"CSV", "JSON", "Notebook"} <= downloads(at)


@pytest.mark.parametrize("measure", [DIRECT, CHOSEN, "entropy"])
def test_the_exported_python_gives_the_map(loaded, measure) -> None:
    at = looked_at()
    shown = measured(at, measure)
    *lines, last = at.code[-1].value.splitlines()
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    assert shown == pytest.approx(eval(last, names), abs=1e-6)


def test_the_chosen_token_is_not_the_one_read_and_is_picked_apart(loaded) -> None:
    at = looked_at()
    seen = interp.look(loaded, EXAMPLE)
    row = seen.patterns[:, :, -1].max((0, 1))
    strongest = 1 + int(row[1:-1].argmax())
    assert measured(at, CHOSEN) == pytest.approx(seen.head_attention(token=strongest), abs=1e-6)
    named(at.button_group, "Attention to this token").set_value(2).run()
    named(at.button_group, "Read after").set_value(5).run()
    shown = numbers(charts(at)[0]["data"][0]["z"])
    assert shown == pytest.approx(seen.head_attention(token=2, position=5), abs=1e-6)
    assert at.query_params["target"] in ("2", ["2"])


def test_the_first_token_is_chosen_if_there_is_no_other_but_the_one_read(loaded) -> None:
    at = looked_at("Hello world")
    measured(at, CHOSEN)
    assert named(at.button_group, "Attention to this token").value == 0


def test_tokens_of_a_link_that_are_not_there_are_said(loaded) -> None:
    link = {name: str(looked_at().query_params.get(name)) for name in ("model", "asked")}
    at = opened(HEADS, **link, token="99", target="98", layer="97")
    assert not at.error
    said = at.warning[0].value.replace("\\", "")
    for word in ("token=99", "target=98", "layer=97"):
        assert word in said


def test_with_a_foil_the_chosen_token_is_the_first_that_differs(loaded) -> None:
    at = looked_at("The war lasted from 1749 to 17", "The war lasted from 1742 to 17")
    tokens = loaded.tokenize("The war lasted from 1749 to 17").tokens
    other = loaded.tokenize("The war lasted from 1742 to 17").tokens
    place = next(i for i, (a, b) in enumerate(zip(tokens, other, strict=True)) if a != b)
    measured(at, CHOSEN)
    assert named(at.button_group, "Attention to this token").value == place


@pytest.mark.long
def test_a_head_is_chosen_by_keyboard_and_its_views_show_the_functions_numbers(loaded) -> None:
    at = looked_at()
    parts = interp.direct_attribution(loaded, EXAMPLE)
    named(at.number_input, "Layer").set_value(9).run()
    best = int(abs(parts.heads[9]).argmax())
    assert named(at.number_input, "Head").value == best
    named(at.number_input, "Head").set_value(6).run()
    assert at.subheader[0].value == "L9H6"
    assert at.query_params["layer"] in ("9", ["9"])
    rank = 1 + int((abs(parts.heads) > abs(parts.heads[9, 6])).sum())
    said = next(block.value for block in at.markdown if "rank **" in block.value)
    assert f"{parts.heads[9, 6]:+.3f}" in said
    assert f"rank **{rank} of {parts.heads.size}**" in said
    named(at.button_group, "View").set_value("adds").run()
    written = parts.writes(9, 6, k=6)
    bars = next(c["data"][0] for c in charts(at) if len(c["data"][0].get("x", ())) == 12)
    values = [t.value for t in (*written.promoted, *reversed(written.suppressed))]
    assert numbers(bars["x"]) == pytest.approx(values, abs=1e-6)
    sources = next(c for c in charts(at) if len(c["data"][0].get("x", ())) == 8)
    tokens = loaded.tokenize(EXAMPLE).strings
    every = {f"{visible(token)} ({i})" for i, token in enumerate(tokens)}
    assert set(sources["layout"]["yaxis"]["ticktext"]) <= every
    named(at.button_group, "View").set_value("weights").run()
    table = table_with(at, "it looks for (QK)")
    expected = head_tokens(loaded, 9, 6, list(loaded.tokenize(EXAMPLE).tokens))
    assert len(table) == len(expected)
    first = expected[0].seeks.promoted[0].text.replace(" ", "␣")
    assert table["it looks for (QK)"][0].split(" ")[0] == first


def test_a_head_s_part_in_a_longer_answer_is_that_of_all_its_tokens(loaded) -> None:
    asked = AskedPrompt(EXAMPLE, answer=" San Salvador")
    keep(asked)
    at = opened(HEADS, model=loaded.name, asked=asked.hash, layer="29")
    parts = interp.direct_attribution(loaded, EXAMPLE, " San Salvador")
    assert numbers(charts(at)[0]["data"][0]["z"]) == pytest.approx(parts.heads, abs=1e-6)
    head = int(abs(parts.heads[29]).argmax())
    said = next(block.value for block in at.markdown if "rank **" in block.value)
    assert f"{parts.heads[29, head]:+z.3f}" in said
    named(at.button_group, "View").set_value("adds").run()
    assert not at.exception
    sources = next(c for c in charts(at) if len(c["data"][0].get("x", ())) == 8)
    tokens = (*loaded.tokenize(EXAMPLE).strings, " San")
    every = [f"{visible(token)} ({i})" for i, token in enumerate(tokens)]
    assert {*sources["layout"]["yaxis"]["ticktext"]} <= {*every}
    through = dict(zip(every, parts.by_source(29, head), strict=True))
    largest = sorted(abs(value) for value in through.values())[-8:]
    assert sorted(abs(numbers(sources["data"][0]["x"]))) == pytest.approx(largest, abs=1e-6)


def test_the_strongest_head_is_shown_until_one_is_chosen_and_again_after(loaded) -> None:
    at = looked_at()
    heads = interp.direct_attribution(loaded, EXAMPLE).heads
    layer, head = divmod(int(abs(heads).argmax()), heads.shape[1])
    assert at.subheader[0].value == f"L{layer}H{head}"
    named(at.number_input, "Layer").set_value(4).run()
    assert at.subheader[0].value.startswith("L4H")
    named(at.button, "Strongest").click().run()
    assert at.subheader[0].value == f"L{layer}H{head}"


@pytest.mark.long
def test_of_a_long_prompt_a_part_is_drawn_and_its_tokens_are_chosen_by_number(loaded) -> None:
    at = looked_at(" ".join(["one two three four five"] * 30))
    assert not at.error
    n = interp.look(loaded, named(at.text_area, "Prompt").value).run.n_tokens
    assert any(f"of {n}" in block.value for block in at.caption)
    named(at.number_input, "Read after this token: number").set_value(70).run()
    assert not at.error
    assert any("Tokens 7 to 70" in block.value for block in at.caption)


def test_patterns_that_are_too_large_are_said_and_the_rest_is_shown(loaded, monkeypatch) -> None:
    monkeypatch.setattr("interp.overview.one_prompt.MOST_GB", 9 * 9 * 9 * 4 / 1e9)
    at = looked_at()
    assert len(at.error) == 1
    assert "270 heads" in at.error[0].value
    assert table_with(at, "others near, absolute") is not None


def test_the_table_has_ranks_and_others_and_no_interval_for_one_prompt(loaded) -> None:
    at = looked_at()
    table = table_with(at, "others near, absolute")
    assert table["rank"].tolist() == list(range(1, 11))
    assert "95 % interval" not in table
    assert "rank 1 of" in table["others near, absolute"][0]


@pytest.mark.long
def test_a_set_is_measured_with_intervals_and_a_prompt_of_it_is_looked_at(toy, monkeypatch) -> None:
    link = {"model": "toy-induction", "task": "toy-induction", "n": "6", "subject": "set"}
    at = asked_on(HEADS, "a b c", **link)
    wait(at, "Measure 6 prompts", seconds=90)
    task = interp.load_task("toy-induction", toy, n=6)
    found = head_samples(toy, task)
    for measure in ("to token after same token", DIRECT):
        assert measured(at, measure) == pytest.approx(found[measure].values, abs=1e-6)
        table = table_with(at, "95 % interval")
        assert "–" not in set(table["95 % interval"])
    assert any("n = 6" in block.value for block in at.markdown)
    named(at.number_input, "Prompt, 0 to 5").set_value(3).run()
    assert not at.error
    strip = next(c for c in charts(at) if "each of 6 prompts" in str(c["layout"]))
    assert len(numbers(strip["data"][0]["x"])) == 6
    named(at.selectbox, "Measure").set_value("patch").run()
    assert any("kept sweep" in block.value for block in at.info)
    interp.activation_patching(toy, task, site="z", by=("layer", "head"))
    at.run()
    kept = interp.activation_patching(toy, task, site="z", by=("layer", "head"))
    assert numbers(charts(at)[0]["data"][0]["z"]) == pytest.approx(kept.values, abs=1e-6)
    kept = interp.activation_patching(toy, task, site="z", by=("layer", "head"), unit="metric")
    in_logits = asked_on(HEADS, "a b c", **link, unit="metric", measured="patch", prompt="3")
    said = charts(in_logits)
    assert numbers(said[0]["data"][0]["z"]) == pytest.approx(kept.values, abs=1e-6)
    assert "fraction of the gap" not in str(said)
    strip = next(c for c in said if "each of 6 prompts" in str(c["layout"]))
    best = np.unravel_index(np.abs(kept.values).argmax(), kept.values.shape)
    shown = numbers(strip["data"][0]["x"])
    assert shown == pytest.approx(kept.effects[:, *best], abs=1e-5)


@pytest.mark.parametrize(("text", "most"), [(EXAMPLE, 110_000), (LONG, 400_000)])
def test_the_figures_are_a_small_message(loaded, text, most) -> None:
    sent: Any = looked_at(text).get("plotly_chart")
    assert len(sent) == 3
    assert sum(len(element.proto.spec) for element in sent) < most


BAD = {
    "": "0 tokens",
    "a b " * 30_000: "tokens",
}


@pytest.mark.parametrize("text", BAD, ids=["empty", "over the context"])
def test_a_prompt_that_does_not_fit_is_said_and_the_page_works_on(loaded, text) -> None:
    at = looked_at(text)
    assert BAD[text] in at.error[0].value
    named(at.text_area, "Prompt").set_value(EXAMPLE)
    named(at.button, "Look").click().run()
    assert not at.error


@pytest.mark.parametrize(
    "text",
    ["a\x00b\x1b[0m c", "שלום עולם \u202eabc", "<|im_start|>user hi<|im_end|>", "<b>*x*</b>"],
)
def test_odd_texts_are_read_as_they_are(loaded, text) -> None:
    at = looked_at(text)
    assert not at.error
    assert not at.exception
    assert numbers(charts(at)[0]["data"][0]["z"]).shape == (30, 9)


def test_a_measure_that_the_prompt_does_not_have_says_what_to_do(loaded) -> None:
    at = looked_at()
    named(at.selectbox, "Measure").set_value("to same token").run()
    assert "a word occurs twice" in at.error[0].value
    measured(at, "entropy")
    assert not at.error


def test_a_model_without_a_fast_engine_is_said(loaded, monkeypatch) -> None:
    slow = replace(loaded, decoder=None, engine_reason="a family that is not known")
    monkeypatch.setattr("interp.load_model", lambda name, dtype: slow)
    at = looked_at()
    assert "a family that is not known" in at.error[0].value.replace("\\", "")


def test_thumbnails_hold_every_head_and_stay_small() -> None:
    rng = np.random.default_rng(0)
    patterns = np.tril(rng.random((30, 9, 50, 50))).astype(np.float32)
    figure = pattern_thumbnails(patterns, selected=(3, 2))
    assert len(figure.to_json()) < 200_000  # of floats 500_000
    image, size = figure.data[0].z, 17  # blocks of three tokens
    tile = image[2 * (size + 1) : 2 * (size + 1) + size, 3 * (size + 1) : 3 * (size + 1) + size]
    for row in range(size):
        for column in range(size):
            block = patterns[3, 2, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            if column > row:
                assert tile[row, column] == 0
            else:
                assert (tile[row, column] - 1) / 254 == pytest.approx(block.max(), abs=0.5 / 254)
    assert figure.data[1].customdata[3 * 9 + 2].tolist() == [3, 2]


def test_composition_and_the_directions_of_ov_are_the_functions(toy) -> None:
    text = str(interp.load_task("toy-induction", toy, n=1).pairs[0].clean)
    link = {"model": "toy-induction", "layer": "1", "head": "0"}
    at = asked_on(HEADS, text, shown="composition", **link)
    assert not at.error
    found = interp.heads.head_composition(toy).to_dataframe()
    into = found[found["receiver"] == "L1H0"].nlargest(8, "score")
    tables = [one.value for one in at.dataframe if "through its" in one.value]
    assert tables[0]["head"].tolist() == into["sender"].tolist()
    assert tables[0]["score"].tolist() == into["score"].tolist()
    assert tables[0]["sd"].tolist() == into["z"].tolist()
    assert any("random heads have" in one.value for one in at.caption)
    later = found[found["sender"] == "L0H1"].nlargest(8, "score")
    rows = pairs(interp.heads.head_composition(toy), 0, 1, "sender")
    assert [row["head"] for row in rows] == later["receiver"].tolist()
    assert [row["through its"][0] for row in rows] == later["kind"].tolist()
    at = asked_on(HEADS, text, shown="weights", **link)
    assert not at.error
    shares = [one.share for one in interp.heads.head_directions(toy, 1, 0, "OV", n=3)]
    rows = table_with(at, "share")["share"].tolist()
    assert rows[::2] == [f"{share:.1%}" for share in shares]
