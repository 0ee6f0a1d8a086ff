"""Products of the writers' outputs with the gradients at the readers' inputs, for all edges.

Outputs and gradients are stored in compact form (heads as z, gradients at the projections) and
expanded to d_model for a few tokens at a time. So the (tokens, writers, d_model) matrix never
exists as a whole, and the memory stays within the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from interp.engine.architecture import Block, Norm, Scale
from interp.engine.edges.graph import Graph
from interp.engine.edges.writes import Writes
from interp.engine.forward import Runner
from interp.engine.gradients import NEURON_READS, READS, Run, Sites, backward
from interp.engine.layout import Indices, Layout


@dataclass(frozen=True, kw_only=True)
class WriterOutputs:
    """What each writer writes at every token: the embedding, z of every head, every MLP's output.

    Neurons that are nodes, and their MLPs, are as in `Writes`.
    """

    embed: Tensor
    z: list[Tensor]
    mlp_out: list[Tensor]
    neurons: list[Tensor]

    @classmethod
    def of(cls, run: Run, graph: Graph) -> WriterOutputs:
        """From a run that stored z and mlp_out, and post and mlp_raw if neurons are nodes."""
        layers = range(len(run.leaving))
        raw = [graph.chosen(at) and "mlp_raw" in run.sites[at] for at in layers]
        return cls(
            embed=run.site(0, "resid_pre"),
            z=[run.site(layer, "z") for layer in layers],
            mlp_out=[run.site(at, "mlp_raw" if raw[at] else "mlp_out") for at in layers],
            neurons=[run.site(at, "post")[:, graph.chosen(at)] for at in layers if graph.neurons],
        )

    def minus(self, other: WriterOutputs | Writes) -> WriterOutputs:
        """The difference of every writer; `other` may hold a single token for all."""
        return WriterOutputs(
            embed=self.embed - other.embed,
            z=[a - b for a, b in zip(self.z, other.z, strict=True)],
            mlp_out=[a - b for a, b in zip(self.mlp_out, other.mlp_out, strict=True)],
            neurons=[a - b for a, b in zip(self.neurons, other.neurons, strict=True)],
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """The gradients of one run, by layer (`grads`) and at the final residual; and its weight."""

    weight: float
    run: Run
    grads: dict[int, Sites]
    final: Tensor


def point(runner: Runner, run: Run, final: Tensor, weight: float, graph: Graph) -> Point:
    """The gradients at every reader of a run, given the gradient at its final residual."""
    wanted, grads = READS + (NEURON_READS if graph.neurons else ()), {}
    for layer, found in backward(runner, run, final, wanted):
        grads[layer] = {name: found[name] for name in READS if name in found}
        if chosen := graph.chosen(layer):
            some = {name: found[name][:, chosen] for name in NEURON_READS if name in found}
            grads[layer] |= some
    return Point(weight=weight, run=run, grads=grads, final=final)


def _standard(norm: Norm, x: Tensor) -> tuple[Tensor, Tensor]:
    """A norm's input (centred if the norm centres) and the factor (tokens, 1) that scales it."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if norm.centred:
        wide = wide - wide.mean(-1, keepdim=True)
    return wide, torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)


def through_norm(norm: Norm | Scale, x: Tensor, change: Tensor) -> Tensor:
    """The norm's derivative at `x` times `change`: how its output changes, to first order."""
    if isinstance(norm, Scale):
        return norm(change)
    wide, scale = _standard(norm, x)
    moved = change.to(wide.dtype)
    if norm.centred:
        moved = moved - moved.mean(-1, keepdim=True)
    along = (moved * wide).mean(-1, keepdim=True)
    return ((moved * scale - wide * (along * scale**3)) * norm.weight).to(change.dtype)


def head_writes(block: Block, z: Tensor, raw: Tensor | None) -> Tensor:
    """(heads, tokens, d_model) what heads write; linearised at `raw` under a post-norm."""
    found = block.attn.head_outputs(z)
    if block.ln1_post is None:
        return found
    assert raw is not None
    return through_norm(block.ln1_post, raw, found)


