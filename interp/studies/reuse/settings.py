"""What every step of the reuse study starts from: settings, models and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from interp.core import schema
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.schema import Share, Whole
from interp.models.language_model import LanguageModel
from interp.runs.change import Change
from interp.runs.next_tokens import ablate
from interp.studies.reuse.tasks import ENTRIES, Entry
from interp.studies.study import StudyContext, StudyKind
from interp.tasks.registry import load_task

APART = 1000
"""Added to the seed for the prompts to test on."""


@dataclass(frozen=True, kw_only=True)
class ReuseSettings(schema.CheckedSettings):
    """The settings of the study; part of every step's key.

    n: prompts patched for each task. tested: other prompts, for behaviour and interventions. share:
    heads kept at a stage, as a share of all heads. draws: random circuits for each overlap. sets:
    random sets of heads for each intervention. resamples: halves of the prompts for each interval.
    threshold: mean attention from which a head has a label.
    """

    n: Annotated[int, Field(ge=4)] = 48
    tested: Annotated[int, Field(ge=4)] = 150
    share: Share = 0.02
    draws: Annotated[int, Field(ge=2)] = 1000
    sets: Annotated[int, Field(ge=2)] = 30
    resamples: Annotated[int, Field(ge=2)] = 1000
    threshold: Share = 0.1
    seed: Whole = 0


REUSE = StudyKind(name="reuse", version=3, settings=ReuseSettings, beside=("trained",))


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A model's answers under every change; row 0 is the plain run.

    right: (1 + changes, prompts) the most likely of the answers and wrong answers is an answer.
    top: the most likely of all tokens is one. chance: the share of `right` by chance.
    """

    right: np.ndarray
    top: np.ndarray
    chance: float


@dataclass(frozen=True, kw_only=True)
class ReuseContext(StudyContext[ReuseSettings]):
    """A model, the model trained from it on Colored Objects (or None), and the settings."""

    trained: LanguageModel | None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The tasks that can be run; those of the trained model only if there is one."""
        return tuple(e for e in ENTRIES if self.trained is not None or not e.trained)

    @property
    def k(self) -> int:
        """Heads kept a stage."""
        return max(1, round(self.settings.share * self.model.n_layers * self.model.n_heads))

    def model_of(self, entry: Entry) -> LanguageModel:
        """The model an entry is run on.

        Raises:
            InterpError: the entry needs a trained model and none was given.
        """
        if not entry.trained:
            return self.model
        if self.trained is None:
            raise InterpError(entry.name, "no trained model", "give one with --trained")
        return self.trained

    def task(self, entry: Entry, *, test: bool = False) -> Task:
        """The prompts to find with, or those to test on."""
        model, settings = self.model_of(entry), self.settings
        n, seed = (settings.tested, settings.seed + APART) if test else (settings.n, settings.seed)
        return self.once(
            (entry.name, test),
            lambda: load_task(entry.task, model, n=n, seed=seed, **entry.options),
        )


def choices(model: LanguageModel, task: Task, ablations: Sequence[Change] = ()) -> Choices:
    """The answers on a task's clean prompts, plain and with each ablation at the last token."""
    encoded = task.encode(model)
    answers, wrong = encoded.targets.answers, encoded.targets.wrong
    both = torch.cat([answers, wrong], 1)
    tokens, place = torch.unique(both, return_inverse=True)
    seen = ablate(model, encoded.clean, ablations, tokens=tokens.clamp(min=0).tolist(), where=1)
    rows = np.arange(len(task))[:, None]
    found = np.where(both.numpy() >= 0, seen.probabilities[:, rows, place.numpy()], -1.0)
    right = found.argmax(-1) < answers.shape[1]
    top = (seen.top[:, :, None] == answers.numpy()).any(-1)
    chance = (answers >= 0).sum(1) / (both >= 0).sum(1)
    return Choices(right=right, top=top, chance=float(chance.float().mean()))
