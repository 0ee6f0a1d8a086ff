"""All that is asked of a circuit, from one batched run: `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from interp.circuits.circuit import Circuit, Level, Origin
from interp.circuits.evaluation.curve_evaluation import (
    FaithfulnessCurves,
    Plan,
    evaluation_plan,
    run_plans,
    same_graph,
)
from interp.circuits.evaluation.curves import FRACTIONS, curve
from interp.circuits.evaluation.knockouts import (
    Completeness,
    Minimality,
    completeness_plan,
    minimality_plan,
)
from interp.circuits.evaluation.stability import Stability, stability
from interp.circuits.ranking import By
from interp.circuits.scoring.edge_scores import EdgeScores
from interp.circuits.scoring.score_edges import score_edges
from interp.circuits.trials.removed_edges import EdgeAblation
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.core.records import Record
from interp.core.statistics import Estimate
from interp.engine.edges.graph import Graph
from interp.engine.readout import Progress
from interp.models.language_model import LanguageModel

OWN = "own"
QUICK = ("EAP", "EAP-IG-inputs", "clean-corrupted")
"""Methods whose scores of every prompt are had for a few passes."""


@dataclass(frozen=True, kw_only=True)
class CircuitEvaluation(Record):
    """What a circuit carries, lacks and could spare, and whether other prompts would give it.

    Attributes:
        itself: the circuit edge by edge, and with every edge between its nodes.
        signed: the curve of its scores ranked by signed score: MIB's CPR is the area under it.
        absolute: the curve ranked by absolute score: MIB's CMD is its distance from 1. Both are
            None for a circuit without scores.
        completeness: None if no knock-outs were asked for.
        minimality: the same.
        stability: None if no method was named.
        stable_by: the method whose ranking was taken again over resampled prompts; "" if none.
        unstable: why there is no stability; "" where there is one or none was asked for.
        calls: batched runs; tests: circuits in them; forwards: see `Trials`.
    """

    itself: FaithfulnessCurves
    signed: FaithfulnessCurves | None
    absolute: FaithfulnessCurves | None
    completeness: Completeness | None
    minimality: Minimality | None
    stability: Stability | None
    stable_by: str
    unstable: str
    calls: int
    tests: int
    forwards: float

    @property
    def circuit(self) -> Circuit:
        """What was evaluated."""
        return self.itself.circuits[0]

    @property
    def size(self) -> tuple[int, int, float]:
        """Number of edges and nodes, and edges as a share of the graph's."""
        return self.circuit.n_edges, len(self.circuit.nodes()), self.circuit.share

    @property
    def protocol(self) -> str:
        """What was measured, in words."""
        return self.itself.protocol

    def cpr(self) -> Estimate:
        """Area under f, ranked by signed score. See `Evaluation.cpr`.

        Raises:
            InterpError: the circuit has no scores.
        """
        return self._curve(self.signed).cpr()

    def cmd(self) -> Estimate:
        """Area between f and 1, ranked by absolute score. See `Evaluation.cmd`.

        Raises:
            InterpError: the circuit has no scores.
        """
        return self._curve(self.absolute).cmd()

    def _curve(self, one: FaithfulnessCurves | None) -> FaithfulnessCurves:
        if one is None:
            raise InterpError(
                f"a curve of {self.circuit.name}", "its edges have no scores", "score them"
            )
        return one

    def __str__(self) -> str:
        edges, nodes, share = self.size
        lines = [f"{edges} edges ({share:.2%}), {nodes} nodes", str(self.itself)]
        if len(self.itself.random):
            lines.append(f"  against random circuits of its size: {self.itself.null(0)}")
        if len(self.itself.random_connected):
            null = self.itself.null(0, connected=True)
            lines.append(f"  against random circuits of its size, all on paths: {null}")
        if self.signed is not None and self.absolute is not None:
            lines.append(_table(self.signed, self.absolute))
            lines.append(
                f"  CPR {self.cpr()} (signed ranking); CMD {self.cmd()} (absolute ranking)"
            )
            if len(self.signed.random):
                lines.append(f"  CPR against random circuits: {self.signed.null()}")
            if len(self.signed.random_connected):
                null = self.signed.null(connected=True)
                lines.append(f"  CPR against random circuits on paths: {null}")
        told = (self.completeness, self.minimality)
        lines += [line for one in told if one is not None for line in str(one).split("\n")[1:]]
        if self.stability is not None:
            lines.append(f"  stability of {self.stable_by}: {self.stability}")
        if self.unstable:
            lines.append(f"  no stability: {self.unstable}")
        lines.append(
            f"  {self.calls} batched runs of {self.tests} circuits, {self.forwards:.1f} forwards"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values, each with the protocol."""
        curves = {"circuit": self.itself, "curve": self.signed, "curve_absolute": self.absolute}
        edges, nodes, share = self.size
        told: dict[str, Any] = {
            "protocol": self.protocol,
            "edges": edges,
            "nodes": nodes,
            "share": share,
            "calls": self.calls,
            "circuits_run": self.tests,
            "forwards": self.forwards,
        }
        for name, one in curves.items():
            if one is not None:
                rows = one.to_dataframe().to_dict("records")
                told[name] = {"protocol": one.protocol, "rows": rows}
        if self.signed is not None:
            told |= {"cpr": asdict(self.cpr()), "cmd": asdict(self.cmd())}
        for name, some in (("null", False), ("null_on_paths", True)):
            if len(self.itself.random_connected if some else self.itself.random):
                told[name] = asdict(self.itself.null(0, connected=some))
        if self.completeness is not None:
            worst = self.completeness.incompleteness
            told["completeness"] = {"mean": float(worst.mean()), "worst": float(worst.max())}
        if self.minimality is not None:
            told["minimality"] = self.minimality.to_dataframe().to_dict("records")
        if self.stability is not None:
            drawn = self.stability.jaccard
            told["stability"] = {
                "method": self.stable_by,
                "jaccard": drawn.tolist(),
                "pairwise": self.stability.pairwise,
                "chance": self.stability.chance,
            }
        if self.unstable:
            told["no_stability"] = self.unstable
        return told


def evaluate(
    circuit: Circuit,
    model: LanguageModel,
    task: Task,
    *,
    ablation: EdgeAblation = "counterfactual",
    reference: Task | None = None,
    level: Level = "edge",
    fractions: Sequence[float] = FRACTIONS,
    random: int = 10,
    knockouts: int = 10,
    most: int = 32,
    stable_by: str | EdgeScores | None = OWN,
    draws: int = 20,
    bands: int = 3,
    seed: int = 0,
    budget_gb: float = 1.0,
    progress: Progress | None = None,
) -> CircuitEvaluation:
    """Evaluate a circuit in every way, as one batched run: see `CircuitEvaluation`.

    Circuits that differ late share what comes before, whichever measurement they belong to.

    Args:
        circuit: edges, and scores for the curves.
        model: the model it was found in.
        task: prompt pairs; better not those it was found on.
        ablation: see `Trials`.
        reference: prompts whose tokens a mean is taken over.
        level: of the curves: the best edges, or the best nodes with every edge between them.
        fractions: sizes of the curves' circuits.
        random: random circuits for every circuit and for every size of the signed curve, and as
            many all of whose edges lie on paths; 0 for none.
        knockouts: random subsets of nodes for completeness, and half as many for minimality; 0 for
            neither.
        most: nodes tested for minimality.
        stable_by: the method whose ranking of the evaluated pairs is cut to the circuit's size over
            resampled pairs: "own" for the one the circuit was found by, with its options and its
            cut (where that takes many runs or is not known, no stability is given and the reason
            said); a quick method of `score_edges`; scores of this graph with per-prompt values;
            None for no stability.
        draws: resampled circuits.
        bands: random circuits are matched in so many bands of layers.
        seed: of random circuits, knock-outs, resampled pairs and resampled prompts.
        budget_gb: memory for runs in flight.
        progress: called with (circuits run, circuits in all).

    Raises:
        InterpError: as `evaluate`, `completeness` and `stability`; a slow method to be stable by,
            or scores of another graph.
    """
    if isinstance(stable_by, str) and stable_by not in (OWN, *QUICK):
        raise InterpError(
            f"stability of {stable_by}",
            "it is no quick method",
            f"choose among {', '.join((OWN, *QUICK))}",
        )
    if level not in ("edge", "node"):
        raise unknown("level", level, ("edge", "node"))
    graph = circuit.graph
    trials = Trials(
        model, task, ablation=ablation, reference=reference, expand_kv=graph.expand_kv,
        neurons=graph.neurons, budget_gb=budget_gb, seed=seed,
    )  # fmt: skip
    same_graph(trials, [circuit])
    ends = trials.checked_ends()
    stable, method, unstable = None, "", ""
    if stable_by is not None and circuit.n_edges:
        given = {"ablation": ablation, "reference": reference, "seed": seed, "budget_gb": budget_gb}
        stable, method, unstable = _stable(circuit, model, task, stable_by, draws, given)
    options = f"ablation={ablation!r}, random={random}, knockouts={knockouts}, seed={seed}"
    shared: dict[str, Any] = {
        "bands": bands,
        "seed": seed,
        "call": f"evaluation = evaluate(circuit, model, task, {options})",
    }
    both = [circuit, circuit.whole_nodes()]
    itself = evaluation_plan(trials, both, ends, random=random, connected=True, **shared)
    plans: dict[str, Plan[Any]] = {"itself": itself}
    if circuit.scores is not None:
        for by in ("signed", "absolute"):
            plans[by] = _curve_plan(
                trials, circuit, ends, fractions, level, by, random if by == "signed" else 0, shared
            )
    if knockouts and circuit.n_edges:
        plans["completeness"] = completeness_plan(
            trials, circuit, ends, level="node", samples=knockouts, seed=seed
        )
        plans["minimality"] = minimality_plan(
            trials, circuit, ends, level="node", samples=knockouts // 2, most=most, seed=seed
        )
    done = run_plans(trials, list(plans.values()), progress=progress)
    found: dict[str, Any] = dict.fromkeys(("signed", "absolute", "completeness", "minimality"))
    return CircuitEvaluation(
        **(found | dict(zip(plans, done, strict=True))),
        stability=stable,
        stable_by=method,
        unstable=unstable,
        calls=trials.calls,
        tests=trials.tests,
        forwards=trials.forwards,
    )


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """A circuit's scores as what a curve is cut from."""

    graph: Graph
    signed: np.ndarray
    method: str


def _curve_plan(
    trials: Trials,
    circuit: Circuit,
    ends: np.ndarray,
    fractions: Sequence[float],
    level: Level,
    by: By,
    random: int,
    shared: dict[str, Any],
) -> Plan[FaithfulnessCurves]:
    scores = _Scores(graph=circuit.graph, signed=circuit.signed, method=circuit.method)
    return evaluation_plan(
        trials,
        curve(scores, fractions, level=level, by=by),
        ends,
        fractions=np.asarray(fractions),
        level=level,
        random=random,
        connected=random > 0,
        ranking=f", ranked by {by} score, pruned",
        **shared,
    )


def _stable(
    circuit: Circuit,
    model: LanguageModel,
    task: Task,
    by: str | EdgeScores,
    draws: int,
    given: dict[str, Any],
) -> tuple[Stability | None, str, str]:
    """The stability of a ranking, the method's name, and why there is no stability.

    Raises:
        InterpError: scores of another graph, or a method asked for by name that refuses the task.
    """
    graph, origin = circuit.graph, circuit.origin
    if isinstance(by, EdgeScores):
        if by.graph != graph:
            raise InterpError(
                f"stability of scores on {by.graph}",
                f"the graph of {circuit.name} is {graph}",
                "score the circuit's graph",
            )
        return stability(by, circuit.n_edges, draws=draws, seed=given["seed"]), by.method, ""
    if by != OWN:
        origin = Origin(method=by, options={})
    elif origin is None:
        return None, "", "the circuit does not say which method found it; name one to be stable by"
    elif origin.method not in QUICK:
        named = ", ".join(QUICK)
        return None, "", f"{origin.method}, which found it, takes many runs; by name: {named}"
    options = given | {"method": origin.method, **origin.options}
    if options["ablation"] != "mean":
        options["reference"] = None
    try:
        scores = score_edges(
            model, task, expand_kv=graph.expand_kv, neurons=graph.neurons, per_prompt=True,
            **options,
        )  # fmt: skip
    except InterpError as error:
        if by != OWN:
            raise
        return None, "", f"{origin.method}, which found it, cannot be taken again: {error}"
    found = stability(
        scores,
        circuit.n_edges,
        draws=draws,
        by=origin.by,  # type: ignore[arg-type]
        search=origin.search,
        seed=given["seed"],
    )
    return found, scores.method, ""


def _table(signed: FaithfulnessCurves, absolute: FaithfulnessCurves) -> str:
    """Both curves, a line per size."""
    assert signed.fractions is not None
    lines = ["  share of edges: f by signed score, by absolute score, random, random on paths"]
    for place, share in enumerate(signed.fractions.tolist()):
        row = signed.row(place)
        spans = [
            f"[{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
            for name in ("random", "on_paths")
            if row[f"{name}_low"] is not None
        ]
        both = (f"{one.estimate(place)} on {int(one.sizes[place])}" for one in (signed, absolute))
        lines.append(f"  {share:7.2%}: {'; '.join([*both, *spans])}")
    return "\n".join(lines)
