"""`interp circuit positions`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import terminal
from interp.cli.circuits.common import (
    Ablation,
    CircuitFile,
    TheirModel,
    TheirTask,
    home,
    note_found_on,
    random_words,
    strongest_first,
)
from interp.cli.terminal import (
    COUNT,
    NOT_NEGATIVE,
    Budget,
    CountOption,
    Dtype,
    JsonFile,
    MetricOption,
    Option,
    OutFile,
    SeedOption,
    Verbose,
)
from interp.core.errors import InterpError

if TYPE_CHECKING:
    from interp.circuits.circuit import Circuit
    from interp.core.prompts import Task
    from interp.models.language_model import LanguageModel


def positions(
    file: CircuitFile,
    task: TheirTask = None,
    model: TheirModel = None,
    n: CountOption = 32,
    at: Annotated[
        str,
        typer.Option(
            "--positions", help="Names such as S2,last; or all, for prompts of one length."
        ),
    ] = "all",
    ablation: Ablation = "counterfactual",
    half: Annotated[
        str | None,
        typer.Option(
            help="Which half of the pairs: first, second (by default) or all. With --narrow, the "
            "half to cut on: by default the first, on which `find` found the circuit."
        ),
    ] = None,
    seed: SeedOption = 0,
    metric: MetricOption = None,
    option: Option = None,
    dtype: Dtype = "float32",
    budget: Budget = 1.0,
    top: Annotated[int, typer.Option(parser=COUNT, help="How many of the strongest edges.")] = 10,
    narrow: Annotated[
        float | None,
        typer.Option(
            parser=NOT_NEGATIVE,
            help="Instead cut the whole circuit to the tokens where its edges are worth this share "
            "of the gap, and judge the rest on the other half of the pairs.",
        ),
    ] = None,
    verbose: Verbose = False,
    out: OutFile = None,
    json_file: JsonFile = None,
) -> None:
    """At which tokens the strongest edges of a circuit act: each edge is removed at one token."""
    import numpy as np

    from interp.circuits.circuit import Circuit
    from interp.circuits.positions.edge_positions import edge_positions

    read = Circuit.load(file)
    model, task = home(read, model, task)
    loaded = terminal.load(model, dtype)
    half = half or ("second" if narrow is None else "first")
    chosen, other = terminal.halves(
        terminal.make_task(task, loaded, n, seed, option, metric), half, seed
    )
    if narrow is not None:
        if other is None:
            raise InterpError("narrowing on all pairs", "none are left to judge", "give --half")
        told = _narrow(
            loaded,
            read,
            (chosen, other),
            (
                terminal.reference_of(ablation, chosen, other),
                terminal.reference_of(ablation, other, chosen),
            ),
            out,
            verbose=verbose,
            positions=terminal.names(at),
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
        edges = [read.graph.label(int(w), int(r)) for w, r in strongest_first(read.signed, read)]
    with terminal.status("removing edges token by token"):
        found = edge_positions(
            loaded,
            chosen,
            edges[:top],
            positions=terminal.names(at),
            ablation=ablation,  # type: ignore[arg-type]
            reference=terminal.reference_of(ablation, chosen, other),
            expand_kv=read.graph.expand_kv,
            neurons=read.graph.neurons,
            seed=seed,
            budget_gb=budget,
        )
    edge, position = (int(i) for i in np.unravel_index(found.values.argmax(), found.values.shape))
    best = found.estimate(found.edges[edge], found.positions[position])
    terminal.say(
        f"{found.edges[edge]} at {found.positions[position]} has the largest effect of one edge at "
        f"one token: {best.mean:+.3f} of the gap {terminal.spread(best.low, best.high, '+')}, "
        f"n={best.n}."
    )
    head = ["edge", "all tokens", *found.positions]
    rows = zip(found.edges, found.whole, found.values, strict=True)
    terminal.table(head, [[e, *(f"{x:+.3f}" for x in (whole, *row))] for e, whole, row in rows])
    if len(edges) > top:
        terminal.say(f"{len(edges) - top} more edges were left out; see --top.")
    if verbose:
        terminal.say(found.protocol)
    rows = found.to_dataframe().to_dict("records")
    terminal.write(json_file, {"protocol": found.protocol, "rows": rows})


def _narrow(
    model: LanguageModel,
    circuit: Circuit,
    halves: tuple[Task, Task],
    references: tuple[Task | None, Task | None],
    out: Path | None,
    *,
    verbose: bool,
    threshold: float,
    **asked: Any,
) -> dict[str, Any]:
    """Cut on one half, judge on the other beside the uncut circuit; print, write, and return."""
    from interp.circuits.positions.narrow import narrow_curve

    with terminal.progress("removing edges token by token") as progress:
        found = narrow_curve(
            model,
            *halves,
            circuit,
            thresholds=(threshold,),
            references=references,
            progress=progress,
            **asked,
        )
    if not found.thresholds:
        raise InterpError(
            f"{circuit.name} cut at {threshold:g}", "no path is left", "lower --narrow"
        )
    judged, cut = found.judged, found.judged.circuits[1]
    both = [judged.estimate(place) for place in (0, 1)]
    terminal.say(
        f"Cut to {cut.n_edges} edges at single positions, the circuit carries "
        f"{both[1].mean:.3f} of the {judged.metric} gap "
        f"{terminal.spread(both[1].low, both[1].high)}; with its edges at every position "
        f"{both[0].mean:.3f} (n={judged.n})."
    )
    note_found_on(circuit, halves[1])
    terminal.table(
        ["circuit", "edges", "share", "faithfulness", "95 % interval", "random circuits"],
        [
            [
                name,
                str(one.n_edges),
                f"{one.share:.2%}",
                f"{f.mean:.3f}",
                terminal.spread(f.low, f.high),
                random_words(judged, place),
            ]
            for place, (name, one, f) in enumerate(
                zip(("every position", "cut"), judged.circuits, both, strict=True)
            )
        ],
    )
    terminal.table(["edge @ position"], [[label] for label in cut.edges()])
    if verbose:
        terminal.say(found.effects.protocol)
        terminal.say(judged.protocol)
    if out is not None:
        terminal.say(f"written to {cut.save(out)}")
    return {
        "protocol": found.judged.protocol,
        "edges": cut.edges(),
        "rows": found.judged.to_dataframe().to_dict("records"),
    }
