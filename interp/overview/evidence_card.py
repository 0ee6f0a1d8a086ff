"""What results on one behaviour show together, and what they do not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.circuits.evaluation.evaluate import CircuitEvaluation
from interp.circuits.evaluation.faithfulness import CircuitFaithfulness
from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.statistics import Estimate, mean_estimate, range_of_draws
from interp.heads.direct_attribution import ATTRIBUTION, PROJECTION
from interp.overview.criteria import Criteria
from interp.plots.tables import Tabled
from interp.probing.probes import MEASURES, Probes
from interp.results.scores import Scores

FAMILIES = {
    "behavioural": "the model does the task",
    "causal": "changing the parts changes the behaviour",
    "structural": "the parts act through known connections",
    "representational": "the state tells the classes apart",
    "informational": "what the parts write reads as the answer",
}
"""Families of evidence, and what each says."""

TIERS = (
    "not shown",
    "suggestive: no exact effect of the parts themselves",
    "causal, on the prompts that chose the parts",
    "causal, on prompts that did not choose them",
    "causal, on prompts that did not choose them, through known connections",
)
"""Verdicts, weakest first. A row counts if its interval and its null both speak for it."""

LEVEL = 0.05
"""The largest p that counts."""

ESTIMATES = ("attribution", "AtP", "gradient", "clean-corrupted")
"""Words in the names of methods that estimate an effect instead of measuring it."""


@dataclass(frozen=True, kw_only=True)
class EvidenceRow:
    """One measurement, as evidence.

    Attributes:
        family: a key of `FAMILIES`.
        name: what was measured; a criterion names a row by it.
        value: the number, with interval and n.
        null: the numbers that the null gave, as text; "" if there is none.
        above: the number that the interval has to stay above: the null's upper end, or 0.
        p: that of a test beside the null; None if there was none.
        held_out: whether the prompts did not choose the parts.
        exact: whether every number is that of a run of its own, and not an estimate.
    """

    family: str
    name: str
    value: Estimate
    null: str = ""
    above: float = 0.0
    p: float | None = None
    held_out: bool
    exact: bool = True

    @property
    def holds(self) -> bool:
        """Whether the interval lies above the null, and p, if there is one, is at most 0.05."""
        return self.value.low > self.above and (self.p is None or self.p <= LEVEL)

    def __str__(self) -> str:
        null = f"; null {self.null}" if self.null else ""
        kind = "" if self.held_out else "; on the prompts that chose it"
        how = "" if self.exact else "; an estimate by gradients"
        if self.holds:
            end = f"refuted by new prompts whose interval reaches {self.above:z.3f}"
        else:
            end = "does not hold"
        return f"{self.name}: {self.value}{null}{kind}{how}; {end}"


@dataclass(frozen=True, kw_only=True)
class Evidence(Tabled):
    """Measurements on one model, by family of evidence, and the verdict that they allow.

    Attributes:
        model: the model's name.
        task: the task's name; "" for probes alone.
        rows: the measurements.
        criteria: the criteria; None if there are none. When they were written cannot be known here:
            it shows from where their hash was published.
    """

    model: str
    task: str
    rows: tuple[EvidenceRow, ...]
    criteria: Criteria | None = None

    @property
    def tier(self) -> str:
        """The strongest of `TIERS` that the rows allow."""
        holding = [row for row in self.rows if row.holds]
        causal = [row for row in holding if row.family == "causal" and row.exact]
        structural = any(
            row.family == "structural" and row.exact and row.held_out for row in holding
        )
        if any(row.held_out for row in causal):
            return TIERS[4 if structural else 3]
        others = any(row.family != "behavioural" for row in holding)
        return TIERS[2 if causal else 1 if others else 0]

    @property
    def absent(self) -> tuple[str, ...]:
        """The families without a measurement."""
        given = {row.family for row in self.rows}
        return tuple(name for name in FAMILIES if name not in given)

    @property
    def met(self) -> dict[str, bool]:
        """For each criterion, whether the lower end of the row's interval reaches it."""
        rows = {row.name: row for row in self.rows}
        wanted = {} if self.criteria is None else self.criteria.at_least
        return {name: rows[name].value.low >= least for name, least in wanted.items()}

    def __repr__(self) -> str:
        return f"Evidence({self.task or 'no task'} on {self.model}: {self.tier})"

    def __str__(self) -> str:
        lines = [f"{self.task or 'no task'} on {self.model}: {self.tier}"]
        lines += [f"  {row.family:16} {row}" for row in self.rows]
        lines += [f"  {name:16} not measured: whether {FAMILIES[name]}" for name in self.absent]
        if self.criteria is not None:
            lines.append(f"  criteria {self.criteria.hash}:")
            for name, least in self.criteria.at_least.items():
                said = "met" if self.met[name] else "missed"
                lines.append(f"    {name} at least {least:z.3f}: {said}")
        return "\n".join(lines)

    def to_dataframe(self) -> Any:
        """One row per measurement."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "family": row.family,
                    "measurement": row.name,
                    "value": row.value.mean,
                    "low": row.value.low,
                    "high": row.value.high,
                    "n": row.value.n,
                    "null": row.null,
                    "held-out": row.held_out,
                    "exact": row.exact,
                    "holds": row.holds,
                }
                for row in self.rows
            ]
        )


@reads_arguments
def evidence(*results: Any, k: int = 5, criteria: Criteria | None = None) -> Evidence:
    """What results on one model show together: by family of evidence, with a verdict.

    A row holds if the lower end of its 95 % interval lies above the upper end of its null (without
    a null, above 0), and p is at most 0.05 where there is a test. The verdict is the strongest of
    `TIERS` for which rows hold. It is a summary of what was run, not a further test. Of two rows
    with one name, the first counts.

    - `Scores` of patching and ablation: causal; of path patching: structural; of direct
      attribution: informational. The effect of the k strongest cells on the half of the prompts
      that did not choose them, beside random cells of the same layers, and p (`Scores.null`). With
      fewer than four prompts: the strongest cell, on the prompts that chose it. With corrupted
      prompts also a behavioural row: the gap.
    - `CircuitEvaluation`, or faithfulness curves of one circuit: structural; f beside random
      circuits of its size. It is held out if the circuit was found on other prompts.
    - `Probes`: representational; the best AUC on held-out examples beside the best of as many
      probes of shuffled labels.

    Source: the idea of a card by family of evidence, and criteria fixed before the run, follow the
    practices that arXiv 2510.00845 recommends; the tiers and their rules are our own.

    Args:
        results: any of these, of one model.
        k: how many of the strongest cells of a `Scores` count as its finding.
        criteria: least values, see `Criteria`.

    Raises:
        InterpError: no results, another type, results of different models, or a criterion that
            names no row.
    """
    sources = [_source(result) for result in results]
    models = {(name, key) for name, key, _ in sources}
    tasks = {task for _, _, task in sources if task}
    if len(models) != 1 or len(tasks) > 1:
        found = "; ".join(sorted({f"{task or 'probes'} on {name}" for name, _, task in sources}))
        raise InterpError(
            "the evidence of some results",
            found or "no results",
            "give results of one model (the same weights) and one task",
        )
    rows: dict[str, EvidenceRow] = {}
    for result in results:
        for row in _rows(result, k):
            rows.setdefault(row.name, row)
    lost = [] if criteria is None else sorted(set(criteria.at_least) - set(rows))
    if lost:
        raise InterpError(f"the criterion {lost[0]!r}", f"rows: {[*rows]}", "name one of them")
    ordered = sorted(rows.values(), key=lambda row: [*FAMILIES].index(row.family))
    return Evidence(
        model=models.pop()[0], task="".join(tasks), rows=tuple(ordered), criteria=criteria
    )


def _source(result: Any) -> tuple[str, str, str]:
    """The name and hash of a result's model, and the name of its task."""
    if isinstance(result, CircuitEvaluation):
        result = result.itself
    if isinstance(result, Scores | CircuitFaithfulness):
        origin = result.provenance
        return origin.model, origin.model_hash, origin.task
    if isinstance(result, Probes):
        return result.source.get("model", "unknown"), result.source.get("model_hash", ""), ""
    raise InterpError(
        f"the evidence of a {type(result).__name__}",
        "not among Scores, CircuitEvaluation, faithfulness curves and Probes",
        "give one of these",
    )


