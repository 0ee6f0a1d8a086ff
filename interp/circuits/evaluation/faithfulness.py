"""Faithfulness f: how much of a behaviour a part of the model keeps, and areas under f."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from interp.circuits.evaluation.curves import area
from interp.core.errors import InterpError
from interp.core.nulls import Null, null_of
from interp.core.records import Provenance, Record
from interp.core.statistics import Estimate, bootstrap_weights, range_of_draws, ratio_estimate
from interp.plots.tables import Tabled


@dataclass(frozen=True, kw_only=True)
class Faithfulness(Record):
    """The metric of some circuits, of the whole model, of the empty circuit and of random ones.

    Faithfulness f(C) = (m(C) - m(empty)) / (m(full) - m(empty)), with means over prompts. It is 1
    if the circuit does what the model does, above 1 if it does more, and below 0 if it works
    against the behaviour.

    Attributes:
        fractions: (circuits,) share of all parts requested, for a curve over scores; else None.
        values: (circuits, n) metric of each circuit on each prompt.
        full: (n,) metric of the whole model: the clean run.
        empty: (n,) metric with nothing kept.
        random: (draws, circuits, n) metric of random circuits, each matched to one circuit.
        random_connected: (draws, circuits, n) metric of random circuits whose edges all lie on
            paths from the input to the logits; zero draws unless requested.
        protocol: what was measured, in words.
        metric: the metric's name.
        metric_unit: its unit.
        provenance: model, task and call.
    """

    fractions: np.ndarray | None
    values: np.ndarray
    full: np.ndarray
    empty: np.ndarray
    random: np.ndarray
    random_connected: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    protocol: str
    metric: str
    metric_unit: str
    provenance: Provenance

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.full)

    @cached_property
    def faithfulness(self) -> np.ndarray:
        """(circuits,) f of each circuit."""
        return self._f(self.values)

    @cached_property
    def drawn(self) -> dict[str, np.ndarray]:
        """(draws, circuits) f of each kind of random circuits that were run."""
        kinds = {"random": self.random, "on_paths": self.random_connected}
        return {name: self._f(values) for name, values in kinds.items() if len(values)}

    def _f(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Faithfulness over the last axis of `values`; with (draws, n) weights, for every draw."""
        share = np.ones(self.n) if weights is None else weights.T
        return ((values - self.empty) @ share) / ((self.full - self.empty) @ share)

    def estimate(self, circuit: int = 0) -> Estimate:
        """One circuit's f with its interval over prompts."""
        gained, gap = self.values[circuit] - self.empty, self.full - self.empty
        return ratio_estimate(gained, gap)

    # -- areas -----------------------------------------------------------------------------

    def cpr(self) -> Estimate:
        """CPR: the area under f over the share of edges, by the trapezoidal rule.

        A ratio of means, like f. Higher is better. Learned masks can exceed the model's metric, so
        read it together with `cmd`. Source: arXiv 2504.13151.

        Raises:
            InterpError: the circuits are not a curve over scores.
        """
        gained = area(self._curve, (self.values - self.empty).T)
        return ratio_estimate(gained, self.full - self.empty)

    def cmd(self, *, draws: int = 2000, seed: int = 0) -> Estimate:
        """CMD: the area between f and 1, the distance from the whole model; 0 is best. See `cpr`.

        The area is never below 0, and noise only increases it. So resampled areas lie above the
        estimate, and their quantiles never cover 0. The interval is instead the estimate -+ q, cut
        at 0, where q is the 95 % quantile of the area between the curve and curves of resampled
        prompts: the areas of two curves differ by at most the area between them. Its coverage,
        simulated by `experiments/calibration.py`, is mostly above 95 % and at its lowest 93 %.
        """
        f, curve = self.faithfulness, self._curve
        value, high = float(area(curve, np.abs(1 - f))), np.inf
        if self.n > 1:
            from scipy import stats

            drawn = self._f(self.values, bootstrap_weights(self.n, draws, seed=seed)).T
            apart = np.quantile(area(curve, np.abs(drawn - f)), 0.95)
            # For means, a bootstrap over few prompts is too narrow by this factor.
            wider = stats.t.ppf(0.975, self.n - 1) / stats.norm.ppf(0.975)
            high = float(apart) * wider * np.sqrt(self.n / (self.n - 1))
        return Estimate(mean=value, low=max(0.0, value - high), high=value + high, n=self.n)

    @property
    def _curve(self) -> np.ndarray:
        if self.fractions is None or len(self.fractions) < 2:
            raise InterpError(
                "the area under a faithfulness curve",
                "these circuits are not a curve over scores",
                "evaluate scores, with two fractions or more",
            )
        return self.fractions

    def null(self, circuit: int | None = None, *, connected: bool = False) -> Null:
        """One circuit's f, or the curve's CPR, compared with random circuits of equal size.

        Args:
            circuit: the number of the circuit; None for the curve.
            connected: compare with random circuits whose edges all lie on paths.

        Raises:
            InterpError: no such random circuits were run, or the circuits are not a curve.
        """
        drawn = self.drawn.get("on_paths" if connected else "random")
        if drawn is None:
            raise InterpError("a null", "no random circuits were run", "evaluate with random=10")
        if circuit is None:
            areas = area(self._curve, drawn)
            return null_of(float(area(self._curve, self.faithfulness)), areas)
        return null_of(float(self.faithfulness[circuit]), drawn[:, circuit])

    # -- text and tables -------------------------------------------------------------------

    def in_words(self, sizes: Sequence[str], nothing: str) -> str:
        """The protocol, the metric of both ends, a line per circuit, and the areas of a curve."""
        lines = [
            self.protocol,
            f"  {self.metric}: full {self.full.mean():z.3f}, {nothing} {self.empty.mean():z.3f}",
        ]
        for number, size in enumerate(sizes):
            line = f"  {size}: f {self.estimate(number)}"
            for name, drawn in self.drawn.items():
                low, high = range_of_draws(drawn[:, number])
                words = {"random": "random", "on_paths": "random on paths"}[name]
                line += f", {words} [{low:z.3f}, {high:z.3f}]"
            lines.append(line)
        if self.fractions is not None and len(self.fractions) > 1:
            lines.append(f"  CPR {self.cpr()}; CMD {self.cmd()}")
        return "\n".join(lines)

    def row(self, number: int) -> dict[str, Any]:
        """The table row of one circuit: metric, f with interval, range of random circuits."""
        f = self.estimate(number)
        row = {
            "fraction": None if self.fractions is None else self.fractions[number],
            "metric": self.values[number].mean(),
            "faithfulness": f.mean,
            "low": f.low,
            "high": f.high,
        }
        for name in ("random", "on_paths"):
            found = (None, None, None)
            if name in self.drawn:
                drawn = self.drawn[name][:, number]
                found = (drawn.mean(), *range_of_draws(drawn))
            row |= zip((f"{name}_mean", f"{name}_low", f"{name}_high"), found, strict=True)
        return row | {"n": self.n}


@dataclass(frozen=True, kw_only=True)
class CircuitFaithfulness(Tabled, Faithfulness):
    """The faithfulness of circuits of edges. The empty circuit keeps no edge.

    Attributes:
        circuits: the circuits that were run.
    """

    circuits: tuple[Any, ...]

    @property
    def sizes(self) -> np.ndarray:
        """(circuits,) number of edges."""
        return np.array([circuit.n_edges for circuit in self.circuits])

    def to_dataframe(self) -> Any:
        """One row per circuit: size, metric, faithfulness, and the range of random circuits."""
        import pandas as pd

        return pd.DataFrame(
            {"circuit": one.name, "edges": one.n_edges, "share": one.share, **self.row(number)}
            for number, one in enumerate(self.circuits)
        )
