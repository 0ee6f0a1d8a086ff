"""Steering a prompt from its task's refusals towards its answers, with a ledger of every prompt.

The method of SafeConstellations (arXiv 2508.11290) on a model: read trajectories, tell the task,
choose layers and strengths, and hand the result to `interp.steering.runs` as a `Steering`. What the
released notebooks (Sakonii/SafeConstellations) do otherwise is a named option; `NOTEBOOK` has them
together. Not offered is their use of the bank's own rows for evaluation, which is refused, and
their sampling of steered rows only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from interp.core.chat_prompts import PromptsLike
from interp.core.errors import InterpError, unknown
from interp.core.statistics import Estimate, share_estimate
from interp.models.language_model import LanguageModel
from interp.refusal.constellations import (
    EPSILON,
    NOTEBOOK_GATE,
    Bank,
    Identified,
    alignment,
    best_layers,
    effectiveness,
    identify,
    notebook_score,
    potential,
)
from interp.refusal.trajectories import (
    CLASSES,
    NORM_INPUT,
    Reading,
    Trajectories,
    read_trajectories,
)
from interp.steering.edits import AffineEdit, Phase, Steering


@dataclass(frozen=True, kw_only=True)
class TaskSteering:
    """The method's choices, recorded with every result; the defaults are the published ones.

    lambda^l = strength * (1 - alignment^l) * confidence * depth^l, at the layers chosen for each
    prompt. The source gives no value of `strength` and no formula of alignment and depth.

    Attributes:
        strength: lambda_0.
        threshold: least confidence, tau; better chosen by `calibrate_gate`.
        tasks: those that may be steered (the benign ones); None for all of the bank.
        identify: options of `interp.refusal.constellations.identify`.
        layers: "potential": the largest Pot for the prompt. "static": the task's largest notebook
            score. Or fixed layer numbers, the paper's ablation.
        n_layers: how many, K'.
        stored: choose among each task's so many most effective layers; None for all.
        move: "unit": lambda v / |v|. "gap": lambda v, a share of the centroids' distance.
            "offset" (notebooks): m (c_target - h), m = 0.5, 1, 1.5 in the lower, middle and upper
            part of the model, whatever lambda.
        alignment: "distance", "cosine" or "none".
        depth: "uniform", or "linear" from 1 / L to 1.
        phase: in which tokens the constant is added. All of a phase: the prompt's, the text's.
    """

    strength: float = 1.0
    threshold: float = 0.85
    tasks: tuple[str, ...] | None = None
    identify: Mapping[str, Any] = field(default_factory=dict)
    layers: Literal["potential", "static"] | tuple[int, ...] = "potential"
    n_layers: int = 4
    stored: int | None = 5
    move: Literal["unit", "gap", "offset"] = "unit"
    alignment: Literal["distance", "cosine", "none"] = "distance"
    depth: Literal["uniform", "linear"] = "uniform"
    phase: Phase = "both"
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        known = {
            "move": ("unit", "gap", "offset"),
            "alignment": ("distance", "cosine", "none"),
            "depth": ("uniform", "linear"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise unknown(name, str(getattr(self, name)), values)
        if isinstance(self.layers, str) and self.layers not in ("potential", "static"):
            raise unknown("layers", self.layers, ("potential", "static"))


PUBLISHED = TaskSteering()
NOTEBOOK = TaskSteering(
    identify=NOTEBOOK_GATE, layers="static", stored=None, move="offset", alignment="none"
)
"""The released notebooks' gate, layers and vector; their site is "ln_in" without its last layer,
and they leave the generation prompt out when reading (`chat_prompts(generation_prompt=False)`),
which `Steering` then refuses to run with it."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What was decided for each prompt, and why.

    Attributes:
        rows, tasks: ids and true tasks.
        identified: the task each was taken for, with its confidence and margin.
        skipped: why a prompt is left alone; "" where it is steered.
        layers, strengths: the layers changed and lambda at each, () where skipped.
        shifts: layer -> (N, d) what is added to the residual stream, 0 where nothing is.
        options, bank_hash, reading: what it was made with.
    """

    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    identified: Identified
    skipped: tuple[str, ...]
    layers: tuple[tuple[int, ...], ...]
    strengths: tuple[tuple[float, ...], ...]
    shifts: Mapping[int, np.ndarray]
    options: TaskSteering
    bank_hash: str
    reading: Reading

    @property
    def steered(self) -> np.ndarray:
        """(N,) whether each prompt is changed at all."""
        return np.array([not why for why in self.skipped])

    @property
    def wrong_task(self) -> np.ndarray:
        """(N,) steered with the constellation of another task."""
        names = zip(self.tasks, self.identified.names, strict=True)
        return self.steered & np.array([task != name for task, name in names])

    def __str__(self) -> str:
        n, steered = len(self.rows), int(self.steered.sum())
        why = Counter(reason.split(":")[0] for reason in self.skipped if reason)
        shown = "".join(f"; {count} {reason}" for reason, count in why.items())
        text = f"{steered} of {n} steered, {int(self.wrong_task.sum())} by a wrong task{shown}"
        return text if steered else f"not tested, the gate never opened: {text}"

    def to_dataframe(self) -> Any:
        """One row per prompt."""
        import pandas as pd

        found = self.identified
        return pd.DataFrame(
            {
                "row": self.rows, "task": self.tasks, "identified": found.names,
                "confidence": found.confidence, "margin": found.margin, "steered": self.steered,
                "skipped": self.skipped, "layers": self.layers, "strengths": self.strengths,
            }
        )  # fmt: skip

    def random(self, *, seed: int = 0) -> Ledger:
        """The same prompts and layers with random shifts of equal length: the control."""
        rng, drawn = np.random.default_rng(seed), {}
        for layer, shift in self.shifts.items():
            noise = rng.normal(size=shift.shape)
            lengths = np.linalg.norm(shift, axis=-1, keepdims=True)
            drawn[layer] = noise * lengths / np.linalg.norm(noise, axis=-1, keepdims=True)
        return replace(self, shifts=drawn)

    def steering(self, model: LanguageModel) -> Steering:
        """The shifts as a `Steering` for these prompts in this order; skipped ones are left alone.

        Raises:
            InterpError: a model the trajectories were not read from.
        """
        if self.reading.model_hash != model.hash:
            raise InterpError("task steering", f"made for another model than {model.name}", "redo")
        site = "resid_pre" if self.reading.site == NORM_INPUT else self.reading.site
        model.require_site(site)
        return Steering(
            name=f"task steering {self.options.strength:g} ({self.options.move})",
            edits={
                (k, site): AffineEdit(shift=torch.from_numpy(v)) for k, v in self.shifts.items()
            },
            format=self.reading.format,
            model_hash=model.hash,
            phase=self.options.phase,
            gate=torch.from_numpy(self.steered.astype(float)),
        )


def plan_steering(
    trajectories: Trajectories, bank: Bank, options: TaskSteering = PUBLISHED
) -> Ledger:
    """For each prompt: its task, whether the gate opens, the layers, and what to add there.

    Raises:
        InterpError: rows that are in the bank, states read otherwise, or fixed layers not read.
    """
    bank.accept(trajectories)
    states = trajectories.states
    found = identify(states, bank, **options.identify)
    skipped = [
        _why_not(bank, task, sure, options)
        for task, sure in zip(found.best.tolist(), found.confidence.tolist(), strict=True)
    ]
    chosen = _chosen_layers(states, bank, found.best, options)
    moves, strengths = _moves(states, bank, found, options)
    shifts = np.zeros_like(states)
    for i, places in enumerate(chosen):
        chosen[i] = [] if skipped[i] else [p for p in places if np.any(moves[i, p] != 0)]
        shifts[i, chosen[i]] = (moves * trajectories.unit)[i, chosen[i]]
        if not skipped[i] and not chosen[i]:
            skipped[i] = "no layer to steer: its centroids do not differ"
    used = sorted({place for places in chosen for place in places})
    return Ledger(
        rows=trajectories.rows,
        tasks=trajectories.tasks,
        identified=found,
        skipped=tuple(skipped),
        layers=tuple(tuple(bank.layers[p] for p in places) for places in chosen),
        strengths=tuple(tuple(strengths[i, places].tolist()) for i, places in enumerate(chosen)),
        shifts={bank.layers[place]: shifts[:, place] for place in used},
        options=options,
        bank_hash=bank.hash,
        reading=trajectories.reading,
    )


def steer_task(
    model: LanguageModel,
    prompts: PromptsLike,
    bank: Bank,
    *,
    rows: Sequence[str],
    tasks: Sequence[str],
    options: TaskSteering = PUBLISHED,
) -> tuple[Steering, Ledger]:
    """A steering for these prompts, and the ledger of what it does to each.

    Raises:
        InterpError: see `read_trajectories` and `plan_steering`.
    """
    reading = bank.reading
    seen = read_trajectories(
        model,
        prompts,
        rows=rows,
        tasks=tasks,
        site=reading.site,
        normalise=reading.normalise,  # type: ignore[arg-type]
        layers=bank.layers,
    )
    ledger = plan_steering(seen, bank, options)
    return ledger.steering(model), ledger


def _why_not(bank: Bank, task: int, confidence: float, options: TaskSteering) -> str:
    name = bank.tasks[task]
    if confidence < options.threshold:
        return f"gated out: confidence {confidence:.3f} below {options.threshold:g}"
    if options.tasks is not None and name not in options.tasks:
        return f"task not to be steered: {name}"
    if not bank.whole[task]:
        short = [CLASSES[c] for c in range(2) if bank.counts[task, c] < bank.least]
        return f"class missing: the bank has too few {' and '.join(short)} rows of {name}"
    return ""


def _chosen_layers(
    states: np.ndarray, bank: Bank, task: np.ndarray, options: TaskSteering
) -> list[list[int]]:
    """For each prompt the places, in the bank's layers, that are steered."""
    # The final norm is no place in the stream.
    steerable = np.ones(len(bank.layers), dtype=bool)
    if bank.reading.site == NORM_INPUT:
        steerable[-1] = False
    if not isinstance(options.layers, str):
        missing = set(options.layers) - set(bank.layers)
        if missing:
            raise InterpError(f"steering layers {sorted(missing)}", "not read", "read them too")
        return [[bank.layers.index(layer) for layer in options.layers]] * len(states)
    if options.layers == "static":
        scores = notebook_score(bank)[task]
    else:
        scores = potential(states, bank, task, epsilon=options.epsilon)
    scores = np.where(steerable, scores, np.nan)
    if options.stored is not None:
        strong = best_layers(np.where(steerable, effectiveness(bank), np.nan), options.stored)
        allowed = np.zeros((len(bank.tasks), len(bank.layers)), dtype=bool)
        for t, places in enumerate(strong):
            allowed[t, places] = True
        scores = np.where(allowed[task], scores, np.nan)
    return best_layers(scores, options.n_layers)


