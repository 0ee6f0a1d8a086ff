"""Exact patching of features: each alone, all together, and the error, in the fast engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Columns, reads_arguments
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.schema import Count, Seed, Whole, checked
from interp.engine.forward import Baseline, Runner
from interp.engine.memory import says_too_little
from interp.engine.readout import CPU_TILE, LogitsOf
from interp.engine.restart import baseline, final_hidden
from interp.features.attribution import feature_attribution
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
from interp.runs.change import Change, Edit, Tokens
from interp.runs.changed_runs import changed_states
from interp.runs.pairs import PairedRuns, PatchDirection, paired_runs
from interp.runs.stored_runs import plain_runs


@reads_arguments
@says_too_little
def feature_patching(
    model: LanguageModel,
    task: Task,
    dictionary: Dictionary,
    *,
    features: Iterable[int] | None = None,
    top: int = 10,
    positions: Columns = "all",
    by_position: bool = False,
    direction: PatchDirection = "denoise",
    unit: EffectUnit = "gap",
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> FeatureEffects:
    """The effect of giving features their activations from the pair's other run, exactly.

        y := y + (f_i[other] - f_i[base]) d_i   at the tokens patched

    The effect is that of `activation_patching`. The change is made at the site written, and the
    model runs on from there. The error stays that of the base run. `together` patches all the
    `features` at once, `error` what no feature carries, and `site` all features of the dictionary
    and the error, which is the whole site.

    Args:
        model: a model with a fast engine that the dictionary fits.
        task: prompt pairs that are scored on one token.
        dictionary: an SAE or a transcoder.
        features: the numbers of the features; by default the `top` ones.
        top: how many features of largest absolute effect by `feature_attribution` on the same
            prompts. To test a selection, give `features` that were selected on others.
        positions: as in `feature_attribution`.
        by_position: as in `feature_attribution`; `together`, `error` and `site` are patched at all
            positions.
        direction: "denoise" or "noise", with the sign of `activation_patching`.
        unit: "gap" (fractions of the clean-corrupted gap) or "metric".
        draws: random dictionaries that are compared: the same activations, other directions.
        seed: seed of the random dictionaries.
        progress: called with (prompts done, prompts in total).

    Raises:
        InterpError: as `activation_patching`, no such feature, or a dictionary that does not fit.

    Equals a loop of hooked runs (tests/features/test_effects.py).
    """
    require_unit(unit)
    draws, seed = checked(Whole, draws, "draws"), checked(Seed, seed, "seed")
    decoder = model.require_decoder("feature patching")
    dictionary.require_model(model)
    model.refuse_changed("feature patching")
    if features is None:
        top = checked(Count, top, "top")
        found = feature_attribution(
            model,
            task,
            dictionary,
            positions=positions,
            direction=direction,
            unit="metric",
            draws=0,
        )
        chosen = sorted(one.feature for one in found.top(top, by="absolute"))
    else:
        chosen = dictionary.require_features(features)
    runs = paired_runs(model, task, direction)
    columns, names, words = columns_of(runs, positions, by_position)
    rows = dictionary.W_dec[chosen]
    tables = [rows, *random_rows(rows, draws, seed)]
    n, shape = len(task), (len(chosen), len(columns))
    alone = np.zeros((len(tables), n, *shape))
    sums, rest, ends = np.zeros((len(tables), n)), np.zeros((2, n)), np.zeros((2, n))
    runner, sites, done = Runner(decoder), sites_needed(model, dictionary), 0
    with torch.no_grad():
        for block, base in plain_runs(runner, runs.base, sites=sites, tokens=CPU_TILE):
            other = baseline(runner, [runs.other[i] for i in block], sites)
            work = _Block(runner, task, runs, dictionary, block, base)
            ends[:, block] = [work.metric(final_hidden(runner, run)) for run in (base, other)]
            change, whole = moved(dictionary, model, decoder, base, other)
            masks = masks_of(columns, block.tolist(), base.offset.tolist(), len(whole)).to(
                change.device
            )
            every, own = masks.any(0)[:, None], change[:, chosen]
            left = whole - change @ dictionary.W_dec
            rest[:, block] = work.gained([(left * every, None), (whole * every, None)])
            for table, written in enumerate(tables):
                sums[table, block] = work.gained([(own * every, written)])[0]
                cells = [
                    (own[:, [i]] * mask[:, None], written[[i]])
                    for i in range(len(chosen))
                    for mask in masks
                ]
                alone[table][block] = work.gained(cells).T.reshape(len(block), *shape)
            done += len(block)
            if progress is not None:
                progress(done, n)
    asked = {"features": chosen, "positions": positions, "by_position": by_position}
    asked |= {"direction": direction, "unit": unit, "draws": draws, "seed": seed}
    gained = {"effects": alone[0], "together": sums[0], "error": rest[0], "site": rest[1]}
    gained |= {"random": alone[1:].mean(1), "random_together": sums[1:].mean(1)}
    return FeatureEffects(
        features=tuple(chosen),
        columns=names,
        positions=words,
        **settled(model, task, dictionary, "feature_patching", ends, gained, **asked),
    )


@dataclass(frozen=True)
class _Block:
    """Some prompts, their base runs, and the metric that a change of the site written gains."""

    runner: Runner
    task: Task
    runs: PairedRuns
    dictionary: Dictionary
    prompts: np.ndarray
    base: Baseline

    def metric(self, hidden: Tensor) -> np.ndarray:
        """(rows,) the metric of final states of the prompts, one after the other."""
        repeats = len(hidden) // len(self.prompts)
        targets = self.runs.targets.select(torch.from_numpy(np.tile(self.prompts, repeats)))
        return self.task.metric(
            LogitsOf(decoder=self.runner.decoder, hidden=hidden), targets
        ).numpy()

    def gained(self, deltas: Sequence[tuple[Tensor, Tensor | None]]) -> np.ndarray:
        """(deltas, prompts) metric gained when each delta is added to the site.

        A delta (tokens, width) is the product of activations and rows; or itself, without rows.
        """
        found = np.zeros((len(deltas), len(self.prompts)))
        plain = self.metric(final_hidden(self.runner, self.base))
        step = max(1, CPU_TILE // int(self.base.lengths.sum()))
        for start in range(0, len(deltas), step):
            moving: dict[int, Change] = {}
            for i, (values, rows) in enumerate(deltas[start : start + step], start):
                delta = values if rows is None else values @ rows
                if bool(delta.any()):
                    moving[i] = self._added(delta)
            if moving:
                changes = list(moving.values())
                hidden = changed_states(self.runner, self.base, changes, self.prompts)
                metrics = self.metric(hidden.flatten(0, 1)).reshape(len(moving), -1)
                found[list(moving)] = metrics - plain
        return found

    def _added(self, delta: Tensor) -> Change:
        """The site plus a delta, from the first token on that it changes."""
        where = delta.any(-1).cpu().numpy()
        lengths, offset = self.base.lengths, self.base.offset
        last = 1 + max(
            int(n - 1 - np.argmax(where[start : start + n]))
            for start, n in zip(offset.tolist(), lengths.tolist(), strict=True)
            if where[start : start + n].any()
        )
        row = torch.zeros(len(self.runs.base), dtype=torch.long)
        row[self.prompts] = torch.from_numpy(offset)
        row = row.to(delta.device)

        def value(old: Tensor, tokens: Tokens) -> Tensor:
            return old + delta[row[tokens.prompts] + tokens.positions].to(old)

        edit = Edit(
            name="add features",
            layer=self.dictionary.layer,
            site=self.dictionary.written,
            value=value,
            positions=slice(-last, None) if last <= lengths.min() else "all",
        )
        return Change(name="features", edits=(edit,))
