"""Relations between directions: angles, shared dimensions, independence, cones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from interp.core.arguments import reads_arguments
from interp.core.chat_prompts import PromptsLike
from interp.core.components import within
from interp.core.errors import InterpError
from interp.core.schema import Brief
from interp.core.statistics import Estimate, mean_estimate
from interp.models.chat import plain_prompts
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.results.direction import Direction, orthonormal
from interp.steering.edits import ablate_direction
from interp.steering.runs import run_steered


@dataclass(frozen=True, kw_only=True)
class DirectionComparison(Tabled):
    """K directions compared layer by layer.

    Attributes:
        names: the directions.
        cosines: (K, K, layers); nan for a zero vector, such as that of the embedding where a
            template has the same token in every prompt.
        variance: (layers, min(K, d_model)) shares of the variance along the principal axes of the K
            unit vectors, in descending order.
        components: (layers,) number of axes that hold `share` of the variance.
        share: a share of the variance.
    """

    names: tuple[str, ...]
    cosines: np.ndarray
    variance: np.ndarray
    components: np.ndarray
    share: float

    def to_dataframe(self) -> Any:
        """One row per pair and layer."""
        import pandas as pd

        rows = [
            {"first": a, "second": b, "layer": layer, "cosine": self.cosines[i, j, layer]}
            for i, a in enumerate(self.names)
            for j, b in enumerate(self.names[:i])
            for layer in range(self.cosines.shape[2])
        ]
        return pd.DataFrame(rows)


@reads_arguments
def compare_directions(
    vectors: dict[str, Tensor], *, share: float = 0.8, centred: bool = True
) -> DirectionComparison:
    """Cosines and principal components of named directions.

    Args:
        vectors: (layers, d_model) or (d_model,) each, raw.
        share: of the variance that `components` must reach.
        centred: subtract the mean of the unit vectors first. Otherwise the first component is
            mostly what all directions have in common.

    Raises:
        InterpError: fewer than two, or different shapes.
    """
    shapes = {tuple(vector.shape) for vector in vectors.values()}
    if len(vectors) < 2 or len(shapes) != 1 or len(next(iter(shapes))) not in (1, 2):
        raise InterpError(
            f"comparing {len(vectors)} directions",
            f"shapes {sorted(shapes)}",
            "give two or more of one shape, (layers, d_model) or (d_model,)",
        )
    stacked = torch.stack([v.double().reshape(-1, v.shape[-1]) for v in vectors.values()])
    units = stacked / stacked.norm(dim=-1, keepdim=True)
    placed = units - units.mean(0) if centred else units
    energy = torch.linalg.svdvals(placed.nan_to_num().transpose(0, 1)).square().numpy()
    with np.errstate(invalid="ignore"):
        variance = energy / energy.sum(-1, keepdims=True)
    return DirectionComparison(
        names=tuple(vectors),
        cosines=torch.einsum("ild,jld->ijl", units, units).numpy(),
        variance=variance,
        components=(variance.cumsum(-1) < share - 1e-12).sum(-1) + 1,
        share=share,
    )


@dataclass(frozen=True, kw_only=True)
class Independence(Brief):
    """How much the ablation of one direction changes the cosine of states with another.

    first, second: mean over prompts and layers of [cos(h, v | other ablated) - cos(h, v)]^2, for v
    the first and the second direction; 0 is independent. by_layer: (2, layers) means over prompts.
    """

    first: Estimate
    second: Estimate
    by_layer: np.ndarray


@reads_arguments
def representational_independence(
    model: LanguageModel,
    first: Direction,
    second: Direction,
    prompts: PromptsLike,
    *,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
) -> Independence:
    """Independence in the sense of arXiv 2502.17420; orthogonal directions can be dependent.

    Squares are taken per prompt and then averaged, so that changes of opposite sign do not cancel.
    States are those of the last token.

    Raises:
        InterpError: prompts or directions of another model or format.
    """
    chosen = within(layers, model.n_layers, "layer", model.name)
    given = plain_prompts(model, prompts)
    pair = (first, second)

    def along(removed: Direction | None, seen: Direction) -> Tensor:
        steering = None if removed is None else ablate_direction(model, removed)
        states = run_steered(model, given, steering, layers=chosen, site=site).states
        assert states is not None
        return cosine_similarity(states.double(), seen.unit, dim=-1)

    changes = [
        (along(other, seen) - along(None, seen)).square() for seen, other in (pair, pair[::-1])
    ]
    return Independence(
        first=mean_estimate(changes[0].mean(1)),
        second=mean_estimate(changes[1].mean(1)),
        by_layer=torch.stack([change.mean(0) for change in changes]).numpy(),
    )


@reads_arguments
def sample_cone(directions: Sequence[Tensor], n: int, *, seed: int = 0) -> Tensor:
    """(n, d_model) random unit vectors of the cone of directions, float64.

    Positive combinations, with weights |N(0, 1)|, of the Gram-Schmidt basis of the directions in
    their order (arXiv 2502.17420). k directions give a cone of dimension k.

    Raises:
        InterpError: no directions, dependent ones, or no sample.
    """
    basis = orthonormal(directions)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n, len(basis), generator=generator, dtype=torch.float64).abs()
    drawn = weights @ basis
    return drawn / drawn.norm(dim=-1, keepdim=True)