def _moves(
    states: np.ndarray, bank: Bank, found: Identified, options: TaskSteering
) -> tuple[np.ndarray, np.ndarray]:
    """(N, L, d) what each state would be moved by, and (N, L) its strength."""
    n = len(bank.layers)
    if options.move == "offset":
        depth = np.array(bank.layers) / (max(bank.layers) + 1)
        factor = np.select([depth <= 10 / 32, depth <= 20 / 32], [0.5, 1.0], 1.5)
        offset = bank.centroids[found.best, 0] - states
        return factor[:, None] * offset, np.tile(factor, (len(states), 1))
    depth = np.ones(n) if options.depth == "uniform" else (np.arange(n) + 1) / n
    aligned = alignment(states, bank, found.best, options.alignment)
    strengths = options.strength * (1 - aligned) * found.confidence[:, None] * depth
    vectors = bank.vectors[found.best]
    if options.move == "unit":
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return strengths[..., None] * vectors, strengths


@dataclass(frozen=True, kw_only=True)
class GateCurve:
    """What a gate lets through at each threshold, on rows that are in no bank.

    Attributes:
        thresholds: (K,) rising.
        covered: (K,) benign rows steered by their own task, of `n_benign`.
        wrong: (K,) benign rows steered by another task's constellation.
        passed: (K,) rows that should be refused and are steered, of `n_harmful`.
    """

    thresholds: np.ndarray
    covered: np.ndarray
    wrong: np.ndarray
    passed: np.ndarray
    n_benign: int
    n_harmful: int

    def choose(self, *, wrong: float = 0.05, passed: float = 0.05) -> float | None:
        """The threshold with most rows covered among those within both limits; None if none is."""
        fits = (self.wrong <= wrong * self.n_benign) & (self.passed <= passed * self.n_harmful)
        fits &= self.covered > 0
        if not fits.any():
            return None
        return float(self.thresholds[np.where(fits, self.covered, -1).argmax()])

    def at(self, threshold: float) -> dict[str, Estimate]:
        """Coverage, wrong task and pass-through at a threshold, with Wilson intervals."""
        place = int(np.searchsorted(self.thresholds, threshold))
        table = {"covered": self.covered, "wrong": self.wrong, "passed": self.passed}
        sizes = {"covered": self.n_benign, "wrong": self.n_benign, "passed": self.n_harmful}
        inside = place < len(self.thresholds)
        return {
            name: share_estimate(int(counts[place]) if inside else 0, sizes[name])
            for name, counts in table.items()
        }

    def to_dataframe(self) -> Any:
        """One row per threshold."""
        import pandas as pd

        names = ("thresholds", "covered", "wrong", "passed")
        table = pd.DataFrame({name: getattr(self, name) for name in names})
        return table.assign(n_benign=self.n_benign, n_harmful=self.n_harmful)


