"""Completeness and minimality of a circuit, by removing random subsets of its parts.

Both are plans, which `interp.circuits.evaluation.curve_evaluation.run_plans` runs together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.circuits.circuit import Circuit, CircuitLevel, drop_nodes
from interp.circuits.evaluation.curve_evaluation import CircuitPlan
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError, unknown
from interp.core.records import Record
from interp.core.statistics import Estimate, ratio_estimate
from interp.engine.edges.graph import INPUT
from interp.plots.tables import Tabled


@dataclass(frozen=True, kw_only=True)
class Completeness(Record):
    """The circuit without a subset K of its parts, compared with the whole model without K.

    incompleteness of K = |F(C without K) - F(M without K)| / |F(full) - F(empty)|, with F the mean
    metric and M the whole graph. It is near 0 for every K if the circuit contains all that matters,
    including backups of its parts. Source: arXiv 2211.00593, section 4.

    Attributes:
        circuit: (samples, n) metric of the circuit without K.
        model: (samples, n) metric of the whole graph without K.
        sizes: (samples,) number of parts in K.
        gap: (n,) metric of the full graph minus that of the empty one.
        level: whether parts are nodes or edges.
        protocol: what was measured, in words.
    """

    circuit: np.ndarray
    model: np.ndarray
    sizes: np.ndarray
    gap: np.ndarray
    level: CircuitLevel
    protocol: str

    @property
    def incompleteness(self) -> np.ndarray:
        """(samples,) incompleteness, as a fraction of the gap."""
        return np.abs((self.circuit - self.model).mean(1)) / abs(self.gap.mean())

    @property
    def worst(self) -> Estimate:
        """The largest sampled difference, signed: a lower bound on the worst over all subsets."""
        number = int(self.incompleteness.argmax())
        difference = torch.from_numpy(self.circuit[number] - self.model[number])
        return ratio_estimate(difference, torch.from_numpy(self.gap))

    def __str__(self) -> str:
        return (
            f"{self.protocol}\n  incompleteness over {len(self.sizes)} random subsets of "
            f"{self.level}s: mean {self.incompleteness.mean():z.3f}, worst {self.worst}"
        )


@dataclass(frozen=True, kw_only=True)
class Minimality(Tabled, Record):
    """The largest effect of each part of a circuit, over sampled subsets of removed parts.

    minimality of v = max over sampled K of |F(C without K and v) - F(C without K)| / gap. The empty
    K is always sampled. It is near 0 for a part that the circuit does not need. Source: arXiv
    2211.00593.

    Attributes:
        parts: the parts tested.
        effects: (parts, samples) F(C without K) - F(C without K and v), as a fraction of the gap.
        of: number of parts of the circuit.
        level: whether parts are nodes or edges.
        protocol: what was measured, in words.
    """

    parts: tuple[str, ...]
    effects: np.ndarray
    of: int
    level: CircuitLevel
    protocol: str

    @property
    def values(self) -> np.ndarray:
        """(parts,) minimality of each."""
        return np.abs(self.effects).max(1)

    def to_dataframe(self) -> Any:
        """One row per part, least needed first: minimality, and its effect alone."""
        import pandas as pd

        table = pd.DataFrame(
            {"part": self.parts, "minimality": self.values, "alone": self.effects[:, 0]}
        )
        return table.sort_values("minimality", ignore_index=True)

    def __str__(self) -> str:
        least = self.parts[int(self.values.argmin())]
        return (
            f"{self.protocol}\n  minimality of {len(self.parts)} of {self.of} {self.level}s over "
            f"{self.effects.shape[1]} knock-outs: least {self.values.min():z.3f} ({least}), "
            f"median {np.median(self.values):z.3f}"
        )


def completeness(
    trials: Trials,
    circuit: Circuit,
    ends: np.ndarray,
    *,
    level: CircuitLevel = "node",
    samples: int = 20,
    seed: int = 0,
) -> CircuitPlan[Completeness]:
    """Remove random subsets of a circuit's parts from the circuit and from the whole model.

    Args:
        trials: model, task and ablation.
        circuit: a circuit on the graph of the trials.
        ends: metric of the whole graph and of the empty one, from `Trials.checked_ends`.
        level: "node" (a node is removed with all of its edges) or "edge".
        samples: number of subsets. Each has its own inclusion probability, uniform in 0 to 1.
        seed: seed of the subsets.

    Raises:
        InterpError: another graph, a circuit without parts, or an unknown level.
    """
    parts = _Parts(trials, circuit, level)
    rng = np.random.default_rng(seed)
    chosen = [parts.subset(rng) for _ in range(samples)]
    whole = trials.graph.allowed
    values = yield [parts.drop(mask, gone) for gone in chosen for mask in (circuit.mask, whole)]
    return Completeness(
        circuit=values[::2],
        model=values[1::2],
        sizes=np.array([len(gone) for gone in chosen]),
        gap=ends[0] - ends[1],
        level=level,
        protocol=f"{trials.protocol}, {circuit!r}",
    )


def minimality(
    trials: Trials,
    circuit: Circuit,
    ends: np.ndarray,
    *,
    level: CircuitLevel = "node",
    samples: int = 5,
    most: int = 64,
    seed: int = 0,
) -> CircuitPlan[Minimality]:
    """Remove each part of a circuit, from the circuit and from it without random subsets.

    Args:
        trials: model, task and ablation.
        circuit: a circuit on the graph of the trials.
        ends: as in `completeness`.
        level: "node" or "edge".
        samples: number of random subsets K, besides the empty one.
        most: the most parts tested; if there are more, a random choice.
        seed: seed of the subsets and of the choice of parts.

    Raises:
        InterpError: another graph, a circuit without parts, or an unknown level.
    """
    parts = _Parts(trials, circuit, level)
    rng = np.random.default_rng(seed)
    tested = np.sort(rng.permutation(len(parts))[:most])
    subsets = [np.zeros(0, dtype=np.int64), *(parts.subset(rng) for _ in range(samples))]
    left = [parts.drop(circuit.mask, gone) for gone in subsets]
    fewer = [parts.drop(mask, np.array([part])) for part in tested for mask in left]
    values = yield [*left, *fewer]
    means = values.mean(1).reshape(1 + len(tested), len(left))
    return Minimality(
        parts=tuple(parts.names[part] for part in tested),
        effects=(means[0] - means[1:]) / (ends[0] - ends[1]).mean(),
        of=len(parts),
        level=level,
        protocol=f"{trials.protocol}, {circuit!r}",
    )


class _Parts:
    """The nodes (without the input) or the edges of a circuit."""

    def __init__(self, trials: Trials, circuit: Circuit, level: CircuitLevel) -> None:
        if level not in ("edge", "node"):
            raise unknown("level", level, ("edge", "node"))
        if circuit.graph != trials.graph:
            raise InterpError(
                f"knock-outs of {circuit.name}",
                "it has another graph than the trials",
                "use one graph",
            )
        self.graph, self.level = circuit.graph, level
        if level == "edge":
            self.indices = np.flatnonzero(circuit.mask)
            columns = self.graph.shape[1]
            self.names = [self.graph.label(*divmod(int(at), columns)) for at in self.indices]
        else:
            inside = circuit.writers.copy()
            inside[self.graph.writer(INPUT)] = False
            self.indices = np.flatnonzero(inside)
            self.names = [self.graph.writers[node] for node in self.indices]
        if not len(self.indices):
            raise InterpError(f"knock-outs of {circuit!r}", f"it has no {level}s", "give a circuit")

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, rng: np.random.Generator) -> np.ndarray:
        """The numbers of a random subset of the parts."""
        return np.flatnonzero(rng.random(len(self)) < rng.random())

    def drop(self, mask: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """The mask without some parts."""
        if self.level == "edge":
            fewer = mask.copy()
            fewer.flat[self.indices[gone]] = False
            return fewer
        nodes = np.zeros(len(self.graph.writers), dtype=bool)
        nodes[self.indices[gone]] = True
        return drop_nodes(self.graph, mask, nodes)
