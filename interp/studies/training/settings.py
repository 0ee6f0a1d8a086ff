"""What every step starts from: settings, adapters, and the behaviours that they were taught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.core.prompts import Task
from interp.core.schema import CheckedSettings
from interp.core.statistics import auc_estimate, mean_estimate
from interp.models.chat import chat_prompts
from interp.models.language_model import LanguageModel
from interp.models.registry import adapters_of
from interp.models.weight_delta import WeightDelta, load_delta
from interp.refusal.score import score_refusals
from interp.studies.steps import Result
from interp.studies.study import StudyContext, StudyKind
from interp.tasks.countdown import cut_attempts
from interp.tasks.registry import load_task
from interp.tasks.taboo import make_taboo


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(CheckedSettings):
    """The settings of the study; part of every step's key.

    n: prompts of each behaviour. heads: those that carry IOI, found on other prompts. texts:
    shipped passages whose loss is measured. draws: random sets of heads, or random directions.
    """

    n: Annotated[int, Field(ge=12)] = 48
    heads: tuple[str, ...] = ("L23H3", "L20H0", "L17H4", "L29H1", "L19H2")
    texts: Annotated[int, Field(ge=2, le=96)] = 24
    draws: Annotated[int, Field(ge=2)] = 10


TRAINING = StudyKind(name="training", version=1, settings=TrainingSettings)


@dataclass(frozen=True, kw_only=True)
class TaughtBehaviour:
    """What an adapter was taught, as a number for each prompt: how far the right answer is ahead.

    signs: (n,) 1 for prompts of the first class, -1 for the second; None for one class.
    """

    read: Callable[[LanguageModel], np.ndarray]
    signs: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingContext(StudyContext[TrainingSettings]):
    """The base model and the settings."""

    @property
    def deltas(self) -> list[WeightDelta]:
        """The adapters of this base whose behaviour is known, as changes of weights."""
        names = [name for name in BEHAVIOURS if name in adapters_of(self.model.hash)]
        if len(names) < 2:
            do = f"use the base of {', '.join(BEHAVIOURS)}"
            raise InterpError(f"adapters of {self.model.name}", f"{len(names)} ship", do)
        return self.once("deltas", lambda: [load_delta(name, self.model) for name in names])

    @property
    def behaviours(self) -> dict[str, TaughtBehaviour]:
        """The behaviour of each adapter, by its name."""
        model, n = self.model, self.settings.n
        return {
            delta.name: self.once(delta.name, lambda make=BEHAVIOURS[delta.name]: make(model, n))
            for delta in self.deltas
        }

    @property
    def ioi(self) -> Task:
        """The prompts on which compressions and singular directions are measured."""
        return self.once("ioi", lambda: load_task("ioi", self.model, n=self.settings.n, seed=5))

    def measured(self, delta: WeightDelta | None = None) -> dict[str, Result]:
        """Every behaviour of the base, or under a change: mean, paired change, and AUC."""
        plain = self.once("plain", self._values)
        found = plain
        if delta is not None:
            with delta.applied(self.model):
                found = self._values()
        told: dict[str, Result] = {}
        for name, values in found.items():
            signs = self.behaviours[name].signs
            auc = None if signs is None else auc_estimate(signs * values, signs > 0)
            mean = mean_estimate(values)
            now = {"mean": mean}
            if delta is not None:
                now = {"after": mean, "change": mean_estimate(values - plain[name])}
            told[name] = {**now, "auc": auc}
        return told

    def _values(self) -> dict[str, np.ndarray]:
        return {name: one.read(self.model) for name, one in self.behaviours.items()}


def verdict(model: LanguageModel, n: int) -> TaughtBehaviour:
    """The logit of the right verdict on an attempt, "this" or "not", minus that of the other."""
    texts, reached = cut_attempts(n)
    signs = np.where(reached, 1.0, -1.0)

    def read(changed: LanguageModel) -> np.ndarray:
        this, no = (changed.single_token(word) for word in ("this", "not"))
        logits = changed.last_logits(texts)
        return signs * (logits[:, this] - logits[:, no]).double().cpu().numpy()

    return TaughtBehaviour(read=read, signs=signs)


def refusal(model: LanguageModel, n: int) -> TaughtBehaviour:
    """Log-odds of the refusal's first token where it was taught, and minus that elsewhere."""
    rows = [row for row in make_taboo(n // 6) if row.kind != "alarming"]
    signs = np.where([row.designed == "refuse" for row in rows], 1.0, -1.0)
    prompts = chat_prompts(model, [row.prompt for row in rows]).rows
    first = model.token_id("I'm sorry")[0]

    def read(changed: LanguageModel) -> np.ndarray:
        return signs * score_refusals(changed.last_logits(prompts), [first]).double().cpu().numpy()

    return TaughtBehaviour(read=read, signs=signs)


def colour(model: LanguageModel, n: int) -> TaughtBehaviour:
    """The logit of the thing's colour minus that of the other colours of the table."""
    task = load_task("colored_objects", model, n=n)
    encoded = task.encode(model)

    def read(changed: LanguageModel) -> np.ndarray:
        readout = Logits(changed.last_logits(encoded.clean))
        return task.metric(readout, encoded.targets).double().cpu().numpy()

    return TaughtBehaviour(read=read)


BEHAVIOURS: dict[str, Callable[[LanguageModel, int], TaughtBehaviour]] = {
    "countdown-smollm2": verdict,
    "refusal-smollm2": refusal,
    "colored-objects-smollm2": colour,
}
"""What each shipped adapter was taught."""
