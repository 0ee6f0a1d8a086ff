"""Task vectors: the state of a prompt that specifies a task, put into a query that does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Positions, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.core.schema import Brief, Index, checked
from interp.models.language_model import LanguageModel
from interp.runs.change import Change, Edit, ValueTable
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import site_values
from interp.tasks.word_pairs import Shown, WordTask

TaskSpec = Literal["examples", "instruction", "both", "bare"]
"""What a task vector is read from; see `task_vector`."""

SITE = "resid_post"
"""The residual stream after a layer, where the vectors are read and put in."""


@dataclass(frozen=True, kw_only=True)
class TaskVector(Brief):
    """A vector that specifies a task, and how it is put into a query.

    Attributes:
        vector: (d_model,) float64.
        task: the name of the task.
        spec: what it was read from: a `TaskSpec`, or "heads" for a function vector.
        layer: the layer after which it is put into the residual stream.
        added: it is added to the state (function vector); else it replaces it (task vector).
        n: number of prompts it was read from.
        model_hash: hash of the model it was read from.
        heads: labels of the heads of a function vector.
        shuffled: it was read from examples with permuted answers, as a null.
    """

    vector: Tensor
    task: str
    spec: str
    layer: int
    added: bool
    n: int
    model_hash: str
    heads: tuple[str, ...] = ()
    shuffled: bool = False

    @property
    def name(self) -> str:
        """The task and what the vector was read from, as text."""
        return f"{self.task}, {self.spec}" + ", permuted answers" * self.shuffled

    def change(self, *, coefficient: float = 1.0, positions: Positions = -1) -> Change:
        """The change that puts `coefficient` times the vector into the last token of each prompt.

        It is for `intervene` and `ablate`. `generate` takes it with positions="all" and where=1.
        """
        values = (coefficient * self.vector)[None, None]
        edit = Edit(
            name="add" if self.added else "replace",
            layer=self.layer,
            site=SITE,
            value=ValueTable(values=values, added=self.added),
            positions=positions,
        )
        return Change(name=f"{self.name} at L{self.layer}", edits=(edit,))


@reads_arguments
def task_vector(
    model: LanguageModel,
    task: WordTask,
    *,
    spec: str = "examples",
    layer: int | None = None,
    examples: int = 5,
    shuffled: bool = False,
    seed: int = 0,
) -> TaskVector:
    """The mean state at the last token of prompts that specify a task.

        vector = mean over prompts of resid_post[layer] at the last token

    It replaces the state of the last token of a bare query at the same layer. If the vector
    carries the task, the model then answers the query, which it otherwise may not.

    Args:
        model: a model with a fast engine.
        task: its queries are those of the prompts that are read, and of the choice of the layer.
            Evaluate on other queries (`WordTask.split`).
        spec: what the prompts show before the query: "examples" (arXiv 2310.15916), "instruction",
            "both" (the mean of these two vectors, arXiv 2410.22330) or "bare": nothing, which is
            the null for the state of any query of the task.
        layer: by default the layer with the most right answers on the bare queries of `task`; of
            equal ones that with the highest mean probability of the answer.
        examples: number of examples in a prompt.
        shuffled: permute the answers of the examples, as a null; only for spec="examples".
        seed: seed of the draw of examples.

    Raises:
        InterpError: no fast engine, an unknown spec, a layer that the model lacks, an answer of
            several tokens, permuted answers without examples, or inside `intervene`.
    """
    readings = TaskReadings(model=model, task=task, examples=examples, seed=seed)
    return task_vector_of(readings, spec, layer, shuffled=shuffled)


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskReadings:
    """What a model computes at the last token of the prompts of a task; each prompt is run once.

    Attributes:
        model: the model.
        task: its queries are those of the prompts.
        examples: number of examples in a prompt.
        seed: seed of their draw.
    """

    model: LanguageModel
    task: WordTask
    examples: int = 5
    seed: int = 0
    _kept: dict[tuple[str, bool], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def prompts(self, shown: Shown = "examples") -> Task:
        """The prompts, see `WordTask.prompts`."""
        return self.task.prompts(shown, examples=self.examples, seed=self.seed)

    def means(self, shown: Shown, *, shuffled: bool = False) -> tuple[Tensor, Tensor]:
        """Means over prompts: the state after each layer (layer, d_model), and z (layer, head, d).

        Raises:
            InterpError: no fast engine, permuted answers without examples, or inside `intervene`.
        """
        if shuffled and shown != "examples":
            asked = f"permuted answers in prompts that show {shown!r}"
            raise InterpError(asked, "there are no examples", "use spec='examples'")
        if (key := (shown, shuffled)) not in self._kept:
            self.model.refuse_changed("reading a task vector", "run_with_cache()")
            self.model.require_decoder("task vectors")
            prompts, layers = self.prompts(shown), range(self.model.n_layers)
            wanted = [(layer, site) for layer in layers for site in (SITE, "z")]
            found = site_values(self.model, permuted(prompts) if shuffled else prompts, wanted)
            states = torch.stack([found[layer, SITE][:, -1].double().mean(0) for layer in layers])
            z = torch.stack([found[layer, "z"][:, -1].mean(0) for layer in layers])
            self._kept[key] = states.cpu(), z
        return self._kept[key]


def task_vector_of(
    readings: TaskReadings, spec: str, layer: int | None, *, shuffled: bool = False
) -> TaskVector:
    """`task_vector` from readings, which several vectors share."""
    if spec not in get_args(TaskSpec):
        raise unknown("specification of a task", spec, get_args(TaskSpec))
    ways: dict[str, tuple[Shown, ...]] = {
        "bare": ("none",),
        "examples": ("examples",),
        "instruction": ("instruction",),
        "both": ("examples", "instruction"),
    }
    means = [readings.means(shown, shuffled=shuffled)[0] for shown in ways[spec]]
    vectors = [
        TaskVector(
            vector=state,
            task=readings.task.name,
            spec=spec,
            layer=at,
            added=False,
            n=len(readings.task) * len(means),
            model_hash=readings.model.hash,
            shuffled=shuffled,
        )
        for at, state in enumerate(torch.stack(means).mean(0))
    ]
    return at_best_layer(readings.model, readings.task, vectors, layer)


def permuted(prompts: Task) -> Task:
    """The corrupted prompts of a task, as clean ones: examples with permuted answers."""
    pairs = (replace(pair, clean=pair.corrupted, corrupted=None) for pair in prompts.pairs)
    return replace(prompts, pairs=tuple(pairs), name=f"{prompts.name}, permuted answers")


def at_best_layer(
    model: LanguageModel, task: WordTask, vectors: Sequence[TaskVector], layer: int | None
) -> TaskVector:
    """The vector of the given layer; else the one that gives the most right answers.

    Raises:
        InterpError: a layer that the model lacks.
    """
    if layer is not None:
        at: int = checked(Index, layer, "the layer of a task vector")
        if not 0 <= at < model.n_layers:
            raise InterpError(
                f"a vector of layer {at}",
                f"{model.name} has {model.n_layers} layers, from 0",
                "give one of them",
            )
        return vectors[at]
    hits, likely = answered(model, task.prompts(), [one.change() for one in vectors])
    quality = list(zip(hits[1:].mean(1).tolist(), likely[1:].mean(1).tolist(), strict=True))
    return vectors[quality.index(max(quality))]


def answered(
    model: LanguageModel, prompts: Task, changes: Sequence[Change]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the answer is the likeliest next token, and its probability, under each change.

    Both are (1 + changes, prompts); the first row is the plain run.

    Raises:
        InterpError: as `interp.ablate`, or an answer of several tokens.
    """
    ids = prompts.encode(model).targets.answers[:, 0].numpy()
    tokens, columns = np.unique(ids, return_inverse=True)
    found = ablate(model, prompts, changes, tokens=tokens.tolist())
    return found.top == ids, found.probabilities[:, np.arange(len(ids)), columns]
