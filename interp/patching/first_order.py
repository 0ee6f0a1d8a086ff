"""First-order effects of a sweep's cells, chunk by chunk, for `interp.patching.attribution`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Columns
from interp.core.components import SITES
from interp.core.prompts import Task
from interp.engine.forward import Runner
from interp.engine.gradients import Run, backward, forward, metric_gradient, metric_of, rows_of
from interp.engine.layout import Indices, Layout, ranges
from interp.patching.request import Request

NEURONS = tuple(site for site, unit in SITES.items() if unit == "neuron")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is estimated, and how."""

    name: str
    site: str
    by: tuple[str, ...]
    source: str
    reference: Task | None
    direction: str
    positions: Columns
    layers: tuple[int, ...] | None
    components: tuple[int, ...] | None
    fix: bool = False
    drop: bool = False

    @property
    def at(self) -> str:
        """The site whose gradient is used: changed attention acts through z."""
        return "z" if self.fix or self.site == "pattern" else self.site

    @property
    def kept(self) -> frozenset[str]:
        """Sites to keep of a run."""
        attention = self.fix or self.site == "pattern"
        return frozenset({"q", "k", "v", "z"} if attention else {self.site})

    @property
    def method(self) -> str:
        """In words."""
        if self.name == "attribution_patching":
            return "attribution patching"
        repairs = [name for name, on in (("QK fix", self.fix), ("GradDrop", self.drop)) if on]
        return "AtP*" + (f" ({', '.join(repairs)})" if repairs else " (neither repair)")


