"""A headless Chromium for tests: how it is started, waited for and clicked in."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from tests import ROOT
from tests.conftest import link_models

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
PATIENCE = 90.0
"""Seconds before a test gives up: no measure of speed, only of something that hangs."""
LOADING = 300.0
"""The same where a model is loaded for the first time."""

NEEDED = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on the path"),
    pytest.mark.skipif(DRIVER is None, reason="no chromedriver on the path"),
]


def until(found: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running app: its address, and its process."""

    address: str
    process: subprocess.Popen


@contextmanager
def running_app(folder: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """The address of a running app on a free port of the loopback interface.

    It is started from `folder`, as from anywhere, with a cache there that holds nothing but models
    and the checks of them; `arguments` are its own, behind `--`.
    """
    command = ["streamlit", "run", str(ROOT / "app.py")]
    with _served(folder, command, ["--", *arguments], environment) as served:
        yield served.address


@contextmanager
def running_team_app(folder: Path) -> Iterator[Served]:
    """As `running_app`, as the command starts it that serves a team: visitors may be strangers."""
    command = ["interp", "app", "--host", "lab.example.org"]
    with _served(folder, command, [], {}) as served:
        yield served


@contextmanager
def _served(
    folder: Path, command: list[str], arguments: list[str], environment: dict[str, str]
) -> Iterator[Served]:
    (folder / "cache").mkdir(exist_ok=True)
    link_models(folder / "cache")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flag = "--port" if command[0] == "interp" else "--server.port"
    whole = [sys.executable, "-m", *command, flag, str(port), *arguments]
    paths = {"INTERP_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    log = (folder / "app.log").open("w")
    app = subprocess.Popen(
        whole, cwd=folder, env={**os.environ, **paths, **environment}, stdout=log, stderr=log
    )

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health") as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        until(healthy, "the app to start")
        yield Served(address=f"http://127.0.0.1:{port}", process=app)
    finally:
        app.terminate()
        app.wait(20)
        log.close()


@contextmanager
def running_browser(folder: Path) -> Iterator[Any]:
    """A browser with a fresh profile, which keeps a log of its requests.

    What it downloads goes to `folder / "downloads"`.
    """
    options = Options()
    many = "profile.default_content_setting_values.automatic_downloads"
    prefs = {"download.default_directory": str(folder / "downloads"), many: 1}
    options.add_experimental_option("prefs", prefs)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


def body(browser: Any) -> str:
    """All text of the page."""
    return browser.find_element("tag name", "body").text


IDLE = """
const app = document.querySelector("[data-testid=stApp]");
return app?.getAttribute("data-test-script-state") === "notRunning"
  && app.getAttribute("data-test-connection-state") === "CONNECTED"
  && !document.querySelector("[data-testid=stSpinner], [data-testid=stProgress]");
"""
"""Whether the page is drawn: a click on a figure that is drawn anew is lost."""


def drawn(browser: Any, *, seconds: float = PATIENCE) -> None:
    """Wait until the page is drawn and nothing runs."""
    until(lambda: browser.execute_script(IDLE), "the page to be drawn", seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Received:
    """What came from the server: messages of the page, and bytes of the files it asked for."""

    messages: tuple[bytes, ...]
    files: int

    @property
    def size(self) -> int:
        """Bytes of the messages."""
        return sum(map(len, self.messages))


def received(browser: Any) -> Received:
    """What came from the server since the last call."""
    messages, files = [], 0
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.webSocketFrameReceived":
            messages.append(base64.b64decode(event["params"]["response"]["payloadData"]))
        elif event["method"] == "Network.loadingFinished":
            files += int(event["params"]["encodedDataLength"])
    return Received(messages=tuple(messages), files=files)


def arrived(folder: Path, suffix: str) -> Path:
    """The file with this suffix that a browser of `running_browser(folder)` downloads."""

    def whole() -> Path | None:
        found = [path for path in (folder / "downloads").glob(f"*{suffix}") if path.stat().st_size]
        return found[0] if found else None

    return until(whole, f"a {suffix} file")


def texts(browser: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    return browser.execute_script(script, selector)


def has_button(browser: Any, label: str) -> bool:
    return any(text.strip().endswith(label) for text in texts(browser, "button"))


def press(browser: Any, label: str, *, seconds: float = PATIENCE) -> None:
    """Press a button as soon as it is there and can be pressed."""
    script = (
        "const found = [...document.querySelectorAll('button:enabled')]"
        ".find(b => b.textContent.trim().endsWith(arguments[0])); found?.click(); return !!found"
    )
    what = f"the button {label}, enabled"
    until(lambda: browser.execute_script(script, label), what, seconds=seconds)


def mouse(browser: Any, kind: str, x: float, y: float) -> None:
    button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
    event = {"type": kind, "x": x, "y": y, **button}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def click_at(browser: Any, x: float, y: float) -> None:
    """Move the mouse to a place of the window, rest as a hand does, and click."""
    mouse(browser, "mouseMoved", x, y)
    time.sleep(0.07)  # Plotly looks where the pointer is every 50 ms
    mouse(browser, "mousePressed", x, y)
    mouse(browser, "mouseReleased", x, y)


TARGET = """
const chart = document.querySelector(arguments[0] + " .js-plotly-plot");
for (const trace of chart?._fullData || []) {
  const words = Array.isArray(trace.hovertext) ? trace.hovertext : [];
  const at = words.findIndex(text => String(text).startsWith(arguments[1]));
  if (at >= 0) {
    const {xaxis, yaxis} = chart._fullLayout;
    chart.scrollIntoView({block: "center"});
    const box = chart.getBoundingClientRect();
    return [
      box.left + xaxis._offset + xaxis.d2p(trace.x[at]),
      box.top + yaxis._offset + yaxis.d2p(trace.y[at]),
    ];
  }
}
"""
"""Where the point whose hover text begins so is drawn, in pixels of the window."""


def click_target(browser: Any, chart: str, name: str) -> str:
    """Click a point of a chart by its name; returns the label that hovering showed."""
    place = until(lambda: browser.execute_script(TARGET, chart, f"<b>{name}</b>"), f"{name} drawn")
    mouse(browser, "mouseMoved", *place)
    label = until(lambda: texts(browser, f"{chart} .hovertext"), "the hover label")[0]
    click_at(browser, *place)
    return label
