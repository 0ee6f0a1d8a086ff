"""What every writer of the graph writes in a run, in compact form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from interp.engine.architecture import Block, Decoder, Linear, Norm
from interp.engine.edges.graph import Graph
from interp.engine.forward import Baseline, Runner
from interp.engine.layout import Indices
from interp.engine.restart import baseline


@dataclass(frozen=True, kw_only=True)
class Writes:
    """What the writers of a run write: the embedding, z of every layer, and every MLP's output.

    `neurons` holds, by layer, the activations of the neurons that are nodes. In layers with such
    neurons, `mlp_out` is the output of the whole MLP before a post-norm, because the neurons'
    outputs are summed before the norm.

    `run` is the unchanged run these come from. It is None if the values are the same for every
    token (zero and mean ablation); then each tensor holds one token.
    """

    embed: Tensor
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...] = ()
    run: Baseline | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The embedding, z of every layer, every MLP's output, and the neurons by layer."""
        return (self.embed, *self.z, *self.mlp_out, *self.neurons)

    @classmethod
    def of(cls, tensors: Sequence[Tensor], layers: int, run: Baseline | None) -> Writes:
        """The inverse of `tensors`."""
        embed, z, rest = tensors[0], tensors[1 : 1 + layers], tensors[1 + layers :]
        return cls(
            embed=embed,
            z=tuple(z),
            mlp_out=tuple(rest[:layers]),
            neurons=tuple(rest[layers:]),
            run=run,
        )

    @property
    def nothing(self) -> bool:
        """Whether every writer writes zero."""
        return self.run is None and not any(bool(values.any()) for values in self.tensors)

    def at(self, values: Tensor, prompts: Indices, positions: Indices) -> Tensor:
        """(prompts, positions, ...) values of one of the tensors."""
        if self.run is None:
            return values[torch.zeros(len(prompts), len(positions), dtype=torch.long)]
        flat = self.run.flat(prompts[:, None], positions[None])
        return values[flat.to(values.device)]


def with_others_at(base: Writes, other: Writes, positions: Indices) -> Writes:
    """The base run's writes, with those of the other run at one position of each prompt."""
    rows = np.arange(len(positions))
    assert base.run is not None
    flat = base.run.flat(rows, positions)

    def mixed(mine: Tensor, theirs: Tensor) -> Tensor:
        mine = mine.clone()
        at = torch.zeros(1, dtype=torch.long)
        if other.run is not None:
            at = other.run.flat(rows, positions)
        mine[flat.to(mine.device)] = theirs[at.to(theirs.device)]
        return mine

    tensors = [mixed(*pair) for pair in zip(base.tensors, other.tensors, strict=True)]
    return Writes.of(tensors, len(base.z), base.run)


class EdgeRunner(Runner):
    """A runner that knows which neurons of each layer are nodes."""

    def __init__(self, decoder: Decoder, graph: Graph) -> None:
        super().__init__(decoder)
        layers = range(graph.n_layers) if graph.neurons else ()
        self.neurons = [torch.tensor(graph.chosen(layer), dtype=torch.long) for layer in layers]


def edge_runner(decoder: Decoder, graph: Graph) -> Runner:
    """A runner for a graph; if expanded, every query head has a copy of its key/value head."""
    if not graph.expand_kv:
        return EdgeRunner(decoder, graph)
    blocks = tuple(_expanded(block, graph.n_heads // graph.n_kv_heads) for block in decoder.blocks)
    return EdgeRunner(replace(decoder, blocks=blocks), graph)


def record_writes(runner: Runner, prompts: Sequence[Sequence[int]]) -> Writes:
    """What every writer writes in unchanged runs of some prompts."""
    nodes = _nodes(runner)
    kept = {"z", "mlp_out", *(("post", "mlp_raw") if nodes else ())}
    with torch.no_grad():
        run = baseline(runner, prompts, frozenset(kept))
    layers = range(len(runner.decoder.blocks))
    posts = [run.sites.pop((layer, "post"))[:, nodes[layer]] for layer in layers if nodes]
    outs = [run.sites[layer, "mlp_out"] for layer in layers]
    for layer, chosen in enumerate(nodes):
        raw = run.sites.pop((layer, "mlp_raw"), None)
        if len(chosen) and raw is not None:
            outs[layer] = raw
    return Writes(
        embed=run.sites[0, "resid_pre"],
        z=tuple(run.sites[layer, "z"] for layer in layers),
        mlp_out=tuple(outs),
        neurons=tuple(posts),
        run=run,
    )


def _nodes(runner: Runner) -> list[Tensor]:
    """Numbers of the neurons that are nodes, by layer; an empty list if there are none."""
    return runner.neurons if isinstance(runner, EdgeRunner) else []


def zero_writes(runner: Runner) -> Writes:
    """Zero for every writer, one token."""
    decoder = runner.decoder

    def nothing(*shape: int) -> Tensor:
        return decoder.unembed.new_zeros(1, *shape)

    heads = [(block.attn.n_heads, block.attn.d_head) for block in decoder.blocks]
    return Writes(
        embed=nothing(decoder.d_model),
        z=tuple(nothing(*shape) for shape in heads),
        mlp_out=tuple(nothing(decoder.d_model) for _ in heads),
        neurons=tuple(nothing(len(chosen)) for chosen in _nodes(runner)),
    )


def mean_writes(runner: Runner, batches: Iterable[Sequence[Sequence[int]]]) -> Writes:
    """Each writer's mean over all tokens of all prompts, which run batch by batch."""
    total: list[Tensor] = []
    count = 0
    for prompts in batches:
        made = record_writes(runner, prompts)
        sums = [values.double().sum(0, keepdim=True) for values in made.tensors]
        total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        count += sum(map(len, prompts))
    means = [(values / count).to(runner.dtype) for values in total]
    return Writes.of(means, len(runner.decoder.blocks), None)


def _expanded(block: Block, copies: int) -> Block:
    """The block with a copy of its key/value head for each query head."""
    attn = block.attn

    def spread(values: Tensor) -> Tensor:
        heads = values.unflatten(-1, (attn.n_kv_heads, attn.d_head))
        return heads.repeat_interleave(copies, -2).flatten(-2)

    def linear(one: Linear) -> Linear:
        return Linear(
            weight=spread(one.weight), bias=None if one.bias is None else spread(one.bias)
        )

    k_norm: Norm | None = attn.k_norm
    if k_norm is not None and attn.norm_over_heads:
        k_norm = replace(k_norm, weight=spread(k_norm.weight))
    elif k_norm is not None and k_norm.weight.dim() > 1:
        k_norm = replace(k_norm, weight=k_norm.weight.repeat_interleave(copies, 0))
    wide = replace(attn, k=linear(attn.k), v=linear(attn.v), k_norm=k_norm, n_kv_heads=attn.n_heads)
    return replace(block, attn=wide)
