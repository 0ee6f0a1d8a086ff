"""A forward pass with a separate graph per layer, and the metric's gradient at its sites.

Rows are whole prompts of different lengths, as flat tokens, so nothing is padded and no prompt
depends on another. Each layer starts from a leaf tensor. So the backward pass reads the gradients
at the layer's sites and then frees the layer's graph. If the graph of one prompt is too large, it
is rebuilt layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from interp.core.branches import sizes_of
from interp.core.components import EXPERT_SITES
from interp.core.errors import InterpError
from interp.core.metrics import Metric, Targets
from interp.engine.architecture import Decoder
from interp.engine.forward import Runner
from interp.engine.layout import Indices, Layout
from interp.engine.readout import CPU_TILE, LogitsOf

Sites = dict[str, Tensor]

READS = ("q", "k", "v", "read")
"""Sites of the readers: the projections, and `read`, the residual that only the MLP reads."""

NEURON_READS = ("pre", "pre_linear")
"""Further sites of readers, if neurons are nodes."""

TAPE_SHARE = 0.6
"""Share of the memory budget for the runs of a chunk; the rest is for gradient products."""


@dataclass(kw_only=True)
class Run:
    """A forward pass from layer `first` on.

    `entering` holds resid_pre of every layer and then the final residual, `leaving` the output of
    every layer, and `sites` its stored sites. If `heads` is given, it replaces site z of the first
    layer, and that layer's queries, keys and values are not computed. With `recompute`, no graph is
    stored, and the backward pass rebuilds the graph of each layer. The sites in `kept` are stored
    in any case.
    """

    layout: Layout
    first: int
    heads: Tensor | None
    kept: frozenset[str]
    recompute: bool
    entering: list[Tensor] = field(default_factory=list)
    leaving: list[Tensor] = field(default_factory=list)
    sites: list[Sites] = field(default_factory=list)

    def site(self, layer: int, name: str) -> Tensor:
        """A stored site at every token."""
        if name in ("resid_pre", "resid_post"):
            return self.entering[layer - self.first + (name == "resid_post")].detach()
        return self.sites[layer - self.first][name].detach()


def row_order(prompts: Sequence[Sequence[int]]) -> Indices:
    """The order in which `rows_of` takes prompts: ascending length, and equal branches together."""
    numbers = range(len(prompts))
    return np.array(sorted(numbers, key=lambda i: (len(prompts[i]), sizes_of(prompts[i]))), int)


def rows_of(runner: Runner, prompts: Sequence[Sequence[int]]) -> tuple[Layout, Tensor]:
    """The layout of prompts, one row each in the order of `row_order`, and their embeddings."""
    layout = Layout.of_prompts(prompts)
    assert (np.diff(layout.ids) == 1).all()
    with torch.no_grad():
        return layout, runner.embed(prompts, layout)


def block_sites(
    runner: Runner,
    layer: int,
    x: Tensor,
    layout: Layout,
    heads: Tensor | None = None,
    kept: frozenset[str] = frozenset(),
) -> tuple[Tensor, Sites]:
    """resid_post of rows whose resid_pre is `x`, and all sites of the layer, differentiable.

    `heads` replaces site z. The sites of experts are among them if one is in `kept`.
    """
    sites: Sites = {}
    experts = not EXPERT_SITES.isdisjoint(kept)
    return runner.block(layer, x, layout, capture=sites, heads=heads, experts=experts), sites


def forward(
    runner: Runner,
    x: Tensor,
    layout: Layout,
    *,
    first: int = 0,
    heads: Tensor | None = None,
    kept: frozenset[str] = frozenset(),
    wanted: frozenset[str] | None = None,
    grad: bool = False,
    recompute: bool = False,
) -> Run:
    """Run the layers from `first` on.

    Args:
        runner: runs the model's decoder.
        x: (tokens, d_model) resid_pre of layer `first`; the final residual if `first` is n_layers.
        layout: the rows.
        first: the first layer to run.
        heads: site z of that layer, in place of its attention.
        kept: sites to store besides the residual stream.
        wanted: sites whose gradients `backward` may compute; all by default.
        grad: store what `backward` needs.
        recompute: store the residual stream only, and rebuild each layer in `backward`.
    """
    if heads is not None:
        heads = heads.detach().requires_grad_(grad)
    run = Run(layout=layout, first=first, heads=heads, kept=kept, recompute=recompute)
    taping = grad and not recompute
    for layer in range(first, len(runner.decoder.blocks)):
        x = x.detach().requires_grad_(grad)
        run.entering.append(x)
        with torch.set_grad_enabled(taping):
            given = heads if layer == first else None
            x, sites = block_sites(runner, layer, x, layout, given, kept)
        run.leaving.append(x)
        if not taping:
            sites = _kept(run, sites)
        elif wanted is not None:
            sites = {name: value for name, value in sites.items() if name in kept | wanted}
        run.sites.append(sites)
    run.entering.append(x.detach().requires_grad_(grad))
    return run


def _kept(run: Run, sites: Sites) -> Sites:
    return {name: sites[name].detach() for name in run.kept if name in sites}


def metric_of(runner: Runner, run: Run, metric: Metric, targets: Targets) -> Tensor:
    """(rows,) the metric, float64 on the CPU."""
    with torch.no_grad():
        last = run.entering[-1].detach()[run.layout.ends.to(runner.device)]
        hidden = runner.decoder.ln_final(last)
        return metric(LogitsOf(decoder=runner.decoder, hidden=hidden), targets)


def metric_gradient(
    runner: Runner, run: Run, metric: Metric, targets: Targets
) -> tuple[Tensor, Tensor]:
    """(rows,) the metric, and the gradient of its sum at the final residual (tokens, d_model).

    Raises:
        InterpError: the metric is not a differentiable function of the logits.
    """
    at = run.layout.ends.to(runner.device)
    with torch.enable_grad():
        last = run.entering[-1].detach()[at].requires_grad_()
        readout = LogitsOf(decoder=runner.decoder, hidden=runner.decoder.ln_final(last))
        values = metric(readout, targets)
        if not values.requires_grad:
            raise InterpError(
                f"the gradient of {metric.name}",
                "it is not a differentiable function of the logits",
                "use logit_diff, or patch exactly (activation_patching, method='exact')",
            )
        (found,) = torch.autograd.grad(values.sum(), last)
    gradient = torch.zeros_like(run.entering[-1])
    gradient[at] = found
    return values.detach(), gradient


def backward(
    runner: Runner,
    run: Run,
    gradient: Tensor,
    wanted: Sequence[str],
    *,
    top: int | None = None,
    keep_graph: bool = False,
) -> Iterator[tuple[int, Sites]]:
    """Gradients at some sites and at resid_pre and resid_post, from the last layer to the first.

    Args:
        runner: runs the model's decoder.
        run: a forward pass with `grad`.
        gradient: the gradient at resid_pre of layer `top`.
        wanted: names of sites; sites that a layer does not have are skipped.
        top: begin at the layer below this one; n_layers if None.
        keep_graph: allow another call with the same run.

    Yields:
        (layer, gradients by site), each (tokens, ...).
    """
    end = len(run.leaving) if top is None else top - run.first
    for place in reversed(range(end)):
        layer = run.first + place
        out, sites = run.leaving[place], run.sites[place]
        if run.recompute:
            with torch.enable_grad():
                given = run.heads if place == 0 else None
                x = run.entering[place]
                out, sites = block_sites(runner, layer, x, run.layout, given, run.kept)
        names = [name for name in wanted if name in sites]
        inputs = [run.entering[place], *(sites[name] for name in names)]
        found = torch.autograd.grad(
            out, inputs, gradient, retain_graph=keep_graph and not run.recompute, allow_unused=True
        )
        filled = [
            torch.zeros_like(at) if one is None else one
            for one, at in zip(found, inputs, strict=True)
        ]
        if not keep_graph and not run.recompute:
            run.sites[place] = _kept(run, sites)
            run.leaving[place] = out.detach()
        grads = dict(zip(names, filled[1:], strict=True))
        yield layer, grads | {"resid_post": gradient, "resid_pre": filled[0]}
        gradient = filled[0]


def tape_bytes(decoder: Decoder, longest: int) -> int:
    """Approximate bytes of one token's graph over all layers, in prompts of `longest` tokens."""
    attn, d = decoder.blocks[0].attn, decoder.d_model
    heads = attn.n_heads * attn.d_head
    patterns = 3 * attn.n_heads * longest if attn.softcap is not None else 0
    width = 8 * d + 5 * heads + 4 * attn.n_kv_heads * attn.d_head + 5 * decoder.d_mlp + patterns
    return len(decoder.blocks) * width * decoder.unembed.element_size()


def chunks(
    decoder: Decoder, lengths: Indices, budget: int, *, held: int = 0
) -> Iterator[tuple[slice, bool]]:
    """Consecutive prompts whose graphs fit the budget, and whether to rebuild them by layer.

    `lengths` are ascending. `held` is the number of bytes per token besides the graph.
    """
    tile = CPU_TILE if decoder.unembed.device.type == "cpu" else 10**9
    limit, begin = TAPE_SHARE * budget, 0
    while begin < len(lengths):
        end = begin + 1
        over = int(lengths[begin]) * (tape_bytes(decoder, int(lengths[begin])) + held) > limit
        while not over and end < len(lengths):
            tokens, longest = int(lengths[begin : end + 1].sum()), int(lengths[end])
            if tokens > tile or tokens * (tape_bytes(decoder, longest) + held) > limit:
                break
            end += 1
        yield slice(begin, end), over
        begin = end
