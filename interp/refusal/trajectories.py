"""Trajectories: the states of prompts at their last token, through the layers of a model."""

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
from interp.engine.architecture import Norm
from interp.models.chat import plain_prompts
from interp.models.language_model import LanguageModel
from interp.refusal.judging import REFUSALS, Judged
from interp.steering.candidates import end_states
from interp.steering.runs import run_steered

Class = Literal["target", "refusal", "other"]
"""Answered, refused, or without a verdict (in no centroid)."""

CLASSES: tuple[Class, ...] = ("target", "refusal")

Normalise = Literal["rms", "none"]

NORM_INPUT = "ln_in"
"""The notebooks' site: each input norm's output and, as layer n_layers, the final norm's."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How trajectories were read; a bank refuses those read otherwise.

    site: "resid_post" (the hidden state after each layer), another residual site, or `NORM_INPUT`.
    normalise: "rms" divides each state by its root mean square, "none" leaves it.
    """

    model_hash: str
    site: str
    normalise: str
    format: ChatFormat = PLAIN

    def require(self, other: Reading, what: str) -> None:
        """Refuse states read in another way.

        Raises:
            InterpError: they differ.
        """
        if self != other:
            raise InterpError(what, f"read as {other}, the bank as {self}", "read both alike")


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """The states of N prompts at their last token, through L layers.

    Attributes:
        states: (N, L, d) float64.
        unit: (N, L, 1) or (N, L, d) what one unit of a state is in the residual stream: its root
            mean square where states were divided by it.
        rows: ids, each once.
        tasks: the task each prompt belongs to.
        classes: what became of each.
        layers: their numbers.
        reading: how the states were read.
        prompts: what each prompt is known by, see `ChatPrompts.hashes`; () where that is not known.
    """

    states: np.ndarray
    unit: np.ndarray
    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    classes: tuple[Class, ...]
    layers: tuple[int, ...]
    reading: Reading
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.rows), len(self.layers))
        lengths = {len(self.rows), len(self.tasks), len(self.classes), len(set(self.rows))}
        if (
            self.states.shape[:2] != shape
            or len(lengths) != 1
            or not np.isfinite(self.states).all()
        ):
            raise InterpError(
                "trajectories",
                f"states {self.states.shape}, {shape[0]} rows of {len(set(self.rows))} ids, "
                f"{len(self.tasks)} tasks, {len(self.classes)} classes",
                "give finite (rows, layers, d_model) states, and one id, task and class each",
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Sequence[int] | np.ndarray) -> Trajectories:
        """Some rows, in the order given."""
        at = [int(i) for i in chosen]
        return replace(
            self,
            states=self.states[at],
            unit=self.unit[at],
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
        """Disjoint parts for the bank, for choosing the gate, and for evaluation.

        Rows of one base text (each its own by default) and rows with equal states stay together;
        within each task and class the base texts are dealt out by the shares.

        Raises:
            InterpError: shares that do not add up to 1, or bases not one per row.
        """
        names = listed(self.rows if bases is None else bases)
        if abs(sum(shares) - 1) > 1e-9 or len(names) != len(self) or min(shares) <= 0:
            raise InterpError(f"splitting at {shares}", "not shares of 1", "give them, adding to 1")
        group = joined(names, equal_rows(torch.from_numpy(self.states).movedim(1, 0))).tolist()
        names = [names[group.index(number)] for number in group]
        strata: dict[tuple[str, str], list[str]] = {}
        first = {name: names.index(name) for name in dict.fromkeys(names)}
        for name, i in first.items():
            strata.setdefault((self.tasks[i], self.classes[i]), []).append(name)
        rng, ends, part = np.random.default_rng(seed), np.cumsum(shares)[:-1], dict[str, int]()
        for members in strata.values():
            places = (np.arange(len(members)) + rng.random()) / len(members)
            numbers = np.searchsorted(ends, places, side="right").tolist()
            part |= zip(rng.permutation(members).tolist(), numbers, strict=True)
        return [
            self[[i for i, name in enumerate(names) if part[name] == number]]
            for number in range(len(shares))
        ]

    def shuffled(self, *, seed: int = 0) -> Trajectories:
        """The same states with classes permuted inside each task: the null of any constellation."""
        rng, classes = np.random.default_rng(seed), np.array(self.classes, dtype=object)
        for task in dict.fromkeys(self.tasks):
            at = [i for i, name in enumerate(self.tasks) if name == task]
            classes[at] = rng.permutation(classes[at])
        return replace(self, classes=tuple(classes.tolist()))


def classes_of(judged: Judged) -> tuple[Class, ...]:
    """Answered, refused, or neither: loops, cut texts and judge errors enter no centroid."""
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
        model: a model whose weights are as loaded.
        prompts: with their chat format, which steering will ask for again.
        rows: an id for each.
        tasks: the task each belongs to.
        classes: what became of each, see `classes_of`; "other" by default.
        site: resid_post is the hidden state after a layer. "ln_in": see `NORM_INPUT`.
        normalise: "rms" divides each state by its root mean square, so that layers and prompts
            compare; "none" leaves it. "ln_in" is normalised already: "none".
        layers: which; all by default.

    Raises:
        InterpError: not one id and task per prompt, a site that does not exist, or a model
            without input norms for "ln_in".
    """
    given = plain_prompts(model, prompts)
    if normalise not in ("rms", "none") or (site == NORM_INPUT and normalise != "none"):
        raise InterpError(f"normalise={normalise!r} at {site}", "no such", "'rms', 'none' (ln_in)")
    if site == NORM_INPUT:
        states, unit, chosen = _through_norms(model, given, layers)
    else:
        chosen = within(layers, model.n_layers, "layer", model.name)
        if site in ("resid_pre", "resid_mid", "resid_post"):
            found = run_steered(model, given, layers=chosen, site=site).states
            assert found is not None
            states = found.double().numpy()
        else:
            states = end_states(model, given, site=site, layers=chosen)[:, 0].numpy()
        unit = np.ones((*states.shape[:2], 1))
    if normalise == "rms":
        unit = np.sqrt((states**2).mean(-1, keepdims=True))
        states = np.divide(states, unit, out=np.zeros_like(states), where=unit > 0)
    return Trajectories(
        states=states,
        unit=unit,
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
    """(states, unit, layers) behind each input norm; unit moves the stream, at the norm's scale."""
    decoder = model.require_decoder("reading behind norms")
    norms: list[Norm | None] = [*(block.ln1 for block in decoder.blocks), decoder.ln_final]
    chosen = within(layers, len(norms), "norm", model.name)
    if any(norms[layer] is None for layer in chosen):
        raise InterpError(f"input norms of {model.name}", "it has none", "read resid_post")
    before = end_states(model, prompts, site="resid_pre")[:, 0]
    after = end_states(model, prompts, site="resid_post", layers=[model.n_layers - 1])[:, 0]
    stream = torch.cat([before, after], 1)
    states, units = [], []
    for layer in chosen:
        norm, x = norms[layer], stream[:, layer]
        assert norm is not None
        gain = norm.weight.double().cpu()
        bias = None if norm.bias is None else norm.bias.double().cpu()
        states.append(replace(norm, weight=gain, bias=bias)(x))
        centred = x - x.mean(-1, keepdim=True) if norm.centred else x
        scale = (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
        units.append(torch.where(gain.abs() > 1e-6, scale / gain, 0.0))
    return torch.stack(states, 1).numpy(), torch.stack(units, 1).numpy(), chosen
