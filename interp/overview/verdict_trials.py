"""What a verdict is worth: methods asked about models whose heads are known, and counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.schema import Count, Whole, checked
from interp.core.statistics import Estimate, range_of_draws, share_estimate
from interp.heads.direct_attribution import head_logit_attribution
from interp.models.language_model import LanguageModel
from interp.models.loading import wrap
from interp.models.toys.build import Toy, word_tokenizer
from interp.models.toys.planted import planted_heads
from interp.overview.evidence_card import LEVEL, TIERS, evidence
from interp.overview.findings import scan
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from interp.plots.tables import Tabled
from interp.probing.probes import MEASURES
from interp.probing.training import probe_model
from interp.results.scores import Scores

NAMED = 3
"""How many heads `evidence` names, whatever the number of carriers, which a user does not know."""

CLEAR = 0.05
"""A scan names a head whose effect is at least this part of the gap."""

Claims = Mapping[str, str]
"""Head -> the verdict that names it."""


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One model: who carries the answer, who only holds it, and what each method named."""

    carriers: frozenset[str]
    decoys: frozenset[str]
    asked: dict[tuple[str, int], Claims]


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """How often a verdict was right.

    All intervals are Wilson's. Those of precision and recall treat heads as independent, which
    heads of one model are not quite.

    Attributes:
        method: what was run.
        prompts: pairs of prompts it was given.
        verdict: a tier of `evidence`, or what the method says of a head by itself.
        claims: heads that it named with this verdict.
        precision: the share of them that carry the answer.
        recall: the share of all carriers that it named with this verdict.
        decoys: how many of the claims are decoys, which hold the answer and are not read.
        with_one: the share of the models with claims in which one of the named heads, or more, is a
            carrier: whether the named heads as a set carry the answer.
        false_alarms: the share of the models without a carrier in which it named any head.
    """

    method: str
    prompts: int
    verdict: str
    claims: int
    precision: Estimate
    recall: Estimate
    decoys: int
    with_one: Estimate
    false_alarms: Estimate


