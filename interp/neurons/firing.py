"""Where one neuron fires: its activation on every token of some prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.core.components import within
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.models.language_model import LanguageModel
from interp.runs.capture import run_with_cache


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronFiring:
    """One neuron on one prompt, each (token,).

    Attributes:
        tokens: the text of every token.
        activation: what the output weights are multiplied by (site post).
        gate: the input of the activation function (site pre).
        up: the linear part (site pre_linear); None of an MLP without one.
    """

    tokens: tuple[str, ...]
    activation: np.ndarray
    gate: np.ndarray
    up: np.ndarray | None

    @property
    def peak(self) -> float:
        """The largest absolute activation."""
        return float(np.abs(self.activation).max())


def neuron_firing(
    model: LanguageModel, prompts: Task | Prompt | Sequence[Prompt], neuron: str
) -> list[NeuronFiring]:
    """The activation of one neuron, such as "L25N100", on every token of each prompt.

    Prompts are those of `run_with_cache`: of a task the clean ones. Inside `intervene` the changed
    run is read.

    Raises:
        InterpError: no such neuron, or a model or prompts that `run_with_cache` refuses.
    """
    (part,) = model.require_parts(neuron, "post")
    (index,) = within([part.index], model.d_mlp, "neuron", model.name)  # type: ignore[list-item]
    sites = [site for site in ("pre", "pre_linear", "post") if model.sites[site] is None]
    seen = run_with_cache(model, prompts, sites=sites, layers=[part.layer])

    def values(site: str, i: int, size: int) -> np.ndarray:
        return seen[part.layer, site][i, :size, index].float().cpu().numpy()

    return [
        NeuronFiring(
            tokens=tokens,
            activation=values("post", i, len(tokens)),
            gate=values("pre", i, len(tokens)),
            up=values("pre_linear", i, len(tokens)) if "pre_linear" in sites else None,
        )
        for i, tokens in enumerate(seen.tokens)
    ]
