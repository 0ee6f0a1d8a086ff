"""Exact activation patching: what a component's value carries from one run into another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from interp.components import SITES, Component
from interp.engine.cost import floor_flops, matmul_rate
from interp.engine.forward import Baseline, Edit, Runner
from interp.engine.restart import Variants, baseline, final_hidden, restart
from interp.engine.sweep import Cells, LogitsOf, Replace, run_sweep
from interp.errors import InterpError, unknown
from interp.files import content_key
from interp.metrics import Estimate, Logits, Metric, Targets, mean_estimate
from interp.models.language_model import Batch, LanguageModel
from interp.positions import first_difference
from interp.prompts import EncodedTask, Task
from interp.scores import Null, Provenance, Scores
from interp.store import commit, keep, partial_dir, stored, versions

VERSION = 1

Direction = Literal["denoise", "noise"]
Source = Literal["other", "zero", "mean"]
Engine = Literal["auto", "fast", "hooks"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The two runs of every prompt in the direction asked."""

    base: list[tuple[int, ...]]
    other: list[tuple[int, ...]]
    differ: np.ndarray
    targets: Targets
    encoded: EncodedTask


@dataclass(frozen=True, kw_only=True)
class Request:
    """One patching sweep, spelled out: what `activation_patching` runs and what it is keyed by."""

    runs: Runs
    cells: Cells
    axes: tuple[str, ...]
    coordinates: dict[str, tuple[str, ...]]
    site: str
    direction: str
    source: str
    positions: str
    metric: Metric

    @property
    def n_cells(self) -> int:
        """Number of cells of the result."""
        return int(np.prod([len(self.coordinates[axis]) for axis in self.axes]))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt."""
        return np.array([len(prompt) for prompt in self.runs.base])


def activation_patching(
    model: LanguageModel,
    task: Task,
    *,
    site: str = "z",
    by: Sequence[str] = ("layer", "head"),
    direction: Direction = "denoise",
    positions: str | Sequence[str] = "all",
    layers: Iterable[int] | None = None,
    components: Iterable[int] | None = None,
    source: Source = "other",
    engine: Engine = "auto",
    budget_gb: float = 1.0,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    cache: bool = True,
) -> Scores:
    """The effect of every component's activation, patched from the other run of each pair.

        effect(c) = mean(m[base with c := other] - m[base]) / mean(m[clean] - m[corrupted])

    with base = corrupted, other = clean (denoise: is c sufficient?), or base = clean,
    other = corrupted and the sign turned (noise: is c necessary?). 1 is the whole gap and
    positive supports the behaviour in both directions.

    Args:
        model: a loaded model.
        task: prompt pairs of equal token length, and the metric.
        site: any site the model offers, see `interp.components.SITES`.
        by: which axes to sweep, among "layer", the site's own ("head", "kv_head", "neuron";
            "head" also stands for k's and v's kv_head) and "position". What is not swept is
            patched together.
        direction: "denoise" or "noise".
        positions: with "position" in `by`: "all" (every token index; prompts of one length) or
            names, one column each. Without: "all", or names patched together.
        layers: which layers; all by default.
        components: which heads or neurons; all by default.
        source: "other" (the other run), "zero", or "mean" (one vector per layer: the mean over
            every token of the other runs). The last two are ablations of the base run.
        engine: "fast" (batched, restarted at the patched layer), "hooks" (one forward pass per
            cell through TransformerLens), "auto" (fast where the architecture is known).
        budget_gb: memory for stored runs and runs in flight. Changes the time, not the result.
        progress: called with (chunks done, chunks in all).
        cancelled: asked before every chunk; finished chunks are kept and reused.
        cache: reuse and keep results under the cache, keyed by the model's and the task's hash.

    Returns:
        Scores with axes `by`, unit "gap".

    Raises:
        InterpError: a site the model lacks, an axis it does not have, a gap below its standard
            error, or a position a prompt lacks.

    Equals the one-cell-per-forward loop (tests/test_patching.py). Departs from the usual code:
    a ratio of means, not a mean of ratios. Sources: Vig et al. 2020, arXiv 2004.12265; Zhang and
    Nanda 2023, arXiv 2309.16042; Heimersheim and Nanda 2024, arXiv 2404.15255.
    """
    request = make_request(
        model,
        task,
        site=site,
        by=by,
        direction=direction,
        positions=positions,
        layers=layers,
        components=components,
        source=source,
    )
    fast = _choose_engine(model, engine)
    key = request_key(model, task, request, engine="fast" if fast else "hooks", budget=budget_gb)
    if cache and (found := stored(key)) is not None:
        return found
    base, other = (
        _metric_of(model, side, request) for side in (request.runs.base, request.runs.other)
    )
    check_gap(base, other)
    if fast:
        assert model.decoder is not None
        with model.lock:
            patched, base = run_sweep(
                Runner(model.decoder),
                request.runs.base,
                request.runs.other if source == "other" else None,
                request.cells,
                request.n_cells,
                site=site,
                metric=request.metric,
                targets=request.runs.targets,
                budget=int(budget_gb * 1e9),
                replace=_replacement(model, request),
                partial=partial_dir(key) if cache else None,
                progress=progress,
                cancelled=cancelled,
            )
    else:
        patched, base = hook_loop(model, request, progress=progress, cancelled=cancelled)
    scores = _scores(model, task, request, patched, base, other, fast=fast)
    if cache:
        keep(key, scores)
    return scores


def make_request(
    model: LanguageModel,
    task: Task,
    *,
    site: str,
    by: Sequence[str] = ("layer", "head"),
    direction: str = "denoise",
    positions: str | Sequence[str] = "all",
    layers: Iterable[int] | None = None,
    components: Iterable[int] | None = None,
    source: str = "other",
) -> Request:
    """Check a sweep's arguments and lay out its cells. See `activation_patching`."""
    model.require_site(site)
    if source not in ("other", "zero", "mean"):
        raise unknown("source", source, ("other", "zero", "mean"))
    runs = paired_runs(model, task, direction)
    unit = SITES[site]
    axes = tuple(unit if axis == "head" and unit == "kv_head" else axis for axis in by)
    allowed = {"layer", "position", unit} - {None}
    if not set(axes) <= allowed or "layer" not in axes or len(set(axes)) < len(axes):
        raise InterpError(
            f"patching {site} by {tuple(by)}",
            f"axes of {site}: {', '.join(sorted(str(axis) for axis in allowed))}",
            "name 'layer' and any of the others once",
        )
    chosen_layers = _within(layers, model.n_layers, "layer", model)
    coordinates: dict[str, tuple[str, ...]] = {"layer": tuple(map(str, chosen_layers))}
    size = {"head": model.n_heads, "kv_head": model.n_kv_heads, "neuron": model.d_mlp}
    parts = [-1]
    if unit is not None and unit in axes:
        parts = _within(components, size[unit], unit, model)
        coordinates[unit] = tuple(map(str, parts))
    elif components is not None:
        raise InterpError("components=", f"{unit!r} is not in by={tuple(by)}", "add it to `by`")
    columns, names, words = _columns(runs, positions, "position" in axes, source)
    if "position" in axes:
        coordinates["position"] = names
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
        positions=words,
        metric=task.metric,
    )


