"""Whether composition of weights predicts which heads act on which: against exact path effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.core.arguments import reads_arguments
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.statistics import Estimate, mean_estimate
from interp.heads.composition import KINDS, Composition, head_composition
from interp.models.language_model import LanguageModel
from interp.patching.path import path_patching
from interp.plots.tables import Tabled


@dataclass(frozen=True, kw_only=True, eq=False)
class CompositionAgreement(Tabled):
    """How well composition predicts exact path effects, for some receivers.

    Attributes:
        receivers: labels such as L18H6.q or L18KV2.v.
        spearman: (receiver,) rank correlation, over the senders of earlier layers, of composition
            with the receiver and absolute path effect on it; nan if no sender has an effect.
        control: (receiver,) the same with the composition of the same senders with other heads of
            the receiver's layer: the mean of their correlations. nan too if the layer has no other.
        senders: (receiver,) number of senders.
        n: number of prompts.
    """

    receivers: tuple[str, ...]
    spearman: np.ndarray
    control: np.ndarray
    senders: np.ndarray
    n: int

    def mean(self, kind: str | None = None) -> Estimate:
        """Mean correlation over the receivers that have one, of one kind (q, k or v) or of all."""
        return mean_estimate(self.spearman[self._of(kind) & ~np.isnan(self.spearman)])

    def beyond_control(self, kind: str | None = None) -> Estimate:
        """Mean of correlation minus control over the receivers that have one."""
        chosen = self._of(kind) & ~np.isnan(self.control)
        return mean_estimate((self.spearman - self.control)[chosen])

    def __repr__(self) -> str:
        return (
            f"CompositionAgreement(Spearman {self.mean()} receivers; beyond other heads of the "
            f"layer {self.beyond_control()}; {self.n} prompts)"
        )

    def to_dataframe(self) -> Any:
        """One row per receiver."""
        from pandas import DataFrame

        return DataFrame(
            {
                "receiver": self.receivers,
                "spearman": self.spearman,
                "control": self.control,
                "senders": self.senders,
            }
        )

    def _of(self, kind: str | None) -> np.ndarray:
        return np.array([kind in (None, Component.parse(one).site) for one in self.receivers])


@reads_arguments
def composition_agreement(
    model: LanguageModel,
    task: Task,
    heads: Sequence[str],
    *,
    composition: Composition | None = None,
    distance: int = 0,
    progress: Progress | None = None,
) -> CompositionAgreement:
    """Whether composition predicts which earlier heads act on some heads in a task.

        Spearman correlation over senders a of  composition(a, b)  and  |path effect(a, b)|

    The receivers b are the queries, keys and values of the given heads. The path effect is that of
    `path_patching` with frozen MLPs: the direct path of a into b alone, by noising, its mean over
    the prompts. Heads that share keys and values are one receiver; its composition is the root mean
    square over these heads. The control says whether the pair matters, or only the sender.

    The interval of the mean over receivers takes receivers as independent. They share prompts and
    senders, so it is rather too narrow.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        heads: heads not of the first layer, such as L18H6.
        composition: from `head_composition`; computed if it is not given.
        distance: of `head_composition`, if `composition` is not given.
        progress: called with (receivers done, receivers in total).

    Raises:
        InterpError: as `path_patching`, a head of the first layer, or one that does not exist.
    """
    parts = model.require_parts(heads, "z")
    if any(part.layer == 0 for part in parts):
        raise InterpError(f"senders to {heads}", "no head is earlier", "give heads of later layers")
    made = composition or head_composition(model, distance=distance)
    receivers = dict.fromkeys(label for part in parts for label in _receivers(model, part))
    rows = []
    for done, label in enumerate(receivers, 1):
        part = Component.parse(label)
        layers = range(part.layer)
        effects = path_patching(
            model, task, receivers=[label], layers=layers, freeze_mlps=True, unit="metric"
        )
        sizes = np.abs(effects.values).ravel()
        scores = _scores(model, made, part)
        every = [_rank_correlation(one, sizes) for one in scores]
        others = np.delete(every, part.index)  # type: ignore[arg-type]
        control = float(np.mean(others)) if len(others) else np.nan
        rows.append((every[part.index], control, len(sizes)))  # type: ignore[index]
        if progress is not None:
            progress(done, len(receivers))
    spearman, control, senders = (np.array(column) for column in zip(*rows, strict=True))
    return CompositionAgreement(
        receivers=tuple(receivers), spearman=spearman, control=control, senders=senders, n=len(task)
    )


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation; nan if all values of one are equal."""
    from scipy.stats import spearmanr

    constant = min(np.ptp(one), np.ptp(other)) == 0
    return math.nan if constant else float(spearmanr(one, other)[0])  # type: ignore[arg-type]


def _receivers(model: LanguageModel, head: Component) -> list[str]:
    """The labels of a head's queries, keys and values."""
    assert head.index is not None
    group = head.index * model.n_kv_heads // model.n_heads
    return [
        str(Component(head.layer, site, head.index if site == "q" else group)) for site in KINDS
    ]


def _scores(model: LanguageModel, made: Composition, receiver: Component) -> np.ndarray:
    """(head or key/value head of the receiver's layer, senders) its composition with each."""
    kind = KINDS.index(receiver.site)  # type: ignore[arg-type]
    found = made.values[kind, : receiver.layer, :, receiver.layer].reshape(-1, model.n_heads).T
    if receiver.site == "q":
        return found
    grouped = np.square(found).reshape(model.n_kv_heads, -1, found.shape[1])
    return np.sqrt(grouped.mean(1))
