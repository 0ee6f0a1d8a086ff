"""How large a change of weights is, by layer and part, and a random change as large."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.core.arguments import reads_arguments
from interp.models.language_model import LanguageModel
from interp.models.loading import plain_view
from interp.models.weight_delta import WeightDelta
from interp.plots.grids import layer_rows
from interp.plots.tables import Tabled

LAYER = re.compile(r"(?:^|\.)(\d+)\.(.+)\.[^.]+$")


@dataclass(frozen=True, kw_only=True)
class ChangeSizes(Tabled):
    """Sizes of a change of weights, relative to the weights that it changes.

    Attributes:
        name: the change.
        parts: the linear maps and norms inside layers that it changes, such as self_attn.q_proj.
        values: (layers, parts) |difference| / |weights|, Frobenius norms; 0 where a layer's part
            stays, nan for a part that a layer does not have.
        elsewhere: the same for changed tensors outside layers, by their name.
        whole: the same over all tensors of the model together.
    """

    name: str
    parts: tuple[str, ...]
    values: np.ndarray
    elsewhere: dict[str, float]
    whole: float

    def to_dataframe(self) -> Any:
        """One row per layer and part, then those outside layers, which have no layer."""
        from pandas import DataFrame

        rows = [
            {"layer": layer, "part": part, "size": float(self.values[layer, i])}
            for layer in range(len(self.values))
            for i, part in enumerate(self.parts)
        ]
        rows += [{"layer": None, "part": x, "size": size} for x, size in self.elsewhere.items()]
        return DataFrame(rows, columns=["layer", "part", "size"])

    def plot(self) -> Any:
        """A map of the sizes, parts by layers."""
        return layer_rows(self.values.T, rows=self.parts, title="|change| / |weights|")


@reads_arguments
def change_sizes(model: LanguageModel, delta: WeightDelta) -> ChangeSizes:
    """How large a change is beside the weights, for every layer and part.

        size = |difference| / |weights|      (Frobenius norms over all tensors of the part)

    A size says where weights moved, not what the move does: see `survival`.

    Args:
        model: the base of the delta.
        delta: the change.

    Raises:
        InterpError: another base.
    """
    delta.require_base(model.hash, model.name)
    changed, squares = {*delta.names}, dict[tuple[int | None, str], np.ndarray]()
    for name, tensor in plain_view(model).named_parameters():
        moved = float(delta.difference(name).pow(2).sum()) if name in changed else 0.0
        both = np.array([moved, float(tensor.detach().double().pow(2).sum())])
        squares[_place(name)] = squares.get(_place(name), 0) + both
    sizes = {place: float(np.sqrt(a / b)) if b else 0.0 for place, (a, b) in squares.items()}
    parts = tuple(dict.fromkeys(p for (at, p), size in sizes.items() if at is not None and size))
    layers = range(model.n_layers)
    values = [[sizes.get((layer, part), np.nan) for part in parts] for layer in layers]
    moved, held = np.sum([*squares.values()], axis=0)
    return ChangeSizes(
        name=delta.name,
        parts=parts,
        values=np.array(values).reshape(len(layers), len(parts)),
        elsewhere={part: size for (at, part), size in sizes.items() if at is None and size},
        whole=float(np.sqrt(moved / held)),
    )


def _place(name: str) -> tuple[int | None, str]:
    """The layer and part of a tensor; experts of a layer count as one part."""
    found = LAYER.search(name)
    if found is None:
        return None, name
    return int(found[1]), ".".join(part for part in found[2].split(".") if not part.isdigit())


@reads_arguments
def random_change(delta: WeightDelta, *, seed: int = 0) -> WeightDelta:
    """A change with normal numbers, as large as a delta in every tensor: its control.

    What it does to a behaviour is what a change of this size does wherever it points.
    """
    generator, dense = torch.Generator().manual_seed(seed), {}
    for name in delta.names:
        change = delta.difference(name)
        drawn = torch.randn(change.shape, generator=generator)
        dense[name] = drawn * float(change.norm() / drawn.norm())
    return WeightDelta(name=f"random, as large as {delta.name}", base=delta.base, dense=dense)
