"""The workbench in a real browser: run a sweep, click a head on the map, read its detail."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

ROOT = Path(__file__).parent.parent
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1440,1400",
)
LAYERS, HEADS = 2, 4

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on the path"),
    pytest.mark.skipif(DRIVER is None, reason="no chromedriver on the path"),
]


def until(found: Callable[[], Any], what: str, *, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A running app on a free port of the loopback interface, with an empty cache."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    environment = {**os.environ, "INTERP_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    log = (tmp_path / "app.log").open("w")
    app = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health") as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        until(healthy, "the app to start")
        yield f"http://127.0.0.1:{port}"
    finally:
        app.terminate()
        app.wait(20)
        log.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = Options()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def texts(browser: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    return browser.execute_script(script, selector)


def has_button(browser: Any, label: str) -> bool:
    return any(text.strip().endswith(label) for text in texts(browser, "button"))


def press(browser: Any, label: str) -> None:
    script = (
        "[...document.querySelectorAll('button')]"
        ".find(b => b.textContent.trim().endsWith(arguments[0])).click()"
    )
    browser.execute_script(script, label)


MARKER = """
const chart = document.querySelector(arguments[0] + " .js-plotly-plot");
for (const trace of chart?._fullData || []) {
  const words = Array.isArray(trace.text) ? trace.text : [];
  const at = words.findIndex(text => String(text).startsWith(arguments[1]));
  if (at >= 0) {
    const layout = chart._fullLayout;
    return [layout.xaxis.d2p(trace.x[at]), layout.yaxis.d2p(trace.y[at])];
  }
}
"""
"""Where the point whose hover text begins so is drawn, in pixels from the top left."""


def hover_and_click(browser: Any, chart: str, across: float, down: float) -> str:
    """Move to a place of a chart's area, wait for its label, click; returns the label."""
    area = browser.find_element(By.CSS_SELECTOR, f"{chart} .nsewdrag")
    x, y = int(across - area.size["width"] / 2), int(down - area.size["height"] / 2)
    mouse = ActionChains(browser)
    mouse.move_to_element_with_offset(area, x - 3, y).pause(0.2).move_by_offset(3, 0).perform()
    label = until(lambda: texts(browser, f"{chart} .hovertext"), "the hover label")
    ActionChains(browser).click().perform()
    return label[0]


def click_edge(browser: Any, chart: str, edge: str) -> str:
    """Click an edge of a drawn circuit."""
    place = until(lambda: browser.execute_script(MARKER, chart, f"<b>{edge}</b>"), f"{edge} drawn")
    return hover_and_click(browser, chart, *place)


def test_run_click_and_read(address: str, browser: Any) -> None:
    browser.get(f"{address}/patching?model=toy-induction&task=toy-induction&n=12")
    until(lambda: has_button(browser, "Run"), "the Run button")
    press(browser, "Run")
    until(lambda: texts(browser, ".st-key-map .nsewdrag"), "the map")
    size = browser.find_element(By.CSS_SELECTOR, ".st-key-map .nsewdrag").size
    layer, head = 1, 2
    across, down = (head + 0.5) / HEADS, 1 - (layer + 0.5) / LAYERS
    label = hover_and_click(browser, ".st-key-map", across * size["width"], down * size["height"])
    assert label.startswith("L1H2  1.000")
    until(lambda: "L1H2" in texts(browser, "h3"), "the detail", seconds=10)
    until(lambda: "Inside L1H2" in texts(browser, "h3"), "the head", seconds=10)
    page = browser.find_element(By.TAG_NAME, "body").text
    assert "effect 1.000 of the gap" in page
    assert "of 8" in page
    assert "layer=1" in browser.current_url
    assert "head=2" in browser.current_url

    browser.get(browser.current_url)  # a fresh visit by the link: same cell, nothing to run
    until(lambda: "Inside L1H2" in texts(browser, "h3"), "the restored detail")
    assert not has_button(browser, "Run")


def test_an_edge_of_a_circuit_is_clicked(address: str, browser: Any) -> None:
    browser.get(f"{address}/circuits?model=toy-induction&task=toy-induction&n=12")
    until(lambda: has_button(browser, "Find"), "the Find button")
    press(browser, "Find")
    graph, edge = ".st-key-circuit-graph", "L1H2->logits"
    assert click_edge(browser, graph, edge).startswith(edge)
    until(lambda: edge in texts(browser, "h3"), "the edge's detail", seconds=10)
    assert "edge=L1H2" in browser.current_url

    browser.get(browser.current_url.replace("look=graph", "look=tokens"))
    until(lambda: has_button(browser, "Measure"), "the Measure button")
    press(browser, "Measure")
    carried = "L0H1->L1H1.k @ elsewhere"
    assert click_edge(browser, ".st-key-circuit-tokens", carried).startswith(carried)
    until(lambda: "L0H1->L1H1.k" in texts(browser, "h3"), "the edge at its token", seconds=10)
    assert "place=elsewhere" in browser.current_url
