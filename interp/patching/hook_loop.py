"""Activation patching in the plain way: one hooked forward pass per cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from interp.core.branches import Unfolded
from interp.core.metrics import Logits
from interp.core.run_options import RunOptions
from interp.engine.resume import Chunks
from interp.engine.stopping import Cancelled
from interp.engine.sweep import Cells, Swept
from interp.models.batches import Batch
from interp.models.language_model import Address, Hook, LanguageModel
from interp.patching.sweep import PatchSweep

Values = dict[tuple[int, int], torch.Tensor]
"""A site's values by layer and prompt."""


def hook_loop(
    model: LanguageModel,
    sweep: PatchSweep,
    options: RunOptions,
    *,
    chunks: Chunks,
    check: Callable[[np.ndarray, np.ndarray], None],
) -> Swept:
    """One hooked forward pass per cell, on all prompts at once. The fast engine must equal it."""
    runs, site = sweep.runs, sweep.spec.site
    values: Values = {}
    plain = Unfolded.of(runs.base)
    layers = sorted(set(sweep.cells.layer.tolist()))

    def metric(logits: torch.Tensor) -> np.ndarray:
        return sweep.metric(Logits(logits.cpu()), runs.targets).numpy()

    other = metric(model.tail_logits(runs.other, hooks=_reads(values, site, layers)))
    base = metric(model.tail_logits(runs.base))
    check(base, other)
    if sweep.spec.source != "other":
        _ablate(model, values, layers, sweep)
    result = np.repeat(base[:, None], sweep.n_cells, axis=1)
    groups = list(_by_cell(sweep.cells))
    for done, (cell, layer, part, where) in enumerate(groups):
        if options.cancelled():
            raise Cancelled("the sweep", f"stopped after {done} of {len(groups)} cells", "rerun it")
        hooks = {(layer, site): [_patch_hook(values, site, layer, part, _plain(where, plain))]}
        result[:, cell] = chunks.once(
            done, len(base), lambda h=hooks: metric(model.tail_logits(runs.base, hooks=h))
        )
        if options.progress is not None:
            options.progress(done + 1, len(groups))
    return Swept(patched=result, base=base, other=other)


def _reads(values: Values, site: str, layers: list[int]) -> dict[Address, list[Hook]]:
    """Hooks that store a site's values by layer and prompt."""

    def read(layer: int) -> Hook:
        def hook(value: torch.Tensor, batch: Batch) -> torch.Tensor:
            for row, prompt in enumerate(batch.prompts.tolist()):
                values[layer, prompt] = value[row].detach().clone()
            return value

        return hook

    return {(layer, site): [read(layer)] for layer in layers}


def _ablate(model: LanguageModel, values: Values, layers: list[int], sweep: PatchSweep) -> None:
    """Replace the stored values by zeros, or by their mean over all tokens of the reference."""
    seen: Values = {}
    if sweep.spec.source == "mean":
        model.last_logits(list(sweep.means_over), hooks=_reads(seen, sweep.spec.site, layers))
    lengths = [len(prompt) for prompt in sweep.means_over]
    for layer in layers:
        new = torch.zeros(())
        if seen:
            new = torch.cat([seen[layer, i][:length] for i, length in enumerate(lengths)]).mean(0)
        for at in [at for at in values if at[0] == layer]:
            values[at] = new.expand_as(values[at])


def _by_cell(cells: Cells) -> Iterator[tuple[int, int, int, dict[int, list[int]]]]:
    """(cell, layer, component, {prompt: positions}) of every cell."""
    first = cells.first
    grouped: dict[int, list[int]] = {}
    for entry, cell in enumerate(cells.cell.tolist()):
        grouped.setdefault(cell, []).append(entry)
    for cell, members in sorted(grouped.items()):
        where = {
            int(cells.prompt[i]): cells.positions[first[i] : first[i] + cells.count[i]].tolist()
            for i in members
        }
        yield cell, int(cells.layer[members[0]]), int(cells.component[members[0]]), where


def _plain(where: dict[int, list[int]], plain: Unfolded) -> dict[int, list[int]]:
    """The same tokens in the plain rows of prompts with branches."""
    return {
        row: np.flatnonzero(np.isin(plain.within[row], where[owner])).tolist()
        for row, owner in enumerate(plain.owner)
        if owner in where
    }


def _patch_hook(
    values: Values,
    site: str,
    layer: int,
    part: int,
    where: dict[int, list[int]],
) -> Hook:
    def hook(value: torch.Tensor, batch: Batch) -> torch.Tensor:
        patched = value.clone()
        chosen = slice(None) if part < 0 else part
        for row, prompt in enumerate(batch.prompts.tolist()):
            for position in where.get(prompt, []):
                new = values[layer, prompt]
                if site == "pattern":
                    patched[row, chosen, position] = new[chosen, position]
                else:
                    patched[row, position, chosen] = new[position, chosen]
        return patched

    return hook
