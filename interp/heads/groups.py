"""Groups of heads: how far a set rotates a subspace, and a greedy search for the strongest set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt
from interp.core.run_options import Progress
from interp.core.schema import Brief
from interp.heads.switching import SwitchOff
from interp.models.language_model import LanguageModel
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import random_like


def subspace_shift(before: Tensor, after: Tensor, *, k: int = 1, centred: bool = False) -> float:
    """Generalised Ships: the sum of the k angles between two sets of states, in radians.

        sum_r arccos sigma_r(U^T U'),   U, U' the first k left singular vectors of (n, d) states

    Row i of both is the same prompt. The released code uses one vector, does not centre, and
    returns degrees. Without centring the states' mean dominates; `centred` subtracts it first.

    Raises:
        InterpError: other shapes, or k beyond the number of prompts.
    """
    if before.shape != after.shape or before.dim() != 2 or not 1 <= k <= min(before.shape):
        found = f"states {tuple(before.shape)} and {tuple(after.shape)}, k={k}"
        raise InterpError("the angle between two sets of states", found, "same prompts, smaller k")
    bases = []
    for states in (before.double(), after.double()):
        rows = states - states.mean(0) if centred else states
        bases.append(torch.linalg.svd(rows, full_matrices=False)[0][:, :k])
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1])
    return float(torch.arccos(cosines.clamp(-1, 1)).sum())


@dataclass(frozen=True, kw_only=True)
class HeadGroup(Brief):
    """Heads in the order a greedy search added them.

    curve: the objective after each head. null: the whole group's objective against that of random
    heads of the same layers. Random groups are not searched, so a searched group should exceed it.
    """

    heads: tuple[str, ...]
    curve: np.ndarray
    objective: str
    null: Null | None


@reads_arguments
def greedy_head_group(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    switch: SwitchOff,
    *,
    size: int = 3,
    candidates: Sequence[str] | None = None,
    objective: Literal["subspace", "kl"] = "subspace",
    k: int = 1,
    centred: bool = False,
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> HeadGroup:
    """Greedy search for the heads that, switched off together, change the model most.

    Each step adds the head that gives the largest objective together with the heads found already:
    the shift of the last-token states after the last layer (`subspace_shift`), or the mean KL of
    the next token. The search takes size * candidates hooked passes, so the best heads of
    `scan_heads` are good candidates.

    Args:
        model: any model.
        prompts: prompts that are refused.
        switch: how heads are switched off, from `interp.heads.switching.switch_off`.
        size: number of heads.
        candidates: labels; all heads by default.
        objective: see above.
        k: number of singular vectors, for "subspace".
        centred: whether the states' mean is subtracted, for "subspace".
        draws: number of random groups; 0 for no null.
        seed: seed of the random groups.
        progress: called with (steps done, steps in total).

    Raises:
        InterpError: an unknown objective, or fewer candidates than heads wanted.

    Source: arXiv 2410.13708 (ydyjya/SafetyHeadAttribution, lib/Sahara).
    """
    if objective not in ("subspace", "kl"):
        raise unknown("objective", objective, ("subspace", "kl"))
    every = [f"L{i}H{h}" for i in range(model.n_layers) for h in range(model.n_heads)]
    pool = listed(every if candidates is None else candidates)
    if not 0 < size <= len(pool):
        raise InterpError(f"{size} of {len(pool)} heads", "too few candidates", "give more")
    top = model.n_layers - 1

    def run(heads: Sequence[str]) -> tuple[Tensor, Tensor]:
        with intervene(model, [switch.change(heads)] if heads else []):
            seen = run_with_cache(
                model, prompts, sites=["resid_post"], layers=[top], positions="last"
            )
        return seen[top, "resid_post"], seen.logits.double().log_softmax(-1)

    states, logs = run(())

    def value(heads: Sequence[str]) -> float:
        after, changed = run(heads)
        if objective == "subspace":
            return subspace_shift(states, after, k=k, centred=centred)
        return float((logs.exp() * (logs - changed)).sum(-1).mean())

    found: list[str] = []
    curve: list[float] = []
    for step in range(size):
        left = [head for head in pool if head not in found]
        values = [value([*found, head]) for head in left]
        best = int(np.argmax(values))
        found.append(left[best])
        curve.append(values[best])
        if progress is not None:
            progress(step + 1, size)
    random = [value(heads) for heads in random_like(model, found, draws, seed=seed)]
    return HeadGroup(
        heads=tuple(found),
        curve=np.array(curve),
        objective=objective,
        null=null_of(curve[-1], np.array(random)) if random else None,
    )
