"""A patching sweep: one baseline, and the cells in chunks of limited size, saved when done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.core.components import EXPERT_SITES, SITES
from interp.core.errors import InterpError
from interp.core.metrics import Metric, Targets
from interp.core.run_options import Progress
from interp.engine.architecture import Decoder
from interp.engine.forward import Baseline, Replacement, Runner
from interp.engine.layout import Indices, ranges
from interp.engine.memory import keep_freed_memory
from interp.engine.readout import CPU_TILE, LogitsOf, cut
from interp.engine.restart import Joined, Variants, baseline, final_hidden, restart
from interp.engine.resume import NO_CHUNKS, Chunks
from interp.engine.sites import EDITED, needed, replaced_z, resid_post
from interp.engine.stopping import Cancelled, stoppable

CPU_CHUNK = 6e10
"""Floating-point operations of a chunk on a CPU, about a second. Cancelling loses one chunk."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What to patch, as flat arrays with one entry per (prompt, cell).

    Entry r patches component `component[r]` (-1: the whole site) of layer `layer[r]` in prompt
    `prompt[r]`, at the next `count[r]` entries of `positions`. Its metric goes to cell `cell[r]` of
    the result.
    """

    prompt: Indices
    cell: Indices
    layer: Indices
    component: Indices
    count: Indices
    positions: Indices

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def first(self) -> Indices:
        """The index in `positions` at which each entry begins."""
        return np.cumsum(self.count) - self.count

    def __getitem__(self, chosen: Indices) -> Cells:
        taken = ranges(self.first[chosen], self.count[chosen])
        return Cells(
            prompt=self.prompt[chosen],
            cell=self.cell[chosen],
            layer=self.layer[chosen],
            component=self.component[chosen],
            count=self.count[chosen],
            positions=self.positions[taken],
        )


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """How a sweep is cut into blocks of prompts, and each block into chunks of cells."""

    blocks: list[Indices]
    chunks: list[list[Indices]]

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return sum(len(chunks) for chunks in self.chunks)


Replace = Callable[[Baseline, int, str], torch.Tensor]
"""(baseline, layer, site) -> new values of the site at every flat token of the baseline."""


def site_widths(decoder: Decoder, longest: int) -> dict[str, int]:
    """Numbers per token at each site, in prompts of at most `longest` tokens."""
    attn = decoder.blocks[0].attn
    width = dict.fromkeys(SITES, decoder.d_model) | {"pattern": attn.n_heads * longest}
    width |= dict.fromkeys(("q", "z"), attn.n_heads * attn.d_head)
    width |= dict.fromkeys(("k", "k_rot", "v"), attn.n_kv_heads * attn.d_head)
    width |= dict.fromkeys(("pre", "pre_linear", "post"), decoder.d_mlp)
    return width | {"router": decoder.n_experts, "expert_out": decoder.n_experts * decoder.d_model}


def token_bytes(runner: Runner, site: str, longest: int) -> tuple[int, int]:
    """Bytes per token: in the stored runs, and while a variant runs."""
    decoder = runner.decoder
    width = site_widths(decoder, longest)
    base, other = needed(runner, site)
    stored = sum(
        width.get(name, decoder.d_model)
        for sites in (base, other)
        for name in sites | {"resid_pre", "k_rot", "v"}
    )
    flight = 4 * decoder.d_mlp + 8 * decoder.d_model + 6 * width["z"]
    flight += 2 * longest * width["v"] // max(1, longest // 4)
    if site in EXPERT_SITES:
        flight += width["expert_out"]
    size = torch.finfo(runner.dtype).bits // 8
    return stored * len(decoder.blocks) * size, flight * size


def plan_sweep(
    runner: Runner, cells: Cells, lengths: Indices, site: str, budget: int, full_logits: bool
) -> SweepPlan:
    """Cut a sweep so that stored runs and running variants take at most `budget` bytes.

    The cut depends only on the arguments, so that a resumed sweep has the same chunks.

    Raises:
        InterpError: one prompt, or one variant, is already too large.
    """
    stored, flight = token_bytes(runner, site, int(lengths.max()))
    if full_logits:
        flight += runner.decoder.d_vocab * 12
    for_runs = budget // 2
    if stored * int(lengths.max()) > for_runs or flight * int(lengths.max()) > budget - for_runs:
        least = 2 * int(lengths.max()) * max(stored, flight)
        raise InterpError(
            f"a budget of {budget / 1e9:z.2f} GB",
            f"one prompt of {int(lengths.max())} tokens needs {least / 1e9:z.2f} GB",
            "raise budget_gb or shorten the prompts",
        )
    tile = (budget - for_runs) // flight
    if runner.device.type == "cpu":
        depth = len(runner.decoder.blocks) / 2
        tile = min(tile, CPU_TILE, int(CPU_CHUNK / (depth * sum(runner.decoder.flops.values()))))
    blocks = list(cut(np.arange(len(lengths)), lengths * stored, for_runs))
    start = np.minimum.reduceat(cells.positions, cells.first) if len(cells) else cells.first
    chunks = []
    for block in blocks:
        inside = np.flatnonzero((cells.prompt >= block[0]) & (cells.prompt <= block[-1]))
        order = inside[
            np.lexsort(
                (
                    cells.component[inside],
                    cells.layer[inside],
                    cells.prompt[inside],
                    start[inside],
                    lengths[cells.prompt[inside]],
                )
            )
        ]
        size = lengths[cells.prompt[order]] - start[order]
        chunks.append(list(cut(order, size, tile)))
    return SweepPlan(blocks=blocks, chunks=chunks)


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The metrics of a sweep: `patched` (prompts, cells), `base` and `other` (prompts,)."""

    patched: np.ndarray
    base: np.ndarray
    other: np.ndarray


