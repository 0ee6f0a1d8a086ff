"""`EdgeScores`: the effect of every edge, and how it was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from interp.core.errors import InterpError
from interp.core.records import Provenance, Record
from interp.engine.edges.graph import Graph
from interp.plots.tables import Tabled

LARGE_GAP = 0.1
"""Completeness gaps above this fraction of the clean-corrupted gap give a warning."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The number of passes that a measurement made.

    Attributes:
        forwards: forward passes; a pass that starts at a later layer counts as one.
        backwards: backward passes.
        batches: batches of prompts.
        rebuilt: forward passes repeated layer by layer during a backward pass, because the
            autograd graph did not fit the budget.
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
class EdgeScores(Tabled, Record):
    """Estimated effects of edges on a task, as fractions of the clean-corrupted gap.

    signed = mean over prompts of (metric gained) / mean over prompts of (clean - corrupted). The
    metric gained is clean - patched (noise) or patched - corrupted (denoise). Positive supports the
    behaviour; 1 is the whole gap. Information-flow routes have the unit "share" instead.

    Attributes:
        graph: the graph.
        signed: (writers, readers) effects; 0 without an edge.
        absolute: (writers, readers) mean over prompts of |metric gained|, over the mean gap.
        stderr: (writers, readers) standard error of `signed` (delta method); nan for one prompt.
        per_prompt: (n, writers, readers) metric gained, float32; None unless requested.
        clean: (n,) metric of the clean runs.
        corrupted: (n,) metric of the corrupted runs, or of the runs that replace them in resample
            ablation; nan if they were not run.
        method: the method's name.
        direction: "noise" or "denoise".
        ablation: what removed edges carry, see `interp.circuits.trials.options`; "none" for
            shares.
        steps: points of the integration rule.
        rule: the integration rule; "" for one point.
        completeness_gap: the error of the estimate, as a fraction of the gap. Along the inputs:
            the sum over v of s(input->v), minus the exact difference between the two ends of the
            path. For EAP-IG-activations: the largest absolute difference, over nodes n, between
            the sum over v of s(n->v) and the exact effect of patching n. Otherwise nan.
        passes: forward and backward passes.
        metric: the metric's name.
        metric_unit: its unit.
        provenance: model, task and call.
        unit: "gap" or "share".
        notes: conventions that affect these numbers, in words.
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
        """What was measured, in one line."""
        rule = f", {self.rule} rule with {self.steps} points" if self.rule else ""
        what = (
            f"{self.metric} clean {self.clean.mean():z.3f}, corrupted {self.corrupted.mean():z.3f}"
            if self.unit == "gap"
            else "shares of each reader's input"
        )
        gap = (
            ""
            if math.isnan(self.completeness_gap)
            else f", completeness gap {self.completeness_gap:+.2%}"
        )
        gap += f" (warning: {self.warning})" if self.warning else ""
        return (
            f"{self.method}{rule}, {self.direction}, {self.ablation} ablation, "
            f"{self.graph.n_edges} edges, n={self.n}, {what}{gap}, "
            f"{self.passes.forwards} forward and {self.passes.backwards} backward passes "
            f"in {self.passes.batches} batches" + "".join(f"; {note}" for note in self.notes)
        )

    @property
    def warning(self) -> str:
        """A warning if the completeness gap is large; else ""."""
        if not abs(self.completeness_gap) > LARGE_GAP:  # nan too
            return ""
        return (
            f"the scores differ from the exact effect by {abs(self.completeness_gap):.0%} of the "
            "gap and may rank edges wrongly; use more steps, or check with method='exact'"
        )

    @cached_property
    def outgoing(self) -> np.ndarray:
        """(writers,) node scores: the signed scores summed over each writer's edges."""
        return self.signed.sum(1)

    def value(self, label: str) -> float:
        """The signed score of an edge such as L3H4->L5KV1.k."""
        return float(self.signed[self.graph.edge(label)])

    def top(self, k: int = 10, *, by: str = "value") -> list[RankedEdge]:
        """The k strongest edges.

        Args:
            k: the number of edges.
            by: the ranking: "value" (the same as "signed"), "absolute" (|signed|) or
                "mean_absolute".

        Raises:
            InterpError: an unknown ranking.
        """
        ranks = {
            "value": self.signed,
            "signed": self.signed,
            "absolute": np.abs(self.signed),
            "mean_absolute": self.absolute,
        }
        if by not in ranks:
            raise InterpError(f"edges by {by!r}", "no such ranking", f"choose among {list(ranks)}")
        writers, readers = np.nonzero(self.graph.allowed)
        order = np.argsort(-ranks[by][writers, readers], kind="stable")[:k]
        edges = zip(writers[order].tolist(), readers[order].tolist(), strict=True)
        return [
            RankedEdge(
                label=self.graph.label(*edge),
                value=float(self.signed[edge]),
                stderr=float(self.stderr[edge]),
                rank=rank,
                of=len(writers),
            )
            for rank, edge in enumerate(edges, 1)
        ]

    def to_native(self) -> EdgeScores:
        """The scores on the graph with one key and value reader per key/value head.

        An edge's score is the sum over its copies.

        Raises:
            InterpError: per-prompt scores were not kept, which the standard errors need.
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
        """The scores over prompts drawn with replacement.

        Raises:
            InterpError: per-prompt scores were not kept.
        """
        values = self._kept("resampling prompts")
        drawn = rng.integers(self.n, size=self.n)
        picked = replace(
            self, per_prompt=values[drawn], clean=self.clean[drawn], corrupted=self.corrupted[drawn]
        )
        return replace(picked, **_statistics(values[drawn], picked._gaps()))

    strongest_by = "value"

    def _gaps(self) -> np.ndarray:
        return self.clean - self.corrupted if self.unit == "gap" else np.ones(self.n)

    def _kept(self, what: str) -> np.ndarray:
        if self.per_prompt is None:
            raise InterpError(what, "per-prompt scores were not kept", "score with per_prompt=True")
        return self.per_prompt

    def to_dataframe(self) -> Any:
        """One row per edge: its ends, layers, signed and mean absolute score, standard error."""
        import pandas as pd

        edges = np.argwhere(self.graph.allowed)
        writer, reader = edges.T
        return pd.DataFrame(
            {
                "edge": [self.graph.label(int(w), int(r)) for w, r in edges],
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
class RunningSums:
    """Running sums over prompts, for the mean, the mean absolute value and the standard error."""

    shape: tuple[int, int]
    keep: bool
    totals: dict[str, np.ndarray] = field(init=False)
    gaps: list[np.ndarray] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = ("sum", "absolute", "square", "cross")
        self.totals = {name: np.zeros(self.shape) for name in names}

    def add(self, values: np.ndarray, gaps: np.ndarray) -> None:
        """Add (prompts, writers, readers) effects and each prompt's gap."""
        self.totals["sum"] += values.sum(0)
        self.totals["absolute"] += np.abs(values).sum(0)
        self.totals["square"] += (values**2).sum(0)
        self.totals["cross"] += np.tensordot(gaps, values, 1)
        self.gaps.append(gaps)
        if self.keep:
            self.kept.append(values.astype(np.float32))

    def result(self) -> dict[str, np.ndarray]:
        """The fields signed, absolute and stderr, relative to the mean gap."""
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
    sums = RunningSums(shape=values.shape[1:], keep=False)
    sums.add(values.astype(np.float64), gaps)
    return sums.result()
