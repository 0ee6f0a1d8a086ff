"""Run a baseline again with changes, exactly, and compute only what can differ.

A change in layer l at position p changes nothing before layer l and, in a causal model, nothing at
positions before p. So a variant starts at layer l with the positions from p on and reads the
baseline's keys and values for earlier positions. In the last layer only the last token is computed
after attention. All variants of a chunk go through a layer together, whatever layer they started
at. Rows have different lengths, so nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.components import EXPERT_SITES
from interp.engine.forward import Baseline, Edits, Runner
from interp.engine.layout import Indices, Layout, branches_of, ranges

_EARLY = ("resid_pre", "q", "k", "v")
_RESTART = ("resid_pre", "k_rot", "v")


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Changed runs, one per entry: its prompt, the first position that differs, and its layer.

    `ready` variants start after their layer, with the new resid_post given by `Joined`. The others
    start before their layer, with the baseline's resid_pre, and are changed by edits.
    """

    prompt: Indices
    start: Indices
    layer: Indices
    ready: Indices

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, kw_only=True)
class Joined:
    """New resid_post of ready variants: entry j is that of (ids[j], positions[j])."""

    ids: Indices
    positions: Indices
    values: Tensor


Join = Callable[[int, Indices], Joined]
"""(layer, ids of the ready variants that start after it) -> their new resid_post."""


def baseline(
    runner: Runner, prompts: Sequence[Sequence[int]], sites: frozenset[str] = frozenset()
) -> Baseline:
    """An unchanged run that stores what restarts need, and the named sites, at every layer."""
    layout = Layout.of_prompts(prompts)
    # The stored tokens keep the order of the prompts, although rows run in another order.
    rows, back = np.argsort(layout.order), torch.argsort(layout.base).to(runner.device)
    kept = Baseline(
        lengths=layout.length[rows], offset=layout.offset[rows], branches=branches_of(prompts)
    )
    x = runner.embed(prompts, layout)
    wanted = {*_RESTART, *sites}
    for layer in range(len(runner.decoder.blocks)):
        capture: dict[str, Tensor] = {}
        x = runner.block(
            layer,
            x,
            layout,
            capture=capture,
            patterns="pattern" in wanted,
            experts=not EXPERT_SITES.isdisjoint(wanted),
        )
        for site in wanted & capture.keys():
            kept.sites[layer, site] = capture[site][back]
    kept.sites[len(runner.decoder.blocks), "resid_pre"] = x[back]
    return kept


def final_hidden(runner: Runner, base: Baseline) -> Tensor:
    """(tokens read, d_model) normalised final residual at the last token of each baseline prompt.

    Of a prompt with branches, at its whole tail: see `interp.core.branches`.
    """
    tails = base.tails(np.arange(len(base.lengths)))
    at = torch.from_numpy(ranges(base.offset + base.lengths - tails, tails)).to(runner.device)
    return runner.decoder.ln_final(base.at(len(runner.decoder.blocks), "resid_pre", at))


