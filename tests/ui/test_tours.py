"""The guided tours: every step opens, and what its text says of a model is measured here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from streamlit.testing.v1 import AppTest

import interp
from interp.models.language_model import LanguageModel
from interp.overview.change_trial import ChangeTrial, try_changes
from interp.overview.findings import Scan
from interp.overview.one_prompt import Look
from interp.ui import VIEWS
from interp.ui.shared.state import TYPES
from interp.ui.tours import Step, tours
from tests.conftest import REAL_CACHE
from tests.pages import APP, named


def test_steps_name_pages_and_fields_of_the_selection() -> None:
    assert list(tours()) == ["ioi", "verification", "refusal"]
    shipped = {entry.name for entry in interp.known_models()}
    for tour in tours().values():
        for step in tour.steps:
            assert (VIEWS / f"{step.page}.py").exists()
            assert set(step.select) <= set(TYPES)
            assert step.model in shipped
            assert step.text


def test_a_tour_goes_forth_and_back_and_its_link_opens_it(monkeypatch) -> None:
    toy = replace(interp.load_model("toy-induction"), name="smollm2-135m-instruct")
    monkeypatch.setattr("interp.load_model", lambda name, dtype: toy)
    at = AppTest.from_file(str(APP), default_timeout=120).run()
    named(at.button, "Which heads know").click().run()
    assert not at.exception
    title = "**Tour: Which heads know who gets the drink?** · step {} of 6"
    said = [text.value for text in at.markdown]
    assert title.format(1) in said
    assert named(at.button, "Back").disabled
    assert named(at.text_area, "Prompt").value == tours()["ioi"].steps[0].asked.prompt
    named(at.button, "Next").click().run()
    assert title.format(2) in [text.value for text in at.markdown]
    assert at.session_state["selection"].reading == "scan"
    link = {name: at.query_params[name] for name in ("tour", "step", "model", "asked")}
    other = AppTest.from_file(str(APP), default_timeout=120)
    for name, values in link.items():
        other.query_params[name] = values
    other.run()
    assert title.format(2) in [text.value for text in other.markdown]
    named(other.button, "End the tour").click().run()
    assert not any("step 2" in text.value for text in other.markdown)
    assert "tour" not in other.query_params


def test_a_link_to_no_tour_says_so() -> None:
    at = AppTest.from_file(str(APP), default_timeout=120)
    at.query_params["tour"] = "nowhere"
    at.run()
    assert "tour=nowhere\\: there are ioi, verification, refusal" in at.warning[0].value


# -- what the texts say --------------------------------------------------------------------


def step_of(tour: str, number: int) -> Step:
    return tours()[tour].steps[number]


def look(model: LanguageModel, step: Step) -> Look:
    asked = step.asked
    return interp.look(model, asked.given(model), asked.answer, asked.wrong)


def scan(model: LanguageModel, step: Step) -> Scan:
    asked = step.asked
    foil = asked.given(model, asked.foil)
    return interp.scan(model, asked.given(model), foil, answer=asked.answer, wrong=asked.wrong)


def trial(model: LanguageModel, step: Step) -> ChangeTrial:
    asked = step.asked
    return try_changes(
        model, asked.given(model), step.select["changes"], answer=asked.answer, wrong=asked.wrong
    )


def looks_at(seen: Look, layer: int, head: int) -> int:
    """The token that a head attends to most from the last token, the first token left out."""
    return 1 + int(np.argmax(np.asarray(seen.pattern(layer, head)[-1])[1:]))


def effects(found: Scan) -> dict[str, float]:
    return {str(part.component): part.exact for part in found.found}


@pytest.mark.long
@pytest.mark.slow
def test_what_the_tour_of_ioi_says(smollm) -> None:
    step = step_of("ioi", 0)
    seen = look(smollm, step)
    assert seen.next_tokens(1)[0].text == " Mary"
    assert look(smollm, replace(step, asked=replace(step.asked, prompt=step.asked.foil or ""))
                ).next_tokens(1)[0].text == " John"  # fmt: skip
    found = effects(scan(smollm, step))
    assert min(found["L23H3"], found["L29H1"]) > 0 > max(found["L24H4"], found["L29H0"])
    names = [i for i, token in enumerate(seen.tokens) if token == " John"]
    assert looks_at(seen, 23, 3) == names[1]
    assert seen.attribution().heads[23, 3] > 0
    assert seen.tokens[looks_at(seen, 24, 4)] == " Mary"
    assert seen.attribution().heads[24, 4] < 0
    done = trial(smollm, step_of("ioi", 3))
    assert done.changed < done.plain / 2
    assert done.drawn.mean() > 0.8 * done.plain


@pytest.mark.long
@pytest.mark.slow
def test_what_the_tour_of_verification_says(monkeypatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(REAL_CACHE))
    step = step_of("verification", 0)
    model = interp.load_model(step.model)
    seen = look(model, step)
    assert seen.next_tokens(1)[0].text == "this"
    other = replace(step, asked=replace(step.asked, prompt=step.asked.foil or ""))
    assert look(model, other).next_tokens(1)[0].text == "not"
    found = effects(scan(model, step))
    assert {"L19H1", "L16H0", *(f"L{i}.mlp_out" for i in range(19, 23))} <= set(found)
    last = len(seen.tokens) - 2  # the last digit of the result
    assert seen.tokens[last] == "8"
    assert looks_at(seen, 19, 1) == looks_at(seen, 11, 8) == last
    assert seen.attribution().heads[19, 1] > 0
    early = seen.lens.texts[17]  # the layer before L18H6
    assert early[-1].strip() not in ("this", "not")
    done = trial(model, step_of("verification", 3))
    assert done.plain > 0 > done.changed
    assert done.drawn.mean() > 0.8 * done.plain
    assert done.texts(8)["changed"].text.startswith("not 18)")


@pytest.mark.long
@pytest.mark.slow
def test_what_the_tour_of_refusal_says(monkeypatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(REAL_CACHE))
    step = step_of("refusal", 0)
    model = interp.load_model(step.model)
    seen = look(model, step)
    assert seen.next_tokens(1)[0].text == "I"
    found = scan(model, step)
    heads = [part for part in found.found if part.component.site == "z"]
    assert str(heads[0].component) == "L27H2"
    assert seen.tokens[looks_at(seen, 27, 2)] == " planting"
    assert seen.attribution().heads[27, 2] > 0
    done = trial(model, step_of("refusal", 3))
    assert done.plain > 0 > done.changed
    assert done.drawn.mean() > 0.8 * done.plain
    written: dict[str, Any] = {name: text.text for name, text in done.texts(20).items()}
    assert written["plain"].startswith("I'm sorry")
    assert written["changed"].startswith("Simon a passé la matinée")
    proper = trial(model, step_of("refusal", 4)).texts(16)
    assert proper["changed"].text.startswith("I'm sorry")
