"""Redundant parts: removing one changes little, removing both changes much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Unpack

import numpy as np

from interp.circuits.circuit import Circuit
from interp.circuits.trials.options import GraphKeywords, TrialOptions
from interp.circuits.trials.trials import Trials, mean_gap
from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine.edges.graph import ARROW, Graph
from interp.engine.memory import says_too_little
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.results.keys import result_key
from interp.results.store import chunks_of, drop

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class RedundantPair:
    """Two parts, and the effects of removing them, as shares of the gap.

    Attributes:
        parts: their labels.
        alone: the effect of removing each one.
        together: the effect of removing both.
        excess: together - alone[0] - alone[1].
        low: lower end of the excess's 95 % interval, corrected for the number of pairs tested.
        high: upper end.
        missed: whether neither effect alone reaches the threshold.
    """

    parts: tuple[str, str]
    alone: tuple[float, float]
    together: float
    excess: float
    low: float
    high: float
    missed: bool

    def __str__(self) -> str:
        return (
            f"{' and '.join(self.parts)}: {self.together:z.3f} together, {self.alone[0]:z.3f} and "
            f"{self.alone[1]:z.3f} alone; excess {self.excess:z.3f} "
            f"[{self.low:z.3f}, {self.high:z.3f}]"
        )


@dataclass(frozen=True, kw_only=True)
class Redundancy(Tabled, Record):
    """The effects of removing parts one at a time and in pairs.

    Attributes:
        parts: their labels.
        alone: (parts,) effect of removing each part, as a share of the gap.
        together: (parts, parts) effect of removing both, symmetric; the diagonal is `alone`.
        pairs: the redundant pairs, largest excess first.
        tried: number of pairs tested.
        n: number of prompts.
        threshold: the least excess of a redundant pair.
        protocol: what was measured, in words.
    """

    parts: tuple[str, ...]
    alone: np.ndarray
    together: np.ndarray
    pairs: tuple[RedundantPair, ...]
    tried: int
    n: int
    threshold: float
    protocol: str

    @property
    def missed(self) -> tuple[RedundantPair, ...]:
        """Redundant pairs that removing single parts does not reveal."""
        return tuple(pair for pair in self.pairs if pair.missed)

    def __str__(self) -> str:
        lines = [
            f"{len(self.pairs)} of {self.tried} pairs are redundant (excess of {self.threshold:g} "
            f"of the gap or more); removing single parts misses {len(self.missed)} of them "
            f"(n={self.n}; {self.protocol})",
            *(f"  {pair}" for pair in self.pairs[:10]),
        ]
        if len(self.pairs) > 10:
            lines.append(f"  and {len(self.pairs) - 10} more")
        return "\n".join(lines)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per redundant pair."""
        import pandas as pd

        names = ("together", "excess", "low", "high", "missed")
        rows = [
            (*pair.parts, *pair.alone, *(getattr(pair, name) for name in names))
            for pair in self.pairs
        ]
        columns = ("first", "second", "first_alone", "second_alone", *names)
        return pd.DataFrame(rows, columns=columns)


