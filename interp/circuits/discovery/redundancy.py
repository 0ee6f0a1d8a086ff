"""Parts that stand in for each other: each can be spared, both cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from interp.circuits.circuit import Circuit
from interp.circuits.evaluation.curve_evaluation import same_graph
from interp.circuits.trials.removed_edges import EdgeAblation
from interp.circuits.trials.trials import Trials, mean_gap
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine.edges.graph import ARROW, Graph
from interp.engine.memory import says_too_little
from interp.engine.readout import Progress
from interp.models.language_model import LanguageModel
from interp.results.keys import result_key
from interp.results.store import chunks_of, drop

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class RedundantPair:
    """Two parts and what removing them costs, in shares of the gap.

    together exceeds alone[0] + alone[1] by `excess`, with its interval, corrected for the number
    of pairs that were tried. missed: neither alone reaches the threshold.
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
            f"{' and '.join(self.parts)}: {self.together:.3f} together, {self.alone[0]:.3f} and "
            f"{self.alone[1]:.3f} alone; excess {self.excess:.3f} [{self.low:.3f}, {self.high:.3f}]"
        )


@dataclass(frozen=True, kw_only=True)
class Redundancy(Record):
    """What pairs of parts cost beyond the sum of what each costs.

    alone: (parts,) and together: (parts, parts), symmetric, in shares of the gap; the diagonal is
    `alone`. pairs: the redundant ones, the largest excess first. tried: number of pairs.
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
        """Pairs of which single ablation shows nothing."""
        return tuple(pair for pair in self.pairs if pair.missed)

    def __str__(self) -> str:
        lines = [
            f"{len(self.pairs)} of {self.tried} pairs are redundant by {self.threshold:g} of the "
            f"gap, {len(self.missed)} of them unseen by single ablation (n={self.n}; "
            f"{self.protocol})",
            *(f"  {pair}" for pair in self.pairs[:10]),
        ]
        if len(self.pairs) > 10:
            lines.append(f"  and {len(self.pairs) - 10} more")
        return "\n".join(lines)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per redundant pair."""
        import pandas as pd

        rows = [
            {
                "first": pair.parts[0],
                "second": pair.parts[1],
                "first_alone": pair.alone[0],
                "second_alone": pair.alone[1],
                "together": pair.together,
                "excess": pair.excess,
                "low": pair.low,
                "high": pair.high,
                "missed": pair.missed,
            }
            for pair in self.pairs
        ]
        return pd.DataFrame(rows)