def _rows(result: Any, k: int) -> Iterator[EvidenceRow]:
    if isinstance(result, Scores):
        yield from _of_scores(result, k)
    elif isinstance(result, Probes):
        yield _of_probes(result)
    else:
        curves = result.itself if isinstance(result, CircuitEvaluation) else result
        yield _of_circuit(curves)


def _of_scores(scores: Scores, k: int) -> Iterator[EvidenceRow]:
    if scores.extra.get("paired", True):
        gap = mean_estimate(scores.clean - scores.corrupted)
        yield EvidenceRow(
            family="behavioural", name=f"gap of {scores.metric}", value=gap, held_out=True
        )
    family = "causal"
    if scores.method.startswith("path patching"):
        family = "structural"
    elif scores.method in (ATTRIBUTION, PROJECTION):
        family = "informational"
    exact = family == "informational" or not any(word in scores.method for word in ESTIMATES)
    about: dict[str, Any] = {"family": family, "exact": exact}
    name, k = f"{scores.method}, {scores.site}", min(k, scores.values.size)
    if scores.n < 4:
        best = scores.top(1)[0]
        value = scores.estimate(str(best.component), best.position)
        yield EvidenceRow(name=f"{name}, {best.label}", value=value, held_out=False, **about)
        return
    test = scores.null(k)
    yield EvidenceRow(
        name=f"{name}, top {k}",
        value=test.unseen,
        null=f"{test.mean:z.3f} [{test.low:z.3f}, {test.high:z.3f}], p = {test.flips.p:.2g}",
        above=0.0 if math.isnan(test.high) else max(0.0, test.high),
        p=test.flips.p,
        held_out=True,
        **about,
    )


def _of_circuit(curves: CircuitFaithfulness) -> EvidenceRow:
    circuit, null = curves.circuits[0], None
    if curves.drawn:
        null = curves.null(0, connected="on_paths" in curves.drawn)
    origin = circuit.provenance
    return EvidenceRow(
        family="structural",
        name=f"faithfulness of {circuit.name}",
        value=curves.estimate(0),
        null="" if null is None else null.beside,
        above=0.0 if null is None else max(0.0, null.high),
        held_out=origin is not None and origin.task_hash != curves.provenance.task_hash,
    )


def _of_probes(probes: Probes) -> EvidenceRow:
    auc, found = MEASURES.index("auc"), probes.heldout
    best = int(found.auc.flatten().argmax())
    ends = {name: float(getattr(found, name)[auc].flatten()[best]) for name in ("low", "high")}
    drawn = probes.shuffled[:, auc].flatten(1).amax(1).double().numpy()
    low, high = range_of_draws(drawn) if len(drawn) else (np.nan, 0.5)
    return EvidenceRow(
        family="representational",
        name=f"AUC of the best of {found.auc.numel()} probes",
        value=Estimate(mean=float(found.auc.flatten()[best]), n=probes.n_test, **ends),
        null=f"{drawn.mean():z.3f} [{low:z.3f}, {high:z.3f}]" if len(drawn) else "",
        above=max(0.5, high),
        held_out=True,
    )
