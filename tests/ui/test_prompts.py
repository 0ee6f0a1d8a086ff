"""The prompt a visitor typed: kept by its hash, found by a link, and by nothing else."""

import os

import pytest
from streamlit.testing.v1 import AppTest

import interp
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.plots.style import visible
from interp.ui.shared import prompts
from interp.ui.shared.prompts import AskedPrompt
from tests.pages import asked_on, named, opened, table_with

TEXT = "The Colosseum stands in the city of"


def typed(text: str) -> AppTest:
    return asked_on(None, text)


@pytest.mark.parametrize(
    "asked",
    [
        AskedPrompt(TEXT),
        AskedPrompt(TEXT, " Rome", " Paris", "The Eiffel Tower", chat=True),
        AskedPrompt("\x00\u202eשלום\ud800<|endoftext|>"),
    ],
)
def test_a_prompt_is_found_by_its_hash_only(asked) -> None:
    assert prompts.found(asked.hash) is None
    prompts.keep(asked)
    assert prompts.found(asked.hash) == asked
    assert len(asked.hash) == 32
    for other in (asked.hash[:31], asked.hash[:31] + "g", f"../prompts/{asked.hash}", ""):
        assert prompts.found(other) is None
    (cache_dir() / "prompts" / f"{'0' * 32}.json").write_text('{"prompt": "x"}')
    assert prompts.found("0" * 32) is None


def test_every_part_of_a_prompt_counts_in_its_hash() -> None:
    some = [AskedPrompt("a", "b"), AskedPrompt("a", None, "b"), AskedPrompt("a", foil="b")]
    some += [AskedPrompt("a"), AskedPrompt("a", chat=True), AskedPrompt("b")]
    assert len({asked.hash for asked in some}) == len(some)


def test_the_prompts_not_opened_for_the_longest_time_are_removed(monkeypatch) -> None:
    monkeypatch.setattr(prompts, "MOST_KEPT", 3)
    some = [AskedPrompt(str(i)) for i in range(5)]
    for age, asked in enumerate(some[:3]):
        prompts.keep(asked)
        os.utime(cache_dir() / "prompts" / f"{asked.hash}.json", (age, age))
    assert prompts.found(some[0].hash) == some[0]  # opened, so it is the newest
    prompts.keep(some[3])
    assert [prompts.found(asked.hash) is not None for asked in some] == [1, 0, 1, 1, 0]
    with pytest.raises(InterpError, match="characters"):
        prompts.keep(AskedPrompt("a" * (prompts.MOST_CHARACTERS + 1)))


@pytest.mark.long
def test_a_link_opens_the_prompt_on_a_second_visit_and_does_not_hold_it(loaded) -> None:
    first = typed(TEXT)
    link = {name: str(first.query_params.get(name)) for name in first.query_params}
    assert link["asked"] == AskedPrompt(TEXT).hash
    assert "Colosseum" not in str(link)
    second = opened(**link)
    assert not second.error
    assert named(second.text_area, "Prompt").value == TEXT
    likeliest = interp.look(loaded, TEXT).next_tokens(1)[0].text
    assert table_with(second, "probability")["token"][0] == visible(likeliest)


def test_a_link_to_an_unknown_prompt_says_so_and_the_page_works_on(loaded) -> None:
    at = opened(model="smollm2-135m-instruct", asked="0" * 32)
    assert "not kept on this server" in at.error[0].value
    named(at.button, "Look").click().run()
    assert not at.error
    assert at.dataframe


def test_a_prompt_that_cannot_be_kept_is_read_and_has_no_link(loaded, tmp_path) -> None:
    (tmp_path / "prompts").write_text("a file in the way")
    at = typed(TEXT)
    assert at.dataframe
    assert "has no link" in at.warning[0].value


@pytest.mark.long
def test_the_chat_template_is_put_around_the_prompt(loaded) -> None:
    text = "What is the capital of France, שלום?"
    at = typed(text)
    plain = table_with(at, "probability")["token"][0]
    named(at.toggle, "Chat template").set_value(True)
    named(at.button, "Look").click().run()
    assert not at.error
    rows = interp.models.chat_prompts(loaded, text).rows
    assert any(f"user\n{text}<|im_end|>" in block.value for block in at.code)
    expected = interp.look(loaded, rows[0]).next_tokens(1)[0].text
    assert table_with(at, "probability")["token"][0] == visible(expected) != plain
    assert any("chat_prompts(model, 'What is" in block.value for block in at.code)


def test_a_model_without_a_chat_template_has_no_switch_for_it(monkeypatch) -> None:
    toy = interp.load_model("toy-induction")
    monkeypatch.setattr("interp.load_model", lambda name, dtype: toy)
    assert not typed("a b c").toggle
