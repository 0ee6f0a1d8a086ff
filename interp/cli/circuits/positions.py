"""`interp circuit places`."""

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
)
from interp.cli.circuits.find import ordered
from interp.cli.terminal import (
    COUNT,
    NOT_NEGATIVE,
    Budget,
    Count,
    Dtype,
    JsonFile,
    Metric,
    Option,
    OutFile,
    Seed,
)
from interp.core.errors import InterpError

if TYPE_CHECKING:
    from interp.circuits.circuit import Circuit
    from interp.core.prompts import Task
    from interp.models.language_model import LanguageModel


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
    from interp.circuits.positions.edge_positions import edge_places

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
        note_found_on(read, other)
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
        edges = [read.graph.label(int(w), int(r)) for w, r in ordered(read.signed, read)]
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


def narrowed(
    model: LanguageModel,
    circuit: Circuit,
    halves: tuple[Task, Task],
    references: tuple[Task | None, Task | None],
    out: Path | None,
    *,
    positions: str | tuple[str, ...],
    threshold: float,
    **asked: Any,
) -> dict[str, Any]:
    """Cut on one half, judge on the other beside the edges everywhere; print, write, and tell."""
    from interp.circuits.positions.narrow import narrow_curve

    with terminal.progress("removing edges token by token") as progress:
        found = narrow_curve(
            model,
            *halves,
            circuit,
            positions=positions,
            thresholds=(threshold,),
            references=references,
            progress=progress,
            **asked,
        )
    if not found.thresholds:
        raise InterpError(
            f"{circuit.name} cut at {threshold:g}", "no path is left", "lower --narrow"
        )
    cut = found.judged.circuits[1]
    terminal.say(str(found))
    for label in cut.edges():
        terminal.say(f"  {label}")
    if out is not None:
        terminal.say(f"written to {cut.save(out)}")
    return {
        "protocol": found.judged.protocol,
        "edges": cut.edges(),
        "rows": found.judged.to_dataframe().to_dict("records"),
    }
