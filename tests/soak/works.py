"""What `tests.soak.kills` kills: each call keeps what it has finished, and writes its result."""

import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import interp
from interp.circuits.discovery.find import Finder, find_circuit
from interp.circuits.discovery.redundancy import redundancy
from interp.core import records
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine import sweep
from interp.engine.resume import Chunks
from interp.models.language_model import LanguageModel
from interp.patching.activation import activation_patching
from interp.patching.path import path_patching
from interp.runs.capture import run_with_cache
from interp.studies.refusal.settings import RefusalSettings
from interp.studies.refusal.study import study_refusal
from interp.studies.steps import Steps

torch.set_num_threads(1)
sweep.CPU_TILE = 32  # more chunks, so that more of them can be lost


@cache
def toy() -> tuple[LanguageModel, Task]:
    return interp.load_model("toy-verification"), interp.load_task("toy-verification")


@cache
def organism() -> LanguageModel:
    return interp.load_model("refusal-tiny")


STUDY = "study of refusals"


def patching() -> Record:
    return activation_patching(*toy(), by=("layer", "head"))


def activations() -> Record:
    found = run_with_cache(*toy(), to_disk=True)
    return Kept(values={str(at): value for at, value in found.values.items()}, logits=found.logits)


def study() -> Record:
    settings = RefusalSettings(n=14, requests=3, max_new_tokens=100, pairs=4, select=6, draws=2)
    done = study_refusal(organism(), settings=settings)
    return Kept(values={}, logits=None, results=done.results)


@dataclass(frozen=True, kw_only=True)
class Kept(Record):
    """What is compared of a result that cannot be saved itself."""

    values: dict[str, torch.Tensor]
    logits: torch.Tensor | None
    results: dict[str, Any] | None = None


WORKS: dict[str, Callable[[], Record]] = {
    "activation patching": patching,
    "activation patching through hooks": lambda: activation_patching(
        *toy(), by=("layer", "head"), engine="hooks"
    ),
    "path patching": lambda: path_patching(*toy(), receivers=["L2H1.q", "L1.k"]),
    "edge scores (EAP-IG)": lambda: find_circuit(*toy(), Finder(method="EAP-IG-inputs")),
    "circuit search (ACDC)": lambda: find_circuit(*toy(), Finder(method="ACDC", threshold=0.01)),
    "learned mask": lambda: find_circuit(*toy(), Finder(method="learned-mask", steps=20)),
    "redundant pairs": lambda: redundancy(*toy()),
    "activations on disk": activations,
    "several processes on one sweep": patching,
    "job of the workbench": patching,
    STUDY: study,
}


def work(
    kind: str, out: Path, log: Path, dies: tuple[int, str] | None = None, **reported: Any
) -> None:
    """Do the work of a kind and write down, in `log`, which parts it computes and which it keeps.

    Args:
        kind: one of `WORKS`.
        out: where its result goes.
        log: a file of lines; what a killed process wrote into it stays.
        dies: the number of a write during which the process kills itself, and where in it.
        reported: what a job of the workbench is given.
    """
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(*words: object) -> None:
        os.write(stream, (" ".join(map(str, words)) + "\n").encode())

    def noted(part: str, compute: Callable[[], Any]) -> Callable[[], Any]:
        def counted() -> Any:
            note("computes", part)
            return compute()

        return counted

    once, made, write = Chunks.once, Steps._made, records.write_atomically
    writes = count()

    def chunk(self, number, size, compute, *, of=None):
        part = f"{self.key}/{number}"
        values = once(self, number, size, noted(part, compute), of=of)
        note("kept", part)
        return values

    def step(self, name, compute, *inputs):
        result = made(self, name, noted(name, compute), *inputs)
        note("kept", name)
        return result

    def written(path, make):
        number = next(writes)
        note("writes", number)
        if dies is None or dies[0] != number or path == out:
            return write(path, make)
        note("dies", dies[1])

        def half(partial):
            make(partial)
            if dies[1] == "half":
                os.truncate(partial, random.randrange(partial.stat().st_size))
            if dies[1] != "renamed":
                os.kill(os.getpid(), signal.SIGKILL)

        write(path, half)
        return os.kill(os.getpid(), signal.SIGKILL)

    Chunks.once, Steps._made, records.write_atomically = chunk, step, written
    organism() if kind == STUDY else toy()  # what is loaded once is no part of the work
    note("begins", os.getpid())
    found = WORKS[kind]()
    note("ends")
    found.save(out)


def content(path: Path) -> Any:
    """What a file holds, without what differs between equal runs: seconds and days.

    Of a sealed file of arrays it is the record and the checksum, which covers every number. (The
    bytes may differ: safetensors writes the two in any order.)
    """
    if path.suffix == ".safetensors":
        records.check_sealed(path)
        with safe_open(path, framework="numpy") as stream:
            return stream.metadata()
    if path.suffix != ".json":
        return path.read_bytes()
    head = json.loads(path.read_bytes())
    del head["checksum"]
    head["facts"] = {k: v for k, v in head["facts"].items() if k not in ("seconds", "made")}
    return head


def contents(folder: Path) -> dict[str, Any]:
    """The `content` of every file of a cache but measured speeds: no two runs have the same."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if path.parent.name != "paces"]
    return {str(path.relative_to(folder)): content(path) for path in files}
