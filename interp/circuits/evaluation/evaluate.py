"""`evaluate`: all measurements of a circuit in one batched run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import numpy as np

from interp.circuits.circuit import Circuit, CircuitLevel, Origin
from interp.circuits.evaluation.curve_evaluation import (
    CircuitPlan,
    FaithfulnessCurves,
    evaluation_plan,
    run_plans,
)
from interp.circuits.evaluation.curves import FRACTIONS, curve
from interp.circuits.evaluation.knockouts import (
    Completeness,
    Minimality,
    completeness,
    minimality,
)
from interp.circuits.evaluation.stability import Stability, stability
from interp.circuits.ranking import By
from interp.circuits.scoring.edge_scores import EdgeScores
from interp.circuits.scoring.score_edges import score_edges
from interp.circuits.trials.options import SharedTrialKeywords, TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.core.records import Record
from interp.core.statistics import Estimate
from interp.engine.memory import says_too_little
from interp.engine.stopping import Cancelled
from interp.models.language_model import LanguageModel

OWN = "own"
QUICK = ("EAP", "EAP-IG-inputs", "clean-corrupted")
"""Methods that score every prompt in a few passes."""


@dataclass(frozen=True, kw_only=True)
class CircuitEvaluation(Record):
    """A circuit's faithfulness, completeness, minimality, and stability over prompts.

    Attributes:
        itself: the circuit, and the circuit of all edges between its nodes.
        signed: the curve of its scores, ranked by signed score. MIB's CPR is the area under it.
            None for a circuit without scores.
        absolute: the curve ranked by absolute score. MIB's CMD is its distance from 1. None for a
            circuit without scores.
        completeness: None without knock-outs.
        minimality: None without knock-outs.
        stability: None if it was not measured.
        stable_by: the method whose ranking was repeated on resampled prompts; "" if none.
        unstable: why stability was not measured; "" if it was, or was not requested.
        calls: batched runs.
        tests: circuits run.
        forwards: forward passes, see `Trials`.
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
        """The circuit that was evaluated."""
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
        """Area under f, ranked by signed score. See `Faithfulness.cpr`.

        Raises:
            InterpError: the circuit has no scores.
        """
        return self._curve(self.signed).cpr()

    def cmd(self) -> Estimate:
        """Area between f and 1, ranked by absolute score. See `Faithfulness.cmd`.

        Raises:
            InterpError: the circuit has no scores.
        """
        return self._curve(self.absolute).cmd()

    def _curve(self, one: FaithfulnessCurves | None) -> FaithfulnessCurves:
        if one is None:
            raise InterpError(
                f"a curve of {self.circuit.name}",
                "its edges have no scores",
                "score the edges first",
            )
        return one

    def __str__(self) -> str:
        edges, nodes, share = self.size
        lines = [f"{edges} edges ({share:.2%}), {nodes} nodes", str(self.itself)]
        kinds = {"random": "", "on_paths": ", all edges on paths"}
        for kind in self.itself.drawn:
            null = self.itself.null(0, connected=kind == "on_paths")
            lines.append(f"  compared with random circuits of its size{kinds[kind]}: {null}")
        if self.signed is not None and self.absolute is not None:
            lines.append(_table(self.signed, self.absolute))
            lines.append(
                f"  CPR {self.cpr()} (signed ranking); CMD {self.cmd()} (absolute ranking)"
            )
            for kind in self.signed.drawn:
                words = {"random": "random circuits", "on_paths": "random circuits on paths"}[kind]
                null = self.signed.null(connected=kind == "on_paths")
                lines.append(f"  CPR compared with {words}: {null}")
        knockouts = (self.completeness, self.minimality)
        lines += [line for one in knockouts if one is not None for line in str(one).split("\n")[1:]]
        if self.stability is not None:
            lines.append(f"  stability of {self.stable_by}: {self.stability}")
        if self.unstable:
            lines.append(f"  stability was not measured: {self.unstable}")
        lines.append(
            f"  {self.calls} batched runs of {self.tests} circuits, "
            f"{self.forwards:z.1f} forward passes"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The results as plain values, with the protocol."""
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


@says_too_little
@reads_arguments
def evaluate(
    circuit: Circuit,
    model: LanguageModel,
    task: Task,
    *,
    level: CircuitLevel = "edge",
    fractions: Sequence[float] = FRACTIONS,
    random: int = 10,
    knockouts: int = 10,
    most: int = 32,
    stable_by: str | EdgeScores | None = OWN,
    draws: int = 20,
    bands: int = 3,
    **run: Unpack[SharedTrialKeywords],
) -> CircuitEvaluation:
    """Measure faithfulness, completeness, minimality and stability of a circuit in one batched run.

    Circuits that first differ in a late layer share the earlier layers, across all measurements.

    Args:
        circuit: the circuit; the curves need its scores.
        model: the model it was found in.
        task: prompt pairs. Use pairs that it was not found on.
        level: the level of the curves: the best edges, or the best nodes with all edges between
            them.
        fractions: sizes of the curves' circuits.
        random: random circuits for the circuit and for every size of the signed curve, and as many
            random circuits whose edges all lie on paths; 0 for none.
        knockouts: random subsets of nodes for completeness, and half as many for minimality; 0 for
            neither.
        most: the most nodes tested for minimality.
        stable_by: the method whose ranking is repeated on resampled pairs, and cut to the circuit's
            size. "own": the method that found the circuit, with its options (if it needs many runs
            or is unknown, stability is not measured, and `unstable` says why). Or a quick method of
            `score_edges`; or scores of this graph with per-prompt values; or None for no stability.
        draws: resampled circuits; 0 for no stability.
        bands: number of layer bands in which random circuits are matched.
        run: ablation, reference, seed, budget_gb, workers, progress (called with circuits run, and
            in total; with `workers`, with parts of the prompts) and cancelled; see `TrialOptions`.

    Raises:
        InterpError: as `faithfulness_curve`, `completeness` and `stability`; a slow method in
            `stable_by`, or scores of another graph.
    """
    if isinstance(stable_by, str) and stable_by not in (OWN, *QUICK):
        raise InterpError(
            f"stability of {stable_by}",
            "the method needs many runs, or does not exist",
            f"choose among {', '.join((OWN, *QUICK))}",
        )
    if level not in ("edge", "node"):
        raise unknown("level", level, ("edge", "node"))
    options = TrialOptions(**run).of_graph(circuit.graph)
    trials = Trials(model, task, options)
    trials.require_graph([circuit])
    ends = trials.checked_ends()
    stable, method, unstable = None, "", ""
    if stable_by is not None and draws and circuit.n_edges:
        stable, method, unstable = _stable(circuit, trials, stable_by, draws)
    call = (
        f"evaluation = interp.circuits.evaluate(circuit, model, task, "
        f"ablation={options.ablation!r}, random={random}, knockouts={knockouts}, "
        f"seed={options.seed})"
    )
    shared: dict[str, Any] = {"bands": bands, "call": call}
    both = [circuit, circuit.whole_nodes()]
    itself = evaluation_plan(trials, both, ends, random=random, connected=True, **shared)
    plans: dict[str, CircuitPlan[Any]] = {"itself": itself}
    if circuit.scores is not None:
        curves: dict[By, int] = {"signed": random, "absolute": 0}
        for by, some in curves.items():
            plans[by] = evaluation_plan(
                trials,
                curve(circuit, fractions, level=level, by=by),
                ends,
                fractions=np.asarray(fractions),
                level=level,
                random=some,
                connected=some > 0,
                ranking=f", ranked by {by} score, pruned",
                **shared,
            )
    if knockouts and circuit.n_edges:
        seed = options.seed
        plans["completeness"] = completeness(trials, circuit, ends, samples=knockouts, seed=seed)
        plans["minimality"] = minimality(
            trials, circuit, ends, samples=knockouts // 2, most=most, seed=seed
        )
    found: dict[str, Any] = dict.fromkeys(("signed", "absolute", "completeness", "minimality"))
    found |= zip(plans, run_plans(trials, list(plans.values())), strict=True)
    return CircuitEvaluation(
        **found,
        stability=stable,
        stable_by=method,
        unstable=unstable,
        calls=trials.calls,
        tests=trials.tests,
        forwards=trials.forwards,
    )


def _stable(
    circuit: Circuit, trials: Trials, by: str | EdgeScores, draws: int
) -> tuple[Stability | None, str, str]:
    """The stability of a ranking, the method's name, and why it was not measured.

    Raises:
        InterpError: scores of another graph, or a named method that refuses the task.
    """
    graph, origin, given = circuit.graph, circuit.origin, trials.options
    if isinstance(by, EdgeScores):
        if by.graph != graph:
            raise InterpError(
                f"stability of scores on {by.graph}",
                f"the graph of {circuit.name} is {graph}",
                "score the circuit's graph",
            )
        return stability(by, circuit.n_edges, draws=draws, seed=given.seed), by.method, ""
    if by != OWN:
        origin = Origin(method=by, options={})
    elif origin is None:
        return None, "", "the circuit does not say which method found it; name one in stable_by"
    elif origin.method not in QUICK:
        named = ", ".join(QUICK)
        return None, "", f"{origin.method}, which found it, needs many runs; name one of {named}"
    options = {"ablation": given.ablation, "reference": given.reference, "seed": given.seed}
    options |= {"method": origin.method, **origin.options}
    if options["ablation"] != "mean":
        options["reference"] = None
    try:
        scores = score_edges(
            trials.model,
            trials.task,
            expand_kv=graph.expand_kv,
            neurons=graph.neurons,
            per_prompt=True,
            budget_gb=given.budget_gb,
            cancelled=given.cancelled,
            workers=given.workers,
            **options,
        )
    except Cancelled:
        raise
    except InterpError as error:
        if by != OWN:
            raise
        return None, "", f"{origin.method}, which found it, cannot be repeated: {error}"
    found = stability(
        scores,
        circuit.n_edges,
        draws=draws,
        by=origin.by,  # type: ignore[arg-type]
        search=origin.search,
        seed=given.seed,
    )
    return found, scores.method, ""


def _table(signed: FaithfulnessCurves, absolute: FaithfulnessCurves) -> str:
    """Both curves, one line per size."""
    assert signed.fractions is not None
    lines = ["  share of edges: f by signed score, by absolute score, random, random on paths"]
    for number, share in enumerate(signed.fractions.tolist()):
        row = signed.row(number)
        spans = [
            f"[{row[f'{name}_low']:z.3f}, {row[f'{name}_high']:z.3f}]"
            for name in ("random", "on_paths")
            if row[f"{name}_low"] is not None
        ]
        both = (f"{one.estimate(number)} on {int(one.sizes[number])}" for one in (signed, absolute))
        lines.append(f"  {share:7.2%}: {'; '.join([*both, *spans])}")
    return "\n".join(lines)
