"""How much heads attend from one token to others, compared with chance and with other tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Positions, listed, marks_of, place_of, places_of, texts_of
from interp.core.components import Component
from interp.core.errors import InterpError, unknown
from interp.core.positions import Mark, Prompt, TokenizedPrompt
from interp.core.prompts import Task
from interp.core.statistics import Estimate, mean_estimate, ratio_of_means, standard_error
from interp.models.batches import Batch
from interp.models.language_model import Hook, LanguageModel
from interp.plots.tables import Tabled
from interp.results.scores import Ranked
from interp.runs.stored_runs import StoredRuns

Reduce = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class AttentionTo(Tabled):
    """How much each head attends from a query to some keys, on every sample.

    Attributes:
        samples: (n, layer, head) attention to the keys, summed (or averaged) over them.
        control: (n, layer, head) the same for as many other positions of the prompt at similar
            distances, averaged over random draws; nan if a prompt has too few other positions.
        uniform: (n, layer) the same if every visible key got equal attention. In a layer with
            local attention only the keys inside its window are visible.
        n_keys: (n,) number of keys of each sample.
        kept: (n,) the prompt number of each sample.
        dropped: number of prompts left out because they have no key.
        widened: number of control positions drawn outside the band of distances.
        reduce: "sum" or "mean" over keys.
    """

    samples: np.ndarray
    control: np.ndarray
    uniform: np.ndarray
    n_keys: np.ndarray
    kept: np.ndarray
    dropped: int
    widened: int
    reduce: Reduce

    def __repr__(self) -> str:
        _, layers, heads = self.samples.shape
        return (
            f"AttentionTo({layers} layers x {heads} heads, {self.reduce} over keys, n={self.n}, "
            f"{self.dropped} without keys, control on {self.n_controlled})"
        )

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @property
    def values(self) -> np.ndarray:
        """(layer, head) mean attention over all samples."""
        return self.samples.mean(0)

    @property
    def stderr(self) -> np.ndarray:
        """(layer, head) standard error of `values`; nan for one sample."""
        return standard_error(self.samples)

    @property
    def chance(self) -> np.ndarray:
        """(layer,) mean of `uniform`."""
        return self.uniform.mean(0)

    @property
    def n_controlled(self) -> int:
        """Samples that have a control."""
        return len(self._paired)

    @property
    def excess(self) -> np.ndarray:
        """(layer, head) mean of attention minus control, over the samples that have one."""
        return self._paired.mean(0) if self.n_controlled else np.full(self.values.shape, math.nan)

    @property
    def excess_stderr(self) -> np.ndarray:
        """(layer, head) standard error of `excess`, samples paired with their own control."""
        return standard_error(self._paired)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval of `values` (`ratio_of_means`): (low, high), infinite for one sample."""
        found = ratio_of_means(self.samples)
        return found.low, found.high

    def excess_interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Interval of `excess`: (low, high), infinite for fewer than two controls."""
        found = ratio_of_means(self._paired, level=level)
        return found.low, found.high

    def estimate(self, label: str) -> Estimate:
        """One head's mean attention with its interval.

        Raises:
            InterpError: no such head.
        """
        part = Component.parse(label)
        _, layers, heads = self.samples.shape
        if part.index is None or part.layer >= layers or part.index >= heads:
            raise InterpError(
                f"attention of {label}",
                f"there are {layers} layers of {heads} heads",
                "give a head's label, such as L0H0",
            )
        return mean_estimate(torch.from_numpy(self.samples[:, part.layer, part.index]))

    def to_dataframe(self) -> Any:
        """One row per head: attention, its interval, chance, control and excess."""
        import pandas as pd

        low, high = self.interval()
        arrays = {
            "value": self.values,
            "stderr": self.stderr,
            "low": low,
            "high": high,
            "chance": np.broadcast_to(self.chance[:, None], low.shape),
            "excess": self.excess,
            "excess_stderr": self.excess_stderr,
        }
        layers, heads = np.indices(low.shape)
        labels = [_label(*cell) for cell in np.ndindex(low.shape)]
        place = {"component": labels, "layer": layers.ravel(), "head": heads.ravel()}
        columns = {name: array.ravel() for name, array in arrays.items()}
        return pd.DataFrame(place | columns | {"n": self.n, "n_controlled": self.n_controlled})

    @property
    def _paired(self) -> np.ndarray:
        found = ~np.isnan(self.control).any((1, 2))
        return self.samples[found] - self.control[found]


def attention_to(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    queries: Positions,
    keys: Sequence[Sequence[int | str]],
    *,
    reduce: Reduce = "sum",
    drop_empty: bool = False,
    draws: int = 16,
    band: float = 2.0,
    sinks: int = 1,
    seed: int = 0,
    runs: StoredRuns | None = None,
) -> AttentionTo:
    """How much each head attends from a query position to some key positions of the prompt.

        density[l, h] = mean over samples of  sum over keys j of  A[l, h][query, j]

    with A the attention after softmax: a share of all attention, 0 to 1. Heads with a sink that is
    no token (GPT-OSS) give the rest to it, which uniform attention leaves out. It is compared with
    uniform attention (keys / (query + 1)), and with the attention to as many other positions of the
    prompt, drawn without replacement, each at 1/band to band times the distance of its key. Only
    the query's row is read, and whole patterns are not stored.

    Lee et al. 2025 (arXiv 2504.14379) choose previous-token heads by this density. Here the mean
    is over all samples (the released notebook, ajyl/self_verification, uses its last batch only),
    and the query itself is never among the keys.

    Args:
        model: a model that offers patterns.
        prompts: texts, token ids or a task (its clean prompts).
        queries: one token of each prompt: see `interp.core.arguments.Positions`.
        keys: for each prompt a list of tokens before the query, written like a query; it may be
            empty.
        reduce: "sum" over the keys, or "mean".
        drop_empty: leave out prompts without a key instead of refusing them.
        draws: number of control sets for each sample.
        band: largest ratio between a control position's distance and its key's distance.
        sinks: number of first positions that are never a control, because many heads attend to
            them by default (Xiao et al. 2023, arXiv 2309.17453).
        seed: seed of the control.
        runs: stored runs of all the prompts in which the patterns are read; every query must be
            among the last tokens that they store.

    Raises:
        InterpError: a query or key outside its prompt, a key at or after its query or given
            twice, prompts without keys (unless dropped), or nothing left.
    """
    model.require_site("pattern")
    if reduce not in ("sum", "mean"):
        raise unknown("reduce", reduce, ("sum", "mean"))
    if draws < 1 or band < 1 or sinks < 0:
        raise InterpError(
            "a control for attention",
            f"draws={draws}, band={band:g}, sinks={sinks}",
            "give at least one draw, a band of at least 1, and no negative sinks",
        )
    given = [model.tokenize(text) for text in texts_of(prompts)]
    rows = [prompt.tokens for prompt in given]
    at, wanted = _checked(given, marks_of(prompts), queries, keys)
    kept = np.array([i for i, mine in enumerate(wanted) if mine], dtype=np.int64)
    empty = len(rows) - len(kept)
    if empty and not drop_empty or not len(kept):
        raise InterpError(
            f"attention on {len(rows)} prompts",
            f"{empty} of them have no key",
            "give every prompt a key, or pass drop_empty=True to leave those out",
        )
    rng = np.random.default_rng(seed)
    drawn = [_control(at[i], wanted[i], rng, draws, band, sinks) for i in kept]
    weights = []
    for i, (control, _) in zip(kept, drawn, strict=True):
        both = np.zeros((at[i] + 1, 2))
        both[wanted[i], 0] = 1.0
        both[:, 1] = control
        weights.append(torch.from_numpy(both / (len(wanted[i]) if reduce == "mean" else 1)))
    if runs is None:
        found = _rows_reduced(model, [rows[i] for i in kept], [at[i] for i in kept], weights)
    else:
        model.refuse_changed("reading kept runs", "the same call without runs=")
        runs.require(rows, max(len(row) - q for row, q in zip(rows, at, strict=True)), "reading")
        found = _kept_reduced(model, runs, kept, at, weights)
    uniform = np.array([_uniform(model, at[i], wanted[i], reduce) for i in kept])
    return AttentionTo(
        samples=found[..., 0],
        control=found[..., 1],
        uniform=uniform,
        n_keys=np.array([len(wanted[i]) for i in kept]),
        kept=kept,
        dropped=empty,
        widened=sum(outside for _, outside in drawn),
        reduce=reduce,
    )


def top_heads(density: AttentionTo, k: int = 10) -> list[Ranked]:
    """The k heads of largest mean attention.

    Raises:
        InterpError: k is not positive.
    """
    if k < 1:
        raise InterpError(f"the top {k} heads", "nothing to show", "ask for at least one")
    values, errors = density.values, density.stderr
    ranked = []
    for rank, place in enumerate(np.argsort(-values, axis=None, kind="stable")[:k].tolist(), 1):
        layer, head = (int(i) for i in np.unravel_index(place, values.shape))
        ranked.append(
            Ranked(
                label=_label(layer, head),
                component=Component(layer, "z", head),
                position=None,
                value=float(values[layer, head]),
                stderr=float(errors[layer, head]),
                rank=rank,
                of=values.size,
            )
        )
    return ranked


def select_heads(
    density: AttentionTo | np.ndarray, *, threshold: float = 0.1, most: int | None = None
) -> list[str]:
    """Labels of the heads whose density is above a threshold, the largest first.

    Args:
        density: a result, or any (layer, head) array, such as its `excess`.
        threshold: mean attention that a head must exceed.
        most: largest number of heads; all by default.

    Raises:
        InterpError: not a (layer, head) array, values that are not numbers, or `most` below 1.
    """
    values = density.values if isinstance(density, AttentionTo) else np.asarray(density)
    if values.ndim != 2 or np.isnan(values).any():
        raise InterpError(
            "selecting heads",
            f"an array of shape {values.shape} with {int(np.isnan(values).sum())} nan",
            "give a (layer, head) array of numbers",
        )
    if most is not None and most < 1:
        raise InterpError(f"at most {most} heads", "nothing to select", "ask for at least one")
    order = np.argsort(-values, axis=None, kind="stable")
    chosen = [place for place in order.tolist() if values.flat[place] > threshold]
    return [_label(*np.unravel_index(place, values.shape)) for place in chosen[:most]]


def _checked(
    prompts: Sequence[TokenizedPrompt],
    marks: Sequence[Mapping[str, Mark]] | None,
    queries: Positions,
    keys: Sequence[Sequence[int | str]],
) -> tuple[list[int], list[list[int]]]:
    at = places_of(queries, prompts, marks)
    if len(prompts) != len(keys):
        raise InterpError(
            "attention from queries to keys",
            f"{len(prompts)} prompts, {len(keys)} lists of keys",
            "give one list of keys per prompt",
        )
    wanted = [
        [place_of(key, prompt, marks[i] if marks else {}, f"prompt {i}") for key in listed(keys[i])]
        for i, prompt in enumerate(prompts)
    ]
    for number, (query, mine) in enumerate(zip(at, wanted, strict=True)):
        if query in mine:
            raise InterpError(
                f"keys {mine} of prompt {number}",
                f"{query} is the query itself",
                "leave the query out: attention to itself is not attention to a previous token",
            )
        if len(set(mine)) < len(mine) or any(not 0 <= j < query for j in mine):
            raise InterpError(
                f"keys {mine} of prompt {number}",
                f"the query is at {query}",
                "give each key once, at a position before the query",
            )
    return at, wanted


def _control(
    query: int, keys: Sequence[int], rng: np.random.Generator, draws: int, band: float, sinks: int
) -> tuple[np.ndarray, int]:
    """Weights over positions 0..query of the average random set, and positions out of band.

    All nan where the prompt has fewer free positions than keys.
    """
    weights = np.zeros(query + 1)
    free = np.setdiff1d(np.arange(min(sinks, query), query), keys)
    if len(free) < len(keys):
        return np.full(query + 1, math.nan), 0
    outside = 0
    for _ in range(draws):
        left = free
        for key in rng.permutation(keys):
            ratio = (query - left) / (query - key)
            near = left[(ratio <= band) & (ratio >= 1 / band)]
            outside += not len(near)
            taken = rng.choice(near if len(near) else left)
            weights[taken] += 1 / draws
            left = left[left != taken]
    return weights, outside


def _rows_reduced(
    model: LanguageModel,
    rows: Sequence[tuple[int, ...]],
    queries: Sequence[int],
    weights: Sequence[Tensor],
) -> np.ndarray:
    """The query's attention times weights over positions: (n, layer, head, weightings)."""
    found = torch.zeros(
        len(rows), model.n_layers, model.n_heads, weights[0].shape[1], dtype=torch.float64
    )

    def reader(layer: int) -> Hook:
        def hook(value: Tensor, batch: Batch) -> Tensor:
            for row, prompt in enumerate(batch.prompts.tolist()):
                query, first = queries[prompt], int(batch.first[row])
                line = value[row, :, batch.column(row, query), first : first + query + 1]
                found[prompt, layer] = line.detach().cpu().double() @ weights[prompt]
            return value

        return hook

    hooks = {(layer, "pattern"): [reader(layer)] for layer in range(model.n_layers)}
    with torch.no_grad():
        for _ in model.run(rows, hooks=hooks):
            pass
    return found.numpy()


