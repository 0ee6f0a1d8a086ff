"""The maps of a lens: for each layer an affine map from its state to the last layer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed
from interp.core.components import within
from interp.core.errors import InterpError
from interp.core.records import Record
from interp.models.language_model import LanguageModel

KINDS = ("jacobian", "tuned", "identity")
"""What the maps are: mean Jacobians, maps trained to predict the output, or the logit lens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LensMaps(Record):
    """A fitted lens: h_last is read as matrix @ h + offset.

    Attributes:
        kind: one of `KINDS`.
        model, model_hash: the model it was fitted on.
        layers: the layers it reads, at resid_post, in ascending order.
        matrices: (layer, d_model, d_model) float32.
        offsets: (layer, d_model) float32, or None for zero.
        halves, half_offsets: (2, ...) the same, fitted on each half of the corpus alone; None if
            they are not known. Their disagreement is the error bar of every reading.
        n: number of texts in each half; (n, 0) if the halves are not known.
        corpus: what it was fitted on, in words.
        options: the options of the fit.
        note: how it differs from the lens that was fitted, such as "shuffled layers"; "" if not.
    """

    kind: str
    model: str
    model_hash: str
    layers: tuple[int, ...]
    matrices: Tensor
    offsets: Tensor | None = None
    halves: Tensor | None = None
    half_offsets: Tensor | None = None
    n: tuple[int, int] = (0, 0)
    corpus: str = ""
    options: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        shape, asked = tuple(self.matrices.shape), f"a {self.kind} lens of {self.model}"
        d, good = shape[-1] if shape else 0, [shape == (len(self.layers), *shape[-1:] * 2)]
        good.append(self.kind in KINDS and list(self.layers) == sorted({*self.layers}))
        beside = {(): self.offsets, (2,): self.half_offsets}
        good += [x is None or x.shape == (*many, *shape[:1], d) for many, x in beside.items()]
        good.append(self.halves is None or self.halves.shape == (2, *shape))
        if not shape or not all(good):
            found = f"layers {self.layers}, matrices of shape {shape}"
            raise InterpError(asked, found, "give one square matrix for each layer")
        for x in (self.matrices, self.halves, *beside.values()):
            if x is not None and not bool(x.isfinite().all()):
                raise InterpError(asked, "numbers that are not finite", "fit it again")

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        of = f", {self.note}" if self.note else ""
        return f"LensMaps({self.kind}{of} of {self.model}, layers {layers}, n={sum(self.n)} texts)"

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.matrices.shape[-1]

    @property
    def disagreement(self) -> np.ndarray:
        """(layer,) |A - B| / |M - 1|: the halves' difference beside the lens minus the identity.

        Both in the Frobenius norm. It falls as 2 / sqrt(n): the lens itself is off by half of it.

        Raises:
            InterpError: the halves are not known.
        """
        a, b = (self.half(i).matrices.double() for i in (0, 1))
        away = self.matrices.double() - torch.eye(self.d_model, dtype=torch.float64)
        return ((a - b).flatten(1).norm(dim=1) / away.flatten(1).norm(dim=1)).numpy()

    def require_model(self, model: LanguageModel) -> None:
        """Refuse a model on which the lens was not fitted.

        Raises:
            InterpError: the model has other weights, or another width.
        """
        if self.model_hash != model.hash or self.d_model != model.d_model:
            raise InterpError(
                f"{self} on {model.name}",
                f"it was fitted on {self.model_hash[:12]}, of width {self.d_model}; the model is "
                f"{model.hash[:12]}, of width {model.d_model}",
                "fit a lens on this model, or replace model_hash to transfer it on purpose",
            )

    def place(self, layer: int) -> int:
        """The number of a layer among those of the lens.

        Raises:
            InterpError: the lens was not fitted at this layer.
        """
        if layer not in self.layers:
            found = f"it was fitted at layers {', '.join(map(str, self.layers))}"
            raise InterpError(f"layer {layer} of {self!r:.60}", found, "read one of these")
        return self.layers.index(layer)

    def apply(self, layer: int, states: Tensor) -> Tensor:
        """States (..., d_model) of a layer, as the lens sees them at the last layer."""
        place, wide = self.place(layer), torch.promote_types(states.dtype, torch.float32)
        found = states.to(wide) @ self.matrices[place].to(states.device, wide).T
        return found if self.offsets is None else found + self.offsets[place].to(found)

    def half(self, number: int) -> LensMaps:
        """The lens that was fitted on one half of the corpus, 0 or 1.

        Raises:
            InterpError: the halves are not known.
        """
        if self.halves is None:
            found = "its file holds the mean alone"
            raise InterpError(f"halves of {self!r:.60}", found, "fit it here, or merge two lenses")
        number = within([number], 2, "half", "a corpus")[0]
        return replace(
            self,
            matrices=self.halves[number],
            offsets=None if self.half_offsets is None else self.half_offsets[number],
            halves=None,
            half_offsets=None,
            n=(self.n[number], 0),
            note=f"half {number + 1}",
        )

    def shuffled(self, *, seed: int = 0) -> LensMaps:
        """A control: every layer has the map of another one, drawn at random.

        Raises:
            InterpError: the lens has one layer.
        """
        if (n := len(self.layers)) < 2:
            raise InterpError(f"{self} with shuffled layers", "one layer", "fit at least two")
        rng, order = np.random.default_rng(seed), np.arange(n)
        while (order == np.arange(n)).any():
            order = rng.permutation(n)
        offsets = None if self.offsets is None else self.offsets[order]
        made = replace(self, halves=None, half_offsets=None, note="shuffled layers")
        return replace(made, matrices=self.matrices[order], offsets=offsets)