def _reader_gradients(block: Block, x: Tensor, grads: Sites) -> Tensor:
    """(readers, tokens, d_model) gradients at the input of each query, key and value head."""
    attn, norm = block.attn, block.ln1
    counts = [grads[which].shape[1] for which in ("q", "k", "v")]
    found = x.new_empty(sum(counts), *x.shape)
    wide, scale = (x, None) if norm is None else _standard(norm, x)
    place = 0
    for which, count in zip(("q", "k", "v"), counts, strict=True):
        gradient, weight = grads[which], getattr(attn, which).weight
        if scale is not None:
            gradient = (gradient * scale[:, :, None]).to(x.dtype)
        heads = weight.unflatten(1, (count, attn.d_head)).permute(1, 2, 0)
        torch.bmm(gradient.transpose(0, 1), heads, out=found[place : place + count])
        place += count
    if norm is None or scale is None:
        return found
    found *= norm.weight.to(found.dtype)
    if norm.centred:
        found -= found.mean(-1, keepdim=True)
    along = torch.einsum("rtd,td->rt", found, wide.to(x.dtype)) / x.shape[-1]
    along = along * scale.squeeze(-1) ** 2
    return found.addcmul_(along[..., None].to(x.dtype), wide.to(x.dtype), value=-1)


def _neuron_gradients(block: Block, numbers: list[int], x: Tensor, grads: Sites) -> Tensor:
    """(neurons, tokens, d_model) gradients at the input of each of some neurons."""
    found = x.new_zeros(len(numbers), *x.shape)
    for name, linear in (("pre", block.neurons.gate), ("pre_linear", block.neurons.up)):
        if linear is not None:
            found += grads[name].T[..., None] * linear.weight[:, numbers].T[:, None]
    if block.ln2 is None:
        return found
    # Without its weights, which are applied last, a norm has a symmetric derivative.
    plain = replace(block.ln2, weight=torch.ones_like(block.ln2.weight))
    return through_norm(plain, x, found * block.ln2.weight)


