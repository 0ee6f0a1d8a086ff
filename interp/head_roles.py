"""Who carries a refusal: what heads write, and how it changes when others are knocked out.

Direct attribution finds carriers. It misses a head that opens a gate for others: see
`interp.head_scan` for who is necessary and `interp.interchange` for who triggers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.ablation import random_like
from interp.capture import Activations, run_with_cache
from interp.directions import Direction
from interp.errors import InterpError
from interp.interventions import intervene
from interp.metrics import bootstrap_weights
from interp.models.language_model import LanguageModel
from interp.nulls import Null, null_of, sign_flips
from interp.prompts import Task
from interp.scores import Scores
from interp.switching import Sides, SwitchOff, both_sides, head_scores

ATTRIBUTION, PROJECTION = "direct attribution", "direction projection"


def head_dla(model: LanguageModel, task: Task) -> Scores:
    """Direct logit attribution: what each head adds to the refusal logits at the last token.

        DLA(h) = u . N(z_h W_O),   u = mean W_U[answers] - mean W_U[wrong]

    with N the final norm linearised at the run's own residual, so that all heads, MLPs and the
    embedding add up to the logit difference; a post-norm behind attention is linearised likewise.
    Before any softcap of the logits. Effects are clean - corrupted: positive writes refusal.

    Args:
        model: a model whose weights are known.
        task: clean prompts are refused, corrupted ones are not; answers are the tokens refusals
            begin with, wrong those answers begin with.

    Returns:
        Scores over (layer, head) as fractions of the difference in logit_diff of the two sides.

    Raises:
        InterpError: unknown weights, no wrong tokens, or sides that do not differ.

    Source: arXiv 2604.04385 (gregfrank/how-alignment-routes). Departs from it in being a fraction
    of the gap, with an interval over pairs.
    """
    sides = both_sides(model, task)
    return _scores(model, task, sides, _attribution(model, task, sides))


def direction_projection(model: LanguageModel, task: Task, direction: Direction) -> Scores:
    """What each head writes along a direction at the last token: (z_h W_O) . r, r of length one.

    Effects are clean - corrupted, towards refusal; fractions are of the difference in the stream's
    own projection where the direction was read. Heads of later layers are not scored.

    Raises:
        InterpError: a direction of another model or site, or sides that do not differ along it.
    """
    return _scores(model, task, both_sides(model, task), _projection(model, direction))


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A linear reading of parts (n, heads, d) of residuals (n, d) behind some layers."""

    read: Callable[[Tensor, Tensor], Tensor]
    layers: range
    method: str
    metric: tuple[str, str]


def _attribution(model: LanguageModel, task: Task, sides: Sides) -> _Reading:
    decoder = model.require_decoder("direct logit attribution")
    if bool((sides.targets.wrong < 0).all(1).any()):
        raise InterpError(f"attribution on {task.name}", "no wrong tokens", "give some to each")
    rows = _mean_rows(decoder.unembed, sides.targets.answers)
    rows = rows - _mean_rows(decoder.unembed, sides.targets.wrong)
    norm = decoder.ln_final

    def read(part: Tensor, whole: Tensor) -> Tensor:
        share = norm.share(part.to(norm.weight), whole[:, None].to(norm.weight))
        return torch.einsum("nhd,nd->nh", share.cpu().double(), rows)

    metric = ("logit_diff", "logits")
    return _Reading(read=read, layers=range(model.n_layers), method=ATTRIBUTION, metric=metric)


def _projection(model: LanguageModel, direction: Direction) -> _Reading:
    direction.require_model(model)
    if direction.site not in ("resid_pre", "resid_post"):
        raise InterpError(f"heads along {direction}", "no residual site", "read resid_pre or _post")
    last = direction.layer - (direction.site == "resid_pre")
    if last < 0:
        raise InterpError(f"heads along {direction}", "no head precedes it", "take a later layer")
    unit = direction.unit
    return _Reading(
        read=lambda part, whole: part.cpu().double() @ unit,
        layers=range(last + 1),
        method=PROJECTION,
        metric=(f"projection on {direction}", ""),
    )


