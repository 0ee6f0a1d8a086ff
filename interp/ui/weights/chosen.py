"""The change of weights that is chosen, as Python and as a job that measures and keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import interp
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.deltas.compression import compress
from interp.deltas.merging import Merge, merge
from interp.deltas.weight_trial import WeightTrial, try_weights
from interp.models.language_model import LanguageModel
from interp.models.weight_delta import WeightDelta, load_delta
from interp.results.keys import result_key
from interp.ui.shared import jobs
from interp.ui.shared.offered import without_paths

VERSION = 1
PASSAGES = 24
"""Shipped texts whose loss is measured."""
TOP = 5
"""Heads that are chosen on other pairs."""


@dataclass(frozen=True, kw_only=True)
class ChosenChange:
    """A change of weights: adapters, merged by a rule if several, compression, or another model."""

    adapters: tuple[str, ...] = ()
    rule: str = ""
    how: str = ""
    share: float | None = None
    bits: int | None = None
    other: LanguageModel | None = None

    @property
    def named(self) -> dict[str, Any]:
        """What identifies it."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return told | {"other": self.other and self.other.hash}

    @property
    def how_far(self) -> dict[str, Any]:
        """The share or the bits of a compression."""
        return {"bits": self.bits} if self.how == "round" else {"share": self.share}

    def make(self, model: LanguageModel) -> WeightDelta | Merge:
        """The change, for a model that is its base."""
        if self.other is not None:
            return WeightDelta.between(model, self.other)
        if self.how:
            return compress(model, self.how, **self.how_far)  # type: ignore[arg-type]
        deltas = [load_delta(name, model) for name in self.adapters]
        return deltas[0] if len(deltas) == 1 else merge(deltas, rule=self.rule)  # type: ignore[arg-type]

    def python(self) -> str:
        """The code that makes it, as `change`."""
        if self.other is not None:
            name, dtype = without_paths(self.other.name), str(self.other.dtype).split(".")[1]
            loaded = f"other = interp.load_model({name!r}, dtype={dtype!r})"
            return f"{loaded}\nchange = interp.models.WeightDelta.between(model, other)"
        if self.how:
            ((name, far),) = self.how_far.items()
            return f"change = interp.deltas.compress(model, {self.how!r}, {name}={far!r})"
        loads = [f"interp.models.load_delta({name!r}, model)" for name in self.adapters]
        if len(loads) == 1:
            return f"change = {loads[0]}"
        listed = "".join(f"    {load},\n" for load in loads)
        return f"change = interp.deltas.merge([\n{listed}], rule={self.rule!r})"


@dataclass(frozen=True, kw_only=True)
class AskedTrial:
    """A trial of a change: on which pairs, and with which heads.

    others: the pairs on which the heads are chosen; None if they are named.
    """

    model: LanguageModel
    task: interp.Task
    change: ChosenChange
    heads: tuple[str, ...]
    others: interp.Task | None
    draws: int
    seed: int

    @property
    def key(self) -> str:
        """The key of its result."""
        return str(
            result_key(
                "change of weights", VERSION, self.model, self.task, change=self.change.named,
                heads=self.heads, others=self.others, draws=self.draws, seed=self.seed,
            )
        )  # fmt: skip

    def python(self) -> str:
        """The code that measures it, after model and task are loaded."""
        heads = f"heads = {list(self.heads)!r}"
        if self.others is not None:
            heads = f"others = {self.others.source}\nestimate = interp.attribution_patching"
            heads += f"(model, others)\nheads = [str(x.component) for x in estimate.top({TOP})]"
        return (
            f"{self.change.python()}\n{heads}\n"
            f"texts = interp.core.shipped_passages()[:{PASSAGES}]\n"
            "found = interp.deltas.try_weights(\n"
            "    model, change, task, heads=heads, texts=texts, "
            f"draws={self.draws}, seed={self.seed}\n)"
        )


def measure_and_keep(
    ask: AskedTrial, *, progress: jobs.Reporter, cancelled: Callable[[], bool]
) -> None:
    """In the process of a job, whose model is its own: a delta changes it in place."""

    def counted(done: int, total: int) -> None:
        progress.say("")
        progress(done, total)

    progress.say("making the change …")
    change, heads = ask.change.make(ask.model), ask.heads
    if ask.others is not None:
        progress.say("choosing heads on other pairs …")
        estimate = interp.attribution_patching(ask.model, ask.others, cancelled=cancelled)
        heads = tuple(str(found.component) for found in estimate.top(TOP))
    progress.say("reading prompts and texts …")
    found = try_weights(
        ask.model,
        change,
        ask.task,
        heads=heads,
        texts=interp.core.shipped_passages()[:PASSAGES],
        draws=ask.draws,
        seed=ask.seed,
        call=ask.python(),
        progress=counted,
    )
    found.save(_path(ask.key), key=ask.key)


def start(ask: AskedTrial) -> None:
    """Measure it in a process of its own."""
    jobs.start(ask.key, partial(measure_and_keep, ask), "runs")


def read_trial(key: str) -> WeightTrial | None:
    """The kept trial of a key, if there is one."""
    try:
        return WeightTrial.load(_path(key), key=key)
    except InterpError:
        return None


def _path(key: str) -> Path:
    return cache_dir() / "weights" / f"{key}.safetensors"