def run_sweep(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
    cells: Cells,
    n_cells: int,
    *,
    site: str,
    metric: Metric,
    targets: Targets,
    budget: int,
    check: Callable[[np.ndarray, np.ndarray], None],
    replace: Replace | None = None,
    chunks: Chunks = NO_CHUNKS,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Swept:
    """The metric of every prompt with every cell patched, and of both unpatched runs.

    Args:
        runner: runs the model's decoder.
        prompts: token ids of the base runs, which are patched.
        others: token ids of the other runs, of equal lengths, which give the new values.
        cells: what to patch. Cells of a prompt that are not listed get its unpatched metric.
        n_cells: number of cells in the result.
        site: the site to patch.
        metric: the metric, read at the last token.
        targets: the targets of each prompt.
        budget: bytes for stored runs and running variants.
        check: called with the metrics of both unpatched runs before anything is patched.
        replace: gives new values that do not come from the other run (zeros, means).
        chunks: keeps finished chunks, which are read back instead of being computed again.
        progress: called with (chunks done, all chunks), also before the first chunk.
        cancelled: called before every chunk and in every layer; True stops the sweep.

    Returns:
        The metrics, float64.

    Raises:
        Cancelled: `cancelled` returned True.
        InterpError: the budget is too small, or values are not finite.
    """
    keep_freed_memory()
    lengths = np.array([len(prompt) for prompt in prompts])
    cut = plan_sweep(runner, cells, lengths, site, budget, metric.name != "logit_diff")
    ends = np.zeros((2, len(prompts)))
    patched = np.zeros((len(prompts), n_cells))
    done = 0

    def stored(block: Indices) -> StoredPrompts:
        return StoredPrompts(runner, prompts, others, block, site, metric, targets, replace)

    with torch.no_grad(), stoppable(cancelled):
        only = stored(cut.blocks[0]) if len(cut.blocks) == 1 else None
        for block in cut.blocks:
            ends[:, block] = (only or stored(block)).ends
        check(*ends)
        chunks.once(cut.n_chunks, 2, lambda: ends)  # read by `interp.patching.unfinished`
        if progress is not None:
            progress(0, cut.n_chunks)
        for block, parts in zip(cut.blocks, cut.chunks, strict=True):
            todo = None  # free this block before the next one is stored
            todo = only or stored(block)
            patched[block] = ends[0, block, None]
            for chunk in parts:
                if cancelled():
                    raise Cancelled(
                        "the sweep", f"stopped after {done} of {cut.n_chunks} chunks", "resume it"
                    )
                values = chunks.once(
                    done, len(chunk), lambda t=todo, c=chunk: t.patched(cells[c]), of=chunk
                )
                patched[cells.prompt[chunk], cells.cell[chunk]] = values
                done += 1
                if progress is not None:
                    progress(done, cut.n_chunks)
    return Swept(patched=patched, base=ends[0], other=ends[1])


class StoredPrompts:
    """The stored runs of some prompts. `ends` holds the metrics of their base and other runs."""

    def __init__(
        self,
        runner: Runner,
        prompts: Sequence[Sequence[int]],
        others: Sequence[Sequence[int]],
        block: Indices,
        site: str,
        metric: Metric,
        targets: Targets,
        replace: Replace | None,
    ) -> None:
        self.runner, self.site, self.metric = runner, site, metric
        self.offset = int(block[0])
        self.targets = targets.select(torch.from_numpy(block))
        keep, keep_other = needed(runner, site)
        ablated = frozenset() if replace is None else frozenset({site})
        self.base = baseline(runner, [prompts[i] for i in block], keep | ablated)
        other = baseline(runner, [others[i] for i in block], keep_other)
        self.ends = [self._read(final_hidden(runner, run)) for run in (self.base, other)]
        self.replace = replace or (lambda _, layer, site: other.site(layer, site))
        self._replaced: dict[int, torch.Tensor] = {}

    def _read(self, hidden: torch.Tensor, prompts: Indices | None = None) -> np.ndarray:
        readout = LogitsOf(decoder=self.runner.decoder, hidden=hidden)
        if prompts is None:
            return self.metric(readout, self.targets).numpy()
        return self.metric(readout, self.targets.select(torch.from_numpy(prompts))).numpy()

    def values(self, layer: int) -> torch.Tensor:
        """New values at every flat token; for q and pattern, the new z that they give."""
        if layer not in self._replaced:
            found = self.replace(self.base, layer, self.site)
            if self.site in ("q", "pattern") and self.separable:
                found = replaced_z(self.runner, self.base, found, layer, self.site)
            self._replaced[layer] = found
        return self._replaced[layer]

    @property
    def separable(self) -> bool:
        """Whether a new query or pattern changes only the z of its own head."""
        norms = self.runner.decoder.blocks[0].attn.norm_over_heads
        return self.site == "pattern" or (self.site == "q" and not norms)

    def patched(self, cells: Cells) -> np.ndarray:
        """The metric of each entry of `cells`, patched."""
        prompt = cells.prompt - self.offset
        start = np.minimum.reduceat(cells.positions, cells.first)
        edited = self.site in EDITED or (self.site == "q" and not self.separable)
        variants = Variants(
            prompt=prompt,
            start=start,
            layer=cells.layer,
            ready=np.full(len(cells), not edited),
        )

        def entries(ids: Indices) -> tuple[Indices, Indices, torch.Tensor, Indices | None]:
            """Entry numbers, positions, flat tokens and components of some variants."""
            count = cells.count[ids]
            owner = np.repeat(ids, count)
            positions = cells.positions[ranges(cells.first[ids], count)]
            tokens = self.base.flat(prompt[owner], positions)
            whole = len(ids) == 0 or cells.component[ids[0]] < 0
            parts = None if whole else cells.component[owner]
            return owner, positions, tokens.to(self.runner.device), parts

        def new(layer: int, tokens: torch.Tensor, parts: Indices | None) -> torch.Tensor:
            values = self.values(layer)
            if parts is None:
                return values[tokens]
            return values[tokens, torch.from_numpy(parts).to(tokens.device)]

        def join(layer: int, ids: Indices) -> Joined:
            owner, positions, tokens, parts = entries(ids)
            if layer == len(self.runner.decoder.blocks) - 1:
                # Only the tail is read after the last layer.
                read = self.base.lengths - self.base.tails(np.arange(len(self.base.lengths)))
                end = np.flatnonzero(positions >= read[prompt[owner]])
                owner, positions, tokens = owner[end], positions[end], tokens[torch.from_numpy(end)]
                parts = None if parts is None else parts[end]
            site = "z" if self.site in ("q", "pattern") else self.site
            values = resid_post(
                self.runner, self.base, layer, site, tokens, parts, new(layer, tokens, parts)
            )
            return Joined(ids=owner, positions=positions, values=values)

        edits: dict[int, list[Replacement]] = {}
        if edited:
            for layer in np.unique(cells.layer).tolist():
                owner, positions, tokens, parts = entries(np.flatnonzero(cells.layer == layer))
                edits[layer] = [
                    Replacement(
                        site=self.site,
                        ids=owner,
                        positions=positions,
                        values=new(layer, tokens, parts),
                        components=parts,
                    )
                ]
        hidden = restart(self.runner, self.base, variants, join=join, edits=edits)
        return self._read(hidden, prompt)
