"""First-order effects of a sweep's cells, one chunk of prompts at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.components import SITES
from interp.engine.forward import Runner
from interp.engine.gradients import Run, backward, forward, metric_gradient, metric_of, rows_of
from interp.engine.layout import Indices, Layout, ranges
from interp.patching.spec import PatchSpec
from interp.patching.sweep import PatchSweep

NEURONS = tuple(site for site, axis in SITES.items() if axis == "neuron")


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What is estimated, and which corrections of AtP* are applied.

    Attributes:
        name: the function that was called.
        spec: what is patched.
        qk_fix: whether the softmax is recomputed.
        grad_drop: whether gradients are dropped layer by layer.
    """

    name: str
    spec: PatchSpec
    qk_fix: bool = False
    grad_drop: bool = False

    @property
    def gradient_site(self) -> str:
        """The site whose gradient is used: a change of attention acts through z."""
        return "z" if self.qk_fix or self.spec.site == "pattern" else self.spec.site

    @property
    def stored_sites(self) -> frozenset[str]:
        """The sites of each run that the estimate reads."""
        attention = self.qk_fix or self.spec.site == "pattern"
        return frozenset({"q", "k", "v", "z"} if attention else {self.spec.site})

    @property
    def method(self) -> str:
        """The method's name in tables and errors."""
        if self.name == "attribution_patching":
            return "attribution patching"
        fixes = (("QK fix", self.qk_fix), ("GradDrop", self.grad_drop))
        applied = ", ".join(name for name, on in fixes if on)
        return f"AtP* ({applied or 'no correction'})"


