"""The projection of every token of a prompt on a direction, and its scale for colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.core.schema import Brief
from interp.models.language_model import LanguageModel
from interp.runs.capture import run_with_cache


@dataclass(frozen=True, kw_only=True)
class Projected(Brief):
    """One prompt: its tokens, and (tokens,) projections on a direction and cosines with it."""

    tokens: tuple[str, ...]
    projection: np.ndarray
    cosine: np.ndarray


def project_tokens(
    model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    layer: int,
    site: str,
    unit: Sequence[float],
) -> list[Projected]:
    """The projection h . r and cos(h, r) at every token, with r of length one and h a layer's site.

    Raises:
        InterpError: a site the model does not have, or inside `intervene`.
    """
    states = run_with_cache(model, list(prompts), sites=[site], layers=[layer])[layer, site]
    vector, found = np.array(unit), []
    for row, mine in zip(prompts, states, strict=True):
        h = mine[: len(row)].double().cpu().numpy()
        along = h @ vector
        found.append(
            Projected(
                tokens=tuple(model.strings(row)),
                projection=along,
                cosine=along / np.maximum(np.linalg.norm(h, axis=-1), 1e-12),
            )
        )
    return found


def on_one_scale(values: Sequence[np.ndarray]) -> tuple[float, float, list[np.ndarray]]:
    """Median m, reach d (the 95 % quantile of |v - m|), and (v - m) / d clipped to [-1, 1].

    The first token of a prompt does not set the scale: its state is often many times longer than
    the others, and would hide what tells them apart.
    """
    every = np.concatenate([row[1:] for row in values])
    every = every if len(every) else np.concatenate(values)
    middle = float(np.median(every))
    reach = float(np.quantile(np.abs(every - middle), 0.95)) or 1.0
    return middle, reach, [np.clip((row - middle) / reach, -1, 1) for row in values]