def _kept_reduced(
    model: LanguageModel,
    runs: StoredRuns,
    kept: np.ndarray,
    queries: Sequence[int],
    weights: Sequence[Tensor],
) -> np.ndarray:
    """The same for some of the prompts of kept runs."""
    found = []
    for layer in range(model.n_layers):
        patterns = runs.read([(layer, "pattern")])[layer, "pattern"].cpu().double()
        lines = []
        for number, weight in zip(kept, weights, strict=True):
            query = queries[number]
            back = query - len(runs.prompts[number])
            lines.append(patterns[number, back, :, : query + 1] @ weight)
        found.append(torch.stack(lines))
    return torch.stack(found, 1).numpy()


def _uniform(model: LanguageModel, query: int, keys: Sequence[int], reduce: Reduce) -> list[float]:
    """Equal attention to every visible key, per layer."""
    shares = []
    for window in windows(model):
        seen = query + 1 if window is None else min(window, query + 1)
        share = sum(query - j < seen for j in keys) / seen
        shares.append(share / len(keys) if reduce == "mean" else share)
    return shares


def windows(model: LanguageModel) -> list[int | None]:
    """The number of keys that a query sees in each layer; None for all, or if it is not known."""
    if model.decoder is None:
        return [None] * model.n_layers
    return [block.attn.window for block in model.decoder.blocks]


def _label(layer: Any, head: Any) -> str:
    return str(Component(int(layer), "z", int(head)))
