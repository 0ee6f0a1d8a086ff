"""`interp circuit find`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from interp.cli import terminal
from interp.cli.circuits import common
from interp.cli.terminal import about, count, not_negative, whole

BY = terminal.typed(Literal["absolute", "signed", "mean_absolute"])
SEARCH = terminal.typed(Literal["best", "greedy"])


def find(
    task: terminal.TaskName = "ioi",
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    n: terminal.CountOption = 32,
    method: Annotated[
        str,
        about(
            "EAP, EAP-IG-inputs, EAP-IG-activations, clean-corrupted, "
            "information-flow-routes, exact, ACDC (edges that matter either way), ACDC-paper "
            "(edges whose removal loses) or learned-mask."
        ),
    ] = "EAP-IG-inputs",
    edges: Annotated[int | None, count("Size of the circuit, in edges.")] = None,
    threshold: Annotated[
        float,
        not_negative(
            "Without --edges: the least |score|, as a share of the gap. Also ACDC's threshold."
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
            parser=SEARCH, help="With --edges: the best of all, or greedy from the logits back."
        ),
    ] = "best",
    direction: Annotated[str, about("Direction for scores and ACDC: noise or denoise.")] = "noise",
    redundant: Annotated[
        int, whole("Test pairs among this many nodes for redundancy; 0: none.")
    ] = 0,
    steps: Annotated[int | None, count("Steps: EAP-IG 5, learned mask 100.")] = None,
    weight: Annotated[
        float, not_negative("For a learned mask: the price of keeping all edges.")
    ] = 1.0,
    ablation: common.Ablation = "counterfactual",
    half: common.Half = "first",
    expand_kv: Annotated[
        bool, about("Separate keys and values for every query head, if heads share them.")
    ] = False,
    neurons: Annotated[str, about("Neurons that are nodes of their own, e.g. L3N12,L5N7.")] = "",
    seed: terminal.SeedOption = 0,
    metric: terminal.MetricOption = None,
    option: terminal.Option = None,
    dtype: terminal.Dtype = "float32",
    budget: terminal.Budget = 1.0,
    workers: terminal.Workers = 0,
    cluster: terminal.Cluster = None,
    top: Annotated[int, count("How many edges to print.")] = 15,
    verbose: terminal.Verbose = False,
    out: terminal.OutFile = None,
    json_file: terminal.JsonFile = None,
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
    with terminal.processes(workers, cluster), terminal.progress("finding") as progress:
        found = find_circuit(
            loaded, chosen, finder,
            reference=reference, workers=workers, budget_gb=budget, progress=progress,
        )  # fmt: skip
    made = found.circuit(edges, threshold=threshold, by=by, search=search)  # type: ignore[arg-type]
    share = found.share(made.mask)
    terminal.say(
        f"{method} gives a circuit of {common.size_of(made)} and {len(made.nodes())} nodes, with "
        f"{share:.1%} of the summed |score| of all edges (n={found.n})."
    )
    if found.warning:
        terminal.say(f"Warning: {found.warning}.")
    rows, shown = [], []
    for place, at in enumerate(common.strongest_first(found.signed, made)[:top], 1):
        edge, score = made.graph.label(*map(int, at)), float(found.signed[at])
        error = None if found.stderr is None else float(found.stderr[at])
        rows.append({"edge": edge, "score": score, "stderr": error})
        words = "" if error is None else f"{error:z.4f}"
        shown.append([f"{place} of {made.n_edges}", edge, f"{score:+z.4f}", words])
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
        common.print_redundancy(twofold)
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
