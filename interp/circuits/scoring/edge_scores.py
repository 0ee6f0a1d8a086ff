"""`EdgeScores`: how much each edge matters, with the protocol behind the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from interp.core.errors import InterpError
from interp.core.records import Provenance, Record
from interp.engine.edges.graph import Graph

FORMAT = 1
LARGE_GAP = 0.1
"""A completeness gap beyond this, as a fraction of the clean-corrupted gap, is warned of."""
_ARRAYS = ("signed", "absolute", "stderr", "clean", "corrupted", "per_prompt")


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What a measurement took: passes in all, and the batches they were made in.

    A pass from some layer on counts as one. `rebuilt` forwards were repeated during a backward
    pass, layer by layer, because a graph did not fit the budget.
    """

    forwards: int
    backwards: int
    batches: int
    rebuilt: int = 0


@dataclass(frozen=True, kw_only=True)
class RankedEdge:
    """One edge of a ranking."""

    label: str
    value: float
    stderr: float
    rank: int
    of: int


@dataclass(frozen=True, kw_only=True)
class EdgeScores(Record):
    """Estimated effects of edges on a task, as fractions of the clean-corrupted gap.

    signed = mean over prompts of (metric gained) / mean over prompts of (clean - corrupted), the
    metric gained being clean - patched (noise) or patched - corrupted (denoise): positive supports
    the behaviour, 1 is the whole gap. The unit "share" is that of information-flow routes.

    Attributes:
        graph: writers and readers.
        signed: (writers, readers) effects; 0 where there is no edge.
        absolute: (writers, readers) mean over prompts of |metric gained|, over the mean gap.
        stderr: (writers, readers) standard error of `signed` (delta method); nan for one prompt.
        per_prompt: (n, writers, readers) metric gained, float32, if it was asked for.
        clean: (n,) metric of the clean runs.
        corrupted: (n,) metric of the corrupted runs, under resample ablation of those in their
            place; nan where they were not needed.
        method: the method's name.
        direction: "noise" or "denoise".
        ablation: what edges carry instead: see `interp.circuits.trials.removed_edges`; "none" for
            shares.
        steps: points of the integration rule.
        rule: the integration rule's name, "" for one point.
        completeness_gap: what the estimate leaves unexplained, as a fraction of the gap. Along
            the inputs: sum over v of s(input->v) minus the exact difference between the two ends
            of the path. EAP-IG-activations: the largest over nodes n of the absolute difference
            between the sum over v of s(n->v) and the exact effect of patching n. Otherwise nan.
        passes: forward and backward passes.
        metric: the metric's name.
        metric_unit: its unit.
        provenance: where the numbers come from.
        unit: "gap" or "share".
        notes: conventions that bear on these numbers, in words.
    """

    graph: Graph
    signed: np.ndarray
    absolute: np.ndarray
    stderr: np.ndarray
    per_prompt: np.ndarray | None
    clean: np.ndarray
    corrupted: np.ndarray
    method: str
    direction: str
    ablation: str
    steps: int
    rule: str
    completeness_gap: float
    passes: Passes
    metric: str
    metric_unit: str
    provenance: Provenance
    unit: str = "gap"
    notes: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        shapes = {self.signed.shape, self.absolute.shape, self.stderr.shape}
        if shapes != {self.graph.shape}:
            raise InterpError(
                "an EdgeScores", f"arrays of {shapes}", f"the graph's is {self.graph.shape}"
            )

    def __repr__(self) -> str:
        return f"EdgeScores({self.protocol})"

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.clean)

    @property
    def gap(self) -> float:
        """Mean clean minus mean corrupted metric."""
        return float((self.clean - self.corrupted).mean())

    @property
    def protocol(self) -> str:
        """What the numbers are, in one line."""
        rule = f", {self.rule} rule with {self.steps} points" if self.rule else ""
        what = (
            f"{self.metric} clean {self.clean.mean():.3f}, corrupted {self.corrupted.mean():.3f}"
            if self.unit == "gap"
            else "shares of each reader's input"
        )
        left = (
            ""
            if math.isnan(self.completeness_gap)
            else f", completeness gap {self.completeness_gap:+.2%}"
        )
        left += f" (warning: {self.warning})" if self.warning else ""
        return (
            f"{self.method}{rule}, {self.direction}, {self.ablation} ablation, "
            f"{self.graph.n_edges} edges, n={self.n}, {what}{left}, "
            f"{self.passes.forwards} forward and {self.passes.backwards} backward passes "
            f"in {self.passes.batches} batches" + "".join(f"; {note}" for note in self.notes)
        )

    @property
    def warning(self) -> str:
        """Said where the completeness gap is large; "" where it is not."""
        if not abs(self.completeness_gap) > LARGE_GAP:  # nan too
            return ""
        return (
            f"the scores miss the exact difference by {abs(self.completeness_gap):.0%} of the gap "
            "and may rank edges wrongly; take more steps, or check them with method='exact'"
        )

    @cached_property
    def outgoing(self) -> np.ndarray:
        """(writers,) signed scores summed over each writer's edges: its node's score."""
        return self.signed.sum(1)

    def value(self, label: str) -> float:
        """The signed score of an edge such as L3H4->L5KV1.k."""
        return float(self.signed[self.graph.edge(label)])

    def top(self, k: int = 10, *, by: str = "value") -> list[RankedEdge]:
        """The k strongest edges: largest value; largest |value| or mean |effect| on request.

        Args:
            k: how many.
            by: "value" or "signed", "absolute" (|signed|) or "mean_absolute".

        Raises:
            InterpError: another ranking.
        """
        ranks = {
            "value": self.signed,
            "signed": self.signed,
            "absolute": np.abs(self.signed),
            "mean_absolute": self.absolute,
        }
        if by not in ranks:
            raise InterpError(f"edges by {by!r}", "no such ranking", f"choose among {list(ranks)}")
        places = np.argwhere(self.graph.allowed)
        strength = ranks[by][self.graph.allowed]
        found = []
        for rank, place in enumerate(np.argsort(-strength, kind="stable")[:k].tolist(), 1):
            writer, reader = (int(i) for i in places[place])
            found.append(
                RankedEdge(
                    label=self.graph.label(writer, reader),
                    value=float(self.signed[writer, reader]),
                    stderr=float(self.stderr[writer, reader]),
                    rank=rank,
                    of=len(places),
                )
            )
        return found

    def to_native(self) -> EdgeScores:
        """Scores of the graph with one reader per key/value head: the sums over its copies.

        Raises:
            InterpError: per-prompt scores were not kept; standard errors need them.
        """
        if not self.graph.expand_kv:
            return self
        values = self._kept("scores per key/value head")
        native = self.graph.native
        summed = np.zeros((self.n, *native.shape), dtype=values.dtype)
        for copy, original in enumerate(self.graph.copies):
            summed[:, :, original] += values[:, :, copy]
        return replace(self, graph=native, per_prompt=summed, **_statistics(summed, self._gaps()))

    def resampled(self, rng: np.random.Generator) -> EdgeScores:
        """The same scores over prompts drawn with replacement, for stability under resampling.

        Raises:
            InterpError: per-prompt scores were not kept.
        """
        values = self._kept("resampling prompts")
        drawn = rng.integers(self.n, size=self.n)
        picked = replace(
            self, per_prompt=values[drawn], clean=self.clean[drawn], corrupted=self.corrupted[drawn]
        )
        return replace(picked, **_statistics(values[drawn], picked._gaps()))

    def _gaps(self) -> np.ndarray:
        return self.clean - self.corrupted if self.unit == "gap" else np.ones(self.n)

    def _kept(self, what: str) -> np.ndarray:
        if self.per_prompt is None:
            raise InterpError(what, "per-prompt scores were not kept", "score with per_prompt=True")
        return self.per_prompt

    def to_dataframe(self) -> Any:
        """One row per edge: its ends, layers, signed and mean absolute score, standard error."""
        import pandas as pd

        places = np.argwhere(self.graph.allowed)
        writer, reader = places.T
        return pd.DataFrame(
            {
                "edge": [self.graph.label(int(w), int(r)) for w, r in places],
                "writer": np.array(self.graph.writers)[writer],
                "reader": np.array(self.graph.readers)[reader],
                "writer_layer": self.graph.writer_layer[writer],
                "reader_layer": self.graph.reader_layer[reader],
                "value": self.signed[writer, reader],
                "absolute": self.absolute[writer, reader],
                "stderr": self.stderr[writer, reader],
                "n": self.n,
            }
        )


