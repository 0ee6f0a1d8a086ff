"""Which heads are necessary for a behaviour: every head is switched off, one at a time.

Ships is the effect on the whole distribution of the next token, necessity that on the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.components import Component, within
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.engine.forward import Baseline, Runner
from interp.engine.readout import LogitsOf
from interp.engine.restart import baseline, final_hidden
from interp.engine.stopping import StopCheck, stoppable
from interp.heads.switching import SwitchOff, both_sides, changed_runs, head_scores
from interp.models.language_model import HOOKED, LanguageModel
from interp.plots.tables import Tabled
from interp.results.scores import Scores
from interp.runs.change import Change, Edit, ValueTable


@dataclass(frozen=True, kw_only=True)
class HeadScan(Tabled):
    """Every head switched off, one at a time.

    Attributes:
        mode: how heads are switched off.
        necessity: metric on clean prompts minus the metric with the head off; a positive value
            means that the head is needed. For the metric log_odds it is the drop of the refusal
            score.
        ships: (n, layer, head) KL(base || head off) of the next token on clean prompts, in nats.
        benign: the same on corrupted prompts, which do not show the behaviour.
    """

    mode: str
    necessity: Scores
    ships: np.ndarray
    benign: np.ndarray

    def to_dataframe(self) -> Any:
        """One row per head: necessity with its interval, Ships, KL on the other side."""
        table = self.necessity.to_dataframe()
        kl = {"ships": self.ships, "benign_kl": self.benign}
        return table.assign(**{name: values.mean(0).ravel() for name, values in kl.items()})


@reads_arguments
def scan_heads(
    model: LanguageModel,
    task: Task,
    switch: SwitchOff,
    *,
    layers: Sequence[int] | None = None,
    by: Literal["head", "kv_head"] = "head",
    progress: Progress | None = None,
    cancelled: StopCheck = lambda: False,
) -> HeadScan:
    """Every head switched off at all tokens, and what that does to the next token.

        Ships(h) = KL(p || p with h off),   necessity(h) = m - m with h off

    Args:
        model: a model with a fast engine.
        task: clean prompts show the behaviour, corrupted ones do not; any lengths.
        switch: how heads are switched off, from `interp.heads.switching.switch_off`.
        layers: the layers; all by default.
        by: "kv_head" switches off the heads that share a key/value head together.
        progress: called with (prompts done, prompts in total).
        cancelled: asked in every layer; the scan stops when it returns True.

    Raises:
        InterpError: no fast engine, inside `intervene`, or sides that do not differ.

    Source: Ships, arXiv 2410.13708 (ydyjya/SafetyHeadAttribution), which adds 1e-12 inside the
    logarithms; here the KL is exact.
    """
    decoder = model.require_decoder("scanning heads")
    model.refuse_changed("scanning heads", HOOKED)
    sides, runner = both_sides(model, task), Runner(decoder)
    chosen = within(layers, model.n_layers, "layer", model.name)
    size = model.n_kv_heads if by == "kv_head" else model.n_heads
    group = model.n_heads // size
    groups = [
        (layer, tuple(range(number * group, (number + 1) * group)))
        for layer in chosen
        for number in range(size)
    ]
    kls, metrics = np.zeros((2, len(task), len(groups))), np.zeros((len(task), len(groups)))
    ends = np.zeros((2, len(task)))
    with torch.no_grad(), stoppable(cancelled):
        for i in range(len(task)):
            targets = sides.targets.select(torch.tensor([i]))
            for side, prompts in enumerate((sides.clean, sides.corrupted)):
                base = baseline(runner, [prompts[i]], frozenset({"z"}))
                plain = final_hidden(runner, base)
                changes = [_switched(switch, base, *some) for some in groups]
                hidden = changed_runs(runner, base, changes)
                kls[side, i] = _divergences(decoder.logits(plain), decoder.logits, hidden)
                readout = LogitsOf(decoder=decoder, hidden=plain)
                ends[side, i] = float(task.metric(readout, targets)[0])
                if side == 0:
                    every = sides.targets.select(torch.full((len(groups),), i))
                    readout = LogitsOf(decoder=decoder, hidden=hidden)
                    metrics[i] = ends[0, i] - task.metric(readout, every).numpy()
            if progress is not None:
                progress(i + 1, len(task))
    shape = (len(task), len(chosen), size)
    necessity = head_scores(
        model,
        task,
        metrics.reshape(shape),
        (ends[0], ends[1]),
        method=f"{switch.mode} ablation",
        direction="noise",
        layers=chosen,
        by=by,
    )
    return HeadScan(
        mode=switch.mode,
        necessity=necessity,
        ships=kls[0].reshape(shape),
        benign=kls[1].reshape(shape),
    )


def _switched(switch: SwitchOff, base: Baseline, layer: int, heads: tuple[int, ...]) -> Change:
    """Heads of one layer switched off in the prompt of this run."""
    z, v = base.site(layer, "z"), base.site(layer, "v")
    new = [switch.new(Component(layer, "z", h), z[:, h], v[:, h // switch.group]) for h in heads]
    value = ValueTable(values=torch.stack(new, 1)[None])
    edit = Edit(name=switch.mode, layer=layer, site="z", components=heads, value=value)
    return Change(name=switch.mode, edits=(edit,))


def _divergences(
    plain: Tensor, logits_of: Callable[[Tensor], Tensor], hidden: Tensor, step: int = 64
) -> np.ndarray:
    """(changes,) KL(plain || changed) in float64, a few changes at a time."""
    base = plain.double().log_softmax(-1)
    pieces = [
        (base.exp() * (base - logits_of(part).double().log_softmax(-1))).sum(-1).cpu()
        for part in hidden.split(step)
    ]
    return torch.cat(pieces).numpy()
