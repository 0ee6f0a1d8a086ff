"""Which candidate is the refusal direction: three scores, one rule, a reason for each rejected.

The rule of Arditi et al. 2024 (arXiv 2406.11717, andyrdt/refusal_direction), also on score tables
without a model, and selection by cosines without tokens (COSMIC, arXiv 2506.00085).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from interp.core.chat_prompts import ChatPrompts, PromptsLike
from interp.core.errors import InterpError
from interp.core.statistics import standard_error
from interp.engine.readout import Progress
from interp.models.chat import plain_prompts
from interp.models.language_model import LanguageModel
from interp.refusal.score import score_refusals
from interp.results.direction import Direction, refuse_seen
from interp.steering.candidates import Candidates
from interp.steering.edits import ablate_direction, add_direction
from interp.steering.runs import run_steered

Rule = Literal["", "nan", "zero", "layer", "kl", "induce"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a candidate must pass.

    kl: largest KL on harmless prompts. induce: smallest score of the addition (None: any).
    prune: share of the last layers left out: layer >= int((1 - prune) * n_layers).
    """

    kl: float = 0.1
    induce: float | None = 0.0
    prune: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate, its scores (None: not measured) and why it was rejected.

    bypass: with the direction ablated everywhere, on harmful prompts, lower is better: mean
    refusal score; by cosines, minus the cosine with plain harmless states.
    induce: with it added at its own layer, on harmless prompts, higher is better: mean refusal
    score; by cosines, the cosine with plain harmful states.
    kl: mean KL(plain || ablated) on harmless prompts, nats. The standard errors are of these means;
    None where there is no sample, as in a published table.
    """

    position: int
    layer: int
    bypass: float | None
    induce: float | None
    kl: float | None
    bypass_stderr: float | None = None
    induce_stderr: float | None = None
    kl_stderr: float | None = None
    rejected: Rule = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class DirectionSelection:
    """Every candidate with its fate; `best` is None where none survives.

    harmful, harmless: mean refusal score of the plain runs, where there were any.
    """

    method: str
    rows: tuple[Row, ...]
    best: Row | None
    limits: Limits
    n_layers: int
    harmful: float | None = None
    harmless: float | None = None

    @property
    def survivors(self) -> tuple[Row, ...]:
        """Candidates that were not rejected."""
        return tuple(row for row in self.rows if not row.rejected)

    @property
    def rejections(self) -> dict[str, int]:
        """How many were rejected by each rule, counting the first that applies."""
        return dict(Counter(row.rejected for row in self.rows if row.rejected))

    def __str__(self) -> str:
        counts = ", ".join(f"{rule} {n}" for rule, n in self.rejections.items()) or "none"
        head = (
            f"{self.method}: {len(self.survivors)} of {len(self.rows)} candidates left ({counts})"
        )
        if self.best is None:
            return f"{head}; no direction can be selected"
        best = self.best
        return f"{head}; position {best.position}, layer {best.layer}, bypass {best.bypass:.3f}"

    def direction(self, candidates: Candidates) -> Direction:
        """The selected candidate.

        Raises:
            InterpError: none survived, with how many fell to which rule.
        """
        if self.best is None:
            raise InterpError(
                "a selected direction", str(self), "see to_dataframe(); relax Limits on purpose"
            )
        return candidates.at(self.best.layer, self.best.position)

    def to_dataframe(self) -> Any:
        """One row per candidate."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])


