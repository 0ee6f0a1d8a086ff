"""Steering prompts from their task's refused states towards its answered states.

The method of SafeConstellations (arXiv 2508.11290) on a model: read trajectories, identify the
task, choose layers and strengths, and pass the result to `interp.steering.runs` as a `Steering`.
If the released notebooks (Sakonii/SafeConstellations) differ, there is a named option, and
`NOTEBOOK` has them all. Two things they do are not supported: evaluating on the bank's own rows,
and sampling steered rows only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from interp.core.chat_prompts import PromptsLike
from interp.core.errors import InterpError
from interp.core.schema import CheckedSettings
from interp.core.statistics import Estimate, share_estimate
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
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
class TaskSteering(CheckedSettings):
    """The options of the method, stored with every result. The defaults are the published ones.

        lambda^l = strength * (1 - alignment^l) * confidence * depth^l

    at the layers chosen for each prompt. The paper gives no value of `strength` and no formulas for
    alignment and depth.

    Attributes:
        strength: lambda_0.
        threshold: the least confidence, tau. Choose it with `calibrate_gate`.
        tasks: the tasks that may be steered (the benign ones); None for all of the bank.
        identify: options of `interp.refusal.constellations.identify`.
        layers: "potential": the layers with the largest Pot for the prompt. "static": those with
            the task's largest notebook score. Or fixed layer numbers, the paper's ablation.
        n_layers: number of layers steered, K'.
        stored: choose among this number of each task's most effective layers; None for all.
        move: the shift. "unit": lambda v / |v|. "gap": lambda v, a share of the distance between
            the centroids. "offset" (notebooks): m (c_target - h), with m = 0.5, 1 and 1.5 in the
            lower, middle and upper part of the model, for any lambda.
        alignment: "distance", "cosine" or "none", see `interp.refusal.constellations.alignment`.
        depth: "uniform", or "linear" from 1 / L to 1.
        phase: which tokens are shifted: all tokens of the prompt, of the generated text, or both.
        epsilon: the constant in denominators.
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


PUBLISHED = TaskSteering()
NOTEBOOK = TaskSteering(
    identify=NOTEBOOK_GATE, layers="static", stored=None, move="offset", alignment="none"
)
"""The gate, layers and shift of the released notebooks. Their site is "ln_in" without its last
layer. They read without the generation prompt (`chat_prompts(generation_prompt=False)`), and
`Steering` refuses to run such a reading with it."""


