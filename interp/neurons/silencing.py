"""How much GLU neurons lose of their activation when heads are ablated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch

from interp.core.arguments import Positions, listed, marks_of, places_of, reads_arguments, texts_of
from interp.core.components import Component, precedes
from interp.core.errors import InterpError, unknown
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.statistics import Estimate, mean_estimate, ratio, standard_error
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.runs.capture import run_with_cache
from interp.runs.change import Change
from interp.runs.changed_runs import ChangedRuns
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation, mean, random_like, resample, zero
from interp.runs.stored_runs import StoredRuns, keep_runs

HeadAblation = Literal["zero", "mean", "resample"]


@dataclass(frozen=True, kw_only=True)
class ActivationDelta(Tabled):
    """Activations of K neurons before and after an ablation, at one position of each prompt.

    Attributes:
        neurons: labels of the neurons.
        read_at: the position in each prompt at which the neurons are read.
        ablated_at: where each ablation acts: "all", a name, or one position per prompt.
        ablated: what was ablated, with the number of tokens changed and the size of the change.
        before, after: (n, K) activations h_i.
        change, stderr: (K,) mean of before - after over all samples, and its standard error.
            Positive: the ablated components raise the neuron.
        n_active: (K,) number of samples with |before| above the floor.
        silenced: (K,) share of these with |after| below a fraction of |before|; nan without any.
        reached: (K,) neurons downstream of an ablated component; totals omit the others.
        total: mean change over the reached neurons, with its interval over samples.
        total_silenced: mean share of a sample's active neurons that are silenced, over samples
            with active neurons.
        null, null_silenced: these totals compared with random heads of the same layers.
    """

    neurons: tuple[str, ...]
    read_at: tuple[int, ...]
    ablated_at: tuple[Positions | slice, ...]
    ablated: str
    before: np.ndarray
    after: np.ndarray
    change: np.ndarray
    stderr: np.ndarray
    n_active: np.ndarray
    silenced: np.ndarray
    reached: np.ndarray
    total: Estimate
    total_silenced: Estimate | None
    null: Null | None
    null_silenced: Null | None

    def to_dataframe(self) -> Any:
        """One row per neuron."""
        import pandas as pd

        names = ("neurons", "change", "stderr", "n_active", "silenced", "reached")
        table = pd.DataFrame({name.replace("ons", "on"): getattr(self, name) for name in names})
        return table.assign(before=self.before.mean(0), after=self.after.mean(0), n=self.total.n)


@reads_arguments
def activation_delta(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    positions: Positions,
    neurons: Sequence[str],
    heads: Sequence[str] = (),
    *,
    changes: Change | Sequence[Change] = (),
    kind: HeadAblation = "zero",
    positions_of_ablation: Positions = "all",
    fraction: float = 0.1,
    floor: float = 0.0,
    draws: int = 20,
    seed: int = 0,
) -> ActivationDelta:
    """Neuron activations h_i before and after heads are ablated: exact, through all paths.

    Neurons are read at one token of each prompt. By default heads are ablated at all tokens. With
    `positions_of_ablation="read"` they are ablated at the token read only, so that what they moved
    to other tokens remains.

    Args:
        model: any model with site `post`.
        prompts: texts, token ids or a task (its clean prompts).
        positions: one token of each prompt, at which neurons are read; see
            `interp.core.arguments.Positions`.
        neurons: labels such as L26N6475.
        heads: labels such as L17H11. Give these or changes.
        changes: any of `interp.runs.kinds`, with their own positions. They have no null.
        kind: the ablated value: zero; the mean over all tokens of these prompts; or "resample",
            the value on another of these prompts of equal length (the same one for all heads).
        positions_of_ablation: "all", "read", a named position, or one token of each prompt.
        fraction: a neuron is silenced if |h_i| falls below this fraction of its former value.
        floor: only samples with |h_i| above this count as active.
        draws: number of different random sets of as many other heads of the same layers; fewer if
            fewer exist (see `interp.runs.kinds.random_like`).
        seed: seed of the random sets and of "resample".

    Raises:
        InterpError: both or neither of heads and changes, an unknown kind, no prompts, no
            neuron downstream of the ablation, or no other heads for a random set.
    """
    heads, changes = listed(heads), listed(changes)
    if bool(heads) == bool(changes):
        raise InterpError("an ablation", "both or neither are given", "give heads or changes")
    if changes and (kind, positions_of_ablation) != ("zero", "all"):
        raise InterpError(
            f"{kind} at {positions_of_ablation} for changes",
            "each change has its own kind and positions",
            "leave kind and positions_of_ablation out",
        )
    if kind not in get_args(HeadAblation):
        raise unknown("kind", kind, get_args(HeadAblation))
    texts = texts_of(prompts)
    if not texts:
        raise InterpError("reading neurons", "no prompts", "give at least one")
    tokens, marks = [model.tokenize(text) for text in texts], marks_of(prompts)
    at, receivers = places_of(positions, tokens, marks), model.require_parts(neurons, "post")
    where: Positions = positions_of_ablation
    if not isinstance(where, str) or (marks and where not in ("all", "read")):
        where = places_of(where, tokens, marks)
    everywhere = isinstance(where, str) and where == "all"
    senders = model.require_parts(heads, "z") if heads else []
    ablate = _ablations(model, texts, kind, at if where == "read" else where, seed)
    changes = [ablate(str(part)) for part in senders] or changes
    edits = [edit for change in changes for edit in change.edits]
    ablated = [Component(e.layer, e.site, k) for e in edits for k in e.components or (None,)]
    pairs = [
        [precedes(one, part, parallel=model.parallel) for one in ablated] for part in receivers
    ]
    reached: np.ndarray = np.array([any(row) for row in pairs])
    if not reached.any():
        raise InterpError(
            "neurons downstream of an ablation", "all precede it", "choose later neurons"
        )

    def run(changes: Sequence[Change]) -> tuple[np.ndarray, str]:
        layers = {part.layer for part in receivers}
        with intervene(model, changes) as report:
            seen = run_with_cache(model, texts, sites=["post"], layers=layers, positions=at)
        columns = [seen[part.layer, "post"][:, part.index].double() for part in receivers]
        return torch.stack(columns, 1).numpy(), str(report)

    (before, _), (after, report) = run([]), run(changes)
    active = np.abs(before) > floor

    def totals(after: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The change of every sample, the share silenced if any were active, and which were."""
        silent = active & (np.abs(after) < fraction * np.abs(before))
        lit, off = (x[:, reached].sum(1) for x in (active, silent))
        return (before - after)[:, reached].mean(1), off[lit > 0] / lit[lit > 0], silent

    change, shares, silent = totals(after)
    drawn = random_like(model, list(map(str, senders)), draws if senders else 0, seed=seed)
    fast = None
    if kind == "zero" and everywhere and drawn:
        fast = _zeroed_runs(model, texts, at)
    if fast is not None:
        afters = (_without(model, fast, labels, receivers) for labels in drawn)
    else:
        afters = (run([ablate(label) for label in labels])[0] for labels in drawn)
    random = [totals(after) for after in afters]
    return ActivationDelta(
        neurons=tuple(map(str, receivers)),
        read_at=tuple(at),
        ablated_at=tuple(edit.positions for edit in edits),
        ablated=report,
        before=before,
        after=after,
        change=(before - after).mean(0),
        stderr=standard_error(before - after),
        n_active=active.sum(0),
        silenced=ratio(silent.sum(0), active.sum(0)),
        reached=reached,
        total=mean_estimate(torch.from_numpy(change)),
        total_silenced=mean_estimate(torch.from_numpy(shares)) if len(shares) else None,
        null=_null(change, [other[0] for other in random]),
        null_silenced=_null(shares, [other[1] for other in random]),
    )


