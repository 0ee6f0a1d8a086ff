"""`interp circuit`: find, evaluate, place, compare, export, and recover what is known."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp import terminal
from interp.cli_export import export
from interp.cli_known import recover
from interp.cli_narrow import narrowed
from interp.errors import InterpError
from interp.terminal import (
    COUNT,
    DEFAULT_MODEL,
    NOT_NEGATIVE,
    SIZE,
    Budget,
    Count,
    Dtype,
    JsonFile,
    Metric,
    ModelName,
    Option,
    OutFile,
    Seed,
    TaskName,
)

if TYPE_CHECKING:
    import numpy as np

    from interp.circuits.circuit import Circuit
    from interp.circuits.finding import Findings
    from interp.prompts import Task

circuit_app = typer.Typer(
    help="Circuits: find them, evaluate them, compare them.", no_args_is_help=True
)

Half = Annotated[
    str,
    typer.Option(
        help="Which half of the pairs: first, second or all. Split by the seed, so that halves are "
        "disjoint where --n and --seed are the same."
    ),
]
TheirModel = Annotated[
    str | None, typer.Option("--model", help="By default the one the circuit was found in.")
]
TheirTask = Annotated[
    str | None,
    typer.Option("--task", help="A task's name or file; by default the one it was found on."),
]
Ablation = Annotated[
    str, typer.Option(help="What removed edges carry: counterfactual, resample, zero or mean.")
]
BY = terminal.typed(Literal["absolute", "signed", "mean_absolute"])
SEARCH = terminal.typed(Literal["best", "greedy"])
CircuitFile = Annotated[Path, typer.Argument(help="A circuit that `find` or `export` wrote.")]


@circuit_app.callback()
def circuit() -> None:
    """Circuits: find them, evaluate them, compare them."""


@circuit_app.command(
    epilog="Example: interp circuit find --task ioi --n 32 --edges 200 --out ioi-circuit"
)
def find(
    task: TaskName = "ioi",
    model: ModelName = DEFAULT_MODEL,
    n: Count = 32,
    method: Annotated[
        str,
        typer.Option(
            help="EAP, EAP-IG-inputs, EAP-IG-activations, clean-corrupted, "
            "information-flow-routes, exact, ACDC (edges that matter either way), ACDC-paper "
            "(edges whose removal loses) or learnt-mask."
        ),
    ] = "EAP-IG-inputs",
    edges: Annotated[int | None, typer.Option(parser=COUNT, help="Size of the circuit.")] = None,
    threshold: Annotated[
        float,
        typer.Option(
            parser=NOT_NEGATIVE,
            help="Without --edges: least |score| of an edge, as a share of the gap; ACDC's own.",
        ),
    ] = 0.02,
    by: Annotated[
        str,
        typer.Option(
            parser=BY,
            help="Rank by absolute score, signed (leaves out edges that oppose it), or "
            "mean_absolute (mean size of the effect over prompts).",
        ),
    ] = "absolute",
    supporting: Annotated[bool, typer.Option(help="The same as --by signed.")] = False,
    search: Annotated[
        str,
        typer.Option(
            parser=SEARCH, help="With --edges: best of all, or greedy from the logits back."
        ),
    ] = "best",
    direction: Annotated[
        str,
        typer.Option(help="Of scores and ACDC: noise the clean run, or denoise the corrupted one."),
    ] = "noise",
    redundant: Annotated[
        int,
        typer.Option(
            parser=SIZE,
            help="Test pairs of so many nodes: which can lose either, but not both? 0: none.",
        ),
    ] = 0,
    steps: Annotated[
        int | None, typer.Option(parser=COUNT, help="Of EAP-IG (5), or of training a mask (100).")
    ] = None,
    weight: Annotated[
        float, typer.Option(parser=NOT_NEGATIVE, help="A learnt mask: the price of all edges.")
    ] = 1.0,
    ablation: Ablation = "counterfactual",
    half: Half = "first",
    expand_kv: Annotated[
        bool, typer.Option(help="Keys and values per query head, where heads share them.")
    ] = False,
    neurons: Annotated[
        str, typer.Option(help="Nodes of their own beside the rest of their MLP: L3N12,L5N7.")
    ] = "",
    seed: Seed = 0,
    metric: Metric = None,
    option: Option = None,
    dtype: Dtype = "float32",
    budget: Budget = 1.0,
    top: Annotated[int, typer.Option(parser=COUNT, help="How many edges to print.")] = 15,
    out: OutFile = None,
    json_file: JsonFile = None,
) -> None:
    """Score or search all edges and cut a circuit; half of the pairs are left to evaluate it."""
    from interp.circuits.finding import Finder, find_circuit

    loaded = terminal.load(model, dtype)
    chosen, other = terminal.halves(
        terminal.make_task(task, loaded, n, seed, option, metric), half, seed
    )
    finder = Finder(
        method=method, ablation=ablation, direction=direction, steps=steps, threshold=threshold,
        weight=weight, expand_kv=expand_kv, neurons=tuple(filter(None, neurons.split(","))),
        seed=seed,
    )  # fmt: skip
    reference = terminal.reference_of(ablation, chosen, other)
    with terminal.progress("finding") as progress:
        found = find_circuit(
            loaded, chosen, finder, reference=reference, budget_gb=budget, progress=progress
        )
    terminal.say(found.protocol)
    if found.warning:
        terminal.say(f"Warning: {found.warning}.")
    by = "signed" if supporting else by
    made = found.circuit(edges, threshold=threshold, by=by, search=search)  # type: ignore[arg-type]
    terminal.say(f"{made!r}, {found.share(made.mask):.1%} of the summed |score| of all edges")
    rows = _strongest(found, made, top)
    shown = [
        [f"{place} of {made.n_edges}", r["edge"], f"{r['score']:+.4f}", _error(r["stderr"])]
        for place, r in enumerate(rows, 1)
    ]
    terminal.table(["rank in circuit", "edge", "score", "stderr"], shown)
    if len(rows) < made.n_edges:
        terminal.say(f"{made.n_edges - len(rows)} more edges are not printed; see --top, --out")
    if out is not None:
        terminal.say(f"written to {made.save(out)}")
    pairs: list[Any] = []
    if redundant:
        from interp.circuits.redundancy import redundancy, strongest_nodes

        with terminal.progress("pairs") as progress:
            twofold = redundancy(
                loaded, chosen, strongest_nodes(made, redundant),
                ablation=ablation, reference=reference, seed=seed,  # type: ignore[arg-type]
                expand_kv=made.graph.expand_kv, neurons=made.graph.neurons,
                budget_gb=budget, progress=progress,
            )  # fmt: skip
        terminal.say(str(twofold))
        pairs = [asdict(pair) for pair in twofold.pairs]
    terminal.write(
        json_file,
        {
            "protocol": found.protocol,
            "warning": found.warning,
            "redundant": pairs,
            "edges": made.edges(),
            "nodes": made.nodes(),
            "of": made.graph.n_edges,
            "share_of_total": found.share(made.mask),
            "strongest": rows,
            "provenance": asdict(found.provenance),
        },
    )


@circuit_app.command(
    epilog="Example: interp circuit evaluate ioi-circuit --task ioi --n 32 --json curve.json"
)
def evaluate(
    file: CircuitFile,
    task: TheirTask = None,
    model: TheirModel = None,
    n: Count = 32,
    ablation: Ablation = "counterfactual",
    level: Annotated[
        str, typer.Option(help="Of the curves: edge, or node: all edges between the nodes.")
    ] = "edge",
    random: Annotated[
        int,
        typer.Option(
            parser=SIZE, help="Random circuits of equal size behind each, of either kind."
        ),
    ] = 10,
    knockouts: Annotated[
        int, typer.Option(parser=SIZE, help="Random subsets for completeness and minimality.")
    ] = 10,
    draws: Annotated[
        int, typer.Option(parser=SIZE, help="Resampled pairs of prompts for stability; 0 for none.")
    ] = 20,
    stable_by: Annotated[
        str,
        typer.Option(
            help="The ranking whose stability it is: own, the method the circuit was found by, or "
            "EAP, EAP-IG-inputs, clean-corrupted."
        ),
    ] = "own",
    half: Half = "second",
    seed: Seed = 0,
    metric: Metric = None,
    option: Option = None,
    dtype: Dtype = "float32",
    budget: Budget = 1.0,
    out: OutFile = None,
    json_file: JsonFile = None,
) -> None:
    """Faithfulness, CPR and CMD against random circuits, knock-outs, stability: in one run."""
    from interp.circuits.circuit import Circuit
    from interp.circuits.full import evaluate_fully

    read = Circuit.load(file)
    model, task = _home(read, model, task)
    loaded = terminal.load(model, dtype)
    chosen, other = terminal.halves(
        terminal.make_task(task, loaded, n, seed, option, metric), half, seed
    )
    _note_found_on(read, chosen)
    if read.scores is None:
        terminal.say("No curve: the file has no scores.")
    with terminal.progress("circuits") as progress:
        found = evaluate_fully(
            read,
            loaded,
            chosen,
            ablation=ablation,  # type: ignore[arg-type]
            reference=terminal.reference_of(ablation, chosen, other),
            level=level,  # type: ignore[arg-type]
            random=random,
            knockouts=knockouts,
            stable_by=stable_by if draws else None,
            draws=draws,
            seed=seed,
            budget_gb=budget,
            progress=progress,
        )
    terminal.say(str(found))
    if out is not None:
        terminal.say(f"written to {found.save(out)}")
    terminal.write(json_file, found.to_dict())


@circuit_app.command(
    epilog="Example: interp circuit places ioi-circuit --task ioi --n 16 --positions IO,S1,S2,last"
)
def places(
    file: CircuitFile,
    task: TheirTask = None,
    model: TheirModel = None,
    n: Count = 32,
    positions: Annotated[
        str, typer.Option(help="Names such as S2,last; or all, for prompts of one length.")
    ] = "all",
    ablation: Ablation = "counterfactual",
    half: Annotated[
        str | None,
        typer.Option(
            help="Which half of the pairs: first, second (by default) or all. With --narrow the "
            "half to cut on: by default the first, on which `find` found the circuit."
        ),
    ] = None,
    seed: Seed = 0,
    metric: Metric = None,
    option: Option = None,
    dtype: Dtype = "float32",
    budget: Budget = 1.0,
    top: Annotated[int, typer.Option(parser=COUNT, help="How many of the strongest edges.")] = 10,
    narrow: Annotated[
        float | None,
        typer.Option(
            parser=NOT_NEGATIVE,
            help="Instead cut the whole circuit to the tokens where its edges are worth this share "
            "of the gap, and judge what is left on the other half of the pairs.",
        ),
    ] = None,
    out: OutFile = None,
    json_file: JsonFile = None,
) -> None:
    """At which tokens the strongest edges of a circuit act: each removed at one alone."""
    from interp.circuits.circuit import Circuit
    from interp.circuits.places import edge_places

    read = Circuit.load(file)
    model, task = _home(read, model, task)
    loaded = terminal.load(model, dtype)
    half = half or ("second" if narrow is None else "first")
    chosen, other = terminal.halves(
        terminal.make_task(task, loaded, n, seed, option, metric), half, seed
    )
    if narrow is not None:
        if other is None:
            raise InterpError("narrowing on all pairs", "none are left to judge", "give --half")
        _note_found_on(read, other)
        told = narrowed(
            loaded,
            read,
            (chosen, other),
            (
                terminal.reference_of(ablation, chosen, other),
                terminal.reference_of(ablation, other, chosen),
            ),
            out,
            positions=terminal.names(positions),
            threshold=narrow,
            ablation=ablation,
            seed=seed,
            budget_gb=budget,
        )
        terminal.write(json_file, told)
        return
    if out is not None:
        raise InterpError(f"writing {out}", "no circuit is cut", "give --narrow 0.01")
    edges = read.edges()
    if read.scores is not None:
        edges = [read.graph.label(int(w), int(r)) for w, r in _ordered(read.signed, read)]
    with terminal.status("removing edges token by token"):
        found = edge_places(
            loaded,
            chosen,
            edges[:top],
            positions=terminal.names(positions),
            ablation=ablation,  # type: ignore[arg-type]
            reference=terminal.reference_of(ablation, chosen, other),
            expand_kv=read.graph.expand_kv,
            neurons=read.graph.neurons,
            seed=seed,
            budget_gb=budget,
        )
    terminal.say(found.protocol)
    head = ["edge", "all tokens", *found.positions]
    rows = zip(found.edges, found.whole, found.values, strict=True)
    terminal.table(head, [[e, *(f"{x:+.3f}" for x in (whole, *row))] for e, whole, row in rows])
    if len(edges) > top:
        terminal.say(f"{len(edges) - top} more edges were left out; see --top")
    rows = found.to_dataframe().to_dict("records")
    terminal.write(json_file, {"protocol": found.protocol, "rows": rows})


@circuit_app.command(epilog="Example: interp circuit compare ioi-circuit other-circuit")
def compare(
    left: CircuitFile,
    right: CircuitFile,
    random: Annotated[int, typer.Option(parser=SIZE, help="Pairs of random circuits.")] = 200,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """What two circuits share, by kind of edge and node, against random ones like them."""
    from interp.circuits.circuit import Circuit
    from interp.circuits.comparing import compare as compare_circuits

    both = [Circuit.load(path) for path in (left, right)]
    found = compare_circuits(*both, random=random, seed=seed)
    for side, one in (("left", found.left), ("right", found.right)):
        terminal.say(f"{side}: {one!r}")
    rows = []
    for row in found.rows:
        null = row.expected
        chance = ("", "")
        if null is not None:
            chance = f"{null.mean:.3f} [{null.low:.3f}, {null.high:.3f}]", f"{null.share:.3f}"
        sizes = map(str, (row.left, row.right, row.shared))
        rows.append([row.kind, *sizes, f"{row.jaccard:.3f}", *chance])
    head = ["", "left", "right", "shared", "Jaccard", "random circuits like them", "as strong"]
    terminal.table(head, rows)
    terminal.write(json_file, found.to_dict())


circuit_app.command(epilog="Example: interp circuit export ioi-circuit ioi-circuit.mib.json")(
    export
)
circuit_app.command(epilog="Example: interp circuit recover reverse hist toy-or --json table.json")(
    recover
)


def _home(circuit: Circuit, model: str | None, task: str | None) -> tuple[str, str]:
    """The names given, or those of where the circuit was found."""
    origin = circuit.provenance
    if origin is None and (model is None or task is None):
        raise InterpError(
            f"{circuit!r}", "it does not say where it is from", "give --model, --task"
        )
    return model or str(origin and origin.model), task or str(origin and origin.task)


def _note_found_on(circuit: Circuit, judging: Task) -> None:
    """Say so where a circuit is judged on the prompts it was found on."""
    if (origin := circuit.provenance) is not None and origin.task_hash == judging.hash:
        terminal.say("Note: it is judged on the prompts it was found on; see --half and --seed.")


def _ordered(scores: np.ndarray, made: Circuit) -> list[tuple[int, int]]:
    """The circuit's edges, the largest |score| first."""
    return sorted(zip(*made.mask.nonzero(), strict=True), key=lambda p: -abs(scores[p]))


def _strongest(found: Findings, made: Circuit, top: int) -> list[dict[str, Any]]:
    """The circuit's strongest edges, by |score|."""
    return [
        {
            "edge": made.graph.label(int(writer), int(reader)),
            "score": float(found.signed[writer, reader]),
            "stderr": None if found.stderr is None else float(found.stderr[writer, reader]),
        }
        for writer, reader in _ordered(found.signed, made)[:top]
    ]


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
