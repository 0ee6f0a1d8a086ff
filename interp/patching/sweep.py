"""One patching sweep laid out: its runs, its cells, and an estimate of its cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from interp.core.arguments import Columns
from interp.core.components import SITES, within
from interp.core.errors import InterpError, unknown
from interp.core.metrics import Metric
from interp.core.prompts import Task
from interp.engine.cost import Cost, floor_flops, forecast
from interp.engine.sweep import Cells
from interp.models.language_model import LanguageModel
from interp.patching.spec import PatchSpec
from interp.runs.mean_activations import ReferencePrompts, reference_prompts
from interp.runs.pairs import PairedRuns, paired_runs


@dataclass(frozen=True, kw_only=True)
class PatchSweep:
    """One patching sweep, ready to run: what was asked for, checked and laid out in cells.

    Attributes:
        spec: what was asked for; its layers and components are sorted.
        runs: the two runs of every pair, in tokens.
        cells: every (prompt, cell) whose patch can change anything.
        axes: the axes of the result, in order.
        coordinates: the labels along each axis.
        means_over: the tokens of the prompts that a mean is taken over; () for other sources.
        positions: which tokens are patched, in words.
        metric: the task's metric.
    """

    spec: PatchSpec
    runs: PairedRuns
    cells: Cells
    axes: tuple[str, ...]
    coordinates: dict[str, tuple[str, ...]]
    means_over: ReferencePrompts
    positions: str
    metric: Metric

    @property
    def n_cells(self) -> int:
        """Number of cells of the result."""
        return int(np.prod([len(self.coordinates[axis]) for axis in self.axes]))

    def facts(self, model: LanguageModel) -> dict[str, Any]:
        """Facts for the result: the tokens at each position, and whether the prompts are pairs."""
        each = "position" in self.axes and self.positions == "each token"
        return self.runs.pairing | ({"tokens": self.runs.texts(model)} if each else {})

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens that are run for each prompt."""
        return np.array([len(prompt) for prompt in self.runs.base])


def make_sweep(model: LanguageModel, task: Task, spec: PatchSpec) -> PatchSweep:
    """Check what is asked for and lay out the cells.

    Raises:
        InterpError: see `activation_patching`.
    """
    site, by, source = spec.site, spec.by, spec.source
    model.require_site(site)
    if source not in ("other", "zero", "mean"):
        raise unknown("source", source, ("other", "zero", "mean"))
    if source == "mean" and site == "pattern":
        raise InterpError("the mean of pattern", "prompts differ in keys", "use z or zero")
    unpaired = source != "other" and spec.direction == "noise" and spec.unit == "metric"
    runs = paired_runs(model, task, spec.direction, unpaired=unpaired, strings=True)
    evaluated = [*runs.encoded.clean, *(runs.encoded.corrupted or ())]
    means_over = reference_prompts(model, source, spec.reference, evaluated)
    numbered = SITES[site]
    axes = tuple(numbered if axis == "head" and numbered == "kv_head" else axis for axis in by)
    allowed = {"layer", "position", numbered} - {None}
    if not set(axes) <= allowed or "layer" not in axes or len(set(axes)) < len(axes):
        raise InterpError(
            f"patching {site} by {by}",
            f"axes of {site}: {', '.join(sorted(str(axis) for axis in allowed))}",
            "name 'layer' and any of the others once",
        )
    chosen_layers = within(spec.layers, model.n_layers, "layer", model.name)
    coordinates: dict[str, tuple[str, ...]] = {"layer": tuple(map(str, chosen_layers))}
    parts = [-1]
    if numbered is not None and numbered in axes:
        parts = within(spec.components, model.size(numbered), numbered, model.name)
        coordinates[numbered] = tuple(map(str, parts))
    elif spec.components is not None:
        raise InterpError("components=", f"{numbered!r} is not in by={by}", "add it to `by`")
    swept = "position" in axes
    columns, names, words = _columns(runs, spec.positions, swept, source)
    if swept:
        coordinates["position"] = names or tuple(map(str, range(len(columns))))
    order = ("layer", numbered, "position")
    axes = tuple(axis for axis in order if axis in axes)  # type: ignore[misc]
    checked = replace(
        spec,
        layers=None if spec.layers is None else chosen_layers,
        components=None if spec.components is None else parts,
    )
    return PatchSweep(
        spec=checked,
        runs=runs,
        cells=_cells(runs, chosen_layers, parts, columns, source),
        axes=axes,
        coordinates={axis: coordinates[axis] for axis in axes},
        means_over=means_over,
        positions=words,
        metric=task.metric,
    )


