"""In a real browser: the example of the page Weights runs, and its link opens it again."""

from pathlib import Path
from typing import Any

from tests.browsing import LOADING, NEEDED, press, running_app, texts, until

pytestmark = NEEDED
MAP = ".st-key-sizes .nsewdrag"


def test_the_example_runs_and_the_link_opens_it(tmp_path: Path, browser: Any) -> None:
    with running_app(tmp_path) as address:
        browser.get(f"{address}/weights")
        press(browser, "Run the example", seconds=LOADING)
        until(lambda: texts(browser, MAP), "the map", seconds=2 * LOADING)
        until(lambda: texts(browser, "[data-testid=stDataFrame]"), "the table")
        assert any("patched together at all tokens" in text for text in texts(browser, "p"))
        assert len([*(tmp_path / "cache" / "weights").glob("*.safetensors")]) == 1
        link = browser.current_url
        assert "adapters=refusal-smollm2" in link
        browser.get(link)
        until(lambda: texts(browser, MAP), "the kept result by its link", seconds=LOADING)
        assert not [text for text in texts(browser, "button") if "Measure" in text]
