"""Selecting the refusal direction among candidates, with a reason for every rejected one.

The rule of Arditi et al. 2024 (arXiv 2406.11717, andyrdt/refusal_direction), also on published
score tables without a model; and selection by cosines, without tokens (COSMIC, arXiv 2506.00085).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from interp.core.chat_prompts import ChatPrompts, PromptsLike
from interp.core.errors import InterpError
from interp.core.run_options import Progress
from interp.core.statistics import standard_error
from interp.models.chat import plain_prompts
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.refusal.score import score_refusals
from interp.results.direction import Direction, refuse_seen
from interp.steering.candidates import Candidates
from interp.steering.edits import Steering, ablate_direction, add_direction
from interp.steering.runs import SteeredRun, run_steered

Rejection = Literal["", "nan", "zero", "layer", "kl", "induce"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The conditions that a candidate must meet.

    Attributes:
        kl: the largest KL on harmless prompts.
        induce: the smallest refusal score when the direction is added; None for any.
        prune: the share of last layers that is excluded: layer >= int((1 - prune) * n_layers).
    """

    kl: float = 0.1
    induce: float | None = 0.0
    prune: float = 0.2


@dataclass(frozen=True, kw_only=True)
class ScoredCandidate:
    """One candidate, its scores (None if not measured), and why it was rejected.

    Attributes:
        position: its position.
        layer: its layer.
        bypass: the mean refusal score on harmful prompts with the direction ablated at all sites;
            lower is better. For selection by cosines: minus the cosine with the plain harmless
            states.
        induce: the mean refusal score on harmless prompts with the direction added at its layer;
            higher is better. For selection by cosines: the cosine with the plain harmful states.
        kl: mean KL(plain || ablated) on harmless prompts, in nats.
        bypass_stderr, induce_stderr, kl_stderr: standard errors of these means; None without
            samples, as in a published table.
        rejected: the rule that rejected it; "" if none did.
        reason: the reason, in words.
    """

    position: int
    layer: int
    bypass: float | None
    induce: float | None
    kl: float | None
    bypass_stderr: float | None = None
    induce_stderr: float | None = None
    kl_stderr: float | None = None
    rejected: Rejection = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class DirectionSelection(Tabled):
    """All candidates with their scores, and the selected one.

    Attributes:
        method: how they were scored.
        rows: the candidates.
        best: the selected candidate; None if all were rejected.
        limits: the conditions.
        n_layers: the model's number of layers.
        harmful, harmless: mean refusal score of the plain runs; None if not measured.
    """

    method: str
    rows: tuple[ScoredCandidate, ...]
    best: ScoredCandidate | None
    limits: Limits
    n_layers: int
    harmful: float | None = None
    harmless: float | None = None

    @property
    def survivors(self) -> tuple[ScoredCandidate, ...]:
        """Candidates that were not rejected."""
        return tuple(row for row in self.rows if not row.rejected)

    @property
    def rejections(self) -> dict[str, int]:
        """The number of candidates rejected by each rule; the first rule that applies counts."""
        return dict(Counter(row.rejected for row in self.rows if row.rejected))

    def __str__(self) -> str:
        counts = ", ".join(f"{rule} {n}" for rule, n in self.rejections.items()) or "none"
        head = (
            f"{self.method}: {len(self.survivors)} of {len(self.rows)} candidates left ({counts})"
        )
        if self.best is None:
            return f"{head}; no direction can be selected"
        best = self.best
        return f"{head}; position {best.position}, layer {best.layer}, bypass {best.bypass:z.3f}"

    def direction(self, candidates: Candidates) -> Direction:
        """The selected candidate.

        Raises:
            InterpError: all were rejected; the error says by which rules.
        """
        if self.best is None:
            do = "see to_dataframe(); relax Limits if justified"
            raise InterpError("a selected direction", str(self), do)
        return candidates.at(self.best.layer, self.best.position)

    def to_dataframe(self) -> Any:
        """One row per candidate."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])


def select_from_table(
    table: Sequence[Mapping[str, Any]], *, n_layers: int | None = None, limits: Limits | None = None
) -> DirectionSelection:
    """Apply the selection rule to published scores, without a model.

    Candidates are rejected, in this order, for a score that is not a number; for a layer among the
    last ones; for a KL above the limit; or for an induced refusal score below the limit. Among the
    rest, the smallest bypass is selected; of equal ones, the first.

    Args:
        table: rows with position (or pos), layer, refusal_score, steering_score and kl_div_score,
            as in direction_evaluations.json of the paper's repository.
        n_layers: the model's number of layers; the largest layer + 1 by default.
        limits: the conditions; those of the paper by default.

    Raises:
        InterpError: an empty table, or a row that lacks a field.
    """
    try:
        rows = [
            ScoredCandidate(
                position=int(row["position"] if "position" in row else row["pos"]),
                layer=int(row["layer"]),
                bypass=float(row["refusal_score"]),
                induce=float(row["steering_score"]),
                kl=float(row["kl_div_score"]),
            )
            for row in table
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InterpError(
            "a score table", f"{error!r} in a row", "give the fields that select_from_table lists"
        ) from error
    if not rows:
        raise InterpError("a score table", "no rows", "give one row per candidate")
    depth = n_layers or max(row.layer for row in rows) + 1
    return _selected("published scores", rows, depth, limits or Limits(), lambda row: row.bypass)


def select_direction(
    model: LanguageModel,
    candidates: Candidates,
    harmful: PromptsLike,
    harmless: PromptsLike,
    tokens: Sequence[int],
    *,
    limits: Limits | None = None,
    measure_all: bool = False,
    progress: Progress | None = None,
) -> DirectionSelection:
    """Score every candidate on held-out prompts, and apply the rule of `select_from_table`.

    bypass: mean refusal score with r ablated at every residual site. induce: mean refusal score
    with the unnormalised r added once at its own site and layer. kl: see `smoothed_kl`. A zero
    vector is rejected at once (the released code scores it and rejects it by induce).

    Args:
        model: the model that the candidates were read from.
        candidates: from `difference_in_means`, on other prompts.
        harmful: prompts that should be refused.
        harmless: prompts that should be answered.
        tokens: the refusal tokens, see `interp.refusal.score`.
        limits: the conditions; those of the paper by default.
        measure_all: also measure rejected candidates in full, to plot all scores. By default a
            candidate is measured until a rule rejects it, in the order layer, kl, induce.
        progress: called with (candidates done, candidates in total).

    Raises:
        InterpError: no prompts, a model or format other than the candidates', or prompts that the
            candidates were read from.
    """
    bad, good = (_given(model, side, candidates) for side in (harmful, harmless))
    limits = limits or Limits()
    plain = run_steered(model, good).logits

    def refusal(prompts: ChatPrompts, steering: Steering | None = None) -> Tensor:
        return score_refusals(run_steered(model, prompts, steering).logits, tokens)

    def measure(direction: Direction, score: str) -> Tensor:
        if score == "induce":
            return refusal(good, add_direction(model, direction))
        ablation = ablate_direction(model, direction)
        if score == "kl":
            return smoothed_kl(plain, run_steered(model, good, ablation).logits)
        return refusal(bad, ablation)

    rows = _measured(model, candidates, measure, limits, measure_all, progress)
    return _selected(
        "bypass, induce, KL",
        rows,
        model.n_layers,
        limits,
        lambda row: row.bypass,
        harmful=float(refusal(bad).mean()),
        harmless=float(score_refusals(plain, tokens).mean()),
    )


def select_cosmic(
    model: LanguageModel,
    candidates: Candidates,
    harmful: PromptsLike,
    harmless: PromptsLike,
    *,
    share: float = 0.1,
    limits: Limits | None = None,
    measure_all: bool = False,
    progress: Progress | None = None,
) -> DirectionSelection:
    """Select by the cosines of states, without tokens or a judge (COSMIC, arXiv 2506.00085).

        score = cos(ablated harmful, harmless) + cos(steered harmless, harmful)

    The largest score is selected. The state of a set of prompts is its mean over prompts and
    layers, as in the released code: resid_post at the last token, at the `share` of layers with the
    least similar harmful and harmless means. `Limits.induce` is None by default. All other
    arguments and errors are those of `select_direction`.
    """
    bad, good = (_given(model, side, candidates) for side in (harmful, harmless))
    limits = limits or Limits(induce=None)
    everywhere = range(model.n_layers)
    runs = [run_steered(model, side, layers=everywhere) for side in (bad, good)]
    means = [_states(run).mean(0) for run in runs]
    alike = torch.nn.functional.cosine_similarity(*means, dim=-1)
    read = sorted(alike.argsort()[: max(1, round(share * model.n_layers))].tolist())
    targets = [mean[read].mean(0) for mean in means]

    def measure(direction: Direction, score: str) -> Tensor:
        if score == "induce":
            added = add_direction(model, direction)
            return _cosine(run_steered(model, good, added, layers=read), targets[0])
        ablation = ablate_direction(model, direction)
        if score == "kl":
            return smoothed_kl(runs[1].logits, run_steered(model, good, ablation).logits)
        return -_cosine(run_steered(model, bad, ablation, layers=read), targets[1])

    rows = _measured(model, candidates, measure, limits, measure_all, progress)
    name = f"cosines at layers {', '.join(map(str, read))}"
    return _selected(
        name,
        rows,
        model.n_layers,
        limits,
        lambda row: None if row.bypass is None or row.induce is None else row.bypass - row.induce,
    )


def smoothed_kl(plain: Tensor, changed: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """(n,) sum p (log(p + eps) - log(q + eps)), with p from plain and q from changed logits.

    In nats, float64. This is the paper's variant. It is not exactly a KL divergence and can be
    slightly negative.
    """
    p, q = (logits.cpu().double().softmax(-1) for logits in (plain, changed))
    return (p * ((p + epsilon).log() - (q + epsilon).log())).sum(-1)


def _given(model: LanguageModel, prompts: PromptsLike, candidates: Candidates) -> ChatPrompts:
    given = plain_prompts(model, prompts)
    candidates.format.require(given.format, "selecting among candidates")
    if not len(given) or candidates.model_hash != model.hash:
        raise InterpError(
            f"selecting on {len(given)} prompts of {model.name}",
            "no prompts, or candidates of a model with other weights",
            "give held-out prompts and candidates of this model",
        )
    refuse_seen(candidates.rows, given, f"selecting among {candidates.kind} candidates")
    return given


def _measured(
    model: LanguageModel,
    candidates: Candidates,
    measure: Callable[[Direction, str], Tensor],
    limits: Limits,
    measure_all: bool,
    progress: Progress | None,
) -> list[ScoredCandidate]:
    """The scores of every candidate; after the first rejection only with `measure_all`."""
    rows, total = [], candidates.norms.numel()
    for p, position in enumerate(candidates.positions):
        for column, layer in enumerate(candidates.layers):
            row = _blank(candidates, p, column)
            if not row.rejected:
                direction = candidates.at(layer, position)
                for score in ("kl", "induce", "bypass"):
                    if not measure_all and _judged(row, model.n_layers, limits).rejected:
                        break
                    values = measure(direction, score)
                    stderr = float(standard_error(values.numpy())) if len(values) > 1 else None
                    found: Any = {score: float(values.mean()), f"{score}_stderr": stderr}
                    row = replace(row, **found)
            rows.append(row)
            if progress is not None:
                progress(len(rows), total)
    return rows


def _blank(candidates: Candidates, p: int, column: int) -> ScoredCandidate:
    """A candidate before any measurement. Zero and non-finite vectors are rejected here."""
    vector = candidates.vectors[p, column]
    rule: Rejection = ""
    reason = ""
    if not bool(vector.isfinite().all()):
        rule, reason = "nan", "the vector has values that are not finite"
    elif float(vector.norm()) == 0:
        rule, reason = "zero", "the vector is zero: both classes have the same states here"
    return ScoredCandidate(
        position=candidates.positions[p],
        layer=candidates.layers[column],
        bypass=None,
        induce=None,
        kl=None,
        rejected=rule,
        reason=reason,
    )


def _judged(row: ScoredCandidate, n_layers: int, limits: Limits) -> ScoredCandidate:
    """The candidate with the first rule that rejects it, and the reason."""
    if row.rejected:
        return row
    cut = int(n_layers * (1.0 - limits.prune))
    scores = {"bypass": row.bypass, "induce": row.induce, "kl": row.kl}
    lost = [name for name, value in scores.items() if value is not None and math.isnan(value)]
    rejection: tuple[Rejection, str] = ("", "")
    if lost:
        rejection = "nan", f"{', '.join(lost)} is not a number"
    elif row.layer >= cut:
        rejection = "layer", f"layer {row.layer} of {n_layers}: excluded from {cut} on"
    elif row.kl is not None and row.kl > limits.kl:
        rejection = "kl", f"KL {row.kl:z.4f} on harmless prompts, above {limits.kl:g}"
    elif limits.induce is not None and row.induce is not None and row.induce < limits.induce:
        rejection = "induce", f"score {row.induce:z.4f} when added, below {limits.induce:g}"
    return replace(row, rejected=rejection[0], reason=rejection[1])


def _selected(
    method: str,
    rows: Sequence[ScoredCandidate],
    n_layers: int,
    limits: Limits,
    key: Callable[[ScoredCandidate], float | None],
    **baselines: float,
) -> DirectionSelection:
    judged = tuple(_judged(row, n_layers, limits) for row in rows)
    ranked = [
        (value, row) for row in judged if not row.rejected and (value := key(row)) is not None
    ]
    best = min(ranked, key=lambda pair: pair[0])[1] if ranked else None
    return DirectionSelection(
        method=method, rows=judged, best=best, limits=limits, n_layers=n_layers, **baselines
    )


def _states(run: SteeredRun) -> Tensor:
    assert run.states is not None
    return run.states.double()


def _cosine(run: SteeredRun, target: Tensor) -> Tensor:
    """(1,) cosine between the mean over prompts and layers and a target."""
    mean = _states(run).mean((0, 1))
    return torch.nn.functional.cosine_similarity(mean, target, dim=0)[None]
