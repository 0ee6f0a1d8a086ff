"""`FeatureEffects`: what features do to a task, alone and together, beside random directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Columns, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.nulls import Null, null_of, oriented
from interp.core.prompts import Task
from interp.core.records import Provenance, Record
from interp.core.schema import Count, checked
from interp.core.statistics import Estimate, ratio_estimate
from interp.engine.architecture import Decoder
from interp.features.dictionary import Dictionary
from interp.models.language_model import LanguageModel
from interp.plots.tables import Listing, Tabled
from interp.results.prompt_effects import PromptEffects
from interp.results.provenance import provenance
from interp.runs.pairs import PairedRuns, check_gap, warn_gap

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class RankedFeature:
    """A feature in a ranking, with the 95 % interval of its effect over prompts."""

    label: str
    feature: int
    position: str | None
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureEffects(PromptEffects, Tabled, Record):
    """Effects of features on a task, with the sign and units of `Scores`: positive supports it.

    Attributes:
        effects: (n, features, columns) metric gained by each feature alone.
        together: (n,) metric gained by all of `features` at once.
        error: (n,) metric gained by what no feature of the dictionary carries: its error, and its
            linear skip if it has one.
        site: (n,) metric gained by the whole site: all features of the dictionary and the error.
        clean, corrupted: (n,) metric of both plain runs.
        random: (draws, features, columns) mean over prompts of `effects`, with decoder rows of
            random directions and the same lengths; the activations are the same.
        random_together: (draws,) the same of `together`.
        features: the numbers of the features.
        columns: the positions, if each is measured apart; else ("",).
        layer, written: where the dictionary writes.
        positions: the positions, in words.
        direction: "denoise" or "noise".
        method: name of the method.
        metric, metric_unit: name and unit of the metric.
        unit: "gap" or "metric".
        provenance: origin of the numbers.
    """

    effects: np.ndarray
    together: np.ndarray
    error: np.ndarray
    site: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    random: np.ndarray
    random_together: np.ndarray
    features: tuple[int, ...]
    columns: tuple[str, ...]
    layer: int
    written: str
    positions: str
    direction: str
    method: str
    metric: str
    metric_unit: str
    unit: str
    provenance: Provenance

    strongest_by = "value"

    def __repr__(self) -> str:
        (best,) = self.top(1, by="absolute")
        size = f"{len(self.features)} features" + (
            f" x {len(self.columns)} positions" if len(self.columns) > 1 else ""
        )
        return (
            f"FeatureEffects({self.method}, L{self.layer}.{self.written}, {self.direction}, "
            f"{size}, n={self.n}; strongest {best.label} {best.value:z.3f} [{best.low:z.3f}, "
            f"{best.high:z.3f}]; together {self.of('together')}, error {self.of('error')}, whole "
            f"site {self.of('site')}, {self.unit_words})"
        )

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), (features, columns) each: the 95 % interval over prompts."""
        return self._ratio.low, self._ratio.high

    @reads_arguments
    def of(self, part: str) -> Estimate:
        """The effect of "together", "error" or "site", with its interval."""
        if part not in ("together", "error", "site"):
            raise unknown("part", part, ("together", "error", "site"))
        return ratio_estimate(getattr(self, part), self._gaps)

    @reads_arguments
    def top(self, k: int = 10, *, by: str = "value") -> Listing[RankedFeature]:
        """The k strongest features (and positions), by "value" or "absolute" value."""
        k = checked(Count, k, "the strongest features")
        order = np.argsort(-oriented(self.values, by).ravel(), kind="stable")[:k]
        rows = zip(*np.unravel_index(order, self.values.shape), strict=True)
        low, high = self.interval
        several = self.columns != ("",)
        found = [
            RankedFeature(
                label=f"L{self.layer}F{self.features[i]}" + f" @ {self.columns[c]}" * several,
                feature=self.features[i],
                position=self.columns[c] if several else None,
                value=float(self.values[i, c]),
                low=float(low[i, c]),
                high=float(high[i, c]),
            )
            for i, c in rows
        ]
        return Listing(found, f"effect ({self.unit_words})")

    @reads_arguments
    def null(self, k: int = 1, *, by: str = "absolute") -> Null:
        """The mean of the k strongest features, and of the k strongest of each random dictionary.

        Each random dictionary selects its own, so the selection is part of the comparison.

        Raises:
            InterpError: no draws were made, or k is out of range.
        """
        k, size = checked(Count, k, "the strongest features"), self.values.size
        if k > size:
            raise InterpError(f"a null for the top {k}", f"{size} cells", "give a smaller k")
        scale = self._gaps.mean()
        drawn = self.random.reshape(len(self.random), size) / scale
        own, *others = (
            float(np.sort(oriented(row, by))[-k:].mean()) for row in (self.values.ravel(), *drawn)
        )
        return null_of(own, others)

    @property
    def null_together(self) -> Null:
        """All of `features` together, and as many random directions with the same activations."""
        scale = self._gaps.mean()
        return null_of(self.of("together").mean, self.random_together / scale)

    def to_dataframe(self) -> DataFrame:
        """One row per feature and position, in their order."""
        from pandas import DataFrame

        low, high = (x.ravel() for x in self.interval)
        several = self.columns != ("",)
        rows = {
            "feature": np.repeat([f"L{self.layer}F{i}" for i in self.features], len(self.columns))
        }
        if several:
            rows["position"] = np.tile(self.columns, len(self.features))
        return DataFrame(rows | {"value": self.values.ravel(), "low": low, "high": high})


