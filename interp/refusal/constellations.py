"""Task constellations: where the answered and the refused prompts of each task lie, layer by layer.

SafeConstellations (Maskey et al., arXiv 2508.11290; code Sakonii/SafeConstellations) keeps, for
every task, the mean trajectory of answered ("target") and of refused prompts, tells the task of a
new prompt by them, and moves it from the one to the other. Here is the geometry, on arrays; the
model side is `interp.refusal.task_steering`. Formulas are the published ones; where the released
notebooks compute something else, that is a named option.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from interp.core.arguments import listed
from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.refusal.trajectories import CLASSES, Reading, Trajectories

EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class Bank:
    """The constellations of T tasks.

    Attributes:
        tasks: their names.
        layers: L layer numbers.
        centroids: (T, 2, L, d) means of the target and of the refused rows; nan for a class with
            fewer than `least` rows.
        spread: (T, 2, L) root mean square distance of a class's rows from their centroid.
        cross: (T, L) mean distance between a target and a refused row.
        counts: (T, 2) rows.
        least: rows a class needs.
        rows: the ids it was made of; none of them may be evaluated.
        prompts: what their prompts are known by, as far as that is known; nor may these.
        reading: how states were read.
        notices: what is missing or without meaning, in words.
    """

    tasks: tuple[str, ...]
    layers: tuple[int, ...]
    centroids: np.ndarray
    spread: np.ndarray
    cross: np.ndarray
    counts: np.ndarray
    least: int
    rows: frozenset[str]
    prompts: frozenset[str]
    reading: Reading
    notices: tuple[str, ...]

    @property
    def whole(self) -> np.ndarray:
        """(T,) tasks of which both classes are there."""
        return np.array(self.counts >= self.least).min(axis=1)

    @property
    def vectors(self) -> np.ndarray:
        """(T, L, d) v = target - refusal centroid: towards compliance. nan if one is missing."""
        return self.centroids[:, 0] - self.centroids[:, 1]

    @property
    def hash(self) -> str:
        """Fingerprint of the numbers and of how they were read."""
        facts = [self.tasks, self.layers, self.counts.tolist(), sorted(self.rows)]
        return content_key([*facts, str(self.reading), self.centroids.tobytes().hex()])

    def accept(self, trajectories: Trajectories) -> None:
        """Refuse rows or prompts the bank was made of, and states read in another way.

        Raises:
            InterpError: an overlap, another reading, or other layers.
        """
        self.reading.require(trajectories.reading, "trajectories for a bank")
        own = ((self.rows, trajectories.rows), (self.prompts, trajectories.prompts))
        for what, (ours, theirs) in zip(("rows", "prompts"), own, strict=True):
            if shared := ours & set(theirs):
                raise InterpError(
                    f"evaluating on a bank's own {what}",
                    f"{len(shared)} of {len(trajectories)} {what} are in it, such as "
                    f"{min(shared)!r}",
                    "split the rows first, see Trajectories.split",
                )
        if trajectories.layers != self.layers:
            raise InterpError("trajectories for a bank", "other layers", "read the same layers")

    def to_dataframe(self) -> Any:
        """One row per task and layer: counts, |v|, spreads and effectiveness."""
        import pandas as pd

        task, layer = np.indices(self.cross.shape)
        return pd.DataFrame(
            {
                "task": np.array(self.tasks)[task.ravel()],
                "layer": np.array(self.layers)[layer.ravel()],
                "n_target": self.counts[:, 0][task.ravel()],
                "n_refusal": self.counts[:, 1][task.ravel()],
                "distance": np.linalg.norm(self.vectors, axis=-1).ravel(),
                "spread_target": self.spread[:, 0].ravel(),
                "spread_refusal": self.spread[:, 1].ravel(),
                "effectiveness": effectiveness(self).ravel(),
            }
        )


def make_bank(
    trajectories: Trajectories, *, least: int = 2, tasks: Sequence[str] | None = None
) -> Bank:
    """The centroids of every task's answered and refused rows.

    Rows of class "other" are left out. A class with fewer than `least` rows has no centroid and is
    named in `notices`, as are layers at which all states are the same (a template's last token
    before any attention) and a bank of one task, which can identify none.

    Raises:
        InterpError: no rows, or least below 1.
    """
    if not len(trajectories) or least < 1:
        raise InterpError(f"a bank of {len(trajectories)} rows", f"least={least}", "give rows")
    named = tuple(dict.fromkeys(trajectories.tasks)) if tasks is None else tuple(listed(tasks))
    states = trajectories.states
    T, (_, L, d) = len(named), states.shape
    centroids, spread = np.full((T, 2, L, d), math.nan), np.full((T, 2, L), math.nan)
    cross, counts = np.full((T, L), math.nan), np.zeros((T, 2), dtype=int)
    task, kind = np.array(trajectories.tasks), np.array(trajectories.classes)
    for t, name in enumerate(named):
        groups = [states[(task == name) & (kind == label)] for label in CLASSES]
        for c, group in enumerate(groups):
            counts[t, c] = len(group)
            if len(group) >= least:
                centroids[t, c] = group.mean(0)
                spread[t, c] = _root_mean_square(group - centroids[t, c])
        if (counts[t] >= least).all():
            cross[t] = np.mean([_lengths(groups[0] - row).mean(0) for row in groups[1]], axis=0)
    return Bank(
        tasks=named,
        layers=trajectories.layers,
        centroids=centroids,
        spread=spread,
        cross=cross,
        counts=counts,
        least=least,
        rows=frozenset(trajectories.rows),
        prompts=frozenset(trajectories.prompts),
        reading=trajectories.reading,
        notices=tuple(_notices(trajectories, named, counts, least)),
    )


def _notices(
    trajectories: Trajectories, tasks: Sequence[str], counts: np.ndarray, least: int
) -> Iterable[str]:
    for t, c in np.argwhere(counts < least).tolist():
        yield f"task {tasks[t]} has {counts[t, c]} {CLASSES[c]} rows, fewer than {least}"
    still = np.ptp(trajectories.states, axis=0).max(-1) == 0
    for layer in np.array(trajectories.layers)[still].tolist():
        yield f"layer {layer} holds the same state in every row: its vectors are zero"
    if len(tasks) < 2:
        yield "one task only: no prompt's task can be told"


def effectiveness(bank: Bank, *, epsilon: float = EPSILON) -> np.ndarray:
    """(T, L) Eff = |v| / (spread_target + spread_refusal + epsilon); nan without both classes."""
    return _lengths(bank.vectors) / (bank.spread.sum(1) + epsilon)


def notebook_score(bank: Bank, *, epsilon: float = EPSILON) -> np.ndarray:
    """(T, L) the released notebooks' score of layers, for comparison.

        0.3 |v| / spread + 0.2 |v| + 0.2 cross / |v| + 0.3 |v|

    with the mean spread of the two classes. Two terms grow with the size of the states, and the
    third rewards classes that overlap: neither is meant by "effective".
    """
    distance = _lengths(bank.vectors)
    ratios = distance / (bank.spread.mean(1) + epsilon), bank.cross / (distance + epsilon)
    return 0.3 * ratios[0] + 0.2 * distance + 0.2 * ratios[1] + 0.3 * distance


def best_layers(scores: np.ndarray, k: int) -> list[list[int]]:
    """For each row of (..., L) scores the places of its k largest, the largest first.

    Places of nan scores are left out: fewer than k where there are fewer.
    """
    ranked = np.argsort(np.where(np.isnan(scores), math.inf, -scores), axis=-1, kind="stable")
    known = (~np.isnan(scores)).sum(-1)
    return [row[: min(k, n)].tolist() for row, n in zip(ranked, known.tolist(), strict=True)]


Centre = Literal["task", "target", "refusal", "nearest"]
Likeness = Literal["cosine", "softmax"]


@dataclass(frozen=True, kw_only=True)
class Identified:
    """Which task each of N prompts was taken for.

    Attributes:
        tasks: the bank's names.
        scores: (N, T); nan for a task without a centroid.
        best: (N,) the largest score's task number.
        confidence: (N,) that score.
        margin: (N,) its lead over the next; nan in a bank of one task, which tells nothing.
    """

    tasks: tuple[str, ...]
    scores: np.ndarray
    best: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """The task each prompt was taken for."""
        return tuple(self.tasks[i] for i in self.best.tolist())


def identify(
    states: np.ndarray,
    bank: Bank,
    *,
    stored: int | None = 5,
    centre: Centre = "task",
    over_layers: Literal["max", "mean"] = "max",
    likeness: Likeness = "cosine",
    temperature: float = 0.1,
) -> Identified:
    """The task whose constellation each trajectory resembles most.

    A task's score is the cosine of a state with its centroid at its stored layers (the largest, or
    the mean); confidence is the largest score. `NOTEBOOK_GATE` has the released notebooks' options.

    Args:
        states: (N, L, d).
        bank: of the same layers.
        stored: each task's most effective layers, those of all such tasks together where it lacks
            a class; None for all layers.
        centre: a task's centroid: the mean over its rows of both classes ("task"), that of one, or
            at each layer the "nearest" of its two.
        over_layers: the source says 5 T cosines and their maximum; or the mean over layers.
        likeness: the cosine, or its softmax over tasks at
        temperature: this.

    Raises:
        InterpError: states of another shape than the bank's, or no task with a centroid.
    """
    centres = _centres(bank, centre)
    known = ~np.all(np.isnan(centres).any((2, 3)), axis=1)
    if states.shape[1:] != centres.shape[2:] or not known.any():
        raise InterpError(
            f"the tasks of states {states.shape}",
            f"a bank of {int(known.sum())} tasks with a {centre} centroid, {centres.shape[2:]}",
            "read the bank's layers, and give it rows of each task",
        )
    everywhere = list(range(len(bank.layers)))
    chosen = best_layers(effectiveness(bank), stored) if stored else [everywhere] * len(centres)
    union = sorted({layer for layers in chosen for layer in layers}) or everywhere
    scores = np.full((len(states), len(bank.tasks)), math.nan)
    for t in np.flatnonzero(known).tolist():
        at = chosen[t] or union
        there = [one for one in centres[t] if not np.isnan(one).any()]
        cosines = np.max([_cosine(states[:, at], one[at]) for one in there], axis=0)
        scores[:, t] = cosines.max(1) if over_layers == "max" else cosines.mean(1)
    if likeness == "softmax":
        powers = np.exp((scores - np.nanmax(scores, 1, keepdims=True)) / temperature)
        scores = powers / np.nansum(powers, 1, keepdims=True)
    ranked = np.sort(np.where(np.isnan(scores), -math.inf, scores), axis=1)
    lead = ranked[:, -1] - ranked[:, -2] if known.sum() > 1 else np.full(len(states), math.nan)
    return Identified(
        tasks=bank.tasks,
        scores=scores,
        best=np.nanargmax(scores, axis=1),
        confidence=ranked[:, -1],
        margin=lead,
    )


NOTEBOOK_GATE: Mapping[str, Any] = {"stored": None, "centre": "target", "over_layers": "mean"}
"""Options of `identify` that give the released notebooks' gate: the mean cosine with the target
centroids over all captured layers."""


def _centres(bank: Bank, centre: Centre) -> np.ndarray:
    """(T, 1 or 2, L, d); nan for a centroid that is missing."""
    if centre == "nearest":
        return bank.centroids
    if centre != "task":
        return bank.centroids[:, [CLASSES.index(centre)]]
    counts = np.where(bank.counts >= bank.least, bank.counts, 0)[:, :, None, None]
    with np.errstate(invalid="ignore"):
        whole = np.where(counts > 0, counts * bank.centroids, 0).sum(1) / counts.sum(1)
    return whole[:, None]


def potential(
    states: np.ndarray, bank: Bank, task: np.ndarray, *, epsilon: float = EPSILON
) -> np.ndarray:
    """(N, L) Pot = |h - c_target| / (|h - c_refusal| + epsilon) for each row's task number."""
    target, refusal = (_lengths(states - bank.centroids[task, c]) for c in (0, 1))
    return target / (refusal + epsilon)


def alignment(states: np.ndarray, bank: Bank, task: np.ndarray, kind: str) -> np.ndarray:
    """(N, L) in [0, 1]: how close a state is to its task's target centroid.

    The published text gives no formula. "distance": d_refusal / (d_target + d_refusal), 1 at the
    target's centroid and 0 at the refusal's. "cosine": (1 + cos(h, c_target)) / 2. "none": 0, the
    paper's ablation without alignment.
    """
    if kind == "none":
        return np.zeros(states.shape[:2])
    if kind == "cosine":
        return (1 + _cosine(states, bank.centroids[task, 0])) / 2
    target, refusal = (_lengths(states - bank.centroids[task, c]) for c in (0, 1))
    both = target + refusal
    return np.divide(refusal, both, out=np.zeros_like(both), where=both > 0)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=-1)


def _root_mean_square(offsets: np.ndarray) -> np.ndarray:
    """(n, L, d) offsets to (L,) the root of their mean squared length."""
    return np.sqrt((offsets**2).sum(-1).mean(0))


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Over the last axis; 0 with a vector of length zero."""
    lengths = _lengths(a) * _lengths(b)
    product = (a * b).sum(-1)
    return np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)
