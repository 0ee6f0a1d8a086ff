"""Slices: groups of prompts with like states and like scores, beside scores dealt at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from interp.core.arguments import Flags, flags_of, listed, reads_arguments, texts_of
from interp.core.components import within
from interp.core.continuations import GivenAnswer
from interp.core.errors import InterpError
from interp.core.metrics import METRICS, Logits
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt
from interp.core.prompts import PromptPair, Task
from interp.core.schema import Brief, Count, Positive, Seed, Share, checked
from interp.core.statistics import Estimate, mean_estimate, share_estimate
from interp.engine.memory import says_too_little
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.runs.capture import run_with_cache

MOST = 4000
"""The most prompts of a clustering, which takes all their distances."""


@dataclass(frozen=True, kw_only=True)
class SliceMatch(Brief):
    """How well the best slice is a known group of prompts.

    Attributes:
        slice: the number of the slice with the largest F1 of purity and recall.
        purity: share of the slice that is in the group (Wilson interval).
        recall: share of the group that is in the slice (Wilson interval).
        null: F1 of that slice, and the best F1 in slices of scores dealt at random.
    """

    slice: int
    purity: Estimate
    recall: Estimate
    null: Null


@dataclass(frozen=True, kw_only=True)
class Slices(Tabled):
    """Slices of n prompts, the one with the largest excess first.

    Attributes:
        of: (n,) the slice of each prompt, from 0.
        alone: (n,) the cluster of each prompt by its state alone: what scores are dealt within.
        scores: (n,) the scores.
        excess: (slices,) sum over the slice of score minus the mean score of all prompts.
        coherence: (slices,) how much nearer its states are to each other than to the others of
            their cluster by states alone, from -1 to 1; 0 if there are no others.
        p: (slices,) share of the draws, counting none, with a slice of at least as large a
            |excess| x coherence. It is corrected for the slices, and at least 1 / (1 + draws).
        dealt: (draws, n) the slices of scores dealt at random.
        prompts: the prompts, or the pairs of a task; empty if only states were given.
        source: what was sliced, such as model, model_hash and layer.
        settings: weight, cut, draws and seed.
    """

    of: np.ndarray
    alone: np.ndarray
    scores: np.ndarray
    excess: np.ndarray
    coherence: np.ndarray
    p: np.ndarray
    dealt: np.ndarray = field(repr=False)
    prompts: tuple[Prompt | PromptPair, ...] = field(repr=False)
    source: dict[str, Any]
    settings: dict[str, Any]

    def __repr__(self) -> str:
        strong = int((self.p <= 0.05).sum())
        return f"Slices({len(self.p)} of {len(self.of)} prompts, {strong} with p <= .05)"

    def members(self, number: int) -> list[int]:
        """The numbers of the prompts of a slice.

        Raises:
            InterpError: there is no such slice.
        """
        within([number], len(self.p), "slice", "these slices")
        return np.flatnonzero(self.of == number).tolist()

    def to_dataframe(self) -> Any:
        """One row per slice: its size, mean score, excess, coherence and p.

        `alone` is the largest overlap (intersection over union) with a cluster by states alone: 1
        for a slice that the scores add nothing to.
        """
        from pandas import DataFrame

        rows = []
        for number in range(len(self.p)):
            own = self.of == number
            mean = mean_estimate(self.scores[own])
            overlap = [(own & c).sum() / (own | c).sum() for c in _flags(self.alone)]
            rows.append({"slice": number, "n": mean.n, "score": mean.mean})
            rows[-1] |= {"low": mean.low, "high": mean.high, "excess": self.excess[number]}
            rows[-1] |= {"coherence": self.coherence[number], "p": self.p[number]}
            rows[-1]["alone"] = max(overlap)
        return DataFrame(rows)

    def plot(self) -> Any:
        """A Plotly figure: the mean score of every slice."""
        from interp.plots.components import bars

        sizes = np.bincount(self.of)
        means = np.bincount(self.of, self.scores) / sizes
        named = [f"slice {number} (n = {n})" for number, n in enumerate(sizes)]
        return bars([*zip(named, means.tolist(), strict=True)], x_title="mean score")

    def matched(self, group: Flags) -> SliceMatch:
        """Which slice is most like a group that is known, such as prompts refused by design.

        The null is the best slice of each draw. As the best of many slices is taken, compare with
        it, not with 0.

        Args:
            group: (n,) whether each prompt is in the group.

        Raises:
            InterpError: not one flag for each prompt, or no prompt in the group.
        """
        known = flags_of(group, len(self.of))
        if not known.any():
            raise InterpError("a match with a group", "no prompt is in it", "give another group")
        number, f1 = _best(self.of, known)
        own = self.of == number
        both = int((own & known).sum())
        return SliceMatch(
            slice=number,
            purity=share_estimate(both, int(own.sum())),
            recall=share_estimate(both, int(known.sum())),
            null=null_of(f1, [_best(one, known)[1] for one in self.dealt]),
        )

    def task(
        self,
        number: int,
        *,
        answers: str | int | Sequence[GivenAnswer] = (),
        wrong: str | int | Sequence[GivenAnswer] = (),
    ) -> Task:
        """The prompts of a slice as a task, which `interp.tasks.save_task` keeps under a name.

        Slices of a task keep its pairs; prompts without a task need answers.

        Raises:
            InterpError: no such slice, no prompts were given, or prompts without answers.
        """
        asked, chosen = f"slice {number} as a task", self.members(number)
        if not self.prompts:
            raise InterpError(asked, "only states were given", "call slice_prompts with prompts")
        pairs = [self.prompts[i] for i in chosen]
        given = listed(answers)
        if not given and not isinstance(pairs[0], PromptPair):
            raise InterpError(asked, "prompts without answers", "give answers=")
        made = [
            one
            if isinstance(one, PromptPair)
            else PromptPair(clean=one, answers=tuple(given), wrong=tuple(listed(wrong)))
            for one in pairs
        ]
        metric = METRICS["logit_diff" if all(one.wrong for one in made) else "log_odds"]
        return Task(name=f"slice-{number}", pairs=tuple(made), metric=metric)


@reads_arguments
@says_too_little
def slice_prompts(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    scores: Sequence[float] | None = None,
    *,
    layer: int | None = None,
    weight: float = 0.5,
    cut: float = 0.25,
    draws: int = 200,
    seed: int = 0,
) -> Slices:
    """Groups of prompts with like states at the last token and like scores; see `slice_states`.

    Args:
        model: a loaded model.
        prompts: a task (its clean prompts), texts or token tuples.
        scores: one number for each prompt; by default the task's metric on its clean prompts.
        layer: the layer behind which the states are read; by default the middle one.
        weight: as in `slice_states`.
        cut: as in `slice_states`.
        draws: as in `slice_states`.
        seed: as in `slice_states`.

    Raises:
        InterpError: prompts without scores that are no task, no such layer, and as `slice_states`.
    """
    place = model.n_layers // 2 if layer is None else layer
    within([place], model.n_layers, "layer", model.name)
    pairs = prompts.pairs if isinstance(prompts, Task) else None
    if scores is None:
        if not isinstance(prompts, Task):
            raise InterpError("slices of prompts", "no scores", "give scores=, or a task")
        encoded = prompts.encode(model)
        logits = model.tail_logits(encoded.clean)
        scores = prompts.metric(Logits(logits), encoded.targets).tolist()
    states = run_with_cache(
        model, prompts, sites="resid_post", layers=[place], positions="last"
    )[place, "resid_post"]  # fmt: skip
    found = {"model": model.name, "model_hash": model.hash, "layer": place}
    given = tuple(texts_of(prompts)) if pairs is None else tuple(pairs)
    fit = {"weight": weight, "cut": cut, "draws": draws, "seed": seed}
    return slice_states(states, scores, prompts=given, source=found, **fit)


@reads_arguments
def slice_states(
    states: Tensor | np.ndarray,
    scores: Sequence[float],
    *,
    weight: float = 0.5,
    cut: float = 0.25,
    draws: int = 200,
    seed: int = 0,
    prompts: Sequence[Prompt | PromptPair] = (),
    source: dict[str, Any] | None = None,
) -> Slices:
    """Groups of rows with like states and like scores, by average linkage.

        distance_ij = weight (1 - cos(h_i - m, h_j - m)) / 2 + (1 - weight) |s_i - s_j| / range(s)

    m is the mean state. Both parts lie in [0, 1]. Clusters are joined while their mean distance is
    at most `cut`.

    The null keeps the states and deals the scores at random within the clusters that rows of equal
    score would form: by states alone, at the same cut. Each draw is clustered again. It finds
    groups of one score too, but not of like states, so a slice is judged by both:

        strength = |sum_i (s_i - mean s)| max(0, mean_i (d(i, others) - d(i, slice)))

    over the rows i of the slice, with d the mean state distance, (1 - cos) / 2, to the rest of the
    slice, and to the rows of i's cluster by states that are not in it. The largest strength of each
    draw is compared with that of each slice. If within these clusters the score has nothing to do
    with the state, p is valid at every level. A slice that is a whole cluster by states has
    strength 0 and p = 1: the scores add nothing to it.

    Args:
        states: (n, d) finite states.
        scores: (n,) finite numbers.
        weight: share of the states in the distance; 1 for states alone.
        cut: the largest mean distance in a slice.
        draws: number of random deals.
        seed: their seed.
        prompts: kept with the result.
        source: facts kept with the result.

    Raises:
        InterpError: shapes that do not fit, values that are not finite, scores that are all equal,
            fewer than 4 or more than 4000 rows, or an option out of range.

    Source: VLSlice, arXiv 2309.06703 (slymane/vlslice), for image classifiers. Departures: the
    states are centred, because those of a language model share a large part; both parts are scaled
    to [0, 1]; and the null and the match with a known group are ours.
    """
    from scipy.spatial.distance import squareform

    share, reach = checked(Share, weight, "weight"), checked(Positive, cut, "cut")
    draws, seed = checked(Count, draws, "draws"), checked(Seed, seed, "seed")
    rows = np.asarray(states.detach().cpu() if isinstance(states, Tensor) else states, dtype=float)
    numbers = np.asarray(listed(scores), dtype=float)
    fits = rows.ndim == 2 and numbers.shape == rows.shape[:1] and 4 <= len(rows) <= MOST
    if not fits or not np.isfinite(rows).all() or not np.isfinite(numbers).all():
        found = f"states {rows.shape}, scores {numbers.shape}, or values that are not finite"
        do = f"give finite (n, d) states and a score for each, n from 4 to {MOST}"
        raise InterpError("slices", found, do)
    if len(prompts) not in (0, len(rows)) or not np.ptp(numbers):
        found = f"{len(prompts)} prompts for {len(rows)} rows, scores from {numbers.min():g}"
        raise InterpError("slices", found, "give one prompt a row, and scores that differ")
    distances = _distances(rows)
    apart = share * squareform(distances, checks=False)
    alone = _clusters(apart, reach)
    same = alone[:, None] == alone
    of = _clusters(apart + (1 - share) * _gaps(numbers), reach)
    rest = numbers - numbers.mean()
    order = np.argsort(-np.abs(np.bincount(of, rest)), kind="stable")
    of = np.argsort(order)[of]
    excess, coherence = np.bincount(of, rest), _coherence(distances, same, of)
    rng = np.random.default_rng(seed)
    dealt, largest = np.zeros((draws, len(rows)), dtype=int), np.zeros(draws)
    for draw in range(draws):
        mixed = numbers.copy()
        for own in _flags(alone):
            mixed[own] = rng.permutation(mixed[own])
        dealt[draw] = _clusters(apart + (1 - share) * _gaps(mixed), reach)
        sums = np.bincount(dealt[draw], mixed - numbers.mean())
        largest[draw] = _strength(sums, _coherence(distances, same, dealt[draw])).max()
    as_large = largest[:, None] >= _strength(excess, coherence) * (1 - 1e-9)
    return Slices(
        of=of,
        alone=alone,
        scores=numbers,
        excess=excess,
        coherence=coherence,
        p=(1 + as_large.sum(0)) / (1 + draws),
        dealt=dealt,
        prompts=tuple(prompts),
        source=dict(source or {}),
        settings={"weight": weight, "cut": cut, "draws": draws, "seed": seed},
    )


def _distances(rows: np.ndarray) -> np.ndarray:
    """(n, n) (1 - cosine) / 2 of centred rows; 1/2 for a row that equals the mean."""
    centred = rows - rows.mean(0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    found = ((1 - unit @ unit.T) / 2).clip(0, 1)
    np.fill_diagonal(found, 0)
    return found


def _coherence(distances: np.ndarray, same: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(slices,) mean over rows of distance to the others minus distance to the slice; else 0."""
    together = of[:, None] == of
    inside, outside = together & ~np.eye(len(of), dtype=bool), same & ~together
    means = [
        np.divide((distances * some).sum(1), some.sum(1), where=some.any(1), out=np.zeros(len(of)))
        for some in (outside, inside)
    ]
    known = outside.any(1) & inside.any(1)
    return np.bincount(of, np.where(known, means[0] - means[1], 0)) / np.bincount(of)


def _strength(excess: np.ndarray, coherence: np.ndarray) -> np.ndarray:
    return np.abs(excess) * coherence.clip(0)


def _gaps(scores: np.ndarray) -> np.ndarray:
    """(pairs,) |s_i - s_j| / range."""
    left, right = np.triu_indices(len(scores), 1)
    return np.abs(scores[left] - scores[right]) / np.ptp(scores)


def _clusters(apart: np.ndarray, cut: float) -> np.ndarray:
    """(n,) cluster numbers from 0, by average linkage of (pairs,) distances."""
    from scipy.cluster.hierarchy import fcluster, linkage

    return fcluster(linkage(apart, "average"), cut, "distance") - 1


def _flags(of: np.ndarray) -> list[np.ndarray]:
    return [of == number for number in np.unique(of)]


def _best(of: np.ndarray, known: np.ndarray) -> tuple[int, float]:
    """The cluster with the largest F1 of purity and recall, and that F1."""
    both = np.bincount(of, known)
    f1 = 2 * both / (np.bincount(of) + known.sum())
    return int(f1.argmax()), float(f1.max())
