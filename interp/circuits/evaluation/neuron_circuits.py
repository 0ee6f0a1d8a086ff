"""Circuits of neurons: the best neurons are kept and all others ablated, at every size.

Nodes are neurons of the MLPs, at the input of the down projection (site post). Attention and
embeddings are never ablated: the empty circuit is the model without its neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from interp.circuits.evaluation.curves import FRACTIONS, checked_fractions
from interp.circuits.evaluation.faithfulness import Faithfulness
from interp.circuits.ranking import By
from interp.circuits.trials.options import TrialKeywords, TrialOptions
from interp.circuits.trials.removed_edges import RemovedEdges, ablated_runs
from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.engine.forward import Edits, Runner
from interp.engine.layout import Indices, Layout
from interp.engine.memory import budget_bytes, says_too_little
from interp.engine.readout import CPU_TILE, LogitsOf, cut
from interp.engine.restart import Variants, baseline, restart
from interp.engine.stopping import stoppable
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.results.provenance import provenance
from interp.results.scores import Scores
from interp.runs.mean_activations import mean_values
from interp.runs.pairs import check_gap

SITE = "post"


@dataclass(frozen=True, kw_only=True)
class NeuronEvaluation(Tabled, Faithfulness):
    """The faithfulness of the best neurons. The empty circuit keeps no neuron.

    Attributes:
        masks: (circuits, layers, neurons) bool: the neurons kept.
    """

    masks: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """(circuits,) number of neurons."""
        return self.masks.sum((1, 2))

    def neurons(self, circuit: int) -> list[str]:
        """Labels of a circuit's neurons, such as L3N12."""
        return [f"L{layer}N{number}" for layer, number in np.argwhere(self.masks[circuit])]

    def __str__(self) -> str:
        return self.in_words([f"{size} neurons" for size in self.sizes], "no neurons")

    def to_dataframe(self) -> Any:
        """One row per circuit: size, metric, faithfulness, and the range of random circuits."""
        import pandas as pd

        sizes = self.sizes.tolist()
        rows = [{"neurons": size, **self.row(number)} for number, size in enumerate(sizes)]
        return pd.DataFrame(rows)


@says_too_little
@reads_arguments
def evaluate_neurons(
    model: LanguageModel,
    task: Task,
    scores: Scores,
    *,
    fractions: Sequence[float] = FRACTIONS,
    by: By = "signed",
    random: int = 10,
    **run: Unpack[TrialKeywords],
) -> NeuronEvaluation:
    """The faithfulness of the best k neurons when all others are ablated at all tokens.

        f(k) = (m(best k) - m(no neuron)) / (m(model) - m(no neuron)),  means over prompts.

    Args:
        model: a model with a fast engine.
        task: prompt pairs. Use pairs that the scores were not measured on.
        scores: scores of every neuron, e.g. attribution_patching(site="post",
            by=("layer", "neuron"), direction="noise").
        fractions: sizes of the circuits, as shares of all neurons.
        by: the ranking, see `interp.circuits.ranking.By`.
        random: random circuits per size, with the same number of neurons in every layer.
        run: ablation (the value of neurons outside the circuit), reference, seed, budget_gb,
            progress (called with prompts done, and in total) and cancelled; see `TrialOptions`.

    Raises:
        InterpError: no fast engine, scores that lack neurons, fractions out of order,
            no gap between the model and the model without neurons, or as `ablated_runs`.
    """
    decoder = model.require_decoder("evaluating neurons")
    model.refuse_changed("evaluating neurons")
    options = TrialOptions(**run)
    budget_bytes(options.budget_gb)
    best = _best(model, scores, fractions, by)
    rng = np.random.default_rng(options.seed)
    drawn = [rng.permuted(mask, axis=1) for _ in range(random) for mask in best]
    whole = np.ones_like(best[:1])
    ablated = ablated_runs(model, task, options)
    runner = Runner(decoder)
    with torch.no_grad(), stoppable(options.cancelled):
        ends = _values(
            runner, task, ablated, np.concatenate([whole, ~whole]), replace(options, progress=None)
        )
        check_gap(*ends)
        masks = np.concatenate([best, *(one[None] for one in drawn)])
        values = _values(runner, task, ablated, masks, options)
    return NeuronEvaluation(
        fractions=np.asarray(fractions, dtype=float),
        values=values[: len(best)],
        full=ends[0],
        empty=ends[1],
        random=values[len(best) :].reshape(random, len(best), len(task)),
        masks=best,
        protocol=(
            f"{task.metric.name} on {len(task)} pairs of {task.name}, the best of {best[0].size} "
            f"neurons by {by} score ({scores.method}), {options.removed} of the "
            "others at all tokens"
        ),
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        provenance=provenance(
            model,
            task,
            "evaluation = interp.circuits.evaluate_neurons(model, task, scores, "
            f"ablation={options.ablation!r}, by={by!r}, random={random}, seed={options.seed})",
        ),
    )


