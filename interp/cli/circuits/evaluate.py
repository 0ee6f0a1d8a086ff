"""`interp circuit evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from interp.cli import terminal
from interp.cli.circuits.common import (
    Ablation,
    CircuitFile,
    Half,
    TheirModel,
    TheirTask,
    home,
    note_found_on,
)
from interp.cli.terminal import (
    SIZE,
    Budget,
    Count,
    Dtype,
    JsonFile,
    Metric,
    Option,
    OutFile,
    Seed,
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
    from interp.circuits.evaluation.evaluate import evaluate

    read = Circuit.load(file)
    model, task = home(read, model, task)
    loaded = terminal.load(model, dtype)
    chosen, other = terminal.halves(
        terminal.make_task(task, loaded, n, seed, option, metric), half, seed
    )
    note_found_on(read, chosen)
    if read.scores is None:
        terminal.say("No curve: the file has no scores.")
    with terminal.progress("circuits") as progress:
        found = evaluate(
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
