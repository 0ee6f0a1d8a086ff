"""Which experts of a mixture the tokens of some prompts use, against chance and other prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.core.arguments import Positions, reads_arguments
from interp.core.components import Component, within
from interp.core.errors import InterpError
from interp.core.nulls import max_t_shares
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Count, checked
from interp.core.statistics import (
    Estimate,
    Ratio,
    bootstrap_weights,
    ratio_estimate,
    ratio_of_means,
)
from interp.engine.architecture import Experts
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.runs.capture import run_with_cache

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True, eq=False)
class RouteShares(Tabled):
    """How many tokens of some prompts use each expert, and with which routing weight.

    A shared expert, which every token uses, is left out.

    Attributes:
        used: (n, layer, expert) tokens of each prompt that use the expert.
        weighed: (n, layer, expert) sum of its routing weight over the tokens of each prompt.
        tokens: (n,) tokens of each prompt that are counted.
        layers: the layers.
        per_token: the experts that a token uses.
    """

    used: np.ndarray
    weighed: np.ndarray
    tokens: np.ndarray
    layers: tuple[int, ...]
    per_token: int

    def __repr__(self) -> str:
        layer, expert = np.unravel_index(self.share.values.argmax(), self.share.values.shape)
        label = self._label(layer, expert)
        return (
            f"RouteShares({len(self.layers)} layers x {self.n_experts} experts, "
            f"{int(self.tokens.sum())} tokens of n={self.n} prompts; uniform share "
            f"{self.uniform:z.3f}; the most used is {label}: {self.estimate(label)})"
        )

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.tokens)

    @property
    def n_experts(self) -> int:
        """Experts of a layer that the router chooses from."""
        return self.used.shape[2]

    @property
    def uniform(self) -> float:
        """The share of every expert if all were used alike."""
        return self.per_token / self.n_experts

    @cached_property
    def share(self) -> Ratio:
        """(layer, expert) the share of tokens that use the expert, with its interval."""
        return ratio_of_means(self.used, self.tokens)

    @cached_property
    def weight(self) -> Ratio:
        """(layer, expert) the mean routing weight, 0 for other tokens, with its interval."""
        return ratio_of_means(self.weighed, self.tokens)

    def estimate(self, label: str) -> Estimate:
        """The share of one expert, such as L1E5, with its interval.

        Raises:
            InterpError: the label is not an expert of these layers.
        """
        part = Component.parse(label)
        known = part.site == "expert_out" and part.layer in self.layers
        if part.index is None or not known or part.index >= self.n_experts:
            found = f"layers {list(self.layers)} with experts 0 to {self.n_experts - 1}"
            raise InterpError(f"the share of {label}", found, "give an expert, such as L0E0")
        used = self.used[:, self.layers.index(part.layer), part.index]
        return ratio_estimate(used, self.tokens)

    @reads_arguments
    def minus(self, other: RouteShares, *, draws: int = 1000, seed: int = 0) -> RouteDifference:
        """The shares of these prompts minus those of others, with intervals and a null.

        The interval is the middle 95 % of bootstrap samples of the prompts of both. The null deals
        all prompts at random to two sets of the same sizes. `p` is the share of deals in which the
        largest of all experts' differences, standardised, is at least this one's (max-T of
        Westfall and Young 1993): it is corrected for the number of experts looked at.

        Args:
            other: the shares of other prompts, in the same layers of the model.
            draws: bootstrap samples, and deals.
            seed: seed of both.

        Raises:
            InterpError: other layers or experts, a single prompt on a side, or no draws.
        """
        draws = checked(Count, draws, "the draws of a difference")
        if (other.layers, other.n_experts) != (self.layers, self.n_experts):
            found = f"layers {self.layers} and {other.layers}"
            raise InterpError("comparing routes", found, "give the same layers of one model")
        if min(self.n, other.n) < 2:
            found = f"n={self.n} and n={other.n} prompts"
            raise InterpError("comparing routes", found, "give at least two prompts on each side")
        mine, theirs = (
            bootstrap_weights(x.n, draws, seed=at) for x, at in ((self, seed), (other, seed + 1))
        )
        resampled = self._shares(mine) - other._shares(theirs)
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
        both = replace(
            self,
            used=np.concatenate([self.used, other.used]),
            tokens=np.concatenate([self.tokens, other.tokens]),
        )
        first = np.tile(np.arange(both.n) < self.n, (draws, 1))
        first = np.random.default_rng(seed).permuted(first, axis=1)
        dealt = np.abs(both._shares(first) - both._shares(~first)).reshape(draws, -1)
        values = self.share.values - other.share.values
        p = max_t_shares(np.abs(values).ravel().tolist(), dealt.T.tolist())
        return RouteDifference(
            values=values,
            low=low,
            high=high,
            p=np.array(p).reshape(values.shape),
            layers=self.layers,
            n=(self.n, other.n),
            draws=draws,
        )

    def _shares(self, weights: np.ndarray) -> np.ndarray:
        """(draws, layer, expert) shares of tokens if prompts count by weights (draws, n)."""
        total = weights @ self.tokens
        return np.einsum("dn,nle->dle", weights, self.used, optimize=True) / total[:, None, None]

    def _label(self, row: Any, expert: Any) -> str:
        return str(Component(self.layers[int(row)], "expert_out", int(expert)))

    def to_dataframe(self) -> DataFrame:
        """One row per expert: its share and mean weight with intervals, and the uniform share."""
        return _table(
            self.layers,
            {
                "share": self.share.values,
                "low": self.share.low,
                "high": self.share.high,
                "weight": self.weight.values,
                "weight_low": self.weight.low,
                "weight_high": self.weight.high,
            },
        ).assign(uniform=self.uniform, n=self.n)

    def plot(self) -> Any:
        """A Plotly heat map of the share minus the uniform one: layers upwards, experts across."""
        values = self.share.values - self.uniform
        return _map(values, self.layers, "share of tokens minus uniform", self.share.stderr)


@dataclass(frozen=True, kw_only=True, eq=False)
class RouteDifference(Tabled):
    """The shares of one set of prompts minus those of another, by layer and expert.

    Attributes:
        values, low, high: (layer, expert) difference in the share of tokens, with its interval.
        p: (layer, expert) share of random deals as strong, corrected for all experts.
        layers: the layers.
        n: prompts of both sets.
        draws: random deals.
    """

    strongest_by = "difference"

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    layers: tuple[int, ...]
    n: tuple[int, int]
    draws: int

    def __repr__(self) -> str:
        row, expert = np.unravel_index(np.abs(self.values).argmax(), self.values.shape)
        label = Component(self.layers[int(row)], "expert_out", int(expert))
        low, high = self.low[row, expert], self.high[row, expert]
        return (
            f"RouteDifference({self.values.size} experts, n={self.n[0]} and {self.n[1]}; largest "
            f"{label} {self.values[row, expert]:+z.3f} [{low:z.3f}, {high:z.3f}], corrected share "
            f"of {self.draws} random deals as strong {self.p[row, expert]:z.3f})"
        )

    def to_dataframe(self) -> DataFrame:
        """One row per expert: the difference, its interval, and the share of deals as strong."""
        columns = {"difference": self.values, "low": self.low, "high": self.high, "p": self.p}
        return _table(self.layers, columns).assign(n=self.n[0], n_other=self.n[1])

    def plot(self) -> Any:
        """A Plotly heat map of the differences: layers upwards, experts across."""
        return _map(self.values, self.layers, "difference in share of tokens")


@reads_arguments
def route_shares(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    *,
    positions: Positions = "all",
    layers: Iterable[int] | None = None,
) -> RouteShares:
    """The share of tokens that use each expert of a mixture, and its mean routing weight.

        share[l, e]  = tokens whose router in layer l chooses e / tokens
        weight[l, e] = sum over these tokens of its routing weight / tokens

    Shares of a layer add up to the number of experts that a token uses, out of which `uniform` is
    one expert's part. Tokens of a prompt depend on each other, so the intervals are over prompts
    (`ratio_of_means`). Inside `intervene` the changed run is read.

    Args:
        model: a mixture of experts whose router is read.
        prompts: texts, token ids or a task (its clean prompts).
        positions: "all" tokens, or one of each prompt: see `interp.core.arguments.Positions`.
        layers: which layers; all by default.

    Raises:
        InterpError: the model has no such experts, or prompts or positions that `run_with_cache`
            refuses.

    Equals a count by Hugging Face's own router (tests/neurons/test_routing.py).
    """
    model.require_site("router")
    chosen = within(layers, model.n_layers, "layer", model.name)
    seen = run_with_cache(model, prompts, sites="router", layers=chosen, positions=positions)
    mask = seen.mask if seen.mask.ndim > 1 else seen.mask[:, None]
    used, weighed, experts = [], [], None
    for layer in chosen:
        experts = model.require_decoder("reading routes").blocks[layer].mlp
        assert isinstance(experts, Experts)
        logits = seen[layer, "router"]
        weights = experts.weights(logits.flatten(0, -2)).view(*mask.shape, -1)
        weights = (weights[..., : experts.routed] * mask[..., None]).double().cpu()
        used.append((weights > 0).sum(1))
        weighed.append(weights.sum(1))
    assert experts is not None
    return RouteShares(
        used=torch.stack(used, 1).numpy(),
        weighed=torch.stack(weighed, 1).numpy(),
        tokens=mask.sum(1).numpy(),
        layers=tuple(chosen),
        per_token=experts.chosen,
    )


def _table(layers: Sequence[int], columns: dict[str, np.ndarray]) -> DataFrame:
    from pandas import DataFrame

    shape = next(iter(columns.values())).shape
    rows, experts = (axis.ravel() for axis in np.indices(shape))
    numbers = np.array(layers)[rows]
    labels = [
        str(Component(int(layer), "expert_out", int(expert)))
        for layer, expert in zip(numbers, experts, strict=True)
    ]
    place = {"component": labels, "layer": numbers, "expert": experts}
    return DataFrame(place | {name: values.ravel() for name, values in columns.items()})


def _map(
    values: np.ndarray, layers: Sequence[int], title: str, stderr: np.ndarray | None = None
) -> Any:
    from interp.plots.heatmaps import heat_map

    return heat_map(
        values,
        x=[str(expert) for expert in range(values.shape[1])],
        y=[str(layer) for layer in layers],
        x_title="expert",
        y_title="layer",
        colour_title=title,
        stderr=stderr,
    )
