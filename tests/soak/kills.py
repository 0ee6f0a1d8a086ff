"""Kill measurements at random moments, run them again, and compare with a run left alone.

    python -m tests.soak.kills --kills 30 --json docs/results/soak_kills.json

Two thirds of the kills come at a random time of the work (SIGKILL from outside), one third inside a
random write of a file: while its data are half written, before it is renamed, or just after. Then
the same call is made again; a study is killed several times on its way. In the end what it returns
and every file of its cache must equal those of a run left alone, bit for bit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interp.core.errors import InterpError
from interp.core.files import json_text, write_atomically
from interp.core.records import check_sealed
from interp.ui.shared import jobs
from tests.soak.works import STUDY, WORKS, content, contents, organism, toy, work

JOB, RIVALS = "job of the workbench", "several processes on one sweep"
KILLS = {STUDY: 6}
"""Kills of one run; of other kinds one."""

PLACES = ("half", "whole", "renamed")
FACTS = ("runs", "kills", "computing", "writing", "kept", "lost", "damaged", "equal", "leftovers")


class Attempt:
    """A process that does the work of a kind, or a job of the workbench that does."""

    def __init__(self, kind: str, folder: Path, name: str, dies: tuple[int, str] | None) -> None:
        self.log, self.out = folder / f"{name}.log", folder / f"{name}.safetensors"
        self.kind = kind
        self.job: jobs.BackgroundJob | None = None
        os.environ["INTERP_CACHE"] = str(folder / "cache")
        if kind == JOB:
            key = f"{folder} {name}"
            jobs.start(key, JobWork(kind, self.out, self.log, dies))
            self.job = jobs.find(key)
            return
        self.pid = os.fork()
        if self.pid == 0:
            try:
                work(kind, self.out, self.log, dies)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)

    def lines(self, word: str) -> list[str]:
        """What the lines that begin with a word say."""
        text = self.log.read_text() if self.log.exists() else ""
        split = [line.partition(" ") for line in text.splitlines()]
        return [rest for first, _, rest in split if first == word]

    def begun(self) -> int:
        """Wait until the work begins; the number of its process."""
        while not (found := self.lines("begins")):
            time.sleep(0.002)
        return int(found[0])

    def end(self) -> None:
        """Wait until the process has ended, or the job."""
        if self.job is None:
            _, status = os.waitpid(self.pid, 0)
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, self.log
            return
        while self.job.state == "running":
            time.sleep(0.005)
        if self.job.state == "failed":
            assert isinstance(self.job.error, InterpError), self.job.error
            assert "SIGKILL" in str(self.job.error)


class JobWork:
    """The work of a kind as a job of the workbench does it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __call__(self, *, progress: jobs.Reporter, cancelled: Any) -> None:
        work(*self.arguments)


def fresh(models: Path) -> Path:
    """An empty folder, whose cache has the checks of the models."""
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    (folder / "cache").mkdir()
    (folder / "cache" / "checks").symlink_to(models)
    return folder


def left_alone(kind: str, models: Path) -> dict[str, Any]:
    """A run that nothing kills: its content, the seconds it takes, and how often it writes."""
    folder = fresh(models)
    first = Attempt(kind, folder, "first", None)
    first.begun()
    begun = time.monotonic()
    first.end()
    seconds = time.monotonic() - begun
    found = {
        "seconds": seconds,
        "writes": len(first.lines("writes")),
        "cache": contents(folder / "cache"),
        "out": content(first.out),
    }
    organism() if kind == STUDY else toy()  # as checked by that run; forked processes have it
    shutil.rmtree(folder)
    return found


def damaged(cache: Path) -> list[str]:
    """The files under their own names that are not whole."""
    wrong = []
    for path in cache.rglob("[!.]*.*"):
        if path.suffix in (".json", ".safetensors"):
            try:
                check_sealed(path)
            except InterpError:
                wrong.append(str(path))
    return wrong


def killed_run(kind: str, alone: dict[str, Any], models: Path, seed: int) -> dict[str, int]:
    """One run that is killed, once or several times, and then left to end."""
    rng, folder, facts = random.Random(f"{kind} {seed}"), fresh(models), dict.fromkeys(FACTS, 0)
    random.seed(seed)
    n, kept = KILLS.get(kind, 1), set()
    for number in range(n):
        dies = None
        if rng.random() < 1 / 3:
            dies = (rng.randrange(max(1, alone["writes"] // n)), rng.choice(PLACES))
        rivals = 3 if kind == RIVALS else 1
        victim = Attempt(kind, folder, f"{number}", dies)
        others = [Attempt(kind, folder, f"{number}-{i}", None) for i in range(1, rivals)]
        every = [victim, *others]
        pid = victim.begun()
        if dies is None:
            time.sleep(rng.uniform(0, rivals * alone["seconds"] / n))
            if not victim.lines("ends"):
                os.kill(pid, signal.SIGKILL)
        for one in every:
            one.end()
        if victim.lines("ends"):
            continue  # it ended before the kill
        facts["kills"] += 1
        facts["writing" if victim.lines("dies") else "computing"] += 1
        facts["lost"] += len(kept.intersection(victim.lines("computes")))
        kept |= {part for one in every for part in one.lines("kept")}
        facts["damaged"] += len(damaged(folder / "cache"))
        for one in others:
            facts["damaged"] += content(one.out) != alone["out"]
    last = Attempt(kind, folder, "last", None)
    last.begun()
    last.end()
    facts["kept"] = len(kept)
    facts["lost"] += len(kept.intersection(last.lines("computes")))
    found = contents(folder / "cache")
    same = {name for name in found if found[name] == alone["cache"].get(name)}
    more = found.keys() - alone["cache"].keys()
    facts |= {"runs": 1, "leftovers": len(more)}
    facts["equal"] = int(
        same | more == found.keys()
        and not alone["cache"].keys() - found.keys()
        and content(last.out) == alone["out"]
    )
    if facts["equal"] and not (facts["lost"] or facts["damaged"] or facts["leftovers"]):
        shutil.rmtree(folder)
    else:
        print(f"{kind}, seed {seed}, in {folder}: {facts}, more: {sorted(more)}", file=sys.stderr)
    return facts


def main(arguments: Iterable[str] | None = None) -> None:
    """Add runs to the table until every kind has so many kills."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=30)
    options.add_argument("--kinds", nargs="*", default=list(WORKS))
    options.add_argument("--json", type=Path, required=True)
    asked = options.parse_args(arguments)
    table = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    models = Path(tempfile.mkdtemp(prefix="checks-"))
    for kind in asked.kinds:
        row = table.setdefault(kind, dict.fromkeys(FACTS, 0))
        alone = left_alone(kind, models) if row["kills"] < asked.kills else {}
        while row["kills"] < asked.kills:
            facts = killed_run(kind, alone, models, row["runs"])
            for name, value in facts.items():
                row[name] += value
            text = json_text(table, indent=1) + "\n"
            write_atomically(asked.json, lambda part, text=text: part.write_text(text))
        print(kind, row, flush=True)


if __name__ == "__main__":
    main()