def cost(model: LanguageModel, sweep: PatchSweep) -> Cost:
    """Estimate the cost of a sweep from its `operations`."""
    flops = operations(model, sweep)
    return forecast("sweep", model.hash, model.device, model.dtype, len(sweep.cells), flops)


def operations(model: LanguageModel, sweep: PatchSweep) -> float:
    """The floating-point operations that a sweep cannot avoid; with hooks, those of whole runs."""
    if model.decoder is not None:
        return floor_flops(model.decoder, sweep.cells, sweep.lengths, sweep.spec.site)
    per_token = 2.0 * sum(p.numel() for p in model.hf_model.parameters())
    return len(sweep.cells) * float(sweep.lengths.mean()) * per_token


def _columns(
    runs: PairedRuns, positions: Columns, swept: bool, source: str
) -> tuple[list[list[list[int]]], tuple[str, ...], str]:
    """The patched positions (for each column, for each prompt), their names, and a description."""
    lengths = [len(prompt) for prompt in runs.encoded.clean]
    every = isinstance(positions, str) and positions == "all"
    if every and swept:
        if len(set(lengths)) > 1:
            raise InterpError(
                "patching by every token position",
                f"prompts of {min(lengths)} to {max(lengths)} tokens",
                "give named positions, or prompts of equal length",
            )
        columns = [[[p]] * len(lengths) for p in range(lengths[0])]
        return columns, (), "each token"
    if every:
        # The two runs are equal before their first difference: patching there changes nothing.
        first = runs.differ if source == "other" else np.zeros_like(runs.differ)
        ends = map(len, runs.base)  # behind the answers, if they have several tokens
        return [[list(range(f, n)) for f, n in zip(first, ends, strict=True)]], (), "all tokens"
    names, tokens = runs.encoded.columns(positions)
    if swept:
        return [[[p] for p in column] for column in tokens], names, "each of " + ", ".join(names)
    together = [sorted(set(group)) for group in zip(*tokens, strict=True)]
    return [together], names, " and ".join(names)


def _cells(
    runs: PairedRuns,
    layers: list[int],
    parts: list[int],
    columns: list[list[list[int]]],
    source: str,
) -> Cells:
    """Every (prompt, cell) whose patch can change anything."""
    entries, positions = [], []
    shape = (len(layers), len(parts), len(columns))
    for prompt in range(len(runs.base)):
        for column, tokens in enumerate(columns):
            where = tokens[prompt]
            if source == "other":
                where = [p for p in where if p >= runs.differ[prompt]]
            if not where:
                continue
            grid = np.indices(shape[:2]).reshape(2, -1)
            cell = np.ravel_multi_index((grid[0], grid[1], np.full(grid.shape[1], column)), shape)
            block = np.stack(
                [
                    np.full(len(cell), prompt),
                    cell,
                    np.array(layers)[grid[0]],
                    np.array(parts)[grid[1]],
                    np.full(len(cell), len(where)),
                ]
            )
            entries.append(block)
            positions.append(np.tile(where, len(cell)))
    if not entries:
        entries, positions = [np.zeros((5, 0), dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    columns_of = np.concatenate(entries, axis=1)
    prompt, cell, layer, component, count = columns_of
    return Cells(
        prompt=prompt,
        cell=cell,
        layer=layer,
        component=component,
        count=count,
        positions=np.concatenate(positions),
    )