def restart(
    runner: Runner,
    base: Baseline,
    variants: Variants,
    *,
    join: Join | None = None,
    edits: Edits | None = None,
    seen: dict[tuple[int, str], Tensor] | None = None,
) -> Tensor:
    """(tokens read, d_model) normalised final residual at the last token of every variant.

    Of a prompt with branches, at its whole tail, one variant after the other. The keys of `seen`
    are (layer, site); their values at the last token of every variant, (tokens read, ...), are
    stored in it. No variant may start after such a layer.
    """
    edits, seen = edits or {}, {} if seen is None else seen
    n_layers = len(runner.decoder.blocks)
    length = base.lengths[variants.prompt]
    layout = Layout(
        **dict.fromkeys(("ids", "prompt", "start", "length"), np.zeros(0, dtype=np.int64)),
        offset=base.offset,
        branches=base.branches,
    )
    x = base.sites[0, "resid_pre"].new_empty(0, runner.decoder.d_model)
    for layer in range(int(variants.layer.min(initial=n_layers)), n_layers):
        here = edits.get(layer, [])
        last = layer == n_layers - 1
        only_last = last and all(edit.site in _EARLY for edit in here)
        early = np.flatnonzero((variants.layer == layer) & ~variants.ready)
        if len(early):
            entering = _layout(variants, early, length, base)
            at = entering.base.to(runner.device)
            layout, x = _merge(layout, x, entering, base.at(layer, "resid_pre", at), base)
        if len(layout):
            asked = [site for at, site in seen if at == layer]
            capture = {} if asked else None
            x = runner.block(
                layer,
                x,
                layout,
                base=base,
                edits=here,
                only_last=only_last,
                capture=capture,
                experts=not EXPERT_SITES.isdisjoint(asked),
            )
            for site in asked:
                _keep_ends(seen, (layer, site), (capture or {})[site], layout, length)
        late = np.flatnonzero((variants.layer == layer) & variants.ready)
        if last:
            if len(layout):
                x = x if only_last else x[layout.ends.to(runner.device)]
            return _finish(runner, base, variants, layout, x, late, join)
        if len(late):
            assert join is not None
            entering = _layout(variants, late, length, base)
            suffix = base.at(layer + 1, "resid_pre", entering.base.to(runner.device))
            changed = join(layer, late)
            suffix[entering.flat(changed.ids, changed.positions).to(runner.device)] = changed.values
            layout, x = _merge(layout, x, entering, suffix, base)
    raise AssertionError("variants must start at a layer of the model")


def _keep_ends(
    seen: dict[tuple[int, str], Tensor],
    address: tuple[int, str],
    value: Tensor,
    layout: Layout,
    length: Indices,
) -> None:
    """Store a site's value at the tail of every row."""
    assert len(layout) == len(length)
    ends = value if len(value) == layout.tails.sum() else value[layout.ends.to(value.device)]
    tails = np.empty_like(layout.tails)
    tails[layout.ids] = layout.tails
    first = np.cumsum(tails) - tails
    seen[address] = torch.empty_like(ends)
    at = torch.from_numpy(ranges(first[layout.ids], layout.tails))
    seen[address][at.to(value.device)] = ends


def _layout(variants: Variants, ids: Indices, length: Indices, base: Baseline) -> Layout:
    return Layout(
        ids=ids,
        prompt=variants.prompt[ids],
        start=np.minimum(variants.start[ids], length[ids] - base.tails(variants.prompt[ids])),
        length=length[ids],
        offset=base.offset,
        branches=base.branches,
    )


def _merge(
    layout: Layout, x: Tensor, entering: Layout, suffix: Tensor, base: Baseline
) -> tuple[Layout, Tensor]:
    if not len(layout):
        return entering, suffix
    merged, gather = layout.joined(entering, base.offset)
    return merged, torch.cat([x, suffix])[gather.to(x.device)]


def _finish(
    runner: Runner,
    base: Baseline,
    variants: Variants,
    layout: Layout,
    x: Tensor,
    late: Indices,
    join: Join | None,
) -> Tensor:
    """Final residuals of all variants, including those that start after the last layer."""
    tails = base.tails(variants.prompt)
    begin, first = base.lengths[variants.prompt] - tails, np.cumsum(tails) - tails
    at = torch.from_numpy(ranges(base.offset[variants.prompt] + begin, tails)).to(runner.device)
    hidden = base.at(len(runner.decoder.blocks), "resid_pre", at)
    x_at = torch.from_numpy(ranges(first[layout.ids], tails[layout.ids])).to(runner.device)
    hidden[x_at] = x
    if len(late):
        assert join is not None
        changed = join(len(runner.decoder.blocks) - 1, late)
        behind = changed.positions - begin[changed.ids]
        at_end = behind >= 0
        where = torch.from_numpy((first[changed.ids] + behind)[at_end]).to(runner.device)
        hidden[where] = changed.values[torch.from_numpy(at_end).to(runner.device)]
    return runner.decoder.ln_final(hidden)