def _best(model: LanguageModel, scores: Scores, fractions: Sequence[float], by: By) -> np.ndarray:
    """(circuits, layers, neurons) bool: the best neurons at every size."""
    shape = (model.n_layers, model.size("neuron"))
    if scores.site != SITE or scores.axes != ("layer", "neuron") or scores.values.shape != shape:
        raise InterpError(
            f"scores of {scores.site} by {scores.axes}",
            f"shape {scores.values.shape}, the model has {shape} neurons",
            'score with site="post", by=("layer", "neuron")',
        )
    shares = checked_fractions(fractions)
    strength = scores.strength(by)
    order = np.argsort(-strength.ravel(), kind="stable")
    found = np.zeros((len(shares), order.size), dtype=bool)
    for row, share in zip(found, shares.tolist(), strict=True):
        row[order[: int(share * order.size)]] = True
    return found.reshape(-1, *shape)


def _values(
    runner: Runner, task: Task, ablated: RemovedEdges, masks: np.ndarray, options: TrialOptions
) -> np.ndarray:
    """(masks, prompts) metric when the neurons outside each mask are ablated."""
    decoder, runs = runner.decoder, ablated.runs
    lengths = np.array([len(prompt) for prompt in runs.base])
    token = len(decoder.blocks) * decoder.d_mlp * decoder.unembed.element_size()
    found, done = np.zeros((len(masks), len(lengths))), 0
    constant = _constant(runner, ablated)
    fitting = max(1, budget_bytes(options.budget_gb) // token)
    for block in cut(np.argsort(lengths, kind="stable"), np.sort(lengths), fitting):
        base = baseline(runner, [runs.base[i] for i in block])
        new = constant
        if new is None:
            other = baseline(runner, [runs.other[i] for i in block], frozenset({SITE}))
            new = [other.site(layer, SITE) for layer in range(len(decoder.blocks))]
        start = np.zeros_like(block) if ablated.constant else runs.differ[block]
        start = np.minimum(start, lengths[block] - base.tails(np.arange(len(block))))
        mask, prompt = (i.ravel() for i in np.indices((len(masks), len(block))))
        for some in cut(np.arange(len(mask)), (lengths[block] - start)[prompt], CPU_TILE):
            edits = _edits(masks[mask[some].min() : mask[some].max() + 1], mask[some], new)
            rows = prompt[some]
            nowhere = np.zeros(len(some), dtype=np.int64)
            variants = Variants(
                prompt=rows, start=start[rows], layer=nowhere, ready=nowhere.astype(bool)
            )
            hidden = restart(runner, base, variants, edits=edits)
            targets = runs.targets.select(torch.from_numpy(block[rows]))
            readout = LogitsOf(decoder=decoder, hidden=hidden)
            found[mask[some], block[rows]] = task.metric(readout, targets).numpy()
        done += len(block)
        if options.progress is not None:
            options.progress(done, len(lengths))
    return found


def _constant(runner: Runner, ablated: RemovedEdges) -> list[Tensor] | None:
    """(1, neurons) ablated values of every layer in zero and mean ablation; else None."""
    if not ablated.constant:
        return None
    if ablated.batches:
        return mean_values(runner, ablated.batches, SITE)
    decoder = runner.decoder
    return [decoder.unembed.new_zeros(1, decoder.d_mlp) for _ in decoder.blocks]


def _edits(masks: np.ndarray, mask: Indices, new: Sequence[Tensor]) -> Edits:
    """One edit per layer; `masks` starts at the variants' lowest mask number."""
    kept = torch.from_numpy(masks)
    number = mask - mask.min()
    return {
        layer: [_Ablated(kept=kept[:, layer].to(values.device), mask=number, new=values)]
        for layer, values in enumerate(new)
    }


@dataclass(frozen=True, kw_only=True)
class _Ablated:
    """An engine edit that sets neurons outside a variant's mask to new values at all tokens."""

    kept: Tensor
    mask: Indices
    new: Tensor
    site: str = SITE

    def apply(self, tensor: Tensor, layout: Layout) -> Tensor:
        """(tokens, neurons) with the new values."""
        rows = torch.from_numpy(np.repeat(self.mask[layout.ids], layout.sizes))
        new = self.new if len(self.new) == 1 else self.new[layout.base.to(tensor.device)]
        return torch.where(self.kept[rows.to(tensor.device)], tensor, new)