@says_too_little
def redundancy(
    model: LanguageModel,
    task: Task,
    parts: Circuit | Sequence[str] | None = None,
    *,
    within: Circuit | None = None,
    threshold: float = 0.1,
    ablation: EdgeAblation = "counterfactual",
    reference: Task | None = None,
    expand_kv: bool = False,
    neurons: Sequence[str | tuple[int, int]] = (),
    limit: int = 5000,
    seed: int = 0,
    budget_gb: float = 1.0,
    resume: bool = True,
    progress: Progress | None = None,
) -> Redundancy:
    """Remove parts one at a time and two at a time.

        effect(K) = mean(m(G) - m(G without K)) / mean(m(whole graph) - m(empty graph))
        excess(a, b) = effect({a, b}) - effect({a}) - effect({b})

    G is the whole graph, or `within`. In an OR gate each alone costs nothing and both cost
    everything; a backup head costs more once what it backs up is gone. Both have an excess above 0.
    Parts in series have one below 0. A pair is redundant if its excess is at least the threshold
    and its interval (Student's t over prompts, Bonferroni over pairs) lies above 0. Three parts of
    which any one suffices show no redundant pair: remove one (`within`) and look again.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        parts: nodes such as L9H6 or L3.mlp_out (all edges into and out of them are removed) or
            edges such as L3H4->L5KV1.k; a circuit stands for its nodes. By default all heads and
            MLPs, and the neurons that are nodes.
        within: the circuit that parts are removed from; by default the whole graph.
        threshold: share of the gap.
        ablation: see `Trials`.
        reference: prompts for mean ablation.
        expand_kv: key and value readers per query head, as in a circuit given.
        neurons: those that are nodes of their own, as in a circuit given; see `graph_of`.
        limit: pairs at most.
        seed: of the other prompts in resample ablation.
        budget_gb: memory for runs in flight.
        resume: keep finished batches in the cache until the end, and start from them.
        progress: called with (removals done, removals in all).

    Raises:
        InterpError: fewer than two parts, unknown or repeated ones, more pairs than the limit,
            circuits of another model or of two graphs, or as `Trials`.

    Source: joint ablation of backup heads, arXiv 2211.00593; a pair's test is this package's.
    """
    given = [one for one in (within, parts) if isinstance(one, Circuit)]
    if given:
        expand_kv, neurons = given[0].graph.expand_kv, given[0].graph.neurons
    trials = Trials(
        model,
        task,
        ablation=ablation,
        reference=reference,
        expand_kv=expand_kv,
        neurons=neurons,
        budget_gb=budget_gb,
        seed=seed,
    )
    graph = trials.graph
    same_graph(trials, given)
    whole = Circuit(graph=graph, mask=graph.mask()) if within is None else within
    names = _names(graph, [parts] if isinstance(parts, str) else parts)
    pairs = list(combinations(range(len(names)), 2))
    if len(pairs) > limit:
        raise InterpError(
            f"redundancy among {len(names)} parts",
            f"{len(pairs)} pairs, the limit is {limit}",
            "name the parts, e.g. a circuit's nodes or the best of a ranking, or raise limit",
        )
    removals = [(i,) for i in range(len(names))] + pairs
    key = result_key(
        "redundancy",
        VERSION,
        model,
        task,
        parts=names,
        within=[whole.graph, whole.mask],
        ablation=ablation,
        reference=reference,
        seed=seed,
    )
    ends = trials.ends()
    gap, clean = mean_gap(ends), trials.values(whole.mask[None])[0]
    cost, done = [], 0
    with chunks_of(key if resume else None) as chunks:
        for number, start in enumerate(range(0, len(removals), BATCH)):
            some = removals[start : start + BATCH]
            masks = np.stack([whole.without(names[i] for i in one).mask for one in some])
            values = chunks.once(number, len(some), lambda m=masks: trials.values(m), of=masks)
            cost.append((clean - values) / gap)
            done += len(some)
            if progress is not None:
                progress(done, len(removals))
        drop(chunks)
    return _result(names, pairs, np.concatenate(cost), threshold, trials.protocol)


def strongest_nodes(circuit: Circuit, n: int) -> list[str]:
    """The circuit's nodes and those outside it, up to n, by the summed size of their scores.

    Those of the circuit come first: what backs a node up is often outside, where no score shows it.

    Raises:
        InterpError: the circuit has no scores.
    """
    strength = np.abs(np.where(circuit.graph.allowed, circuit.signed, 0.0)).sum(1)
    order = np.lexsort((-strength, ~circuit.writers))
    return [circuit.graph.writers[place] for place in order if place][:n]


def _result(
    names: tuple[str, ...],
    pairs: list[tuple[int, int]],
    cost: np.ndarray,
    threshold: float,
    protocol: str,
) -> Redundancy:
    """The pairs whose removal costs more than the sum, from (removals, prompts) costs."""
    single, joint = cost[: len(names)], cost[len(names) :]
    alone = single.mean(1)
    together = np.diag(alone)
    found = []
    for (a, b), values in zip(pairs, joint, strict=True):
        together[a, b] = together[b, a] = values.mean()
        over = values - single[a] - single[b]
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
    """Half the 95 % interval of a mean when `tried` of them are looked at."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return math.inf
    return float(stats.t.ppf(1 - 0.025 / tried, n - 1) * values.std(ddof=1) / math.sqrt(n))


def _names(graph: Graph, parts: Circuit | Sequence[str] | None) -> tuple[str, ...]:
    """The parts as labels, checked; of a circuit, its nodes but the input."""
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
            f"redundancy of {list(names)}", "fewer than two, or one twice", "name different parts"
        )
    return names
