"""Two visitors of one server: how long one waits for the other, and what each can read."""

import sys
import time
from pathlib import Path
from typing import Any

from interp.models.embedded import NAME
from tests.browsing import (
    LOADING,
    NEEDED,
    arrived,
    body,
    drawn,
    has_button,
    press,
    running_team_app,
    texts,
    until,
)
from tests.visiting import PAGES, turn, typed

pytestmark = NEEDED
MODELS = {"hedgehog": "refusal-tiny", "chestnut": NAME}
"""A word that one visitor types -> the model of that visitor; the second is the larger one."""
WRITTEN = "return [...document.querySelectorAll('input, textarea')].map(e => e.value)"
FILES = {"CSV": ".csv", "JSON": ".json", "Notebook": ".ipynb"}


def asks(browser: Any, address: str, word: str) -> None:
    """Open Heads in a visit of its own, type a prompt with a word, and have it looked at."""
    browser.get(f"{address}/heads?model={MODELS[word]}")
    until(lambda: has_button(browser, "Look"), "the form", seconds=LOADING)
    typed(browser, "Prompt", f"The {word} is on the")
    press(browser, "Look")


def is_looked_at(browser: Any) -> bool:
    return any(title.startswith("L") for title in texts(browser, "h3"))


def turned(browser: Any, pages: list[str]) -> list[float]:
    """Seconds of each switch to some pages."""
    took = []
    for page in pages:
        begun = time.monotonic()
        turn(browser, page)
        took.append(time.monotonic() - begun)
    return took


def readable(browser: Any, folder: Path) -> tuple[str, str]:
    """All that a visitor can read: the texts of every page, and the files of Heads."""
    pages, files = "", ""
    for page in PAGES:
        turn(browser, page)
        pages += "\n".join([body(browser), browser.current_url, *browser.execute_script(WRITTEN)])
    turn(browser, "Heads")
    for label, suffix in FILES.items():
        press(browser, label)
        path = arrived(folder, suffix)
        files += path.read_text()
        path.unlink()
    return pages, files


def test_a_load_holds_up_no_other_visitor_and_texts_stay_with_their_visitor(
    tmp_path: Path, browser: Any
) -> None:
    """While the second visitor's model is loaded, the first one turns pages.

    More than one switch is answered before the second visitor's page is there, and none takes
    longer than the slowest one before and the load together.
    """
    visits = {}
    with running_team_app(tmp_path) as served:
        first, second = MODELS
        asks(browser, served.address, first)
        until(lambda: is_looked_at(browser), "the first head", seconds=LOADING)
        drawn(browser)
        visits[first] = browser.current_window_handle
        alone = turned(browser, ["Neurons", "Heads"] * 3)
        browser.switch_to.new_window("window")
        visits[second] = browser.current_window_handle
        asks(browser, served.address, second)
        begun, beside = time.monotonic(), []
        while not is_looked_at(browser):
            assert time.monotonic() - begun < LOADING
            browser.switch_to.window(visits[first])
            beside += turned(browser, [("Neurons", "Heads")[len(beside) % 2]])
            browser.switch_to.window(visits[second])
        load = time.monotonic() - begun
        found = {}
        for word, visit in visits.items():
            browser.switch_to.window(visit)
            found[word] = readable(browser, tmp_path)
    sys.stdout.write(
        f"the load took {load:.2f} s; switches before it {[round(one, 2) for one in alone]} s, "
        f"during it {[round(one, 2) for one in beside]} s\n"
    )  # pytest -rP
    assert len(beside) > 1
    assert max(beside) < max(alone) + load
    for word, other in ((first, second), (second, first)):
        for part in found[word]:
            assert word in part
            assert other not in part
        assert MODELS[word] in found[word][0]
