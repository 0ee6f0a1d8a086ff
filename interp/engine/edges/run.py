"""Runs of a circuit: every reader gets its own input, in which removed edges carry other values.

The input of reader v sums what writers of kept edges write in this run (a_u) and what writers of
removed edges wrote in another run (a_u'):

    in_v = sum over kept u of a_u + sum over removed u of a_u'
         = resid + sum over u of (1 - mask[u, v]) (a_u' - a_u),

before the reader's norm. If removed edges carry nothing, only the kept terms are summed, because
the second form leaves rounding errors that a norm would amplify. Head h writes z_h W_O^h. The
output bias belongs to no head and is always kept.

Under a post-norm (Gemma-2 and 3, OLMo-2) heads are summed before the norm. For each layer, a reader
then gets the norm of the sum of its kept and replaced heads, which is exact. The same holds for
neurons that are nodes and the rest of their MLP. A q/k norm over all heads (OLMo-2) acts on all the
layer's query (or key) readers together. Masks may differ between kinds of tokens (`places`).

Many circuits run in one batch. Circuits that have read the same edges so far share a row, so
circuits that differ only in late layers share all earlier layers. Positions before the first
difference between the two runs are taken from the unchanged run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.engine.architecture import Block, Linear, normed
from interp.engine.edges.deltas import Deltas
from interp.engine.edges.graph import Graph
from interp.engine.edges.writes import Writes
from interp.engine.forward import Runner
from interp.engine.layout import Indices, Layout, ranges
from interp.engine.memory import budget_bytes
from interp.engine.readout import CPU_TILE, cut


def run_edges(
    runner: Runner,
    graph: Graph,
    base: Writes,
    other: Writes,
    masks: Tensor,
    *,
    prompt: Indices | None = None,
    mask: Indices | None = None,
    start: Indices | None = None,
    probe: Tensor | None = None,
    places: Indices | None = None,
    budget_gb: float = 1.0,
) -> Tensor:
    """(variants, d_model) normalised final residual at the last token of every variant.

    Of a prompt with branches (`interp.core.branches`), at its whole tail, one variant after the
    other. A variant is a prompt run with a mask. If the mask keeps every edge, it is the base run;
    if it keeps none, it is the run that `other` comes from. Gradients flow to `masks` and `probe`
    if they require them.

    Args:
        runner: from `edge_runner`.
        graph: the model's graph.
        base: unchanged runs of the prompts, from `record_writes`.
        other: what removed edges carry: runs of prompts of equal length, or constants.
        masks: (masks, writers, readers) bool, or the share of each edge that is kept. With
            `places`, (masks, writers, readers, places).
        prompt: the prompt number of each variant. By default every mask runs on every prompt, in
            the order of the masks.
        mask: the mask number of each variant.
        start: for each prompt, the first position at which base and other differ.
        probe: (variants, readers, positions, d_model) added to the inputs of readers. Its gradient
            is the gradient at these inputs.
        places: (tokens,) the place number of every token, with all prompts in one axis. The mask of
            a place says which edges are kept at its tokens. What a key or value reads at one token
            affects all tokens that attend to it.
        budget_gb: memory for running variants, in GB; without gradients they run in parts.

    Raises:
        InterpError: the masks have another shape, or a single variant exceeds the budget.
    """
    assert base.run is not None
    _check(graph, masks, places, int(base.run.lengths.sum()))
    lengths, grad = (
        base.run.lengths,
        torch.is_grad_enabled()
        and (masks.requires_grad or (probe is not None and probe.requires_grad)),
    )
    if prompt is None or mask is None:
        mask, prompt = (i.ravel() for i in np.indices((len(masks), len(lengths))))
    begins = np.zeros_like(lengths) if start is None or probe is not None else start
    tails = base.run.tails(np.arange(len(lengths)))
    begins = np.minimum(begins, lengths - tails)
    work = _RunInputs(
        runner=runner,
        graph=graph,
        base=base,
        other=other,
        masks=masks.to(runner.device),
        places=places,
        prefix=None if grad or probe is not None else _prefixes(graph, masks),
        probe=probe,
        merged=not grad and runner.decoder.blocks[0].ln1_post is None,
    )
    found = base.embed.new_empty(len(prompt), runner.decoder.d_model)
    with torch.set_grad_enabled(grad):
        pieces, order = [], []
        for chosen in _chunks(work, prompt, mask, lengths, begins, budget_gb):
            order.append(chosen)
            first = int(begins[prompt[chosen]].min())
            pieces.append(_Chunk(work, chosen, prompt[chosen], mask[chosen], first).run())
        if not pieces:
            return found
        done = np.concatenate(order)
        sizes, back = tails[prompt[done]], np.argsort(done)
        first = np.cumsum(sizes) - sizes
        return torch.cat(pieces)[torch.from_numpy(ranges(first[back], sizes[back]))]


def _check(graph: Graph, masks: Tensor, places: Indices | None, tokens: int) -> None:
    dims = 3 if places is None else 4
    if masks.dim() != dims or tuple(masks.shape[1:3]) != graph.shape:
        raise InterpError(
            f"masks of shape {tuple(masks.shape)}",
            f"the graph has (writers, readers) {graph.shape}",
            "stack masks of this graph: (masks, writers, readers), or with places as a last axis",
        )
    if places is None:
        return
    count = masks.shape[3]
    if places.shape != (tokens,) or places.min() < 0 or places.max() >= count:
        raise InterpError(
            f"masks of {count} places",
            f"places of shape {places.shape} from {places.min()} to {places.max()}",
            f"give each of the {tokens} tokens a place from 0 to {count - 1}",
        )


def _chunks(
    work: _RunInputs,
    prompt: Indices,
    mask: Indices,
    lengths: Indices,
    begins: Indices,
    budget_gb: float,
) -> Iterator[Indices]:
    """Variants of equal length that fit the budget together, with those of a prompt adjacent."""
    graph, decoder = work.graph, work.runner.decoder
    wide = (2 if work.places is None else 3) * len(work.live) + 6 * max(graph.n_heads, 2) + 4
    wide += 3 * max(len(graph.chosen(layer)) for layer in range(graph.n_layers))
    per_token = (wide * decoder.d_model + 4 * decoder.d_mlp) * work.base.embed.element_size()
    limit = budget_bytes(budget_gb) // per_token
    longest = int((lengths - begins).max(initial=0))
    if longest > limit:
        raise InterpError(
            f"a circuit of {graph.n_edges} edges within {budget_gb} GB",
            f"one prompt needs {longest * per_token / 1e9:z.2f} GB",
            "raise budget_gb or use shorter prompts",
        )
    order = np.lexsort((mask, prompt, lengths[prompt]))
    if work.runner.device.type == "cpu":
        limit = max(longest, min(limit, CPU_TILE))
    assert work.base.run is not None
    branches = work.base.run.branches or [()] * len(lengths)
    shapes = [(int(lengths[i]), branches[i]) for i in prompt[order].tolist()]
    for shape in sorted(set(shapes)):
        alike = order[[one == shape for one in shapes]]
        yield from cut(alike, shape[0] - begins[prompt[alike]], limit)


def _prefixes(graph: Graph, masks: Tensor) -> Indices:
    """(masks, stages): masks with equal numbers agree on all readers up to this stage."""
    whole = masks.detach().cpu().numpy()
    found = np.zeros((len(whole), len(_stages(graph))), dtype=np.int64)
    for stage, readers in enumerate(_stages(graph)):
        seen: dict[tuple[int, bytes], int] = {}
        for number, one in enumerate(whole):
            before = int(found[number, stage - 1]) if stage else 0
            key = before, np.ascontiguousarray(one[:, readers]).tobytes()
            found[number, stage] = seen.setdefault(key, len(seen))
    return found


def _stages(graph: Graph) -> list[slice]:
    """The readers of each stage: attention, then the MLP (or both if parallel), then the logits."""
    found = []
    for layer in range(graph.n_layers):
        q, v = (graph.groups(layer)[which] for which in "qv")
        mlp = graph.mlp_readers(layer)
        if graph.parallel:
            found.append(slice(q.start, mlp.stop))
        else:
            found += [slice(q.start, v.stop), mlp]
    return [*found, slice(len(graph.readers) - 1, len(graph.readers))]


@dataclass(kw_only=True)
class _RunInputs:
    """What all chunks of a call have in common."""

    runner: Runner
    graph: Graph
    base: Writes
    other: Writes
    masks: Tensor
    places: Indices | None
    prefix: Indices | None
    probe: Tensor | None
    merged: bool

    def __post_init__(self) -> None:
        # Writers with every edge kept in every mask need no change.
        whole = (self.masks.detach() == 1).all(0)
        whole = whole if self.places is None else whole.all(-1)
        kept = whole.cpu().numpy() | ~self.graph.allowed
        self.nothing = self.other.nothing
        everyone = self.prefix is None or self.nothing
        self.live = np.flatnonzero(~kept.all(1) | everyone)


class _Chunk:
    """Runs variants of one length through the layers.

    Variants that have read the same edges so far share a row: `row[i]` is the row of variant i, and
    `first[r]` is one variant of row r.
    """

    def __init__(
        self, work: _RunInputs, ids: Indices, prompt: Indices, mask: Indices, start: int
    ) -> None:
        assert work.base.run is not None
        self.work, self.runner, self.graph = work, work.runner, work.graph
        self.ids, self.prompt, self.mask = ids, prompt, mask
        self.stages = iter(range(len(_stages(work.graph))))
        length = int(work.base.run.lengths[prompt[0]])
        self.positions = np.arange(start, length)
        self.tail = int(work.base.run.tails(prompt[:1])[0])
        _, self.first, self.row = np.unique(prompt, return_index=True, return_inverse=True)
        self.x = work.base.at(work.base.embed, prompt[self.first], self.positions)
        self.bias = torch.zeros_like(self.x[:1, :1])
        self.deltas = Deltas(merged=work.merged, capacity=len(work.live))
        if 0 in work.live:
            self.deltas.add(self._change(work.other.embed, self.x)[:, None])

    def run(self) -> Tensor:
        """The normalised final residuals of the chunk's variants."""
        decoder = self.runner.decoder
        for layer in range(len(decoder.blocks)):
            self._layer(layer)
        self._split()
        read = self._read(slice(len(self.graph.readers) - 1, len(self.graph.readers)))
        ends = decoder.ln_final(read[:, 0])[torch.from_numpy(self.row).to(read.device)]
        return ends.flatten(0, 1)

    # -- a layer ---------------------------------------------------------------------------

    def _layer(self, layer: int) -> None:
        block, runner = self.runner.decoder.blocks[layer], self.runner
        attn, groups = block.attn, self.graph.groups(layer)
        last = layer == len(runner.decoder.blocks) - 1
        self._split()
        layout = self._layout()
        places = layout.positions
        read = self._read(slice(groups["q"].start, groups["v"].stop))
        k, v = (self._project(block, which, read, groups) for which in ("k", "v"))
        k = runner.rotated(attn, "k", k, places)
        if last:  # from here on only the tail is read
            n = self.tail
            self.x, self.positions, read = self.x[:, -n:], self.positions[-n:], read[:, :, -n:]
            places = places[layout.ends]
            self.deltas.end(n)
        q = runner.rotated(attn, "q", self._project(block, "q", read, groups), places)
        z = runner.attention(layer, q, k, v, layout, self.work.base.run, only_last=last)
        raw = attn.o(z.flatten(1))
        attn_out = normed(block.ln1_post, raw)
        if block.parallel:
            read = self._read(self.graph.mlp_readers(layer))
        self.x = self.x + attn_out.view_as(self.x)
        self._add_heads(layer, block, z, raw)
        if not block.parallel:
            self._split()
            read = self._read(self.graph.mlp_readers(layer))
        if self.graph.chosen(layer):
            self._add_neurons(layer, block, read)
            return
        out = self.runner.mlp_out(block, read.flatten(0, 2)).view_as(self.x)
        self.x = self.x + out
        if self.graph.mlp(layer) in self.work.live:
            self.deltas.add(self._change(self.work.other.mlp_out[layer], out)[:, None])

    def _add_neurons(self, layer: int, block: Block, read: Tensor) -> None:
        """Add the layer's neurons that are nodes, and the rest of its MLP, as writers."""
        numbers, norm = self.graph.chosen(layer), block.ln2_post
        posts = self.runner.mlp_post(block, read[:, -1].flatten(0, 1), None)
        if read.shape[1] > 1:  # each neuron has its own input
            own = [
                neuron_post(block, number, read[:, place]).flatten()
                for place, number in enumerate(numbers)
            ]
            posts = posts.index_copy(
                1, torch.tensor(numbers, device=posts.device), torch.stack(own, 1)
            )
        raw = block.neurons.down(posts).view_as(self.x)
        self.x = self.x + (raw if norm is None else norm(raw))
        nodes = posts[:, numbers].unflatten(0, self.x.shape[:2])
        change = self._change(self.work.other.neurons[layer], nodes)
        written = (change[..., None] * block.neurons.down.weight[numbers]).transpose(1, 2)
        rest = self._change(self.work.other.mlp_out[layer], raw)[:, None]
        written = torch.cat([written, rest - written.sum(1, keepdim=True)], 1)
        last = self.graph.mlp(layer)
        live = self.work.live[(self.work.live >= last - len(numbers)) & (self.work.live <= last)]
        if not len(live):
            return
        if self.work.nothing:
            raw = torch.zeros_like(raw)
            if norm is not None:
                self.bias = self.bias + norm(raw)[:1, :1]
        chosen = torch.from_numpy(live - last + len(numbers)).to(written.device)
        self.deltas.add(written[:, chosen], raw=None if norm is None else raw, norm=norm)

    def _project(self, block: Block, which: str, read: Tensor, groups: dict[str, slice]) -> Tensor:
        """Queries, keys or values of heads with separate inputs."""
        if read.shape[1] > 1:
            first, place = groups["q"].start, groups[which]
            read = read[:, place.start - first : place.stop - first]
        read = normed(block.ln1, read)
        if read.shape[1] == 1:  # all heads have the same input
            return self.runner.project(block, which, read.flatten(0, 2))
        linear: Linear = getattr(block.attn, which)
        heads = read.shape[1]
        weight = linear.weight.unflatten(1, (heads, -1)).transpose(0, 1)
        made = torch.bmm(read.transpose(0, 1).flatten(1, 2), weight).transpose(0, 1)
        return made if linear.bias is None else made + linear.bias.view(heads, -1)

    def _add_heads(self, layer: int, block: Block, z: Tensor, raw: Tensor) -> None:
        """Add the layer's heads as writers."""
        place = self.graph.heads(layer)
        heads = self.work.live[(self.work.live >= place.start) & (self.work.live < place.stop)]
        if not len(heads):
            return
        chosen = torch.from_numpy(heads - place.start).to(z.device)
        z = z.unflatten(0, self.x.shape[:2])
        change = self._change(self.work.other.z[layer], z).flatten(0, 1)[:, chosen]
        weight = block.attn.W_O[chosen]
        written = torch.bmm(change.transpose(0, 1), weight)
        norm, raw = block.ln1_post, raw.view_as(self.x)
        if self.work.nothing:  # readers start from the bias, which belongs to no head
            bias = block.attn.o.bias
            raw = torch.zeros_like(raw) if bias is None else bias.expand_as(raw)
            self.bias = self.bias + (raw if norm is None else norm(raw))[:1, :1]
        self.deltas.add(
            written.unflatten(1, self.x.shape[:2]).transpose(0, 1),
            raw=None if norm is None else raw,
            norm=norm,
        )

    # -- rows ------------------------------------------------------------------------------

    def _layout(self) -> Layout:
        run = self.work.base.run
        assert run is not None
        rows = np.arange(len(self.first))
        return Layout(
            ids=rows,
            prompt=self.prompt[self.first],
            start=np.full_like(rows, self.positions[0]),
            length=np.full_like(rows, self.positions[-1] + 1),
            offset=run.offset,
            branches=run.branches,
        )

    def _split(self) -> None:
        """Give separate rows to variants whose masks differ for the next readers."""
        stage = next(self.stages)
        known = np.arange(len(self.row))
        if self.work.prefix is not None:
            prefix = self.work.prefix[self.mask, stage]
            known = self.prompt * (int(prefix.max()) + 1) + prefix
        _, first, row = np.unique(known, return_index=True, return_inverse=True)
        parents = self.row[first]
        self.first, self.row = first, row
        if len(parents) != len(self.x) or (np.diff(parents) != 1).any():
            rows = torch.from_numpy(parents).to(self.x.device)
            self.x = self.x[rows]
            self.deltas.split(rows)

    def _change(self, other: Tensor, online: Tensor) -> Tensor:
        """The writer's change, as in `Deltas`; `other` is one of the tensors of `Writes`."""
        if self.work.nothing:
            return online
        return self.work.other.at(other, self.prompt[self.first], self.positions) - online

    def _read(self, readers: slice) -> Tensor:
        """Inputs of readers, (rows, readers, positions, d_model); one reader if all are equal."""
        live = torch.from_numpy(self.work.live[: self.deltas.count]).to(self.x.device)
        chosen = torch.from_numpy(self.mask[self.first]).to(self.x.device)
        kept = self.work.masks[:, :, readers][chosen[:, None], live].transpose(1, 2)
        if self.work.places is not None:
            kept = self._by_token(kept)
        weights, start = 1 - kept.to(self.x.dtype), self.x
        if self.work.prefix is not None and not bool(weights.any()):
            return start[:, None]
        if self.work.nothing:
            weights, start = kept.to(self.x.dtype), self.bias
        if self.work.prefix is not None and bool((weights == weights[:, :1]).all()):
            weights = weights[:, :1]
        read = self.deltas.sum(weights).add_(start[:, None])
        if self.work.probe is not None:
            ids = torch.from_numpy(self.ids[self.first])
            places = torch.from_numpy(self.positions)
            read = read + self.work.probe[ids][:, readers][:, :, places].to(read)
        return read

    def _by_token(self, kept: Tensor) -> Tensor:
        """(rows, readers, writers, positions) shares kept; no positions if all places agree."""
        run = self.work.base.run
        assert run is not None
        assert self.work.places is not None
        if self.work.prefix is not None and bool((kept == kept[..., :1]).all()):
            return kept[..., 0]
        flat = run.flat(self.prompt[self.first][:, None], self.positions[None])
        at = torch.from_numpy(self.work.places)[flat].to(kept.device)
        return kept.gather(-1, at[:, None, None].expand(*kept.shape[:3], -1))


def neuron_post(block: Block, number: int, read: Tensor) -> Tensor:
    """(...) activation of one neuron when the MLP reads `read` (..., d_model)."""
    mlp, read = block.neurons, normed(block.ln2, read)

    def column(linear: Linear) -> Tensor:
        made = read @ linear.weight[:, number]
        return made if linear.bias is None else made + linear.bias[number]

    post = mlp.act(column(mlp.gate))
    return post if mlp.up is None else post * column(mlp.up)
