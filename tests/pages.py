"""Visiting the app's pages: what the tests of pages share."""

import base64
import json
import time
from typing import Any

import numpy as np
from streamlit.testing.v1 import AppTest

from tests import ROOT

APP = ROOT / "app.py"


def opened(page: str | None = None, **link: str) -> AppTest:
    """A first visit to a page by a link."""
    at = AppTest.from_file(str(APP), default_timeout=120)
    if page is not None:
        at.run()  # a page can be switched to after the first run
        del at.session_state["selection"]
        at.switch_page(page)
    for name, value in link.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception
    return at


def asked_on(page: str | None, text: str, foil: str = "", **link: str) -> AppTest:
    """A page of typed prompts, on which a prompt and its foil are typed and Look is pressed."""
    at = opened(page, **link)
    named(at.text_area, "Prompt").set_value(text)
    named(at.text_input, "Foil").set_value(foil)
    named(at.button, "Look").click().run()
    assert not at.exception
    return at


def named(elements: Any, label: str) -> Any:
    """The element with a label, or else the first whose label begins so."""
    exact = [element for element in elements if element.label == label]
    return (exact or [element for element in elements if element.label.startswith(label)])[0]


def table_with(at: AppTest, column: str) -> Any:
    """The table that has a column."""
    return next(element.value for element in at.dataframe if column in element.value)


def charts(at: AppTest) -> list[dict[str, Any]]:
    """The charts as they are sent to the browser."""
    found: Any = at.get("plotly_chart")
    return [json.loads(element.proto.spec) for element in found]


def numbers(sent: Any) -> np.ndarray:
    """An array as Plotly sends it: a list, or base64."""
    if not isinstance(sent, dict):
        return np.array(sent, dtype=float)
    flat = np.frombuffer(base64.b64decode(sent["bdata"]), dtype=sent["dtype"])
    return flat.reshape([int(size) for size in sent.get("shape", "-1").split(",")])


def downloads(at: AppTest) -> set[str]:
    """The labels of the download buttons."""
    elements: Any = at.get("download_button")
    return {element.label for element in elements}


def wait(at: AppTest, button: str, *, seconds: float) -> AppTest:
    """Press it, and wait until its job is done and the page shows the result."""
    named(at.button, button).click().run()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if at.dataframe and not [one for one in at.button if one.label == "Cancel"]:
            break
        time.sleep(0.1)
        at.run()
    assert not at.exception
    assert not at.error
    return at