def _contrast(
    model: LanguageModel, sides: Sides, reading: _Reading
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(n, layer, head) clean - corrupted, and the (n,) readings of the whole stream on both."""
    effects, ends = [], []
    for prompts in (sides.clean, sides.corrupted):
        seen = run_with_cache(
            model, prompts, sites=["z", "resid_post"], layers=reading.layers, positions="last"
        )
        whole = seen[reading.layers[-1], "resid_post"]
        each = [reading.read(_head_writes(model, seen, k), whole) for k in reading.layers]
        effects.append(torch.stack(each, 1).numpy())
        ends.append(reading.read(whole[:, None], whole)[:, 0].numpy())
    return effects[0] - effects[1], (ends[0], ends[1])


def _scores(model: LanguageModel, task: Task, sides: Sides, reading: _Reading) -> Scores:
    effects, ends = _contrast(model, sides, reading)
    return head_scores(
        model,
        task,
        effects,
        ends,
        method=reading.method,
        direction="noise",
        metric=reading.metric,
        layers=reading.layers,
        positions="the last token",
    )


def _head_writes(model: LanguageModel, seen: Activations, layer: int) -> Tensor:
    """(n, heads, d_model) what each head adds to the residual stream."""
    block = model.require_decoder("what heads write").blocks[layer]
    attn = block.attn
    weight = attn.o.weight.view(attn.n_heads, attn.d_head, -1)
    raw = torch.einsum("nhk,hkd->nhd", seen[layer, "z"].to(weight), weight)
    if block.ln1_post is None:
        return raw
    whole = raw.sum(1, keepdim=True)
    return block.ln1_post.share(raw, whole if attn.o.bias is None else whole + attn.o.bias)


def _mean_rows(unembed: Tensor, tokens: Tensor) -> Tensor:
    """(n, d) float64 mean unembedding of each row's tokens, -1 left out."""
    real = (tokens >= 0)[..., None]
    taken = unembed[tokens.clamp(min=0).to(unembed.device)].detach().cpu().double()
    return torch.where(real, taken, 0.0).sum(1) / real.sum(1)


@dataclass(frozen=True, kw_only=True)
class LabelNull:
    """A contrast against the same with the labels of its pairs permuted.

    limit: the effect, as a fraction of the gap, that the strongest head of 95 % of permutations
    stays below. p: (layer, head) share of permutations whose strongest head, of all, is as strong:
    corrected for the number of heads, and no less than 1 / draws. draws: permutations tried, the
    true labels among them; all 2^n of them where there are no more.
    """

    limit: float
    p: np.ndarray
    draws: int


def permuted_labels(contrast: Scores, *, draws: int = 1000, seed: int = 0) -> LabelNull:
    """The null of `head_dla` and `direction_projection`: which prompt of a pair is refused.

    Raises:
        InterpError: scores that are not a difference of the two prompts of a pair.
    """
    if contrast.method not in (ATTRIBUTION, PROJECTION):
        found = f"{contrast.method} does not change its sign with the labels"
        raise InterpError("permuting labels", found, "take head_dla or direction_projection")
    signs = sign_flips(contrast.n, draws, seed=seed)
    flat = contrast.effects.reshape(contrast.n, -1)
    if not np.isfinite(flat).all():
        raise InterpError("permuting labels", "effects that are not finite", "check for NaN")
    strongest = np.abs(signs @ flat / contrast.n).max(1)
    found = np.abs(flat.mean(0)) - 1e-9 * strongest.max()
    return LabelNull(
        limit=float(np.quantile(strongest, 0.95) / abs(contrast.gap)),
        p=(strongest[:, None] >= found).mean(0).reshape(contrast.values.shape),
        draws=len(signs),
    )


def top_stability(scores: Scores, *, k: int = 10, draws: int = 500, seed: int = 0) -> float:
    """Mean Jaccard overlap of the top k with the top k of bootstrap samples of the prompts.

    Raises:
        InterpError: k that is not between 1 and the number of heads less one.
    """
    flat = scores.effects.reshape(scores.n, -1)
    if not 0 < k < flat.shape[1]:
        raise InterpError(f"the top {k}", f"{flat.shape[1]} heads", "choose fewer")
    weights = bootstrap_weights(scores.n, draws, seed=seed)
    sign = np.sign(scores.gap)
    top = set(np.argsort(-sign * flat.mean(0), kind="stable")[:k].tolist())
    drawn = np.argsort(-sign * (weights @ flat), axis=1, kind="stable")[:, :k]
    return float(np.mean([len(top & set(row)) / len(top | set(row)) for row in drawn.tolist()]))


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """How much of what downstream heads write is driven by the heads knocked out.

    Attributes:
        gates, downstream: labels.
        normal, knocked: (heads,) mean contrast of each downstream head, in the metric's unit.
        change: (heads,) 100 (knocked - normal) / |normal|, in per cent; -100 is all of it.
        nulls: |change| of each against knocking out random heads of the gates' layers.
    """

    gates: tuple[str, ...]
    downstream: tuple[str, ...]
    normal: np.ndarray
    knocked: np.ndarray
    change: np.ndarray
    nulls: tuple[Null, ...]

    def to_dataframe(self) -> Any:
        """One row per downstream head."""
        import pandas as pd

        columns = {"head": self.downstream, "normal": self.normal, "knocked": self.knocked}
        table = pd.DataFrame(columns | {"change_percent": self.change})
        names = (
            {"mean": "null_mean", "high": "null_high", "share": "as_strong"} if self.nulls else {}
        )
        return table.assign(
            **{name: [getattr(null, of) for null in self.nulls] for of, name in names.items()}
        )


def knockout_cascade(
    model: LanguageModel,
    task: Task,
    gates: Sequence[str],
    downstream: Sequence[str],
    switch: SwitchOff,
    *,
    direction: Direction | None = None,
    draws: int = 20,
    seed: int = 0,
) -> Cascade:
    """Gate heads are switched off, at all tokens, and downstream heads' contributions read again.

    A contribution is the contrast of `head_dla`, or of `direction_projection` if a direction is
    given. The knocked-out run's own norms are used.

    Args:
        model: a model whose weights are known.
        task: as for `head_dla`.
        gates: heads knocked out together.
        downstream: heads of later layers.
        switch: how, from `interp.switching.switch_off`.
        direction: read along this instead of the logits.
        draws: random sets of as many other heads of the same layers.
        seed: of these.

    Raises:
        InterpError: a downstream head that does not come after every gate, or writes nothing.
    """
    before, after = (model.require_parts(labels, "z") for labels in (gates, downstream))
    if max(part.layer for part in before) >= min(part.layer for part in after):
        raise InterpError(
            f"a cascade from {list(gates)} to {list(downstream)}",
            "a downstream head in the gates' layer or before",
            "choose heads of later layers",
        )

    sides = both_sides(model, task)
    if direction is None:
        reading = _attribution(model, task, sides)
    else:
        reading = _projection(model, direction)
    latest = max(after, key=lambda part: part.layer)
    if latest.layer not in reading.layers:
        raise InterpError(f"{latest} along {direction}", "the head comes later", "drop it")

    def contributions(off: Sequence[str]) -> np.ndarray:
        with intervene(model, switch.interventions(off) if off else []):
            found = _contrast(model, sides, reading)[0].mean(0)
        return np.array([found[part.layer, part.index or 0] for part in after])

    normal, knocked = contributions(()), contributions(gates)
    if (np.abs(normal) < 1e-9).any():
        raise InterpError(f"a cascade to {list(downstream)}", "a head writes nothing", "drop it")

    def change(of: np.ndarray) -> np.ndarray:
        return 100 * (of - normal) / np.abs(normal)

    random = [change(contributions(heads)) for heads in random_like(model, gates, draws, seed=seed)]
    return Cascade(
        gates=tuple(map(str, before)),
        downstream=tuple(map(str, after)),
        normal=normal,
        knocked=knocked,
        change=change(knocked),
        nulls=tuple(
            null_of(float(abs(own)), np.abs([other[i] for other in random]))
            for i, own in enumerate(change(knocked))
            if random
        ),
    )