@dataclass(kw_only=True)
class Estimator:
    """The estimate of one call, chunk by chunk."""

    runner: Runner
    request: Request
    ask: Ask
    parts: list[int] | None
    layers: list[int]
    columns: int
    constant: list[Tensor] | None = None
    reach: float = 0.0
    forwards: int = 0
    backwards: int = 0

    def held(self) -> int:
        """Bytes a token takes besides its graph: kept sites and, with GradDrop, gradients."""
        decoder = self.runner.decoder
        layers = len(decoder.blocks)
        width = decoder.d_mlp if self.ask.site in NEURONS else decoder.d_model
        copies = layers * (8 + (layers // 2 if self.ask.drop else 0))
        return copies * width * decoder.unembed.element_size()

    def run(
        self,
        prompts: Indices,
        tokens: list[tuple[int, ...]],
        *,
        grad: bool = False,
        recompute: bool = False,
    ) -> Run:
        """A counted pass over some prompts."""
        self.forwards += 1
        layout, x = rows_of(self.runner, [tokens[i] for i in prompts])
        kept = self.ask.kept
        return forward(self.runner, x, layout, kept=kept, grad=grad, recompute=recompute)

    def chunk(self, prompts: Indices, rebuilt: bool) -> tuple[np.ndarray, np.ndarray]:
        """(2, n) metrics of both runs, and (n, layers, components, columns) metric gained."""
        runs, n_layers = self.request.runs, len(self.runner.decoder.blocks)
        targets = runs.targets.select(torch.from_numpy(prompts))
        base = self.run(prompts, runs.base, grad=True, recompute=rebuilt)
        other = self.run(prompts, runs.other)
        metric = self.request.metric
        m_base, final = metric_gradient(self.runner, base, metric, targets)
        m_other = metric_of(self.runner, other, metric, targets)
        moved = (a.site(n_layers, "resid_pre")[a.layout.last] for a in (base, other))
        moved = torch.stack(list(moved)).diff(dim=0)[0].norm(dim=-1)
        self.reach += float((final[base.layout.last].norm(dim=-1) * moved).sum())
        gradients = self._gradients(base, final)
        places = self._places(prompts, base.layout)
        found = []
        for layer in self.layers:
            products: list[list[Tensor]] = [[] for _ in gradients[layer]]
            for change in self._changes(layer, base, other, places):
                for kept, gradient in zip(products, gradients[layer], strict=True):
                    kept.append(self._inner(change, gradient))
            each = [
                self._summed(layer, torch.stack(kept), base.layout, places) for kept in products
            ]
            if self.ask.drop:
                sizes = layer * each[0].abs() + sum(one.abs() for one in each[1:])
                each = [sizes / (n_layers - 1)]
            found.append(each[0])
        gained = torch.stack(found, 1).double().cpu().numpy()
        return np.stack([m_base.numpy(), m_other.numpy()]), gained

    def _gradients(self, run: Run, final: Tensor) -> dict[int, list[Tensor]]:
        """At every layer the site's gradient, then those with a later layer's write dropped."""
        at, found, tops = self.ask.at, {}, {}
        wanted = () if at in ("resid_pre", "resid_post") else (at,)
        self.backwards += 1
        for layer, grads in backward(self.runner, run, final, wanted, keep_graph=self.ask.drop):
            found[layer], tops[layer] = [grads[at]], grads["resid_post"]
        if self.ask.drop:
            for top in range(1, len(self.runner.decoder.blocks)):
                self.backwards += 1
                down = backward(self.runner, run, tops[top], wanted, top=top, keep_graph=True)
                for layer, grads in down:
                    found[layer].append(grads[at])
        return found

    def _places(self, prompts: Indices, layout: Layout) -> Tensor:
        """(columns, tokens) bool: the tokens that each column of the result replaces."""
        cells = self.request.cells
        number = np.full(len(self.request.runs.base), -1)
        number[prompts] = np.arange(len(prompts))
        entries = np.flatnonzero(number[cells.prompt] >= 0)
        taken = ranges(cells.first[entries], cells.count[entries])
        column = np.repeat(cells.cell[entries], cells.count[entries])
        first = layout.first_token[number[cells.prompt[entries]]]
        tokens = np.repeat(first, cells.count[entries]) + cells.positions[taken]
        places = torch.zeros(self.columns, int(layout.sizes.sum()), dtype=torch.bool)
        places[column, tokens] = True
        return places.to(self.runner.device)

    def _changes(self, layer: int, base: Run, other: Run, places: Tensor) -> Iterator[Tensor]:
        """(tokens, ..., width) of each variant: clean minus corrupted, where the gradient is.

        A variant is a column (keys), a component (norms over heads), or all in one.
        """
        sign = 1 if self.request.direction == "noise" else -1
        site = self.ask.site

        def replaced(name: str) -> Tensor:
            mine = base.site(layer, name)
            if self.ask.source == "zero":
                return torch.zeros_like(mine)
            if self.constant is not None:
                return self.constant[layer].expand_as(mine)
            return other.site(layer, name)

        if self.ask.at != "z" or site == "z":
            yield sign * (base.site(layer, site) - replaced(site))
            return
        mine = {name: base.site(layer, name) for name in ("q", "k", "v")}
        plain = self._z(layer, mine, base.layout)
        if site == "pattern":
            new = {name: replaced(name) for name in ("q", "k")}
            yield sign * (plain - self._z(layer, mine | new, base.layout))
            return
        for mixed in self._mixed(layer, mine[site], replaced(site), places):
            yield sign * (plain - self._z(layer, mine | {site: mixed}, base.layout))

    def _mixed(self, layer: int, old: Tensor, new: Tensor, places: Tensor) -> Iterator[Tensor]:
        """Queries or keys with what each variant replaces: keys column by column."""
        parts = self.parts if self._entangled(layer) else None
        for part in [None] if parts is None else parts:
            for where in places if self.ask.site == "k" else [None]:
                mixed = new if where is None else torch.where(where[:, None, None], new, old)
                if part is not None:
                    whole = mixed
                    mixed = old.clone()
                    mixed[:, part] = whole[:, part]
                yield mixed

    def _entangled(self, layer: int) -> bool:
        """Whether one head's change is passed on to others, so that heads go one by one."""
        attn = self.runner.decoder.blocks[layer].attn
        return self.ask.fix and attn.norm_over_heads and self.parts is not None

    def _z(self, layer: int, sites: dict[str, Tensor], layout: Layout) -> Tensor:
        attn, places = self.runner.decoder.blocks[layer].attn, layout.positions
        with torch.no_grad():
            q, k = (self.runner.rotated(attn, name, sites[name], places) for name in ("q", "k"))
            return self.runner.attention(layer, q, k, sites["v"], layout, None, only_last=False)

    def _inner(self, change: Tensor, gradient: Tensor) -> Tensor:
        """(tokens, components) products; one column where the site has no components."""
        unit = SITES[self.ask.site]
        if unit == "neuron":
            return change * gradient
        return (change * gradient).sum(-1, keepdim=unit is None)

    def _summed(self, layer: int, product: Tensor, layout: Layout, places: Tensor) -> Tensor:
        """(n, components, columns): (variants, tokens, heads) summed over the tokens of a cell."""
        keys = self.ask.fix and self.ask.site == "k"
        if self._entangled(layer):
            product = product.sum(-1).unflatten(0, (len(self.parts or ()), -1)).permute(1, 2, 0)
        elif keys:
            attn = self.runner.decoder.blocks[layer].attn
            product = product.unflatten(-1, (attn.n_kv_heads, -1)).sum(-1)
        if not keys:
            product = product * places[:, :, None]
        rows = torch.from_numpy(np.repeat(np.arange(len(layout)), layout.sizes)).to(product.device)
        found = product.new_zeros(len(product), len(layout), product.shape[-1])
        found.index_add_(1, rows, product)
        if self.parts is None:
            found = found.sum(-1, keepdim=True)
        elif not self._entangled(layer):
            found = found[..., self.parts]
        return found.permute(1, 2, 0)