def select_from_table(
    table: Sequence[Mapping[str, Any]], *, n_layers: int | None = None, limits: Limits | None = None
) -> DirectionSelection:
    """The rule on published scores, without a model.

    Reject, in this order: a score that is not a number; the last layers; KL above the limit; no
    refusal induced. Of the rest, the smallest bypass; of equal ones, the first.

    Args:
        table: rows with position (or pos), layer, refusal_score, steering_score, kl_div_score, as
            in direction_evaluations.json of the paper's repository.
        n_layers: the model's; the largest layer + 1 by default.
        limits: those of the paper by default.

    Raises:
        InterpError: an empty table, or a row without one of these.
    """
    try:
        rows = [
            Row(
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
            "a score table", f"{error!r} in a row", "see select_from_table"
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
    """Every candidate scored on held-out prompts, and the rule of `select_from_table`.

    bypass: r ablated at every residual site; induce: +1 times the raw r towards refusal added at
    its own site and layer; both the mean refusal score. kl: see `smoothed_kl`. A zero vector is
    rejected as such (the released code scores it, and it falls to the rule on induce).

    Args:
        model: the model the candidates were read from.
        candidates: from `difference_in_means`, on other prompts than these.
        harmful: prompts that should be refused.
        harmless: prompts that should be answered.
        tokens: the refusal tokens of `interp.refusal.score`.
        limits: those of the paper by default.
        measure_all: measure rejected candidates too, for maps of the scores; else measuring stops
            at the first rule that rejects, in the order layer, kl, induce.
        progress: called with (candidates done, candidates in all).

    Raises:
        InterpError: no prompts, prompts of another model or format than the candidates, or some
            that the candidates were read from.
    """
    bad, good = (_given(model, side, candidates) for side in (harmful, harmless))
    limits = limits or Limits()
    plain = run_steered(model, good).logits
    baselines = [
        score_refusals(run_steered(model, bad).logits, tokens),
        score_refusals(plain, tokens),
    ]

    def measure(direction: Direction, score: str) -> Tensor:
        if score == "induce":
            return score_refusals(
                run_steered(model, good, add_direction(model, direction)).logits, tokens
            )
        ablation = ablate_direction(model, direction)
        if score == "kl":
            return smoothed_kl(plain, run_steered(model, good, ablation).logits)
        return score_refusals(run_steered(model, bad, ablation).logits, tokens)

    rows = _measured(model, candidates, measure, limits, measure_all, progress)
    return _selected(
        "bypass, induce, KL",
        rows,
        model.n_layers,
        limits,
        lambda row: row.bypass,
        harmful=float(baselines[0].mean()),
        harmless=float(baselines[1].mean()),
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
    """Selection without tokens or a judge, by where states move (COSMIC, arXiv 2506.00085).

    Read are the last tokens' resid_post at the `share` of layers where mean harmful and mean
    harmless states are least alike; a set's state is its mean over prompts and these layers, as in
    the released code. Score = cos(ablated harmful, harmless) + cos(steered harmless, harmful); the
    largest wins. `Limits.induce` defaults to any here. The arguments are those of
    `select_direction`.
    """
    bad, good = (_given(model, side, candidates) for side in (harmful, harmless))
    limits = limits or Limits(induce=None)
    everywhere = range(model.n_layers)
    runs = [run_steered(model, side, layers=everywhere) for side in (bad, good)]
    means = [_states(run.states).mean(0) for run in runs]
    alike = torch.nn.functional.cosine_similarity(*means, dim=-1)
    read = sorted(alike.argsort()[: max(1, round(share * model.n_layers))].tolist())
    targets = [mean[read].mean(0) for mean in means]

    def measure(direction: Direction, score: str) -> Tensor:
        if score == "induce":
            run = run_steered(model, good, add_direction(model, direction), layers=read)
            return _cosine(run.states, targets[0])
        ablation = ablate_direction(model, direction)
        if score == "kl":
            return smoothed_kl(runs[1].logits, run_steered(model, good, ablation).logits)
        return -_cosine(run_steered(model, bad, ablation, layers=read).states, targets[1])

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
    """(n,) sum p (log(p + eps) - log(q + eps)), p of the plain and q of the changed logits.

    In float64, in nats. The paper's variant: not a KL divergence, and slightly negative at times.
    """
    p, q = (logits.cpu().double().softmax(-1) for logits in (plain, changed))
    return (p * ((p + epsilon).log() - (q + epsilon).log())).sum(-1)


def _given(model: LanguageModel, prompts: PromptsLike, candidates: Candidates) -> ChatPrompts:
    given = plain_prompts(model, prompts)
    candidates.format.require(given.format, "selecting among candidates")
    if not len(given) or candidates.model_hash != model.hash:
        raise InterpError(
            f"selecting on {len(given)} prompts of {model.name}",
            "no prompts, or candidates of other weights",
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
) -> list[Row]:
    """Scores of every candidate; those after the first rejection only with `measure_all`."""
    rows, total = [], candidates.norms.numel()
    for p, position in enumerate(candidates.positions):
        for column, layer in enumerate(candidates.layers):
            row = _blank(candidates, p, column)
            if not row.rejected:
                direction = candidates.at(layer, position)
                for score in ("kl", "induce", "bypass"):
                    if not measure_all and _judged(row, model.n_layers, limits).rejected:
                        break
                    row = _with(row, score, measure(direction, score))
            rows.append(row)
            if progress is not None:
                progress(len(rows), total)
    return rows


def _blank(candidates: Candidates, p: int, column: int) -> Row:
    """A candidate before any measurement; vectors that point nowhere are rejected here."""
    vector = candidates.vectors[p, column]
    rule: Rule = ""
    reason = ""
    if not bool(vector.isfinite().all()):
        rule, reason = "nan", "the vector has values that are not finite"
    elif float(vector.norm()) == 0:
        rule, reason = "zero", "the vector is zero: both classes have the same states here"
    return Row(
        position=candidates.positions[p],
        layer=candidates.layers[column],
        bypass=None,
        induce=None,
        kl=None,
        rejected=rule,
        reason=reason,
    )


def _with(row: Row, score: str, values: Tensor) -> Row:
    stderr = float(standard_error(values.numpy())) if len(values) > 1 else None
    return Row(**{**asdict(row), score: float(values.mean()), f"{score}_stderr": stderr})


def _judged(row: Row, n_layers: int, limits: Limits) -> Row:
    """The row with the first rule that rejects it, and why."""
    if row.rejected:
        return row
    cut = int(n_layers * (1.0 - limits.prune))
    scores = {"bypass": row.bypass, "induce": row.induce, "kl": row.kl}
    lost = [name for name, value in scores.items() if value is not None and math.isnan(value)]
    rule: Rule = ""
    reason = ""
    if lost:
        rule, reason = "nan", f"{', '.join(lost)} is not a number"
    elif row.layer >= cut:
        rule, reason = "layer", f"layer {row.layer} of {n_layers}, from {cut} on they are left out"
    elif row.kl is not None and row.kl > limits.kl:
        rule, reason = "kl", f"KL {row.kl:.4f} on harmless prompts, above {limits.kl:g}"
    elif limits.induce is not None and row.induce is not None and row.induce < limits.induce:
        rule, reason = "induce", f"adding it gives {row.induce:.4f}, below {limits.induce:g}"
    return Row(**{**asdict(row), "rejected": rule, "reason": reason})


def _selected(
    method: str,
    rows: Sequence[Row],
    n_layers: int,
    limits: Limits,
    key: Callable[[Row], float | None],
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


def _states(states: Tensor | None) -> Tensor:
    assert states is not None
    return states.double()


def _cosine(states: Tensor | None, target: Tensor) -> Tensor:
    """(1,) cosine of the mean over prompts and layers with a target."""
    mean = _states(states).mean((0, 1))
    return torch.nn.functional.cosine_similarity(mean, target, dim=0)[None]