@dataclass(kw_only=True)
class Tally:
    """Running sums over prompts, from which mean, mean absolute value and error follow."""

    shape: tuple[int, int]
    keep: bool
    totals: dict[str, np.ndarray] = field(init=False)
    gaps: list[np.ndarray] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = ("sum", "absolute", "square", "cross")
        self.totals = {name: np.zeros(self.shape) for name in names}

    def add(self, values: np.ndarray, gaps: np.ndarray) -> None:
        """Take in (prompts, writers, readers) effects and each prompt's gap."""
        self.totals["sum"] += values.sum(0)
        self.totals["absolute"] += np.abs(values).sum(0)
        self.totals["square"] += (values**2).sum(0)
        self.totals["cross"] += np.tensordot(gaps, values, 1)
        self.gaps.append(gaps)
        if self.keep:
            self.kept.append(values.astype(np.float32))

    def result(self) -> dict[str, np.ndarray]:
        """signed, absolute and stderr, relative to the mean gap."""
        gaps = np.concatenate(self.gaps)
        n, gap = len(gaps), gaps.mean()
        signed = self.totals["sum"] / n / gap
        around = (
            self.totals["square"] - 2 * signed * self.totals["cross"] + signed**2 * (gaps**2).sum()
        )
        error = np.full(self.shape, math.nan)
        if n > 1:
            error = np.sqrt(np.maximum(around, 0) / (n - 1) / n) / abs(gap)
        return {
            "signed": signed,
            "absolute": self.totals["absolute"] / n / abs(gap),
            "stderr": error,
        }


def _statistics(values: np.ndarray, gaps: np.ndarray) -> dict[str, np.ndarray]:
    tally = Tally(shape=values.shape[1:], keep=False)
    tally.add(values.astype(np.float64), gaps)
    return tally.result()


def _plain(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else value
