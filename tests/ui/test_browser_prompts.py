"""A typed prompt in a real browser: the map of all heads, the strip of tokens, and its link."""

import sys
import time
from pathlib import Path
from typing import Any

from interp.models.toys.circuits import build_toy
from interp.ui.shared.prompts import EXAMPLE
from tests.browsing import (
    LOADING,
    NEEDED,
    body,
    click_target,
    drawn,
    has_button,
    press,
    received,
    running_browser,
    texts,
    until,
)
from tests.visiting import typed

pytestmark = NEEDED
LARGEST = 5_000_000
"""Bytes that a page may send to the browser."""
STRIP = """
const boxes = [...document.querySelectorAll("*")].map(e => e.shadowRoot).filter(Boolean);
const tokens = boxes.flatMap(root => [...root.querySelectorAll(".strip button")]);
const [act, place] = arguments;
if (act === "focus") tokens[place].focus();
if (act === "click") tokens[place].click();
return tokens.map(token => token.style.backgroundColor);
"""
"""The shades of a strip's tokens, after a token was reached or pressed."""


def test_a_head_of_the_default_model_is_clicked_and_its_link_opens_elsewhere(
    address: str, tmp_path: Path
) -> None:
    with running_browser(tmp_path / "first") as browser:
        browser.get(f"{address}/heads")
        press(browser, "Look", seconds=LOADING)
        for chart, head in (
            ("[class*=st-key-map]", "L23H4"),
            ("[class*=st-key-thumbnails]", "L9H6"),
        ):
            until(lambda at=chart: texts(browser, f"{at} .nsewdrag"), chart, seconds=LOADING)
            drawn(browser)
            time.sleep(0.5)
            sent = received(browser).size
            assert sent < LARGEST
            begun = time.monotonic()
            assert click_target(browser, chart, head).startswith(head)
            until(lambda name=head: name in texts(browser, "h3"), f"the detail of {head}")
            took = time.monotonic() - begun
            sys.stdout.write(f"{head} in {took:.2f} s; {sent} bytes before\n")  # pytest -rP
        shades = until(lambda: browser.execute_script(STRIP, "", 0), "the strip")
        assert browser.execute_script(STRIP, "focus", 3) != shades
        browser.execute_script(STRIP, "click", 3)
        until(lambda: "target=3" in browser.current_url, "the chosen token in the link")
        link = browser.current_url
    assert "layer=9" in link
    assert "head=6" in link
    assert "Eiffel" not in link
    with running_browser(tmp_path / "second") as browser:
        browser.get(link)
        until(lambda: "L9H6" in texts(browser, "h3"), "the same head", seconds=LOADING)
        typed = "return [...document.querySelectorAll('textarea')].map(e => e.value)"
        until(lambda: EXAMPLE in browser.execute_script(typed), "the same prompt")


def test_a_scan_ranks_at_once_confirms_and_opens_what_it_found(address: str, browser: Any) -> None:
    clean, corrupted, answer, wrong = build_toy("toy-induction").pairs[0]
    browser.get(f"{address}/?model=toy-induction&reading=scan")
    until(lambda: has_button(browser, "Look"), "the form", seconds=LOADING)
    fields = {"Prompt": clean, "Foil": corrupted, "Answer": answer, "Compared with": wrong}
    for label, text in fields.items():
        typed(browser, label, text)
    press(browser, "Look")
    until(lambda: "Nothing is measured yet" in body(browser), "the ranking", seconds=LOADING)
    assert "not measured yet" in body(browser)
    press(browser, "Scan")
    until(lambda: has_button(browser, "Measure this pair on Patching"), "the scan", seconds=LOADING)
    assert "not measured yet" not in body(browser)
    press(browser, "Head")
    until(lambda: "/heads" in browser.current_url, "the page Heads")
    found = until(lambda: [t for t in texts(browser, "h3") if t.startswith("L")], "the head")[0]
    assert f"layer={found[1]}" in browser.current_url
    assert f"head={found[3]}" in browser.current_url
