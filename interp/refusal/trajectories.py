"""Trajectories: the states of prompts at their last token in every layer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from interp.core.arguments import listed
from interp.core.chat_prompts import PLAIN, ChatFormat, PromptsLike
from interp.core.components import within
from interp.core.errors import InterpError
from interp.core.folds import equal_rows, joined
from interp.core.schema import Brief
from interp.engine.architecture import Norm
from interp.models.chat import plain_prompts
from interp.models.language_model import LanguageModel
from interp.refusal.judging import REFUSALS, JudgedReplies
from interp.steering.candidates import end_states
from interp.steering.runs import run_steered

Class = Literal["target", "refusal", "other"]
"""Answered, refused, or without a verdict (excluded from centroids)."""

CLASSES: tuple[Class, ...] = ("target", "refusal")

Normalise = Literal["rms", "none"]

NORM_INPUT = "ln_in"
"""The site of the released notebooks: the output of every input norm and, as layer n_layers, of the
final norm."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How trajectories were read. A bank accepts only trajectories that were read in the same way.

    Attributes:
        model_hash: the model's hash.
        site: "resid_post" (the hidden state after each layer), another site, or `NORM_INPUT`.
        normalise: "rms" if every state was divided by its root mean square, else "none".
        format: the prompts' chat format.
    """

    model_hash: str
    site: str
    normalise: str
    format: ChatFormat = PLAIN


@dataclass(frozen=True, kw_only=True)
class Trajectories(Brief):
    """The states of N prompts at their last token in L layers.

    Attributes:
        states: (N, L, d) float64.
        scale: (N, L, 1) or (N, L, d) the size in the residual stream of a change by 1 of a state:
            its root mean square if states were divided by it.
        rows: unique ids.
        tasks: the task of every prompt.
        classes: the class of every reply.
        layers: the layer numbers.
        reading: how the states were read.
        prompts: hashes of the prompts, see `ChatPrompts.hashes`; () if unknown.
    """

    states: np.ndarray
    scale: np.ndarray
    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    classes: tuple[Class, ...]
    layers: tuple[int, ...]
    reading: Reading
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.rows), len(self.layers))
        lengths = {len(self.rows), len(self.tasks), len(self.classes), len(set(self.rows))}
        fits = self.states.shape[:2] == shape and len(lengths) == 1
        if not fits or not np.isfinite(self.states).all():
            raise InterpError(
                "trajectories",
                f"states {self.states.shape}, {shape[0]} rows of {len(set(self.rows))} ids, "
                f"{len(self.tasks)} tasks, {len(self.classes)} classes",
                "give finite (rows, layers, d_model) states; a unique id, task and class per row",
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Sequence[int] | np.ndarray) -> Trajectories:
        """Some rows, in the given order."""
        at = [int(i) for i in chosen]
        return replace(
            self,
            states=self.states[at],
            scale=self.scale[at],
            rows=tuple(self.rows[i] for i in at),
            tasks=tuple(self.tasks[i] for i in at),
            classes=tuple(self.classes[i] for i in at),
            prompts=tuple(self.prompts[i] for i in at) if self.prompts else (),
        )

    def split(
        self,
        shares: Sequence[float] = (0.5, 0.2, 0.3),
        *,
        bases: Sequence[str] | None = None,
        seed: int = 0,
    ) -> list[Trajectories]:
        """Split into disjoint parts: for the bank, for calibrating the gate, and for evaluation.

        Rows of one base text (by default every row has its own) and rows with equal states stay
        together. Within every task and class the base texts are assigned by the shares.

        Raises:
            InterpError: shares that do not sum to 1, or not one base per row.
        """
        names = listed(self.rows if bases is None else bases)
        if abs(sum(shares) - 1) > 1e-9 or len(names) != len(self) or min(shares) <= 0:
            raise InterpError(
                f"splitting by {shares}",
                f"they sum to {sum(shares):g}, with {len(names)} bases for {len(self)} rows",
                "give positive shares that sum to 1, and one base per row",
            )
        group = joined(names, equal_rows(torch.from_numpy(self.states).movedim(1, 0))).tolist()
        names = [names[group.index(number)] for number in group]
        strata: dict[tuple[str, str], list[str]] = {}
        first = {name: names.index(name) for name in dict.fromkeys(names)}
        for name, i in first.items():
            strata.setdefault((self.tasks[i], self.classes[i]), []).append(name)
        rng, ends, part = np.random.default_rng(seed), np.cumsum(shares)[:-1], dict[str, int]()
        for members in strata.values():
            quantiles = (np.arange(len(members)) + rng.random()) / len(members)
            numbers = np.searchsorted(ends, quantiles, side="right").tolist()
            part |= zip(rng.permutation(members).tolist(), numbers, strict=True)
        return [
            self[[i for i, name in enumerate(names) if part[name] == number]]
            for number in range(len(shares))
        ]

    def shuffled(self, *, seed: int = 0) -> Trajectories:
        """The states with classes permuted within each task, as the null of a constellation."""
        rng, classes = np.random.default_rng(seed), np.array(self.classes, dtype=object)
        for task in dict.fromkeys(self.tasks):
            at = [i for i, name in enumerate(self.tasks) if name == task]
            classes[at] = rng.permutation(classes[at])
        return replace(self, classes=tuple(classes.tolist()))


def classes_of(judged: JudgedReplies) -> tuple[Class, ...]:
    """The class of every reply. Loops, truncated texts and judge errors are "other"."""
    names = {"direct_answer": "target"} | dict.fromkeys(REFUSALS, "refusal")
    return tuple(names.get(label, "other") for label in judged.labels)  # type: ignore[arg-type]


def read_trajectories(
    model: LanguageModel,
    prompts: PromptsLike,
    *,
    rows: Sequence[str],
    tasks: Sequence[str],
    classes: Sequence[Class] | None = None,
    site: str = "resid_post",
    normalise: Normalise = "rms",
    layers: Sequence[int] | None = None,
) -> Trajectories:
    """The states of every prompt at its last token, in float64.

    Args:
        model: a model with unchanged weights.
        prompts: the prompts with their chat format. Steering requires the same format.
        rows: one unique id per prompt.
        tasks: the task of every prompt.
        classes: the class of every reply, see `classes_of`; "other" by default.
        site: "resid_post" is the hidden state after a layer. For "ln_in" see `NORM_INPUT`.
        normalise: "rms" divides every state by its root mean square, to make layers and prompts
            comparable. "none" does not; it is required for "ln_in", which is already normalised.
        layers: the layers read; all by default.

    Raises:
        InterpError: not one id, task and class per prompt, a site that does not exist, or "ln_in"
            for a model without input norms.
    """
    given = plain_prompts(model, prompts)
    if normalise not in ("rms", "none") or (site == NORM_INPUT and normalise != "none"):
        raise InterpError(
            f"normalise={normalise!r} at {site}",
            "unknown, or not allowed at this site",
            "use 'rms' or 'none'; at ln_in 'none'",
        )
    if site == NORM_INPUT:
        states, scale, chosen = _through_norms(model, given, layers)
    else:
        chosen = within(layers, model.n_layers, "layer", model.name)
        if site in ("resid_pre", "resid_mid", "resid_post"):
            found = run_steered(model, given, layers=chosen, site=site).states
            assert found is not None
            states = found.double().numpy()
        else:
            states = end_states(model, given, site=site, layers=chosen)[:, 0].numpy()
        scale = np.ones((*states.shape[:2], 1))
    if normalise == "rms":
        scale = np.sqrt((states**2).mean(-1, keepdims=True))
        states = np.divide(states, scale, out=np.zeros_like(states), where=scale > 0)
    return Trajectories(
        states=states,
        scale=scale,
        rows=tuple(listed(rows)),
        tasks=tuple(listed(tasks)),
        classes=("other",) * len(given) if classes is None else tuple(listed(classes)),
        layers=tuple(chosen),
        reading=Reading(model_hash=model.hash, site=site, normalise=normalise, format=given.format),
        prompts=given.hashes,
    )


def _through_norms(
    model: LanguageModel, prompts: PromptsLike, layers: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(states, scale, layers) after every input norm; scale times a shift is one of the stream."""
    decoder = model.require_decoder("reading states after norms")
    norms: list[Norm | None] = [*(block.ln1 for block in decoder.blocks), decoder.ln_final]
    chosen = within(layers, len(norms), "norm", model.name)
    if any(norms[layer] is None for layer in chosen):
        raise InterpError(f"input norms of {model.name}", "it has none", "read resid_post")
    before = end_states(model, prompts, site="resid_pre")[:, 0]
    after = end_states(model, prompts, site="resid_post", layers=[model.n_layers - 1])[:, 0]
    stream = torch.cat([before, after], 1)
    states, scales = [], []
    for layer in chosen:
        norm, x = norms[layer], stream[:, layer]
        assert norm is not None
        gain = norm.weight.double().cpu()
        bias = None if norm.bias is None else norm.bias.double().cpu()
        states.append(replace(norm, weight=gain, bias=bias)(x))
        centred = x - x.mean(-1, keepdim=True) if norm.centred else x
        scale = (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
        scales.append(torch.where(gain.abs() > 1e-6, scale / gain, 0.0))
    return torch.stack(states, 1).numpy(), torch.stack(scales, 1).numpy(), chosen
