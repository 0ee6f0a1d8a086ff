"""The page Interventions: a table of changes, and the same numbers as the functions give."""

import pytest
from streamlit.testing.v1 import AppTest

import interp
from interp.overview.change_trial import try_changes
from interp.results.direction import keep_direction
from interp.ui.shared.prompts import EXAMPLE, AskedPrompt, keep
from tests.pages import charts, downloads, named, opened, table_with

PAGE = "interp/ui/views/interventions.py"
FOIL = "The Kremlin Tower is in the city of"


@pytest.fixture
def page(smollm, monkeypatch):
    """Visits the page by a link, with the model that is already loaded and a kept prompt."""
    monkeypatch.setattr("interp.load_model", lambda name, dtype="float32": smollm)

    def visit(*changes: str, foil: str | None = None, **link: object) -> AppTest:
        asked = AskedPrompt(EXAMPLE, foil=foil)
        keep(asked)
        named_model = {"model": "smollm2-135m-instruct", "asked": asked.hash}
        return opened(PAGE, **named_model, **({"changes": changes} if changes else {}), **link)

    return visit


def shown(at: AppTest) -> str:
    """The facts and captions of the page."""
    return " ".join(block.proto.body for block in at.get("html"))


def exported(at: AppTest) -> str:
    return at.code[-1].value


def test_the_example_runs_at_one_click(smollm, monkeypatch) -> None:
    monkeypatch.setattr("interp.load_model", lambda name, dtype="float32": smollm)
    at = opened(PAGE)
    assert not at.dataframe
    named(at.button, "Try").click().run()
    assert not at.exception
    assert not at.error
    strongest = interp.direct_attribution(smollm, EXAMPLE).top(1, kind="head")[0].label
    trial = try_changes(smollm, EXAMPLE, [strongest])
    assert f"{trial.changed:+.3f}" in shown(at)
    assert f"'{strongest}, zero, 1, all tokens'" in exported(at)
    assert "changes" not in at.query_params


@pytest.mark.long
def test_the_numbers_are_those_of_the_function(page, smollm) -> None:
    rows = ("L9H6, zero", "L15.resid_post, steer, -1", "L3.mlp_out, zero, 1, all tokens, off")
    at = page(*rows, foil=FOIL)
    trial = try_changes(smollm, EXAMPLE, rows, foil=FOIL)
    for value in (trial.plain, trial.changed, trial.changed - trial.plain, trial.drawn.mean()):
        assert f"{value:+.3f}" in shown(at)
    tokens = table_with(at, "token")
    assert tokens["changed"].tolist() == [token.changed for token in trial.tokens]
    assert tokens["random"].tolist() == [token.random for token in trial.tokens]
    points = charts(at)[0]["data"]
    assert len(points) == 2
    assert {"CSV", "JSON"} <= downloads(at)


@pytest.mark.long
def test_a_kept_direction_stands_beside_stricter_ones(page, smollm) -> None:
    keep_direction("mood", interp.mean_difference(smollm, [EXAMPLE], [FOIL], layer=15))
    row = "L15.resid_post, steer, 2, all tokens, mood"
    at = page(row)
    trial = try_changes(smollm, EXAMPLE, [row])
    assert trial.harder is not None
    for value in (trial.changed, trial.harder.mean(), trial.towards):
        assert f"{value:+.3f}" in shown(at)
    assert trial.null_of(trial.harder).beside.rpartition(", ")[2] in shown(at)
    assert "# mood: a direction kept on this machine" in exported(at)
    exec(exported(at), found := {})
    assert found["trial"].changed == trial.changed
    assert "mood" in at.query_params["changes"]


@pytest.mark.long
def test_a_soft_cap_of_the_logits_is_said(page, smollm) -> None:
    assert not [one for one in page().caption if "caps its logits" in one.value]
    object.__setattr__(smollm.decoder, "final_softcap", 30.0)
    try:
        at = page("L9H6, zero, 0.5")
        assert [one for one in at.caption if "caps its logits" in one.value and "30" in one.value]
    finally:
        object.__setattr__(smollm.decoder, "final_softcap", None)


@pytest.mark.long
def test_the_exported_python_gives_the_number_again(page, capsys) -> None:
    at = page("L9H6, patch, 0.5", "L20N100, steer, 2", foil=FOIL, dose="1.5")
    found: dict = {}
    exec(exported(at), found)
    assert found["trial"].dose == 1.5
    assert f"{found['trial'].changed:+.3f}" in shown(at)
    assert str(found["trial"].changed) in capsys.readouterr().out