def _ablations(
    model: LanguageModel, prompts: Sequence[Prompt], kind: HeadAblation, where: Positions, seed: int
) -> Callable[[str], Change]:
    """The ablation of a head by its label, made once."""
    makers = {
        "zero": lambda label: zero(label, positions=where),
        "mean": lambda label: mean(model, label, prompts, positions=where),
        "resample": lambda label: resample(
            model, label, prompts, n=len(prompts), seed=seed, positions=where
        ),
    }
    return cache(makers[kind])


def _zeroed_runs(
    model: LanguageModel, prompts: Sequence[Prompt], positions: Sequence[int]
) -> StoredRuns | None:
    """Stored runs of the prompts up to the token read; None if the model needs hooks."""
    if model.decoder is None or model.active:
        return None
    rows = [model.tokenize(prompt).tokens for prompt in prompts]
    cut = [row[: at % len(row) + 1] for row, at in zip(rows, positions, strict=True)]
    return keep_runs(model, cut, last=1, whole=True)


def _without(
    model: LanguageModel, runs: StoredRuns, heads: Sequence[str], neurons: Sequence[Component]
) -> np.ndarray:
    """(n, K) activations with heads zeroed at all tokens; equals `intervene`, but faster."""
    made = ChangedRuns(runs=runs, change=make_ablation(model, heads))
    seen = made.read(list(dict.fromkeys((part.layer, "post") for part in neurons)))
    columns = [seen[part.layer, "post"][:, 0, part.index].double().cpu() for part in neurons]
    return torch.stack(columns, 1).numpy()


def _null(selected: np.ndarray, random: list[np.ndarray]) -> Null | None:
    if not random or not len(selected):
        return None
    return null_of(float(selected.mean()), np.array([values.mean() for values in random]))
