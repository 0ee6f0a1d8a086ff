"""The three guided tours in a real browser, on the models that ship, as a newcomer takes them."""

import sys
import time
from typing import Any

import pytest

from tests.browsing import LOADING, NEEDED, body, press, texts, until

pytestmark = [*NEEDED, pytest.mark.slow]
SEEN = {"look": "Logit lens", "heads": "Every head", "interventions": "The metric"}
"""A page -> a title that it shows once it has drawn."""


def settled(browser: Any, words: str) -> None:
    """Wait until the page shows these words and runs no more; it must show no error."""

    def found() -> bool:
        busy = texts(browser, "[data-testid=stStatusWidget], [data-testid=stSpinner]")
        return words in body(browser) and not busy

    until(found, words, seconds=LOADING)
    assert not texts(browser, "[data-testid=stException]")
    errors = texts(browser, "[data-testid=stAlertContentError]")
    assert not errors, errors


@pytest.mark.parametrize(
    ("title", "pages", "scanned"),
    [
        (
            "Which heads know who gets the drink?",
            ["look", "look", "heads", "interventions", "patching", "circuits"],
            "L23H3 patched raises it",
        ),
        (
            "How does a model check its own sum?",
            ["look", "look", "heads", "interventions", "study"],
            "L19H1 patched raises it",
        ),
        (
            "Why does it refuse to translate a text about a garden?",
            ["look", "look", "heads", "interventions", "interventions", "study"],
            "L27H2 patched raises it",
        ),
    ],
    ids=["ioi", "verification", "refusal"],
)
def test_a_newcomer_takes_a_tour(
    address: str, browser: Any, title: str, pages: list[str], scanned: str
) -> None:
    browser.get(address)
    press(browser, title, seconds=LOADING)
    took = []
    for number, page in enumerate(pages, start=1):
        begun = time.monotonic()
        settled(browser, f"step {number} of {len(pages)}")
        if number == 2:
            press(browser, "Scan")
            settled(browser, scanned)
        elif page in SEEN:
            settled(browser, SEEN[page])
        took.append(time.monotonic() - begun)
        if number < len(pages):
            press(browser, "Next")
    sys.stdout.write(f"{title}: seconds a step {[round(x, 1) for x in took]}\n")  # pytest -rP
    press(browser, "End the tour")
    until(lambda: "step 1 of" not in body(browser) and "Tour:" not in body(browser), "the end")
