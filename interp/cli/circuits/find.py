"""`interp circuit find`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.cli import terminal
from interp.cli.circuits.common import (
    Ablation,
    Half,
    print_redundancy,
    size_of,
    strongest_first,
)
from interp.cli.terminal import (
    COUNT,
    DEFAULT_MODEL,
    NOT_NEGATIVE,
    SIZE,
    Budget,
    CountOption,
    Dtype,
    JsonFile,
    MetricOption,
    ModelName,
    Option,
    OutFile,
    SeedOption,
    TaskName,
    Verbose,
)

if TYPE_CHECKING:
    from interp.circuits.circuit import Circuit
    from interp.circuits.discovery.find import Findings

BY = terminal.typed(Literal["absolute", "signed", "mean_absolute"])
SEARCH = terminal.typed(Literal["best", "greedy"])


def find(
    task: TaskName = "ioi",
    model: ModelName = DEFAULT_MODEL,
    n: CountOption = 32,
    method: Annotated[
        str,
        typer.Option(
            help="EAP, EAP-IG-inputs, EAP-IG-activations, clean-corrupted, "
            "information-flow-routes, exact, ACDC (edges that matter either way), ACDC-paper "
            "(edges whose removal loses) or learned-mask."
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
        float, typer.Option(parser=NOT_NEGATIVE, help="A learned mask: the price of all edges.")
    ] = 1.0,
    ablation: Ablation = "counterfactual",
    half: Half = "first",
    expand_kv: Annotated[
        bool, typer.Option(help="Keys and values per query head, where heads share them.")
    ] = False,
    neurons: Annotated[
        str, typer.Option(help="Nodes of their own beside the rest of their MLP: L3N12,L5N7.")
    ] = "",
    seed: SeedOption = 0,
    metric: MetricOption = None,
    option: Option = None,
    dtype: Dtype = "float32",
    budget: Budget = 1.0,
    top: Annotated[int, typer.Option(parser=COUNT, help="How many edges to print.")] = 15,
    verbose: Verbose = False,
    out: OutFile = None,
    json_file: JsonFile = None,
) -> None:
    """Score or search all edges and cut a circuit; half of the pairs are left to evaluate it."""
    from interp.circuits.discovery.find import Finder, find_circuit

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
    made = found.circuit(edges, threshold=threshold, by=by, search=search)  # type: ignore[arg-type]
    share = found.share(made.mask)
    terminal.say(
        f"{method} gives a circuit of {size_of(made)} and {len(made.nodes())} nodes, with "
        f"{share:.1%} of the summed |score| of all edges (n={found.n})."
    )
    if found.warning:
        terminal.say(f"Warning: {found.warning}.")
    rows = _strongest(found, made, top)
    shown = [
        [f"{place} of {made.n_edges}", r["edge"], f"{r['score']:+.4f}", _error(r["stderr"])]
        for place, r in enumerate(rows, 1)
    ]
    terminal.table(["rank in circuit", "edge", "score", "stderr"], shown)
    if len(rows) < made.n_edges:
        terminal.say(f"{made.n_edges - len(rows)} more edges are not printed; see --top, --out.")
    if verbose:
        terminal.say(found.protocol)
    if out is not None:
        terminal.say(f"written to {made.save(out)}")
    pairs: list[Any] = []
    if redundant:
        from interp.circuits.discovery.redundancy import redundancy, strongest_nodes

        with terminal.progress("pairs") as progress:
            twofold = redundancy(
                loaded, chosen, strongest_nodes(made, redundant),
                ablation=ablation, reference=reference, seed=seed,  # type: ignore[arg-type]
                expand_kv=made.graph.expand_kv, neurons=made.graph.neurons,
                budget_gb=budget, progress=progress,
            )  # fmt: skip
        print_redundancy(twofold)
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
            "share_of_total": share,
            "strongest": rows,
            "provenance": asdict(found.provenance),
        },
    )


def _strongest(found: Findings, made: Circuit, top: int) -> list[dict[str, Any]]:
    """The circuit's strongest edges, by |score|."""
    return [
        {
            "edge": made.graph.label(int(writer), int(reader)),
            "score": float(found.signed[writer, reader]),
            "stderr": None if found.stderr is None else float(found.stderr[writer, reader]),
        }
        for writer, reader in strongest_first(found.signed, made)[:top]
    ]


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
