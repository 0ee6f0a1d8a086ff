"""Lenses in files: the public format of Jacobian lenses, and the lens that ships."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.records import Record
from interp.models.language_model import LanguageModel
from interp.models.lens_files import PublicLens, read_public_lens, write_public_lens
from interp.probing.lens_maps import LensMaps

SHIPPED = Path(__file__).parent.parent / "weights"
"""The folder of what ships; a lens is in `*/lens.safetensors`."""

STEPS = 127
"""Largest whole number that a shipped matrix holds; see `CompactLens`."""


def load_public_lens(path: str | Path, model: LanguageModel) -> LensMaps:
    """Read a Jacobian lens from a public *_jacobian_lens.pt file.

    The format does not hold a hash of the model. A name in its metadata must be that of `model`, as
    far as the part after the last slash goes, and its width and layers must fit.

    Raises:
        InterpError: a damaged file, or a lens of another model.
    """
    found = read_public_lens(path)
    layers, asked = sorted(found.matrices), f"the Jacobian lens {path} on {model.name}"
    width, last = found.matrices[layers[0]].shape[-1], model.n_layers - 1
    do = "give the lens of this model"
    if width != model.d_model or layers[-1] >= last:
        raise InterpError(asked, f"width {width}, layers {layers[0]} to {layers[-1]}", do)
    if (target := found.metadata.get("target_layer", last)) != last:
        raise InterpError(asked, f"it maps to layer {target}, not to the last one", do)
    name = found.metadata.get("model_name")
    if name is not None and _short(str(name)) != _short(model.name):
        raise InterpError(asked, f"it was fitted on {name}", do)
    return LensMaps(
        kind="jacobian",
        model=model.name,
        model_hash=model.hash,
        layers=tuple(layers),
        matrices=torch.stack([found.matrices[layer] for layer in layers]).float(),
        n=(found.n, 0),
        corpus=str(found.metadata.get("corpus", "")),
    )


def save_public_lens(path: str | Path, maps: LensMaps) -> Path:
    """Write a Jacobian lens as a public file, in float16. The halves are not written.

    Raises:
        InterpError: a lens of another kind, or a file that cannot be written.
    """
    if maps.kind != "jacobian" or maps.offsets is not None:
        raise InterpError(f"{maps!r:.60} as a public file", "it is no Jacobian lens", "save() it")
    made_of = {"model_name": maps.model, "corpus": maps.corpus, **maps.options}
    return write_public_lens(
        path,
        PublicLens(
            matrices=dict(zip(maps.layers, maps.matrices, strict=True)),
            n=sum(maps.n),
            metadata=made_of,
        ),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class CompactLens(Record):
    """A Jacobian lens with its two halves in two bytes a number.

    The mean and half of the halves' difference are whole numbers from -127 to 127, times a step for
    each row. The diagonal of the mean is kept apart, because it is far larger than the rest.

    Attributes:
        lens: the lens without its matrices: those are zero, (layer, 1, 1).
        mean, difference: (layer, d_model, d_model) int8.
        steps: (2, layer, d_model) float32 the steps of both.
        diagonal: (layer, d_model) float32 the diagonal of the mean.
    """

    lens: LensMaps
    mean: Tensor
    difference: Tensor
    steps: Tensor
    diagonal: Tensor

    @classmethod
    def of(cls, maps: LensMaps) -> CompactLens:
        """The lens in two bytes a number.

        Raises:
            InterpError: its halves are not known, or it has offsets.
        """
        a, b = (maps.half(i).matrices for i in (0, 1))
        if maps.offsets is not None:
            raise InterpError(f"{maps!r:.60}, compact", "it has offsets", "save() it")
        diagonal = maps.matrices.diagonal(dim1=1, dim2=2)
        mean, mean_steps = _whole(maps.matrices - torch.diag_embed(diagonal))
        difference, steps = _whole((a - b) / 2)
        none = torch.zeros(len(maps.layers), 1, 1)
        return cls(
            lens=LensMaps(
                kind=maps.kind,
                model=maps.model,
                model_hash=maps.model_hash,
                layers=maps.layers,
                matrices=none,
                n=maps.n,
                corpus=maps.corpus,
                options=maps.options,
            ),
            mean=mean,
            difference=difference,
            steps=torch.stack([mean_steps, steps]),
            diagonal=diagonal.contiguous(),
        )

    @property
    def maps(self) -> LensMaps:
        """The lens."""
        mean = self.mean * self.steps[0, ..., None] + torch.diag_embed(self.diagonal)
        apart = self.difference * self.steps[1, ..., None]
        # The mean weights each half by its texts.
        n = self.lens.n
        share = torch.tensor([n[1], -n[0]]) * 2 / sum(n)
        halves = mean + share[:, None, None, None] * apart
        return replace(self.lens, matrices=mean, halves=halves)


@reads_arguments
def shipped_lens(model: LanguageModel) -> LensMaps:
    """The Jacobian lens that ships for a model, with the halves of its corpus.

    Raises:
        InterpError: no lens ships for these weights.
    """
    if (found := compact_lens(model)) is not None:
        return found.maps
    known = [CompactLens.load(path).lens.model for path in _shipped()]
    raise InterpError(
        f"a lens for {model.name}",
        f"one ships for {', '.join(known) or 'no model'}, with its own weights",
        "fit one with fit_jacobian_lens() or fit_tuned_lens()",
    )


def compact_lens(model: LanguageModel) -> CompactLens | None:
    """The Jacobian lens that ships for a model as its file holds it, if one does."""
    lenses = map(CompactLens.load, _shipped())
    return next((each for each in lenses if each.lens.model_hash == model.hash), None)


def _shipped() -> list[Path]:
    return sorted(SHIPPED.glob("*/lens.safetensors"))


def _whole(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers, and the step of each row."""
    steps = x.abs().amax(-1) / STEPS
    return (x / steps.clamp_min(1e-30)[..., None]).round().to(torch.int8), steps


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()
