"""One patching sweep spelled out: the runs, the cells, what it costs, where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from interp.core.arguments import Columns, as_positions, columns_of, listed
from interp.core.components import SITES, within
from interp.core.errors import InterpError, unknown
from interp.core.metrics import Metric
from interp.core.prompts import Task
from interp.engine.cost import PACE, duration, floor_flops, matmul_rate
from interp.engine.sweep import Cells
from interp.models.language_model import LanguageModel
from interp.runs.mean_activations import ReferencePrompts, reference_prompts
from interp.runs.pairs import PairedRuns, paired_runs


@dataclass(frozen=True, kw_only=True)
class Request:
    """One patching sweep, spelled out: what `activation_patching` runs and what it is keyed by.

    `asked` is the caller's choice of positions, `positions` says in words which were patched;
    `means_over` are the prompts of `reference` in tokens.
    """

    runs: PairedRuns
    cells: Cells
    axes: tuple[str, ...]
    coordinates: dict[str, tuple[str, ...]]
    site: str
    direction: str
    source: str
    reference: Task | None
    means_over: ReferencePrompts
    positions: str
    asked: Columns
    metric: Metric
    layers: tuple[int, ...] | None
    components: tuple[int, ...] | None

    @property
    def n_cells(self) -> int:
        """Number of cells of the result."""
        return int(np.prod([len(self.coordinates[axis]) for axis in self.axes]))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt."""
        return np.array([len(prompt) for prompt in self.runs.base])


def make_request(
    model: LanguageModel,
    task: Task,
    *,
    site: str,
    by: Sequence[str] = ("layer", "head"),
    direction: str = "denoise",
    positions: Columns = "all",
    layers: Iterable[int] | None = None,
    components: Iterable[int] | None = None,
    source: str = "other",
    reference: Task | None = None,
) -> Request:
    """Check a sweep's arguments and lay out its cells. See `activation_patching`."""
    model.require_site(site)
    by, positions = [str(axis) for axis in listed(by)], as_positions(positions)
    if source not in ("other", "zero", "mean"):
        raise unknown("source", source, ("other", "zero", "mean"))
    if source == "mean" and site == "pattern":
        raise InterpError("the mean of pattern", "prompts differ in keys", "use z or zero")
    runs = paired_runs(model, task, direction)
    means_over = reference_prompts(model, source, reference, [*runs.base, *runs.other])
    unit = SITES[site]
    axes = tuple(unit if axis == "head" and unit == "kv_head" else axis for axis in by)
    allowed = {"layer", "position", unit} - {None}
    if not set(axes) <= allowed or "layer" not in axes or len(set(axes)) < len(axes):
        raise InterpError(
            f"patching {site} by {tuple(by)}",
            f"axes of {site}: {', '.join(sorted(str(axis) for axis in allowed))}",
            "name 'layer' and any of the others once",
        )
    chosen_layers = within(layers, model.n_layers, "layer", model.name)
    coordinates: dict[str, tuple[str, ...]] = {"layer": tuple(map(str, chosen_layers))}
    parts = [-1]
    if unit is not None and unit in axes:
        parts = within(components, model.size(unit), unit, model.name)
        coordinates[unit] = tuple(map(str, parts))
    elif components is not None:
        raise InterpError("components=", f"{unit!r} is not in by={tuple(by)}", "add it to `by`")
    swept = "position" in axes
    columns, names, words = _columns(runs, positions, swept, source)
    if swept:
        coordinates["position"] = names or tuple(map(str, range(len(columns))))
    order = ("layer", unit, "position")
    axes = tuple(axis for axis in order if axis in axes)  # type: ignore[misc]
    cells = _cells(runs, chosen_layers, parts, columns, source)
    return Request(
        runs=runs,
        cells=cells,
        axes=axes,
        coordinates={axis: coordinates[axis] for axis in axes},
        site=site,
        direction=direction,
        source=source,
        reference=reference,
        means_over=means_over,
        positions=words,
        asked=positions,
        metric=task.metric,
        layers=None if layers is None else tuple(chosen_layers),
        components=None if components is None else tuple(parts),
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a sweep will take: patched runs, unavoidable arithmetic, a guess at the time.

    `timed`: the guess goes by the pace of an earlier sweep of the model, and not by that of a
    matrix product, which was off by up to ten times either way.
    """

    runs: int
    flops: float
    seconds: float
    timed: bool

    @property
    def words(self) -> str:
        """The time in words: a range of a factor 9 where no sweep of the model was timed."""
        if self.timed:
            return f"about {duration(self.seconds)}"
        if self.seconds < 0.5:
            return "seconds"
        return f"between {duration(self.seconds / 3)} and {duration(3 * self.seconds)}"


def cost(model: LanguageModel, request: Request) -> Cost:
    """An estimate before a long run: the arithmetic floor at the pace of the model's last sweep.

    Before the first one, at this machine's rate of matrix products, times 1.4. A run that is under
    way tells better: see its progress.
    """
    flops = operations(model, request)
    pace = PACE.get((model.hash, str(model.device)))
    per = 1.4 / matmul_rate(model.dtype, model.device) if pace is None else pace
    return Cost(runs=len(request.cells), flops=flops, seconds=per * flops, timed=pace is not None)


def operations(model: LanguageModel, request: Request) -> float:
    """The floating-point operations a sweep cannot avoid; through hooks, of whole runs."""
    if model.decoder is not None:
        return floor_flops(model.decoder, request.cells, request.lengths, request.site)
    per_token = 2.0 * sum(p.numel() for p in model.bridge.parameters())
    return len(request.cells) * float(request.lengths.mean()) * per_token


def _columns(
    runs: PairedRuns, positions: Columns, swept: bool, source: str
) -> tuple[list[list[list[int]]], tuple[str, ...], str]:
    """For each column, for each prompt, the positions patched; names, if given; and in words."""
    lengths = [len(prompt) for prompt in runs.base]
    every = isinstance(positions, str) and positions == "all"
    if every and swept:
        if len(set(lengths)) > 1:
            raise InterpError(
                "patching by every token position",
                f"prompts of {min(lengths)} to {max(lengths)} tokens",
                "give names of positions, or prompts of one length",
            )
        columns = [[[p]] * len(lengths) for p in range(lengths[0])]
        return columns, (), "each token"
    if every:
        # Before the first difference the two runs are equal, and patching there does nothing.
        first = runs.differ if source == "other" else np.zeros_like(runs.differ)
        return [[list(range(f, n)) for f, n in zip(first, lengths, strict=True)]], (), "all tokens"
    names, places = columns_of(positions, runs.encoded)
    if swept:
        return [[[p] for p in place] for place in places], names, "each of " + ", ".join(names)
    together = [sorted(set(group)) for group in zip(*places, strict=True)]
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
        for column, places in enumerate(columns):
            where = places[prompt]
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


def spelled_positions(positions: Columns) -> str:
    """Positions as the caller gave them, as Python."""
    return repr(as_positions(positions))


def spelled_source(request: Request) -> dict[str, str]:
    """The arguments, as Python, that say what cells are replaced with."""
    found = {"source": repr(request.source)}
    if request.reference is not None:
        found["reference"] = request.reference.source or "own_reference"
    return found
