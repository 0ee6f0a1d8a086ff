"""A first-order estimate of the effect of every feature, from one backward pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Columns, reads_arguments
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.schema import Seed, Whole, checked
from interp.engine.forward import Runner
from interp.engine.gradients import (
    Run,
    backward,
    chunks,
    forward,
    metric_gradient,
    metric_of,
    row_order,
    rows_of,
)
from interp.engine.memory import budget_bytes, says_too_little
from interp.features.dictionary import Dictionary
from interp.features.effects import (
    FeatureEffects,
    columns_of,
    masks_of,
    moved,
    random_rows,
    settled,
    sites_needed,
)
from interp.models.language_model import LanguageModel
from interp.results.prompt_effects import EffectUnit, require_unit
from interp.runs.pairs import PatchDirection, paired_runs


@reads_arguments
@says_too_little
def feature_attribution(
    model: LanguageModel,
    task: Task,
    dictionary: Dictionary,
    *,
    positions: Columns = "all",
    by_position: bool = False,
    direction: PatchDirection = "denoise",
    unit: EffectUnit = "gap",
    draws: int = 20,
    seed: int = 0,
    budget_gb: float = 1.0,
) -> FeatureEffects:
    """A first-order estimate of `feature_patching` for all features at once.

        effect(i) = sum over tokens of (f_i[other] - f_i[base]) d_i . dm/dy [base]

    y is the site written and d_i the decoder's row; the error's effect is that of its own change.
    All effects of the features, with that of the error, add up to the site's: the estimate of
    `attribution_patching`. The gradient runs through the model, not through the dictionary. Costs 2
    forward passes and 1 backward pass per batch of prompts.

    Args:
        model: a model with a fast engine that the dictionary fits.
        task: prompt pairs that are scored on one token.
        dictionary: an SAE or a transcoder.
        positions: "all", or several positions; see `interp.core.arguments.Columns`.
        by_position: measure each position apart ("all": every token, of prompts of equal length).
        direction: "denoise" or "noise", with the sign of `activation_patching`.
        unit: "gap" (fractions of the clean-corrupted gap) or "metric".
        draws: random dictionaries that are compared, see `FeatureEffects.null`.
        seed: seed of the random dictionaries.
        budget_gb: memory for the graphs of runs in flight.

    Raises:
        InterpError: as `attribution_patching`, or a dictionary that does not fit.

    Equals the finite difference of hooked patching (tests/features/test_effects.py). Sources: arXiv
    2403.19647 (attribution of SAE features and errors); arXiv 2406.11944 (transcoders).
    """
    require_unit(unit)
    draws, seed = checked(Whole, draws, "draws"), checked(Seed, seed, "seed")
    budget = budget_bytes(budget_gb)
    decoder = model.require_decoder("feature attribution")
    dictionary.require_model(model)
    model.refuse_changed("feature attribution")
    if task.metric.needs_reference and direction == "noise":
        found = "it compares with the clean run, so its gradient there is zero"
        raise InterpError(f"the gradient of {task.metric.name}", found, "denoise, or logit_diff")
    runs, runner = paired_runs(model, task, direction), Runner(decoder)
    columns, names, words = columns_of(runs, positions, by_position)
    lengths = np.array([len(prompt) for prompt in runs.base])
    sites = sites_needed(model, dictionary) - {"resid_pre"}
    n, size = len(task), dictionary.size
    ends, effects = np.zeros((2, n)), np.zeros((n, size, len(columns)))
    error, site = np.zeros(n), np.zeros(n)
    others = random_rows(dictionary.W_dec, draws, seed)
    random = np.zeros((draws, size, len(columns)))
    order = row_order(runs.base)

    def run(tokens: list[tuple[int, ...]], *, grad: bool = False, recompute: bool = False) -> Run:
        layout, x = rows_of(runner, tokens)
        return forward(runner, x, layout, kept=sites, grad=grad, recompute=recompute)

    for piece, rebuilt in chunks(decoder, lengths[order], budget):
        prompts = order[piece]
        targets = runs.targets.select(torch.from_numpy(prompts))
        base = run([runs.base[i] for i in prompts], grad=True, recompute=rebuilt)
        other = run([runs.other[i] for i in prompts])
        m_base, final = metric_gradient(runner, base, task.metric, targets)
        ends[0, prompts] = m_base
        ends[1, prompts] = metric_of(runner, other, task.metric, targets)
        with torch.no_grad():
            change, whole = moved(dictionary, model, decoder, base, other)
        slope = _slope(runner, base, final, dictionary).to(dictionary.W_dec)
        rows = np.repeat(np.arange(len(prompts)), base.layout.sizes)
        starts = base.layout.first_token.tolist()
        masks = masks_of(columns, prompts.tolist(), starts, len(rows)).to(slope.device)
        at = torch.from_numpy(rows).to(slope.device)

        def by_row(values: Tensor, at: Tensor = at, n: int = len(prompts)) -> np.ndarray:
            total = values.new_zeros(n, *values.shape[1:]).index_add_(0, at, values)
            return total.double().cpu().numpy()

        along = change * (slope @ dictionary.W_dec.T)
        left = ((whole - change @ dictionary.W_dec) * slope).sum(-1)
        total, every = (whole * slope).sum(-1), masks.any(0)
        error[prompts], site[prompts] = by_row(left * every), by_row(total * every)
        for column, mask in enumerate(masks):
            effects[prompts, :, column] = by_row(along * mask[:, None])
            for draw, drawn in enumerate(others):
                there = (change * (slope @ drawn.T)) * mask[:, None]
                random[draw, :, column] += there.sum(0).double().cpu().numpy() / n
    asked = {"positions": positions, "by_position": by_position, "direction": direction}
    asked |= {"unit": unit, "draws": draws, "seed": seed}
    gained = {"effects": effects, "together": effects.sum((1, 2)), "error": error, "site": site}
    gained |= {"random": random, "random_together": random.sum((1, 2))}
    return FeatureEffects(
        features=tuple(range(size)),
        columns=names,
        positions=words,
        **settled(model, task, dictionary, "feature_attribution", ends, gained, **asked),
    )


def _slope(runner: Runner, base: Run, final: Tensor, dictionary: Dictionary) -> Tensor:
    """(tokens, d_written) the gradient of the metric at the site written."""
    for layer, gradients in backward(runner, base, final, [dictionary.written]):
        if layer == dictionary.layer:
            return gradients[dictionary.written].flatten(1)
    raise AssertionError(dictionary.layer)
