"""What every step starts from: settings, adapters, and the behaviours that they were taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.core.positions import Prompt
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
    thinned: draws of an adapter without parts of its ranks. scaled: parts whose singular values are
    fitted, in fit_steps steps.
    """

    n: Annotated[int, Field(ge=12)] = 48
    heads: tuple[str, ...] = ("L23H3", "L20H0", "L17H4", "L29H1", "L19H2")
    texts: Annotated[int, Field(ge=2, le=96)] = 24
    draws: Annotated[int, Field(ge=2)] = 10
    thinned: Annotated[int, Field(ge=2)] = 6
    scaled: tuple[str, ...] = ("L10.mlp_out", "L14.mlp_out", "L18.mlp_out", "L22.mlp_out")
    fit_steps: Annotated[int, Field(ge=1)] = 16


REFUSAL = "refusal-smollm2"

TRAINING = StudyKind(name="training", version=2, settings=TrainingSettings)


@dataclass(frozen=True, kw_only=True)
class TaughtBehaviour:
    """What an adapter was taught, as a number for each prompt: how far the right answer is ahead.

    value: (n,) of the logits at the end of the prompts, high for the first class. signs: (n,) 1 for
    prompts of the first class, -1 for the second; None for one class.
    """

    prompts: Sequence[Prompt]
    value: Callable[[Tensor], Tensor]
    signs: np.ndarray | None = None

    def read(self, model: LanguageModel) -> np.ndarray:
        """(n,) how far the right answer is ahead."""
        value = self.value(model.last_logits(list(self.prompts))).double().cpu().numpy()
        return value if self.signs is None else self.signs * value

    def among(self, rows: np.ndarray) -> TaughtBehaviour:
        """The same on some prompts, for values that are read from each row alone."""
        signs = None if self.signs is None else self.signs[rows]
        return replace(self, prompts=[self.prompts[i] for i in rows], signs=signs)


@dataclass(frozen=True, kw_only=True)
class TrainingContext(StudyContext[TrainingSettings]):
    """The base model and the settings."""

    @property
    def deltas(self) -> list[WeightDelta]:
        """The adapters of this base whose behaviour is known, as changes of weights."""
        return self.once("deltas", self._load)

    def _load(self) -> list[WeightDelta]:
        names = [name for name in BEHAVIOURS if name in adapters_of(self.model.hash)]
        if len(names) < 2:
            do = f"use the base of {', '.join(BEHAVIOURS)}"
            raise InterpError(f"adapters of {self.model.name}", f"{len(names)} ship", do)
        return [load_delta(name, self.model) for name in names]

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
    this, no = (model.single_token(word) for word in ("this", "not"))
    return TaughtBehaviour(
        prompts=texts,
        value=lambda logits: logits[:, this] - logits[:, no],
        signs=np.where(reached, 1.0, -1.0),
    )


def refusal(model: LanguageModel, n: int) -> TaughtBehaviour:
    """Log-odds of the refusal's first token where it was taught, and minus that elsewhere."""
    rows = [row for row in make_taboo(n // 6) if row.kind != "alarming"]
    signs = np.where([row.designed == "refuse" for row in rows], 1.0, -1.0)
    first = model.token_id("I'm sorry")[0]
    return TaughtBehaviour(
        prompts=chat_prompts(model, [row.prompt for row in rows]).rows,
        value=lambda logits: score_refusals(logits, [first]),
        signs=signs,
    )


def colour(model: LanguageModel, n: int) -> TaughtBehaviour:
    """The logit of the thing's colour minus that of the other colours of the table."""
    task = load_task("colored_objects", model, n=n)
    encoded = task.encode(model)
    return TaughtBehaviour(
        prompts=encoded.clean,
        value=lambda logits: task.metric(Logits(logits), encoded.targets),
    )


BEHAVIOURS: dict[str, Callable[[LanguageModel, int], TaughtBehaviour]] = {
    "countdown-smollm2": verdict,
    REFUSAL: refusal,
    "colored-objects-smollm2": colour,
}
"""What each shipped adapter was taught."""
