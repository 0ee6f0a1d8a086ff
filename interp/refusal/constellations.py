"""Task constellations: the mean states of each task's answered and refused prompts in every layer.

SafeConstellations (Maskey et al., arXiv 2508.11290; code Sakonii/SafeConstellations) stores for
every task the mean trajectory of answered ("target") and of refused prompts, identifies the task of
a new prompt by them, and moves the prompt from the refused towards the answered mean. This module
has the geometry, on arrays; `interp.refusal.task_steering` applies it to a model. Formulas are the
published ones. If the released notebooks compute something else, that is a named option.
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
from interp.core.schema import Brief
from interp.plots.tables import Tabled
from interp.refusal.trajectories import CLASSES, Reading, Trajectories

EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class Bank(Tabled):
    """The constellations of T tasks.

    Attributes:
        tasks: names of the tasks.
        layers: L layer numbers.
        centroids: (T, 2, L, d) means of the target and of the refused rows; nan for a class with
            fewer than `least` rows.
        spread: (T, 2, L) root mean square distance of a class's rows from their centroid.
        cross: (T, L) mean distance between a target and a refused row.
        counts: (T, 2) number of rows.
        least: the least number of rows of a class.
        rows: ids of the rows that it was made of. None of them may be evaluated.
        prompts: hashes of their prompts, if known. None of these may be evaluated.
        reading: how the states were read.
        notices: missing or meaningless parts, in words.
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
        """(T,) bool: tasks with both classes."""
        return np.array(self.counts >= self.least).min(axis=1)

    @property
    def vectors(self) -> np.ndarray:
        """(T, L, d) v = target - refusal centroid, towards compliance; nan if one is missing."""
        return self.centroids[:, 0] - self.centroids[:, 1]

    @property
    def hash(self) -> str:
        """A hash of the numbers and of how they were read."""
        facts = [self.tasks, self.layers, self.counts.tolist(), sorted(self.rows)]
        return content_key([*facts, str(self.reading), self.centroids.tobytes().hex()])

    def accept(self, trajectories: Trajectories) -> None:
        """Refuse trajectories that cannot be evaluated with this bank.

        Raises:
            InterpError: rows or prompts that the bank was made of, states that were read in another
                way, or other layers.
        """
        asked = "trajectories for a bank"
        if self.reading != trajectories.reading:
            found = f"read as {trajectories.reading}, the bank as {self.reading}"
            raise InterpError(asked, found, "read both in the same way")
        for what in ("rows", "prompts"):
            if shared := getattr(self, what) & set(getattr(trajectories, what)):
                raise InterpError(
                    f"evaluating on a bank's own {what}",
                    f"{len(shared)} of {len(trajectories)} {what} are in the bank, such as "
                    f"{min(shared)!r}",
                    "split the rows first with Trajectories.split",
                )
        if trajectories.layers != self.layers:
            raise InterpError(asked, "they have other layers", "read the same layers")

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
    """Compute the centroids of every task's answered and refused rows.

    Rows of class "other" are ignored. `notices` lists classes with fewer than `least` rows, which
    have no centroid; layers with equal states in all rows (a template's last token before any
    attention); and a bank with a single task, which cannot identify tasks.

    Args:
        trajectories: the rows.
        least: the least number of rows of a class.
        tasks: the tasks used; all by default.

    Raises:
        InterpError: no rows, or least below 1.
    """
    if not len(trajectories) or least < 1:
        asked = f"a bank of {len(trajectories)} rows"
        raise InterpError(asked, f"least={least}", "give rows and a least above 0")
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
                spread[t, c] = np.sqrt(((group - centroids[t, c]) ** 2).sum(-1).mean(0))
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
        yield f"layer {layer} has the same state in every row: its vectors are zero"
    if len(tasks) < 2:
        yield "only one task: the task of a prompt cannot be identified"


def effectiveness(bank: Bank, *, epsilon: float = EPSILON) -> np.ndarray:
    """(T, L) Eff = |v| / (spread_target + spread_refusal + epsilon); nan if a class is missing."""
    return _lengths(bank.vectors) / (bank.spread.sum(1) + epsilon)