@dataclass(kw_only=True)
class Products:
    """For some writers u and all readers v, the sum over a row's tokens of output(u) . gradient(v).

    `writers` is a range of the graph's writers, and `starts` is the first position of each row at
    which `change` is not zero. `budget` is in bytes.
    """

    runner: Runner
    graph: Graph
    change: WriterOutputs
    layout: Layout
    starts: Indices
    budget: int
    writers: slice

    def add_to(self, found: Tensor, points: Sequence[Point]) -> None:
        """Add the products, weighted by point, to (rows, writers, readers), float64 on the CPU."""
        # Under a post-norm, the linearised output of a head depends on the point.
        post = any(block.ln1_post is not None for block in self.runner.decoder.blocks)
        together = [[one] for one in points] if post else [list(points)]
        for rows, tokens in self.tiles():
            for some in together:
                self._tile(found[rows], rows, tokens, some)

    def tiles(self) -> Iterator[tuple[slice, Indices]]:
        """Slices of rows of one length, with (rows, positions) flat tokens, as many as fit."""
        decoder, layout = self.runner.decoder, self.layout
        readers = int(np.bincount(self.graph.reader_layer).max())
        size = max(4, decoder.unembed.element_size())
        width = self.writers.stop - self.writers.start + 4 * readers
        tokens = max(1, self.budget // (width * decoder.d_model * size))
        for group in layout.groups:
            first = min(int(self.starts[group.rows].min()), group.length - group.tail)
            span = group.length - first
            step = max(1, tokens // span)
            for begin in range(group.rows.start, group.rows.stop, step):
                rows = slice(begin, min(begin + step, group.rows.stop))
                for low in range(first, group.length, tokens):
                    places = np.arange(low, min(low + tokens, group.length))
                    yield rows, layout.first_token[rows, None] + places

    def _tile(self, found: Tensor, rows: slice, tokens: Indices, points: Sequence[Point]) -> None:
        blocks, graph = self.runner.decoder.blocks, self.graph
        at = torch.from_numpy(tokens.ravel()).to(self.runner.device)
        writes = self._writes(at, points[0])
        shape = (len(writes), *tokens.shape, writes.shape[-1])

        def add(columns: slice, upto: int, gradients: Tensor) -> None:
            known = min(upto, self.writers.stop) - self.writers.start
            if known > 0:
                left = writes[:known].view(known, *shape[1:]).flatten(2)
                right = gradients.view(len(gradients), *shape[1:]).flatten(2)
                part = torch.einsum("wnk,rnk->nwr", left, right)
                found[:, :known, columns] += part.double().cpu()

        for layer in sorted(points[0].grads):
            groups = graph.groups(layer)
            if "q" in points[0].grads[layer] and self.writers.start < graph.before(layer).stop:
                total = sum(self._attention(layer, at, one) for one in points)
                assert isinstance(total, Tensor)
                add(slice(groups["q"].start, groups["v"].stop), graph.before(layer).stop, total)
            upto = (graph.before if blocks[layer].parallel else graph.heads)(layer).stop
            if self.writers.start < upto:
                total = sum(self._mlp(layer, at, one) for one in points)
                assert isinstance(total, Tensor)
                add(graph.mlp_readers(layer), upto, total)
        self._logits(found, rows, tokens, points, writes.view(shape))

    def _attention(self, layer: int, at: Tensor, one: Point) -> Tensor:
        x = one.run.site(layer, "resid_pre")[at]
        grads = {name: one.weight * one.grads[layer][name][at] for name in ("q", "k", "v")}
        return _reader_gradients(self.runner.decoder.blocks[layer], x, grads)

    def _mlp(self, layer: int, at: Tensor, one: Point) -> Tensor:
        """(readers, tokens, d_model) for the neurons that are nodes, then the rest of the MLP."""
        whole = one.weight * one.grads[layer]["read"][at][None]
        numbers, block = self.graph.chosen(layer), self.runner.decoder.blocks[layer]
        if not numbers:
            return whole
        grads = {
            name: one.weight * one.grads[layer][name][at]
            for name in NEURON_READS
            if name in one.grads[layer]
        }
        x = one.run.site(layer, "resid_pre" if block.parallel else "resid_mid")[at]
        own = _neuron_gradients(block, numbers, x, grads)
        return torch.cat([own, whole - own.sum(0, keepdim=True)])

    def _logits(
        self,
        found: Tensor,
        rows: slice,
        tokens: Indices,
        points: Sequence[Point],
        writes: Tensor,
    ) -> None:
        """Add the products with the logits, which read only the tail of a row."""
        n = self.layout.read_in(rows, tokens)
        if not n:
            return
        at = torch.from_numpy(tokens[:, -n:]).to(self.runner.device)
        total = sum(one.weight * one.final[at] for one in points)
        found[:, :, -1] += torch.einsum("wntd,ntd->nw", writes[:, :, -n:], total).double().cpu()

    def _writes(self, at: Tensor, one: Point) -> Tensor:
        """(writers, tokens, d_model) what the writers in `writers` changed."""
        begin, end = self.writers.start, self.writers.stop
        decoder = self.runner.decoder
        found = self.change.embed.new_empty(end - begin, len(at), decoder.d_model)
        if begin == 0:
            found[0] = self.change.embed[at]
        for layer, block in enumerate(decoder.blocks):
            heads = self.graph.heads(layer)
            mlp = slice(heads.stop, self.graph.mlp(layer) + 1)
            low, high = max(begin, mlp.start), min(end, mlp.stop)
            if low < high:
                some = self._mlp_writes(layer, at, one)
                found[low - begin : high - begin] = some[low - mlp.start : high - mlp.start]
            low, high = max(begin, heads.start), min(end, heads.stop)
            if low < high:
                raw = None
                if block.ln1_post is not None:
                    raw = one.run.site(layer, "attn_raw")[at]
                some = head_writes(block, self.change.z[layer][at], raw)
                found[low - begin : high - begin] = some[low - heads.start : high - heads.start]
        return found

    def _mlp_writes(self, layer: int, at: Tensor, one: Point) -> Tensor:
        """(neurons that are nodes and the rest, tokens, d_model), linearised under a post-norm."""
        whole = self.change.mlp_out[layer][at][None]
        numbers, block = self.graph.chosen(layer), self.runner.decoder.blocks[layer]
        if not numbers:
            return whole
        down = block.neurons.down.weight[numbers]
        own = self.change.neurons[layer][at].T[..., None] * down[:, None]
        found = torch.cat([own, whole - own.sum(0, keepdim=True)])
        if block.ln2_post is None:
            return found
        return through_norm(block.ln2_post, one.run.site(layer, "mlp_raw")[at], found)
