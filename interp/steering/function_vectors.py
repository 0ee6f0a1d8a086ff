"""Function vectors: the summed outputs of the heads that tell a model what to do with a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.schema import Count, checked
from interp.models.language_model import LanguageModel
from interp.results.provenance import provenance
from interp.results.scores import Scores
from interp.runs.kinds import make_ablation
from interp.steering.task_vectors import (
    TaskReadings,
    TaskVector,
    answered,
    at_best_layer,
    permuted,
)
from interp.tasks.word_pairs import WordTask


@reads_arguments
def head_task_effects(
    model: LanguageModel, task: WordTask, *, examples: int = 5, seed: int = 0
) -> Scores:
    """How much each head's mean output at the last token restores a task (arXiv 2310.15213).

        effect(h) = mean over prompts of  P(answer | z_h := mean z_h) - P(answer)

    The runs that are changed see examples with permuted answers. The mean is that of the same head
    at the last token of the prompts with the true answers. Every head is measured on every prompt:
    only the last token from the head's layer on is computed again, so the effect is exact.

    Args:
        model: a model with a fast engine.
        task: its queries are those of the prompts; examples are drawn from the other pairs.
        examples: number of examples in a prompt.
        seed: seed of their draw.

    Returns:
        Scores with axes layer and head, in probability. Clean runs see the true answers, corrupted
        ones the permuted.

    Raises:
        InterpError: no fast engine, an answer of several tokens, or inside `intervene`.
    """
    readings = TaskReadings(model=model, task=task, examples=examples, seed=seed)
    return head_effects_of(readings)


def head_effects_of(readings: TaskReadings) -> Scores:
    """`head_task_effects` from readings, which several measurements share."""
    model, task, prompts = readings.model, readings.task, readings.prompts()
    _, means = readings.means("examples")
    labels = [
        f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)
    ]
    values = {(layer, "z"): one[None, None] for layer, one in enumerate(means)}
    changes = [make_ablation(model, [label], "patch", values=values) for label in labels]
    changes = [change.at(-1) for change in changes]
    _, clean = answered(model, prompts, [])
    _, found = answered(model, permuted(prompts), changes)
    effects = (found[1:] - found[0]).T.reshape(len(task), model.n_layers, model.n_heads)
    options = f"examples={readings.examples}, seed={readings.seed}"
    call = f"scores = interp.steering.head_task_effects(model, own_task, {options})"
    return Scores(
        effects=effects,
        clean=clean[0],
        corrupted=found[0],
        axes=("layer", "head"),
        coordinates={
            "layer": tuple(map(str, range(model.n_layers))),
            "head": tuple(map(str, range(model.n_heads))),
        },
        site="z",
        direction="denoise",
        method="mean output of prompts with true answers",
        metric="probability of the answer",
        metric_unit="probability",
        positions="last",
        provenance=provenance(model, prompts, call),
        unit="metric",
    )


@reads_arguments
def function_vector(
    model: LanguageModel,
    task: WordTask,
    *,
    heads: int | Sequence[str] = 10,
    layer: int | None = None,
    effects: Scores | None = None,
    examples: int = 5,
    shuffled: bool = False,
    seed: int = 0,
) -> TaskVector:
    """The sum of the mean outputs of some heads at the last token (arXiv 2310.15213).

        vector = sum over heads of  mean z_h W_O^h

    The mean is over prompts with examples of the task. The vector is added to the residual stream
    of the last token of a bare query, after a layer. Under a post-norm (Gemma-2) what a head writes
    is taken before the norm.

    Args:
        model: a model with a fast engine.
        task: its queries are those of the prompts that are read, and of the choice of the layer and
            the heads. Evaluate on other queries (`WordTask.split`).
        heads: the number of heads with the largest effect, or labels such as L18H6.
        layer: the layer after which it is added; by default as in `task_vector`.
        effects: from `head_task_effects`, of this or of several tasks; by default measured here.
        examples: number of examples in a prompt.
        shuffled: permute the answers of the examples the outputs are read from, as a null.
        seed: seed of the draw of examples.

    Raises:
        InterpError: as `task_vector`, a head that the model lacks, or fewer heads with a positive
            effect than asked for.
    """
    readings = TaskReadings(model=model, task=task, examples=examples, seed=seed)
    return function_vector_of(readings, heads, layer, effects=effects, shuffled=shuffled)


def function_vector_of(
    readings: TaskReadings,
    heads: int | Sequence[str],
    layer: int | None,
    *,
    effects: Scores | None = None,
    shuffled: bool = False,
) -> TaskVector:
    """`function_vector` from readings, which several vectors share."""
    model, task = readings.model, readings.task
    chosen = chosen_heads(readings, heads, effects)
    _, means = readings.means("examples", shuffled=shuffled)
    one = TaskVector(
        vector=written(model, means, chosen),
        task=task.name,
        spec="heads",
        layer=0,
        added=True,
        n=len(task),
        model_hash=model.hash,
        heads=tuple(map(str, chosen)),
        shuffled=shuffled,
    )
    every = [replace(one, layer=at) for at in range(model.n_layers)]
    return at_best_layer(model, task, every, layer)


def chosen_heads(
    readings: TaskReadings, heads: int | Sequence[str], effects: Scores | None
) -> list[Component]:
    """The heads of a function vector: the given ones, or those with the largest effect.

    Raises:
        InterpError: as `function_vector`.
    """
    if isinstance(heads, str) or not isinstance(heads, int | np.integer):
        return readings.model.require_parts(listed(heads), "z")
    k = checked(Count, heads, "the heads of a function vector")
    found = effects or head_effects_of(readings)
    best = [one for one in found.top(k) if one.value > 0]
    if len(best) < k:
        raise InterpError(
            f"the {k} heads of {readings.task.name} with the largest effect",
            f"{len(best)} have a positive effect",
            "ask for fewer, or check that the model does the task from examples",
        )
    return [one.component for one in best]


def written(model: LanguageModel, means: Tensor, heads: Sequence[Component]) -> Tensor:
    """(d_model,) the sum of what heads write from mean values of z, in float64 on the CPU."""
    assert model.decoder is not None
    total = torch.zeros(model.d_model, dtype=torch.float64)
    for head in heads:
        assert head.index is not None
        attention = model.decoder.blocks[head.layer].attn
        total += attention.head_outputs(means[head.layer][None])[head.index, 0].double().cpu()
    return total