def notebook_score(bank: Bank, *, epsilon: float = EPSILON) -> np.ndarray:
    """(T, L) the layer score of the released notebooks, for comparison.

        0.3 |v| / spread + 0.2 |v| + 0.2 cross / |v| + 0.3 |v|

    with the mean spread of the two classes. It is a poor measure of effectiveness: two terms grow
    with the norm of the states, and the third is larger for classes that overlap.
    """
    distance = _lengths(bank.vectors)
    ratios = distance / (bank.spread.mean(1) + epsilon), bank.cross / (distance + epsilon)
    return 0.3 * ratios[0] + 0.2 * distance + 0.2 * ratios[1] + 0.3 * distance


def best_layers(scores: np.ndarray, k: int) -> list[list[int]]:
    """For each row of (..., L) scores, the indices of its k largest, largest first.

    nan scores are omitted, so a row may have fewer than k indices.
    """
    ranked = np.argsort(np.where(np.isnan(scores), math.inf, -scores), axis=-1, kind="stable")
    known = (~np.isnan(scores)).sum(-1)
    return [row[: min(k, n)].tolist() for row, n in zip(ranked, known.tolist(), strict=True)]


Centre = Literal["task", "target", "refusal", "nearest"]
Likeness = Literal["cosine", "softmax"]


@dataclass(frozen=True, kw_only=True)
class Identified(Brief):
    """The identified task of each of N prompts.

    Attributes:
        tasks: names of the bank's tasks.
        scores: (N, T) scores; nan for a task without a centroid.
        best: (N,) number of the task with the largest score.
        confidence: (N,) the largest score.
        margin: (N,) the largest minus the second largest score; nan in a bank with one task.
    """

    tasks: tuple[str, ...]
    scores: np.ndarray
    best: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every prompt's identified task."""
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
    """Identify the task of every trajectory: the one with the most similar constellation.

    A task's score is the cosine between the states and its centroids at its stored layers: the
    largest or the mean over layers. Confidence is the largest score. `NOTEBOOK_GATE` has the
    options of the released notebooks.

    Args:
        states: (N, L, d).
        bank: a bank of the same layers.
        stored: the number of each task's most effective layers used; None for all layers. A task
            that lacks a class uses the union of the other tasks' layers.
        centre: a task's centroid: the mean over rows of both classes ("task"), over one class, or
            the "nearest" of the two centroids.
        over_layers: "max", as published, or "mean".
        likeness: the cosine, or its softmax over tasks.
        temperature: the temperature of the softmax.

    Raises:
        InterpError: states of another shape than the bank's, or no task with a centroid.
    """
    centres = _centres(bank, centre)
    known = ~np.all(np.isnan(centres).any((2, 3)), axis=1)
    if states.shape[1:] != centres.shape[2:] or not known.any():
        raise InterpError(
            f"the tasks of states {states.shape}",
            f"a bank of {int(known.sum())} tasks with a {centre} centroid, {centres.shape[2:]}",
            "read the bank's layers, and make the bank from rows of each task",
        )
    everywhere = list(range(len(bank.layers)))
    chosen = best_layers(effectiveness(bank), stored) if stored else [everywhere] * len(centres)
    union = sorted({layer for layers in chosen for layer in layers}) or everywhere
    scores = np.full((len(states), len(bank.tasks)), math.nan)
    for t in np.flatnonzero(known).tolist():
        at = chosen[t] or union
        present = [one for one in centres[t] if not np.isnan(one).any()]
        cosines = np.max([_cosine(states[:, at], one[at]) for one in present], axis=0)
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
"""The options of `identify` in the released notebooks: the mean cosine with the target centroids
over all layers."""


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
    """(N, L) Pot = |h - c_target| / (|h - c_refusal| + epsilon), with each row's task number."""
    target, refusal = (_lengths(states - bank.centroids[task, c]) for c in (0, 1))
    return target / (refusal + epsilon)


def alignment(states: np.ndarray, bank: Bank, task: np.ndarray, kind: str) -> np.ndarray:
    """(N, L) in [0, 1]: how close a state is to its task's target centroid.

    The paper gives no formula. "distance": d_refusal / (d_target + d_refusal), which is 1 at the
    target centroid and 0 at the refusal centroid. "cosine": (1 + cos(h, c_target)) / 2. "none": 0,
    the paper's ablation without alignment.
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


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine over the last axis; 0 if a vector is zero."""
    lengths = _lengths(a) * _lengths(b)
    product = (a * b).sum(-1)
    return np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)