@dataclass(frozen=True, kw_only=True)
class VerdictCalibration(Tabled):
    """The rows of `calibrate_verdicts`, and over how many models they are."""

    models: int
    without: int
    seed: int
    rows: tuple[VerdictRow, ...]

    def __repr__(self) -> str:
        return (
            f"VerdictCalibration({len(self.rows)} verdicts over {self.models} models, "
            f"{self.without} of them without a carrier)"
        )

    def to_dataframe(self) -> Any:
        """One row per method, number of prompts and verdict."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "method": row.method,
                    "prompts": row.prompts,
                    "verdict": row.verdict,
                    "claims": row.claims,
                    "precision": row.precision.mean,
                    "low": row.precision.low,
                    "high": row.precision.high,
                    "recall": row.recall.mean,
                    "decoys": row.decoys,
                    "one is right": row.with_one.mean,
                    "false alarms": row.false_alarms.mean,
                }
                for row in self.rows
            ]
        )


def calibrate_verdicts(
    *,
    models: int = 60,
    prompts: Sequence[int] = (12, 32),
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> VerdictCalibration:
    """Ask methods blindly which heads carry an answer, in models where it is known, and count.

    Each model is a `planted_heads` with 0 to 3 carriers (a quarter of the models have none), 1 to
    3 decoys and 1 to 3 distractors in random places among 12 heads. A method sees the model and the
    prompts alone:

    - exact patching, attribution patching and direct attribution, each judged by `evidence`: its
      `NAMED` strongest heads get the tier of the card, none if it is the lowest;
    - exact patching, each head: those whose `Scores.p_values` are at most 0.05;
    - a probe of each head's z at the last token, on versus off: those whose held-out AUC is beyond
      the 97.5 % quantile of the largest AUC under shuffled labels, with an interval above 0.5;
    - `scan` of the first pair: heads whose exact effect is larger than that of all others nearby
      that it compared, and at least `CLEAR` of the gap.

    Direct attribution refuses prompts that the model does not tell apart; it then names none. A
    claim is right if the head is a carrier. A decoy counts as wrong: it is where the answer can
    be read, and the model does not use it.

    Args:
        models: how many models.
        prompts: numbers of pairs that each model is asked with; the first pairs of the same list.
        seed: of the models and their prompts.
        progress: called with (models done, models).

    Raises:
        InterpError: fewer than ten pairs, which the probes refuse.
    """
    models, seed = checked(Count, models, "models"), checked(Whole, seed, "seed")
    sizes = [checked(Count, one, "prompts") for one in prompts]
    if not sizes or min(sizes) < 10:
        raise InterpError("calibrating verdicts", f"prompts {sizes}", "give at least ten pairs")
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(models):
        carriers, decoys, distractors = rng.integers([0, 1, 1], [4, 4, 4]).tolist()
        toy = planted_heads(
            carriers=carriers,
            decoys=decoys,
            distractors=distractors,
            pairs=max(sizes),
            seed=models * seed + number,
        )
        held = frozenset(label for label, role in toy.roles.items() if role == "decoy")
        trials.append(_Trial(carriers=toy.circuit, decoys=held, asked=dict(_asked(toy, sizes))))
        if progress is not None:
            progress(number + 1, models)
    return VerdictCalibration(
        models=models,
        without=sum(not trial.carriers for trial in trials),
        seed=seed,
        rows=tuple(_counted(trials)),
    )


def _asked(toy: Toy, sizes: Sequence[int]) -> Iterator[tuple[tuple[str, int], Claims]]:
    """(method, prompts) and the heads that it names."""
    model = wrap(toy.model, word_tokenizer(toy.vocabulary), name=toy.name)
    whole = Task(name=toy.name, pairs=toy.prompt_pairs, description=toy.description)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # models without a carrier do not tell the prompts apart
        yield ("scan of one pair", 1), _of_scan(model, whole)
        for n in sizes:
            task = whole.first(n)
            exact = activation_patching(model, task, site="z", by=("layer", "head"), unit="metric")
            rough = attribution_patching(model, task, site="z", by=("layer", "head"), unit="metric")
            yield ("exact patching, 3 strongest heads", n), _of_evidence(exact)
            yield ("exact patching, each head", n), _of_each(exact)
            yield ("attribution patching, 3 strongest heads", n), _of_evidence(rough)
            yield ("direct attribution, 3 strongest heads", n), _of_direct(model, task)
            yield ("probe of each head", n), _of_probes(model, task)


def _of_evidence(scores: Scores) -> Claims:
    tier = evidence(scores, k=NAMED).tier
    if tier == TIERS[0]:
        return {}
    return {str(one.component): tier for one in scores.top(NAMED)}


def _of_direct(model: LanguageModel, task: Task) -> Claims:
    try:
        return _of_evidence(head_logit_attribution(model, task))
    except InterpError:  # fractions of a gap that is noise
        return {}


def _of_each(scores: Scores) -> Claims:
    beyond = np.argwhere(scores.p_values() <= LEVEL).tolist()
    return {str(scores.component(cell)): "p of at most 0.05, max-T" for cell in beyond}


def _of_probes(model: LanguageModel, task: Task) -> Claims:
    clean = [pair.clean for pair in task.pairs]
    corrupted = [pair.corrupted for pair in task.pairs if pair.corrupted is not None]
    labels = [True] * len(clean) + [False] * len(corrupted)
    probes = probe_model(model, [*clean, *corrupted], "last", labels, sites=["z"])["z"]
    auc, found = MEASURES.index("auc"), probes.heldout
    limit = range_of_draws(probes.shuffled[:, auc].flatten(1).amax(1).numpy())[1]
    readable = (found.auc > limit) & (found.low[auc] > 0.5)
    above = readable.nonzero().tolist()
    return {f"L{layer}H{head}": "read by a probe" for layer, head in above}


def _of_scan(model: LanguageModel, task: Task) -> Claims:
    pair = task.pairs[0]
    found = scan(model, pair.clean, pair.corrupted, answer="yes", wrong="no")
    least = CLEAR * abs(found.clean - (found.corrupted or 0.0))
    return {
        str(one.component): "larger than all others nearby"
        for one in found.found
        if one.component.site == "z"
        and one.exact is not None
        and one.exact >= least
        and one.null is not None
        and one.larger_than == one.null.draws
    }


def _counted(trials: Sequence[_Trial]) -> Iterator[VerdictRow]:
    carriers = sum(len(trial.carriers) for trial in trials)
    for method, prompts in trials[0].asked:
        said = [trial.asked[method, prompts] for trial in trials]
        verdicts = {verdict for claims in said for verdict in claims.values()}
        for verdict in sorted(verdicts) or ["none"]:
            named = [{head for head in claims if claims[head] == verdict} for claims in said]
            both = list(zip(named, trials, strict=True))
            right = sum(len(heads & trial.carriers) for heads, trial in both)
            alarms = [bool(heads) for heads, trial in both if not trial.carriers]
            hits = [bool(heads & trial.carriers) for heads, trial in both if heads]
            claims = sum(map(len, named))
            yield VerdictRow(
                method=method,
                prompts=prompts,
                verdict=verdict,
                claims=claims,
                precision=share_estimate(right, claims),
                recall=share_estimate(right, carriers),
                decoys=sum(len(heads & trial.decoys) for heads, trial in both),
                with_one=share_estimate(sum(hits), len(hits)),
                false_alarms=share_estimate(sum(alarms), len(alarms)),
            )