@dataclass(kw_only=True)
class Estimator:
    """The estimate of one call, computed one chunk of prompts at a time.

    Attributes:
        runner: the model.
        sweep: the sweep laid out for one layer and one component.
        asked: the method.
        parts: heads or neurons estimated; None if they are summed.
        layers: layers estimated.
        columns: number of position columns.
        constant: per layer, what replaces the site under mean ablation.
        reach: first-order bound on how far the metric can move, summed over prompts.
        forwards: forward passes made.
        backwards: backward passes made.
        batches: batches of prompts.
    """

    runner: Runner
    sweep: PatchSweep
    asked: Attribution
    parts: list[int] | None
    layers: list[int]
    columns: int
    constant: list[Tensor] | None = None
    reach: float = 0.0
    forwards: int = 0
    backwards: int = 0
    batches: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of layers, components and columns of the estimate of one prompt."""
        return len(self.layers), 1 if self.parts is None else len(self.parts), self.columns

    def held(self) -> int:
        """Bytes per token besides the autograd graph: stored sites and GradDrop's gradients."""
        decoder = self.runner.decoder
        layers = len(decoder.blocks)
        width = decoder.d_mlp if self.asked.spec.site in NEURONS else decoder.d_model
        width *= decoder.n_experts if self.asked.spec.site == "expert_out" else 1
        copies = layers * (8 + (layers // 2 if self.asked.grad_drop else 0))
        return copies * width * decoder.unembed.element_size()

    def run(
        self,
        prompts: Indices,
        tokens: list[tuple[int, ...]],
        *,
        grad: bool = False,
        recompute: bool = False,
    ) -> Run:
        """Run some prompts, and count the forward pass."""
        self.forwards += 1
        layout, x = rows_of(self.runner, [tokens[i] for i in prompts])
        kept = self.asked.stored_sites
        return forward(self.runner, x, layout, kept=kept, grad=grad, recompute=recompute)

    def chunk(self, prompts: Indices, rebuilt: bool) -> tuple[np.ndarray, np.ndarray]:
        """(2, n) metric of both runs, and (n, layers, components, columns) estimated gain."""
        runs, n_layers = self.sweep.runs, len(self.runner.decoder.blocks)
        targets = runs.targets.select(torch.from_numpy(prompts))
        base = self.run(prompts, runs.base, grad=True, recompute=rebuilt)
        other = self.run(prompts, runs.other)
        metric = self.sweep.metric
        m_base, final = metric_gradient(self.runner, base, metric, targets)
        m_other = metric_of(self.runner, other, metric, targets)
        moved = (a.site(n_layers, "resid_pre")[a.layout.ends] for a in (base, other))
        moved = torch.stack(list(moved)).diff(dim=0)[0].norm(dim=-1)
        self.reach += float((final[base.layout.ends].norm(dim=-1) * moved).sum())
        gradients = self._gradients(base, final)
        masks = self._masks(prompts, base.layout)
        found = []
        for layer in self.layers:
            products: list[list[Tensor]] = [[] for _ in gradients[layer]]
            for change in self._changes(layer, base, other, masks):
                for kept, gradient in zip(products, gradients[layer], strict=True):
                    kept.append(self._inner(change, gradient))
            each = [self._summed(layer, torch.stack(kept), base.layout, masks) for kept in products]
            if self.asked.grad_drop:
                sizes = layer * each[0].abs() + sum(one.abs() for one in each[1:])
                each = [sizes / (n_layers - 1)]
            found.append(each[0])
        gained = torch.stack(found, 1).double().cpu().numpy()
        return np.stack([m_base.numpy(), m_other.numpy()]), gained

    def _gradients(self, run: Run, final: Tensor) -> dict[int, list[Tensor]]:
        """For every layer: the site's gradient, then one for every later layer that is dropped."""
        at, found, tops = self.asked.gradient_site, {}, {}
        wanted = () if at in ("resid_pre", "resid_post") else (at,)
        self.backwards += 1
        drop = self.asked.grad_drop
        for layer, grads in backward(self.runner, run, final, wanted, keep_graph=drop):
            found[layer], tops[layer] = [grads[at]], grads["resid_post"]
        if drop:
            for top in range(1, len(self.runner.decoder.blocks)):
                self.backwards += 1
                down = backward(self.runner, run, tops[top], wanted, top=top, keep_graph=True)
                for layer, grads in down:
                    found[layer].append(grads[at])
        return found

    def _masks(self, prompts: Indices, layout: Layout) -> Tensor:
        """(columns, tokens) bool: the tokens that each column of the result replaces."""
        cells = self.sweep.cells
        number = np.full(len(self.sweep.runs.base), -1)
        number[prompts] = np.arange(len(prompts))
        entries = np.flatnonzero(number[cells.prompt] >= 0)
        taken = ranges(cells.first[entries], cells.count[entries])
        column = np.repeat(cells.cell[entries], cells.count[entries])
        first = layout.first_token[number[cells.prompt[entries]]]
        tokens = np.repeat(first, cells.count[entries]) + cells.positions[taken]
        masks = torch.zeros(self.columns, int(layout.sizes.sum()), dtype=torch.bool)
        masks[column, tokens] = True
        return masks.to(self.runner.device)

    def _changes(self, layer: int, base: Run, other: Run, masks: Tensor) -> Iterator[Tensor]:
        """(tokens, ..., width) clean minus corrupted at the gradient's site, for every variant.

        Each column is a variant of its own for keys, and each component if norms run over heads.
        Otherwise there is one variant.
        """
        source, site = self.asked.spec.source, self.asked.spec.site
        sign = 1 if self.asked.spec.direction == "noise" else -1

        def replaced(name: str) -> Tensor:
            mine = base.site(layer, name)
            if source == "zero":
                return torch.zeros_like(mine)
            if self.constant is not None:
                return self.constant[layer].expand_as(mine)
            return other.site(layer, name)

        if self.asked.gradient_site != "z" or site == "z":
            yield sign * (base.site(layer, site) - replaced(site))
            return
        mine = {name: base.site(layer, name) for name in ("q", "k", "v")}
        plain = self._z(layer, mine, base.layout)
        if site == "pattern":
            new = {name: replaced(name) for name in ("q", "k")}
            yield sign * (plain - self._z(layer, mine | new, base.layout))
            return
        for mixed in self._mixed(layer, mine[site], replaced(site), masks):
            yield sign * (plain - self._z(layer, mine | {site: mixed}, base.layout))

    def _mixed(self, layer: int, old: Tensor, new: Tensor, masks: Tensor) -> Iterator[Tensor]:
        """Queries or keys of every variant; keys are replaced one column at a time."""
        parts = self.parts if self._entangled(layer) else None
        for part in [None] if parts is None else parts:
            for where in masks if self.asked.spec.site == "k" else [None]:
                mixed = new if where is None else torch.where(where[:, None, None], new, old)
                if part is not None:
                    whole = mixed
                    mixed = old.clone()
                    mixed[:, part] = whole[:, part]
                yield mixed

    def _entangled(self, layer: int) -> bool:
        """Whether a change of one head changes others: heads are then replaced one by one."""
        attn = self.runner.decoder.blocks[layer].attn
        return self.asked.qk_fix and attn.norm_over_heads and self.parts is not None

    def _z(self, layer: int, sites: dict[str, Tensor], layout: Layout) -> Tensor:
        attn, at = self.runner.decoder.blocks[layer].attn, layout.positions
        with torch.no_grad():
            q, k = (self.runner.rotated(attn, name, sites[name], at) for name in ("q", "k"))
            return self.runner.attention(layer, q, k, sites["v"], layout, None, only_last=False)

    def _inner(self, change: Tensor, gradient: Tensor) -> Tensor:
        """(tokens, components) products; one column if the site has no components."""
        axis = SITES[self.asked.spec.site]
        if axis == "neuron":
            return change * gradient
        return (change * gradient).sum(-1, keepdim=axis is None)

    def _summed(self, layer: int, product: Tensor, layout: Layout, masks: Tensor) -> Tensor:
        """(n, components, columns): (variants, tokens, heads) summed over the tokens of a cell."""
        keys = self.asked.qk_fix and self.asked.spec.site == "k"
        if self._entangled(layer):
            product = product.sum(-1).unflatten(0, (len(self.parts or ()), -1)).permute(1, 2, 0)
        elif keys:
            attn = self.runner.decoder.blocks[layer].attn
            product = product.unflatten(-1, (attn.n_kv_heads, -1)).sum(-1)
        if not keys:
            product = product * masks[:, :, None]
        rows = torch.from_numpy(np.repeat(np.arange(len(layout)), layout.sizes)).to(product.device)
        found = product.new_zeros(len(product), len(layout), product.shape[-1])
        found.index_add_(1, rows, product)
        if self.parts is None:
            found = found.sum(-1, keepdim=True)
        elif not self._entangled(layer):
            found = found[..., self.parts]
        return found.permute(1, 2, 0)
