"""Several visitors of one server for some minutes: its memory, and whose texts are on which page.

    python -m tests.soak.visitors --minutes 8 --json docs/results/soak_visitors.json

Each visitor types a prompt of its own on the default model, turns pages at random, leaves, and
comes again with another prompt. A page is mixed if a text of another visitor is on it. The minutes
begin when one visitor has turned every page once, so that the model is loaded. The slope is that of
the memory that the server holds alone, in the second half of the minutes, by least squares. Every
run adds a row to the table.
"""

import argparse
import json
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from interp.core.files import json_text, write_atomically
from interp.models.embedded import NAME
from tests.browsing import running_team_app
from tests.visiting import PAGES
from tests.visitor import Visitor, kept_link, private

SWITCHES = 12
"""Pages that a visitor turns before it leaves."""
WORD = re.compile(r"zq(\d+)v\d+x")
"""What visitors type: their number, and that of the visit."""
NAMES = ["" if page == "Look" else page.lower() for page in PAGES]
"""The pages, as the address has them."""
TYPED = ("", "heads", "neurons")
"""The pages that show what was typed."""
EVERY = 1.0
"""Seconds between two looks at the memory."""


class Soak:
    """What the visitors of a server have done and found so far."""

    def __init__(self, address: str, seconds: float) -> None:
        self.address, self.end = address, time.monotonic() + seconds
        self.visits = self.switches = self.mixed = self.absent = 0
        self.failed: list[str] = []
        self._lock = threading.Lock()

    def visitor(self, number: int) -> None:
        """Visit again and again until the time is over."""
        rng, visits = random.Random(number), 0
        while time.monotonic() < self.end:
            visits += 1
            word = f"zq{number}v{visits}x"
            try:
                with Visitor(self.address, kept_link(NAME, f"Here {word} met")) as visitor:
                    for page in rng.choices(NAMES, k=SWITCHES):
                        if time.monotonic() > self.end:
                            break
                        self._read(page, "\n".join(visitor.turn(page)), number, word)
            except Exception as error:
                with self._lock:
                    self.failed.append(f"{word}: {error!r}"[:400])
            with self._lock:
                self.visits += 1

    def _read(self, page: str, text: str, number: int, word: str) -> None:
        others = set(WORD.findall(text)) - {str(number)}
        with self._lock:
            self.switches += 1
            self.mixed += bool(others)
            self.absent += page in TYPED and word not in text


def soak(minutes: float, visitors: int) -> dict[str, Any]:
    """One run: what was done, what went wrong, and the memory in megabytes."""
    folder = Path(tempfile.mkdtemp(prefix="visitors-"))
    os.environ["INTERP_CACHE"] = str(folder / "cache")
    with running_team_app(folder) as served:
        server = psutil.Process(served.process.pid)
        with Visitor(served.address, kept_link(NAME, "Here everybody met")) as first:
            for page in NAMES:
                first.turn(page)
        begun = time.monotonic()
        found, times, held = Soak(served.address, 60 * minutes), [], []
        threads = [threading.Thread(target=found.visitor, args=(i,)) for i in range(visitors)]
        for thread in threads:
            thread.start()
        while time.monotonic() < found.end:
            times.append((time.monotonic() - begun) / 60)
            held.append(private(server))
            time.sleep(EVERY)
        for thread in threads:
            thread.join()
    for words in found.failed:
        print(words, file=sys.stderr)
    late = np.array(times) > minutes / 2
    (slope, _), spread = np.polyfit(np.array(times)[late], np.array(held)[late], 1, cov=True)
    return {
        "minutes": minutes,
        "visitors": visitors,
        "visits": found.visits,
        "switches": found.switches,
        "failed": len(found.failed),
        "mixed": found.mixed,
        "absent": found.absent,
        "slope": round(float(slope), 2),
        "error": round(float(spread[0, 0] ** 0.5), 2),
        "each minute": [round(held[int(np.searchsorted(times, at))]) for at in range(int(minutes))],
        "last": round(held[-1]),
    }


def main(arguments: Iterable[str] | None = None) -> None:
    """Add a run to the table."""
    options = argparse.ArgumentParser(description="Visitors of one server for some minutes.")
    options.add_argument("--minutes", type=float, default=8)
    options.add_argument("--visitors", type=int, default=4)
    options.add_argument("--json", type=Path, required=True)
    asked = options.parse_args(arguments)
    table = json.loads(asked.json.read_text()) if asked.json.exists() else []
    table.append(soak(asked.minutes, asked.visitors))
    text = json_text(table, indent=1) + "\n"
    write_atomically(asked.json, lambda part: part.write_text(text))
    print(table[-1], flush=True)


if __name__ == "__main__":
    main()
