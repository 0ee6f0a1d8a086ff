"""The pages in a real browser: files that arrive, bytes sent, and times."""

import csv
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from tests.browsing import (
    LOADING,
    NEEDED,
    Received,
    Served,
    arrived,
    click_target,
    drawn,
    press,
    received,
    running_app,
    running_browser,
    texts,
    until,
)
from tests.visiting import CHIP, PAGES, filled, turn

pytestmark = NEEDED
TOY = "patching?model=toy-induction&task=toy-induction&n=12&layer=1&head=2"
BLANK = "return document.querySelector('.st-key-map .js-plotly-plot')?.layout.plot_bgcolor"
CAMERA = """
const found = document.querySelector(arguments[0] + " .modebar-btn[data-title^=Download]");
found?.click(); return !!found
"""
"""Press the camera above a figure."""


def test_every_kind_of_file_arrives_and_opens(team: Served, tmp_path: Path) -> None:
    """CSV, JSON, PNG, SVG, notebook and Python of one sweep hold the same numbers and map."""
    with running_browser(tmp_path) as browser:
        browser.get(f"{team.address}/setup?model=toy-induction&task=toy-induction&n=12")
        press(browser, "SVG", seconds=LOADING)
        drawn(browser)
        turn(browser, "Patching")
        press(browser, "Run", seconds=LOADING)
        until(lambda: texts(browser, ".st-key-map .nsewdrag"), "the map", seconds=LOADING)
        click_target(browser, ".st-key-map", "L1H2")
        until(lambda: "L1H2" in texts(browser, "h3"), "the detail")
        drawn(browser)
        assert browser.execute_script(CAMERA, ".st-key-map")
        svg = arrived(tmp_path, ".svg").read_text()
        for label in ("CSV", "JSON", "Notebook"):
            press(browser, label)
        rows = list(csv.DictReader(arrived(tmp_path, ".csv").read_text().splitlines()))
        whole = json.loads(arrived(tmp_path, ".json").read_text())
        cells = json.loads(arrived(tmp_path, ".ipynb").read_text())["cells"]
        code = texts(browser, ".stCode code")[-1]
        browser.get(f"{team.address}/{TOY}")  # a new visit: the camera saves PNG
        until(lambda: texts(browser, ".st-key-map .nsewdrag"), "the map", seconds=LOADING)
        drawn(browser)
        assert browser.execute_script(CAMERA, ".st-key-map")
        image = pyplot.imread(arrived(tmp_path, ".png"))
    assert svg.startswith("<svg")
    assert svg.count("<image") >= 1  # the map's cells
    assert min(image.shape[:2]) > 300
    assert np.ptp(image[..., :3], axis=(0, 1)).min() > 0.5  # not one colour
    effect = {(row["layer"], row["head"]): float(row["value"]) for row in rows}["1", "2"]
    assert effect == pytest.approx(1, abs=1e-3)
    assert np.mean(np.array(whole["effects"])[:, 1, 2]) == pytest.approx(
        effect * np.mean(np.subtract(whole["clean"], whole["corrupted"])), rel=1e-5
    )
    said: list[str] = []
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    for source in ([code], sources):
        names: dict[str, Any] = {"print": lambda *words: said.append(" ".join(map(str, words)))}
        for part in source:
            exec(part, names)
    assert said[0] == said[1]
    assert said[0].startswith(f"{effect:.3f}")


LARGEST = 5_000_000
"""Bytes that a page may send to the browser."""
ROUNDS = 3


def test_pages_are_small_and_how_fast_they_answer(team: Served, browser: Any) -> None:
    """With the default model: bytes of every page, and seconds of every switch and click.

    The bytes are those that a page sends until it is filled, its progress included, and at each
    later visit. The files of the program, which a browser keeps, are printed apart, and so are the
    times: how long they are depends on what else the machine does.
    """
    first = filled(browser, team.address)
    again: dict[str, Received] = {}
    took: dict[str, list[float]] = {}

    def timed(what: str, act: Callable[[], object]) -> None:
        begun = time.monotonic()
        act()
        took.setdefault(what, []).append(time.monotonic() - begun)

    def clicked(chart: str, head: str) -> None:
        click_target(browser, chart, head)
        until(lambda: head in texts(browser, "h3"), f"the detail of {head}")

    def read(token: int) -> None:
        browser.execute_script(CHIP, token)
        until(lambda: f"token={token}" in browser.current_url, "the token in the link")
        drawn(browser)

    for at in range(ROUNDS):
        for page in PAGES:
            timed(page, partial(turn, browser, page))
            again[page] = received(browser)
            if page == "Look":
                timed("click a token on Look", partial(read, at))
            elif page in ("Heads", "Patching"):
                chart = "[class*=st-key-map]"
                timed(f"click a head on {page}", partial(clicked, chart, f"L{20 + at}H3"))
                drawn(browser)
            received(browser)
    for page, one in first.items():
        sys.stdout.write(
            f"{page}: {one.size} bytes of messages and {one.files} of files to fill it, "
            f"{again[page].size} and {again[page].files} when visited again\n"
        )  # pytest -rP
    for what, seconds in took.items():
        sys.stdout.write(f"{what}: {[round(one, 2) for one in seconds]} s\n")
    assert all(one.size > 5_000 for one in again.values())
    assert max(one.size for one in (*first.values(), *again.values())) < LARGEST
    assert max(one.files for one in again.values()) < 100_000  # nothing is fetched a second time
    assert took.keys() > PAGES.keys()


def test_a_map_is_drawn_again_when_the_theme_changes(tmp_path: Path, browser: Any) -> None:
    """Without a click: in the browser or in the menu, to dark and back to light."""

    def theme(name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    with running_app(tmp_path) as address:
        theme("light")
        browser.get(f"{address}/{TOY}")
        light = until(lambda: browser.execute_script(BLANK), "the map", seconds=LOADING)
        theme("dark")
        dark = until(
            lambda: (now := browser.execute_script(BLANK)) not in (None, light) and now, "dark"
        )
        theme("light")
        until(lambda: browser.execute_script(BLANK) == light, "light again")
        assert dark == "#2c3541"