@dataclass(frozen=True, kw_only=True)
class Ledger(Tabled):
    """The decision on each of N prompts, with its reason.

    Attributes:
        rows, tasks: ids and true tasks.
        identified: the identified tasks, with confidence and margin.
        skipped: why a prompt is not steered; "" if it is.
        layers, strengths: the steered layers and lambda at each; () if skipped.
        shifts: layer -> (N, d) what is added to the residual stream; 0 for prompts not steered
            there.
        options, bank_hash, reading: the method, the bank and the reading used.
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
        """(N,) bool: prompts that are steered."""
        return np.array([not why for why in self.skipped])

    @property
    def wrong_task(self) -> np.ndarray:
        """(N,) bool: prompts that are steered with the constellation of another task."""
        names = zip(self.tasks, self.identified.names, strict=True)
        return self.steered & np.array([task != name for task, name in names])

    def __str__(self) -> str:
        n, steered = len(self.rows), int(self.steered.sum())
        why = Counter(reason.split(":")[0] for reason in self.skipped if reason)
        shown = "".join(f"; {count} {reason}" for reason, count in why.items())
        text = f"{steered} of {n} steered, {int(self.wrong_task.sum())} by a wrong task{shown}"
        return text if steered else f"not tested, since no prompt was steered: {text}"

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
        """The control: the same prompts and layers, with random shifts of equal length."""
        rng, drawn = np.random.default_rng(seed), {}
        for layer, shift in self.shifts.items():
            noise = rng.normal(size=shift.shape)
            lengths = np.linalg.norm(shift, axis=-1, keepdims=True)
            drawn[layer] = noise * lengths / np.linalg.norm(noise, axis=-1, keepdims=True)
        return replace(self, shifts=drawn)

    def steering(self, model: LanguageModel) -> Steering:
        """The shifts as a `Steering` for these prompts, in this order. Skipped ones are unchanged.

        Raises:
            InterpError: another model than the one that the trajectories were read from.
        """
        if self.reading.model_hash != model.hash:
            found = f"planned for another model than {model.name}"
            raise InterpError("task steering", found, "read the trajectories of this model")
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
    """Decide for each prompt: its task, whether it is steered, the layers, and the shifts.

    Raises:
        InterpError: rows that are in the bank, states that were read in another way, or fixed
            layers that were not read.
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
    for i, at in enumerate(chosen):
        chosen[i] = [] if skipped[i] else [p for p in at if np.any(moves[i, p] != 0)]
        shifts[i, chosen[i]] = (moves * trajectories.scale)[i, chosen[i]]
        if not skipped[i] and not chosen[i]:
            skipped[i] = "no layer to steer: its centroids do not differ"
    used = sorted({p for at in chosen for p in at})
    return Ledger(
        rows=trajectories.rows,
        tasks=trajectories.tasks,
        identified=found,
        skipped=tuple(skipped),
        layers=tuple(tuple(bank.layers[p] for p in at) for at in chosen),
        strengths=tuple(tuple(strengths[i, at].tolist()) for i, at in enumerate(chosen)),
        shifts={bank.layers[p]: shifts[:, p] for p in used},
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
    """The steering of these prompts, and the ledger of the decision on each.

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
        return f"gated out: confidence {confidence:z.3f} below {options.threshold:g}"
    if options.tasks is not None and name not in options.tasks:
        return f"task not to be steered: {name}"
    if not bank.whole[task]:
        short = [CLASSES[c] for c in range(2) if bank.counts[task, c] < bank.least]
        return f"class missing: the bank has too few {' and '.join(short)} rows of {name}"
    return ""


def _chosen_layers(
    states: np.ndarray, bank: Bank, task: np.ndarray, options: TaskSteering
) -> list[list[int]]:
    """For each prompt, the indices in `bank.layers` of the layers to steer."""
    # The output of the final norm is not in the residual stream.
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
        for t, at in enumerate(strong):
            allowed[t, at] = True
        scores = np.where(allowed[task], scores, np.nan)
    return best_layers(scores, options.n_layers)


def _moves(
    states: np.ndarray, bank: Bank, found: Identified, options: TaskSteering
) -> tuple[np.ndarray, np.ndarray]:
    """(N, L, d) shifts of the states, and (N, L) strengths."""
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
class GateCurve(Tabled):
    """The rows that a gate steers at each threshold, on rows that are in no bank.

    Attributes:
        thresholds: (K,) ascending thresholds.
        covered: (K,) benign rows steered with their own task.
        wrong: (K,) benign rows steered with another task's constellation.
        passed: (K,) steered rows that should be refused.
        n_benign: number of benign rows.
        n_harmful: number of rows that should be refused.
    """

    thresholds: np.ndarray
    covered: np.ndarray
    wrong: np.ndarray
    passed: np.ndarray
    n_benign: int
    n_harmful: int

    def choose(self, *, wrong: float = 0.05, passed: float = 0.05) -> float | None:
        """The threshold that covers most rows within both limits (shares); None if none does."""
        fits = (self.wrong <= wrong * self.n_benign) & (self.passed <= passed * self.n_harmful)
        fits &= self.covered > 0
        if not fits.any():
            return None
        return float(self.thresholds[np.where(fits, self.covered, -1).argmax()])

    def at(self, threshold: float) -> dict[str, Estimate]:
        """The rates covered, wrong and passed at a threshold, with Wilson intervals."""
        index = int(np.searchsorted(self.thresholds, threshold))
        table = {"covered": self.covered, "wrong": self.wrong, "passed": self.passed}
        sizes = {"covered": self.n_benign, "wrong": self.n_benign, "passed": self.n_harmful}
        inside = index < len(self.thresholds)
        return {
            name: share_estimate(int(counts[index]) if inside else 0, sizes[name])
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
    """Count the prompts that a gate steers correctly, with a wrong task, or wrongly, by threshold.

    Thresholds are the confidences that occur. Benign rows of tasks that may not be steered are
    included, so steering them counts as a wrong task.

    Args:
        bank: the constellations.
        select: rows that are neither in the bank nor used for evaluation.
        harmful: whether each row should be refused.
        options: the method; its threshold is not used.

    Raises:
        InterpError: rows of the bank, states that were read in another way, or not one mark per
            row.
    """
    bank.accept(select)
    bad = np.array([bool(mark) for mark in harmful])
    if len(bad) != len(select) or not len(bad):
        asked = f"calibrating on {len(select)} rows"
        raise InterpError(asked, f"{len(bad)} marks", "mark every row")
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
