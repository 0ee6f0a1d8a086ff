"""The runs of path patching: some prompts, some senders, all receivers at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from interp.core.branches import sizes_of, tail_of
from interp.core.metrics import Metric
from interp.engine.forward import Baseline, Replacement, Runner
from interp.engine.layout import ranges
from interp.engine.readout import LogitsOf, cut
from interp.engine.restart import Variants, baseline, final_hidden, restart
from interp.patching.path_receivers import Receiver, Recorded, recorded_values
from interp.runs.pairs import PairedRuns
from interp.runs.stored_runs import StoredRuns

TOGETHER = 512
"""Most tokens of prompts that are patched together."""

KeptPair = tuple[StoredRuns, StoredRuns]
"""Plain runs of the clean and of the corrupted prompts."""


@dataclass(kw_only=True)
class PathRunner:
    """Path patching of one task, some prompts at a time."""

    runner: Runner
    runs: PairedRuns
    receivers: list[Receiver]
    heads: bool
    freeze_mlps: bool
    metric: Metric
    kept: KeptPair | None = None
    _sites: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        block = self.runner.decoder.blocks[0]
        sites = {"resid_pre", "attn_out", "mlp_out", "attn_raw", "z"}
        self._sites = frozenset(sites | (set() if block.parallel else {"resid_mid"}))

    def blocks(self, senders: int, tile: int) -> Iterator[np.ndarray]:
        """The prompts that are patched together.

        Into the logits several: attention is fixed and only the last tokens are read, so that the
        tokens of all of them go through the MLPs together. Else each alone.
        """
        n = len(self.runs.base)
        if self.receivers or self.kept is not None:
            return iter(np.arange(n)[:, None])
        rows = senders * np.array([self._tail(prompt) for prompt in range(n)])
        share = np.array([len(prompt) for prompt in self.runs.base]) / TOGETHER
        return cut(np.arange(n), np.maximum(rows / tile, share), 1)

    def stored(self, prompts: Sequence[int]) -> tuple[Baseline, Baseline]:
        """Both runs of some pairs; of kept runs, of one."""
        if self.kept is not None:
            (prompt,) = prompts
            base, other = (runs[prompt] for runs in self._alone)
            return base, other
        base, other = (
            baseline(self.runner, [runs[i] for i in prompts], self._sites)
            for runs in (self.runs.base, self.runs.other)
        )
        return base, other

    @cached_property
    def _alone(self) -> list[list[Baseline]]:
        return [runs.alone(self._sites - {"resid_pre"}) for runs in self.kept or ()]

    def _read(self, hidden: Tensor, prompts: Sequence[int]) -> np.ndarray:
        """(runs, prompts) the metric of final states at the tails of some prompts, run by run."""
        runs = len(hidden) // sum(map(self._tail, prompts))
        targets = self.runs.targets.select(torch.tensor(prompts).repeat(runs))
        readout = LogitsOf(decoder=self.runner.decoder, hidden=hidden)
        return self.metric(readout, targets).numpy().reshape(runs, len(prompts))

    def _tail(self, prompt: int) -> int:
        return tail_of(sizes_of(self.runs.base[prompt]))

    def effects(
        self,
        prompts: Sequence[int],
        senders: list[tuple[int, int]],
        where: Sequence[list[int]],
        tile: int,
    ) -> np.ndarray:
        """(prompts, 2 + senders): the metric of both plain runs, then patched minus base metric."""
        base, other = self.stored(prompts)
        found = np.zeros((len(prompts), 2 + len(senders)))
        for column, run in enumerate((base, other)):
            found[:, column] = self._read(final_hidden(self.runner, run), prompts)
        if not self.receivers:  # the logits read only the tail, and attention is fixed
            read = base.lengths - base.tails(np.arange(len(prompts)))
            where = [[at for at in each if at >= n] for each, n in zip(where, read, strict=True)]
        if any(where):
            rows = int(base.lengths[0]) - min(where[0]) if self.receivers else sum(map(len, where))
            step = max(1, tile // rows)
            for begin in range(0, len(senders), step):
                some = senders[begin : begin + step]
                if self.receivers:
                    metric = self._rerun(base, other, prompts, some, where[0], plain=found[0, 0])
                else:
                    metric = self._written(base, other, prompts, some, where)
                found[:, 2 + begin : 2 + begin + len(some)] = metric.T - found[:, :1]
        return found

    def _written(
        self,
        base: Baseline,
        other: Baseline,
        prompts: Sequence[int],
        senders: list[tuple[int, int]],
        where: Sequence[list[int]],
    ) -> np.ndarray:
        """(senders, prompts) the metric if the logits receive."""
        tails = base.tails(np.arange(len(prompts)))
        read = ranges(base.offset + base.lengths - tails, tails)
        at = np.concatenate([n + np.array(w, int) for n, w in zip(base.offset, where, strict=True)])
        _, final = self._record(base, other, senders, at)
        there = torch.from_numpy(read).to(final.device)
        ends = base.at(len(self.runner.decoder.blocks), "resid_pre", there)
        ends = ends.repeat(len(senders), 1, 1)
        ends[:, torch.from_numpy(np.searchsorted(read, at)).to(final.device)] = final
        return self._read(self.runner.decoder.ln_final(ends.flatten(0, 1)), prompts)

    def _rerun(
        self,
        base: Baseline,
        other: Baseline,
        prompts: Sequence[int],
        senders: list[tuple[int, int]],
        where: list[int],
        *,
        plain: float,
    ) -> np.ndarray:
        """(senders, 1) the metric of one prompt; `plain` of a sender without a receiver below."""
        recorded, _ = self._record(base, other, senders, where)
        entry = np.full(len(senders), len(self.runner.decoder.blocks))
        for one in recorded:
            entry[one.senders] = np.minimum(entry[one.senders], one.receiver.layer)
        reached = np.flatnonzero(entry < len(self.runner.decoder.blocks))
        result = np.full((len(senders), 1), plain)
        if not len(reached):
            return result
        number = np.full(len(senders), -1)
        number[reached] = np.arange(len(reached))
        edits: dict[int, list[Replacement]] = {}
        for one in recorded:
            edits.setdefault(one.receiver.layer, []).append(one.edit(number, where))
        variants = Variants(
            prompt=np.zeros(len(reached), dtype=np.int64),
            start=np.full(len(reached), where[0]),
            layer=entry[reached],
            ready=np.zeros(len(reached), dtype=bool),
        )
        hidden = restart(self.runner, base, variants, edits=edits)
        result[reached] = self._read(hidden, prompts)
        return result

    def _record(
        self,
        base: Baseline,
        other: Baseline,
        senders: list[tuple[int, int]],
        where: Sequence[int] | np.ndarray,
    ) -> tuple[list[Recorded], Tensor]:
        """Step 2: the receivers' inputs and the final residual stream, at flat tokens of the runs.

        Attention is fixed, so tokens do not affect one another: `x` is (senders, tokens, d_model)
        and starts as the base run's residual stream. Layers after the last receiver are
        not computed.
        """
        decoder, at = self.runner.decoder, torch.as_tensor(where, device=self.runner.device)
        layer_of = np.array([layer for layer, _ in senders])
        recorded: list[Recorded] = []
        first, end = int(layer_of.min()), len(decoder.blocks)
        if self.receivers:
            end = 1 + max(receiver.layer for receiver in self.receivers)
        x = base.at(first, "resid_pre", at).repeat(len(senders), 1, 1)
        for layer in range(first, end):
            block = decoder.blocks[layer]
            here = [r for r in self.receivers if r.layer == layer]
            above = np.flatnonzero(layer_of < layer)
            if len(above):
                normed = block.ln1(x[above]) if block.ln1 is not None else x[above]
                for receiver in here:
                    if receiver.site not in ("post", "mlp_out"):
                        value = self.runner.project(block, receiver.site, normed.flatten(0, 1))
                        recorded.append(recorded_values(receiver, above, value))
            inside = [r for r in here if r.site in ("post", "mlp_out")]
            if self.receivers and layer == end - 1 and not inside:
                break
            attn_out = base.at(layer, "attn_out", at).repeat(len(senders), 1, 1)
            sending = np.flatnonzero(layer_of == layer)
            if self.heads:
                for i in sending.tolist():
                    attn_out[i] = self._attn_out(base, other, layer, senders[i][1], at)
            read = x if block.parallel else x + attn_out
            reach = above if block.parallel or not self.heads else np.flatnonzero(layer_of <= layer)
            mlp_out = base.at(layer, "mlp_out", at).repeat(len(senders), 1, 1)
            fresh = None
            if len(reach) and (inside or not self.freeze_mlps):
                read = read[reach].flatten(0, 1)
                if any(r.site == "post" for r in inside):
                    post = self.runner.mlp_post(block, read, None)
                    raw = self.runner.mlp_written(block, post)
                else:
                    post = raw = self.runner.mlp_out(block, read)
                recorded += [
                    recorded_values(r, reach, post if r.site == "post" else raw) for r in inside
                ]
                fresh = raw.unflatten(0, (len(reach), -1))
            if fresh is not None and not self.freeze_mlps:
                mlp_out[reach] = fresh
            if not self.heads and len(sending):
                mlp_out[sending] = other.at(layer, "mlp_out", at).repeat(len(sending), 1, 1)
            x = x + attn_out + mlp_out
            # Senders in later layers have not acted yet: their rows stay exactly at the base run.
            waiting = np.flatnonzero(layer_of > layer)
            if len(waiting):
                x[waiting] = base.at(layer + 1, "resid_pre", at).repeat(len(waiting), 1, 1)
        return recorded, x

    def _attn_out(
        self, base: Baseline, other: Baseline, layer: int, head: int, at: Tensor
    ) -> Tensor:
        """The layer's attention output when one head takes its value from the other run."""
        block = self.runner.decoder.blocks[layer]
        weight = block.attn.W_O[head]
        change = (other.at(layer, "z", at) - base.at(layer, "z", at))[:, head] @ weight
        if block.ln1_post is not None:
            return block.ln1_post(base.at(layer, "attn_raw", at) + change)
        return base.at(layer, "attn_out", at) + change
