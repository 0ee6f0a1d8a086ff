"""How much of a behaviour a circuit carries: faithfulness by size, against random circuits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.circuits.circuit import Circuit, Level
from interp.circuits.curves import FRACTIONS, area, curve
from interp.circuits.kept import read_result, write_result
from interp.circuits.search import Scored
from interp.circuits.trials import Ablation, Trials
from interp.errors import InterpError, unknown
from interp.graph import Graph, graph_of
from interp.metrics import Estimate, ratio_estimate
from interp.models.language_model import LanguageModel
from interp.nulls import Null, null_of
from interp.prompts import Task
from interp.scores import Provenance
from interp.sweeps import check_gap, provenance

FORMAT = 1
_BATCH_ROWS = 1024
_ARRAYS = ("values", "full", "empty", "random")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metric of some circuits, of the whole graph, of the empty one and of random circuits.

    Faithfulness f(C) = (m(C) - m(empty)) / (m(full) - m(empty)), means over prompts: 1 where the
    circuit does what the model does, above 1 where it does more, below 0 where it works against
    the behaviour.

    Attributes:
        circuits: what was run.
        fractions: (circuits,) share of edges (nodes) asked for, of a curve over scores; else None.
        values: (circuits, n) metric of each circuit on each prompt.
        full: (n,) metric of the whole graph: the clean run.
        empty: (n,) metric with no edge kept.
        random: (draws, circuits, n) metric of random circuits, each like the circuit it stands by.
        level: "edge", or "node": every edge between the chosen nodes.
        protocol: what was measured, in words; part of every number.
        metric: the metric's name.
        metric_unit: its unit.
        provenance: where the numbers come from.
    """

    circuits: tuple[Circuit, ...]
    fractions: np.ndarray | None
    values: np.ndarray
    full: np.ndarray
    empty: np.ndarray
    random: np.ndarray
    level: Level
    protocol: str
    metric: str
    metric_unit: str
    provenance: Provenance

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.full)

    @property
    def sizes(self) -> np.ndarray:
        """(circuits,) number of edges."""
        return np.array([circuit.n_edges for circuit in self.circuits])

    @cached_property
    def faithfulness(self) -> np.ndarray:
        """(circuits,) f of each circuit."""
        return self._f(self.values)

    @cached_property
    def random_faithfulness(self) -> np.ndarray:
        """(draws, circuits) f of the random circuits."""
        return self._f(self.random)

    def _f(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Faithfulness over the last axis of `values`; with (draws, n) weights, of each."""
        share = np.full(self.n, 1 / self.n) if weights is None else weights.T
        return ((values - self.empty) @ share) / ((self.full - self.empty) @ share)

    def estimate(self, circuit: int = 0) -> Estimate:
        """One circuit's f with its interval over prompts (delta method, Student's t)."""
        gained, gap = self.values[circuit] - self.empty, self.full - self.empty
        return ratio_estimate(torch.from_numpy(gained), torch.from_numpy(gap))

    # -- areas -----------------------------------------------------------------------------

    def cpr(self, *, draws: int = 2000, seed: int = 0) -> Estimate:
        """Area under f over the share of edges, by trapezoids; interval by bootstrap over prompts.

        Higher is better, and learnt masks can exceed what the model does: read it with `cmd`.
        Source: arXiv 2504.13151.

        Raises:
            InterpError: the circuits are not a curve over scores.
        """
        return self._area(lambda f: f, draws, seed)

    def cmd(self, *, draws: int = 2000, seed: int = 0) -> Estimate:
        """Area between f and 1: how far from doing what the model does; 0 is best. See `cpr`."""
        return self._area(lambda f: np.abs(1 - f), draws, seed)

    def _area(self, height: Any, draws: int, seed: int) -> Estimate:
        value = float(area(self._curve, height(self.faithfulness)))
        low, high = -np.inf, np.inf
        if self.n > 1:
            rng = np.random.default_rng(seed)
            weights = rng.multinomial(self.n, np.full(self.n, 1 / self.n), size=draws) / self.n
            drawn = area(self._curve, height(self._f(self.values, weights).T))
            low, high = np.quantile(drawn, [0.025, 0.975])
        return Estimate(mean=value, low=float(low), high=float(high), n=self.n)

    @property
    def _curve(self) -> np.ndarray:
        if self.fractions is None or len(self.fractions) < 2:
            raise InterpError(
                "the area under a faithfulness curve",
                "these circuits are not a curve over scores",
                "evaluate scores, at two fractions or more",
            )
        return self.fractions

    def null(self, circuit: int | None = None) -> Null:
        """One circuit's f, or the curve's CPR, against that of random circuits of equal size.

        Raises:
            InterpError: no random circuits were run, or CPR of what is not a curve.
        """
        if not len(self.random):
            raise InterpError("a null", "no random circuits were run", "evaluate with random=10")
        if circuit is None:
            drawn = area(self._curve, self.random_faithfulness)
            return null_of(float(area(self._curve, self.faithfulness)), drawn)
        return null_of(float(self.faithfulness[circuit]), self.random_faithfulness[:, circuit])

    # -- in words and files ----------------------------------------------------------------

    def __str__(self) -> str:
        lines = [
            self.protocol,
            f"  {self.metric}: full {self.full.mean():.3f}, empty {self.empty.mean():.3f}",
        ]
        for place, circuit in enumerate(self.circuits):
            random = ""
            if len(self.random):
                low, high = np.quantile(self.random_faithfulness[:, place], [0.025, 0.975])
                random = f", random [{low:.3f}, {high:.3f}]"
            lines.append(
                f"  {circuit.n_edges} edges ({circuit.share:.2%}): f {self.estimate(place)}{random}"
            )
        if self.fractions is not None and len(self.fractions) > 1:
            lines.append(f"  CPR {self.cpr()}; CMD {self.cmd()}")
        return "\n".join(lines)

    def to_dataframe(self) -> Any:
        """One row per circuit: size, metric, f with interval, range of random circuits."""
        import pandas as pd

        rows = []
        for place, circuit in enumerate(self.circuits):
            f, random = self.estimate(place), self.random_faithfulness[:, place]
            rows.append(
                {
                    "circuit": circuit.name,
                    "fraction": None if self.fractions is None else self.fractions[place],
                    "edges": circuit.n_edges,
                    "share": circuit.share,
                    "metric": self.values[place].mean(),
                    "faithfulness": f.mean,
                    "low": f.low,
                    "high": f.high,
                    "random_mean": random.mean() if len(random) else None,
                    "random_low": np.quantile(random, 0.025) if len(random) else None,
                    "random_high": np.quantile(random, 0.975) if len(random) else None,
                    "n": self.n,
                }
            )
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> Path:
        """Write `path`.safetensors with the arrays and `path`.json with the rest."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays["masks"] = np.stack([circuit.mask for circuit in self.circuits])
        if self.fractions is not None:
            arrays["fractions"] = self.fractions
        facts = {name: getattr(self, name) for name in ("level", "protocol", "metric")}
        facts |= {"metric_unit": self.metric_unit, "provenance": asdict(self.provenance)}
        facts["graph"] = asdict(self.circuits[0].graph)
        facts["circuits"] = [[circuit.name, circuit.method] for circuit in self.circuits]
        return write_result(path, arrays, facts, FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote; the circuits come without scores.

        Raises:
            InterpError: a file is missing, of another version, damaged or changed.
        """
        arrays, facts = read_result(path, FORMAT)
        graph = Graph(**facts.pop("graph"))
        pairs = zip(arrays.pop("masks"), facts.pop("circuits"), strict=True)
        return cls(
            circuits=tuple(
                Circuit(graph=graph, mask=mask, name=name, method=method)
                for mask, (name, method) in pairs
            ),
            fractions=arrays.pop("fractions", None),
            provenance=Provenance(**facts.pop("provenance")),
            **arrays,
            **facts,
        )


def evaluate(
    model: LanguageModel,
    task: Task,
    circuits: Scored | Circuit | Sequence[Circuit],
    *,
    ablation: Ablation = "counterfactual",
    reference: Task | None = None,
    level: Level = "edge",
    fractions: Sequence[float] = FRACTIONS,
    absolute: bool = False,
    random: int = 10,
    bands: int = 3,
    seed: int = 0,
    budget_gb: float = 1.0,
) -> Evaluation:
    """Run circuits, or the circuits that scores give at every size, and random ones like them.

    All circuits run as one batch on every prompt. At level "edge" an edge outside the circuit
    carries what the ablation says; at level "node" all edges of a node outside it do.

    Args:
        model: a model with a fast engine.
        task: prompt pairs; better not those the circuit was found on (see `Task.split`).
        circuits: edge scores, for a curve; or circuits, run as they are.
        ablation: "counterfactual", "resample", "zero" or "mean"; see `Trials`.
        reference: prompts whose tokens the mean is taken over, none of them evaluated.
        level: "edge" or "node"; a node's score is the sum over its outgoing edges.
        fractions: sizes of a curve's circuits.
        absolute: rank by |score|, as MIB does for CMD; signed, as for CPR, by default.
        random: random circuits per circuit; see `Circuit.random_like`.
        bands: their depth is matched in so many bands of layers.
        seed: of the random circuits and of resampling.
        budget_gb: memory for runs in flight.

    Raises:
        InterpError: no fast engine, circuits of another graph, a fraction out of range, an unknown
            level or ablation, a mean over evaluated prompts, or no gap between full and empty
            beyond its standard error.
    """
    some, asked = _circuits(circuits, fractions, level, absolute)
    graph = some[0].graph
    if graph_of(model, expand_kv=graph.expand_kv) != graph or any(
        one.graph != graph for one in some
    ):
        raise InterpError(
            f"circuits on {model.name}", f"their graph is {graph}", "use circuits of this model"
        )
    trials = Trials(
        model, task, ablation=ablation, reference=reference, expand_kv=graph.expand_kv,
        budget_gb=budget_gb, seed=seed,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    drawn = [one.random_like(rng, level=level, bands=bands) for _ in range(random) for one in some]
    ends = trials.ends()
    _check_gap(*ends)
    values = run_masks(trials, (one.mask for one in chain(some, drawn)))
    options = f"ablation={ablation!r}, level={level!r}, absolute={absolute}, seed={seed}"
    ranking = f", ranked by {'absolute' if absolute else 'signed'} score, pruned"
    return Evaluation(
        circuits=tuple(some),
        fractions=asked,
        values=values[: len(some)],
        full=ends[0],
        empty=ends[1],
        random=values[len(some) :].reshape(random, len(some), len(task)),
        level=level,
        protocol=f"{trials.protocol}, {level} level{'' if asked is None else ranking}",
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        provenance=provenance(model, task, f"evaluation = evaluate(model, task, ..., {options})"),
    )


def run_masks(trials: Trials, masks: Iterable[np.ndarray]) -> np.ndarray:
    """(masks, prompts) metric of circuits, a batch at a time."""
    size = max(1, _BATCH_ROWS // len(trials.task))
    found = [trials.values(np.stack(batch)) for batch in _batched(iter(masks), size)]
    return np.concatenate(found) if found else np.zeros((0, len(trials.task)))


def _batched(masks: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(masks, size)):
        yield batch


def _check_gap(full: np.ndarray, empty: np.ndarray) -> None:
    """Refuse a gap that is not there; between equal prompts rounding leaves a trace of one."""
    scale = max(np.abs(full).max(), np.abs(empty).max())
    if np.abs(full - empty).max() <= 1e-5 * scale:
        empty = full
    check_gap(full, empty)


def _circuits(
    circuits: Scored | Circuit | Sequence[Circuit],
    fractions: Sequence[float],
    level: Level,
    absolute: bool,
) -> tuple[list[Circuit], np.ndarray | None]:
    """What to run, and the fractions asked for where it is a curve."""
    if level not in ("edge", "node"):
        raise unknown("level", level, ("edge", "node"))
    if not isinstance(circuits, Circuit | Sequence):
        return curve(circuits, fractions, level=level, absolute=absolute), np.asarray(fractions)
    some = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not some:
        raise InterpError("evaluating circuits", "none were given", "give at least one")
    return [one.whole_nodes() if level == "node" else one for one in some], None
