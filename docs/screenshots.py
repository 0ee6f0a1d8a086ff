"""Pictures of the app's pages for the documentation: `python -m docs.screenshots` in a checkout.

Names of pictures, such as `frontier reuse`, make those alone.

It runs the app on the default model in a headless Chromium, and saves every page in the light and
the dark theme, 1280 and 1920 pixels wide. A page is clicked through as a visitor would.
"""

from __future__ import annotations

import base64
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.browsing import LOADING, drawn, has_button, press, running_app, running_browser, until

OUT = Path(__file__).parent / "images" / "app"
TASK = "model=smollm2-135m-instruct&task=ioi&n=8"
WIDTHS, HIGHEST = (1280, 1920), 2600


def calm(browser: Any) -> None:
    """Wait until the page has drawn."""
    time.sleep(1)
    drawn(browser, seconds=LOADING)
    time.sleep(2)


def clicked(*buttons: str) -> Callable[[Any], None]:
    """Press buttons one after the other."""

    def act(browser: Any) -> None:
        for label in buttons:
            press(browser, label, seconds=LOADING)
            calm(browser)

    return act


PAGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "landing": ("", lambda browser: None),
    "look": ("", clicked("Look")),
    "scan": ("?reading=scan", clicked("Look", "Scan")),
    "heads": ("heads", clicked("Look")),
    "neurons": ("neurons", clicked("Look")),
    "patching": (f"patching?{TASK}&layer=23&head=3", lambda browser: None),
    "directions": ("directions", clicked("Compare", "Generate")),
    "interventions": ("interventions", clicked("Try")),
    "circuits": (f"circuits?{TASK}", lambda browser: None),
    "weights": ("weights", clicked("Run the example")),
    "runs": ("runs", lambda browser: None),
    "setup": (f"setup?{TASK}", lambda browser: None),
    "study": ("verification_study?section=Open+study", lambda browser: None),
    "probes": ("verification_probes", lambda browser: None),
    "refusal-heads": ("refusal_heads", lambda browser: None),
    "frontier": ("refusal_interventions", lambda browser: None),
    "reuse": ("reuse_circuits?section=Overlap", lambda browser: None),
    "tour": ("", clicked("Why does it refuse to translate a text about a garden?")),
}
"""Name of a picture -> the page's address, and what is clicked on it."""


def show(browser: Any, width: int, height: int) -> None:
    """Set the size of the page."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def save(browser: Any, name: str) -> None:
    """Save the whole page at both widths in both themes."""
    for theme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        calm(browser)  # maps are drawn for the theme
        for width in WIDTHS:
            show(browser, width, 1000)
            time.sleep(1)
            script = "return document.querySelector('[data-testid=stMain]').scrollHeight"
            show(browser, width, min(HIGHEST, max(900, browser.execute_script(script) + 40)))
            time.sleep(1.5)
            taken = browser.execute_cdp_cmd(
                "Page.captureScreenshot", {"format": "webp", "quality": 80}
            )
            (OUT / f"{name}-{theme}-{width}.webp").write_bytes(base64.b64decode(taken["data"]))


def main(*names: str) -> None:
    """Save every picture, or those of some names.

    A sweep and a circuit are run before pictures of theirs, so that their pages show them.
    """
    wanted = {name: PAGES[name] for name in names or PAGES}
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_app(folder) as address, running_browser(folder) as browser:
            show(browser, WIDTHS[0], 1000)
            for page, button in (("patching", "Run"), ("circuits", "Find")):
                if not {page, "runs"} & {*wanted}:
                    continue
                browser.get(f"{address}/{page}?{TASK}")
                press(browser, button, seconds=LOADING)
                until(lambda: has_button(browser, "CSV"), button, seconds=LOADING)
            for picture, (where, act) in wanted.items():
                browser.get(f"{address}/{where}")
                calm(browser)
                act(browser)
                calm(browser)
                save(browser, picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
