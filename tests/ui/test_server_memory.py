"""The memory of a server over many page switches."""

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from interp.models.embedded import NAME
from tests.browsing import running_team_app
from tests.visiting import PAGES
from tests.visitor import Visitor, kept_link, private

SWITCHES, BEFORE = 200, 50
"""Switches of pages, and how many of them may fill caches."""
MOST = 0.1
"""Megabytes that a switch may leave behind. Measured from the 110th to the 200th: 565 to 567 MB, so
0.02 a switch. The figures of one page are 0.1."""


@pytest.mark.long
def test_page_switches_leave_nothing_in_memory(tmp_path: Path, monkeypatch) -> None:
    """The slope of the memory that the server holds between two page switches."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    link = kept_link(NAME, "The Eiffel Tower is in the city of")
    pages = ["" if page == "Look" else page.lower() for page in PAGES]
    held = []
    with running_team_app(tmp_path) as served, Visitor(served.address, link) as visitor:
        server = psutil.Process(served.process.pid)
        for number in range(SWITCHES):
            shown = visitor.turn(pages[number % len(pages)])
            assert len(shown) > 5
            held.append(private(server))
    rounds = np.array_split(held[BEFORE:], (SWITCHES - BEFORE) // len(pages))
    least = [round(float(min(part)), 1) for part in rounds]  # without what a run gives back
    middle = np.arange(len(rounds)) * (SWITCHES - BEFORE) / len(rounds)
    slope, _ = np.polyfit(middle, least, 1)
    sys.stdout.write(f"{slope:.3f} MB a switch; least of each round: {least}\n")  # pytest -rP
    assert slope < MOST
