"""In a real browser: a change is switched off and on, and a kept run is deleted."""

from pathlib import Path
from typing import Any

import interp
from interp.results.kept import kept_results
from tests.browsing import (
    LOADING,
    NEEDED,
    click_at,
    press,
    running_app,
    texts,
    until,
)

pytestmark = NEEDED
TABLE = "[data-testid=stDataFrame] canvas[data-testid=data-grid-canvas]"


def fact(browser: Any, label: str) -> str:
    """The value of a labelled fact; "" if the page has none."""
    script = """
    const all = [...document.querySelectorAll('[data-testid=stHtml] div')];
    const found = all.find(e => !e.children.length && e.textContent === arguments[0]);
    return found?.nextElementSibling?.textContent || ''
    """
    return browser.execute_script(script, label)


def switch(browser: Any, row: int) -> None:
    """Choose the box of a row of the first table, and press Enter."""
    from selenium.webdriver import ActionChains, Keys

    script = """
    const grid = document.querySelector(arguments[0]);
    grid.scrollIntoView({block: 'center'});
    const box = grid.getBoundingClientRect();
    return [box.left, box.top]
    """
    left, top = browser.execute_script(script, TABLE)
    click_at(browser, left + 60, top + 36 + 32 * row + 16)
    ActionChains(browser).send_keys(Keys.ENTER).perform()


def test_a_change_is_switched_off_and_on(tmp_path: Path, browser: Any) -> None:
    with running_app(tmp_path) as address:
        browser.get(f"{address}/interventions")
        press(browser, "Try", seconds=LOADING)
        first = until(lambda: fact(browser, "changed"), "the metric", seconds=LOADING)
        plain = fact(browser, "plain")
        assert first != plain
        switch(browser, 0)
        until(lambda: any("Every change is off" in t for t in texts(browser, "p")), "all off")
        switch(browser, 0)
        until(lambda: fact(browser, "changed") == first, "the change again")
        switch(browser, 1)
        second = until(
            lambda: (now := fact(browser, "changed")) not in ("", first) and now, "both changes"
        )
        assert fact(browser, "plain") == plain
        link = browser.current_url
        assert link.count("changes=") == 3
        browser.get(link)
        until(lambda: fact(browser, "changed") == second, "the same by the link")


def test_a_run_is_deleted_after_a_question(tmp_path: Path, browser: Any, monkeypatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    model = interp.load_model("toy-induction")
    interp.activation_patching(model, interp.load_task("toy-induction", model, n=12))
    name = kept_results()[0].name
    kept = tmp_path / "cache" / f"{name}.safetensors"
    with running_app(tmp_path) as address:
        browser.get(f"{address}/runs?run={name}")
        until(lambda: texts(browser, ".st-key-map-left .nsewdrag"), "the map", seconds=LOADING)
        press(browser, "Deleteexpand_more")
        assert kept.exists()
        press(browser, "Delete it")
        until(lambda: any("Deleted" in text for text in texts(browser, "p")), "the word")
        assert not kept.exists()
        assert "run=" not in browser.current_url
        browser.get(f"{address}/runs?run={name}")
        until(lambda: any("is not kept here" in text for text in texts(browser, "p")), "the word")
