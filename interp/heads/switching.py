"""Heads switched off, and what measurements on both sides of a task's pairs have in common.

A task's clean prompts show the behaviour (requests that are refused), its corrupted prompts do not.
Unlike in patching, the two may differ in length.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.core.components import Component
from interp.core.errors import InterpError, unknown
from interp.core.metrics import Targets
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Brief
from interp.engine.architecture import Attention
from interp.engine.forward import Baseline, Runner
from interp.models.language_model import LanguageModel
from interp.results.direction import Direction
from interp.results.provenance import provenance
from interp.results.scores import Scores
from interp.runs.capture import run_with_cache
from interp.runs.change import Change, Edit, Tokens
from interp.runs.changed_runs import changed_states
from interp.runs.kinds import one_edit
from interp.runs.pairs import check_gap

SwitchOffMode = Literal["zero", "mean", "uniform", "scale", "direction"]

TOGETHER = 4096
"""Tokens of changed runs computed at once."""


@dataclass(frozen=True, kw_only=True)
class SwitchOff(Brief):
    """How heads are switched off; made by `switch_off`.

    `means` is layer -> (heads, d_head). `direction` is (d_model,) of length one.
    """

    model: LanguageModel
    mode: SwitchOffMode
    factor: float = 0.0
    alpha: float = 1.0
    means: Mapping[int, Tensor] | None = None
    direction: Tensor | None = None

    def new(self, head: Component, z: Tensor, v: Tensor) -> Tensor:
        """New values of a head (tokens, d_head) in a prompt, from its z and its group's v."""
        if self.mode == "mean":
            assert self.means is not None
            assert head.index is not None
            return self.means[head.layer][head.index].to(z).expand_as(z)
        if self.mode == "uniform":
            return _causal_mean(v, self._attention(head).window)
        if self.mode == "direction":
            unit = self._preimage(head).to(z)
            return z - self.alpha * (z @ unit)[:, None] * unit
        return z * (0.0 if self.mode == "zero" else self.factor)

    def change(self, heads: Sequence[str]) -> Change:
        """These heads switched off at all tokens: exact for heads of several layers."""
        edits = []
        for head in self.model.require_parts(heads, "z"):
            if self.mode == "uniform":
                edits += self._uniform(head)
            else:
                edits.append(one_edit(self.mode, head, partial(self._value, head)))
        return Change(name=f"{self.mode} {', '.join(heads)}", edits=tuple(edits))

    def _value(self, head: Component, old: Tensor, tokens: Tokens) -> Tensor:
        return self.new(head, old, old)

    def _uniform(self, head: Component) -> list[Edit]:
        """Two edits: one stores the values of the head's group, the other averages them."""
        group = Component(head.layer, "v", (head.index or 0) // self.group)
        seen: dict[int, Tensor] = {}

        def remember(old: Tensor, tokens: Tokens) -> Tensor:
            seen[int(tokens.prompts[0])] = old
            return old

        def value(old: Tensor, tokens: Tokens) -> Tensor:
            return self.new(head, old, seen[int(tokens.prompts[0])])

        return [
            one_edit("read", group, remember, by_token=False, reads=True),
            one_edit(self.mode, head, value, by_token=False),
        ]

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.model.n_heads // self.model.n_kv_heads

    def _attention(self, head: Component) -> Attention:
        return self.model.require_decoder("switching heads off").blocks[head.layer].attn

    def _preimage(self, head: Component) -> Tensor:
        """(d_head,) unit vector whose image under the head's W_O is nearest to the direction."""
        assert self.direction is not None
        weight = self._attention(head).W_O[head.index].detach().cpu().double()
        found = torch.linalg.lstsq(weight.T, self.direction[:, None]).solution[:, 0]
        return found / found.norm()


def switch_off(
    model: LanguageModel,
    mode: SwitchOffMode = "zero",
    *,
    factor: float = 1e-5,
    reference: Sequence[Prompt] | None = None,
    direction: Direction | None = None,
    alpha: float = 1.0,
) -> SwitchOff:
    """How heads are to be switched off.

    "zero": z = 0.  "scale": z times `factor`.  "mean": z is its mean over every token of the
    `reference` prompts.  "uniform": every visible key gets equal attention, z_i = mean of v_j,
    which is what Ships does by scaling W_q or W_k (arXiv 2410.13708) and what a norm of queries
    would undo; with local attention, inside its window.  "direction": z - alpha (z . u) u, with u
    the unit vector whose image under W_O is nearest to the direction (arXiv 2604.04385, whose
    default alpha = 5 overshoots to -4 times the component).

    With grouped-query attention "uniform" reads values that a group of heads shares, but switches
    off single heads. The function warns of this, because the published scaling of W_k or W_v would
    switch off the whole group.

    Raises:
        InterpError: an unknown mode, or no reference prompts or direction where they are needed.
    """
    if mode not in get_args(SwitchOffMode):
        raise unknown("mode", mode, get_args(SwitchOffMode))
    if (mode == "mean") != bool(reference) or (mode == "direction") != (direction is not None):
        do = "give reference prompts for 'mean', a direction for 'direction', else neither"
        raise InterpError(
            f"switching heads off by {mode}", "missing or unused reference or direction", do
        )
    if mode == "uniform" and model.n_kv_heads < model.n_heads:
        warnings.warn(
            f"{model.n_heads // model.n_kv_heads} heads of {model.name} share each key and value: "
            "uniform attention is imposed on single heads, over values of their group; for whole "
            "groups scan with by='kv_head'",
            stacklevel=2,
        )
    means = None
    if reference:
        seen = run_with_cache(model, reference, sites=["z"])
        means = {k: seen[k, "z"][seen.mask].double().mean(0) for k in range(model.n_layers)}
    if direction is not None:
        direction.require_model(model)
    return SwitchOff(
        model=model,
        mode=mode,
        factor=factor,
        alpha=alpha,
        means=means,
        direction=None if direction is None else direction.unit,
    )


def _causal_mean(v: Tensor, window: int | None) -> Tensor:
    """Row i is the mean of rows max(0, i - window + 1) to i."""
    total = v.double().cumsum(0)
    counts = torch.arange(1, len(v) + 1, device=v.device)
    if window is not None and window < len(v):
        total[window:] = total[window:] - total[:-window].clone()
        counts = counts.clamp(max=window)
    return (total / counts[:, None]).to(v)


def changed_runs(runner: Runner, base: Baseline, changes: Sequence[Change]) -> Tensor:
    """(changes, d_model) the normalised final residual of one prompt under each change.

    The edits of a change are in force at all tokens. They are run from the first token on at which
    one of them gives a new value, since nothing differs before it.
    """
    length = int(base.lengths[0])
    step = max(1, TOGETHER // length)
    later = [change.at(slice(_first(base, change) - length, None)) for change in changes]
    prompt = np.zeros(1, dtype=np.int64)
    pieces = [
        changed_states(runner, base, later[begin : begin + step], prompt)[:, 0]
        for begin in range(0, len(later), step)
    ]
    return torch.cat(pieces)


def _first(base: Baseline, change: Change) -> int:
    """The first token with a new value; the last token if no value is new."""
    positions = torch.arange(int(base.lengths[0]))
    tokens = Tokens(torch.zeros_like(positions), positions, positions.flip(0))
    found = [len(positions) - 1]
    for edit in change.edits:
        _, old, new = edit.applied(base.site(*edit.address), tokens)
        found += (new != old).flatten(1).any(1).nonzero()[:1, 0].tolist()
    return min(found)


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The tokens of both sides of a task, of any lengths, and the targets of the metric."""

    clean: list[tuple[int, ...]]
    corrupted: list[tuple[int, ...]]
    targets: Targets


def both_sides(model: LanguageModel, task: Task, *, strings: bool = False) -> Sides:
    """The tokens of clean and corrupted prompts, which need not be equally long.

    With `strings`, answers may have several tokens. The prompts do not hold them.

    Raises:
        InterpError: a pair without a corrupted prompt, or a metric that compares runs.
    """
    if task.metric.needs_reference or any(pair.corrupted is None for pair in task.pairs):
        found = f"metric {task.metric.name}, or a pair without a corrupted prompt"
        raise InterpError(f"both sides of {task.name}", found, "give pairs, and log_odds or such")
    single = tuple(replace(pair, corrupted=None) for pair in task.pairs)
    encoded = replace(task, pairs=single).encode(model, strings=strings)
    others = [model.tokenize(pair.corrupted or "").tokens for pair in task.pairs]
    return Sides(clean=encoded.clean, corrupted=others, targets=encoded.targets)


def head_scores(
    model: LanguageModel,
    task: Task,
    effects: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    *,
    method: str,
    direction: str,
    metric: tuple[str, str] | None = None,
    layers: Sequence[int],
    by: str = "head",
    positions: str = "all tokens",
) -> Scores:
    """Effects (n, layer, head) as `Scores`; `ends` are the metric's (n,) on clean and corrupted.

    `metric` is the metric's name and unit; by default those of the task.

    Raises:
        InterpError: the two sides do not differ.
    """
    check_gap(*ends)
    name, unit = metric or (task.metric.name, task.metric.unit)
    return Scores(
        effects=effects,
        clean=ends[0],
        corrupted=ends[1],
        axes=("layer", by),
        coordinates={
            "layer": tuple(map(str, layers)),
            by: tuple(map(str, range(effects.shape[2]))),
        },
        site="z" if by == "head" else "v",
        direction=direction,
        method=method,
        metric=name,
        metric_unit=unit,
        positions=positions,
        provenance=provenance(model, task, f"# {method}"),
    )