def calibrate_gate(
    bank: Bank,
    select: Trajectories,
    *,
    harmful: Sequence[bool],
    options: TaskSteering = PUBLISHED,
) -> GateCurve:
    """How many prompts a gate covers, confuses and wrongly lets through, at every threshold.

    Thresholds are the confidences that occur. Benign rows of tasks that are not to be steered
    count among the benign, so that steering them is a wrong task.

    Args:
        bank: the constellations.
        select: rows neither in the bank nor to be evaluated on.
        harmful: whether each row should be refused.
        options: the method; its threshold is not used.

    Raises:
        InterpError: rows of the bank, states read otherwise, or not one mark per row.
    """
    bank.accept(select)
    bad = np.array([bool(mark) for mark in harmful])
    if len(bad) != len(select) or not len(bad):
        raise InterpError(f"calibrating on {len(select)} rows", f"{len(bad)} marks", "mark each")
    found = identify(select.states, bank, **options.identify)
    open_gate = replace(options, threshold=-np.inf)
    steerable = np.array([not _why_not(bank, t, 1.0, open_gate) for t in found.best.tolist()])
    own = np.array([a == b for a, b in zip(select.tasks, found.names, strict=True)])
    thresholds = np.unique(found.confidence)
    steered = steerable & (found.confidence >= thresholds[:, None])
    return GateCurve(
        thresholds=thresholds,
        covered=(steered & own & ~bad).sum(1),
        wrong=(steered & ~own & ~bad).sum(1),
        passed=(steered & bad).sum(1),
        n_benign=int((~bad).sum()),
        n_harmful=int(bad.sum()),
    )
