"""The page of directions: what it shows is what the function gives, and what it refuses."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from interp.overview.two_sets import Contrast, contrast
from interp.probing.probe_files import kept_probes
from interp.results.direction import kept_directions
from interp.results.kept import find_result
from interp.ui.runs.reopen import page_of
from interp.ui.shared.widgets import plain
from interp.ui.views.directions import EXAMPLE
from tests.pages import charts, downloads, named, numbers, opened

PAGE = "interp/ui/views/directions.py"


@pytest.mark.long
@pytest.mark.slow
def test_the_example_runs_at_one_click(smollm, monkeypatch) -> None:
    monkeypatch.setattr("interp.load_model", lambda name, dtype: smollm)
    at = opened(PAGE)
    named(at.button, "Compare").click().run()
    assert not at.exception
    assert not at.error
    first, second = (str(text).splitlines() for text in (EXAMPLE.prompt, EXAMPLE.foil))
    found = contrast(smollm, first, second)
    table = found.to_dataframe()
    lines = {trace.get("name"): trace for trace in charts(at)[0]["data"] if trace.get("y")}
    assert numbers(lines["first or second set"]["y"]) == pytest.approx(table["auc"].tolist())
    assert numbers(lines["shuffled labels"]["y"]) == pytest.approx(table["shuffled_auc"].tolist())
    named(at.number_input, "Direction of layer").set_value(20).run()
    assert any(f"length **{table['length'][20]:.2f}**" in text.value for text in at.markdown)
    written = plain(" ".join(token.label for token in found.written(20).promoted))
    assert f"It raises {written}" in [text.value for text in at.markdown]
    named(at.button, "Generate").click().run()
    shown = [code.value for code in at.code]
    for text in found.texts("I went to the town and the day was", 20, 2.0).values():
        assert text.text in shown
    assert {"CSV", "JSON"} <= downloads(at)
    assert "sets" in at.query_params
    again = opened(PAGE, **{name: at.query_params[name] for name in ("model", "sets", "layer")})
    assert named(again.number_input, "Direction of layer").value == 20
    named(again.button, "Keep the probes").click().run()
    (name, probes), *more = kept_probes(smollm).items()
    assert not more
    assert probes.heldout.auc.tolist() == found.probes.heldout.auc.tolist()
    page, wanted = page_of(find_result(f"probes/{name}"))
    assert (page.stem, wanted["sets"]) == ("directions", at.query_params["sets"])
    named(again.button, "Try on Interventions").click().run()
    assert not again.exception
    row = again.query_params["changes"]
    name = row.rpartition(", ")[2]
    assert row == f"L20.resid_post, steer, 2, all tokens, {name}"
    kept = kept_directions(smollm)[name].vector
    assert kept.tolist() == found.direction(20).vector.tolist()


@pytest.mark.long
@pytest.mark.slow
def test_a_page_that_is_opened_again_runs_no_prompt(loaded, monkeypatch) -> None:
    """A layer's projections are computed once; another layer's are its own."""
    run = Mock(side_effect=Contrast.projections)
    monkeypatch.setattr(Contrast, "projections", lambda *given: run(*given))
    at = opened(PAGE)
    named(at.button, "Compare").click().run()
    assert run.call_count == 1
    first = [block.proto.body for block in at.get("html") if "projection" in block.proto.body]
    link = {name: at.query_params[name] for name in ("model", "sets")}
    again = opened(PAGE, **link)
    assert run.call_count == 1
    assert first
    assert first == [x.proto.body for x in again.get("html") if "projection" in x.proto.body]
    named(again.number_input, "Direction of layer").set_value(20).run()
    assert run.call_count == 2
    assert first != [x.proto.body for x in again.get("html") if "projection" in x.proto.body]


def test_sets_that_are_too_long_are_refused_and_the_page_works_on() -> None:
    at = opened(PAGE, model="toy-induction")
    named(at.text_area, "First set").set_value("word " * 20_000)
    named(at.button, "Compare").click().run()
    assert not at.exception
    assert "Nothing was compared" in " ".join(x.value for x in at.warning)
    assert "write at most" in " ".join(x.value for x in at.warning)
    assert named(at.button, "Compare")


def test_too_few_prompts_and_an_unknown_link_are_refused() -> None:
    at = opened(PAGE, model="toy-induction")
    named(at.text_area, "First set").set_value("one\ntwo")
    named(at.button, "Compare").click().run()
    assert "2 and 14 different texts" in at.error[0].value
    at = opened(PAGE, model="toy-induction", sets="0" * 32)
    assert "they are not kept here" in at.error[0].value
