"""The app's pages as a visitor fills them, one after the other by the menu."""

import time
from typing import Any

from interp.models.embedded import NAME
from tests.browsing import (
    LOADING,
    Received,
    drawn,
    has_button,
    press,
    received,
    texts,
    until,
)

TASK = f"model={NAME}&task=ioi&n=8"
PAGES = {
    "Patching": ("Run", ".st-key-map .nsewdrag"),
    "Circuits": ("Find", ".st-key-circuit-graph .nsewdrag"),
    "Look": ("Look", ".st-key-lens .nsewdrag"),
    "Heads": ("", "[class*=st-key-map] .nsewdrag"),
    "Neurons": ("", "[data-testid=stDataFrame]"),
    "Directions": ("Compare", ".st-key-separation .nsewdrag"),
    "Interventions": ("Try", ".js-plotly-plot .nsewdrag"),
    "Weights": ("Measure", ".st-key-sizes .nsewdrag"),
    "Runs": ("", "[data-testid=stDataFrame]"),
    "Setup": ("", "[data-testid=stMetric]"),
}
"""Page of the menu -> the button that fills it on the first visit, and what it then shows."""
MENU = """
const all = [...document.querySelectorAll('header a')];
const found = all.find(e => e.textContent.trim().endsWith(arguments[0]));
found?.click(); return !!found
"""
"""Press a page's name in the menu."""
AGREE = """
document.querySelectorAll('.stMain input[type=checkbox]').forEach(box => box.click())
"""
"""Tick that a run may take long: on a busy machine the page asks."""
CHIP = """
const chips = document.querySelectorAll('[class*=st-key-pick-token] button');
chips[arguments[0]].click()
"""
"""Press a token."""


def turn(browser: Any, page: str) -> None:
    """Go to a page by the menu, and wait until it is drawn."""
    path = "/" if page == "Look" else f"/{page.lower()}"
    until(lambda: browser.execute_script(MENU, page), f"{page} in the menu")
    until(lambda: browser.current_url.partition("?")[0].endswith(path), f"the address of {page}")
    drawn(browser, seconds=LOADING)


def filled(browser: Any, address: str) -> dict[str, Received]:
    """Visit every page with the default model and press what fills it; what each page sent."""
    browser.get(f"{address}/patching?{TASK}")
    until(lambda: texts(browser, "h1, h2"), "the first page", seconds=LOADING)
    drawn(browser, seconds=LOADING)
    sent = {}
    for page, (button, shown) in PAGES.items():
        if page != "Patching":
            turn(browser, page)
        if button and not texts(browser, shown):
            until(lambda at=button: has_button(browser, at), button, seconds=LOADING)
            browser.execute_script(AGREE)
            press(browser, button, seconds=LOADING)
        until(lambda at=shown: texts(browser, at), page, seconds=LOADING)
        drawn(browser, seconds=LOADING)
        time.sleep(0.5)  # what is still under way
        sent[page] = received(browser)
    return sent


def typed(browser: Any, label: str, text: str) -> None:
    """Write into a field of the form in place of what it holds."""
    from selenium.webdriver import Keys

    where = f"textarea[aria-label='{label}'], input[aria-label='{label}']"
    field = until(lambda: browser.find_elements("css selector", where), f"the field {label}")[0]
    field.send_keys(Keys.CONTROL + "a")
    field.send_keys(text)