@says_too_little
@reads_arguments
def redundancy(
    model: LanguageModel,
    task: Task,
    parts: Circuit | Sequence[str] | None = None,
    *,
    within: Circuit | None = None,
    threshold: float = 0.1,
    neurons: Sequence[str | tuple[int, int]] = (),
    limit: int = 5000,
    resume: bool = True,
    **run: Unpack[GraphKeywords],
) -> Redundancy:
    """Measure the effect of removing parts one at a time and in pairs.

        effect(K) = mean(m(G) - m(G without K)) / mean(m(whole graph) - m(empty graph))
        excess(a, b) = effect({a, b}) - effect({a}) - effect({b})

    G is the whole graph, or `within`. The excess is above 0 for the two inputs of an OR gate
    (removing one changes nothing, removing both everything) and for a head and its backup. It is
    below 0 for parts in series. A pair is redundant if its excess is at least the threshold and
    the 95 % interval (Student's t over prompts, Bonferroni over pairs) lies above 0. If any one of
    three parts is sufficient, no pair is redundant: remove one with `within` and repeat.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        parts: nodes such as L9H6 or L3.mlp_out, which are removed with all of their edges; or
            edges such as L3H4->L5KV1.k; or a circuit, for its nodes. By default all heads and
            MLPs, and the neurons that are nodes.
        within: the circuit from which parts are removed; by default the whole graph.
        threshold: share of the gap.
        neurons: neurons that are nodes of their own, see `graph_of`. A given circuit decides.
        limit: the most pairs allowed.
        resume: store finished batches in the cache until the end, and resume from them.
        run: ablation, reference, expand_kv (a given circuit decides), seed, budget_gb, progress
            (called with removals done, and in total) and cancelled; see `TrialOptions`.

    Raises:
        InterpError: fewer than two parts, unknown or repeated ones, more pairs than the limit,
            circuits of another model or of two graphs, or as `Trials`.

    Source: joint ablation of backup heads, arXiv 2211.00593. The test of a pair is our own.
    """
    options = TrialOptions(neurons=neurons, **run)
    given = [one for one in (within, parts) if isinstance(one, Circuit)]
    if given:
        options = options.of_graph(given[0].graph)
    trials = Trials(model, task, options)
    graph = trials.graph
    trials.require_graph(given)
    whole = Circuit(graph=graph, mask=graph.mask()) if within is None else within
    names = _names(graph, [parts] if isinstance(parts, str) else parts)
    pairs = list(combinations(range(len(names)), 2))
    if len(pairs) > limit:
        raise InterpError(
            f"redundancy among {len(names)} parts",
            f"{len(pairs)} pairs, the limit is {limit}",
            "give parts=, e.g. a circuit's nodes or the best of a ranking, or raise limit",
        )
    removals = [(i,) for i in range(len(names))] + pairs
    key = result_key(
        "redundancy",
        VERSION,
        model,
        task,
        parts=names,
        within=[whole.graph, whole.mask],
        ablation=options.ablation,
        reference=options.reference,
        seed=options.seed,
    )
    ends = trials.ends()
    gap, clean = mean_gap(ends), trials.values(whole.mask[None])[0]
    cost = []
    with chunks_of(key if resume else None) as chunks:
        for number, start in enumerate(range(0, len(removals), BATCH)):
            some = removals[start : start + BATCH]
            masks = np.stack([whole.without(names[i] for i in one).mask for one in some])
            values = chunks.once(number, len(some), lambda m=masks: trials.values(m), of=masks)
            cost.append((clean - values) / gap)
            if options.progress is not None:
                options.progress(start + len(some), len(removals))
        drop(chunks)
    return _result(names, pairs, np.concatenate(cost), threshold, trials.protocol)


def strongest_nodes(circuit: Circuit, n: int) -> list[str]:
    """At most n nodes by the summed |score| of their edges, the circuit's own nodes first.

    Nodes outside the circuit are included because the backup of a node often has no score.

    Raises:
        InterpError: the circuit has no scores.
    """
    strength = np.abs(np.where(circuit.graph.allowed, circuit.signed, 0.0)).sum(1)
    order = np.lexsort((-strength, ~circuit.writers))
    return [circuit.graph.writers[writer] for writer in order if writer][:n]


def _result(
    names: tuple[str, ...],
    pairs: list[tuple[int, int]],
    cost: np.ndarray,
    threshold: float,
    protocol: str,
) -> Redundancy:
    """Effects and redundant pairs, from (removals, prompts) costs."""
    by_part, by_pair = cost[: len(names)], cost[len(names) :]
    alone = by_part.mean(1)
    together = np.diag(alone)
    found = []
    for (a, b), values in zip(pairs, by_pair, strict=True):
        together[a, b] = together[b, a] = values.mean()
        over = values - by_part[a] - by_part[b]
        half = _half_width(over, len(pairs))
        excess = float(over.mean())
        if excess >= threshold and excess - half > 0:
            found.append(
                RedundantPair(
                    parts=(names[a], names[b]),
                    alone=(float(alone[a]), float(alone[b])),
                    together=float(values.mean()),
                    excess=excess,
                    low=excess - half,
                    high=excess + half,
                    missed=bool(max(abs(alone[a]), abs(alone[b])) < threshold),
                )
            )
    found.sort(key=lambda pair: -pair.excess)
    return Redundancy(
        parts=names,
        alone=alone,
        together=together,
        pairs=tuple(found),
        tried=len(pairs),
        n=cost.shape[1],
        threshold=threshold,
        protocol=protocol,
    )


def _half_width(values: np.ndarray, tried: int) -> float:
    """Half the 95 % interval of a mean, with Bonferroni's correction for `tried` means."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return math.inf
    return float(stats.t.ppf(1 - 0.025 / tried, n - 1) * values.std(ddof=1) / math.sqrt(n))


def _names(graph: Graph, parts: Circuit | Sequence[str] | None) -> tuple[str, ...]:
    """The parts as labels, checked; for a circuit, its nodes without the input."""
    if parts is None:
        names = graph.writers[1:]
    elif isinstance(parts, Circuit):
        names = tuple(name for name in parts.nodes() if name in graph.writers[1:])
    else:
        names = tuple(parts)
    for name in names:
        _ = graph.edge(name) if ARROW in name else graph.writer(name)
    if len(names) < 2 or len(set(names)) < len(names):
        raise InterpError(
            f"redundancy of {list(names)}",
            "fewer than two parts, or a repeated one",
            "give different parts",
        )
    return names
