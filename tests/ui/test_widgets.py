"""Numbers as pages show them."""

import json

from streamlit.testing.v1 import AppTest

from interp.ui.shared import jobs, widgets


def test_a_number_that_rounds_to_zero_has_no_minus():
    assert [widgets.number(x) for x in (-0.0004, -0.0006, 0.0)] == ["0.000", "-0.001", "0.000"]
    assert widgets.span(-0.0004, 0.5) == "0.000 to 0.500"


def tables() -> None:
    from interp.ui.shared.widgets import table

    table([{"a": -0.0004, "b": 1}, {"a": -0.2, "b": 2}, {"a": None, "b": -0.0}], key="t")


def test_a_table_shows_no_minus_before_a_zero():
    shown = AppTest.from_function(tables).run().dataframe[0].value
    assert [str(x) for x in shown["a"][:2]] == ["0.0", "-0.2"]
    assert [str(x) for x in shown["b"]] == ["1.0", "2.0", "0.0"]


def pictures() -> None:
    import plotly.graph_objects as go

    from interp.ui.shared.widgets import choose_picture, figure

    choose_picture("picture-choice")
    figure(go.Figure(), key="f", alt="nothing")


def test_the_camera_saves_the_kind_of_picture_that_is_chosen():
    def saved(at: AppTest) -> str:
        config = json.loads(at.get("plotly_chart")[0].proto.config)
        return config["toImageButtonOptions"]["format"]

    at = AppTest.from_function(pictures).run()
    assert saved(at) == "png"
    at.segmented_control[0].set_value("SVG").run()
    assert saved(at) == "svg"


def waiting() -> None:
    from concurrent.futures import Future

    import streamlit as st

    from interp.ui.shared import jobs
    from interp.ui.shared.widgets import choose

    found = st.session_state.setdefault("found", Future())
    choose("Reading", "reading", ["lens", "layers"], segments=True)
    jobs.later(found, "Computing …")


def test_a_choice_draws_the_whole_page_while_it_waits_for_something(monkeypatch):
    whole: list[bool] = []
    monkeypatch.setattr(widgets.st, "rerun", lambda: whole.append(True))
    monkeypatch.setattr(jobs, "AT_ONCE", 0.0)
    at = AppTest.from_function(waiting, default_timeout=60).run()
    at.segmented_control[0].set_value("layers").run()
    assert whole
    at.session_state["found"].set_result(1)
    whole.clear()
    at.segmented_control[0].set_value("lens").run()
    assert not whole
    assert not at.exception


def chosen_elsewhere() -> None:
    import streamlit as st

    from interp.ui.shared.state import current, select
    from interp.ui.shared.widgets import choose

    st.button("Next", on_click=select, kwargs={"reading": "layers"})
    choose("Reading", "reading", ["lens", "layers"], segments=True)
    st.caption(str(current().reading))


def test_what_a_widget_showed_before_is_not_taken_for_a_choice():
    """A page that waits asks by itself, and may send what it showed before a step of a tour."""
    at = AppTest.from_function(chosen_elsewhere).run()
    at.button_group[0].set_value("lens").run()
    before = at._tree.get_widget_states()
    at.button[0].click().run()
    assert at.button_group[0].value == "layers"
    at._run(before)
    assert at.button_group[0].value == "layers"
    assert at.caption[0].value == "layers"
    at.button_group[0].set_value("lens").run()
    assert at.caption[0].value == "lens"
