"""Visiting the app's pages: what the tests of pages share."""

import time

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


def named(elements, label: str):
    return next(element for element in elements if element.label == label)


def wait(at: AppTest, button: str, *, seconds: float) -> AppTest:
    """Press it, and wait until its job is done and the page shows the result."""
    named(at.button, button).click().run()
    deadline = time.monotonic() + seconds
    while not at.dataframe and time.monotonic() < deadline:
        time.sleep(0.1)
        at.run()
    assert not at.exception
    assert not at.error
    return at