def paired_runs(model: LanguageModel, task: Task, direction: str) -> Runs:
    """Both runs of every pair, as tokens, with the targets of the metric.

    Raises:
        InterpError: an unknown direction, or a task without corrupted prompts.
    """
    if direction not in ("denoise", "noise"):
        raise unknown("direction", direction, ("denoise", "noise"))
    encoded = task.encode(model)
    if encoded.corrupted is None:
        raise InterpError(
            f"patching on {task.name}",
            "it has prompts without a corrupted counterpart",
            "give every pair a corrupted prompt; unpaired prompts suit probing",
        )
    targets = encoded.targets
    if task.metric.needs_reference:
        reference = model.last_logits(encoded.clean).log_softmax(-1).cpu()
        targets = replace(targets, reference=reference)
    pairs = zip(encoded.clean, encoded.corrupted, strict=True)
    differ = np.array([first_difference(a, b) for a, b in pairs])
    denoise = direction == "denoise"
    return Runs(
        base=encoded.corrupted if denoise else encoded.clean,
        other=encoded.clean if denoise else encoded.corrupted,
        differ=differ,
        targets=targets,
        encoded=encoded,
    )


def request_key(
    model: LanguageModel, task: Task, request: Request, *, engine: str, budget: float
) -> str:
    """The key of a sweep's stored result and of its finished chunks."""
    return content_key(
        [
            VERSION,
            versions(),
            model.hash,
            str(model.dtype),
            model.device.type,
            task.hash,
            request.site,
            request.axes,
            request.coordinates,
            request.direction,
            request.source,
            request.positions,
            engine,
            budget,
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a sweep will take: patched runs, unavoidable arithmetic, a guess at the time."""

    runs: int
    flops: float
    seconds: float


def cost(model: LanguageModel, request: Request) -> Cost:
    """An estimate before a long run: the arithmetic floor at this machine's rate, times 1.4."""
    runs = len(request.cells)
    if model.decoder is None:
        per_token = 2.0 * sum(p.numel() for p in model.bridge.parameters())
        flops = runs * float(request.lengths.mean()) * per_token
    else:
        flops = floor_flops(model.decoder, request.cells, request.lengths, request.site)
    rate = matmul_rate(model.dtype, model.device)
    return Cost(runs=runs, flops=flops, seconds=1.4 * flops / rate)


def _within(wanted: Iterable[int] | None, size: int, what: str, model: LanguageModel) -> list[int]:
    numbers = list(range(size)) if wanted is None else sorted(set(wanted))
    if not numbers or numbers[0] < 0 or numbers[-1] >= size:
        raise InterpError(
            f"{what} {numbers} of {model.name}", f"0 to {size - 1}", "choose among these"
        )
    return numbers


def _columns(
    runs: Runs, positions: str | Sequence[str], swept: bool, source: str
) -> tuple[list[list[list[int]]], tuple[str, ...], str]:
    """For each column, for each prompt, the positions patched; the names; and in words."""
    lengths = [len(prompt) for prompt in runs.base]
    if positions == "all" and swept:
        if len(set(lengths)) > 1:
            raise InterpError(
                "patching by every token position",
                f"prompts of {min(lengths)} to {max(lengths)} tokens",
                "give names of positions, or prompts of one length",
            )
        columns = [[[p]] * len(lengths) for p in range(lengths[0])]
        return columns, tuple(str(p) for p in range(lengths[0])), "each token"
    if positions == "all":
        # Before the first difference the two runs are equal, and patching there does nothing.
        first = runs.differ if source == "other" else np.zeros_like(runs.differ)
        return [[list(range(f, n)) for f, n in zip(first, lengths, strict=True)]], (), "all tokens"
    names = (positions,) if isinstance(positions, str) else tuple(positions)
    places = [runs.encoded.positions(name) for name in names]
    if swept:
        return [[[p] for p in place] for place in places], names, "each of " + ", ".join(names)
    together = [sorted(set(group)) for group in zip(*places, strict=True)]
    return [together], (), " and ".join(names)


def _cells(
    runs: Runs,
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


def _choose_engine(model: LanguageModel, engine: str) -> bool:
    if engine not in ("auto", "fast", "hooks"):
        raise unknown("engine", engine, ("auto", "fast", "hooks"))
    if engine == "fast" and model.decoder is None:
        raise InterpError(
            f"the fast engine for {model.name}", str(model.engine_reason), "use engine='hooks'"
        )
    return engine != "hooks" and model.decoder is not None


def _replacement(model: LanguageModel, request: Request) -> Replace | None:
    """Zeros, or the mean over all tokens of the other runs; None when another run is the source."""
    if request.source == "other":
        return None
    means: dict[int, torch.Tensor] = {}
    if request.source == "mean":
        assert model.decoder is not None
        site = "resid_pre" if request.site == "resid_post" else request.site
        if site == "pattern":
            raise InterpError("the mean of pattern", "prompts differ in keys", "use z or zero")
        run = baseline(Runner(model.decoder), request.runs.other, frozenset({site}))
        shift = int(request.site == "resid_post")
        means = {
            layer: run.sites[layer + shift, site].mean(0, keepdim=True)
            for layer in range(model.n_layers)
        }

    def replaced(base: Baseline, layer: int, site: str) -> torch.Tensor:
        shift = int(site == "resid_post")
        like = base.sites[(layer + shift, "resid_pre") if shift else (layer, site)]
        if request.source == "zero":
            return torch.zeros_like(like)
        return means[layer].expand_as(like)

    return replaced


def _metric_of(
    model: LanguageModel, prompts: list[tuple[int, ...]], request: Request
) -> np.ndarray:
    """The metric of plain runs."""
    if model.decoder is None:
        readout = Logits(model.last_logits(prompts).cpu())
        return request.metric(readout, request.runs.targets).numpy()
    values = []
    runner = Runner(model.decoder)
    step = max(1, 4096 // max(len(prompt) for prompt in prompts))
    with torch.no_grad():
        for begin in range(0, len(prompts), step):
            chosen = torch.arange(begin, min(begin + step, len(prompts)))
            run = baseline(runner, prompts[begin : begin + step])
            readout = LogitsOf(decoder=model.decoder, hidden=final_hidden(runner, run))
            values.append(request.metric(readout, request.runs.targets.select(chosen)).numpy())
    return np.concatenate(values)


def check_gap(clean: np.ndarray, corrupted: np.ndarray) -> None:
    """Refuse a gap that is not there.

    Raises:
        InterpError: the mean gap is zero or below its standard error.
    """
    gaps = clean - corrupted
    error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    if abs(gaps.mean()) <= max(error, 1e-9):
        raise InterpError(
            "an effect as a fraction of the clean-corrupted gap",
            f"gap {gaps.mean():.4f} ± {error:.4f} over {len(gaps)} prompts",
            "the model does not tell the prompts apart: check the task, or use more prompts",
        )


def _scores(
    model: LanguageModel,
    task: Task,
    request: Request,
    patched: np.ndarray,
    base: np.ndarray,
    other: np.ndarray,
    *,
    fast: bool,
) -> Scores:
    denoise = request.direction == "denoise"
    clean, corrupted = (other, base) if denoise else (base, other)
    gained = (patched - base[:, None]) * (1 if denoise else -1)
    shape = tuple(len(request.coordinates[axis]) for axis in request.axes)
    return Scores(
        effects=gained.reshape(len(base), *shape),
        clean=clean,
        corrupted=corrupted,
        axes=request.axes,
        coordinates=request.coordinates,
        site=request.site,
        direction=request.direction,
        method="activation patching" if request.source == "other" else f"{request.source} ablation",
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        positions=request.positions,
        provenance=provenance(model, task, _call(request)),
        extra={"engine": "fast" if fast else "hooks", "source": request.source},
    )


def provenance(model: LanguageModel, task: Task, call: str) -> Provenance:
    """Where a measurement comes from; `call` is the Python that repeats it."""
    lines = [
        "import interp",
        "",
        f"model = interp.load_model({model.name!r})",
        f"task = {task.source or '...  # your own task'}",
        call,
    ]
    return Provenance(
        model=model.name,
        model_hash=model.hash,
        task=task.name,
        task_hash=task.hash,
        seed=task.seed,
        versions=versions(),
        commit=commit(),
        call="\n".join(lines),
    )


def _call(request: Request) -> str:
    spelled = [f"site={request.site!r}", f"by={request.axes!r}", f"direction={request.direction!r}"]
    if request.positions not in ("all tokens", "each token"):
        names = request.positions.removeprefix("each of ").replace(" and ", ", ").split(", ")
        spelled.append(f"positions={names!r}")
    if request.source != "other":
        spelled.append(f"source={request.source!r}")
    return f"scores = interp.activation_patching(model, task, {', '.join(spelled)})"


# -- several components at once ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JointEffect:
    """The effect of patching a set of components together, against random sets like it.

    effect: fraction of the gap, with its 95 % interval over prompts. null: the same for random
    components of the same kind, layer and count.
    """

    components: tuple[str, ...]
    effect: Estimate
    null: Null | None

    def __str__(self) -> str:
        shown = f"{', '.join(self.components)}: {self.effect}"
        return shown if self.null is None else f"{shown}; {self.null}"


JOINT_SITES = (
    "resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "post", "mlp_out", "resid_post"
)  # fmt: skip


def joint_patching(
    model: LanguageModel,
    task: Task,
    components: Sequence[str],
    *,
    direction: Direction = "denoise",
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> JointEffect:
    """Patch a set of components together, at all tokens, and as many random sets.

        effect(C) = mean(m[base with every c in C := other] - m[base]) / mean(m[clean] - m[corr.])

    Each random set replaces every component by an unlisted one of the same site and layer (any
    layer, where the layer has none left); a whole site such as mlp_out by another layer's.

    Args:
        model: a model with a fast engine.
        task: prompt pairs; to judge a selection, not those it was selected on.
        components: labels such as L9H6, L9H2.k, L7N12, L5.mlp_out.
        direction: "denoise" or "noise"; the sign is that of `activation_patching`.
        draws: random sets; 0 for none.
        seed: of the random sets.
        progress: called with (sets done, sets in all).

    Raises:
        InterpError: no fast engine, no components, or a site that cannot be set together.
    """
    if model.decoder is None:
        raise InterpError(
            f"joint patching on {model.name}", str(model.engine_reason), "use intervene()"
        )
    chosen = [Component.parse(label) for label in components]
    if not chosen or any(part.site not in JOINT_SITES for part in chosen):
        raise InterpError(
            f"patching {list(components)} together",
            f"sites {sorted({part.site for part in chosen})}",
            f"give components of {', '.join(JOINT_SITES)}",
        )
    for part in chosen:
        model.require_site(part.site)
    runs = paired_runs(model, task, direction)
    rng = np.random.default_rng(seed)
    sets = [chosen, *(_random_like(model, chosen, rng) for _ in range(draws))]
    runner = Runner(model.decoder)
    sites = frozenset(part.site for part in chosen) - {"resid_post"} | {"resid_pre"}
    sign = 1 if direction == "denoise" else -1
    values = np.zeros((len(sets), len(task)))
    ends = np.zeros((2, len(task)))
    with torch.no_grad(), model.lock:
        for prompt in range(len(task)):
            targets = runs.targets.select(torch.tensor([prompt]))
            base, other = (
                baseline(runner, [side[prompt]], sites) for side in (runs.base, runs.other)
            )
            for side, run in enumerate((base, other)):
                hidden = final_hidden(runner, run)
                readout = LogitsOf(decoder=model.decoder, hidden=hidden)
                ends[side, prompt] = float(task.metric(readout, targets)[0])
            for number, parts in enumerate(sets):
                hidden = _set_together(runner, base, other, parts, int(runs.differ[prompt]))
                readout = LogitsOf(decoder=model.decoder, hidden=hidden)
                patched = float(task.metric(readout, targets)[0])
                values[number, prompt] = sign * (patched - ends[0, prompt])
            if progress is not None:
                progress(prompt + 1, len(task))
    clean, corrupted = (ends[1], ends[0]) if direction == "denoise" else (ends[0], ends[1])
    check_gap(clean, corrupted)
    gap = float((clean - corrupted).mean())
    effect = mean_estimate(torch.from_numpy(values[0] / gap))
    null = None
    if draws:
        random = values[1:].mean(1) / gap
        low, high = np.quantile(random, [0.025, 0.975])
        null = Null(
            selected=effect.mean,
            mean=float(random.mean()),
            low=float(low),
            high=float(high),
            p=float((1 + (random >= effect.mean).sum()) / (1 + draws)),
            draws=draws,
        )
    return JointEffect(components=tuple(map(str, chosen)), effect=effect, null=null)


def _set_together(
    runner: Runner, base: Baseline, other: Baseline, parts: Sequence[Component], first: int
) -> torch.Tensor:
    """The final hidden state with every component at its value in the other run."""
    length = int(base.lengths[0])
    if first >= length:
        return final_hidden(runner, base)
    positions = np.arange(first, length)
    edits: dict[int, list[Edit]] = {}
    for part in parts:
        shift = part.site == "resid_post"
        stored_at = (part.layer + 1, "resid_pre") if shift else (part.layer, part.site)
        values = other.sites[stored_at][first:]
        index = part.index
        edits.setdefault(part.layer, []).append(
            Edit(
                site=part.site,
                ids=np.zeros_like(positions),
                positions=positions,
                values=values if index is None else values[:, index],
                components=None if index is None else np.full(len(positions), index),
            )
        )
    variants = Variants(
        prompt=np.zeros(1, dtype=np.int64),
        start=np.array([first]),
        layer=np.array([min(edits)]),
        ready=np.zeros(1, dtype=bool),
    )
    return restart(runner, base, variants, edits=edits)


def _random_like(
    model: LanguageModel, chosen: Sequence[Component], rng: np.random.Generator
) -> list[Component]:
    """Unlisted components of the same sites, layers and count."""
    sizes = {"head": model.n_heads, "kv_head": model.n_kv_heads, "neuron": model.d_mlp}
    taken = set(chosen)
    drawn = []
    for part in chosen:
        axis = SITES[part.site]
        size = sizes[axis] if axis and part.index is not None else 0
        near = [Component(part.layer, part.site, i) for i in range(size)]
        anywhere = [
            Component(layer, part.site, i)
            for layer in range(model.n_layers)
            for i in (range(size) if size else [None])
        ]
        free = [c for c in near if c not in taken] or [c for c in anywhere if c not in taken]
        if not free:
            raise InterpError(
                "a random set like the chosen one", "every component is chosen", "choose fewer"
            )
        drawn.append(free[int(rng.integers(len(free)))])
        taken.add(drawn[-1])
    return drawn


# -- the slow obvious one ------------------------------------------------------------------


def hook_loop(
    model: LanguageModel,
    request: Request,
    *,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """One hooked forward pass per cell, all prompts at once: what the fast engine must equal."""
    runs, site = request.runs, request.site
    values: dict[tuple[int, int], torch.Tensor] = {}

    def read(layer: int) -> Callable[[torch.Tensor, Batch], torch.Tensor]:
        def hook(value: torch.Tensor, batch: Batch) -> torch.Tensor:
            for row, prompt in enumerate(batch.prompts.tolist()):
                values[layer, prompt] = value[row].detach().clone()
            return value

        return hook

    layers = sorted(set(request.cells.layer.tolist()))
    model.last_logits(runs.other, hooks={(layer, site): [read(layer)] for layer in layers})
    if request.source != "other":
        _ablate(values, layers, request)
    base = request.metric(Logits(model.last_logits(runs.base).cpu()), runs.targets).numpy()
    result = np.repeat(base[:, None], request.n_cells, axis=1)
    groups = list(_by_cell(request.cells))
    for done, (cell, layer, part, where) in enumerate(groups):
        if cancelled():
            raise InterpError("the sweep", f"stopped after {done} of {len(groups)} cells", "rerun")
        hooks = {(layer, site): [_patch_hook(values, site, layer, part, where)]}
        logits = model.last_logits(runs.base, hooks=hooks).cpu()
        result[:, cell] = request.metric(Logits(logits), runs.targets).numpy()
        if progress is not None:
            progress(done + 1, len(groups))
    return result, base


def _ablate(
    values: dict[tuple[int, int], torch.Tensor], layers: list[int], request: Request
) -> None:
    """Turn captured values into zeros, or into their mean over all real tokens."""
    lengths = request.lengths
    for layer in layers:
        mine = {prompt: values[layer, prompt][: lengths[prompt]] for prompt in range(len(lengths))}
        if request.site == "pattern" or request.source == "zero":
            new = {prompt: torch.zeros_like(values[layer, prompt]) for prompt in mine}
        else:
            mean = torch.cat(list(mine.values())).mean(0, keepdim=True)
            new = {prompt: mean.expand_as(values[layer, prompt]) for prompt in mine}
        for prompt, value in new.items():
            values[layer, prompt] = value


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


def _patch_hook(
    values: dict[tuple[int, int], torch.Tensor],
    site: str,
    layer: int,
    part: int,
    where: dict[int, list[int]],
) -> Callable[[torch.Tensor, Batch], torch.Tensor]:
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