class StoredSites(Protocol):
    """A run of which some sites are stored."""

    def site(self, layer: int, name: str, /) -> Tensor: ...


def sites_needed(model: LanguageModel, dictionary: Dictionary) -> frozenset[str]:
    """The sites to store of both runs."""
    return frozenset({dictionary.source(model), dictionary.written}) - {"resid_post"}


def moved(
    dictionary: Dictionary,
    model: LanguageModel,
    decoder: Decoder,
    base: StoredSites,
    other: StoredSites,
) -> tuple[Tensor, Tensor]:
    """Changes from one run to the other: f' - f (tokens, features), y' - y (tokens, d_written)."""
    source, layer = dictionary.source(model), dictionary.layer
    before, after = (
        dictionary.encode(dictionary.what_is_read(decoder, run.site(layer, source)))
        for run in (base, other)
    )
    written = [run.site(layer, dictionary.written).flatten(1) for run in (base, other)]
    return after - before, (written[1] - written[0]).to(dictionary.W_dec)


def random_rows(rows: Tensor, draws: int, seed: int) -> list[Tensor]:
    """Decoder rows of random directions with the lengths of `rows`, once for each draw."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows)
        found.append(drawn / drawn.norm(dim=-1, keepdim=True) * rows.norm(dim=-1, keepdim=True))
    return found


def columns_of(
    runs: PairedRuns, positions: Columns, by_position: bool
) -> tuple[list[list[list[int]]], tuple[str, ...], str]:
    """The tokens of each column in each prompt, the columns' names, and the positions in words.

    Raises:
        InterpError: every token apart, of prompts of different lengths, or a position that a prompt
            lacks.
    """
    lengths = [len(prompt) for prompt in runs.base]
    if isinstance(positions, str) and positions == "all":
        if not by_position:
            return [[list(range(n)) for n in lengths]], ("",), "all tokens"
        if len(set(lengths)) > 1:
            raise InterpError(
                "features by every token position",
                f"prompts of {min(lengths)} to {max(lengths)} tokens",
                "give named positions, or prompts of equal length",
            )
        names = tuple(map(str, range(lengths[0])))
        return [[[p]] * len(lengths) for p in range(lengths[0])], names, "each token"
    names, tokens = runs.encoded.columns(positions)
    if by_position:
        return [[[p] for p in column] for column in tokens], names, "each of " + ", ".join(names)
    together = [sorted(set(group)) for group in zip(*tokens, strict=True)]
    return [together], ("",), " and ".join(names)


def masks_of(
    columns: Sequence[Sequence[Sequence[int]]],
    prompts: Sequence[int],
    starts: Sequence[int],
    n: int,
) -> Tensor:
    """(columns, tokens) whether each of n flat tokens is in a column; `starts` of each prompt."""
    found = torch.zeros(len(columns), n, dtype=torch.bool)
    for column, tokens in enumerate(columns):
        for prompt, start in zip(prompts, starts, strict=True):
            found[column, [start + p for p in tokens[prompt]]] = True
    return found


def settled(
    model: LanguageModel,
    task: Task,
    dictionary: Dictionary,
    function: str,
    ends: np.ndarray,
    gained: Mapping[str, np.ndarray],
    **arguments: Any,
) -> dict[str, Any]:
    """The fields of `FeatureEffects` that every measurement fills in the same way.

    `ends` is (2, n), the metric of the base and of the other runs. `gained` is the metric gained on
    the way from the base run, by the name of its field. `arguments` repeat the call.
    """
    direction, unit = arguments["direction"], arguments["unit"]
    clean, corrupted = ends if direction == "noise" else ends[::-1]
    (check_gap if unit == "gap" else warn_gap)(clean, corrupted)
    sign = 1 if direction == "denoise" else -1
    told = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    call = f"effects = interp.features.{function}(model, task, dictionary, {told})"
    return {name: sign * value for name, value in gained.items()} | {
        "clean": clean,
        "corrupted": corrupted,
        "layer": dictionary.layer,
        "written": dictionary.written,
        "direction": direction,
        "method": function.replace("_", " "),
        "metric": task.metric.name,
        "metric_unit": task.metric.unit,
        "unit": unit,
        "provenance": provenance(model, task, call),
    }
