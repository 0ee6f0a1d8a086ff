"""What a step of a study costs: runs, tokens, operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from interp.core.components import Component
from interp.engine.architecture import Decoder
from interp.engine.cost import floor_flops
from interp.engine.run_cost import Lengths, plain_flops, read_flops, restart_flops, text_flops
from interp.engine.sweep import Cells
from interp.patching.path_cost import path_flops

ROWS = 96
"""Texts decoded together; see `interp.generate`."""

FOUND = 2 / 3
"""Where the components that a step finds are taken to lie, as a share of the layers."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The cost of a step, or of a part of one.

    runs: whole or restarted runs, and texts. tokens: tokens that any layer is computed for. flops:
    operations of matrix products. reads: times that all weights are read for one token of each
    text, which limits the speed of generation. left_out: what of the step is not counted.
    """

    step: str = ""
    runs: float = 0
    tokens: float = 0
    flops: float = 0
    reads: float = 0
    left_out: str = ""

    def __add__(self, other: StepCost) -> StepCost:
        return replace(
            self,
            runs=self.runs + other.runs,
            tokens=self.tokens + other.tokens,
            flops=self.flops + other.flops,
            reads=self.reads + other.reads,
        )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of the kinds of runs that steps consist of, on one model."""

    decoder: Decoder

    @property
    def found(self) -> int:
        """The layer at which found components are taken to lie."""
        return int(FOUND * len(self.decoder.blocks))

    def plain(self, lengths: Lengths, *, read: bool = True) -> StepCost:
        """Whole runs, and the logits of the last token."""
        flops = plain_flops(self.decoder, lengths)
        flops += read_flops(self.decoder, len(lengths)) if read else 0
        return StepCost(runs=len(lengths), tokens=float(np.sum(lengths)), flops=flops)

    def changed(
        self, lengths: Lengths, times: float, *, layer: int | None = None, last: int | None = 1
    ) -> StepCost:
        """Every prompt run `times` times with a change from a layer on, logits included.

        layer: that of found components by default. last: tokens that are changed; None for all.
        """
        layer = self.found if layer is None else layer
        flops = restart_flops(self.decoder, lengths, layer=layer, last=last)
        flops += read_flops(self.decoder, len(lengths))
        tokens = np.sum(lengths) if last is None else last * len(lengths)
        return StepCost(runs=times * len(lengths), tokens=times * tokens, flops=times * flops)

    def scored(self, lengths: Lengths, times: float) -> StepCost:
        """Whole runs in which the logits of every token are read, such as for losses."""
        run = self.plain(lengths, read=False)
        flops = run.flops + read_flops(self.decoder, run.tokens)
        return StepCost(runs=times * run.runs, tokens=times * run.tokens, flops=times * flops)

    def texts(self, lengths: Lengths, new: float) -> StepCost:
        """Greedy texts of `new` tokens behind every prompt."""
        return StepCost(
            runs=len(lengths),
            tokens=float(np.sum(lengths)) + len(lengths) * new,
            flops=text_flops(self.decoder, lengths, new),
            reads=ceil(len(lengths) / ROWS) * new,
        )

    def sweep(self, lengths: Lengths, site: str, *, last: int, by_head: bool = True) -> StepCost:
        """Exact patching of every head, or of every layer's site, at the last tokens together."""
        sizes, n_layers = np.asarray(lengths), len(self.decoder.blocks)
        each = self.decoder.blocks[0].attn.n_heads if by_head else 1
        grid = np.indices((len(sizes), n_layers)).reshape(2, -1)
        cells = Cells(
            prompt=grid[0],
            cell=grid[1],
            layer=grid[1],
            component=np.full(len(grid[0]), 0 if by_head else -1),
            count=np.full(len(grid[0]), last),
            positions=(sizes[grid[0]][:, None] + np.arange(-last, 0)).ravel(),
        )
        flops = each * floor_flops(self.decoder, cells, sizes, site)
        runs = each * len(cells)
        swept = StepCost(runs=runs, tokens=float(runs * last), flops=flops)
        return swept + self.plain(lengths) + self.plain(lengths)

    def paths(
        self,
        lengths: Sequence[int],
        where: Sequence[Sequence[int]],
        receivers: Sequence[Component] = (),
        layers: Sequence[int] | None = None,
        *,
        read: bool = False,
        kept: bool = False,
    ) -> StepCost:
        """Path patching of every head into some receivers; none for the logits.

        read: whether the metric needs all logits of each run, not those of a few tokens. kept:
        whether the plain runs of both sides are kept from an earlier step.
        """
        layers = range(len(self.decoder.blocks)) if layers is None else layers
        runs = len(layers) * self.decoder.blocks[0].attn.n_heads * len(lengths)
        changed = sum(n - places[0] for n, places in zip(lengths, where, strict=True) if places)
        plain = 0 if kept else 2 * len(lengths)
        return StepCost(
            runs=runs + plain,
            tokens=runs / len(lengths) * changed + plain * float(np.mean(lengths)),
            flops=path_flops(self.decoder, lengths, where, receivers, layers)
            - (2 * plain_flops(self.decoder, lengths) if kept else 0)
            + (read_flops(self.decoder, runs) if read else 0),
        )


def part(step: str, *costs: StepCost, left_out: str = "") -> StepCost:
    """A step from its parts, by name."""
    return sum(costs, StepCost(step=step, left_out=left_out))
