"""Jacobian lenses in the public file format, `*_jacobian_lens.pt`, read and written by its library.

The format is that of Anthropic's reference implementation: the keys J (a matrix for each layer),
n_prompts, source_layers and d_model, and optional metadata. TransformerLens loads it without
running code from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class PublicLens:
    """What a file of the public format holds.

    Attributes:
        matrices: the mean Jacobian of each layer, (d_model, d_model).
        n: number of texts it was fitted on.
        metadata: texts and numbers by name.
    """

    matrices: Mapping[int, Tensor]
    n: int
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_public_lens(path: str | Path) -> PublicLens:
    """Read a lens, or a checkpoint of the reference implementation's fit.

    Raises:
        InterpError: the file is missing, damaged or of another kind.
    """
    from transformer_lens.tools.analysis import JacobianLens

    asked = f"the Jacobian lens {path}"
    if not Path(path).is_file():
        raise InterpError(asked, "there is no such file", "give a *_jacobian_lens.pt file")
    try:
        found = JacobianLens.load(str(path))
    except Exception as error:  # torch and TransformerLens raise many kinds for damaged files
        first_line = str(error).partition("\n")[0][:200]
        raise InterpError(asked, first_line, "give a *_jacobian_lens.pt file") from error
    return PublicLens(matrices=found.jacobians, n=found.n_prompts, metadata=found.metadata)


def write_public_lens(path: str | Path, lens: PublicLens) -> Path:
    """Write a lens in float16, as the reference implementation does.

    Raises:
        InterpError: the file cannot be written.
    """
    from transformer_lens.tools.analysis import JacobianLens

    made = JacobianLens(
        dict(lens.matrices),
        n_prompts=lens.n,
        d_model=next(iter(lens.matrices.values())).shape[-1],
        metadata=dict(lens.metadata),
    )
    return write_atomically(Path(path), lambda place: made.save(str(place), dtype=torch.float16))