def identity_lens(model: LanguageModel, layers: Sequence[int]) -> LensMaps:
    """The logit lens as a lens with maps: every matrix is the identity."""
    layers = within(layers, model.n_layers, "layer", model.name)
    eye = torch.eye(model.d_model).expand(len(layers), -1, -1)
    return LensMaps(
        kind="identity",
        model=model.name,
        model_hash=model.hash,
        layers=tuple(sorted(layers)),
        matrices=eye,
    )


def lens_controls(maps: LensMaps, model: LanguageModel, *, seed: int = 0) -> dict[str, LensMaps]:
    """The lenses that stand beside a lens: the identity, shuffled layers, and the two halves.

    Shuffled layers need two layers, and the halves must be known. The identity has no controls.
    """
    if maps.kind == "identity":
        return {}
    found = {"identity": identity_lens(model, maps.layers)}
    if len(maps.layers) > 1:
        found["shuffled layers"] = maps.shuffled(seed=seed)
    if maps.halves is not None:
        found |= {f"half {i + 1}": maps.half(i) for i in (0, 1)}
    return found


def merge_lenses(lenses: Sequence[LensMaps]) -> LensMaps:
    """The Jacobian lens of several disjoint parts of a corpus; each text counts once.

    The halves are merged too. Lenses without halves become the halves, if they are two.

    Raises:
        InterpError: no lenses, other kinds than Jacobian lenses, or lenses of different models,
            layers or options.
    """
    lenses = listed(lenses)
    asked, do = f"merging {len(lenses)} lenses", "merge Jacobian lenses of one model and one fit"
    if not lenses or any(one.kind != "jacobian" or one.note for one in lenses):
        raise InterpError(asked, "none, or a lens of another kind", do)
    first = lenses[0]
    for one in lenses:
        for name in ("model_hash", "layers", "options"):
            if getattr(one, name) != getattr(first, name):
                raise InterpError(asked, f"they differ in {name}", do)
        if not all(one.n[: 1 if one.halves is None else 2]):
            raise InterpError(asked, f"n={one.n}", "give lenses that count their texts")
    total = sum(sum(one.n) for one in lenses)
    matrices = sum(sum(one.n) * one.matrices.double() for one in lenses) / total
    halves, counts = None, [total, 0]
    if all(one.halves is not None for one in lenses):
        counts = [sum(one.n[i] for one in lenses) for i in (0, 1)]
        parts = [
            sum(one.n[i] * one.half(i).matrices.double() for one in lenses) / counts[i]
            for i in (0, 1)
        ]
        halves = torch.stack(parts).float()  # type: ignore[arg-type]
    elif len(lenses) == 2:
        counts = [sum(one.n) for one in lenses]
        halves = torch.stack([one.matrices for one in lenses])
    corpus = "; ".join(dict.fromkeys(one.corpus for one in lenses))
    whole = matrices.float()  # type: ignore[union-attr]
    return replace(first, matrices=whole, halves=halves, n=tuple(counts), corpus=corpus)