@pytest.mark.long
def test_a_link_gives_the_same_numbers_in_a_fresh_session(page, smollm) -> None:
    """Foil, dose, the random changes and their seed: each changes a number."""
    rows = ("L9H6, patch, 0.5", "L15.resid_post, steer, 2")
    at = page(*rows, foil=FOIL)
    first = shown(at)
    named(at.select_slider, "Dose").set_value("1.5").run()
    named(at.number_input, "Random changes").set_value(7).run()
    named(at.number_input, "Their seed").set_value(11).run()
    assert not at.exception
    again = opened(PAGE, **dict(at.query_params))
    trial = try_changes(smollm, EXAMPLE, rows, foil=FOIL, dose=1.5, draws=7, seed=11)
    for visit in (at, again):
        assert f"{trial.changed:+.3f}" in shown(visit)
        assert f"{trial.drawn.mean():+.3f}" in shown(visit)
        assert "7 random changes" in shown(visit)
    assert shown(again) != first
    exec(exported(again), found := {})
    assert found["trial"].drawn.tolist() == trial.drawn.tolist()


@pytest.mark.parametrize("strange", [{"draws": "1"}, {"draw_seed": "-1"}, {"new_tokens": "900"}])
@pytest.mark.long
def test_numbers_out_of_range_in_a_link_are_ignored(page, strange) -> None:
    at = page("L9H6, zero", **strange)
    ((name, value),) = strange.items()
    assert f"{name}={value}" in at.warning[0].value.replace("\\", "")
    assert not at.error
    shown_now = [named(at.number_input, label).value for label in ("Random changes", "Their seed")]
    assert shown_now == [20, 0]


@pytest.mark.long
def test_a_dose_curve_and_texts(page, smollm) -> None:
    at = page("L9H6, scale, 3", tried="dose", dose="2")
    curve = try_changes(smollm, EXAMPLE, ["L9H6, scale, 3"]).doses()
    rows = table_with(at, "dose")
    assert rows["changed"].tolist() == curve.changed.tolist()
    assert rows["changed"][0] == pytest.approx(
        try_changes(smollm, EXAMPLE, ["L9H6"]).plain, abs=1e-5
    )
    named(at.button_group, "What to look at").set_value("texts").run()
    named(at.number_input, "New tokens").set_value(5).run()
    named(at.button, "Generate").click().run()
    assert not at.exception
    texts = [block.value.strip() for block in at.code[:3]]
    made = try_changes(smollm, EXAMPLE, ["L9H6, scale, 3"], dose=2).texts(5)
    assert texts == [text.text.strip() for text in made.values()]
    assert at.query_params["new_tokens"] in ("5", ["5"])
    assert "trial.texts(5)" in exported(at)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("head nine",), "not the label of a component"),
        (("L9H6, remove",), "no such name"),
        (("L99H0",), "layers 0 to 29"),
        (("L9H6, patch",), "there is no foil"),
        (("L9H6, steer, 1, generated tokens",), "there is no foil"),
    ],
)
@pytest.mark.long
def test_an_odd_row_is_said_and_mended(page, changes, words) -> None:
    at = page(*changes)
    assert words in at.error[0].value.replace("\\", "")
    named(at.button, "Back to the example").click().run()
    assert not at.error
    assert table_with(at, "plain") is not None


def test_all_changes_off_is_no_error(page) -> None:
    at = page("L9H6, zero, 1, all tokens, off")
    assert not at.error
    assert "Every change is off" in at.info[0].value


@pytest.mark.long
def test_changes_of_generated_tokens_alone_are_said(page) -> None:
    at = page("L9H6, zero, 1, generated tokens")
    assert "begin after the next token" in at.info[0].value


def test_a_foil_of_another_length_is_said(page) -> None:
    at = page("L9H6, patch", foil="Moscow is a city in the country of the Russians and of")
    assert "as many tokens" in at.error[0].value


def test_a_prompt_over_the_context_is_said(page, smollm) -> None:
    asked = AskedPrompt("word " * 9000)
    keep(asked)
    at = opened(PAGE, model="smollm2-135m-instruct", asked=asked.hash)
    assert not at.exception
    assert "tokens" in at.error[0].value


@pytest.mark.long
def test_a_prompt_in_the_chat_template(smollm, monkeypatch) -> None:
    monkeypatch.setattr("interp.load_model", lambda name, dtype="float32": smollm)
    asked = AskedPrompt("Name a city.", foil="Name a fruit.", chat=True)
    keep(asked)
    rows = ("L9H6, patch", "L15.resid_post, steer, 0.5, generated tokens")
    at = opened(PAGE, model="smollm2-135m-instruct", asked=asked.hash, changes=rows)
    assert not at.error
    exec(exported(at), found := {})
    assert f"{found['trial'].changed:+.3f}" in shown(at)


@pytest.mark.long
def test_a_strange_dose_in_a_link_is_ignored(page) -> None:
    at = page("L9H6, zero", dose="7")
    assert "dose=7" in at.warning[0].value.replace("\\", "")
    assert not at.error


@pytest.mark.long
def test_random_changes_that_are_the_changes_themselves_are_said(page) -> None:
    words = "themselves among the random ones"
    every = page(*(f"L3H{head}, zero" for head in range(9)))
    assert any(words in block.value for block in every.caption)
    assert not any(words in block.value for block in page("L3H0, zero").caption)
